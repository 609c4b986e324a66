//! Who only looks at instances waits for no guest.

use serde_json::json;

use crate::{
    support::{wait_until, was_killed},
    world::{exec, faulty_world, info, leaves_nothing, start, start_hostile},
};

/// What a kill cut off is settled by asking the guest, which may be silent: who shows many leaves that to others.
#[test]
fn a_list_waits_for_no_guest() {
    let Some(sandbox) = faulty_world() else { return };
    let path = start(&sandbox);
    let state = || sandbox.states()[0].rsplit(' ').next().unwrap_or_default().to_owned();
    // It says who it is, and gets ready for sleep; that it goes on it does not say.
    start_hostile(&sandbox, &path, "wake", &json!([]), &json!([]));
    for (verb, failpoint, before, shown) in [
        ("sleep --force", "sleep.sums", "running", "running"),
        ("warm", "warm.switched", "running", "running"),
        ("resume", "resume.switched", "warm", "warm"),
        ("wake", "wake.consume", "sleeping", "sleeping"),
    ] {
        match before {
            "running" => assert_eq!(state(), "running"),
            "warm" => drop(sandbox.ok(&format!("instance warm {path}"))),
            _ => drop(sandbox.ok(&format!("instance sleep --force {path}"))),
        }
        let command = format!("instance {verb} {path}");
        assert!(was_killed(&sandbox.run_with(&command, failpoint)), "{verb}");
        // A guest that is asked would take longer than any test may.
        let mut list = sandbox.command("instance list --json").env("MVM_GUEST_TIMEOUT_MS", "600000").spawn();
        let list = list.as_mut().expect("mvm runs");
        wait_until("the list", || list.try_wait().expect("it can be asked").is_some());
        let verb = verb.split(' ').next().unwrap_or_default();
        let seen = &sandbox.ok("instance list")[0];
        assert_eq!((&seen["status"], &seen["pending"]["operation"]), (&json!(shown), &json!(verb)), "{seen}");
        let seen = info(&sandbox, &path);
        assert_eq!(seen["pending"]["operation"], verb, "{seen}");
        if shown == "running" {
            assert_eq!(seen["guest"]["unknown"]["code"], "cut_off", "{seen}");
        }
        assert!(
            sandbox.run("instance list").status.success() && sandbox.run("instance stats").status.success()
        );
        let mut recover = sandbox.command("node recover");
        assert!(recover.env("MVM_GUEST_TIMEOUT_MS", "300").output().expect("mvm runs").status.success());
        assert!(info(&sandbox, &path)["pending"].is_null(), "{verb}");
        leaves_nothing(&sandbox);
        // One that does not answer after its wake is stopped; all others go on, or stand still.
        let now = state();
        match (verb, now.as_str()) {
            ("wake", "stopped") => {}
            ("warm", "warm") | ("sleep" | "resume", "running") => {}
            other => panic!("{other:?}"),
        }
        if now != "running" {
            sandbox.ok(&format!("instance stop --force {path}"));
            sandbox.ok(&format!("instance start {path}"));
        }
    }
    // What needs no guest is settled as before: here its VMM has gone as well.
    assert!(was_killed(&sandbox.run_with(&format!("instance sleep --force {path}"), "sleep.sums")));
    crate::support::kill_and_wait(sandbox.vmms()[0].0);
    assert_eq!(state(), "stopped");
    leaves_nothing(&sandbox);
}

/// A guest that answers is as it was once somebody needs it.
#[test]
fn who_needs_a_guest_settles_what_was_cut_off() {
    let Some(sandbox) = crate::world::world() else { return };
    let path = start(&sandbox);
    assert!(was_killed(&sandbox.run_with(&format!("instance sleep {path}"), "sleep.sums")));
    assert_eq!(info(&sandbox, &path)["pending"]["operation"], "sleep");
    assert!(exec(&sandbox, &path, "true").status.success());
    assert!(info(&sandbox, &path)["pending"].is_null());
    leaves_nothing(&sandbox);
}
