//! A disk without a page left: nothing is made on it, and what makes room goes on, with its records.

mod support;

use std::{fs, io::Write, os::unix::process::CommandExt, path::PathBuf};

use rustix::process::{Resource, Rlimit};
use serde_json::{Value, json};
use support::{Sandbox, own_mounts};

/// Roots that can be filled: in memory, and on a disk with a journal, where a name takes room, too.
fn on_each(test: impl Fn(&Disk)) {
    for kind in ["tmpfs", "ext4"] {
        // What cannot be had here is skipped visibly.
        if let Some(disk) = Disk::of(kind) {
            test(&disk);
        }
    }
}

struct Disk {
    sandbox: Sandbox,
    filler: PathBuf,
}

impl Disk {
    fn of(kind: &str) -> Option<Self> {
        let mut sandbox = Sandbox::new()?;
        own_mounts();
        match kind {
            "tmpfs" => sandbox.mount_tmpfs("64M"),
            _ if !sandbox.mount_disk(kind, "64M") => return None,
            _ => {}
        }
        sandbox.ok("node set disk-floor-mib 1");
        sandbox.pool("sim");
        Some(Self { filler: sandbox.root().join("filler"), sandbox })
    }

    /// Takes every page that there is.
    fn fill(&self) {
        let mut file = fs::File::options().create(true).append(true).open(&self.filler).expect("a filler");
        for size in [1 << 20, 1 << 16, 4096, 512] {
            // What was freed a moment ago may come back with the journal.
            while file.write_all(&vec![1; size]).and_then(|()| file.sync_data()).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(&self.filler).expect("a filler");
    }

    fn pieces(&self) -> usize {
        fs::read_dir(self.sandbox.root().join("relief")).map_or(0, Iterator::count)
    }

    fn started(&self) -> String {
        let path = self.sandbox.instance("acme/web");
        self.sandbox.ok(&format!("instance start {path}"));
        path
    }

    /// The phases of an operation on something, in the order of the log, which must be whole.
    fn phases(&self, what: &str, path: &str) -> Vec<String> {
        assert_eq!(self.sandbox.ok("tenant audit acme --verify")["ok"], true);
        let log = self.sandbox.ok("tenant audit acme");
        let is_it = |record: &&Value| record["what"] == what && record["path"] == path;
        let phase = |record: &Value| record["phase"].as_str().unwrap_or_default().to_owned();
        log.as_array().into_iter().flatten().filter(is_it).map(phase).collect()
    }
}

#[test]
fn on_a_full_disk_stop_sleep_and_destroy_go_on_with_their_records_and_nothing_else_begins() {
    on_each(|disk| {
        let sandbox = &disk.sandbox;
        let [stopped, asleep, destroyed, left] = [(); 4].map(|()| disk.started());
        // One that has slept has its place on the disk, but for a mebibyte, which its VMM writes.
        for verb in ["sleep", "wake"] {
            sandbox.ok(&format!("instance {verb} {asleep}"));
        }
        let tap = sandbox.ok(&format!("instance info {asleep}"))["net"]["tap_dev"].clone();
        sandbox.tell(tap.as_str().unwrap_or_default(), &json!({ "cmd": "dirty", "pages": 250 }));
        let ready = sandbox.instance("acme/web");
        assert_eq!(disk.pieces(), 32);
        disk.fill();
        let (kernel, rootfs) = sandbox.artifacts();
        for command in [
            format!("instance start {ready}"),
            "instance create acme/web".to_owned(),
            "pool create acme/db --vmm sim".to_owned(),
            "tenant create globex --net-id 4 --subnet 10.240.4.0/24".to_owned(),
            format!("pool import acme/web --kernel {} --rootfs {}", kernel.display(), rootfs.display()),
        ] {
            assert_eq!(sandbox.refused(&command, 4), "disk_floor", "{command}");
        }
        assert_eq!(disk.pieces(), 32, "what is refused takes nothing");
        sandbox.ok(&format!("instance stop {stopped} --force"));
        assert!(disk.pieces() < 32);
        disk.fill();
        sandbox.ok(&format!("instance sleep {asleep}"));
        disk.fill();
        sandbox.ok(&format!("instance destroy {destroyed} --yes"));
        disk.fill();
        for (what, path) in [("stop", &stopped), ("destroy", &destroyed)] {
            assert_eq!(disk.phases(&format!("instance.{what}"), path), ["intent", "done"], "{what}");
        }
        assert_eq!(disk.phases("instance.sleep", &asleep), ["intent", "done", "intent", "done"]);
        let mut states = vec![
            format!("{stopped} stopped"),
            format!("{asleep} sleeping"),
            format!("{left} running"),
            format!("{ready} ready"),
        ];
        states.sort();
        assert_eq!(sandbox.states(), states);
        disk.free();
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
        sandbox.ok(&format!("instance start {ready}"));
        assert_eq!(disk.pieces(), 32, "what was given back is set aside again");
        sandbox.ok(&format!("instance wake {asleep}"));
        disk.fill();
        // A VMM that ended by itself is found and recorded, too.
        let (pid, _) = sandbox.vmms().remove(0);
        support::kill_and_wait(pid);
        sandbox.ok("node recover");
        for command in ["node gc", "pool scale acme/web --running 0"] {
            disk.fill();
            sandbox.ok(command);
        }
        assert!(sandbox.states().iter().all(|state| !state.ends_with("running")));
        disk.fill();
        sandbox.ok("tenant destroy acme --yes --wipe-volumes");
        let last = sandbox.ok("tenant audit acme").as_array().and_then(|log| log.last().cloned());
        assert_eq!(
            last.map(|last| (last["what"].clone(), last["phase"].clone())),
            Some((json!("tenant.destroy"), json!("done")))
        );
        assert_eq!(sandbox.ok("tenant audit acme --verify")["ok"], true);
        disk.free();
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    });
}

#[test]
fn on_a_full_disk_a_secret_is_removed_also_from_guests_and_none_is_set() {
    on_each(|disk| {
        let sandbox = &disk.sandbox;
        let secret = sandbox.root().join("secret.in");
        fs::write(&secret, "one").expect("a file");
        let to_set = |name: &str| format!("tenant secrets set acme {name} --file {}", secret.display());
        sandbox.ok("pool create acme/agent --vmm sim --mem 32 --agent required");
        sandbox.import("acme/agent", "");
        let path = sandbox.instance("acme/agent");
        sandbox.ok(&format!("instance start {path}"));
        sandbox.ok(&to_set("DB"));
        disk.fill();
        assert_eq!(sandbox.refused(&to_set("OTHER"), 1), "disk_full");
        let set = disk.phases("tenant.secrets.set", "acme");
        assert!(set == ["intent", "done"] || set == ["intent", "done", "intent", "failed"], "{set:?}");
        disk.fill();
        assert_eq!(sandbox.ok("tenant secrets remove acme DB")["given"], json!([path]));
        assert!(disk.pieces() < 32);
        assert_eq!(disk.phases("tenant.secrets.remove", "acme"), ["intent", "done"]);
        assert_eq!(sandbox.ok(&format!("instance info {path}"))["secrets"], 2);
        assert_eq!(sandbox.ok("tenant list")[0]["secrets_generation"], 2);
        disk.free();
        let listed = sandbox.run(&format!("instance exec -n {path} -- ls /run/secrets"));
        assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "");
        sandbox.ok(&to_set("DB"));
    });
}

#[test]
fn what_cannot_be_recorded_is_not_done() {
    on_each(|disk| {
        let sandbox = &disk.sandbox;
        let path = disk.started();
        fs::remove_dir_all(sandbox.root().join("relief")).expect("it is there");
        disk.fill();
        for verb in ["stop --force", "sleep", "destroy --yes"] {
            let (verb, options) = verb.split_once(' ').unwrap_or((verb, ""));
            assert_eq!(
                sandbox.refused(&format!("instance {verb} {path} {options}"), 1),
                "disk_full",
                "{verb}"
            );
            assert_eq!(sandbox.states(), [format!("{path} running")], "{verb}");
            assert!(disk.phases(&format!("instance.{verb}"), &path).is_empty());
        }
        assert_eq!(sandbox.vmms().len(), 1);
        disk.free();
        sandbox.ok(&format!("instance stop {path} --force"));
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    });
}

#[test]
fn without_room_to_set_aside_nothing_is_made() {
    let Some(disk) = Disk::of("tmpfs") else { return };
    let sandbox = &disk.sandbox;
    let path = sandbox.instance("acme/web");
    fs::remove_dir_all(sandbox.root().join("relief")).expect("it is there");
    disk.fill();
    // More than the floor, less than what is set aside.
    let filler = fs::File::options().write(true).open(&disk.filler).expect("a filler");
    let length = filler.metadata().expect("a filler").len();
    filler.set_len(length - (1800 << 10)).expect("it can be cut");
    drop(filler);
    assert_eq!(sandbox.refused(&format!("instance start {path}"), 4), "disk_full");
    disk.free();
    sandbox.ok(&format!("instance start {path}"));
}

/// A data disk that cannot grow (its file may be no longer) is what it was, and so is the room that is kept for it.
#[test]
fn a_data_disk_that_does_not_grow_keeps_its_room() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let reserved = || {
        let files = fs::read_dir(sandbox.root().join("reservations")).expect("a folder");
        files.flatten().map(|file| file.file_name()).collect::<Vec<_>>()
    };
    sandbox.ok(&format!("instance start {path}"));
    let before = (reserved(), sandbox.ok(&format!("instance info {path}"))["resources"].clone());
    let grow = format!("instance disk grow {path} --size 64");
    let mut command = sandbox.command(&format!("{grow} --json"));
    // SAFETY: between fork and exec only system calls are made, none of which allocates.
    unsafe {
        command.pre_exec(|| {
            // A write beyond it is an error, and no signal.
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let most = Some(32 << 20);
            rustix::process::setrlimit(Resource::Fsize, Rlimit { current: most, maximum: most })?;
            Ok(())
        });
    }
    let output = command.output().expect("mvm runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("cannot grow"), "{said}");
    assert_eq!((reserved(), sandbox.ok(&format!("instance info {path}"))["resources"].clone()), before);
    let log = sandbox.ok("tenant audit acme");
    let last = log.as_array().and_then(|lines| lines.last()).expect("a line");
    assert_eq!((&last["what"], &last["phase"]), (&json!("instance.disk-grow"), &json!("failed")));
    sandbox.ok(&grow);
    assert_ne!(reserved(), before.0);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}
