//! Ten times asleep and awake.

use serde_json::{Value, json};

use crate::{
    guest::Guest,
    support::{Sandbox, own_mounts},
};

/// What of an instance is the same for all its life: address, TAP, MAC; and the kernel's rules for it.
fn identity(guest: &Guest) -> (Value, String, Value) {
    let map = |name: &str| {
        let output = std::process::Command::new("nft").args(["list", "map", "inet", "mvm", name]).output();
        String::from_utf8_lossy(&output.expect("nft runs").stdout).into_owned()
    };
    let leases = guest.sandbox.root().join("tenants/acme/leases");
    let lease = std::fs::read_dir(leases).expect("a folder").flatten().map(|entry| entry.path());
    let lease = lease.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let lease = lease.map(|path| crate::guest::read(&path)).collect();
    (guest.info()["net"].clone(), map("egress"), lease)
}

fn ten_cycles(sandbox: Sandbox) {
    sandbox.pool("sim");
    let mut guest = Guest::in_pool(sandbox);
    let before = identity(&guest);
    assert!(before.1.contains("elements"), "{}", before.1);
    for _ in 0..10 {
        guest.works();
        guest.ok("sleep");
        // No process, no TAP, no port, no directory; the lease and its rules are there.
        assert!(guest.sandbox.vmms().is_empty());
        assert!(guest.sandbox.links("tn").is_empty());
        guest.leaves_nothing();
        assert_eq!(identity(&guest), before);
        // Every page has the sum that was made of what was written alone.
        let scrubbed = guest.sandbox.ok("node gc --scrub");
        assert_eq!((&scrubbed["scrubbed"], &scrubbed["damaged"]), (&json!(1), &json!([])));
        guest.ok("wake");
        guest.is_as_it_was(1);
        assert_eq!(identity(&guest), before);
        let reached =
            guest.tell(&json!({ "cmd": "ping", "to": before.0["gateway_ip"], "timeout_ms": 20_000 }));
        assert_eq!(reached["answered"], true, "{reached}");
    }
    // A guest that slept is stopped and started like any other.
    guest.ok("stop");
    guest.ok("start");
    guest.sleeps_well();
}

#[test]
fn ten_cycles_change_nothing() {
    let Some(sandbox) = Sandbox::new() else { return };
    ten_cycles(sandbox);
}

#[test]
fn ten_cycles_on_a_file_system_with_reflinks_change_nothing() {
    let Some(mut sandbox) = Sandbox::new() else { return };
    own_mounts();
    if sandbox.mount_btrfs("512M") {
        ten_cycles(sandbox);
    }
}

#[test]
fn an_archived_one_wakes_too_and_is_smaller() {
    let Some(mut guest) = Guest::new() else { return };
    for _ in 0..2 {
        guest.works();
        guest.ok("sleep");
        guest.ok("archive");
        let names = std::fs::read_dir(guest.delta()).expect("a folder").flatten();
        let of_memory = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("mem.");
        let of_memory: Vec<_> = names.map(|entry| entry.file_name()).filter(of_memory).collect();
        assert!(matches!(&of_memory[..], [one] if one.to_string_lossy().ends_with(".zst")), "{of_memory:?}");
        assert_eq!(guest.sandbox.ok("node gc --scrub")["damaged"], json!([]));
        // Archived twice is archived.
        guest.ok("archive");
        guest.ok("wake");
        guest.is_as_it_was(1);
    }
}
