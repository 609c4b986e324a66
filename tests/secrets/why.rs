//! `instance why` names what a start or a wake would be refused for.

use crate::{
    support::{Sandbox, was_killed},
    world::{KEY, feed, start, world},
};

#[test]
fn a_master_key_that_is_not_given_is_named_as_what_keeps_an_instance_from_running() {
    let Some(sandbox) = world() else { return };
    let with_key = |arguments: &str, input: &[u8]| {
        let mut command = sandbox.command(arguments);
        command.env("MVM_MASTER_KEY", KEY);
        let output = feed(command, input);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let sleeper = start(&sandbox);
    sandbox.ok(&format!("instance sleep {sleeper}"));
    let ready = sandbox.instance("acme/web");
    with_key("tenant secrets set acme DB", b"one");
    let refused = |path: &str, launch: &str| {
        sandbox.ok(&format!("instance why {path}"))[format!("{launch}_refused")]["code"].clone()
    };
    assert_eq!(refused(&ready, "start"), "master_key");
    assert_eq!(refused(&sleeper, "wake"), "master_key");
    let why = |sandbox: &Sandbox| sandbox.run(&format!("instance why {ready}")).stdout;
    assert!(String::from_utf8_lossy(&why(&sandbox)).contains("a start would be refused: "));
    let said = with_key(&format!("instance why {ready}"), b"");
    assert!(!said.contains("refused"), "{said}");
}

/// Its snapshot is used up by then, and it is not lost for that.
#[test]
fn a_wake_that_was_cut_off_is_told_as_that() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    sandbox.ok(&format!("instance sleep {path}"));
    assert!(was_killed(&sandbox.run_with(&format!("instance wake {path}"), "wake.consume")));
    let why = sandbox.ok(&format!("instance why {path}"));
    assert!(why["wake_refused"].is_null() && why["pending"]["operation"] == "wake", "{why}");
    let said = sandbox.run(&format!("instance why {path}")).stdout;
    assert!(String::from_utf8_lossy(&said).contains("a wake was cut off"));
    sandbox.ok(&format!("instance wake {path}"));
}
