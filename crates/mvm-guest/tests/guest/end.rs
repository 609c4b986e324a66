//! PID 1: it reaps whoever dies, and ends the machine in an orderly way.

use std::time::Duration;

use mvm_proto::{Answer, Request};

use crate::world::{World, eventually, shell, workload};

#[test]
fn orphans_are_reaped() {
    let Some(world) = World::identified("") else { return };
    world.shell("for i in 1 2 3 4 5 6 7 8 9; do (setsid sh -c 'sleep 0.01 &' &); done");
    eventually("no zombie is left", || {
        world.shell("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null || true").is_empty().then_some(())
    });
}

#[test]
fn many_commands_at_once_all_get_their_own_status() {
    let Some(world) = World::identified("") else { return };
    std::thread::scope(|scope| {
        for lane in 0..8 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..25 {
                    let code = (lane * 25 + round) % 200;
                    let exited = world.run(shell(&format!("(true &); exit {code}"))).2;
                    assert_eq!(exited, mvm_proto::message::Exited::Code(code));
                }
            });
        }
    });
    eventually("nothing is under way", || (world.status().under_way == 0).then_some(()));
    // Each had a cgroup of its own, which is gone; this question has one.
    let count = "ls -d /sys/fs/cgroup$(grep ^0:: /proc/1/cgroup | cut -c4-)/mvm-* \
        /sys/fs/cgroup/unified$(grep ^0:: /proc/1/cgroup | cut -c4-)/mvm-* 2>/dev/null | wc -l";
    eventually("no cgroup is left", || matches!(&*world.shell(count), "0" | "1").then_some(()));
}

#[test]
fn shutdown_asks_the_workload_and_ends_the_machine() {
    let script =
        "trap 'echo asked; sleep 0.2; echo well ended; exit 0' USR1; echo up; while :; do sleep 0.02; done";
    let setup = &workload(script, serde_json::json!({ "stop_signal": 10, "restart": "always" }));
    let Some(mut world) = World::identified(setup) else { return };
    world.reads_until("up");
    assert_eq!(world.answer(&Request::Shutdown { grace_ms: 20_000 }), Answer::Done {});
    world.reads_until("asked");
    world.reads_until("well ended");
    world.ends();
}

#[test]
fn who_does_not_end_when_asked_is_made_to() {
    let script = "trap '' TERM HUP INT; echo up; while :; do sleep 1; done";
    let setup = &workload(script, serde_json::json!({}));
    let Some(mut world) = World::identified(setup) else { return };
    world.reads_until("up");
    let mut stubborn = world.start(shell("trap '' TERM HUP INT; echo here; while :; do sleep 1; done"));
    stubborn.until("here");
    let begun = std::time::Instant::now();
    world.answer(&Request::Shutdown { grace_ms: 100 });
    world.ends();
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_signal_to_pid_1_ends_the_machine() {
    for signal in ["TERM", "INT"] {
        let Some(world) = World::identified("") else { return };
        // The command that sends it ends with the machine.
        let _sent = world.start(shell(&format!("kill -{signal} 1; sleep 100")));
        world.ends();
    }
}
