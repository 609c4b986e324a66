//! Attacks on a VMM from inside its guest, and on the host from a VMM that was taken over: with real Firecracker in its jail,
//! under the strict filter. Whatever becomes of that VMM, the host, its records and another tenant's guest are as before.
//!
//! Docs: docs/attacks.md. `MVM_ATTACK_SEEDS=100` tries as many seeds instead of one.
#![cfg(target_arch = "x86_64")]

#[path = "../support/mod.rs"]
mod support;

mod devices;
mod kernel;
mod taken_over;
mod tracee;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use support::{Sandbox, firecracker, skip, wait_until};

/// A tenant that is attacked from, and another one with a guest that runs.
struct World {
    sandbox: Sandbox,
    neighbour: String,
    neighbours_vmm: Value,
}

impl World {
    /// `None`, said visibly, where there are no jails.
    fn new() -> Option<Self> {
        firecracker()?;
        let sandbox = Sandbox::new()?;
        sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
        sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
        let mut world = Self { sandbox, neighbour: String::new(), neighbours_vmm: Value::Null };
        // It says that it is there for ever.
        world.pool("globex/web", &kernel::kernel(kernel::Attack::Ports, 1, 1));
        world.neighbour = world.sandbox.instance("globex/web");
        let started = world.sandbox.ok(&format!("instance start {}", world.neighbour));
        world.neighbours_vmm = started["vmm"].clone();
        if started["vmm"]["lacks"].as_array().is_some_and(|lacks| lacks.contains(&"jail".into())) {
            skip("no jail: the jailer is not beside Firecracker, or one of them is linked dynamically");
            return None;
        }
        Some(world)
    }

    /// A pool under the strict filter, whose guests run this kernel.
    fn pool(&self, name: &str, kernel: &[u8]) {
        let options = "--vmm firecracker --mem 128 --data-disk 8 --insecure --seccomp strict";
        self.sandbox.ok(&format!("pool create {name} {options}"));
        let (file, rootfs) = self.sandbox.artifacts();
        fs::write(&file, kernel).expect("a kernel");
        let (file, rootfs) = (file.display(), rootfs.display());
        self.sandbox.ok(&format!("pool import {name} --kernel {file} --rootfs {rootfs} --cmdline quiet"));
    }

    /// The directory of a VMM, its jail.
    fn jail(&self, record: &Value) -> PathBuf {
        let tap = record["net"]["tap_dev"].as_str().expect("a TAP");
        self.sandbox.root().join("run/firecracker").join(tap).join("root")
    }

    /// The other tenant's guest goes on, in the same VMM.
    #[track_caller]
    fn neighbour_goes_on(&self) {
        let record = self.sandbox.ok(&format!("instance info {}", self.neighbour));
        assert_eq!(
            (&record["status"], &record["vmm"]["pid"]),
            (&"running".into(), &self.neighbours_vmm["pid"])
        );
        let console = self.jail(&record).join("console.log");
        let length = || fs::metadata(&console).map_or(0, |file| file.len());
        let before = length();
        wait_until("the neighbour goes on", || length() > before);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.sandbox.ok(&format!("instance stop --force {}", self.neighbour));
        let leaks = self.sandbox.leaks();
        assert!(leaks.is_empty(), "{leaks:#?}");
    }
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("it is there").flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
