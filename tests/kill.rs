//! Every operation, killed after every step and every partial write, and made to fail there: then the world is looked at.
//!
//! The Nth point that an operation passes is N = 1, 2, … until it passes no more. After each kill either `node recover`
//! or simply the same command again must put things right.

mod support;

use support::{Sandbox, was_killed};

/// More points than any operation passes.
const MANY: u32 = 400;

/// What an operation is tested with.
struct Case<'a> {
    /// The command.
    operation: &'a str,
    /// Brings the state back in which the operation is possible.
    reset: &'a dyn Fn(&Sandbox),
    /// What must be true after the operation was killed and settled.
    check: &'a dyn Fn(&Sandbox),
    /// Does the operation, made to fail, leave what only the next one finishes?
    finishes_later: bool,
}

fn assert_clean(sandbox: &Sandbox, when: &str) {
    let leaks = sandbox.leaks();
    assert!(leaks.is_empty(), "{when}: {leaks:#?}");
}

fn kill_everywhere(sandbox: &Sandbox, case: &Case) {
    let mut points = 0;
    for point in 1..MANY {
        let output = sandbox.run_with(case.operation, format!("#{point}"));
        if !was_killed(&output) {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{} does not succeed unhindered: {said}", case.operation);
            points = point;
            break;
        }
        // Half of the time nobody recovers: the next command on the same thing has to do it. It may find it done, or gone:
        // but never stuck.
        if point % 2 == 1 {
            let again = sandbox.run(case.operation);
            let (code, said) = (again.status.code(), String::from_utf8_lossy(&again.stderr).into_owned());
            let operation = case.operation;
            assert!(
                matches!(code, Some(0 | 3)),
                "{operation} again after it was killed at point {point}: {code:?} {said}"
            );
            assert_clean_but_files(sandbox, &format!("{operation} killed at point {point} and run again"));
            (case.check)(sandbox);
        }
        sandbox.ok("node recover");
        assert_clean(sandbox, &format!("{} killed at point {point} and recovered", case.operation));
        assert_no_open_intent(sandbox);
        (case.check)(sandbox);
        (case.reset)(sandbox);
    }
    assert!(points > 2, "{} passes only {points} points: the failpoints do not work", case.operation);
    (case.reset)(sandbox);
    for point in 1..points {
        let output = sandbox.run_with(case.operation, format!("fail:#{point}"));
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 1 | 4 | 5)), "{} made to fail at {point}: {code:?}", case.operation);
        if case.finishes_later || output.status.success() {
            sandbox.ok("node recover");
        }
        // What is left beside the place of a file that could not be written is swept by the next writer.
        assert_clean_but_files(sandbox, &format!("{} failed at point {point}", case.operation));
        sandbox.ok("node recover");
        (case.check)(sandbox);
        (case.reset)(sandbox);
    }
}

/// Every line that announces something is followed by one that says how it ended.
fn assert_no_open_intent(sandbox: &Sandbox) {
    for tenant in sandbox.ok("tenant list").as_array().into_iter().flatten() {
        let tenant = tenant["tenant_id"].as_str().unwrap_or_default();
        let log = sandbox.ok(&format!("tenant audit {tenant}"));
        let records: Vec<_> = log.as_array().into_iter().flatten().collect();
        for (at, record) in records.iter().enumerate().filter(|(_, record)| record["phase"] == "intent") {
            let same = |other: &&&serde_json::Value| {
                other["what"] == record["what"] && other["path"] == record["path"]
            };
            assert!(records[at + 1..].iter().any(|other| same(&other)), "no outcome: {record}");
        }
    }
}

fn assert_clean_but_files(sandbox: &Sandbox, when: &str) {
    let leaks: Vec<String> =
        sandbox.leaks().into_iter().filter(|leak| !leak.starts_with("unfinished files")).collect();
    assert!(leaks.is_empty(), "{when}: {leaks:#?}");
}

fn destroy_all_instances(sandbox: &Sandbox) {
    for instance in sandbox.states() {
        let path = instance.split(' ').next().unwrap_or_default();
        sandbox.ok(&format!("instance destroy {path} --yes --wipe-volumes"));
    }
}

fn data_disk(sandbox: &Sandbox, path: &str) -> std::path::PathBuf {
    let parts: Vec<&str> = path.split('/').collect();
    let pool = sandbox.root().join("tenants").join(parts[0]).join("pools").join(parts[1]);
    pool.join("instances").join(parts[2]).join("volumes/data.ext4")
}

const PRECIOUS: &[u8] = b"what the guest wrote";

fn write_precious(sandbox: &Sandbox, path: &str) {
    use std::os::unix::fs::FileExt;
    let disk = std::fs::File::options().write(true).open(data_disk(sandbox, path)).expect("a data disk");
    disk.write_all_at(PRECIOUS, 4 << 20).expect("it can be written");
}

fn assert_precious(disk: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; PRECIOUS.len()];
    std::fs::File::open(disk).and_then(|disk| disk.read_exact_at(&mut bytes, 4 << 20)).expect("a data disk");
    assert_eq!(bytes, PRECIOUS, "the data disk was damaged");
}

#[test]
fn instance_create() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let case = Case {
        operation: "instance create acme/web",
        reset: &destroy_all_instances,
        // The first may have been made before it was killed, and the second one is another one.
        check: &|sandbox| assert!(sandbox.states().len() <= 2),
        finishes_later: false,
    };
    kill_everywhere(&sandbox, &case);
}

fn start_case(vmm: &str) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool(vmm);
    let path = sandbox.instance("acme/web");
    write_precious(&sandbox, &path);
    let operation = format!("instance start {path}");
    let case = Case {
        operation: &operation,
        reset: &|sandbox| {
            if sandbox.states()[0].ends_with("running") {
                sandbox.ok(&format!("instance stop {path} --force"));
            }
        },
        check: &|sandbox| {
            assert_eq!(sandbox.states().len(), 1);
            assert_precious(&data_disk(sandbox, &path));
        },
        finishes_later: false,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn instance_start() {
    start_case("sim");
}

#[test]
fn instance_start_on_real_firecracker() {
    if support::firecracker().is_some() {
        start_case("firecracker");
    }
}

#[test]
fn instance_stop() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    write_precious(&sandbox, &path);
    let operation = format!("instance stop {path}");
    let case = Case {
        operation: &operation,
        reset: &|sandbox| drop(sandbox.ok(&format!("instance start {path}"))),
        check: &|sandbox| assert_precious(&data_disk(sandbox, &path)),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

/// Has the guest's memory stayed what it was, through everything that happened to it? It knows how often it wrote.
fn assert_memory(sandbox: &Sandbox, path: &str) {
    let info = sandbox.ok(&format!("instance info {path}"));
    let tap = info["net"]["tap_dev"].as_str().expect("a TAP");
    let sum = sandbox.tell(tap, &serde_json::json!({ "cmd": "checksum" }));
    assert!(sum["sum"].is_string() && sum["writes"].as_u64() >= Some(50), "{sum}");
}

fn write_memory(sandbox: &Sandbox, path: &str) {
    let info = sandbox.ok(&format!("instance info {path}"));
    let tap = info["net"]["tap_dev"].as_str().expect("a TAP");
    sandbox.tell(tap, &serde_json::json!({ "cmd": "dirty", "pages": 50 }));
}

/// One verb killed everywhere, on an instance whose memory is looked at each time. `back` brings it back to where the verb
/// is possible.
fn memory_case(verb: &str, from: &[&str], back: &[&str]) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    write_memory(&sandbox, &path);
    write_precious(&sandbox, &path);
    let all =
        |verbs: &[&str]| verbs.iter().for_each(|verb| drop(sandbox.ok(&format!("instance {verb} {path}"))));
    all(from);
    let operation = format!("instance {verb} {path}");
    let state = |sandbox: &Sandbox| sandbox.states()[0].rsplit(' ').next().unwrap_or_default().to_owned();
    let awake = |sandbox: &Sandbox| match state(sandbox).as_str() {
        "sleeping" => drop(sandbox.ok(&format!("instance wake {path}"))),
        "warm" => drop(sandbox.ok(&format!("instance resume {path}"))),
        other => assert_eq!(other, "running"),
    };
    let case = Case {
        operation: &operation,
        reset: &|sandbox| {
            awake(sandbox);
            all(back);
        },
        // Through all of this the guest is never lost: it is awake, or it can be woken.
        check: &|sandbox| {
            awake(sandbox);
            assert_memory(sandbox, &path);
            assert_precious(&data_disk(sandbox, &path));
            assert_clean_but_files(sandbox, "awake");
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn instance_sleep() {
    memory_case("sleep", &[], &[]);
}

#[test]
fn instance_sleep_of_a_warm_one() {
    memory_case("sleep", &["warm"], &["warm"]);
}

#[test]
fn instance_wake() {
    memory_case("wake", &["sleep"], &["sleep"]);
}

#[test]
fn instance_warm() {
    memory_case("warm", &[], &[]);
}

#[test]
fn instance_resume() {
    memory_case("resume", &["warm"], &["warm"]);
}

#[test]
fn instance_archive() {
    memory_case("archive", &["sleep"], &["sleep"]);
}

#[test]
fn instance_wake_of_an_archived_one() {
    memory_case("wake", &["sleep", "archive"], &["sleep", "archive"]);
}

fn destroy_case(flags: &str, kept: bool) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let current = std::cell::RefCell::new(String::new());
    let reset = |sandbox: &Sandbox| {
        destroy_all_instances(sandbox);
        let _ = std::fs::remove_dir_all(sandbox.root().join("tenants/acme/pools/web/kept"));
        let path = sandbox.instance("acme/web");
        sandbox.ok(&format!("instance start {path}"));
        write_precious(sandbox, &path);
        *current.borrow_mut() = path;
    };
    reset(&sandbox);
    // The path changes with each instance: a prefix that fits any is what a person would type.
    let operation = format!("instance destroy acme/web/i- --yes {flags}");
    let case = Case {
        operation: &operation,
        reset: &reset,
        check: &|sandbox| {
            let path = current.borrow();
            let id = path.rsplit('/').next().unwrap_or_default();
            let kept_disk = sandbox.root().join(format!("tenants/acme/pools/web/kept/{id}.data.ext4"));
            match sandbox.states().is_empty() {
                true if kept => assert_precious(&kept_disk),
                true => assert!(!kept_disk.exists()),
                false => assert_precious(&data_disk(sandbox, &path)),
            }
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn instance_destroy_keeps_the_data_disk() {
    destroy_case("", true);
}

#[test]
fn instance_destroy_with_its_volumes() {
    destroy_case("--wipe-volumes", false);
}

#[test]
fn tenant_create() {
    let Some(sandbox) = Sandbox::new() else { return };
    let case = Case {
        operation: "tenant create acme --net-id 3 --subnet 10.240.3.0/24",
        reset: &|sandbox| {
            if !sandbox.ok("tenant list").as_array().is_none_or(Vec::is_empty) {
                sandbox.ok("tenant destroy acme --yes");
            }
        },
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn tenant_destroy_with_all_in_it() {
    let Some(sandbox) = Sandbox::new() else { return };
    let reset = |sandbox: &Sandbox| {
        if !sandbox.ok("tenant list").as_array().is_none_or(Vec::is_empty) {
            sandbox.ok("tenant destroy acme --yes --wipe-volumes");
        }
        sandbox.pool("sim");
        let path = sandbox.instance("acme/web");
        sandbox.ok(&format!("instance start {path}"));
    };
    reset(&sandbox);
    let case = Case {
        operation: "tenant destroy acme --yes --wipe-volumes",
        reset: &reset,
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_create() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    let case = Case {
        operation: "pool create acme/web --vmm sim",
        reset: &|sandbox| {
            if !sandbox.ok("pool list").as_array().is_none_or(Vec::is_empty) {
                sandbox.ok("pool destroy acme/web --yes");
            }
        },
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_import_and_rollback() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let first = sandbox.ok("pool info acme/web")["revision"].clone();
    let (kernel, rootfs) = sandbox.artifacts();
    let import = format!(
        "pool import acme/web --kernel {} --rootfs {} --cmdline=other",
        kernel.display(),
        rootfs.display()
    );
    let whole = |sandbox: &Sandbox| {
        assert!(sandbox.ok("pool verify acme/web")["ok"] == true);
        assert!(!sandbox.ok("pool info acme/web")["revision"].is_null());
    };
    let back = format!("pool rollback acme/web --revision {}", first.as_str().unwrap_or_default());
    let reset = |sandbox: &Sandbox| drop(sandbox.ok(&back));
    let case = Case { operation: &import, reset: &reset, check: &whole, finishes_later: true };
    kill_everywhere(&sandbox, &case);
    let forward = |sandbox: &Sandbox| drop(sandbox.ok(&import));
    forward(&sandbox);
    let case = Case { operation: &back, reset: &forward, check: &whole, finishes_later: true };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_import_of_an_image_from_elsewhere() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let first = sandbox.ok("pool info acme/web")["revision"].clone();
    sandbox.put_image("debian");
    let archive = sandbox.root().join("image.in");
    std::fs::write(&archive, support::oci::archive(&["bin/", "bin/app=x"])).expect("an archive");
    let import = format!("pool import acme/web --oci-archive {}", archive.display());
    let back = format!("pool rollback acme/web --revision {}", first.as_str().unwrap_or_default());
    let case = Case {
        operation: &import,
        reset: &|sandbox| {
            sandbox.ok(&back);
            sandbox.ok("pool gc acme/web");
            // The one before is kept to roll back to: without it the next import has everything to do.
            let revisions = sandbox.root().join("tenants/acme/pools/web/artifacts/revisions");
            for one in std::fs::read_dir(revisions).expect("revisions").flatten() {
                if one.file_name().to_str() != first.as_str() {
                    std::fs::remove_dir_all(one.path()).expect("a revision");
                }
            }
        },
        check: &|sandbox| {
            assert!(sandbox.ok("pool verify acme/web")["ok"] == true);
            assert!(!sandbox.ok("pool info acme/web")["revision"].is_null());
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn recovery_itself() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let reset = |sandbox: &Sandbox| {
        if sandbox.states()[0].ends_with("running") {
            sandbox.ok(&format!("instance stop {path} --force"));
        }
        let output = sandbox.run_with(&format!("instance start {path}"), "start.boot");
        assert!(was_killed(&output));
    };
    reset(&sandbox);
    let case = Case { operation: "node recover", reset: &reset, check: &|_| (), finishes_later: true };
    kill_everywhere(&sandbox, &case);
}

/// Operations that only change what is there: whatever happens, the same command again must bring it about.
fn change_case(operation: &str, back: &str, holds: &dyn Fn(&Sandbox) -> bool) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let case = Case {
        operation,
        reset: &|sandbox| {
            sandbox.ok(operation);
            assert!(holds(sandbox), "{operation} again does not bring it about");
            if !back.is_empty() {
                sandbox.ok(back);
            }
        },
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_update_of_the_egress_policy() {
    let denied = |sandbox: &Sandbox| {
        let rules = std::process::Command::new("nft").args(["list", "map", "inet", "mvm", "egress"]).output();
        let rules = String::from_utf8_lossy(&rules.expect("nft runs").stdout).into_owned();
        sandbox.ok("pool info acme/web")["egress"] == "deny" && rules.contains("egress_deny")
    };
    change_case("pool update acme/web --egress deny", "pool update acme/web --egress internet", &denied);
}

#[test]
fn tenant_update_of_quotas() {
    let holds = |sandbox: &Sandbox| sandbox.ok("tenant info acme")["quotas"]["max_conns"] == 77;
    change_case("tenant update acme --max-conns 77", "tenant update acme --max-conns 88", &holds);
}

#[test]
fn disk_grow() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    write_precious(&sandbox, &path);
    let operation = format!("instance disk grow {path} --size 16");
    let case = Case {
        operation: &operation,
        reset: &|_| (),
        check: &|sandbox| {
            assert_precious(&data_disk(sandbox, &path));
            sandbox.ok(&format!("instance start {path}"));
            sandbox.ok(&format!("instance stop {path} --force"));
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
    assert_eq!(std::fs::metadata(data_disk(&sandbox, &path)).expect("a disk").len(), 16 << 20);
}

#[test]
fn pool_scale_up() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let case = Case {
        operation: "pool scale acme/web --running 1",
        reset: &destroy_all_instances,
        check: &|_| (),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn pool_gc() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let mut number = 0..;
    let number = std::cell::RefCell::new(&mut number);
    let reset = |sandbox: &Sandbox| {
        for _ in 0..2 {
            sandbox.import("acme/web", &number.borrow_mut().next().unwrap_or(0).to_string());
        }
    };
    reset(&sandbox);
    let whole = |sandbox: &Sandbox| assert!(sandbox.ok("pool verify acme/web")["ok"] == true);
    let case = Case { operation: "pool gc acme/web", reset: &reset, check: &whole, finishes_later: true };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn vmm_install() {
    let Some(program) = support::firecracker() else { return };
    let Some(sandbox) = Sandbox::new() else { return };
    let operation = format!("vmm install {}", program.display());
    let case = Case {
        operation: &operation,
        reset: &|sandbox| {
            let _ = std::fs::remove_dir_all(sandbox.root().join("vmm"));
        },
        check: &|sandbox| {
            for one in sandbox.ok("vmm list").as_array().into_iter().flatten() {
                let program = one["firecracker"].as_str().unwrap_or_default();
                let said = std::process::Command::new(program).arg("--version").output().expect("it runs");
                assert!(said.status.success(), "half a program was installed");
            }
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}
