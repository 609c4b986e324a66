//! What a guest may read of itself from its VMM: there after a start and after a wake, and each guest's own.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use serde_json::{Value, json};

use crate::{
    support::Sandbox,
    world::{start, world},
};

/// What the VMM of an instance says at a path of its API.
fn api(sandbox: &Sandbox, path: &str, what: &str) -> Value {
    let tap =
        sandbox.ok(&format!("instance info {path}"))["net"]["tap_dev"].as_str().expect("a TAP").to_owned();
    let socket = sandbox.root().join("run/firecracker").join(tap).join("root/api.sock");
    let mut stream = UnixStream::connect(socket).expect("its VMM listens");
    write!(stream, "GET {what} HTTP/1.1\r\n\r\n").expect("it reads");
    let mut answer = Vec::new();
    // It keeps the connection open, and writes in one piece.
    while !answer.ends_with(b"}") {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).expect("it answers");
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..count]);
    }
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    serde_json::from_slice(&answer[at + 4..]).expect("JSON")
}

#[test]
fn a_guest_reads_its_own_metadata_after_a_start_and_after_a_wake() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --label tier=front");
    let (one, other) = (start(&sandbox), start(&sandbox));
    for path in [&one, &other] {
        sandbox.ok(&format!("instance sleep {path}"));
        sandbox.ok("pool update acme/web --label tier=back");
        sandbox.ok(&format!("instance wake {path}"));
    }
    sandbox.ok(&format!("instance stop {other}"));
    sandbox.ok(&format!("instance start {other}"));
    for path in [&one, &other] {
        let record = sandbox.ok(&format!("instance info {path}"));
        let said = &api(&sandbox, path, "/mmds")["latest"]["meta-data"];
        let wanted = json!({
            "instance-id": record["instance_id"],
            "local-hostname": record["instance_id"],
            "local-ipv4": record["net"]["guest_ip"],
            "gateway": record["net"]["gateway_ip"],
            "mac": record["net"]["mac"],
            "tenant": "acme",
            "pool": "web",
            "revision": record["revision"],
            "tags": { "instance": { "tier": "back" } },
        });
        assert_eq!(said, &wanted);
        let config = api(&sandbox, path, "/vm/config");
        assert_eq!(config["mmds-config"]["version"], "V2");
        assert_eq!(config["mmds-config"]["ipv4_address"], "169.254.169.254");
    }
}

#[test]
fn a_pool_without_metadata_has_a_base_of_its_own_and_guests_with_nothing_to_ask() {
    let Some(sandbox) = world() else { return };
    let with = start(&sandbox);
    sandbox.ok("pool update acme/web --metadata false");
    let without = start(&sandbox);
    let key = |path: &str| sandbox.ok(&format!("instance info {path}"))["base_key"].clone();
    assert_ne!(key(&with), key(&without));
    assert_eq!(api(&sandbox, &without, "/vm/config")["mmds-config"], Value::Null);
}

#[test]
fn a_guest_that_runs_reads_that_its_secrets_are_others_now() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let said = |path: &str| api(&sandbox, path, "/mmds")["latest"]["meta-data"]["secrets-generation"].clone();
    assert_eq!(said(&path), Value::Null);
    let file = sandbox.root().join("content");
    for (verb, content, generation) in [("set", "one", "1"), ("rotate", "two", "2")] {
        std::fs::write(&file, content).expect("written");
        sandbox.ok(&format!("tenant secrets {verb} acme DB --file {}", file.display()));
        assert_eq!(said(&path), generation);
    }
    let later = start(&sandbox);
    assert_eq!(said(&later), "2");
    // One that did not run meanwhile.
    sandbox.ok(&format!("instance warm {path}"));
    std::fs::write(&file, "three").expect("written");
    sandbox.ok(&format!("tenant secrets rotate acme DB --file {}", file.display()));
    sandbox.ok(&format!("instance resume {path}"));
    assert_eq!(said(&path), "3");
    // Who has none is not told of a set: one without an agent, and one that came when there were none any more.
    sandbox.ok("pool create acme/plain --vmm sim --mem 128");
    sandbox.import("acme/plain", "");
    let plain = sandbox.instance("acme/plain");
    sandbox.ok(&format!("instance start {plain}"));
    assert_eq!(said(&plain), Value::Null);
    sandbox.ok("tenant secrets remove acme DB");
    assert_eq!((said(&path), said(&start(&sandbox))), ("4".into(), Value::Null));
}
