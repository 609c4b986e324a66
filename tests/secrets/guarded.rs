//! No secret goes to a VMM that is not guarded as its pool and its node want by now.

use std::fs;

use serde_json::{Value, json};

use crate::{
    support::{Sandbox, faulty::set_faults, was_killed},
    world::{behind, change, changed, error, faulty_world, has, says, start},
};

/// What the last recovery said in acme's log.
fn recovered(sandbox: &Sandbox) -> String {
    let log = sandbox.ok("tenant audit acme");
    let last = log.as_array().into_iter().flatten().rfind(|line| line["phase"] == "recovered");
    last.map(|line| line["detail"].to_string()).unwrap_or_default()
}

/// Guests that are started from now on refuse secrets: that they were asked for it is seen by that.
fn refuse_secrets(sandbox: &Sandbox) {
    let says = json!([{ "message": { "answer": "refused", "code": "failed", "why": "it was asked" } }]);
    set_faults(sandbox, &json!({ "agent": { "hostile": { "request": "secrets", "says": says } } }));
}

#[test]
fn a_start_is_refused_before_its_guest_has_secrets() {
    let Some(sandbox) = faulty_world() else { return };
    // There is a base.
    let path = start(&sandbox);
    sandbox.ok(&format!("instance stop --force {path}"));
    changed(&sandbox, "set", "DB", b"one");
    refuse_secrets(&sandbox);
    assert_ne!(sandbox.refused(&format!("instance start {path}"), 1), "no_filter", "the twin: it is asked");
    sandbox.ok("pool update acme/web --seccomp strict");
    assert_eq!(sandbox.refused(&format!("instance start {path}"), 4), "no_filter");
    assert_eq!(sandbox.leaks(), [""; 0]);
}

#[test]
fn who_runs_or_is_warm_in_a_pool_that_became_strict_gets_no_others() {
    let Some(sandbox) = faulty_world() else { return };
    let (runs, warm) = (start(&sandbox), start(&sandbox));
    sandbox.ok(&format!("instance warm {warm}"));
    sandbox.ok("pool update acme/web --seccomp strict");
    let output = change(&sandbox, "set", "DB", b"one");
    let (code, word, what) = error(&output);
    assert_eq!((code, word.as_str()), (Some(4), "no_filter"), "{what}");
    assert_eq!(says(&sandbox, &runs, "ls /run/secrets"), "");
    assert_eq!(sandbox.refused(&format!("instance resume {warm}"), 4), "no_filter");
    let info = sandbox.ok(&format!("instance info {warm}"));
    assert_eq!((&info["status"], &info["pending"]), (&json!("warm"), &Value::Null));
    let mut both = [runs.clone(), warm.clone()];
    both.sort();
    assert_eq!(behind(&sandbox), json!(both));
    sandbox.ok("pool update acme/web --seccomp baseline");
    sandbox.ok(&format!("instance resume {warm}"));
    assert_eq!(changed(&sandbox, "set", "DB", b"one")["given"], json!([runs]));
    assert_eq!((has(&sandbox, &runs, "DB"), has(&sandbox, &warm, "DB")), ("one".into(), "one".into()));
}

/// The node went into production, or the pool became strict, after a wake was cut off: nothing is asked of the guest, which waits for
/// better days. One that was asked and refused is stopped.
#[test]
fn a_wake_that_is_settled_asks_nothing_of_a_guest_that_is_not_guarded() {
    let Some(sandbox) = faulty_world() else { return };
    let node = sandbox.root().join("node.json");
    let before = fs::read_to_string(&node).expect("a file");
    let production = || {
        let changed = before
            .replace("\"production\": false", "\"production\": true")
            .replace("\"plain_storage_waiver\": false", "\"plain_storage_waiver\": true");
        assert_ne!(changed, before);
        fs::write(&node, changed).expect("a file");
    };
    let strict = || drop(sandbox.ok("pool update acme/web --seccomp strict"));
    changed(&sandbox, "set", "DB", b"one");
    let cases: [(&dyn Fn(), &str); 3] = [
        (&|| (), ""),
        (&strict, "its VMM has no seccomp filter"),
        (&production, "its VMM runs with no jail, which is not taken any more"),
    ];
    for (becomes, held) in cases {
        set_faults(&sandbox, &json!({}));
        sandbox.ok("pool update acme/web --seccomp baseline");
        let path = start(&sandbox);
        sandbox.ok(&format!("instance sleep {path}"));
        refuse_secrets(&sandbox);
        assert!(was_killed(&sandbox.run_with(&format!("instance wake {path}"), "wake.consume")));
        becomes();
        sandbox.ok("node recover");
        let info = sandbox.ok(&format!("instance info {path}"));
        let (status, said) = match held {
            "" => ("stopped", info["last_exit"]["why"].to_string()),
            _ => ("warm", recovered(&sandbox)),
        };
        assert_eq!((&info["status"], &info["pending"]), (&json!(status), &Value::Null), "{info}");
        let why = if held.is_empty() { "it woke, and the guest refused Secrets: it was asked" } else { held };
        assert!(said.contains(why), "{said}");
        if status == "warm" {
            let resume = sandbox.command(&format!("instance resume {path}")).output().expect("mvm runs");
            assert!(!resume.status.success());
            assert_eq!(sandbox.ok(&format!("instance info {path}"))["status"], "warm");
            assert!(!sandbox.is_joined(&path));
        }
        fs::write(&node, &before).expect("a file");
        assert_eq!(sandbox.leaks(), [""; 0]);
    }
}

/// Nobody has greeted it, and it does not answer who does: it goes on waiting, and not on the network.
#[test]
fn who_waits_for_its_greeting_and_does_not_answer_waits_on() {
    let Some(sandbox) = faulty_world() else { return };
    changed(&sandbox, "set", "DB", b"one");
    let path = start(&sandbox);
    sandbox.ok(&format!("instance sleep {path}"));
    refuse_secrets(&sandbox);
    assert!(was_killed(&sandbox.run_with(&format!("instance wake {path}"), "wake.consume")));
    sandbox.ok("pool update acme/web --seccomp strict");
    sandbox.ok("node recover");
    sandbox.ok("pool update acme/web --seccomp baseline");
    for _ in 0..2 {
        sandbox.refused(&format!("instance resume {path}"), 1);
        let info = sandbox.ok(&format!("instance info {path}"));
        assert_eq!((&info["status"], &info["pending"]), (&json!("warm"), &Value::Null));
        assert!(!sandbox.is_joined(&path));
        // Also where it is cut off while it runs.
        assert!(was_killed(&sandbox.run_with(&format!("instance resume {path}"), "resume.switched")));
        sandbox.ok("node recover");
        let info = sandbox.ok(&format!("instance info {path}"));
        assert_eq!((&info["status"], &info["pending"]), (&json!("warm"), &Value::Null));
        assert!(!sandbox.is_joined(&path));
    }
    assert_eq!(sandbox.leaks(), [""; 0]);
    sandbox.ok(&format!("instance stop --force {path}"));
    assert_eq!(sandbox.leaks(), [""; 0]);
}
