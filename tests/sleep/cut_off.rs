//! Ctrl-C in the middle: the next command settles it, and nothing is lost.

use std::{fs, process::Child};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    guest::{Guest, end},
    support::{kill_and_wait, wait_until, was_killed},
    together::{Frozen, hold, wait_for_intent},
};

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid is not 0");
    // It may have ended by itself.
    let _ = kill_process(pid, Signal::INT);
}

/// Begins a verb, interrupts it when this has come, and ends the verb that was cut off.
fn cut(guest: &Guest, verb: &str, what: &str, has_come: &dyn Fn(&Guest) -> bool) {
    let mut child = guest.begin(verb);
    wait_until(what, || has_come(guest) || child.try_wait().expect("it can be asked").is_some());
    interrupt(&child);
    drop(end(child));
}

/// Begins a verb that something holds up, waits, and interrupts it.
fn cut_surely(guest: &Guest, verb: &str, wait: impl FnOnce(&Guest)) {
    let child = guest.begin(verb);
    wait(guest);
    interrupt(&child);
    assert_eq!(end(child).0, None, "it was interrupted");
}

/// Awake, whatever became of the verb; it was woken so many times by then.
fn awake(guest: &mut Guest, may_be: &[&str], woken: bool) {
    guest.sandbox.ok("node recover");
    guest.leaves_nothing();
    let status = guest.status();
    assert!(may_be.contains(&status.as_str()), "{status}");
    if status == "sleeping" {
        guest.ok("wake");
    }
    guest.is_as_it_was(u64::from(woken || status == "sleeping"));
}

type Moment = (&'static str, fn(&Guest) -> bool);

fn has(guest: &Guest, part: &str) -> bool {
    let names = fs::read_dir(guest.delta()).into_iter().flatten().flatten();
    names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(part))
}

#[test]
fn a_sleep_that_is_interrupted_loses_nothing() {
    let moments: &[Moment] = &[
        ("the intent", |guest| !guest.record()["pending"].is_null()),
        ("the state", |guest| has(guest, "vmstate.")),
        ("the sums", |guest| has(guest, "sums.")),
        ("the commit", |guest| has(guest, "meta.json")),
        ("no VMM", |guest| guest.sandbox.vmms().is_empty()),
    ];
    let Some(mut guest) = Guest::new() else { return };
    for _ in 0..2 {
        for (what, has_come) in moments {
            guest.works();
            cut(&guest, "sleep", what, has_come);
            awake(&mut guest, &["running", "sleeping"], false);
        }
    }
    // While the VMM has not answered, and while what follows the commit is not done: surely in the middle.
    guest.works();
    let frozen = Frozen::new(&guest);
    cut_surely(&guest, "sleep", wait_for_intent);
    drop(frozen);
    awake(&mut guest, &["running"], false);
    guest.works();
    let held = hold(&guest, "node");
    cut_surely(&guest, "sleep", |guest| wait_until("the commit", || has(guest, "meta.json")));
    drop(held);
    awake(&mut guest, &["sleeping"], false);
    guest.sleeps_well();
}

#[test]
fn a_wake_that_is_interrupted_loses_nothing() {
    let moments: &[Moment] = &[
        ("the intent", |guest| !guest.record()["pending"].is_null()),
        ("the VMM", |guest| !guest.sandbox.vmms().is_empty()),
        ("the commit", |guest| has(guest, "consumed.json")),
    ];
    let Some(mut guest) = Guest::new() else { return };
    for _ in 0..2 {
        for (what, has_come) in moments {
            guest.works();
            guest.ok("sleep");
            cut(&guest, "wake", what, has_come);
            awake(&mut guest, &["running", "sleeping"], true);
        }
    }
    guest.works();
    guest.ok("sleep");
    let held = hold(&guest, "node");
    cut_surely(&guest, "wake", wait_for_intent);
    drop(held);
    awake(&mut guest, &["sleeping"], true);
    guest.sleeps_well();
}

/// The host goes down once the snapshot is used up, and takes the record with it that a wake was under way.
#[test]
fn a_wake_whose_intent_a_power_cut_took_has_stopped() {
    let Some(mut guest) = Guest::new() else { return };
    for command in
        ["instance list", "node recover", "pool scale acme/web --sleeping 1", "instance wake acme/web/i-"]
    {
        guest.works();
        guest.ok("sleep");
        let record = guest.folder().join("instance.json");
        let before = fs::read(&record).expect("a record");
        let wake = format!("instance wake {}", guest.path);
        assert!(was_killed(&guest.sandbox.run_with(&wake, "wake.consume")));
        kill_and_wait(guest.pid());
        fs::write(&record, before).expect("it can be written");
        let ended = guest.sandbox.run(command).status.code();
        assert_eq!(ended, Some(if command.contains("wake") { 4 } else { 0 }), "{command}");
        if command.contains("scale") {
            // It is started again, and put to sleep.
            assert_eq!(guest.status(), "sleeping");
            guest.ok("wake");
            continue;
        }
        assert_eq!(guest.status(), "stopped", "{command}");
        let why = guest.info()["last_exit"]["why"].to_string();
        assert!(why.contains("went down while it woke"), "{why}");
        guest.leaves_nothing();
        guest.ok("start");
    }
    guest.sleeps_well();
}

#[test]
fn a_vmm_that_does_not_answer_keeps_nobody_who_looks_or_ends_it() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    let sleep = format!("instance sleep {}", guest.path);
    assert!(was_killed(&guest.sandbox.run_with(&sleep, "sleep.announced")));
    let frozen = Frozen::new(&guest);
    // To settle that the VMM would have to answer.
    for look in ["instance list".to_owned(), format!("instance why {}", guest.path)] {
        guest.sandbox.ok(&look);
        assert!(!guest.record()["pending"].is_null(), "{look}");
    }
    guest.sandbox.ok(&format!("instance stop {} --force", guest.path));
    drop(frozen);
    assert_eq!(guest.status(), "stopped");
    guest.leaves_nothing();
}

#[test]
fn sleeps_that_were_killed_leave_no_files() {
    let Some(mut guest) = Guest::new() else { return };
    for _ in 0..3 {
        guest.works();
        let sleep = format!("instance sleep {}", guest.path);
        assert!(was_killed(&guest.sandbox.run_with(&sleep, "sleep.sums")));
        assert!(has(&guest, "mem."));
        guest.is_as_it_was(0);
        assert!(
            !has(&guest, ""),
            "{:?}",
            fs::read_dir(guest.delta()).into_iter().flatten().collect::<Vec<_>>()
        );
        // Nor does the VMM, which runs on, have them under names of its own.
        let own = guest.sandbox.root().join("run/firecracker").join(&guest.tap).join("root/delta");
        assert_eq!(fs::read_dir(own).expect("a folder").count(), 0);
    }
    guest.sleeps_well();
}

/// What a stop could not take away sleeps on, and nobody stops it later.
#[test]
fn a_stop_that_fails_leaves_a_sleeper() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.ok("sleep");
    let stop = format!("instance stop {}", guest.path);
    let failed = guest.sandbox.run_with(&stop, "fail:teardown.directory");
    assert_eq!(failed.status.code(), Some(1));
    guest.sandbox.ok("node recover");
    assert_eq!(guest.status(), "sleeping");
    guest.leaves_nothing();
    guest.ok("wake");
    guest.is_as_it_was(1);
}

/// A guest whose wake was cut off after its commit is in its VMM's memory alone: who tidies up leaves it there.
#[test]
fn tidying_up_takes_nothing_that_was_cut_off() {
    let Some(mut guest) = Guest::new() else { return };
    for (verb, failpoint, woken) in
        [("wake", "wake.consume", true), ("wake", "wake.load", true), ("archive", "archive.written", true)]
    {
        guest.works();
        guest.ok("sleep");
        let command = format!("instance {verb} {}", guest.path);
        assert!(was_killed(&guest.sandbox.run_with(&command, failpoint)));
        let reserved = fs::read_dir(guest.sandbox.root().join("reservations")).expect("a folder").count();
        guest.sandbox.run("net repair");
        assert_eq!(
            fs::read_dir(guest.sandbox.root().join("reservations")).expect("a folder").count(),
            reserved
        );
        awake(&mut guest, &["running", "sleeping"], woken);
    }
    guest.sleeps_well();
}

/// What a power cut brought back of an earlier sleep is not taken for the memory of a guest that was booted since.
#[test]
fn a_snapshot_that_came_back_is_not_taken_for_its_guests() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.ok("sleep");
    let meta = guest.delta().join("meta.json");
    let before = fs::read(&meta).expect("a snapshot");
    guest.ok("stop");
    fs::create_dir_all(guest.delta()).expect("a folder");
    fs::write(&meta, &before).expect("it can be written");
    guest.ok("start");
    assert!(!meta.exists());
    guest.works();
    assert!(was_killed(&guest.sandbox.run_with(&format!("instance sleep {}", guest.path), "sleep.intent")));
    guest.is_as_it_was(0);
    guest.sleeps_well();
}
