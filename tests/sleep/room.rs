//! No room: in memory, in a quota, on the disk, in a folder that nobody may write to.

use std::fs;

use serde_json::json;

use crate::{
    guest::Guest,
    support::{Sandbox, own_mounts, run},
};

#[test]
fn without_memory_a_sleeper_sleeps_on() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.ok("sleep");
    guest.sandbox.ok("node set mem-mib 100");
    let would = |guest: &Guest, path: &str, launch: &str| {
        guest.sandbox.ok(&format!("instance why {path}"))[format!("{launch}_refused")]["code"].clone()
    };
    let ready = guest.sandbox.instance("acme/web");
    for (path, launch) in [(&guest.path, "wake"), (&ready, "start")] {
        assert_eq!(would(&guest, path, launch), "no_room");
    }
    assert_eq!(guest.refused("wake", 4), "no_room");
    assert_eq!(guest.status(), "sleeping");
    guest.leaves_nothing();
    guest.sandbox.ok("node set mem-mib auto");
    guest.sandbox.ok("tenant update acme --max-running 0");
    assert_eq!(would(&guest, &guest.path, "wake"), "quota");
    assert_eq!(guest.refused("wake", 4), "quota");
    guest.sandbox.ok("node set disk-floor-mib 1000000000");
    assert_eq!(would(&guest, &ready, "start"), "disk_floor");
    guest.sandbox.ok("node set disk-floor-mib 256");
    assert_eq!(would(&guest, &ready, "start"), "quota");
    guest.sandbox.ok(&format!("instance destroy {ready} --yes"));
    guest.sandbox.ok("tenant update acme --max-running 5");
    guest.ok("wake");
    guest.is_as_it_was(1);
}

#[test]
fn what_is_warm_counts_as_warm() {
    let Some(mut guest) = Guest::new() else { return };
    guest.sandbox.ok("tenant update acme --max-warm 1 --max-running 1");
    let other = guest.sandbox.instance("acme/web");
    assert_eq!(guest.sandbox.refused(&format!("instance start {other}"), 4), "quota");
    guest.ok("warm");
    guest.sandbox.ok(&format!("instance start {other}"));
    assert_eq!(guest.sandbox.refused(&format!("instance warm {other}"), 4), "quota");
    assert_eq!(guest.refused("resume", 4), "quota");
    assert_eq!(guest.status(), "warm");
    guest.leaves_nothing();
    // One that sleeps counts nowhere.
    guest.sandbox.ok(&format!("instance sleep {other}"));
    guest.ok("resume");
    guest.is_as_it_was(0);
}

#[test]
fn what_goes_makes_room_for_what_comes_in_one_scale() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.sandbox.ok("tenant update acme --max-mem-mib 128");
    // The second sleeper has to be started first, and there is memory for one.
    guest.sandbox.ok("pool scale acme/web --running 0 --sleeping 2");
    assert!(guest.sandbox.states().iter().all(|state| state.ends_with("sleeping")));
    guest.leaves_nothing();
    guest.ok("wake");
    guest.is_as_it_was(1);
}

#[test]
fn one_that_cannot_be_read_does_not_keep_a_pool_from_its_scale() {
    let Some(guest) = Guest::new() else { return };
    let other = guest.sandbox.instance("acme/web");
    let record = guest.folder().join("instance.json");
    let before = fs::read(&record).expect("a record");
    fs::write(&record, "{").expect("it can be written");
    let scaled = guest.sandbox.run("pool scale acme/web --running 1");
    assert_eq!(scaled.status.code(), Some(1));
    let said = String::from_utf8_lossy(&scaled.stderr).into_owned();
    let id = guest.path.rsplit('/').next().unwrap_or_default();
    assert!(said.contains(id) && said.contains("is damaged"), "{said}");
    fs::write(&record, before).expect("it can be written");
    assert!(guest.sandbox.states().contains(&format!("{other} running")));
    guest.leaves_nothing();
}

fn on_tmpfs(size: &str) -> Option<Sandbox> {
    let mut sandbox = Sandbox::new()?;
    own_mounts();
    sandbox.mount_tmpfs(size);
    sandbox.ok("node set disk-floor-mib 0");
    sandbox.pool("sim");
    Some(sandbox)
}

/// Leaves so much free.
fn fill(sandbox: &Sandbox, free_kib: u64) -> std::path::PathBuf {
    let ballast = sandbox.root().join("ballast");
    let free = mvm::vm::room::free_mib(sandbox.root()).expect("free space");
    let length = (free << 20).saturating_sub(free_kib << 10);
    fs::write(&ballast, vec![0; usize::try_from(length).expect("a size")]).expect("ballast");
    ballast
}

#[test]
fn a_disk_that_fills_half_way_costs_the_guest_nothing() {
    let Some(sandbox) = on_tmpfs("64M") else { return };
    let mut guest = Guest::in_pool(sandbox);
    for (woken, pages) in [(false, 1000), (true, 3000)] {
        guest.tell(&json!({ "cmd": "dirty", "pages": pages }));
        guest.works();
        let ballast = fill(&guest.sandbox, 1200);
        assert_eq!(guest.refused("sleep", 1), "disk_full", "woken: {woken}");
        guest.is_as_it_was(0);
        assert!(mvm::vm::room::free_mib(guest.sandbox.root()).expect("free space") < 4);
        fs::remove_file(&ballast).expect("it can be removed");
        guest.sleeps_well();
    }
}

#[test]
fn a_folder_that_nobody_may_write_to_is_said() {
    let Some(sandbox) = Sandbox::new() else { return };
    own_mounts();
    sandbox.pool("sim");
    let mut guest = Guest::in_pool(sandbox);
    guest.sleeps_well();
    let folder = guest.delta().display().to_string();
    let lock = || {
        run("mount", &["--bind", &folder, &folder]);
        run("mount", &["-o", "remount,bind,ro", &folder]);
    };
    lock();
    guest.works();
    let refused = guest.sandbox.run(&format!("instance sleep {}", guest.path));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(matches!(refused.status.code(), Some(1 | 5)) && said.contains("mount -o remount,rw"), "{said}");
    guest.is_as_it_was(0);
    run("umount", &[&folder]);
    guest.ok("sleep");
    lock();
    assert_eq!(guest.refused("wake", 5), "read_only");
    assert_eq!(guest.status(), "sleeping");
    run("umount", &[&folder]);
    guest.leaves_nothing();
    guest.ok("wake");
    guest.is_as_it_was(1);
    guest.sleeps_well();
}
