//! A guest that is about to sleep finishes what it has begun, and takes nothing new.

use std::{
    path::PathBuf,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mvm::{
    infra::config::Roots,
    vm::instance::{config::Instance, guest::Guest},
};
use mvm_proto::{
    Answer, Code, Kind, Request,
    message::{Exec, Exited},
};
use serde_json::json;

use crate::{
    support::wait_until,
    world::{exec, faulty_world, info, leaves_nothing, record, roots, says, start, start_hostile, world},
};

#[test]
fn a_busy_workload_keeps_its_guest_awake() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --drain-timeout 0");
    let path = start(&sandbox);
    says(&sandbox, &path, "worker busy");
    assert_eq!(sandbox.refused(&format!("instance sleep {path}"), 4), "guest_busy");
    assert_eq!(info(&sandbox, &path)["status"], "running");
    // It takes requests again.
    assert_eq!(says(&sandbox, &path, "echo on"), "on");
    says(&sandbox, &path, "worker idle");
    sandbox.ok(&format!("instance sleep {path}"));
    sandbox.ok(&format!("instance wake {path}"));
    says(&sandbox, &path, "worker busy");
    sandbox.ok(&format!("instance sleep {path} --force"));
    sandbox.ok(&format!("instance wake {path}"));
    assert_eq!(says(&sandbox, &path, "echo on"), "on");
}

/// A sleep that waits for its guest is in nobody's way.
#[test]
fn a_sleep_that_waits_is_cancelled() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --drain-timeout 3600");
    let path = start(&sandbox);
    let falls_asleep = || {
        says(&sandbox, &path, "worker busy");
        let mut sleep = sandbox.command(&format!("instance sleep {path} --json"));
        let sleep = sleep.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mvm runs");
        wait_until("it takes nothing new", || !exec(&sandbox, &path, "true").status.success());
        sleep
    };
    let is_cancelled = |sleep: Child| {
        let output = sleep.wait_with_output().expect("it ends");
        let said: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
        assert_eq!((output.status.code(), &said["error"]["code"]), (Some(4), &"cancelled".into()), "{said}");
    };
    let sleep = falls_asleep();
    sandbox.ok(&format!("instance wake {path}"));
    is_cancelled(sleep);
    assert_eq!(says(&sandbox, &path, "echo on"), "on");
    let sleep = falls_asleep();
    sandbox.ok(&format!("instance sleep {path} --force"));
    is_cancelled(sleep);
    assert_eq!(info(&sandbox, &path)["status"], "sleeping");
    for verb in ["stop", "stop --force", "destroy --yes --wipe-volumes"] {
        sandbox.ok(&format!("instance {} {path}", if verb == "stop" { "wake" } else { "start" }));
        let sleep = falls_asleep();
        let (verb, options) = verb.split_once(' ').unwrap_or((verb, ""));
        sandbox.ok(&format!("instance {verb} {path} {options}"));
        is_cancelled(sleep);
    }
    leaves_nothing(&sandbox);
}

/// Also where the guest does not say whether it is ready, or does not say it to the end.
#[test]
fn a_sleep_whose_guest_is_silent_is_in_nobodys_way() {
    let Some(sandbox) = faulty_world() else { return };
    sandbox.ok("pool update acme/web --drain-timeout 3600");
    let path = start(&sandbox);
    start_hostile(&sandbox, &path, "sleep_prep", &json!([]), &json!([]));
    let mut sleep = sandbox.command(&format!("instance sleep {path} --json"));
    let sleep = sleep.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("mvm runs");
    wait_until("it falls asleep", || info(&sandbox, &path)["pending"]["operation"] == "sleep");
    sandbox.ok(&format!("instance stop --force {path}"));
    let output = sleep.wait_with_output().expect("it ends");
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!((output.status.code(), &said["error"]["code"]), (Some(4), &"cancelled".into()), "{said}");
    // The beginning of an answer that goes no further.
    start_hostile(&sandbox, &path, "sleep_prep", &json!([{ "raw": "\u{5}" }]), &json!([]));
    let mut sleep = sandbox.command(&format!("instance sleep {path} --json"));
    let output = sleep.env("MVM_GUEST_TIMEOUT_MS", "1000").output().expect("mvm runs");
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(said["error"]["code"], "guest_silent", "{said}");
    assert_eq!(info(&sandbox, &path)["status"], "running");
    leaves_nothing(&sandbox);
}

#[test]
fn a_warm_guest_is_asked_too() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --drain-timeout 0");
    let path = start(&sandbox);
    says(&sandbox, &path, "worker busy");
    sandbox.ok(&format!("instance warm {path}"));
    assert_eq!(sandbox.refused(&format!("instance sleep {path}"), 4), "guest_busy");
    assert_eq!(info(&sandbox, &path)["status"], "warm");
    sandbox.ok(&format!("instance resume {path}"));
    says(&sandbox, &path, "worker idle");
    sandbox.ok(&format!("instance warm {path}"));
    sandbox.ok(&format!("instance sleep {path}"));
    sandbox.ok(&format!("instance wake {path}"));
    assert_eq!(says(&sandbox, &path, "echo on"), "on");
}

#[test]
fn what_is_under_way_is_finished_first() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --drain-timeout 0");
    let path = start(&sandbox);
    let roots = roots(&sandbox);
    let mut client = Client::of(&roots, &path);
    let mut guest = client.ask(&["cat"], true).expect("it is taken");
    assert_eq!(sandbox.refused(&format!("instance sleep {path}"), 4), "guest_busy");
    guest.data(Kind::Data, b"later").expect("it listens");
    guest.data(Kind::Data, b"").expect("it listens");
    assert_eq!(client.hear(guest), Some(("later".to_owned(), Exited::Code(0))));
    sandbox.ok(&format!("instance sleep {path}"));
}

/// Each command that a guest has taken is answered, and one that tries again whenever it is refused loses none.
#[test]
fn a_hundred_sleeps_lose_no_request() {
    const SLEEPS: u32 = 100;
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let roots = roots(&sandbox);
    let done = AtomicBool::new(false);
    let answered = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = Client::of(&roots, &path);
            let mut answered = 0_u32;
            for number in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let text = format!("request {number}");
                match client.ask(&["sh", "-c", &format!("log {text}; echo {text}")], false) {
                    Some(guest) => {
                        let heard = client.hear(guest).expect("what was taken is answered");
                        assert_eq!(heard, (format!("{text}\n"), Exited::Code(0)));
                        answered += 1;
                        client.has_not_done_what_it_did_not_take();
                    }
                    // It sleeps, or is about to: there is nothing to wait on but the next try.
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            answered
        });
        for _ in 0..SLEEPS {
            sandbox.ok(&format!("instance sleep {path}"));
            sandbox.ok(&format!("instance wake {path}"));
        }
        done.store(true, Ordering::Relaxed);
        client.join().expect("the client is well")
    });
    assert!(answered > SLEEPS, "{answered} in {SLEEPS} sleeps");
    assert!(exec(&sandbox, &path, "true").status.success());
    let leaks = sandbox.leaks();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

/// Those who follow the log, however many, keep no guest from sleeping and waking.
#[test]
fn many_followers_are_in_nobodys_way() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let roots = roots(&sandbox);
    let instance = record(&roots, &path);
    let mut refused = 0;
    let followers: Vec<Guest> = (0..60)
        .map(|_| {
            let mut guest = Guest::of(&roots, &instance).expect("it listens");
            match guest.ask(&Request::Logs { since_unix_ms: 0, follow: true }, Duration::ZERO) {
                Ok(Answer::Line(_)) => {}
                Err(mvm::vm::instance::guest::GuestError::Refused { code: Code::Busy, .. }) => refused += 1,
                other => panic!("{other:?}"),
            }
            guest
        })
        .collect();
    assert_eq!((followers.len(), refused), (60, 12));
    sandbox.ok(&format!("instance sleep {path}"));
    sandbox.ok(&format!("instance wake {path}"));
    drop(followers);
    assert!(exec(&sandbox, &path, "true").status.success());
}

type Frames = mvm_proto::Frames<mvm::vmm::vsock::Connection>;

/// Who speaks the protocol itself: it knows what was taken and what was not.
struct Client<'a> {
    roots: &'a Roots,
    record: PathBuf,
    /// What was asked for when the connection was lost: it was not taken, or else it was lost.
    doubtful: Vec<String>,
}

impl<'a> Client<'a> {
    fn of(roots: &'a Roots, path: &str) -> Self {
        let path = path.parse().expect("a path");
        Self { roots, record: mvm::vm::instance::config::file(roots, &path), doubtful: Vec::new() }
    }

    /// Starts a command; `None` where the guest did not take it.
    fn ask(&mut self, argv: &[&str], stdin: bool) -> Option<Frames> {
        let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
        let last = argv.last().cloned().unwrap_or_default();
        let instance: Instance = mvm::store::read(&self.record).ok()?;
        let mut guest = Guest::of(self.roots, &instance).ok()?;
        let exec = Exec { argv, stdin, ..Exec::default() };
        match guest.ask(&Request::Exec(exec), Duration::ZERO) {
            Ok(Answer::Started { .. }) => Some(guest.into_frames()),
            Ok(other) => panic!("{other:?}"),
            Err(mvm::vm::instance::guest::GuestError::Refused { code, .. }) => {
                assert_eq!(code, Code::Draining);
                None
            }
            Err(_) => {
                self.doubtful.push(last);
                None
            }
        }
    }

    /// The guest's log says which commands ran.
    fn has_not_done_what_it_did_not_take(&mut self) {
        if self.doubtful.is_empty() {
            return;
        }
        let Ok(instance) = mvm::store::read::<Instance>(&self.record) else { return };
        let Ok(mut guest) = Guest::of(self.roots, &instance) else { return };
        let request = Request::Logs { since_unix_ms: 0, follow: false };
        let mut lines = Vec::new();
        let mut next = guest.ask(&request, Duration::ZERO);
        while let Ok(Answer::Line(line)) = next {
            lines.push(line.text);
            next = guest.answer();
        }
        if !matches!(next, Ok(Answer::End {})) {
            return;
        }
        for lost in self.doubtful.drain(..) {
            let logged = lost.split("; ").next().unwrap_or_default().trim_start_matches("log ").to_owned();
            assert!(!lines.contains(&logged), "{logged} was done, and nobody heard of it");
        }
    }

    /// What it prints, and how it ends; `None` where that is lost.
    fn hear(&mut self, mut frames: Frames) -> Option<(String, Exited)> {
        let mut printed = Vec::new();
        loop {
            match frames.advance().ok()?? {
                Kind::Data => printed.extend_from_slice(frames.content()),
                Kind::Errors => {}
                Kind::Message => match frames.parse().ok()? {
                    Answer::Exited(exited) => {
                        return Some((String::from_utf8_lossy(&printed).into_owned(), exited));
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
    }
}
