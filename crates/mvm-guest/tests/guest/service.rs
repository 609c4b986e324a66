//! The agent as a service under another init, and a machine without cgroups.

use mvm_proto::{Answer, Request};

use crate::world::{World, eventually, shell, workload};

/// A shell is the first program, and the agent its child.
const UNDER_INIT: &str = r#"
$agent &
service=$!
echo $service >/run/service
trap 'echo init: asked >&2; exit 0' INT
while kill -0 $service 2>/dev/null; do wait $service && code=$? || code=$?; done
echo init: the service ended with $code >&2
while :; do sleep 1; done
"#;

fn under_init() -> String {
    let script = "trap 'echo workload: asked; exit 0' TERM; echo workload: up; while :; do sleep 0.02; done";
    workload(script, serde_json::json!({})) + UNDER_INIT
}

#[test]
fn a_service_that_is_stopped_ends_its_workload_and_nothing_else() {
    let Some(mut world) = World::identified(&under_init()) else { return };
    world.reads_until("workload: up");
    let mut running = world.start(shell("kill $(cat /run/service); exec sleep 100"));
    world.reads_until("workload: asked");
    world.reads_until("init: the service ended with 0");
    // The connection ends with the service; the machine does not.
    assert!(running.frames.advance().is_ok_and(|kind| kind.is_none()));
}

#[test]
fn a_service_asks_the_init_to_switch_off() {
    let Some(mut world) = World::identified(&under_init()) else { return };
    world.reads_until("workload: up");
    assert_eq!(world.answer(&Request::Shutdown { grace_ms: 10_000 }), Answer::Done {});
    world.reads_until("workload: asked");
    world.reads_until("init: asked");
    world.ends();
}

#[test]
fn whoever_is_started_by_a_service_is_reaped_by_it() {
    let Some(world) = World::identified(&under_init()) else { return };
    world.shell("for i in 1 2 3 4 5 6 7 8 9; do (setsid sh -c 'sleep 0.01 &' &); done");
    eventually("no zombie is left", || {
        world.shell("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null || true").is_empty().then_some(())
    });
}

#[test]
fn without_cgroups_a_session_still_ends_with_its_connection() {
    let Some(world) = World::identified("mount -t tmpfs tmpfs /sys/fs/cgroup") else { return };
    let mut running =
        world.start(shell("trap '' HUP; sleep 7000 & sh -c 'sleep 7000 & wait' & echo ready; wait"));
    running.until("ready");
    drop(running);
    eventually("all of it ends", || (world.count("sleep 7000") == 0).then_some(()));
}
