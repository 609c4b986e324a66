//! What workloads print.

use serde_json::Value;

use crate::{
    support::Sandbox,
    world::{says, start, world},
};

fn logs(sandbox: &Sandbox, arguments: &str) -> String {
    let output = sandbox.run(&format!("instance logs {arguments}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_a_workload_prints_is_there_also_after_a_sleep() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    says(&sandbox, &path, "log one");
    sandbox.ok(&format!("instance sleep {path}"));
    sandbox.ok(&format!("instance wake {path}"));
    says(&sandbox, &path, "log \u{1b}[2Jtwo");
    let id = path.rsplit('/').next().unwrap_or_default();
    assert_eq!(logs(&sandbox, &path), format!("workload of {id} is up\none\n\\u{{1b}}[2Jtwo\n"));
    assert_eq!(logs(&sandbox, &format!("{path} --since 2999-01-01T00:00:00Z")), "");
    let lines = logs(&sandbox, &format!("{path} --json"));
    let first: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["stream"], "stdout");
    assert!(first["at"].is_string(), "{first}");
    // JSON escapes once, and so that it talks to no terminal either.
    let last = lines.lines().last().expect("a line");
    assert!(last.contains(r#""line":"\u001b[2Jtwo""#), "{last}");
    assert_eq!(serde_json::from_str::<Value>(last).expect("JSON")["line"], "\u{1b}[2Jtwo");
    assert_eq!(logs(&sandbox, &format!("{path} --vmm")), "");
}

#[test]
fn a_follower_hears_the_end() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let mut child = sandbox
        .command(&format!("instance logs --follow {path}"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("mvm runs");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("a pipe")));
    assert!(lines.next().expect("a line").expect("a line").starts_with("workload of"));
    says(&sandbox, &path, "log more");
    assert_eq!(lines.next().expect("a line").expect("a line"), "more");
    sandbox.ok(&format!("instance stop {path} --force"));
    assert!(lines.next().is_none());
    assert!(child.wait().expect("it ends").success());
}
