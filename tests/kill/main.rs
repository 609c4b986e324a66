//! Every operation, killed after every step and every partial write, and made to fail there: then the world is looked at.
//!
//! The Nth point that an operation passes is N = 1, 2, … until it passes no more. After each kill either `node recover`
//! or simply the same command again must put things right.

#[path = "../support/mod.rs"]
mod support;

mod audit;
mod fleet;
mod instance;

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
    let mut logs = vec!["node audit".to_owned()];
    for tenant in sandbox.ok("tenant list").as_array().into_iter().flatten() {
        logs.push(format!("tenant audit {}", tenant["tenant_id"].as_str().unwrap_or_default()));
    }
    for log in logs {
        let log = sandbox.ok(&log);
        let records: Vec<_> = log.as_array().into_iter().flatten().collect();
        let mut outcomes = vec![0; records.len()];
        for (at, record) in records.iter().enumerate().filter(|(_, record)| record["phase"] != "intent") {
            // Whose outcome is it: that of the intent it names, or of the last one of its process, or of who was cut off?
            let is_its =
                |other: &serde_json::Value| match (record["closes"].as_u64(), record["phase"].as_str()) {
                    (Some(seq), _) => other["seq"] == seq,
                    (None, Some("recovered" | "observed")) => true,
                    (None, _) => other["who"] == record["who"],
                };
            let is_same = |other: &serde_json::Value| {
                other["phase"] == "intent"
                    && other["what"] == record["what"]
                    && other["path"] == record["path"]
            };
            let mut before = records[..at].iter().enumerate().rev();
            let of = before.find(|(at, other)| outcomes[*at] == 0 && is_same(other) && is_its(other));
            if let Some((of, _)) = of {
                outcomes[of] += 1;
            }
        }
        for (at, record) in records.iter().enumerate().filter(|(_, record)| record["phase"] == "intent") {
            assert!(outcomes[at] == 1, "no outcome: {record}");
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
