//! Guests with an agent, and what they say.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Output, Stdio},
};

use mvm::{
    infra::config::{Environment, Roots},
    vm::instance::config::Instance,
};
use serde_json::Value;

pub use crate::support::agents::{faulty_world, says, start, world};
use crate::support::{Sandbox, faulty};

/// Starts an instance anew, whose agent answers a request of this name with these frames, and then with those again and again.
pub fn start_hostile(sandbox: &Sandbox, path: &str, request: &str, says: &Value, again: &Value) {
    let hostile = serde_json::json!({ "request": request, "says": says, "again": again });
    faulty::set_faults(sandbox, &serde_json::json!({ "agent": { "hostile": hostile } }));
    sandbox.ok(&format!("instance stop --force {path}"));
    sandbox.ok(&format!("instance start {path}"));
}

/// Runs a command in a guest without input.
pub fn exec(sandbox: &Sandbox, path: &str, command: &str) -> Output {
    sandbox.run(&format!("instance exec -n {path} -- {command}"))
}

/// Runs a command in a guest with this input.
pub fn exec_with(sandbox: &Sandbox, path: &str, command: &str, input: &[u8]) -> Output {
    let mut child = sandbox
        .command(&format!("instance exec {path} -- {command}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mvm runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        // Both ways at once: pipes are short.
        scope.spawn(move || stdin.write_all(input).expect("it is read"));
        child.wait_with_output().expect("it ends")
    })
}

/// The roots, for who speaks with a guest without a command.
pub fn roots(sandbox: &Sandbox) -> Roots {
    Roots::new(sandbox.root(), &Environment::default()).expect("roots")
}

/// An instance's record.
pub fn record(roots: &Roots, path: &str) -> Instance {
    let file = mvm::vm::instance::config::file(roots, &path.parse().expect("a path"));
    mvm::store::read(&file).expect("a record")
}

pub fn info(sandbox: &Sandbox, path: &str) -> Value {
    sandbox.ok(&format!("instance info {path}"))
}

#[track_caller]
pub fn all_differ<T: Ord + std::fmt::Debug>(what: &str, values: &[T]) {
    let distinct: BTreeSet<&T> = values.iter().collect();
    assert_eq!(distinct.len(), values.len(), "{what}: {values:?}");
}

#[track_caller]
pub fn leaves_nothing(sandbox: &Sandbox) {
    let leaks = sandbox.leaks();
    assert!(leaks.is_empty(), "{leaks:#?}");
}
