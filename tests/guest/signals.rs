//! What a guest says of its workload, as `instance info` shows it.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    support::Sandbox,
    world::{faulty_world, info, says, start, start_hostile, world},
};

/// Shows an instance for people.
fn shown(sandbox: &Sandbox, path: &str) -> String {
    let output = sandbox.run(&format!("instance info {path}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same as JSON, where an answer may take so long.
fn info_within(sandbox: &Sandbox, path: &str, ms: u64) -> Value {
    let mut command = sandbox.command(&format!("instance info {path} --json"));
    let output = command.env("MVM_GUEST_TIMEOUT_MS", ms.to_string()).output().expect("mvm runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_workloads_word_is_shown_with_its_time() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let guest = info(&sandbox, &path)["guest"].take();
    assert_eq!(guest["worker"], Value::Null);
    assert_eq!(guest["workload"], json!({ "state": "running", "pid": 2, "restarts": 0 }));
    assert_eq!((&guest["under_way"], &guest["draining"]), (&json!(0), &json!(false)));
    let text = shown(&sandbox, &path);
    assert!(text.contains("  worker    has said nothing\n  workload  running as pid 2\n"), "{text}");

    for word in ["ready", "idle", "busy"] {
        let before = jiff::Timestamp::now();
        says(&sandbox, &path, &format!("worker {word}"));
        let guest = info(&sandbox, &path)["guest"].take();
        assert_eq!(guest["worker"]["state"], word);
        let since: jiff::Timestamp =
            guest["worker"]["since"].as_str().expect("a time").parse().expect("a time");
        // What the guest counts in ms is cut off.
        let now = jiff::Timestamp::now() + Duration::from_millis(2);
        assert!((before..=now).contains(&since), "{before} {since}");
        let idle = if word == "idle" { &guest["worker"]["since"] } else { &Value::Null };
        assert_eq!(&guest["idle_since"], idle, "{guest}");
        let text = shown(&sandbox, &path);
        assert!(text.contains(&format!("  worker    {word} since 20")), "{text}");
    }
    // It is as it was, also after a sleep.
    sandbox.ok(&format!("instance sleep --force {path}"));
    assert_eq!(info(&sandbox, &path)["guest"], Value::Null, "a sleeper is not asked");
    sandbox.ok(&format!("instance wake {path}"));
    assert_eq!(info(&sandbox, &path)["guest"]["worker"]["state"], "busy");
    sandbox.ok(&format!("instance warm {path}"));
    assert_eq!(info(&sandbox, &path)["guest"], Value::Null, "nor is one that stands still");
    sandbox.ok(&format!("instance stop --force {path}"));
    assert_eq!(info(&sandbox, &path)["guest"], Value::Null);
}

#[test]
fn how_a_workload_ended_is_shown() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let now = || info(&sandbox, &path)["guest"]["workload"].take();
    says(&sandbox, &path, "workload restart");
    assert_eq!(now(), json!({ "state": "running", "pid": 3, "restarts": 1 }));
    assert!(shown(&sandbox, &path).contains("  workload  running as pid 3, restarted once\n"));
    says(&sandbox, &path, "workload end 3");
    assert_eq!(now(), json!({ "state": "ended", "code": 3, "restarts": 1 }));
    says(&sandbox, &path, "workload kill 9");
    assert_eq!(now(), json!({ "state": "ended", "signal": 9, "restarts": 1 }));
    assert!(shown(&sandbox, &path).contains("  workload  ended by signal 9, restarted once\n"));
    says(&sandbox, &path, "workload fail \u{1b}[2Jgone");
    assert_eq!(now(), json!({ "state": "failed", "why": "\\u{1b}[2Jgone", "restarts": 1 }));
    assert!(shown(&sandbox, &path).contains("not running: \\u{1b}[2Jgone, restarted once\n"));
}

#[test]
fn a_silent_guest_is_shown_as_unknown_in_the_time_of_one_answer() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let (vmm, _) = sandbox.vmms().remove(0);
    let vmm = Pid::from_raw(vmm).expect("a pid is not 0");
    kill_process(vmm, Signal::STOP).expect("it stops");
    let begun = Instant::now();
    let shown = info_within(&sandbox, &path, 300);
    let took = begun.elapsed();
    kill_process(vmm, Signal::CONT).expect("it goes on");
    assert_eq!(shown["status"], "running");
    assert_eq!(shown["guest"]["unknown"]["code"], "guest_silent", "{shown}");
    assert!(shown["guest"]["worker"].is_null() && shown["guest"]["workload"].is_null(), "{shown}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(info(&sandbox, &path)["guest"]["workload"]["state"], "running");
}

#[test]
fn what_a_hostile_guest_says_of_itself_is_bounded_or_unknown() {
    let Some(sandbox) = faulty_world() else { return };
    let path = sandbox.instance("acme/web");
    let id = path.rsplit('/').next().unwrap_or_default();
    let status = |more: Value| {
        let mut status = json!({ "answer": "status", "instance_id": id });
        status.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        json!({ "message": status })
    };
    let restart_with = |says: Value, again: Value| {
        start_hostile(&sandbox, &path, "status", &says, &again);
        info_within(&sandbox, &path, 300)["guest"].take()
    };
    sandbox.ok(&format!("instance start {path}"));
    let long = format!("\u{1b}]0;{}\u{202e}\n", "x".repeat(40_000));
    let guest =
        restart_with(json!([status(json!({ "workload": { "failed": { "why": long } } }))]), json!([]));
    let why = guest["workload"]["why"].as_str().expect("a text");
    assert!(why.starts_with("\\u{1b}]0;xxx") && why.len() < 500, "{why}");
    assert_eq!(guest["workload"]["restarts"], Value::Null, "it does not say how often");

    let older = json!({ "worker": "idle", "worker_for_ms": 1_u64 << 62 });
    let guest = restart_with(json!([status(older)]), json!([]));
    assert_eq!(guest["worker"], json!({ "state": "idle", "since": null }));
    assert_eq!(guest["idle_since"], Value::Null);

    for (says, again, code) in [
        (json!([]), json!([]), "guest_silent"),
        (json!([{ "raw": "HTTP/1.1 200 OK\r\n\r\n" }]), json!([]), "guest_nonsense"),
        (json!([{ "message": { "answer": "end" } }]), json!([]), "guest_nonsense"),
        (json!([]), json!([{ "data": 1000 }]), "guest_nonsense"),
        (json!([status(json!({ "worker": "asleep" }))]), json!([]), "guest_nonsense"),
        (json!([status(json!({ "instance_id": "i-00000000" }))]), json!([]), "guest_other"),
        (json!([{ "message": { "answer": "status" } }]), json!([]), "guest_identity"),
        (
            json!([{ "message": { "answer": "refused", "code": "denied", "why": "\u{1b}" } }]),
            json!([]),
            "guest_refused",
        ),
    ] {
        let guest = restart_with(says.clone(), again);
        assert_eq!(guest["unknown"]["code"], code, "{says}: {guest}");
        assert!(guest["worker"].is_null() && !guest.to_string().contains("\\u001b"), "{guest}");
    }
}
