//! What is asked in the wrong state, and disks that changed while their guest slept.

use std::{
    fs::{self, File},
    path::Path,
};

use crate::{
    guest::Guest,
    support::{run, was_killed},
};

/// The verbs that get it there, and what is refused then: verbs, and the words for it.
type Refusals<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

#[test]
fn a_verb_in_the_wrong_state_is_refused_and_changes_nothing() {
    let table: &[Refusals] = &[
        (&[], &[("archive", "state")]),
        (&["warm"], &[("wake", "state"), ("archive", "state"), ("start", "state")]),
        (
            &["resume", "sleep"],
            &[
                ("warm", "state"),
                ("resume", "state"),
                ("start", "state"),
                ("disk grow --size 16", "disk_in_memory"),
            ],
        ),
        (
            &["stop"],
            &[
                ("wake", "state"),
                ("sleep", "state"),
                ("warm", "state"),
                ("resume", "state"),
                ("archive", "state"),
            ],
        ),
    ];
    let Some(mut guest) = Guest::new() else { return };
    for (way, refusals) in table {
        way.iter().for_each(|verb| drop(guest.ok(verb)));
        let before = guest.info();
        for (verb, word) in *refusals {
            assert_eq!(guest.refused(verb, 4), *word, "{verb} after {way:?}");
        }
        assert_eq!(guest.info(), before);
        guest.leaves_nothing();
    }
    guest.ok("start");
    guest.sleeps_well();
}

#[test]
fn what_holds_already_is_no_error() {
    let Some(mut guest) = Guest::new() else { return };
    for verb in ["resume", "wake", "warm", "warm", "sleep", "sleep", "archive", "archive", "wake", "wake"] {
        guest.ok(verb);
    }
    guest.is_as_it_was(1);
}

/// What is done to a disk, and whether --force takes it.
type Change = (&'static str, fn(&Path), bool);

#[test]
fn a_disk_that_changed_under_a_sleeper_is_refused() {
    let touch: fn(&Path) = |disk| {
        let file = File::options().write(true).open(disk).expect("a disk");
        file.set_modified(std::time::SystemTime::now()).expect("it can be set");
    };
    let table: [Change; 5] = [
        (
            "longer",
            |disk| {
                File::options()
                    .write(true)
                    .open(disk)
                    .and_then(|file| file.set_len(9 << 20))
                    .expect("it can be changed")
            },
            false,
        ),
        (
            "shorter",
            |disk| {
                File::options()
                    .write(true)
                    .open(disk)
                    .and_then(|file| file.set_len(1 << 20))
                    .expect("it can be changed")
            },
            false,
        ),
        (
            "replaced",
            |disk| {
                let copy = disk.with_extension("copy");
                fs::copy(disk, &copy).and_then(|_| fs::rename(&copy, disk)).expect("it can be changed");
            },
            true,
        ),
        ("gone", |disk| fs::remove_file(disk).expect("it can be changed"), false),
        ("touched", touch, true),
    ];
    let Some(mut guest) = Guest::new() else { return };
    for (name, change, is_forced) in table {
        let volumes = guest.folder().join("volumes");
        let root = fs::read_dir(&volumes).expect("a folder").flatten().map(|entry| entry.path());
        let root = root.into_iter().find(|path| !path.ends_with("data.ext4")).expect("a root disk");
        for disk in [volumes.join("data.ext4"), root] {
            guest.works();
            guest.ok("sleep");
            let aside = disk.with_extension("aside");
            fs::hard_link(&disk, &aside).expect("it can be kept");
            let length = fs::metadata(&disk).expect("a disk").len();
            let time = fs::metadata(&disk).and_then(|meta| meta.modified()).expect("a time");
            change(&disk);
            assert_eq!(guest.refused("wake", 4), "disk_changed", "{name}");
            assert_eq!(guest.status(), "sleeping");
            guest.leaves_nothing();
            if is_forced {
                fs::remove_file(&aside).expect("it can be removed");
                guest.ok("wake --force");
                guest.is_as_it_was(1);
                continue;
            }
            assert_eq!(guest.refused("wake --force", 4), "disk_changed", "{name}");
            // Brought back as it was, it wakes.
            fs::rename(&aside, &disk).expect("it can be brought back");
            // Where it is the same file under both names, neither went by that.
            let _ = fs::remove_file(&aside);
            let file = File::options().write(true).open(&disk).expect("a disk");
            file.set_len(length).and_then(|()| file.set_modified(time)).expect("it can be brought back");
            if name == "shorter" {
                guest.ok("stop");
                fs::write(&disk, fs::read(guest.sandbox.artifacts().1).expect("a disk")).expect("a disk");
                let file = File::options().write(true).open(&disk).expect("a disk");
                file.set_len(length).expect("its length");
                guest.ok("start");
                continue;
            }
            guest.ok("wake");
            guest.is_as_it_was(1);
        }
    }
    guest.sleeps_well();
}

/// What is in the way of the network is seen as long as there is a way back.
#[test]
fn a_bridge_of_somebody_else_uses_up_no_snapshot() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.ok("sleep");
    run("ip", &["link", "del", "br-tenant-3"]);
    run("ip", &["link", "add", "br-tenant-3", "type", "bridge"]);
    assert_eq!((guest.refused("wake", 4), guest.status()), ("foreign".into(), "sleeping".into()));
    assert_eq!(guest.ok("why")["wake_refused"]["code"], "foreign");
    run("ip", &["link", "del", "br-tenant-3"]);
    guest.sandbox.ok("net repair");
    guest.ok("wake");
    guest.is_as_it_was(1);
}

/// What keeps a warm one from going on is the node's word of now, and `why` names it before.
#[test]
fn a_resume_in_production_is_refused_as_a_start_is() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.ok("warm");
    assert!(guest.ok("why")["resume_refused"].is_null());
    guest.sandbox.ok("node set plain-storage-waiver on");
    guest.sandbox.ok("node set production on");
    assert_eq!((guest.refused("resume", 4), guest.status()), ("production".into(), "warm".into()));
    assert_eq!(guest.ok("why")["resume_refused"]["code"], "production");
    guest.sandbox.ok("node set production off");
    guest.ok("resume");
    guest.is_as_it_was(0);
}

/// It runs without, and a stop takes it down.
#[test]
fn a_wake_that_was_cut_off_is_finished_where_its_tap_is_gone() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.ok("sleep");
    let wake = format!("instance wake {}", guest.path);
    assert!(was_killed(&guest.sandbox.run_with(&wake, "wake.consume")));
    run("ip", &["link", "del", &guest.tap]);
    guest.ok("wake");
    assert_eq!(guest.status(), "running");
    guest.sandbox.ok(&format!("instance stop --force {}", guest.path));
    assert!(guest.sandbox.leaks().is_empty(), "{:?}", guest.sandbox.leaks());
}
