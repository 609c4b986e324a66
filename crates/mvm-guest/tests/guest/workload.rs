//! The guest's own program: when it runs, what it prints, what it says of itself, and when it is started again.

use mvm_proto::{
    Answer, Request,
    message::{Exited, Line, Worker, WorkloadStatus},
};

use serde_json::json;

use crate::world::{World, eventually, identity, workload};

fn file(json: &str) -> String {
    format!("mkdir -p /etc/mvm; cat >/etc/mvm/workload.json <<'EOF'\n{json}\nEOF\n")
}

fn lines(world: &World, since_unix_ms: u64) -> Vec<Line> {
    let mut frames = world.ask(&Request::Logs { since_unix_ms, follow: false });
    let mut lines = Vec::new();
    loop {
        match frames.message().unwrap() {
            Answer::Line(line) => lines.push(line),
            Answer::End {} => return lines,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn it_runs_once_the_guest_is_somebody_and_its_words_are_kept() {
    let script = "echo $A from $(pwd) by $(id -u); echo wrong >&2; exit 3";
    let setup = workload(script, json!({ "env": ["A=word"], "cwd": "/usr", "user": "ann" }));
    let Some(mut world) = World::new(&setup) else { return };
    assert_eq!(world.status().workload, WorkloadStatus::Waiting);
    assert_eq!(world.identify(&identity()).failed, None);
    let ended = WorkloadStatus::Ended(Exited::Code(3));
    eventually("it ends", || (world.status().workload == ended).then_some(()));
    let mut said: Vec<(String, bool)> =
        lines(&world, 0).into_iter().map(|line| (line.text, line.errors)).collect();
    said.sort();
    let wanted = [
        ("mvm-guest: the workload: it ended with code 3", true),
        ("word from /usr by 1000", false),
        ("wrong", true),
    ];
    assert_eq!(said, wanted.map(|(text, errors)| (text.to_owned(), errors)));
    assert_eq!(lines(&world, u64::MAX), []);
    world.reads_until("word from /usr");
}

#[test]
fn a_follower_hears_the_next_line() {
    let script = "echo one; while [ ! -e /run/go ]; do sleep 0.02; done; echo two; sleep 1000";
    let Some(world) = World::identified(&workload(script, json!({}))) else { return };
    let mut frames = world.ask(&Request::Logs { since_unix_ms: 0, follow: true });
    let mut next = || match frames.message().unwrap() {
        Answer::Line(line) => line.text,
        other => panic!("{other:?}"),
    };
    assert_eq!(next(), "one");
    world.shell("touch /run/go");
    assert_eq!(next(), "two");
}

#[test]
fn one_that_fails_is_started_again_and_its_leftovers_are_not_there() {
    let script = "setsid sleep 5000 & echo run
        [ $(grep -c run /run/count) -gt 2 ] && exec sleep 1000
        echo run >>/run/count
        exit 1";
    let setup = workload(script, json!({ "restart": "on-failure" })) + "echo >/run/count;";
    let Some(world) = World::identified(&setup) else { return };
    let running = eventually("it runs for good", || match world.status().workload {
        WorkloadStatus::Running { pid, restarts: 3 } => Some(pid),
        _ => None,
    });
    assert!(running > 1);
    assert_eq!(world.status().workload_restarts, Some(3));
    eventually("one of them is left", || (world.count("sleep 5000") == 1).then_some(()));
}

#[test]
fn one_that_ends_well_is_not_started_again_unless_always() {
    let json = |restart: &str| format!(r#"{{"schema_version":1,"argv":["true"],"restart":"{restart}"}}"#);
    let Some(world) = World::identified(&file(&json("on-failure"))) else { return };
    let ended = WorkloadStatus::Ended(Exited::Code(0));
    eventually("it ends", || (world.status().workload == ended).then_some(()));
    let once_more = r#"{"schema_version":1,"argv":["sh","-c","echo run"],"restart":"always"}"#;
    let Some(world) = World::identified(&file(once_more)) else { return };
    eventually("it ran thrice", || {
        (lines(&world, 0).iter().filter(|line| line.text == "run").count() >= 3).then_some(())
    });
}

#[test]
fn one_that_cannot_be_started_fails_the_identity_and_says_why() {
    for (json, why) in [
        (r#"{"schema_version":1,"argv":["no-such-program"]}"#, "no-such-program"),
        (r#"{"schema_version":2,"argv":["true"]}"#, "version 2"),
        (r#"{"schema_version":1,"argv":["true"],"colour":"red"}"#, "colour"),
    ] {
        let Some(world) = World::new(&file(json)) else { return };
        let failed = world.identify(&identity()).failed.unwrap();
        assert!(failed.fact == "workload" && failed.why.contains(why), "{failed:?}");
        assert!(matches!(world.status().workload, WorkloadStatus::Failed { .. }));
    }
}

#[test]
fn its_word_is_heard_and_a_busy_one_is_not_put_to_sleep() {
    let Some(world) = World::identified("") else { return };
    assert_eq!(world.status().worker, None);
    assert_eq!(world.status().worker_for_ms, None);
    world.shell("touch -d @1000 /run/mvm/worker-ready");
    assert!(world.status().worker_for_ms > Some(1 << 40), "it was said half a century ago");
    world.shell("touch /run/mvm/worker-ready");
    assert!(world.status().worker_for_ms < Some(60_000), "it was said just now");
    assert_eq!(world.status().worker, Some(Worker::Ready));
    let by_ann = mvm_proto::message::Exec {
        user: Some("ann".into()),
        ..crate::world::shell("touch /run/mvm/worker-busy")
    };
    assert_eq!(world.run(by_ann).2, Exited::Code(0));
    assert_eq!(world.status().worker, Some(Worker::Busy));
    match world.answer(&Request::SleepPrep { drain_ms: 1 }) {
        Answer::Refused(refused) => assert_eq!(refused.code, mvm_proto::Code::Busy),
        other => panic!("{other:?}"),
    }
    world.shell("rm /run/mvm/worker-*y; touch /run/mvm/worker-idle");
    assert_eq!(world.answer(&Request::SleepPrep { drain_ms: 10_000 }), Answer::Ready {});
}
