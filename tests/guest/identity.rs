//! Clones of one base, each of which is somebody else.

use std::time::Duration;

use mvm::vm::instance::{
    config::Instance,
    guest::{Guest, GuestError, identity},
};
use mvm_proto::{Code, Request, message::Exec};
use serde_json::{Value, json};

use crate::{
    support::{Sandbox, faulty::set_faults},
    world::{all_differ, exec, faulty_world, info, leaves_nothing, record, roots, says, start, world},
};

/// What a guest knows that no other one may know, a line each.
const OWN: &str = "cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/uuid \
                   /etc/ssh/ssh_host_ed25519_key.pub /proc/mounts";

fn own(sandbox: &Sandbox, path: &str) -> Vec<String> {
    says(sandbox, path, OWN).lines().map(str::to_owned).collect()
}

#[test]
fn fifty_clones_share_nothing_and_reach_each_other() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool scale acme/web --running 50");
    let list = sandbox.ok("instance list");
    let instances: Vec<&Value> = list.as_array().into_iter().flatten().collect();
    assert_eq!(instances.len(), 50);
    let bases: Vec<&Value> = instances.iter().map(|one| &one["base_key"]).collect();
    assert!(bases.iter().all(|key| *key == bases[0] && key.is_string()), "{bases:?}");
    let path = |one: &Value| one["path"].as_str().expect("a path").to_owned();
    let known: Vec<Vec<String>> = instances.iter().map(|one| own(&sandbox, &path(one))).collect();
    for at in 0..known[0].len() {
        all_differ("a line", &known.iter().map(|lines| lines[at].as_str()).collect::<Vec<_>>());
    }
    for (one, lines) in instances.iter().zip(&known) {
        assert_eq!(lines[0], one["instance_id"]);
        assert_eq!(lines[3], one["host_key"]);
        let receipt = &one["last_receipt"];
        assert_eq!(receipt["agent"], "confirmed");
        let confirmed: Vec<&str> = receipt["confirmed"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|fact| fact["fact"].as_str())
            .collect();
        assert_eq!(confirmed[0], "entropy", "{confirmed:?}");
        assert_eq!(confirmed.last(), Some(&"instance"), "{confirmed:?}");
    }
    let net: Vec<(String, String)> = instances
        .iter()
        .map(|one| {
            let tap = one["net"]["tap_dev"].as_str().expect("a TAP").to_owned();
            let address = sandbox.tell(&tap, &json!({ "cmd": "address" }));
            assert_eq!(address["ip"], one["net"]["guest_ip"]);
            assert_eq!(address["mac"], one["net"]["mac"]);
            assert_eq!(address["gw"], "10.240.3.1");
            (tap, address["ip"].as_str().expect("an address").to_owned())
        })
        .collect();
    for (tap, own) in &net {
        for (_, other) in net.iter().filter(|(_, other)| other != own) {
            let answer = sandbox.tell(tap, &json!({ "cmd": "ping", "to": other }));
            assert_eq!(answer["answered"], true, "{own} to {other}");
        }
    }
    leaves_nothing(&sandbox);
}

/// What keeps clones apart is Identify: without its first step they have the same randomness, and the keys made from it.
#[test]
fn clones_that_are_not_given_randomness_share_it() {
    let Some(sandbox) = faulty_world() else { return };
    set_faults(&sandbox, &json!({ "agent": { "skip": "entropy" } }));
    let known: Vec<Vec<String>> = (0..2).map(|_| own(&sandbox, &start(&sandbox))).collect();
    assert_eq!(known[0][2..4], known[1][2..4], "randomness and key");
    assert_ne!(known[0][..2], known[1][..2], "names");
}

#[test]
fn a_restart_is_somebody_new_with_the_same_name() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let before = own(&sandbox, &path);
    let revision = info(&sandbox, &path)["base_key"].clone();
    sandbox.ok(&format!("instance stop {path}"));
    sandbox.ok(&format!("instance start {path}"));
    let after = own(&sandbox, &path);
    assert_eq!((&before[0], &before[1], &before[4]), (&after[0], &after[1], &after[4]));
    assert_ne!((&before[2], &before[3]), (&after[2], &after[3]));
    assert_eq!(info(&sandbox, &path)["base_key"], revision);
}

/// Who is told once more who it is keeps its key, and its workload runs on.
#[test]
fn the_same_identity_said_twice_changes_nothing() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    says(&sandbox, &path, "workload restart");
    let before = own(&sandbox, &path);
    let roots = roots(&sandbox);
    let instance = record(&roots, &path);
    for _ in 0..2 {
        let identity = identity::of(&roots, &instance, 1500).expect("it can be said");
        let guest = Guest::of(&roots, &instance).expect("it listens");
        let confirmed = identity::identify(guest, identity).expect("it is confirmed");
        assert_eq!(identity::host_key(&confirmed), instance.host_key);
    }
    let after = own(&sandbox, &path);
    assert_eq!((&before[..2], &before[3..]), (&after[..2], &after[3..]));
    let guest = &info(&sandbox, &path)["guest"];
    assert_eq!(guest["workload"], json!({ "state": "running", "pid": 3, "restarts": 1 }));
}

/// A slot that changed hands while somebody held its old record: the guest that is there now does nothing for him.
#[test]
fn another_instances_guest_does_nothing() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let roots = roots(&sandbox);
    let own = record(&roots, &path);
    let stale = Instance { instance_id: "i-00000000".parse().expect("an id"), ..own.clone() };
    for request in [
        Request::Status {},
        Request::Stats {},
        Request::Exec(Exec { argv: vec!["log".into(), "stolen".into()], ..Exec::default() }),
        Request::Put { path: "/root/stolen".into(), name: "stolen".into() },
        Request::Get { path: "/etc/hostname".into() },
        Request::Logs { since_unix_ms: 0, follow: false },
        Request::SleepPrep { drain_ms: 0 },
        Request::Shutdown { grace_ms: 0 },
    ] {
        let asked = Guest::of(&roots, &stale).and_then(|mut guest| guest.ask(&request, Duration::ZERO));
        let Err(GuestError::Refused { code: Code::OtherIdentity, why, .. }) = asked else {
            panic!("{request:?}: {asked:?}")
        };
        assert_eq!(why, format!("the guest is {}", own.instance_id));
    }
    let files = mvm::vm::instance::config::file(&roots, &path.parse().expect("a path"));
    let mut other = serde_json::to_value(&stale).expect("JSON");
    other["instance_id"] = json!("i-00000000");
    // As a command sees it: the record of an instance that was here before.
    let folder = files.parent().expect("a folder").with_file_name("i-00000000");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("instance.json"), other.to_string()).expect("a record");
    let stale = "acme/web/i-00000000";
    assert_eq!(sandbox.refused(&format!("instance exec -n --json {stale} -- true"), 125), "guest_other");
    assert_eq!(sandbox.refused(&format!("instance logs {stale}"), 4), "guest_other");
    assert_eq!(sandbox.refused(&format!("instance cp {stale}:/etc/hostname /tmp"), 4), "guest_other");
    assert_eq!(sandbox.refused(&format!("instance cp /etc/hostname {stale}:/root/stolen"), 4), "guest_other");
    assert_eq!(info(&sandbox, stale)["guest"]["unknown"]["code"], "guest_other");
    std::fs::remove_dir_all(&folder).expect("it is there");
    assert!(!exec(&sandbox, &path, "cat /root/stolen").status.success());
    let logs = sandbox.run(&format!("instance logs {path}"));
    assert!(!String::from_utf8_lossy(&logs.stdout).contains("stolen"));
    leaves_nothing(&sandbox);
}

#[test]
fn a_sleeper_stays_who_it_is() {
    let Some(sandbox) = world() else { return };
    let (path, other) = (start(&sandbox), start(&sandbox));
    let before = own(&sandbox, &path);
    for _ in 0..3 {
        sandbox.ok(&format!("instance sleep {path}"));
        assert!(info(&sandbox, &path)["base_key"].is_null(), "a sleeper is complete");
        sandbox.ok(&format!("instance wake {path}"));
    }
    let after = own(&sandbox, &path);
    assert_eq!((&before[..2], &before[3..]), (&after[..2], &after[3..]));
    assert_ne!(before[2], after[2]);
    assert_ne!(own(&sandbox, &other)[2], after[2]);
    leaves_nothing(&sandbox);
}

#[test]
fn a_base_is_made_once_and_a_new_revision_has_another() {
    let Some(sandbox) = world() else { return };
    let bases = sandbox.root().join("tenants/acme/pools/web/snapshots/base");
    let count = || std::fs::read_dir(&bases).expect("a folder").count();
    // The import has made it.
    assert_eq!(count(), 1);
    let path = start(&sandbox);
    assert_eq!(count(), 1);
    sandbox.import("acme/web", "er");
    assert_eq!(count(), 2);
    let other = start(&sandbox);
    assert_ne!(info(&sandbox, &path)["base_key"], info(&sandbox, &other)["base_key"]);
    // The one that nobody needs goes, the others stay.
    sandbox.ok(&format!("instance stop {path}"));
    sandbox.ok("node gc");
    assert_eq!(count(), 1);
    sandbox.ok(&format!("instance start {path}"));
    leaves_nothing(&sandbox);
}

/// A data disk of another size than the base's is the instance's own.
#[test]
fn a_grown_disk_is_mounted() {
    let Some(sandbox) = world() else { return };
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance disk grow {path} --size 16"));
    sandbox.ok(&format!("instance start {path}"));
    assert!(says(&sandbox, &path, "cat /proc/mounts").ends_with("/data ext4"));
    sandbox.ok("pool update acme/web --data-disk 0");
    let none = start(&sandbox);
    assert!(!exec(&sandbox, &none, "cat /proc/mounts").status.success());
    // What has a disk keeps it, whatever the pool gives to others.
    sandbox.ok(&format!("instance stop {path}"));
    sandbox.ok(&format!("instance start {path}"));
    assert!(says(&sandbox, &path, "cat /proc/mounts").ends_with("/data ext4"));
    leaves_nothing(&sandbox);
}

#[test]
fn limits_of_a_tenant_hold_for_clones() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("tenant update acme --disk-iops 500 --net-mbps 10");
    let path = start(&sandbox);
    assert_eq!(says(&sandbox, &path, "hostname"), path.rsplit('/').next().unwrap());
    leaves_nothing(&sandbox);
}
