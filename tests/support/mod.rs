//! What the tests of whole commands share: a root and a network namespace of their own, and a look at what is left.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

pub mod agents;
pub mod faulty;
pub mod oci;
pub mod searcher;

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// Says visibly that a test did not run, and why.
pub fn skip(reason: &str) {
    use std::io::Write;
    println!("SKIP ({reason})");
    if let Some(log) = std::env::var_os("MVM_SKIP_LOG") {
        let line = format!("{reason}\n");
        let _ = fs::File::options().append(true).open(log).and_then(|mut log| log.write_all(line.as_bytes()));
    }
}

/// The program under test: as built, and in the lab, where nothing lies where it was built, the one on PATH.
pub fn program() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_mvm"));
    if built.exists() { built } else { "mvm".into() }
}

/// A throw-away root, and a network namespace for this thread and what it starts.
pub struct Sandbox {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Sandbox {
    /// A fresh one; `None`, said visibly, where this machine does not allow it.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("needs root: network namespaces and TAPs");
            return None;
        }
        // SAFETY: the thread belongs to this test alone.
        if let Err(error) = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) } {
            skip(&format!("no network namespaces here: {error}"));
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join(".throw-away"), "").expect("a mark");
        let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
        assert!(status.success());
        Some(Self { dir, mounted: false })
    }

    /// Puts the root on a file system of its own, of this size. The mount namespace belongs to the test.
    pub fn mount_tmpfs(&mut self, size: &str) {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(self.root());
        assert!(command.status().expect("mount runs").success());
        self.mounted = true;
        fs::write(self.root().join(".throw-away"), "").expect("a mark");
    }

    /// Puts the root on a btrfs of its own, which has reflinks. False, said visibly, where this machine cannot. The mount
    /// namespace belongs to the test.
    pub fn mount_btrfs(&mut self, size: &str) -> bool {
        self.mount_disk("btrfs", size)
    }

    /// Puts the root on a file system of that kind, on a disk of its own. False, said visibly, where this machine cannot. The
    /// mount namespace belongs to the test.
    pub fn mount_disk(&mut self, kind: &str, size: &str) -> bool {
        // The mount holds the disk; its name goes with this value.
        let image = tempfile::NamedTempFile::new().expect("a file");
        let works = |program: &str, arguments: &[&OsStr]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        let (image, root) = (image.path().as_os_str(), self.root().as_os_str());
        let mount = [OsStr::new("-o"), OsStr::new("loop,noatime"), image, root];
        self.mounted = works("truncate", &[OsStr::new("-s"), OsStr::new(size), image])
            && works(&format!("mkfs.{kind}"), &[OsStr::new("-q"), image])
            && works("mount", &mount);
        match self.mounted {
            true => fs::write(self.root().join(".throw-away"), "").expect("a mark"),
            false => skip(&format!("no {kind} on a loop device here")),
        }
        self.mounted
    }

    /// The root.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The command line of mvm on this root, from a cleared environment.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(program());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("MVM_ROOT", self.root())
            .args(arguments.split_whitespace())
            .stdin(Stdio::null());
        for name in ["FIRECRACKER_BIN", "JAILER_BIN"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Runs a command.
    pub fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("mvm runs")
    }

    /// Runs a command that is killed, or made to fail, at a failpoint.
    pub fn run_with(&self, arguments: &str, failpoint: impl AsRef<OsStr>) -> Output {
        self.command(arguments).env("MVM_FAILPOINT", failpoint).output().expect("mvm runs")
    }

    /// Runs a command that must succeed, and returns its JSON.
    pub fn ok(&self, arguments: &str) -> Value {
        let output = self.run(&format!("{arguments} --json"));
        assert!(output.status.success(), "mvm {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Runs a command that must fail with an exit code, and returns its error's code.
    pub fn refused(&self, arguments: &str, exit: i32) -> String {
        let output = self.run(&format!("{arguments} --json"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "mvm {arguments}: {said}");
        let error: Value =
            serde_json::from_str(&said).unwrap_or_else(|_| panic!("mvm {arguments}: no JSON: {said}"));
        error["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Two files that can be imported.
    pub fn artifacts(&self) -> (PathBuf, PathBuf) {
        let (kernel, rootfs) = (self.root().join("kernel.in"), self.root().join("rootfs.in"));
        if !kernel.exists() {
            fs::write(&kernel, mvm::cli::tiny_kernel()).expect("a kernel");
            let output =
                Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&rootfs).arg("4M").output();
            assert!(output.expect("mke2fs runs").status.success());
        }
        (kernel, rootfs)
    }

    /// An image as mvm makes them, of files that are quickly there.
    pub fn put_image(&self, name: &str) {
        self.put_image_with(name, "none");
    }

    /// The same, whose guests have an agent or not.
    pub fn put_image_with(&self, name: &str, agent: &str) {
        let (kernel, rootfs) = self.artifacts();
        let revision = "c".repeat(64);
        let folder = self.root().join("images").join(name);
        let place = folder.join(&revision);
        fs::create_dir_all(&place).expect("a folder");
        fs::copy(kernel, place.join("vmlinux")).expect("a kernel");
        fs::copy(rootfs, place.join("rootfs.ext4")).expect("a root");
        fs::write(place.join("initrd"), b"070701").expect("an initrd");
        let part = |file: &str| {
            let size = fs::metadata(place.join(file)).expect("a file").len();
            serde_json::json!({ "file": file, "size_bytes": size, "sha256": "" })
        };
        let manifest = serde_json::json!({
            "schema_version": 1, "name": name, "revision": revision, "created_at": "2026-01-02T03:04:05Z",
            "release": "bookworm", "kernel_version": "6.1.0", "arch": std::env::consts::ARCH, "agent": agent,
            "cmdline": "quiet",
            "kernel": part("vmlinux"), "initrd": part("initrd"), "rootfs": part("rootfs.ext4"),
            "packages": { "busybox-static": "1" }, "inputs": "sha256:0",
        });
        fs::write(place.join("manifest.json"), manifest.to_string()).expect("a manifest");
        std::os::unix::fs::symlink(&revision, folder.join("current")).expect("a link");
    }

    /// A tenant acme with a pool acme/web that has a revision.
    pub fn pool(&self, vmm: &str) {
        self.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
        self.ok(&format!("pool create acme/web --vmm {vmm} --mem 128 --data-disk 8 --insecure"));
        self.import("acme/web", "");
    }

    /// The same with an agent in its guests.
    pub fn agent_pool(&self, vmm: &str) {
        self.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
        let options = "--mem 128 --data-disk 8 --insecure --agent required";
        self.ok(&format!("pool create acme/web --vmm {vmm} {options}"));
        self.import("acme/web", "");
    }

    /// Gives a pool a revision; another command line is another revision.
    pub fn import(&self, pool: &str, cmdline: &str) {
        let (kernel, rootfs) = self.artifacts();
        let (kernel, rootfs) = (kernel.display(), rootfs.display());
        self.ok(&format!("pool import {pool} --kernel {kernel} --rootfs {rootfs} --cmdline=quiet{cmdline}"));
    }

    /// Makes an instance in a pool and returns its path.
    pub fn instance(&self, pool: &str) -> String {
        self.ok(&format!("instance create {pool}"))["path"].as_str().expect("a path").to_owned()
    }

    /// The instances, as `path status`, sorted.
    pub fn states(&self) -> Vec<String> {
        let list = self.ok("instance list");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        list.as_array()
            .into_iter()
            .flatten()
            .map(|i| format!("{} {}", text(&i["path"]), text(&i["status"])))
            .collect()
    }

    /// Everything that is there and belongs to nothing, by looking at the world.
    pub fn leaks(&self) -> Vec<String> {
        let instances = self.ok("instance list");
        let instances: Vec<&Value> = instances.as_array().into_iter().flatten().collect();
        let taps = |states: &[&str]| -> Vec<&str> {
            let is_in = |i: &&&Value| states.contains(&i["status"].as_str().unwrap_or_default());
            instances.iter().filter(is_in).filter_map(|i| i["net"]["tap_dev"].as_str()).collect()
        };
        let running = taps(&["running", "warm"]);
        // A sleeper has nothing but its place on the disk.
        let reserved = taps(&["running", "warm", "sleeping"]);
        let mut leaks = Vec::new();
        leaks.extend(
            instances.iter().filter(|i| !i["pending"].is_null()).map(|i| format!("pending: {}", i["path"])),
        );
        let mut compare = |what: &str, mut is: Vec<String>, mut should: Vec<String>| {
            is.sort();
            should.sort();
            if is != should {
                leaks.push(format!("{what}: {is:?} instead of {should:?}"));
            }
        };
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        compare("TAPs", self.links("tn"), owned(&running));
        compare("directories", names(&self.root().join("run/firecracker")), owned(&running));
        let slots = names(&self.root().join("reservations"));
        let slots = slots.iter().filter_map(|name| Some(name.split_once('.')?.0.to_owned())).collect();
        compare("reservations", slots, owned(&reserved));
        compare("processes", self.vmms().into_iter().map(|(_, tap)| tap).collect(), owned(&running));
        let mut held = Vec::new();
        for tenant in tenants(self.root()) {
            let leases = names(&self.root().join("tenants").join(&tenant).join("leases"));
            held.extend(
                leases
                    .into_iter()
                    .filter(|name| name.ends_with(".json"))
                    .map(|name| format!("{tenant}/{name}")),
            );
        }
        let wanted = |i: &&Value| {
            format!("{}/{}.json", i["tenant_id"].as_str().unwrap_or_default(), i["net"]["offset"])
        };
        compare("leases", held, instances.iter().map(wanted).collect());
        let mut unfinished = Vec::new();
        find_unfinished(self.root(), &mut unfinished);
        compare("unfinished files", unfinished, Vec::new());
        let asleep: Vec<String> = instances
            .iter()
            .filter(|i| i["status"] == "sleeping")
            .filter_map(|i| Some(format!("{}: vmstate mem sums meta", i["path"].as_str()?)))
            .collect();
        let snapshots = instances.iter().filter_map(|i| {
            let path = i["path"].as_str()?;
            let mut files = names(&self.delta(path));
            // What a guest was loaded from is its own until it sleeps again.
            if !asleep.iter().any(|one| one.starts_with(path)) {
                files.clear();
            }
            let is = |name: &str| files.iter().any(|file| file.split('.').next() == Some(name));
            let parts = ["vmstate", "mem", "sums", "meta"];
            let there: Vec<&str> = parts.into_iter().filter(|part| is(part)).collect();
            let more = files.len().saturating_sub(parts.len());
            let text = match more {
                0 => there.join(" "),
                _ => format!("{} and more: {files:?}", there.join(" ")),
            };
            (!files.is_empty()).then(|| format!("{path}: {text}"))
        });
        compare("snapshots", snapshots.collect(), asleep.clone());
        let verified = self.run("net verify");
        if !verified.status.success() {
            leaks.push(format!("net verify: {}", String::from_utf8_lossy(&verified.stdout)));
        }
        for tenant in tenants(self.root()) {
            let audited = self.run(&format!("tenant audit {tenant} --verify"));
            if !audited.status.success() {
                leaks.push(format!("audit of {tenant}: {}", String::from_utf8_lossy(&audited.stderr)));
            }
        }
        leaks
    }

    /// A check of `doctor`'s: how it is, and what it says.
    pub fn checked(&self, name: &str) -> (String, String) {
        let output = self.run("doctor --json");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("checks");
        let has_failed = checks.iter().any(|check| check["level"] == "fail");
        assert_eq!(output.status.success(), !has_failed, "{report:#}");
        let check = checks.iter().find(|check| check["name"] == name);
        let text =
            |field: &str| check.expect("it is looked at")[field].as_str().unwrap_or_default().to_owned();
        (text("level"), text("detail"))
    }

    /// The folder of an instance's snapshot.
    pub fn delta(&self, path: &str) -> PathBuf {
        let parts: Vec<&str> = path.split('/').collect();
        let pool = self.root().join("tenants").join(parts[0]).join("pools").join(parts[1]);
        pool.join("instances").join(parts[2]).join("snapshots/delta")
    }

    /// The links of this namespace whose names begin like that.
    pub fn links(&self, prefix: &str) -> Vec<String> {
        let output = Command::new("ip").args(["-o", "link"]).output().expect("ip runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        text.lines().filter_map(name).filter(|name| name.starts_with(prefix)).collect()
    }

    /// Is the TAP of an instance on its tenant's bridge?
    pub fn is_joined(&self, path: &str) -> bool {
        let info = self.ok(&format!("instance info {path}"));
        let tap = info["net"]["tap_dev"].as_str().unwrap_or_default();
        let output = Command::new("ip").args(["-o", "link", "show", "dev", tap]).output().expect("ip runs");
        String::from_utf8_lossy(&output.stdout).contains(" master ")
    }

    /// The processes that work under this root: pid and TAP.
    pub fn vmms(&self) -> Vec<(i32, String)> {
        let root = fs::canonicalize(self.root()).expect("the root is there");
        let place = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let taps = fs::read_dir(root.join("run/firecracker")).into_iter().flatten().flatten();
        let places: Vec<_> = taps.map(|tap| (place(&tap.path().join("root")), tap.file_name())).collect();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let cwd = entry.path().join("cwd");
            // A jailed one has another root: its folder's name says nothing here.
            let there = place(&cwd).and_then(|there| places.iter().find(|(place, _)| *place == Some(there)));
            if let Some((_, tap)) = there {
                found.push((pid, tap.to_string_lossy().into_owned()));
                continue;
            }
            let Ok(cwd) = fs::read_link(cwd) else { continue };
            if let Ok(inside) = cwd.strip_prefix(root.join("run/firecracker")) {
                let tap =
                    inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
                found.push((pid, tap.unwrap_or_default()));
            }
        }
        found
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for (pid, _) in self.vmms() {
            let pid = rustix::process::Pid::from_raw(pid).expect("a pid is not 0");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.root()).status();
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn tenants(root: &Path) -> Vec<String> {
    names(&root.join("tenants")).into_iter().filter(|name| !name.starts_with('.')).collect()
}

fn find_unfinished(folder: &Path, found: &mut Vec<String>) {
    for name in names(folder) {
        let path = folder.join(&name);
        let unfinished = [".new-", ".gone-"].iter().any(|mark| name.starts_with(mark));
        if unfinished {
            found.push(path.display().to_string());
        } else if path.is_dir() && !path.is_symlink() {
            find_unfinished(&path, found);
        }
    }
}

/// Was the command killed by a failpoint?
pub fn was_killed(output: &Output) -> bool {
    output.status.signal() == Some(9)
}

/// Waits until a process is stuck in writing to its stdout: that its pipe is full says only that nothing more would go in.
pub fn await_stuck(child: &std::process::Child) {
    // The number of write, and its first argument.
    let writes = if cfg!(target_arch = "x86_64") { "1 0x1 " } else { "64 0x1 " };
    let is_stuck = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).expect("it is there");
        let mut calls =
            tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
        calls.any(|call| call.starts_with(writes))
    };
    // It may just be at it; twice in the same page of output is not told apart, and does no harm.
    wait_until("it is stuck", is_stuck);
}

/// The real Firecracker that tests use; `None`, said visibly, where there is none or it cannot run.
pub fn firecracker() -> Option<PathBuf> {
    let named = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path).map(|dir| dir.join("firecracker")).find(|file| file.is_file())
    });
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    match found {
        Some(program) if kvm => Some(program),
        Some(_) => {
            skip("no /dev/kvm");
            None
        }
        None => {
            skip("no firecracker");
            None
        }
    }
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Mounts of this thread, and what it starts, are its own from here on.
pub fn own_mounts() {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: the thread belongs to this test alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.expect("a mount namespace");
    run("mount", &["--make-rprivate", "/"]);
}

/// A character device: name, major and minor number.
pub type Device<'a> = (&'a str, u32, u32);
pub const NULL: Device = ("null", 1, 3);
pub const URANDOM: Device = ("urandom", 1, 9);
pub const TUN: Device = ("net/tun", 10, 200);

/// A /dev of this thread's own, in which these devices are.
pub fn own_dev(devices: &[Device]) {
    own_mounts();
    run("mount", &["-t", "tmpfs", "tmpfs", "/dev"]);
    fs::create_dir("/dev/net").expect("a folder");
    for (name, major, minor) in devices {
        let (kind, device) = (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(*major, *minor));
        rustix::fs::mknodat(rustix::fs::CWD, format!("/dev/{name}"), kind, 0o666.into(), device)
            .expect("a device");
    }
}

/// Waits for something that an event elsewhere makes true, and fails after half a minute.
pub fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !is_true() {
        assert!(std::time::Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
}

/// Kills a process and waits until it is gone.
pub fn kill_and_wait(pid: i32) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let pidfd =
        pidfd_open(Pid::from_raw(pid).expect("a pid is not 0"), PidfdFlags::empty()).expect("it is there");
    pidfd_send_signal(&pidfd, Signal::KILL).expect("it can be killed");
    assert!(mvm::infra::shell::ended_within(&pidfd, std::time::Duration::from_secs(10)));
}

impl Sandbox {
    /// Tells the simulated guest on a TAP what to do.
    pub fn tell(&self, tap: &str, command: &Value) -> Value {
        let directory = self.root().join("run/firecracker").join(tap).join("root");
        mvm::cli::tell_guest(&directory, command).expect("the guest answers")
    }

    /// Moves this thread, and what it starts from now on, into a network namespace in which nothing is.
    pub fn enter_empty_network(&self) {
        // SAFETY: the thread belongs to this test alone.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("a namespace");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs").success());
    }
}
