//! What only the simulator has: faults and latencies on request, and a guest that can be told what to do.

#[expect(dead_code, unused_imports, reason = "the contract suite uses all of it")]
#[path = "../contract/support/mod.rs"]
mod support;

mod control;
mod faults;
mod guest;

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{Value, json};
use support::{Lab, Program, Vmm};

/// Runs a test in a folder of its own.
fn in_lab(test: impl Fn(&Lab)) {
    support::run(Program::Sim, test);
}

/// A VMM with these faults whose API answers.
#[track_caller]
fn start(lab: &Lab, faults: &Value) -> Vmm {
    let vmm = spawn(lab, faults);
    vmm.wait_for_api("api.sock");
    vmm
}

/// A VMM with these faults, just started.
#[track_caller]
fn spawn(lab: &Lab, faults: &Value) -> Vmm {
    let mut command = lab.command(&["--id", "anon", "--api-sock", "api.sock"]);
    command.env("FCSIM_FAULTS", faults.to_string());
    lab.spawn_command(command)
}

/// Gives a VM a vsock at `v.sock`.
#[track_caller]
fn put_vsock(vmm: &Vmm) {
    vmm.put("/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" })).done();
}

/// A connection to a port of the guest; none where it is refused.
fn dial(lab: &Lab, port: u32) -> Option<BufReader<UnixStream>> {
    dial_within(lab, port, Duration::from_secs(20))
}

/// A connection to a port of the guest; none where it is refused, or not answered in that time.
fn dial_within(lab: &Lab, port: u32, limit: Duration) -> Option<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(lab.path("v.sock")).expect("the vsock listens");
    stream.set_read_timeout(Some(limit)).expect("a socket");
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).expect("it is written");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).is_ok_and(|_| line.starts_with("OK ")).then_some(reader)
}

/// Tells the guest to do something and returns its answer.
#[track_caller]
fn tell(lab: &Lab, command: Value) -> Value {
    let mut reader = dial(lab, 1024).expect("the control channel answers");
    reader.get_ref().set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    reader.get_mut().write_all(format!("{command}\n").as_bytes()).expect("it is written");
    let mut line = String::new();
    reader.read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}
