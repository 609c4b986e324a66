//! A VMM that refuses, dies or loses what it knew, in a sleep and in a wake.

use std::{fs, os::unix::fs::FileExt};

use serde_json::{Value, json};

use crate::guest::{Guest, fault, set_faults};

const CREATE: &str = "/snapshot/create";
const LOAD: &str = "/snapshot/load";

fn none() -> Value {
    json!({})
}

fn refusal(how: &str, status: u16, message: &str) -> Value {
    json!({ how: { "status": status, "fault_message": message } })
}

/// A guest whose VMM has these faults: it was woken, or has just booted.
fn guest_with(faults: &Value, woken: bool) -> Option<Guest> {
    if !woken {
        return Guest::with_faults(faults);
    }
    let mut guest = Guest::with_faults(&none())?;
    guest.works();
    guest.ok("sleep");
    set_faults(&guest.sandbox, faults);
    guest.ok("wake");
    guest.is_as_it_was(1);
    Some(guest)
}

#[test]
fn a_diff_that_fails_costs_the_guest_nothing() {
    // What the VMM says, whether it wrote before that, whether it still knows what it had to write, mvm's word.
    let table = [
        (
            "Cannot write memory file: Cannot dump memory: I/O error (os error 5)",
            "answer",
            true,
            "vmm_refused",
        ),
        ("Cannot write memory file: No space left on device (os error 28)", "answer", true, "disk_full"),
        ("Cannot serialize the microVM state: IO Error: x", "answer", true, "vmm_refused"),
        ("Cannot perform open on the snapshot backing file: x", "answer", true, "vmm_refused"),
        ("Cannot perform sync_all on the memory backing file: x", "answer_after", false, "vmm_refused"),
        ("Cannot perform flush on the memory backing file: x", "answer_after", false, "vmm_refused"),
        ("something that nobody knows", "answer_after", false, "vmm_refused"),
    ];
    for (number, (message, how, knows, word)) in table.into_iter().enumerate() {
        let status = if number % 2 == 0 { 400 } else { 500 };
        let faults = fault(CREATE, refusal(how, status, message));
        for woken in [false, true] {
            let Some(mut guest) = guest_with(&faults, woken) else { return };
            guest.works();
            let before = woken.then(|| guest.part("mem"));
            let content = before.as_ref().map(|mem| fs::read(mem).expect("memory"));
            assert_eq!(guest.refused("sleep", 1), word, "{message}");
            set_faults(&guest.sandbox, &none());
            guest.is_as_it_was(0);
            let parent = guest.record()["vmm"]["parent"].clone();
            assert_eq!(parent == "unknown", !knows, "{message}: {parent}");
            // What was said not to be on the disk is not there.
            if let (Some(mem), Some(content)) = (&before, &content) {
                let file = fs::File::options().write(true).open(mem).expect("a file");
                file.write_all_at(content, 0).expect("it can be written");
            }
            guest.ok("sleep");
            // In place, where what it had to write was known.
            assert_eq!(before.is_some_and(|mem| mem == guest.part("mem")), woken && knows, "{message}");
            guest.ok("wake");
            guest.is_as_it_was(1);
            guest.sleeps_well();
        }
    }
}

#[test]
fn a_vmm_that_dies_in_a_sleep_has_stopped() {
    for effect in ["die_before", "die_during"] {
        for woken in [false, true] {
            let Some(mut guest) = guest_with(&fault(CREATE, json!(effect)), woken) else { return };
            assert_eq!(guest.refused("sleep", 1), "vmm_ended", "{effect}");
            assert_eq!(guest.status(), "stopped", "{effect}");
            assert_eq!(guest.info()["last_exit"]["why"], "the VMM ended by itself");
            guest.leaves_nothing();
            set_faults(&guest.sandbox, &none());
            guest.ok("start");
            guest.sleeps_well();
        }
    }
}

#[test]
fn a_wake_that_fails_before_its_commit_leaves_a_sleeper() {
    let table = [
        (refusal("answer", 400, "no"), "vmm_refused"),
        (refusal("answer_after", 500, "no"), "vmm_refused"),
        (json!("die_before"), "vmm_ended"),
        (json!("die_during"), "vmm_ended"),
        (json!("die_after"), "vmm_ended"),
    ];
    let Some(mut guest) = Guest::with_faults(&none()) else { return };
    for (effect, word) in table {
        guest.works();
        guest.ok("sleep");
        set_faults(&guest.sandbox, &fault(LOAD, effect.clone()));
        // Where it dies after the load, the commit and the resume may come between: it is found dead then.
        if effect == "die_after" {
            let failed = guest.sandbox.run(&format!("instance wake {}", guest.path));
            assert_eq!(failed.status.code(), Some(1), "{effect}");
            assert_eq!(guest.status(), "stopped");
            set_faults(&guest.sandbox, &none());
            guest.ok("start");
            guest.works();
            continue;
        }
        assert_eq!(guest.refused("wake", 1), word, "{effect}");
        assert_eq!(guest.status(), "sleeping", "{effect}");
        guest.leaves_nothing();
        set_faults(&guest.sandbox, &none());
        guest.ok("wake");
        guest.is_as_it_was(1);
    }
}

#[test]
fn a_wake_that_fails_after_its_commit_is_finished_or_ends_in_stopped() {
    let Some(mut guest) = Guest::with_faults(&none()) else { return };
    guest.works();
    guest.ok("sleep");
    set_faults(&guest.sandbox, &fault("/vm", refusal("answer", 500, "not now")));
    // There is no way back, so it is tried once more, and then it is well.
    guest.ok("wake");
    assert_eq!((&guest.record()["status"], &guest.record()["pending"]), (&json!("running"), &json!(null)));
    guest.is_as_it_was(1);
    set_faults(&guest.sandbox, &none());
    guest.sleeps_well();
    guest.ok("sleep");
    set_faults(&guest.sandbox, &fault("/vm", json!("die_before")));
    assert_eq!(guest.refused("wake", 1), "vmm_ended");
    assert_eq!(guest.record()["status"], "stopped");
    assert!(
        guest.info()["last_exit"]["why"].as_str().is_some_and(|why| why.contains("its snapshot was used up"))
    );
    guest.leaves_nothing();
    set_faults(&guest.sandbox, &none());
    guest.ok("start");
    guest.sleeps_well();
}

#[test]
fn a_vmm_that_refuses_to_pause_is_as_it_was_and_one_that_dies_has_stopped() {
    let Some(mut guest) = Guest::with_faults(&fault("/vm", refusal("answer", 400, "no"))) else { return };
    for verb in ["warm", "resume"] {
        if verb == "resume" {
            guest.ok("stop --force");
            set_faults(
                &guest.sandbox,
                &json!({ "requests": [
                { "path": "/vm", "nth": 2, "times": 1, "effect": refusal("answer", 400, "no") },
            ] }),
            );
            guest.ok("start");
            guest.ok("warm");
        }
        let before = guest.record()["status"].clone();
        let reserved = reservations(&guest);
        assert_eq!(guest.refused(verb, 1), "vmm_refused");
        assert_eq!((&guest.record()["status"], &guest.record()["pending"]), (&before, &json!(null)));
        assert_eq!(reservations(&guest), reserved);
        guest.ok(verb);
        guest.leaves_nothing();
    }
    guest.ok("stop --force");
    for effect in ["die_before", "die_during"] {
        set_faults(&guest.sandbox, &fault("/vm", json!(effect)));
        guest.ok("start");
        assert_eq!(guest.refused("warm", 1), "vmm_ended");
        // Whether it paused was not known: the next one that looks asks.
        assert_ne!(guest.record()["pending"], json!(null));
        assert_eq!(guest.status(), "stopped");
        guest.leaves_nothing();
    }
    set_faults(&guest.sandbox, &none());
    guest.ok("start");
    guest.sleeps_well();
}

fn reservations(guest: &Guest) -> Vec<std::ffi::OsString> {
    let folder = fs::read_dir(guest.sandbox.root().join("reservations")).expect("a folder");
    folder.flatten().map(|entry| entry.file_name()).collect()
}
