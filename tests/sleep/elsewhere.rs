//! Snapshots of another VMM version and another boot of the host.

use std::fs;

use serde_json::json;

use crate::{
    guest::{Guest, edit, faulty_vmm, read, set_faults},
    support::kill_and_wait,
};

#[test]
fn a_sleeper_wakes_on_the_version_that_wrote_it_alone() {
    let Some(mut guest) = Guest::with_faults(&json!({})) else { return };
    let meta = guest.delta().join("meta.json");
    guest.works();
    guest.ok("sleep");
    assert_eq!(read(&meta)["origin"]["vmm_version"], "1.16.1");
    edit(&meta, |meta| meta["origin"]["vmm_version"] = json!("1.15.0"));
    let refused = guest.sandbox.run(&format!("instance wake {} --json", guest.path));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{said}");
    assert!(said.contains("\"no_vmm_version\"") && said.contains("1.15.0"), "{said}");
    assert_eq!(guest.status(), "sleeping");
    for version in ["1.14.0", "1.15.0"] {
        guest.sandbox.ok(&format!("vmm install {}", faulty_vmm(&guest.sandbox, version).display()));
    }
    // Only the sleeper needs 1.15.0, and nobody 1.14.0.
    guest.sandbox.ok("vmm gc");
    let list = guest.sandbox.ok("vmm list");
    let versions: Vec<_> = list.as_array().into_iter().flatten().map(|one| one["version"].clone()).collect();
    assert_eq!(versions, ["1.15.0", "1.16.1"]);
    set_faults(&guest.sandbox, &json!({ "version": "1.15.0" }));
    let woken = guest.ok("wake");
    assert_eq!(woken["vmm"]["version"], "1.15.0");
    guest.is_as_it_was(1);
    guest.ok("sleep");
    assert_eq!(read(&meta)["origin"]["vmm_version"], "1.15.0");
    guest.ok("wake");
    guest.is_as_it_was(1);
}

#[test]
fn what_a_sleeper_runs_is_kept_for_it() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.ok("sleep");
    let revision = guest.info()["revision"].clone();
    for cmdline in ["2", "3", "4"] {
        guest.sandbox.import("acme/web", cmdline);
    }
    guest.sandbox.ok("pool gc acme/web");
    guest.sandbox.ok("node gc");
    guest.ok("wake");
    guest.is_as_it_was(1);
    assert_eq!(guest.info()["revision"], revision);
    guest.sleeps_well();
}

/// What a reboot takes: processes, TAPs, bridges, rules; here what was not synced, too.
#[test]
fn a_sleeper_outlives_its_hosts_boot() {
    let Some(mut guest) = Guest::new() else { return };
    let other = guest.sandbox.instance("acme/web");
    guest.sandbox.ok(&format!("instance start {other}"));
    guest.works();
    guest.ok("sleep");
    let another_boot = json!("00000000-0000-0000-0000-000000000000");
    edit(&guest.delta().join("meta.json"), |meta| {
        meta["origin"]["boot_id"] = another_boot.clone();
        meta["origin"]["host_kernel"] = json!("1.0");
    });
    kill_and_wait(guest.sandbox.vmms()[0].0);
    let id = other.rsplit('/').next().unwrap_or_default();
    edit(&guest.folder().with_file_name(id).join("instance.json"), |record| {
        record["vmm"]["boot_id"] = another_boot;
    });
    guest.sandbox.enter_empty_network();
    fs::remove_dir_all(guest.sandbox.root().join("reservations")).expect("it is there");
    assert_eq!(guest.status(), "sleeping");
    let stopped = guest.sandbox.ok(&format!("instance info {other}"));
    assert_eq!(
        (&stopped["status"], &stopped["last_exit"]["why"]),
        (&json!("stopped"), &json!("the host rebooted"))
    );
    guest.sandbox.ok("node recover");
    // Its place on the disk is its own again.
    guest.leaves_nothing();
    guest.ok("wake");
    guest.is_as_it_was(1);
    guest.sleeps_well();
    guest.sandbox.ok(&format!("instance start {other}"));
}
