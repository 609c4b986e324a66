//! A tenant with guests that have an agent, and ways to give it secrets.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::support::Sandbox;
pub use crate::support::agents::{faulty_world, says, start, world};

/// A master key, and another one.
pub const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
pub const OTHER_KEY: &str = "f00102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Runs a command with this on its stdin.
pub fn feed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mvm runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // What is refused is not read to its end.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("it ends")
    })
}

/// Sets or rotates a secret of acme's, as JSON.
pub fn change(sandbox: &Sandbox, verb: &str, name: &str, content: &[u8]) -> Output {
    feed(sandbox.command(&format!("tenant secrets {verb} acme {name} --json")), content)
}

/// The same, which must succeed.
#[track_caller]
pub fn changed(sandbox: &Sandbox, verb: &str, name: &str, content: &[u8]) -> Value {
    let output = change(sandbox, verb, name, content);
    assert!(output.status.success(), "{verb} {name}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The error's word and what it says.
pub fn error(output: &Output) -> (Option<i32>, String, String) {
    let said: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
    let text = |field: &str| said["error"][field].as_str().unwrap_or_default().to_owned();
    let what = format!("{}{}", text("what"), String::from_utf8_lossy(&output.stdout));
    (output.status.code(), text("code"), what)
}

/// The content of a secret, as a guest has it.
#[track_caller]
pub fn has(sandbox: &Sandbox, path: &str, name: &str) -> String {
    says(sandbox, path, &format!("cat /run/secrets/{name}"))
}

/// Which set of secrets an instance's record says that its guest has.
pub fn generation(sandbox: &Sandbox, path: &str) -> Value {
    sandbox.ok(&format!("instance info {path}"))["secrets"].clone()
}

/// The instances whose guests have an older set, as the tenant says.
pub fn behind(sandbox: &Sandbox) -> Value {
    sandbox.ok("tenant info acme")["secrets"]["behind"].clone()
}
