//! Connections to the guest's vsock after its vCPUs were paused, with a VMM that loses them as Firecracker up to 1.16.1 does.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use mvm::vmm::{
    client::{Client, connect_in},
    wire::Call,
};
use serde_json::json;

use crate::{
    guest::{Guest, fault},
    support::was_killed,
    together::cancelled_sleep,
};

/// Does the guest's echo answer within this time?
fn answers(guest: &Guest, limit: Duration) -> bool {
    let directory = guest.sandbox.root().join("run/firecracker").join(&guest.tap).join("root");
    let stream: UnixStream =
        connect_in(&directory, "v.sock", Duration::from_secs(30)).expect("the vsock listens");
    stream.set_read_timeout(Some(limit)).expect("a socket");
    (&stream).write_all(b"CONNECT 52\nhello\n").expect("it is written");
    let mut lines = BufReader::new(&stream).lines();
    let mut next = || lines.next().and_then(Result::ok).unwrap_or_default();
    next().starts_with("OK ") && next() == "hello"
}

const PATIENTLY: Duration = Duration::from_secs(20);

fn guest() -> Option<Guest> {
    Guest::with_faults(&json!({ "vsock_dies_after_pause": true }))
}

#[test]
fn this_vmm_loses_its_vsock_where_nobody_helps() {
    let Some(guest) = guest() else { return };
    assert!(answers(&guest, PATIENTLY));
    let directory = guest.sandbox.root().join("run/firecracker").join(&guest.tap).join("root");
    let mut client = Client::connect_now(&directory).expect("it listens");
    client.call(&Call::Pause).expect("it pauses");
    client.call(&Call::Resume).expect("it goes on");
    assert!(!answers(&guest, Duration::from_millis(500)));
}

/// What pauses a guest, and lets it go on.
type Way<'a> = (&'a str, &'a dyn Fn(&Guest));

#[test]
fn the_vsock_lives_whatever_paused_the_guest() {
    let Some(mut guest) = guest() else { return };
    let ways: [Way; 7] = [
        ("warm and back", &|guest| {
            guest.ok("warm");
            guest.ok("resume");
        }),
        ("a sleep that was cancelled", &cancelled_sleep),
        ("a sleep that was cut off once paused", &|guest| cut_off(guest, "sleep", "sleep.pause")),
        ("a sleep that was cut off once written", &|guest| cut_off(guest, "sleep", "sleep.snapshot")),
        ("a resume that was cut off", &|guest| {
            guest.ok("warm");
            cut_off(guest, "resume", "resume.set");
        }),
        ("a resume that was cut off before its VMM heard of it", &|guest| {
            guest.ok("warm");
            cut_off(guest, "resume", "resume.reserved");
            assert_eq!(guest.status(), "warm");
            guest.ok("resume");
        }),
        ("asleep and awake", &|guest| {
            guest.ok("sleep");
            guest.ok("wake");
        }),
    ];
    for (name, way) in ways {
        guest.works();
        way(&guest);
        assert_eq!(guest.status(), "running", "{name}");
        assert!(answers(&guest, PATIENTLY), "{name}");
        guest.is_as_it_was(u64::from(name == "asleep and awake"));
    }
    guest.sleeps_well();
}

fn cut_off(guest: &Guest, verb: &str, failpoint: &str) {
    assert!(was_killed(&guest.sandbox.run_with(&format!("instance {verb} {}", guest.path), failpoint)));
    guest.sandbox.ok("node recover");
}

#[test]
fn the_vsock_lives_after_a_sleep_that_the_vmm_refused() {
    let answer = json!({ "answer": { "status": 400, "fault_message": "Cannot write memory file: no" } });
    let mut faults = fault("/snapshot/create", answer);
    faults["vsock_dies_after_pause"] = json!(true);
    let Some(mut guest) = Guest::with_faults(&faults) else { return };
    guest.works();
    assert_eq!(guest.refused("sleep", 1), "vmm_refused");
    assert!(answers(&guest, PATIENTLY));
    guest.is_as_it_was(0);
    guest.sleeps_well();
}
