//! What a guest can do to the devices around it.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    World,
    kernel::{Attack, BEGUN, DONE, kernel},
    names,
    support::wait_until,
};

/// Connections to its API, which may just be open, or to its guest.
const MORE_FDS: usize = 16;
/// Firecracker limits how often it says the same.
const MOST_LOG: u64 = 1 << 20;

fn seeds() -> u64 {
    std::env::var("MVM_ATTACK_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

/// Lets a guest do so many rounds of an attack, with each seed, and looks at everything around it.
fn survive(attack: Attack, rounds: u64) {
    let Some(world) = World::new() else { return };
    let sandbox = &world.sandbox;
    for seed in 1..=seeds() {
        let pool = format!("acme/a{seed}");
        world.pool(&pool, &kernel(attack, seed, rounds));
        let path = sandbox.instance(&pool);
        let record = sandbox.ok(&format!("instance start {path}"));
        let jail = world.jail(&record);
        let (before, fds) = (look(&record, &jail), count(&record, "fd"));
        let has_ended = || sandbox.ok(&format!("instance info {path}"))["status"] != "running";
        let says = |folder: &Path, word: &str| {
            let console = fs::read(folder.join("console.log")).unwrap_or_default();
            console.windows(word.len()).any(|part| part == word.as_bytes())
        };
        wait_until("it is through, or its VMM has ended", || says(&jail, DONE) || has_ended());
        let logs = sandbox.delta(&path).ancestors().nth(2).expect("the instance's").join("logs");
        assert!(says(&logs, BEGUN), "it did attack");
        let log = fs::metadata(logs.join("vmm.log")).map_or(0, |log| log.len());
        assert!(log < MOST_LOG, "{log} bytes of log");
        let after = sandbox.ok(&format!("instance info {path}"));
        println!("{attack:?}, seed {seed}: {} {}", after["status"], after["last_exit"]["why"]);
        if after["status"] == "running" {
            assert_eq!(look(&record, &jail), before);
            assert!(count(&record, "fd") <= fds + MORE_FDS, "{fds}, and then {}", count(&record, "fd"));
        } else {
            // What the first seed does has been seen to the end: its only way to end a VMM is that of queues.
            let why = after["last_exit"]["why"].as_str().unwrap_or_default();
            let said = fs::read(logs.join("vmm.log")).unwrap_or_default();
            assert!(
                why.contains("InvalidAvailIdx") || seed > 1 && !why.is_empty(),
                "{why}: {}",
                String::from_utf8_lossy(&said)
            );
        }
        world.neighbour_goes_on();
        sandbox.ok(&format!("instance destroy {path} --yes --wipe-volumes"));
        sandbox.ok(&format!("pool destroy {pool} --yes"));
    }
}

/// What of a VMM must not change: who it is, its threads, what is in its folder.
fn look(record: &Value, jail: &Path) -> (String, usize, Vec<String>) {
    let pid = &record["vmm"]["pid"];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let is_kept = |line: &&str| ["Uid:", "Gid:", "Cap", "Seccomp"].iter().any(|name| line.starts_with(name));
    (status.lines().filter(is_kept).collect(), count(record, "task"), names(jail))
}

/// Firecracker's way with such a driver is a panic.
#[test]
fn a_queue_with_more_in_it_than_it_has_room_for_ends_the_vmm_and_that_is_said() {
    let Some(world) = World::new() else { return };
    let sandbox = &world.sandbox;
    world.pool("acme/over", &kernel(Attack::Overfull, 1, 1000));
    let path = sandbox.instance("acme/over");
    sandbox.ok(&format!("instance start {path}"));
    let ended = sandbox.ok(&format!("instance wait {path} --for stopped --timeout 25"));
    let why = ended["last_exit"]["why"].as_str().expect("a reason");
    assert!(why.starts_with("the VMM ended by itself: Firecracker panicked at "), "{why}");
    world.neighbour_goes_on();
}

fn count(record: &Value, what: &str) -> usize {
    fs::read_dir(format!("/proc/{}/{what}", record["vmm"]["pid"])).map_or(0, Iterator::count)
}

#[test]
fn registers_of_devices_and_what_lies_between_them() {
    survive(Attack::Registers, 20_000);
}

#[test]
fn queues_that_lie() {
    survive(Attack::Queues, 30);
}

#[test]
fn ports() {
    survive(Attack::Ports, 20_000);
}

#[test]
fn registers_of_the_processor() {
    survive(Attack::Processor, 20_000);
}
