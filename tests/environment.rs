//! An environment that lacks something, or in which something is in the way: said with its exit code, before any effect, and
//! nothing is lost.

mod support;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use support::{NULL, Sandbox, TUN, URANDOM, own_dev, own_mounts, run};

/// A sandbox whose root is a file system of this size.
fn small(size: &str) -> Option<Sandbox> {
    let mut sandbox = Sandbox::new()?;
    own_mounts();
    sandbox.mount_tmpfs(size);
    Some(sandbox)
}

fn code(output: &Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let json: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
    (output.status.code(), json["error"]["code"].as_str().unwrap_or(&said).to_owned())
}

#[test]
fn a_tiny_file_system_is_below_the_floor_before_anything_is_made() {
    let Some(sandbox) = small("1M") else { return };
    let create = "tenant create acme --net-id 3 --subnet 10.240.3.0/24";
    assert_eq!(sandbox.refused(create, 4), "disk_floor");
    assert!(!sandbox.root().join("tenants").exists());
    assert!(sandbox.links("br-").is_empty());
}

#[test]
fn on_a_full_disk_nothing_starts_and_what_runs_can_be_stopped_and_destroyed() {
    let Some(sandbox) = small("64M") else { return };
    sandbox.ok("node set disk-floor-mib 1");
    sandbox.pool("sim");
    let (running, ready) = (sandbox.instance("acme/web"), sandbox.instance("acme/web"));
    sandbox.ok(&format!("instance start {running}"));
    let record = |path: &str| {
        let id = path.rsplit('/').next().unwrap_or_default();
        fs::read(sandbox.root().join(format!("tenants/acme/pools/web/instances/{id}/instance.json")))
    };
    let before = record(&ready).expect("a record");
    // Everything that there is, but for a few pages: what stop and destroy must write.
    let ballast = sandbox.root().join("ballast");
    let free = mvm::vm::room::free_mib(sandbox.root()).expect("free space");
    fs::write(&ballast, vec![0; usize::try_from(free << 20).expect("a size")]).expect("ballast");
    for command in [
        format!("instance start {ready}"),
        "instance create acme/web".to_owned(),
        "pool create acme/other --vmm sim".to_owned(),
    ] {
        assert_eq!(sandbox.refused(&command, 4), "disk_floor", "{command}");
    }
    assert!(record(&ready).expect("a record") == before, "a refusal leaves the record as it was");
    sandbox.ok(&format!("instance stop {running} --force"));
    sandbox.ok(&format!("instance destroy {ready} --yes --wipe-volumes"));
    fs::remove_file(&ballast).expect("it can be removed");
    sandbox.ok("node recover");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn a_disk_that_fills_in_the_middle_of_a_write_loses_nothing() {
    let Some(sandbox) = small("64M") else { return };
    sandbox.ok("node set disk-floor-mib 0");
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let ballast = sandbox.root().join("ballast");
    // To the last page: even the intent finds no place.
    let mut file = fs::File::create(&ballast).expect("ballast");
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    let refused = sandbox.run(&format!("instance start {path} --json"));
    let (exit, code) = code(&refused);
    assert!(matches!(exit, Some(1 | 4)), "{exit:?} {code}");
    assert!(["disk_full", "disk_floor"].contains(&code.as_str()), "{code}");
    drop(file);
    fs::remove_file(&ballast).expect("it can be removed");
    assert_eq!(sandbox.states(), [format!("{path} ready")]);
    sandbox.ok(&format!("instance start {path}"));
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn who_is_not_root_is_told_so() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let program = sandbox.root().join("mvm");
    fs::copy(env!("CARGO_BIN_EXE_mvm"), &program).expect("a copy that nobody may run");
    let run = |root: &Path, arguments: &str| {
        let mut command = Command::new(&program);
        command.args(arguments.split(' ')).arg("--json").arg("--root").arg(root).stdin(Stdio::null());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        code(&command.uid(65_534).gid(65_534).output().expect("mvm runs"))
    };
    // The root of somebody else: not even its name can be looked at.
    let others = run(sandbox.root(), "tenant list");
    assert_eq!((others.0, others.1.as_str()), (Some(5), "permission"), "{}", others.1);
    // A root of one's own: the network needs rights.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(sandbox.root(), fs::Permissions::from_mode(0o755)).expect("it can be opened");
    let own = tempfile::tempdir().expect("a folder");
    fs::set_permissions(own.path(), fs::Permissions::from_mode(0o777)).expect("it can be opened");
    let made = run(&own.path().join("root"), "tenant create acme --net-id 4 --subnet 10.240.4.0/24");
    assert_eq!((made.0, made.1.as_str()), (Some(5), "network_environment"), "{}", made.1);
    assert!(!own.path().join("root/tenants/acme").exists());
}

#[test]
fn without_kvm_firecracker_is_refused_before_any_effect_and_the_simulated_one_runs() {
    if support::firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("firecracker");
    let path = sandbox.instance("acme/web");
    own_dev(&[NULL, URANDOM, TUN]);
    assert_eq!(sandbox.refused(&format!("instance start {path}"), 5), "no_kvm");
    assert_eq!(sandbox.states(), [format!("{path} ready")]);
    sandbox.ok("pool create acme/sim --vmm sim --mem 128 --data-disk 0");
    sandbox.import("acme/sim", "");
    let sim = sandbox.instance("acme/sim");
    sandbox.ok(&format!("instance start {sim}"));
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn without_tun_a_start_says_what_is_missing() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    own_dev(&[NULL, URANDOM]);
    let word = sandbox.refused(&format!("instance start {path}"), 5);
    assert_eq!(word, "network_environment");
    assert_eq!(sandbox.states(), [format!("{path} ready")]);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn without_nft_nothing_is_half_made() {
    let Some(sandbox) = Sandbox::new() else { return };
    own_mounts();
    let program = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].iter().find(|path| Path::new(path).exists());
    let place = fs::canonicalize(program.expect("nft is here")).expect("a path");
    // A file that cannot be run lies over it.
    let over = sandbox.root().join("no-nft");
    fs::write(&over, "").expect("a file");
    run("mount", &["--bind", &over.display().to_string(), &place.display().to_string()]);
    let word = sandbox.refused("tenant create acme --net-id 3 --subnet 10.240.3.0/24", 5);
    assert_eq!(word, "network_environment");
    run("umount", &[&place.display().to_string()]);
    assert!(sandbox.ok("tenant list").as_array().is_some_and(Vec::is_empty));
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn a_foreign_bridge_or_tap_is_in_the_way_and_stays() {
    let Some(sandbox) = Sandbox::new() else { return };
    run("ip", &["link", "add", "br-tenant-4", "type", "bridge"]);
    let create = "tenant create globex --net-id 4 --subnet 10.240.4.0/24";
    assert_eq!(sandbox.refused(create, 4), "foreign");
    assert!(sandbox.ok("tenant list").as_array().is_some_and(Vec::is_empty));
    assert_eq!(sandbox.links("br-"), ["br-tenant-4"]);
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    run("ip", &["tuntap", "add", "tn3i3", "mode", "tap"]);
    run("ip", &["link", "set", "tn3i3", "up"]);
    assert_eq!(sandbox.refused(&format!("instance start {path}"), 4), "foreign");
    sandbox.ok(&format!("instance destroy {path} --yes --wipe-volumes"));
    assert_eq!(sandbox.links("tn"), ["tn3i3"], "a foreign TAP is never removed");
    assert_eq!(sandbox.links("br-tenant-4"), ["br-tenant-4"]);
}

#[test]
fn a_lock_that_is_held_for_ever_names_its_holder() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let lock = format!("instance.{}", path.replace('/', "."));
    let lock = sandbox.root().join("locks").join(lock);
    let held = fs::File::options().write(true).create(true).truncate(true).open(&lock).expect("a lock");
    held.lock().expect("it is free");
    let start = format!("instance start {path} --json");
    let output = sandbox.command(&start).env("MVM_LOCK_TIMEOUT_MS", "50").output().expect("mvm runs");
    assert_eq!(code(&output), (Some(4), "locked".into()));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains(&format!("locked by pid {} (", std::process::id()))
    );
    drop(held);
    sandbox.ok(&format!("instance start {path}"));
}

#[test]
fn long_ids_and_a_long_root_work() {
    let Some(sandbox) = Sandbox::new() else { return };
    let label = |first: &str| format!("{first}{}", "x".repeat(62));
    let (tenant, pool) = (label("t"), label("p"));
    let root: PathBuf = sandbox.root().join("d".repeat(100)).join("e".repeat(60));
    fs::create_dir_all(&root).expect("a long folder");
    fs::write(root.join(".throw-away"), "").expect("a mark");
    let ok = |arguments: &str| {
        let output = sandbox.command(arguments).arg("--root").arg(&root).arg("--json").output().expect("mvm");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default()
    };
    let (kernel, rootfs) = sandbox.artifacts();
    ok(&format!("tenant create {tenant} --net-id 4095 --subnet 10.255.255.248/29"));
    ok(&format!("pool create {tenant}/{pool} --vmm sim --mem 128 --data-disk 8"));
    ok(&format!("pool import {tenant}/{pool} --kernel {} --rootfs {}", kernel.display(), rootfs.display()));
    let path = ok(&format!("instance create {tenant}/{pool}"))["path"].as_str().expect("a path").to_owned();
    let started = ok(&format!("instance start {path}"));
    assert_eq!(started["status"], "running");
    assert_eq!(started["net"]["tap_dev"], "tn4095i3");
    ok(&format!("instance stop {path}"));
    ok(&format!("tenant destroy {tenant} --yes --wipe-volumes"));
    assert!(sandbox.links("tn").is_empty() && sandbox.links("br-").is_empty());
}

#[test]
fn a_vmm_outlives_its_starters_session() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    // A shell with a session of its own starts it, and all of that session is killed.
    let mut shell = Command::new("setsid");
    shell.arg("sh").arg("-c").arg("\"$0\" \"$@\"; kill -9 0").arg(env!("CARGO_BIN_EXE_mvm"));
    shell.args(["instance", "start", &path, "--root"]).arg(sandbox.root());
    let output = shell.output().expect("it runs");
    assert!(!output.status.success(), "the session was killed");
    assert_eq!(sandbox.states(), [format!("{path} running")]);
    assert_eq!(sandbox.vmms().len(), 1);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn recovery_reclaims_an_orphan_of_every_kind_and_leaves_what_lives() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let (alive, lost) = (sandbox.instance("acme/web"), sandbox.instance("acme/web"));
    for path in [&alive, &lost] {
        sandbox.ok(&format!("instance start {path}"));
    }
    let before = sandbox.ok(&format!("instance info {alive}"));
    // The second one's folder is lost, and with it everything that knows of its VMM, TAP, directory, room and lease.
    let id = lost.rsplit('/').next().unwrap_or_default();
    fs::remove_dir_all(sandbox.root().join("tenants/acme/pools/web/instances").join(id)).expect("a folder");
    fs::create_dir_all(sandbox.root().join("run/firecracker/tn3i9/root")).expect("a folder");
    fs::write(sandbox.root().join("reservations/tn3i8.1c.128m.8d"), "").expect("a reservation");
    fs::write(sandbox.root().join("tenants/.new-x.4194305"), "").expect("a leftover");
    fs::write(sandbox.root().join("locks/tenant.nobody"), "").expect("a lock");
    let lock = format!("instance.{}", lost.replace('/', "."));
    assert!(sandbox.root().join("locks").join(&lock).exists());
    run("ip", &["link", "add", "br-tenant-77", "address", "02:fc:00:4d:00:01", "type", "bridge"]);
    let recovered = sandbox.ok("node recover");
    assert!(sandbox.leaks().is_empty(), "{:?} after {recovered:#}", sandbox.leaks());
    assert_eq!(sandbox.ok(&format!("instance info {alive}")), before, "what lives is left alone");
    assert_eq!(sandbox.vmms().len(), 1);
    assert!(sandbox.links("br-tenant-77").is_empty(), "a bridge of mvm's without a tenant");
    assert!(!sandbox.root().join("locks/tenant.nobody").exists());
    assert!(!sandbox.root().join("locks").join(&lock).exists());
    assert_eq!(
        sandbox.ok("node recover")["reclaimed"],
        serde_json::json!([]),
        "a second time there is nothing"
    );
}

#[test]
fn recovery_goes_on_past_what_it_cannot_remove() {
    let Some(sandbox) = Sandbox::new() else { return };
    own_mounts();
    sandbox.pool("sim");
    let lost = sandbox.instance("acme/web");
    let root = sandbox.root();
    let place = |name: &str| root.join(name);
    let id = lost.rsplit('/').next().unwrap_or_default();
    fs::remove_dir_all(place("tenants/acme/pools/web/instances").join(id)).expect("a folder");
    // Of each kind one that cannot be removed, and one that comes after it and can.
    let stuck = ["run/firecracker/tn3i20/root", "tenants/.gone-a.4194305"].map(place);
    for folder in
        stuck.iter().chain(&["run/firecracker/tn3i21/root", "locks/tenant.nobody", "reservations"].map(place))
    {
        fs::create_dir_all(folder).expect("a folder");
    }
    for folder in &stuck {
        run("mount", &["-t", "tmpfs", "tmpfs", &folder.display().to_string()]);
    }
    for name in [
        "tenants/.gone-b.4194305",
        "locks/tenant.noone",
        "tenants/acme/leases/2.json",
        "reservations/tn3i2.1c.128m.8d",
    ] {
        fs::write(place(name), "").expect("a file");
    }
    let output = sandbox.run("node recover --json");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1), "{said:#}");
    let failed = said["failed"].as_array().expect("lines");
    let about = ["unfinished files: ", "leases of acme: ", "slot tn3i20: ", "locks: "];
    assert_eq!(failed.len(), about.len(), "{said:#}");
    for subject in about {
        let is_it = |line: &serde_json::Value| line.as_str().is_some_and(|line| line.starts_with(subject));
        assert!(failed.iter().any(is_it), "{subject} in {said:#}");
    }
    let busy = |line: &serde_json::Value| line.as_str().is_some_and(|line| line.contains("busy"));
    assert!(failed.iter().any(busy), "the reason is said: {said:#}");
    for gone in ["tenants/.gone-b.4194305", "run/firecracker/tn3i21", "locks/tenant.noone"] {
        assert!(!place(gone).exists(), "{gone}");
    }
    assert!(!place("tenants/acme/leases/3.json").exists(), "the lease of the lost one");
    assert!(place("reservations/tn3i2.1c.128m.8d").exists(), "whose it is cannot be read");
    let repair = sandbox.run("net repair --json");
    let repaired: serde_json::Value = serde_json::from_slice(&repair.stdout).expect("JSON");
    assert_eq!(repair.status.code(), Some(1));
    assert_eq!(repaired["failed"].as_array().map(Vec::len), Some(1), "{repaired:#}");
    for folder in &stuck {
        run("umount", &[&folder.display().to_string()]);
    }
    fs::remove_dir(place("locks/tenant.nobody")).expect("it can be removed");
    fs::remove_file(place("tenants/acme/leases/2.json")).expect("it can be removed");
    sandbox.ok("node recover");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn a_read_only_file_system_is_said_with_the_way_back() {
    let Some(sandbox) = small("64M") else { return };
    sandbox.ok("node set disk-floor-mib 1");
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let root = sandbox.root().display().to_string();
    run("mount", &["-o", "remount,ro", &root]);
    let start = format!("instance start {path}");
    assert_eq!(sandbox.refused(&start, 5), "read_only");
    let said = String::from_utf8_lossy(&sandbox.run(&start).stderr).into_owned();
    assert!(said.contains("lies on a read-only file system"), "{said}");
    assert_eq!(sandbox.ok(&format!("instance why {path}"))["start_refused"]["code"], "read_only");
    assert_eq!(sandbox.states(), [format!("{path} ready")], "what only reads works");
    // The remedy is what it says.
    let (_, command) = said.trim().split_once("; then ").expect("a remedy");
    run("sh", &["-c", command]);
    sandbox.ok(&start);
}

#[test]
fn destroy_works_from_every_state_also_when_cut_off() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let bring: [(&str, &[(&str, &str)]); 6] = [
        ("ready", &[]),
        ("running", &[("start", "")]),
        ("stopped", &[("start", ""), ("stop", "")]),
        ("cut off in a start", &[("start", "start.tap")]),
        ("cut off in a stop", &[("start", ""), ("stop", "teardown.tap")]),
        ("cut off in a destroy", &[("start", ""), ("destroy --yes", "discard.network")]),
    ];
    for (name, steps) in bring {
        let path = sandbox.instance("acme/web");
        for (verb, failpoint) in steps {
            drop(sandbox.run_with(&format!("instance {verb} {path}"), failpoint));
        }
        sandbox.ok(&format!("instance destroy {path} --yes --wipe-volumes"));
        assert!(sandbox.states().is_empty(), "{name}");
        assert!(sandbox.leaks().is_empty(), "{name}: {:?}", sandbox.leaks());
    }
}

#[test]
fn a_lost_data_disk_is_not_replaced_by_an_empty_one() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let id = path.rsplit('/').next().unwrap_or_default();
    let disk = sandbox.root().join(format!("tenants/acme/pools/web/instances/{id}/volumes/data.ext4"));
    let elsewhere = sandbox.root().join("elsewhere");
    fs::rename(&disk, &elsewhere).expect("it can be moved");
    let would = || sandbox.ok(&format!("instance why {path}"))["start_refused"]["code"].clone();
    assert_eq!(
        (would(), sandbox.refused(&format!("instance start {path}"), 1)),
        ("disk_lost".into(), "disk_lost".into())
    );
    assert!(!disk.exists());
    fs::write(&disk, "").expect("a file");
    assert_eq!(sandbox.refused(&format!("instance start {path}"), 1), "disk_lost");
    fs::rename(&elsewhere, &disk).expect("it can be moved");
    sandbox.ok(&format!("instance start {path}"));
}

#[test]
fn rules_that_somebody_flushed_are_there_again_before_a_guest_starts() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    run("nft", &["flush", "ruleset"]);
    sandbox.ok(&format!("instance start {path}"));
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn doctor_fixes_settings_when_asked() {
    let Some(sandbox) = Sandbox::new() else { return };
    run(
        "nft",
        &[
            "add table inet docker; add chain inet docker f { type filter hook forward priority 0; policy drop; }",
        ],
    );
    assert_eq!(sandbox.checked("forward chains").0, "warn");
    run("nft", &["delete", "table", "inet", "docker"]);
    assert_eq!(sandbox.checked("forward chains").0, "ok");
    let conntrack = Path::new("/proc/sys/net/netfilter/nf_conntrack_max");
    if fs::write(conntrack, "1000").is_err() {
        return support::skip("nf_conntrack_max cannot be set in a network namespace here");
    }
    assert_eq!(sandbox.checked("conntrack").0, "warn");
    sandbox.ok("doctor --fix");
    assert_eq!(sandbox.checked("conntrack").0, "ok");
}
