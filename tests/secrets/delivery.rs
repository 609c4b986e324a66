//! Who has which secrets, and when.

use serde_json::{Value, json};

use crate::{
    support::faulty::set_faults,
    world::{behind, change, changed, error, faulty_world, feed, generation, has, says, start, world},
};

#[test]
fn a_guest_that_starts_or_runs_has_those_of_its_tenant() {
    let Some(sandbox) = world() else { return };
    let early = start(&sandbox);
    assert_eq!(generation(&sandbox, &early), Value::Null);
    let made = changed(&sandbox, "set", "DB", b"one");
    assert_eq!(
        (&made["version"], &made["changed"], &made["given"]),
        (&json!(1), &json!(true), &json!([early]))
    );
    assert_eq!(has(&sandbox, &early, "DB"), "one");
    let late = start(&sandbox);
    assert_eq!(has(&sandbox, &late, "DB"), "one");
    let receipt = &sandbox.ok(&format!("instance info {late}"))["last_receipt"];
    let first = &receipt["confirmed"][0];
    assert_eq!(first["fact"], "secrets", "its workload has them: {receipt}");
    assert!(first["value"].as_str().is_some_and(|value| value.starts_with("1 ")), "{first}");
    // Any bytes.
    let bytes: Vec<u8> = (0..=255).collect();
    changed(&sandbox, "set", "tls.key", &bytes);
    let output = sandbox.run(&format!("instance exec -n {early} -- cat /run/secrets/tls.key"));
    assert_eq!(output.stdout, bytes);
    let again = changed(&sandbox, "set", "DB", b"one");
    assert_eq!((&again["changed"], &again["given"]), (&json!(false), &json!([])));
    let (code, word, what) = error(&change(&sandbox, "set", "DB", b"two"));
    assert_eq!((code, word.as_str()), (Some(4), "exists"), "{what}");
    let rotated = changed(&sandbox, "rotate", "DB", b"two");
    let mut both = [early.clone(), late.clone()];
    both.sort();
    assert_eq!((&rotated["version"], &rotated["given"]), (&json!(2), &json!(both)));
    assert_ne!(rotated["hash"], made["hash"]);
    assert_eq!((has(&sandbox, &early, "DB"), has(&sandbox, &late, "DB")), ("two".into(), "two".into()));
    sandbox.ok("tenant secrets remove acme DB");
    for path in [&early, &late] {
        assert_eq!(says(&sandbox, path, "ls /run/secrets"), "tls.key");
        assert_eq!(generation(&sandbox, path), 4);
    }
    let listed = sandbox.ok("tenant secrets list acme");
    assert_eq!(
        listed.as_array().map(|all| all.iter().map(|one| &one["name"]).collect()),
        Some(vec![&json!("tls.key")])
    );
    assert_eq!(sandbox.refused("tenant secrets remove acme DB", 3), "not_found");
    assert_eq!(sandbox.refused("tenant secrets list globex", 3), "not_found");
    // One that was removed and is set again is not the one of before.
    assert_ne!(changed(&sandbox, "set", "DB", b"one")["updated_at"], made["updated_at"]);
    assert_eq!(has(&sandbox, &early, "DB"), "one");
}

#[test]
fn a_guest_of_another_tenant_has_none_of_them() {
    let Some(sandbox) = world() else { return };
    changed(&sandbox, "set", "DB", b"acme's");
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    sandbox.ok("pool create globex/web --vmm sim --mem 128 --data-disk 8 --agent required");
    sandbox.import("globex/web", "");
    let theirs = sandbox.instance("globex/web");
    sandbox.ok(&format!("instance start {theirs}"));
    let own = start(&sandbox);
    assert_eq!(has(&sandbox, &own, "DB"), "acme's");
    assert_eq!(says(&sandbox, &theirs, "ls /run/secrets"), "");
    assert_eq!(generation(&sandbox, &theirs), Value::Null);
    let output = feed(sandbox.command("tenant secrets set globex DB --json"), b"globex's");
    assert!(output.status.success());
    assert_eq!(
        (has(&sandbox, &own, "DB"), has(&sandbox, &theirs, "DB")),
        ("acme's".into(), "globex's".into())
    );
    // What is sealed for one opens for nobody else, also not under another name.
    let file = |tenant: &str| sandbox.root().join(format!("tenants/{tenant}/secrets.json"));
    let acme = std::fs::read_to_string(file("acme")).expect("a file");
    let globex = std::fs::read_to_string(file("globex")).expect("a file");
    sandbox.ok(&format!("instance stop --force {own}"));
    for (what, content) in [("of another tenant", globex), ("renamed", acme.replace("\"DB\"", "\"DC\""))] {
        std::fs::write(file("acme"), content).expect("a file");
        assert_eq!(sandbox.refused(&format!("instance start {own}"), 1), "damaged", "{what}");
    }
    std::fs::write(file("acme"), acme).expect("a file");
    sandbox.ok(&format!("instance start {own}"));
}

#[test]
fn who_slept_or_was_warm_gets_what_was_rotated_meanwhile() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --on-rotate signal:USR1");
    changed(&sandbox, "set", "DB", b"one");
    let (sleeper, warm) = (start(&sandbox), start(&sandbox));
    sandbox.ok(&format!("instance sleep {sleeper}"));
    sandbox.ok(&format!("instance warm {warm}"));
    let rotated = changed(&sandbox, "rotate", "DB", b"two");
    assert_eq!((&rotated["given"], &rotated["failed"]), (&json!([]), &json!([])));
    assert_eq!(behind(&sandbox), json!([warm]));
    sandbox.ok(&format!("instance wake {sleeper}"));
    sandbox.ok(&format!("instance resume {warm}"));
    for path in [&sleeper, &warm] {
        assert_eq!((has(&sandbox, path, "DB"), generation(&sandbox, path)), ("two".into(), json!(2)));
        let logs = String::from_utf8(sandbox.run(&format!("instance logs {path}")).stdout).expect("a text");
        assert!(logs.contains("hears of other secrets: signal 10"), "{logs}");
    }
    assert_eq!(behind(&sandbox), json!([]));
    // Nothing new is nothing to be told.
    sandbox.ok(&format!("instance sleep {sleeper}"));
    sandbox.ok(&format!("instance wake {sleeper}"));
    let logs = String::from_utf8(sandbox.run(&format!("instance logs {sleeper}")).stdout).expect("a text");
    assert_eq!(logs.matches("hears of").count(), 1, "{logs}");
}

#[test]
fn a_guest_that_does_not_answer_is_named_and_in_nobodys_way() {
    let Some(sandbox) = faulty_world() else { return };
    let deaf = sandbox.instance("acme/web");
    set_faults(
        &sandbox,
        &json!({ "agent": { "hostile": { "request": "secrets", "says": [], "again": [] } } }),
    );
    sandbox.ok(&format!("instance start {deaf}"));
    set_faults(&sandbox, &json!({}));
    let other = start(&sandbox);
    let mut command = sandbox.command("tenant secrets set acme DB --json");
    command.env("MVM_GUEST_TIMEOUT_MS", "300");
    let output = feed(command, b"one");
    let view: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&view["given"], &view["failed"]), (&json!([other]), &json!([deaf])));
    let (code, word, what) = error(&output);
    assert_eq!((code, word.as_str()), (Some(1), "guest_silent"));
    assert!(what.starts_with(&deaf), "{what}");
    assert_eq!(has(&sandbox, &other, "DB"), "one");
    assert_eq!(behind(&sandbox), json!([deaf]));
    let audit = sandbox.ok("tenant audit acme");
    let line =
        audit.as_array().and_then(|all| all.iter().rev().find(|one| one["path"] == json!(deaf)).cloned());
    assert!(
        line.is_some_and(|line| line["what"] == "instance.secrets" && line["phase"] == "failed"),
        "{audit}"
    );
}

/// One that says that it takes them, and then reads nothing: its instance is not locked for longer than an answer may take.
#[test]
fn a_guest_that_stops_reading_is_given_up_in_the_time_of_an_answer() {
    let Some(sandbox) = faulty_world() else { return };
    let says = json!([{ "message": { "answer": "ready" } }, "deaf"]);
    let faults = json!({ "agent": { "hostile": { "request": "secrets", "says": says } } });
    let deaf = sandbox.instance("acme/web");
    set_faults(&sandbox, &faults);
    sandbox.ok(&format!("instance start {deaf}"));
    let impatient = |arguments: &str, content: &[u8]| {
        let mut command = sandbox.command(&format!("{arguments} --json"));
        command.env("MVM_GUEST_TIMEOUT_MS", "1000");
        let output = feed(command, content);
        let (code, word, what) = error(&output);
        assert_eq!((code, word.as_str()), (Some(1), "guest_silent"), "{what}");
        assert!(what.contains("did not answer Secrets within 1 s"), "{what}");
    };
    // More than lies on the way.
    for number in 0..6 {
        std::fs::write(sandbox.root().join("in"), vec![number; 64 << 10]).expect("a file");
        let set = format!("tenant secrets set acme S{number} --file {}", sandbox.root().join("in").display());
        match number {
            0 => impatient(&set, b""),
            _ => drop(
                sandbox.command(&set).env("MVM_FAILPOINT", "secrets.audited").output().expect("mvm runs"),
            ),
        }
    }
    impatient("tenant secrets set acme LAST", b"x");
    assert_eq!(behind(&sandbox), json!([deaf]));
    sandbox.ok(&format!("instance sleep {deaf} --force"));
    // A start is undone; a wake is stopped, since its snapshot is used up.
    let other = sandbox.instance("acme/web");
    impatient(&format!("instance start {other}"), b"");
    impatient(&format!("instance wake {deaf}"), b"");
    let states = sandbox.states();
    assert!(states.contains(&format!("{other} ready")), "{states:?}");
    assert!(states.contains(&format!("{deaf} stopped")), "{states:?}");
    assert_eq!(sandbox.leaks(), [""; 0]);
}

/// What a guest reads of itself names the set that it has: where that cannot be said, it is not taken for said.
#[test]
fn a_vmm_that_refuses_to_say_which_set_it_is_is_named_and_asked_again() {
    let Some(sandbox) = faulty_world() else { return };
    let refuse = |nth: u32, times: u32| {
        let effect =
            json!({ "answer": { "status": 400, "fault_message": "The MMDS data store is too small" } });
        set_faults(
            &sandbox,
            &json!({ "requests": [{ "method": "PUT", "path": "/mmds", "nth": nth, "times": times, "effect": effect }] }),
        );
    };
    refuse(2, 1);
    let path = start(&sandbox);
    let (code, word, what) = error(&change(&sandbox, "set", "DB", b"one"));
    assert_eq!((code, word.as_str()), (Some(1), "vmm_refused"), "{what}");
    assert_eq!(behind(&sandbox), json!([path]));
    assert_eq!(changed(&sandbox, "set", "DB", b"one")["given"], json!([path]));
    assert_eq!((has(&sandbox, &path, "DB"), behind(&sandbox)), ("one".into(), json!([])));
    // One that is resumed runs by then, and is not taken for paused.
    refuse(3, 100);
    let resumed = start(&sandbox);
    sandbox.ok(&format!("instance warm {resumed}"));
    assert_eq!(sandbox.refused(&format!("instance resume {resumed}"), 1), "vmm_refused");
    sandbox.ok("node recover");
    let info = sandbox.ok(&format!("instance info {resumed}"));
    assert_eq!((&info["status"], &info["pending"]), (&json!("running"), &json!(null)));
    sandbox.ok(&format!("instance destroy {resumed} --yes --wipe-volumes"));
    // Its twin: one that was started without the service has nothing that could say it.
    set_faults(&sandbox, &json!({}));
    sandbox.ok(&format!("instance stop --force {path}"));
    sandbox.ok("pool update acme/web --metadata false");
    sandbox.ok(&format!("instance start {path}"));
    sandbox.ok("pool update acme/web --metadata true");
    assert_eq!(changed(&sandbox, "rotate", "DB", b"two")["given"], json!([path]));
}

#[test]
fn a_program_that_should_hear_and_fails_is_said() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --on-rotate exec:/bin/false");
    let path = start(&sandbox);
    let output = change(&sandbox, "set", "DB", b"one");
    let (code, word, what) = error(&output);
    assert_eq!((code, word.as_str()), (Some(1), "not_told"), "{what}");
    assert!(what.contains("/bin/false ended with code 1"), "{what}");
    assert_eq!((has(&sandbox, &path, "DB"), behind(&sandbox)), ("one".into(), json!([])));
    sandbox.ok("pool update acme/web --on-rotate exec:/bin/true");
    assert_eq!(changed(&sandbox, "rotate", "DB", b"two")["failed"], json!([]));
    assert_eq!(sandbox.refused("pool update acme/web --on-rotate signal:NOBODY", 2), "usage");
}

/// An agent from before there were secrets.
#[test]
fn a_guest_that_takes_no_secrets_is_not_served() {
    let Some(sandbox) = faulty_world() else { return };
    let says = json!([{ "message": { "answer": "refused", "code": "unsupported", "why": "this agent does not know the request" } }]);
    set_faults(&sandbox, &json!({ "agent": { "hostile": { "request": "secrets", "says": says } } }));
    // As long as there are none it is a guest like others.
    let (running, sleeper) = (start(&sandbox), start(&sandbox));
    sandbox.ok(&format!("instance sleep {sleeper}"));
    let output = change(&sandbox, "set", "DB", b"one");
    let (code, word, what) = error(&output);
    assert_eq!((code, word.as_str()), (Some(4), "guest_unsupported"), "{what}");
    assert!(what.contains("older than they are"), "{what}");
    sandbox.ok(&format!("instance stop --force {running}"));
    assert_eq!(sandbox.refused(&format!("instance start {running}"), 4), "guest_unsupported");
    assert_eq!(sandbox.refused(&format!("instance wake {sleeper}"), 4), "guest_unsupported");
    let info = sandbox.ok(&format!("instance info {sleeper}"));
    assert_eq!(info["status"], "stopped");
    assert!(info["last_exit"]["why"].as_str().is_some_and(|why| why.contains("refused Secrets")), "{info}");
    assert_eq!(sandbox.leaks(), [""; 0]);
}

#[test]
fn a_guest_that_confirms_others_or_cannot_take_them_is_not_served() {
    let Some(sandbox) = faulty_world() else { return };
    changed(&sandbox, "set", "DB", b"one");
    let path = sandbox.instance("acme/web");
    for (fault, says) in [
        (json!({ "lie": ["secrets", "1 0000000000000000"] }), "did not confirm its secrets"),
        (json!({ "lie": ["secrets", ""] }), "did not confirm its secrets"),
        (json!({ "fail": "secrets" }), "could not set its secrets: it does not work"),
    ] {
        set_faults(&sandbox, &json!({ "agent": fault }));
        let output = sandbox.run(&format!("instance start {path} --json"));
        let (code, word, what) = error(&output);
        assert_eq!((code, word.as_str()), (Some(1), "guest_identity"), "{fault} {what}");
        assert!(what.contains(says), "{what}");
        assert_eq!(sandbox.leaks(), [""; 0]);
    }
    set_faults(&sandbox, &json!({}));
    sandbox.ok(&format!("instance start {path}"));
}

#[test]
fn a_guest_without_an_agent_gets_none_and_that_is_said() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool create acme/plain --vmm sim --mem 128 --data-disk 8");
    sandbox.import("acme/plain", "");
    let plain = sandbox.instance("acme/plain");
    let without = |verb: &str| sandbox.ok(&format!("instance {verb}"))["without_secrets"].clone();
    assert_eq!(without(&format!("start {plain}")), Value::Null);
    let view = changed(&sandbox, "set", "DB", b"one");
    assert_eq!((&view["given"], &view["no_agent"]), (&json!([]), &json!([plain])));
    assert_eq!((generation(&sandbox, &plain), behind(&sandbox)), (Value::Null, json!([])));
    assert_eq!(without(&format!("info {plain}")), true);
    sandbox.ok(&format!("instance sleep {plain}"));
    assert_eq!(without(&format!("wake {plain}")), true);
    assert_eq!(sandbox.ok("instance list acme/plain")[0]["without_secrets"], true);
    assert_eq!(without(&format!("info {}", start(&sandbox))), Value::Null);
    let scaled = sandbox.run("pool scale acme/plain --running 2");
    let said = String::from_utf8_lossy(&scaled.stdout).into_owned();
    assert!(said.contains("its tenant's secrets do not reach it"), "{said}");
}

#[test]
fn what_stands_reaches_guests_also_where_it_could_not_be_written_down() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    changed(&sandbox, "set", "DB", b"first");
    let mut stood = Vec::new();
    for point in 1.. {
        let (value, mut rotate) =
            (format!("content {point}"), sandbox.command("tenant secrets rotate acme DB --json"));
        rotate.env("MVM_FAILPOINT", format!("fail:#{point}"));
        let output = feed(rotate, value.as_bytes());
        if output.status.success() {
            break;
        }
        let (_, word, what) = error(&output);
        if ["audit_unsaid", "secrets_unfinished"].contains(&word.as_str()) {
            assert_eq!(has(&sandbox, &path, "DB"), value, "{point}: {what}");
            stood.push(word);
        }
        sandbox.ok("node recover");
    }
    stood.dedup();
    assert_eq!(stood, ["secrets_unfinished", "audit_unsaid"]);
}
