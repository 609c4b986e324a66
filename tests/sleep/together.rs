//! A wake that comes while the instance is being put to sleep: before the commit it prevails, after it it waits.

use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{
    guest::{Guest, end},
    support::wait_until,
};

/// A VMM that answers nothing for a while: what is asked of it waits.
pub struct Frozen(Pid);

impl Frozen {
    pub fn new(guest: &Guest) -> Self {
        let pid = Pid::from_raw(guest.pid()).expect("a pid is not 0");
        kill_process(pid, Signal::STOP).expect("it can be stopped");
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// One of mvm's locks, held by the test.
pub fn hold(guest: &Guest, name: &str) -> std::fs::File {
    let path = guest.sandbox.root().join("locks").join(name);
    let file = std::fs::File::options().write(true).create(true).truncate(false).open(path).expect("a lock");
    file.lock().expect("it is free");
    file
}

/// Waits until an operation is written down that has not ended.
pub fn wait_for_intent(guest: &Guest) {
    wait_until("the intent is there", || !guest.record()["pending"].is_null());
}

/// A wake that waits for the instance's lock.
fn waiting_wake(guest: &Guest) -> Child {
    let wake = guest.begin("wake");
    let wish = guest.sandbox.root().join("locks").join(format!("wish.{}", guest.path.replace('/', ".")));
    let is_held = || std::fs::File::open(&wish).is_ok_and(|file| file.try_lock().is_err());
    wait_until("the wake waits", is_held);
    wake
}

const DONE: (Option<i32>, &str) = (Some(0), "");

fn as_text(end: &(Option<i32>, String)) -> (Option<i32>, &str) {
    (end.0, &end.1)
}

/// A sleep that a wake cancels before its commit.
pub fn cancelled_sleep(guest: &Guest) {
    let frozen = Frozen::new(guest);
    let sleep = guest.begin("sleep");
    wait_for_intent(guest);
    let wake = waiting_wake(guest);
    drop(frozen);
    assert_eq!(as_text(&end(sleep)), (Some(4), "cancelled"));
    assert_eq!(as_text(&end(wake)), DONE);
}

#[test]
fn before_its_commit_a_sleep_is_cancelled() {
    let Some(mut guest) = Guest::new() else { return };
    // Freshly booted, and woken; the next sleep builds on what the cancelled one wrote.
    for _ in 0..2 {
        guest.works();
        cancelled_sleep(&guest);
        guest.is_as_it_was(0);
        guest.works();
        cancelled_sleep(&guest);
        guest.is_as_it_was(0);
        guest.sleeps_well();
    }
}

#[test]
fn a_warm_one_stays_warm_where_its_sleep_is_cancelled() {
    let Some(mut guest) = Guest::new() else { return };
    guest.ok("warm");
    let frozen = Frozen::new(&guest);
    let sleep = guest.begin("sleep");
    wait_for_intent(&guest);
    let wake = waiting_wake(&guest);
    drop(frozen);
    assert_eq!(as_text(&end(sleep)), (Some(4), "cancelled"));
    assert_eq!(as_text(&end(wake)), (Some(4), "state"), "a warm one is resumed");
    assert_eq!(guest.status(), "warm");
    guest.ok("resume");
    guest.is_as_it_was(0);
    guest.sleeps_well();
}

#[test]
fn after_its_commit_a_sleep_is_waited_for() {
    let Some(mut guest) = Guest::new() else { return };
    for _ in 0..2 {
        guest.works();
        // Its last part needs the node's lock.
        let held = hold(&guest, "node");
        let sleep = guest.begin("sleep");
        wait_until("the sleep is at its commit", || guest.delta().join("meta.json").exists());
        let wake = waiting_wake(&guest);
        drop(held);
        assert_eq!(as_text(&end(sleep)), DONE);
        assert_eq!(as_text(&end(wake)), DONE);
        guest.is_as_it_was(1);
    }
}

#[test]
fn of_many_wakes_at_once_one_wakes_it() {
    let Some(mut guest) = Guest::new() else { return };
    guest.works();
    guest.ok("sleep");
    let wakes: Vec<Child> = (0..4).map(|_| guest.begin("wake")).collect();
    for wake in wakes {
        assert_eq!(as_text(&end(wake)), DONE);
    }
    guest.is_as_it_was(1);
    let log = guest.sandbox.ok("tenant audit acme");
    let woken = |record: &&serde_json::Value| record["what"] == "instance.wake" && record["phase"] == "done";
    assert_eq!(log.as_array().map(|records| records.iter().filter(woken).count()), Some(1));
    assert_eq!(guest.info()["pending"], json!(null));
}
