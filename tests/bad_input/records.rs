//! Audit logs and records that are not what mvm wrote: edited, damaged, put there by somebody, or in the way.

use std::fs;

use crate::support::{self, Sandbox};

/// A whole log in the place of another whole one: a head that was kept is of neither by its name alone.
#[test]
fn a_kept_head_is_of_one_tenant_and_of_no_later_one_of_its_name() {
    let Some(sandbox) = Sandbox::new() else { return };
    let create = "tenant create acme --net-id 3 --subnet 10.240.3.0/24";
    sandbox.ok(create);
    let kept = sandbox.root().join("kept.json");
    fs::write(&kept, sandbox.ok("tenant audit acme --head").to_string()).expect("a head");
    let against = format!("tenant audit acme --verify --against {}", kept.display());
    sandbox.ok("tenant destroy acme --yes");
    sandbox.ok(&against);
    sandbox.ok(create);
    assert_eq!(sandbox.refused(&against, 1), "audit_other");
    fs::write(sandbox.root().join("tenants/acme/audit.log"), "junk\n").expect("a log");
    assert_eq!(sandbox.refused(&against, 1), "audit_broken");
}

/// A log among those of destroyed tenants, of one that nobody destroyed.
#[test]
fn a_log_that_was_put_among_those_of_destroyed_tenants_is_not_believed() {
    let Some(sandbox) = Sandbox::new() else { return };
    for (id, number) in [("acme", 3), ("gone", 4)] {
        sandbox.ok(&format!("tenant create {id} --net-id {number} --subnet 10.240.{number}.0/24"));
    }
    sandbox.ok("tenant destroy gone --yes");
    sandbox.ok("tenant audit gone --verify");
    let head = sandbox.root().join("head.json");
    fs::write(&head, sandbox.ok("tenant audit acme --head").to_string()).expect("a head");
    let (own, kept) = (sandbox.root().join("tenants/acme"), sandbox.root().join("audit/acme-1700000000"));
    fs::rename(&own, &kept).expect("it can be moved");
    let against = format!("tenant audit acme --verify --against {}", head.display());
    for command in ["tenant audit acme --verify", "tenant audit acme --head", "tenant audit acme", &against] {
        assert_eq!(sandbox.refused(command, 1), "audit_broken", "{command}");
    }
    assert_eq!(sandbox.checked("audit logs").0, "fail");
    // Nor does it go by the clock.
    let mut gc = sandbox.command("node gc --json");
    let gc = gc.env("MVM_FIXED_CLOCK", "2199-01-01T00:00:00Z").output().expect("mvm runs");
    let said = String::from_utf8_lossy(&gc.stdout).into_owned();
    assert!(gc.status.code() == Some(1) && said.contains("does not end with its tenant's destroy"), "{said}");
    fs::rename(&kept, &own).expect("it can be moved back");
    sandbox.ok(&against);
}

#[test]
fn a_setting_that_no_command_has_set_is_said() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("node set max-vms 17");
    sandbox.ok("tenant update acme --max-conns 7 --pinned true");
    sandbox.ok("pool update acme/web --cpus 2");
    assert!(support::was_killed(&sandbox.run_with("pool update acme/web --cpus 3", "pool-update.saved")));
    // What that set is said of nobody, until it is closed and set again.
    let cpus = sandbox.root().join("tenants/acme/pools/web/pool.json");
    let vcpus = |to: &str| {
        let whole = fs::read_to_string(&cpus).expect("a record");
        let (before, rest) = whole.split_once("\"vcpus\": ").expect("it has some");
        let (_, after) = rest.split_once(',').expect("more follows");
        fs::write(&cpus, format!("{before}\"vcpus\": {to},{after}")).expect("a record");
        sandbox.checked("settings").0
    };
    assert_eq!((vcpus("5"), vcpus("3")), ("ok".to_owned(), "ok".to_owned()));
    sandbox.ok("node recover");
    sandbox.ok("pool update acme/web --cpus 4");
    assert_eq!((vcpus("5"), vcpus("4")), ("fail".to_owned(), "ok".to_owned()));
    let node = sandbox.ok("node info")["node_id"].as_str().unwrap_or_default().to_owned();
    for (file, from, to, said) in [
        (
            "node.json",
            "\"max_vms\": 17",
            "\"max_vms\": 18",
            format!("{node}: max_vms is 18, and was set to 17"),
        ),
        (
            "tenants/acme/tenant.json",
            "\"pinned\": true",
            "\"pinned\": false",
            "acme: pinned is false, and was set to true".to_owned(),
        ),
        // What it was made with.
        (
            "tenants/acme/tenant.json",
            "\"max_running\": 100",
            "\"max_running\": 101",
            "acme: quotas.max_running is 101, and was set to 100".to_owned(),
        ),
        (
            "tenants/acme/pools/web/pool.json",
            "\"insecure\": true",
            "\"insecure\": false",
            "acme/web: insecure is false, and was set to true".to_owned(),
        ),
    ] {
        let path = sandbox.root().join(file);
        let whole = fs::read_to_string(&path).expect("a record");
        assert!(whole.contains(from), "{whole}");
        fs::write(&path, whole.replace(from, to)).expect("a record");
        assert_eq!(sandbox.checked("settings"), ("fail".to_owned(), said));
        fs::write(&path, whole).expect("a record");
    }
    assert_eq!(sandbox.checked("settings").0, "ok");
    let whole = fs::read_to_string(&cpus).expect("a record");
    fs::write(&cpus, "{").expect("a record");
    let (level, said) = sandbox.checked("settings");
    assert!(
        level == "fail" && said.starts_with("acme/web: ") && said.contains("pool.json is damaged"),
        "{said}"
    );
    fs::write(&cpus, whole).expect("a record");
    // A log that is gone is not one that never began.
    let (log, aside) = (sandbox.root().join("node"), sandbox.root().join("aside"));
    fs::rename(&log, &aside).expect("it can be moved");
    assert_eq!(sandbox.checked("audit logs").0, "fail");
}

#[test]
fn a_damaged_log_is_said_by_who_looks_at_its_tenant() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    sandbox.ok("node set max-vms 17");
    assert_eq!(sandbox.checked("audit logs"), ("ok".to_owned(), "2 logs whole".to_owned()));
    let folder = sandbox.root().join("tenants/acme");
    let (log, head) = (folder.join("audit.log"), folder.join("audit.head"));
    let whole = [&log, &head].map(|file| fs::read_to_string(file).expect("a log"));
    let said = |code: &str| {
        for command in ["tenant info acme", "tenant audit acme"] {
            assert_eq!(sandbox.refused(command, 1), code, "{command}");
        }
        assert_eq!(sandbox.checked("audit logs").0, "fail");
    };
    fs::write(&log, whole[0].replace("tenant_net_id 3", "tenant_net_id 4")).expect("a log");
    assert_eq!(sandbox.refused("tenant audit acme", 1), "audit_broken");
    assert_eq!(sandbox.checked("audit logs").0, "fail");
    fs::write(&log, whole[0].lines().next().expect("a line")).expect("a log");
    said("audit_broken");
    fs::write(&log, &whole[0]).expect("a log");
    // A head is one place in a log: what says two is nobody's.
    fs::write(&head, whole[1].replace("\"count\":2", "\"count\":0")).expect("a head");
    said("damaged");
    assert_eq!(sandbox.refused("tenant update acme --max-conns 7", 1), "damaged");
    fs::write(&head, &whole[1]).expect("a head");
    sandbox.ok("tenant update acme --max-conns 7");
    // One that is begun anew goes by what was found, which it says.
    fs::remove_file(&log).expect("it is there");
    assert_eq!(sandbox.checked("settings").0, "fail");
    sandbox.ok("tenant audit acme --begin-anew --yes");
    assert_eq!(sandbox.checked("settings").0, "ok");
    let file = folder.join("tenant.json");
    let record = fs::read_to_string(&file).expect("a record");
    fs::write(&file, record.replace("\"max_conns\": 7", "\"max_conns\": 9")).expect("a record");
    let said = "acme: quotas.max_conns is 9, and was set to 7".to_owned();
    assert_eq!(sandbox.checked("settings"), ("fail".to_owned(), said));
    fs::write(&file, record).expect("a record");
    sandbox.ok("tenant audit acme --verify");
}

#[test]
fn a_line_that_nobody_wrote_destroys_no_tenant() {
    let Some(sandbox) = Sandbox::new() else { return };
    let create = "tenant create acme --net-id 3 --subnet 10.240.3.0/24";
    sandbox.ok(create);
    let log = sandbox.root().join("tenants/acme/audit.log");
    let whole = fs::read_to_string(&log).expect("a log");
    let last = whole.lines().last().expect("a line");
    fs::write(&log, format!("{whole}{}\n", last.replace("tenant.create", "tenant.destroy"))).expect("a log");
    assert_eq!(sandbox.refused(create, 1), "audit_broken");
    let recovered = sandbox.run("node recover --json");
    let said = String::from_utf8_lossy(&recovered.stdout).into_owned();
    assert!(recovered.status.code() == Some(1) && said.contains("is broken at line 3"), "{said}");
    assert!(log.exists());
    fs::write(&log, &whole).expect("a log");
    sandbox.ok("node recover");
    sandbox.ok(create);
}

#[test]
fn a_destroy_leaves_one_log_wherever_it_is_killed() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    assert!(support::was_killed(&sandbox.run_with("tenant destroy acme --yes", "tenant-destroy.kept")));
    sandbox.ok("node recover");
    assert_eq!(sandbox.ok("tenant list"), serde_json::json!([]));
    assert_eq!(fs::read_dir(sandbox.root().join("audit")).expect("a folder").count(), 1);
    sandbox.ok("tenant audit acme --verify");
}

#[test]
fn what_is_no_file_is_waited_for_by_nobody() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    for name in ["audit.log", "audit.head", "tenant.json"] {
        let (file, aside) = (sandbox.root().join("tenants/acme").join(name), sandbox.root().join("aside"));
        fs::rename(&file, &aside).expect("it can be moved");
        support::run("mkfifo", &[file.to_str().expect("a path")]);
        for command in ["tenant info acme", "tenant audit acme --verify"] {
            assert_eq!(sandbox.run(command).status.code(), Some(1), "{name}: {command}");
        }
        // It ends; what it does not need it need not read.
        sandbox.run("node recover");
        assert_eq!(sandbox.checked("audit logs").0, "fail", "{name}");
        fs::rename(&aside, &file).expect("it can be moved back");
        sandbox.ok("node recover");
        sandbox.ok("tenant audit acme --verify");
    }
}

#[test]
fn a_log_in_whose_place_something_else_lies_is_begun_anew() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    for name in ["audit.log", "audit.head"] {
        let file = sandbox.root().join("tenants/acme").join(name);
        fs::remove_file(&file).expect("it is there");
        fs::create_dir(&file).expect("a folder");
        assert_eq!(sandbox.run("tenant update acme --max-conns 7").status.code(), Some(1));
        let begun = sandbox.ok("tenant audit acme --begin-anew --yes");
        assert!(begun.to_string().contains(&format!("{name} is no file")), "{begun}");
        sandbox.ok("tenant audit acme --verify");
    }
    sandbox.ok("tenant update acme --max-conns 7");
}

#[test]
fn a_tenant_without_its_record_is_damaged_and_not_unknown() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    for (file, command) in [
        ("tenants/acme/pools/web/pool.json", "pool info acme/web"),
        ("tenants/acme/tenant.json", "tenant info acme"),
    ] {
        let (file, aside) = (sandbox.root().join(file), sandbox.root().join("aside"));
        fs::rename(&file, &aside).expect("it can be moved");
        assert_eq!(sandbox.refused(command, 1), "damaged", "{command}");
        fs::rename(&aside, &file).expect("it can be moved back");
        sandbox.ok(command);
    }
    assert_eq!(sandbox.refused("tenant info globex", 3), "not_found");
}

#[test]
fn what_goes_by_the_clock_is_written_down() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    sandbox.ok("tenant destroy acme --yes");
    // What cannot be read is in the way of nothing else.
    sandbox.pool("sim");
    fs::write(sandbox.root().join("tenants/acme/pools/web/pool.json"), "{").expect("a record");
    let later = |arguments: &str| {
        let mut command = sandbox.command(&format!("{arguments} --json"));
        command.env("MVM_FIXED_CLOCK", "2199-01-01T00:00:00Z").output().expect("mvm runs")
    };
    let kept = || fs::read_dir(sandbox.root().join("audit")).expect("a folder").count();
    assert_eq!(kept(), 1);
    let collected = later("node gc");
    let said: serde_json::Value = serde_json::from_slice(&collected.stdout).expect("JSON");
    assert_eq!(
        (collected.status.code(), &said["damaged"][0]["path"]),
        (Some(1), &"acme/web".into()),
        "{said}"
    );
    assert_eq!(kept(), 0);
    let log = sandbox.ok("node audit");
    let lines: Vec<_> = log.as_array().into_iter().flatten().collect();
    let phases: Vec<_> = lines.iter().map(|line| line["phase"].as_str().unwrap_or_default()).collect();
    assert_eq!(phases, ["intent", "done"]);
    let detail = lines[0]["detail"].as_str().unwrap_or_default();
    assert!(lines[0]["what"] == "node.audit.drop" && detail.ends_with(", kept for 90 days"), "{}", lines[0]);
    sandbox.ok("node set max-vms 17");
    sandbox.ok("node audit --verify");
}

#[test]
fn a_key_of_the_nodes_that_others_may_read_is_said() {
    use std::os::unix::fs::PermissionsExt;
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    assert_eq!(sandbox.checked("node-key").0, "ok", "there is none yet");
    sandbox.ok("tenant audit acme --head");
    let key = sandbox.root().join("node.key");
    let with = |mode: u32| {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("it is ours");
        sandbox.checked("node-key")
    };
    let (level, said) = with(0o644);
    assert!(level == "fail" && said.contains("node.key may be read by others"), "{said}");
    for signs in ["tenant audit acme --head", "net verify --report /dev/null"] {
        assert_eq!(sandbox.refused(signs, 1), "open_key", "{signs}");
    }
    assert_eq!(with(0o600).0, "ok");
    std::os::unix::fs::chown(&key, Some(65_534), None).expect("root may");
    assert_eq!(sandbox.checked("node-key").0, "fail");
    std::os::unix::fs::chown(&key, Some(0), None).expect("root may");
    fs::write(&key, "{").expect("a key");
    assert_eq!(sandbox.checked("node-key").0, "fail");
    // None is made where one is said to be.
    fs::remove_file(&key).expect("it is there");
    std::os::unix::fs::symlink("/nowhere", &key).expect("a link");
    assert_eq!(sandbox.checked("node-key").0, "fail");
    assert_eq!(sandbox.refused("tenant audit acme --head", 1), "damaged");
    assert!(key.is_symlink());
}
