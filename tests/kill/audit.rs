//! What is written of what was cut off, and logs that are begun anew.

use mvm::{
    infra::config::{Environment, Roots},
    store::{Lock, Sharing},
};
use serde_json::Value;

use crate::{
    Case, kill_everywhere,
    support::{Sandbox, was_killed},
};

fn lines(sandbox: &Sandbox, command: &str, is: impl Fn(&Value) -> bool) -> Vec<Value> {
    let log = sandbox.ok(command);
    log.as_array().into_iter().flatten().filter(|line| is(line)).cloned().collect()
}

#[test]
fn a_new_log_says_why_or_is_none() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    let log = sandbox.root().join("tenants/acme/audit.log");
    let mut points = Vec::new();
    loop {
        // Another line is broken each time: a word of an earlier time is not this one's.
        let record = points.len() + 2;
        for number in 0..record {
            sandbox.ok(&format!("tenant update acme --max-conns {}", 100 + number));
        }
        let text = std::fs::read_to_string(&log).expect("a log");
        let broken: Vec<String> = text
            .lines()
            .enumerate()
            .map(|(at, line)| if at + 1 == record { line.replace("acme", "ACME") } else { line.to_owned() })
            .collect();
        std::fs::write(&log, broken.join("\n") + "\n").expect("a log");
        let why = format!("record {record}: its hash does not fit");
        let says_why = |sandbox: &Sandbox| {
            let first = lines(sandbox, "tenant audit acme", |_| true).remove(0);
            let says = first["detail"].as_str().is_some_and(|detail| detail.contains(&why));
            assert!(first["what"] == "audit.begin-anew" && says, "{first}");
        };
        let point = points.len() + 1;
        let output = sandbox.run_with("tenant audit acme --begin-anew --yes", format!("#{point}"));
        if !was_killed(&output) {
            assert!(output.status.success());
            says_why(&sandbox);
            break;
        }
        // Somebody goes on with it, where that is possible.
        let _ = sandbox.run("tenant update acme --max-conns 77");
        if !sandbox.run("tenant audit acme --verify").status.success() {
            sandbox.ok("tenant audit acme --begin-anew --yes");
        }
        says_why(&sandbox);
        sandbox.ok("tenant audit acme --verify");
        sandbox.ok("node recover");
        let leaks = sandbox.leaks();
        assert!(leaks.is_empty(), "{leaks:?}");
        points.push(point);
    }
    assert!(points.len() > 5, "{points:?}");
}

#[test]
fn what_was_killed_is_closed_by_name_though_another_one_did_the_same_since() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    let killed = sandbox.run_with("tenant update acme --max-conns 7", "tenant-update.saved");
    assert!(was_killed(&killed));
    sandbox.ok("tenant update acme --max-conns 8");
    sandbox.ok("node recover");
    let of_update = lines(&sandbox, "tenant audit acme", |line| line["what"] == "tenant.update");
    let of_update: Vec<_> =
        of_update.iter().map(|line| (line["phase"].as_str().unwrap_or_default(), &line["closes"])).collect();
    let none = &Value::Null;
    let all = [("intent", none), ("intent", none), ("done", none), ("recovered", &Value::from(3))];
    assert_eq!(of_update, all);
}

#[test]
fn who_closes_a_change_that_was_killed_says_whether_it_holds() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let changes = [
        ("tenant update acme --max-conns 7", "audit.before-head", "is as it was before"),
        ("tenant update acme --max-conns 8", "tenant-update.saved", "is as it was to be"),
        ("pool update acme/web --cpus 2", "pool-update.saved", "is as it was to be"),
    ];
    for (change, point, end) in changes {
        assert!(was_killed(&sandbox.run_with(change, point)), "{change}");
        sandbox.ok("node recover");
        let recovered = lines(&sandbox, "tenant audit acme", |line| line["phase"] == "recovered");
        let said = recovered.last().and_then(|line| line["detail"].as_str()).unwrap_or_default();
        assert!(said.ends_with(end), "{change}: {said}");
    }
    assert!(was_killed(&sandbox.run_with("node set max-vms 17", "node-set.saved")));
    sandbox.ok("node recover");
    let said = lines(&sandbox, "node audit", |line| line["phase"] == "recovered")[0]["detail"].to_string();
    assert!(said.contains("is as it was to be"), "{said}");
}

#[test]
fn node_set() {
    let Some(sandbox) = Sandbox::new() else { return };
    let begin_again = |sandbox: &Sandbox| {
        sandbox.ok("node set max-vms 17");
        let _ = std::fs::remove_dir_all(sandbox.root().join("node"));
        let _ = std::fs::remove_file(sandbox.root().join("node.json"));
    };
    let has_a_log = |sandbox: &Sandbox| {
        sandbox.ok("node set max-vms 17");
        sandbox.ok("node audit --verify");
        let set = lines(sandbox, "node audit", |line| line["phase"] != "recovered");
        assert_eq!(set[0]["phase"], "intent");
        assert_eq!(set[0]["detail"], "max_vms from 4000 to 17");
    };
    let case = Case {
        operation: "node set max-vms 17",
        reset: &begin_again,
        check: &has_a_log,
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn who_settles_an_instance_writes_its_line_and_no_other_recovery_does() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    assert!(was_killed(&sandbox.run_with(&format!("instance start {path}"), "start.boot")));
    let roots = Roots::new(sandbox.root(), &Environment::default()).expect("roots");
    let file = roots.lock_file(&format!("instance.{}", path.replace('/', ".")));
    let of_start = || lines(&sandbox, "tenant audit acme", |line| line["what"] == "instance.start").len();
    let somebody = Lock::take(&file, "it", Sharing::Exclusive, roots.lock_timeout).expect("a lock");
    sandbox.ok("node recover");
    assert_eq!(of_start(), 1, "its lock is held by who is about to settle it");
    drop(somebody);
    sandbox.ok("node recover");
    sandbox.ok("node recover");
    assert_eq!(of_start(), 2);
}

/// The log is cut, and then it is whole again, as the error advises.
#[test]
fn what_a_log_did_not_take_is_not_done_by_the_next_command() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let (runs, sleeps) = (sandbox.instance("acme/web"), sandbox.instance("acme/web"));
    sandbox.ok(&format!("instance start {runs}"));
    sandbox.ok(&format!("instance start {sleeps}"));
    sandbox.ok(&format!("instance sleep {sleeps}"));
    let log = sandbox.root().join("tenants/acme/audit.log");
    let whole = std::fs::read_to_string(&log).expect("a log");
    let (cut, _) = whole.trim_end().rsplit_once('\n').expect("lines");
    let states = || {
        let of = |path: &str| sandbox.ok(&format!("instance info {path}"));
        [of(&runs), of(&sleeps)].map(|info| (info["status"].clone(), info["pending"].clone()))
    };
    let before = states();
    for refused in [
        format!("instance sleep {runs}"),
        format!("instance warm {runs}"),
        format!("instance stop {runs}"),
        format!("instance stop --force {runs}"),
        format!("instance destroy --yes --wipe-volumes {runs}"),
        format!("instance wake {sleeps}"),
        format!("instance archive {sleeps}"),
        format!("instance destroy --yes --wipe-volumes {sleeps}"),
    ] {
        std::fs::write(&log, format!("{cut}\n")).expect("a log");
        let why = sandbox.ok(&format!("instance why {sleeps}"));
        assert_eq!(why["wake_refused"]["code"], "audit_broken", "{why}");
        assert_eq!(sandbox.refused(&refused, 1), "audit_broken", "{refused}");
        std::fs::write(&log, &whole).expect("a log");
        sandbox.ok("instance list");
        sandbox.ok("node recover");
        assert_eq!(states(), before, "{refused}");
    }
    // Nor where the record is damaged, which stays as it is.
    let id = runs.rsplit('/').next().expect("an id");
    let record = sandbox.root().join(format!("tenants/acme/pools/web/instances/{id}/instance.json"));
    let (written, vmms) = (std::fs::read_to_string(&record).expect("a record"), sandbox.vmms());
    std::fs::write(&record, "{").expect("a record");
    std::fs::write(&log, format!("{cut}\n")).expect("a log");
    let destroy = format!("instance destroy --yes --wipe-volumes {runs}");
    assert_eq!(sandbox.refused(&destroy, 1), "audit_broken");
    std::fs::write(&log, &whole).expect("a log");
    sandbox.run("instance list");
    assert_eq!((std::fs::read_to_string(&record).expect("a record"), sandbox.vmms()), ("{".to_owned(), vmms));
    std::fs::write(&record, written).expect("a record");
    assert_eq!(states(), before);
    assert_eq!(sandbox.leaks(), [""; 0]);
}

/// Done, and the log did not take the line that says so.
#[test]
fn what_holds_though_its_log_did_not_take_that_is_said() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    let conns = || sandbox.ok("tenant info acme")["quotas"]["max_conns"].as_u64();
    let mut unsaid = 0;
    for point in 1.. {
        sandbox.ok("tenant update acme --max-conns 6");
        let output = sandbox.run_with("tenant update acme --max-conns 7 --json", format!("fail:#{point}"));
        if output.status.success() {
            break;
        }
        let said: Value = serde_json::from_slice(&output.stderr).expect("JSON");
        let is_unsaid = said["error"]["code"] == "audit_unsaid";
        assert_eq!(conns() == Some(7), is_unsaid, "{said}");
        sandbox.ok("node recover");
        let last = lines(&sandbox, "tenant audit acme", |_| true).pop().unwrap_or_default();
        let detail = last["detail"].as_str().unwrap_or_default();
        assert!(!is_unsaid || detail.ends_with("is as it was to be") || last["phase"] == "done", "{last}");
        unsaid += u32::from(is_unsaid);
    }
    assert!(unsaid > 0);
}

/// A VMM that was ended stays so.
#[test]
fn a_stop_whose_last_line_the_log_did_not_take_says_so() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let mut unsaid = 0;
    for point in 1.. {
        sandbox.ok(&format!("instance start {path}"));
        let output =
            sandbox.run_with(&format!("instance stop --force {path} --json"), format!("fail:#{point}"));
        if output.status.success() {
            break;
        }
        let said: Value = serde_json::from_slice(&output.stderr).expect("JSON");
        if said["error"]["code"] == "audit_unsaid" {
            assert_eq!(
                said["error"]["what"].as_str().map(|what| what.starts_with("instance.stop of ")),
                Some(true)
            );
            assert_eq!(sandbox.vmms(), []);
            unsaid += 1;
        }
        sandbox.ok("node recover");
        sandbox.run(&format!("instance stop --force {path}"));
    }
    assert!(unsaid > 0);
}

/// What fails is taken back, in the kernel too, and said by its own process.
#[test]
fn what_fails_is_as_if_it_had_not_been() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let (kernel, rootfs) = sandbox.artifacts();
    let (kernel, rootfs) = (kernel.display(), rootfs.display());
    let tenant = || sandbox.ok("tenant info acme");
    let pool = || sandbox.ok("pool info acme/web");
    let pools = || sandbox.ok("pool list");
    // A revision that is in its place, and not current, is nobody's.
    let current = || pool()["revision"].clone();
    let import = format!("pool import acme/web --kernel {kernel} --rootfs {rootfs} --cmdline=other");
    let rows: [(&str, &dyn Fn() -> Value); 5] = [
        ("tenant update acme --max-conns 7", &tenant),
        ("pool update acme/web --egress deny", &pool),
        ("pool create acme/other --vmm sim", &pools),
        (&import, &current),
        ("pool rollback acme/web", &current),
    ];
    for (change, state) in rows {
        let before = state();
        let lines_before = lines(&sandbox, "tenant audit acme", |_| true).len();
        let mut failed = 0;
        for point in 1..60 {
            let output = sandbox.run_with(change, format!("fail:#{point}"));
            if output.status.success() {
                break;
            }
            let is_of_log = String::from_utf8_lossy(&output.stderr).contains("audit.");
            if state() != before {
                // Done, and only its last line is not there.
                assert!(is_of_log, "{output:?}");
                break;
            }
            let last = lines(&sandbox, "tenant audit acme", |_| true);
            let last = last.get(lines_before..).unwrap_or_default().last().cloned().unwrap_or_default();
            assert!(is_of_log || last["phase"] != "intent", "{change} at {point}: {last}");
            sandbox.ok("net verify");
            sandbox.ok("node recover");
            failed = point;
        }
        let said = lines(&sandbox, "tenant audit acme", |line| line["phase"] == "failed");
        let what = change.split_whitespace().take(2).collect::<Vec<_>>().join(".");
        assert!((1..59).contains(&failed) && said.iter().any(|line| line["what"] == what), "{said:?}");
        assert_ne!(state(), before);
    }
}
