//! Commands in guests.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdout, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    support::{self, Sandbox},
    world::{exec, exec_with, says, start, world},
};

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command that never ends by itself, once it has written something.
fn writes_for_ever(sandbox: &Sandbox, path: &str) -> (Child, ChildStdout) {
    let mut child = sandbox
        .command(&format!("instance exec -n {path} -- yes"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("mvm runs");
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 2]).expect("it writes");
    (child, stdout)
}

#[test]
fn output_errors_and_codes_are_the_commands() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    assert_eq!(says(&sandbox, &path, "echo one two"), "one two");
    let output = exec(&sandbox, &path, "cat /none");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
    assert_eq!(stderr(&output), "cat: /none: No such file or directory\n");
    for code in [0, 1, 7, 124, 255] {
        assert_eq!(exec(&sandbox, &path, &format!("exit {code}")).status.code(), Some(code));
    }
    let output = exec(&sandbox, &path, "nonesuch");
    assert_eq!(output.status.code(), Some(127));
    assert!(stderr(&output).contains("nonesuch: no such program"), "{}", stderr(&output));
    let output = sandbox.run(&format!("instance exec -n -e A=1 -e B=2 {path} -- env"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "A=1\nB=2\n");
    let output = sandbox.run(&format!("instance exec -t {path} -- stty size"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "24 80\n");
}

#[test]
fn mvms_own_failures_are_125() {
    let Some(sandbox) = world() else { return };
    let path = sandbox.instance("acme/web");
    let output = exec(&sandbox, &path, "true");
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("is ready: its guest hears nothing"), "{}", stderr(&output));
    let output = exec(&sandbox, "acme/web/i-00000000", "true");
    assert_eq!(output.status.code(), Some(125));
    sandbox.ok("pool create acme/plain --vmm sim --mem 128 --insecure");
    sandbox.import("acme/plain", "");
    let plain = sandbox.instance("acme/plain");
    sandbox.ok(&format!("instance start {plain}"));
    let output = sandbox.run(&format!("instance exec -n --json {plain} -- true"));
    assert_eq!(output.status.code(), Some(125));
    let said: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(said["error"]["code"], "no_agent");
}

#[test]
fn much_goes_in_and_comes_out() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let input: Vec<u8> = (0..3_000_000_u32).map(|at| (at ^ (at >> 8)) as u8).collect();
    let output = exec_with(&sandbox, &path, "cat", &input);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stdout == input, "{} of {} bytes", output.stdout.len(), input.len());
    let output = exec_with(&sandbox, &path, "wc", &input);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), input.len().to_string());
    // One that takes no input does not wait for its end.
    assert!(exec_with(&sandbox, &path, "true", b"unheard").status.success());
}

#[test]
fn signals_reach_the_command() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut child = sandbox
            .command(&format!("instance exec -n {path} -- yes"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("mvm runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it writes");
        assert_eq!(line, "y\n");
        kill_process(Pid::from_child(&child), signal).expect("it is there");
        std::io::copy(&mut stdout, &mut std::io::sink()).expect("it ends");
        assert_eq!(child.wait().expect("it ends").code(), Some(code));
    }
}

/// Input that the command does not take is in the way of no signal.
#[test]
fn a_signal_ends_a_command_whose_input_is_stuck() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let mut child = sandbox
        .command(&format!("instance exec {path} -- sleep 9999"))
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("mvm runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // What the guest holds, and the pipes on the way: when all of it is written, nothing more is taken.
    stdin.write_all(&vec![0; (128 << 10) + (64 << 10)]).expect("it is taken");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    sandbox.ok(&format!("instance sleep {path}"));
}

/// Neither is output that nobody reads.
#[test]
fn a_signal_ends_a_command_whose_output_is_stuck() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let (mut child, stdout) = writes_for_ever(&sandbox, &path);
    support::await_stuck(&child);
    // One that asks for something else does not.
    kill_process(Pid::from_child(&child), Signal::USR1).expect("it is there");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(143));
    drop(stdout);
    sandbox.ok(&format!("instance sleep {path}"));
}

/// What cannot be written is mvm's failure, and said.
#[test]
fn a_full_disk_here_is_no_end_of_the_command() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let full = std::fs::File::options().write(true).open("/dev/full").expect("there is one");
    let mut command = sandbox.command(&format!("instance exec -n {path} -- yes"));
    let output = command.stdout(full).stderr(Stdio::piped()).spawn().expect("mvm runs").wait_with_output();
    let output = output.expect("it ends");
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("No space left on device"), "{}", stderr(&output));
}

/// A command whose caller is gone ends: a sleep has nothing to wait for.
#[test]
fn a_caller_that_vanishes_takes_its_command_along() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let (mut child, _stdout) = writes_for_ever(&sandbox, &path);
    child.kill().expect("it is there");
    assert_eq!(child.wait().expect("it ends").signal(), Some(9));
    sandbox.ok(&format!("instance sleep {path}"));
    sandbox.ok(&format!("instance wake {path}"));
    assert_eq!(says(&sandbox, &path, "echo on"), "on");
}

/// Nobody reads what it says.
#[test]
fn a_reader_that_stops_ends_the_command() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let (mut child, stdout) = writes_for_ever(&sandbox, &path);
    drop(stdout);
    assert_eq!(child.wait().expect("it ends").code(), Some(141));
}
