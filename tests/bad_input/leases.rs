//! Leases that are gone, are of nobody, or name a place that another one has, too.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{self, Sandbox};

/// What mends them, each in its own way.
const MENDERS: [&str; 2] = ["node recover", "net repair"];

fn lease(sandbox: &Sandbox, path: &str) -> PathBuf {
    let tenant = path.split('/').next().unwrap_or_default();
    sandbox.root().join(format!("tenants/{tenant}/leases/{}.json", net(sandbox, path)["offset"]))
}

fn net(sandbox: &Sandbox, path: &str) -> Value {
    sandbox.ok(&format!("instance info {path}"))["net"].clone()
}

fn record(sandbox: &Sandbox, path: &str) -> PathBuf {
    let [tenant, pool, id] = path.split('/').collect::<Vec<_>>()[..] else { panic!("{path} is a path") };
    sandbox.root().join(format!("tenants/{tenant}/pools/{pool}/instances/{id}/instance.json"))
}

fn status(sandbox: &Sandbox, path: &str) -> Value {
    sandbox.ok(&format!("instance info {path}"))["status"].clone()
}

fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut record: Value = serde_json::from_slice(&fs::read(file).expect("a record")).expect("JSON");
    change(&mut record);
    fs::write(file, record.to_string()).expect("a record");
}

/// What a command that goes on with all else, and then says what was wrong, could not do.
fn failed(sandbox: &Sandbox, command: &str) -> String {
    let output = sandbox.run(&format!("{command} --json"));
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1), "{command}: {said}");
    said["failed"].to_string()
}

/// It runs, or has its place, where its record says, and nobody else gets that.
#[test]
fn a_lease_that_is_gone_comes_back_and_ends_nobody() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let there = [(); 3].map(|()| sandbox.instance("acme/web"));
    let [runs, sleeps, stopped] = &there;
    for path in &there {
        sandbox.ok(&format!("instance start {path}"));
    }
    sandbox.ok(&format!("instance sleep {sleeps}"));
    sandbox.ok(&format!("instance stop {stopped}"));
    let addresses = there.each_ref().map(|path| net(&sandbox, path)["guest_ip"].clone());
    for (mender, egress) in MENDERS.into_iter().zip(["open", "deny"]) {
        for path in &there {
            fs::remove_file(lease(&sandbox, path)).expect("it is there");
        }
        let another = sandbox.instance("acme/web");
        assert!(!addresses.contains(&net(&sandbox, &another)["guest_ip"]), "{another}");
        sandbox.ok(&format!("instance destroy {another} --yes"));
        sandbox.ok(&format!("pool update acme/web --egress {egress}"));
        sandbox.ok("net verify");
        let settled = sandbox.ok(mender)["settled"].to_string();
        assert!(there.iter().all(|path| settled.contains(&format!("{path}: its lease"))), "{settled}");
        assert_eq!(status(&sandbox, runs), "running", "{mender}");
        sandbox.ok(&format!("instance wake {sleeps}"));
        sandbox.ok(&format!("instance sleep {sleeps}"));
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    }
    // Nor has it to be asked for first.
    for (verb, path) in [("start", stopped), ("wake", sleeps)] {
        let lease = lease(&sandbox, path);
        fs::remove_file(&lease).expect("it is there");
        let why = sandbox.ok(&format!("instance why {path}"));
        assert_eq!(why[format!("{verb}_refused")], Value::Null, "{why}");
        sandbox.ok(&format!("instance {verb} {path}"));
        assert!(status(&sandbox, path) == "running" && lease.exists(), "{verb}");
    }
}

#[test]
fn one_whose_lease_is_gone_is_destroyed_with_all_that_it_has() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    fs::remove_file(lease(&sandbox, &path)).expect("it is there");
    sandbox.ok(&format!("instance destroy {path} --yes"));
    assert!(sandbox.leaks().is_empty() && sandbox.vmms().is_empty(), "{:?}", sandbox.leaks());
    sandbox.ok("net verify");
}

#[test]
fn one_that_somebody_works_on_keeps_its_slot_without_a_lease() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let (lease, running) = (lease(&sandbox, &path), sandbox.vmms());
    fs::remove_file(&lease).expect("it is there");
    let lock = sandbox.root().join(format!("locks/instance.{}", path.replace('/', ".")));
    let lock = fs::File::open(lock).expect("a lock");
    lock.lock().expect("nobody has it");
    for mender in MENDERS {
        sandbox.ok(mender);
        assert!(!lease.exists() && sandbox.vmms() == running, "{mender}");
    }
    drop(lock);
    sandbox.ok("net repair");
    assert!(lease.exists() && sandbox.vmms() == running);
}

/// Neither what it says nor a lease tells which slot it has: any that belongs to nobody may be its.
#[test]
fn nothing_is_taken_from_one_with_neither_record_nor_lease() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let (record, running) = (record(&sandbox, &path), sandbox.vmms());
    fs::remove_file(lease(&sandbox, &path)).expect("it is there");
    let whole = fs::read(&record).expect("a record");
    fs::write(&record, "{").expect("it can be damaged");
    assert_eq!(sandbox.refused("instance create acme/web", 1), "damaged", "its address would be the first");
    for mender in MENDERS {
        let builders = sandbox.root().join("run/firecracker/tn3i2/root");
        fs::create_dir_all(&builders).expect("a folder");
        let failed = failed(&sandbox, mender);
        assert!(!builders.exists(), "it is no instance's");
        assert!(failed.contains("slot tn3i3: ") && failed.contains("instance.json is damaged"), "{failed}");
        assert_eq!(sandbox.vmms(), running, "{mender}");
    }
    fs::write(&record, whole).expect("it can be put back");
    sandbox.ok("node recover");
    assert_eq!((status(&sandbox, &path), sandbox.vmms()), ("running".into(), running));
}

/// A folder of one tenant's pool that cannot be listed: what is in it may be there, and is in nobody's way.
#[test]
fn a_pool_that_cannot_be_listed_keeps_its_leases_and_nobody_elses() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let kept = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {kept}"));
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    sandbox.ok("pool create globex/web --vmm sim --mem 128 --data-disk 8 --insecure");
    let [gone, lost] = [(); 2].map(|()| sandbox.instance("globex/web"));
    let (of_kept, of_gone, of_lost) =
        (lease(&sandbox, &kept), lease(&sandbox, &gone), lease(&sandbox, &lost));
    fs::remove_dir_all(record(&sandbox, &gone).parent().expect("a folder")).expect("it is there");
    fs::remove_file(&of_lost).expect("it is there");
    let (running, aside) = (sandbox.vmms(), sandbox.root().join("aside"));
    let whole = fs::read(&of_kept).expect("a lease");
    let in_its_place: [fn(&Path) -> io::Result<()>; 2] =
        [|path| fs::write(path, ""), |path| symlink("/nowhere", path)];
    for (folder, put) in ["", "/instances"].into_iter().flat_map(|below| in_its_place.map(|put| (below, put)))
    {
        let folder = sandbox.root().join(format!("tenants/acme/pools/web{folder}"));
        fs::rename(&folder, &aside).expect("it can be moved");
        put(&folder).expect("it can be made");
        let said = failed(&sandbox, "node recover");
        assert!(said.contains("acme/web: ") && said.contains(&kept), "{said}");
        assert!(of_kept.exists() && !of_gone.exists() && of_lost.exists(), "{said}");
        fs::remove_file(&of_kept).expect("it is there");
        // Nothing in the kernel is repaired by half a picture.
        assert!(!sandbox.run("net repair").status.success());
        assert!(failed(&sandbox, "node recover").contains("slot tn3i3: "));
        assert_eq!(sandbox.vmms(), running);
        fs::write(&of_kept, &whole).expect("it can be put back");
        fs::remove_file(&folder).expect("it is there");
        fs::rename(&aside, &folder).expect("it can be moved back");
    }
    fs::remove_file(&of_kept).expect("it is there");
    assert!(sandbox.ok("node recover")["settled"].to_string().contains(&format!("{kept}: its lease")));
    assert_eq!((status(&sandbox, &kept), sandbox.vmms()), ("running".into(), running));
}

/// Whatever it is asked for, nothing in that slot is touched in its name.
#[test]
fn one_whose_place_another_one_holds_is_said_and_takes_nothing_from_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("pool create acme/other --vmm sim --mem 128 --data-disk 8 --egress deny --insecure");
    sandbox.import("acme/other", "quiet");
    let holds = sandbox.instance("acme/web");
    let [made, sleeps, died] = [(); 3].map(|()| sandbox.instance("acme/other"));
    for path in [&holds, &sleeps, &died] {
        sandbox.ok(&format!("instance start {path}"));
    }
    sandbox.ok(&format!("instance sleep {sleeps}"));
    let taps = [&holds, &died].map(|path| net(&sandbox, path)["tap_dev"].clone());
    for path in [&made, &sleeps, &died] {
        fs::remove_file(lease(&sandbox, path)).expect("it is there");
        edit(&record(&sandbox, path), |record| record["net"] = net(&sandbox, &holds));
    }
    let vmms = sandbox.vmms();
    let (pid, _) = vmms.iter().find(|(_, tap)| taps[1] == **tap).expect("it runs");
    support::kill_and_wait(*pid);
    let running: Vec<_> = vmms.into_iter().filter(|(_, tap)| taps[0] == **tap).collect();
    sandbox.ok("instance list");
    assert_eq!(sandbox.vmms(), running);
    for mender in MENDERS {
        let failed = failed(&sandbox, mender);
        let is_said = |path: &&String| {
            failed.contains(&format!("lease of {path}: "))
                && failed.contains(&format!("that of {holds}, too"))
        };
        assert!([&made, &sleeps, &died].iter().all(is_said), "{failed}");
        assert_eq!(sandbox.vmms(), running, "{mender}");
        // Rules are for who holds it alone.
        sandbox.ok("net verify");
    }
    // Nor has a sleeper its place there, when its holder leaves it for a while.
    sandbox.ok(&format!("instance stop {holds}"));
    failed(&sandbox, "node recover");
    let reserved = fs::read_dir(sandbox.root().join("reservations")).expect("a folder").flatten();
    let names: Vec<_> = reserved.map(|entry| entry.file_name()).collect();
    assert!(names.is_empty(), "{names:?}");
    sandbox.ok(&format!("instance start {holds}"));
    let running = sandbox.vmms();
    assert_eq!(sandbox.refused(&format!("instance start {made}"), 1), "damaged");
    assert_eq!(sandbox.refused(&format!("instance wake {sleeps}"), 1), "damaged");
    sandbox.ok(&format!("instance stop {sleeps}"));
    for path in [&made, &sleeps, &died] {
        sandbox.ok(&format!("instance destroy {path} --yes"));
        assert_eq!(sandbox.vmms(), running, "{path}");
    }
    assert_eq!(status(&sandbox, &holds), "running");
    sandbox.ok("node recover");
    sandbox.ok("net verify");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// The place of another tenant's, under a number that is free in its own.
#[test]
fn one_that_names_a_place_of_another_tenants_gets_nothing_there() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    sandbox.ok("pool create globex/web --vmm sim --mem 128 --data-disk 8 --insecure");
    sandbox.import("globex/web", "quiet");
    let others = sandbox.instance("globex/web");
    sandbox.ok(&format!("instance start {others}"));
    let path = sandbox.instance("acme/web");
    let running = sandbox.vmms();
    for takes_own in [false, true] {
        if takes_own {
            fs::remove_file(lease(&sandbox, &path)).expect("it is there");
        }
        edit(&record(&sandbox, &path), |record| record["net"] = net(&sandbox, &others));
        assert!(failed(&sandbox, "node recover").contains("is not the TAP of its tenant's offset 3"));
        assert_eq!(sandbox.refused(&format!("instance start {path}"), 1), "damaged");
    }
    sandbox.ok(&format!("instance destroy {path} --yes"));
    sandbox.ok("net repair");
    assert_eq!((status(&sandbox, &others), sandbox.vmms()), ("running".into(), running));
}

/// Neither of two has a lease, and both name one place: who runs there is not ended for the other one.
#[test]
fn two_of_one_place_without_a_lease_are_both_left_as_they_are() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let [a, b] = [(); 2].map(|()| sandbox.instance("acme/web"));
    for (runs, idle) in [(&a, &b), (&b, &a)] {
        sandbox.ok(&format!("instance start {runs}"));
        let (own, running) = (fs::read(record(&sandbox, idle)).expect("a record"), sandbox.vmms());
        let leases = [runs, idle].map(|path| lease(&sandbox, path));
        let kept = leases.each_ref().map(|lease| fs::read(lease).expect("a lease"));
        leases.iter().for_each(|lease| fs::remove_file(lease).expect("it is there"));
        edit(&record(&sandbox, idle), |record| record["net"] = net(&sandbox, runs));
        for mender in MENDERS {
            let failed = failed(&sandbox, mender);
            assert!([&a, &b].iter().all(|path| failed.contains(&format!("that of {path}, too"))), "{failed}");
            assert_eq!(sandbox.vmms(), running, "{mender}");
        }
        assert_eq!(sandbox.refused(&format!("instance start {idle}"), 1), "damaged");
        assert_eq!(sandbox.vmms(), running);
        fs::write(record(&sandbox, idle), own).expect("it can be put back");
        leases.iter().zip(kept).for_each(|(lease, kept)| fs::write(lease, kept).expect("it can be put back"));
        sandbox.ok(&format!("instance stop {runs}"));
    }
    sandbox.ok("node recover");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// A lease that cannot be read, or is another one's, says nothing: its instance is ended by its record, and with all that it has.
#[test]
fn one_whose_lease_is_damaged_starts_no_more_and_can_be_ended() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let other = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {other}"));
    let running = sandbox.vmms();
    let others = fs::read(lease(&sandbox, &other)).expect("a lease");
    for content in [b"{".to_vec(), others] {
        let path = sandbox.instance("acme/web");
        sandbox.ok(&format!("instance start {path}"));
        let lease = lease(&sandbox, &path);
        fs::write(&lease, content).expect("a lease");
        assert!(failed(&sandbox, "node recover").contains("is damaged"));
        sandbox.ok("net verify --deep");
        assert_eq!(sandbox.vmms().len(), 2);
        sandbox.ok(&format!("instance stop {path} --force"));
        assert_eq!(sandbox.vmms(), running);
        assert_eq!(sandbox.refused(&format!("instance start {path}"), 1), "damaged");
        sandbox.ok(&format!("instance destroy {path} --yes"));
        assert!(!lease.exists() && sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
        sandbox.ok("node recover");
    }
}

/// What was given back stays so, and what was lost before that is still its own.
#[test]
fn a_destroy_that_is_cut_off_has_its_slot_until_it_gives_it_back() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    for (point, ended) in [("destroy.intent", false), ("discard.network", true), ("discard.lease", true)] {
        for command in ["node recover", "instance destroy PATH --yes", "net repair"] {
            let path = sandbox.instance("acme/web");
            sandbox.ok(&format!("instance start {path}"));
            let lease = lease(&sandbox, &path);
            assert!(support::was_killed(&sandbox.run_with(&format!("instance destroy {path} --yes"), point)));
            let _ = fs::remove_file(&lease);
            assert_eq!(sandbox.vmms().is_empty(), ended, "{point}");
            sandbox.ok(&command.replace("PATH", &path));
            sandbox.ok("node recover");
            assert!(
                sandbox.leaks().is_empty() && sandbox.vmms().is_empty(),
                "{point}: {:?}",
                sandbox.leaks()
            );
            sandbox.ok("net verify");
        }
    }
    // One whose line the log does not take is no less begun.
    let path = sandbox.instance("acme/web");
    let lease = lease(&sandbox, &path);
    let destroy = format!("instance destroy {path} --yes");
    assert!(support::was_killed(&sandbox.run_with(&destroy, "discard.lease")));
    let log = sandbox.root().join("tenants/acme/audit.log");
    let whole = fs::read(&log).expect("a log");
    fs::write(&log, "junk\n").expect("a log");
    assert_eq!(sandbox.refused(&destroy, 1), "audit_broken");
    sandbox.run("net repair");
    assert!(!lease.exists(), "it was given back");
    fs::write(&log, whole).expect("a log");
    sandbox.ok("node recover");
    assert!(sandbox.states().is_empty() && sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// Its place was leased to another one since.
#[test]
fn one_that_was_never_wholly_made_has_nothing_to_give_back() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    assert!(support::was_killed(&sandbox.run_with("instance create acme/web", "create.intent")));
    let instances = fs::read_dir(sandbox.root().join("tenants/acme/pools/web/instances")).expect("a folder");
    let made = instances.flatten().next().expect("one").file_name().into_string().expect("a name");
    let other = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {other}"));
    let (lease, running) = (lease(&sandbox, &other), sandbox.vmms());
    assert!(lease.ends_with("3.json"), "it has the place that was chosen before");
    sandbox.ok(&format!("instance destroy acme/web/{made} --yes"));
    assert!(lease.exists() && sandbox.vmms() == running);
    assert_eq!(sandbox.states(), [format!("{other} running")]);
    sandbox.ok("net verify");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}
