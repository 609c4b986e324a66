//! Several commands at once: none is lost, no quota is exceeded, nothing is given out twice. And random sequences of
//! operations from several processes at the same time, some of them killed, held against the state table.

mod support;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use mvm::vm::instance::state::{self, Event, Next, State};
use serde_json::Value;
use support::Sandbox;

/// Runs commands at the same time and returns their exit codes and what they said on stderr, in order.
fn at_once(sandbox: &Sandbox, commands: &[String]) -> Vec<(Option<i32>, String)> {
    std::thread::scope(|scope| {
        let run = |command: &String| {
            let mut command = sandbox.command(&format!("{command} --json"));
            scope.spawn(move || command.output().expect("mvm runs"))
        };
        let running: Vec<_> = commands.iter().map(run).collect();
        running
            .into_iter()
            .map(|thread| {
                let output = thread.join().expect("no panic");
                (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
            })
            .collect()
    })
}

/// How many succeeded; the others must have been refused with this code.
fn succeeded(results: &[(Option<i32>, String)], otherwise: &str) -> usize {
    for (code, said) in results {
        let refused = *code == Some(4) && said.contains(&format!("\"code\":\"{otherwise}\""));
        assert!(*code == Some(0) || refused, "{code:?} {said}");
    }
    results.iter().filter(|(code, _)| *code == Some(0)).count()
}

#[test]
fn starts_at_once_do_not_exceed_a_quota() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("tenant update acme --max-running 3");
    let starts: Vec<String> =
        (0..8).map(|_| format!("instance start {}", sandbox.instance("acme/web"))).collect();
    assert_eq!(succeeded(&at_once(&sandbox, &starts), "quota"), 3);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn starts_at_once_do_not_exceed_the_nodes_room() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("node set mem-mib 300");
    let starts: Vec<String> =
        (0..5).map(|_| format!("instance start {}", sandbox.instance("acme/web"))).collect();
    assert_eq!(succeeded(&at_once(&sandbox, &starts), "no_room"), 2, "133 MiB each");
}

#[test]
fn creates_at_once_get_addresses_of_their_own_and_keep_to_the_quota() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("tenant update acme --max-instances-per-pool 5");
    let creates = vec!["instance create acme/web".to_owned(); 8];
    assert_eq!(succeeded(&at_once(&sandbox, &creates), "quota"), 5);
    let list = sandbox.ok("instance list");
    let ips: std::collections::HashSet<_> =
        list.as_array().into_iter().flatten().map(|instance| instance["net"]["guest_ip"].clone()).collect();
    assert_eq!(ips.len(), 5);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn one_of_two_tenants_gets_a_net_id() {
    let Some(sandbox) = Sandbox::new() else { return };
    let create = |number: u32| format!("tenant create t{number} --net-id 7 --subnet 10.240.{number}.0/24");
    let creates: Vec<String> = (0..4).map(create).collect();
    assert_eq!(succeeded(&at_once(&sandbox, &creates), "net_id_used"), 1);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn one_of_several_gets_a_published_port() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    sandbox.ok("pool create globex/web --vmm sim --mem 128 --data-disk 0");
    let create = |pool: &str| format!("instance create {pool} --publish tcp:8080:80");
    let creates: Vec<String> =
        ["acme/web", "globex/web", "acme/web", "globex/web"].iter().map(|pool| create(pool)).collect();
    assert_eq!(succeeded(&at_once(&sandbox, &creates), "port_taken"), 1);
    let twice = "instance create acme/web --publish udp:53:53 --publish udp:53:54";
    assert_eq!(sandbox.refused(twice, 4), "port_taken");
}

#[test]
fn updates_at_once_are_all_there_afterwards() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let updates: Vec<String> =
        (0..8).map(|number| format!("pool update acme/web --label k{number}=v")).collect();
    assert_eq!(succeeded(&at_once(&sandbox, &updates), ""), 8);
    assert_eq!(sandbox.ok("pool info acme/web")["labels"].as_object().map(serde_json::Map::len), Some(8));
    let verified = sandbox.ok("tenant audit acme --verify");
    assert_eq!(verified["ok"], true, "writers keep the chain");
}

#[test]
fn two_scales_at_once_do_not_make_twice_as_many() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let scales = vec!["pool scale acme/web --running 3".to_owned(); 3];
    assert_eq!(succeeded(&at_once(&sandbox, &scales), ""), 3);
    assert_eq!(sandbox.states().len(), 3);
}

#[test]
fn taps_are_made_while_vmms_are_started() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    // Several threads of one process: a child that is about to become a VMM must not hold another one's TAP.
    sandbox.ok("pool scale acme/web --running 16");
    sandbox.ok("pool scale acme/web --running 0");
    sandbox.ok("pool scale acme/web --running 16");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// How many commands each process of the random test runs.
const COMMANDS: usize = 40;
const MAX_RUNNING: usize = 2;
const MAX_WARM: usize = 1;

/// A command on one of the instances that there are, or on none in particular; one in six is killed somewhere.
fn random_command(sandbox: &Sandbox, random: &mut fastrand::Rng) -> std::process::Command {
    let states = sandbox.run("instance list --json");
    let list: Value = serde_json::from_slice(&states.stdout).unwrap_or_default();
    let paths: Vec<&str> =
        list.as_array().into_iter().flatten().filter_map(|instance| instance["path"].as_str()).collect();
    let one = match paths.len() {
        0 => "acme/web/i-00000000",
        count => paths[random.usize(0..count)],
    };
    let command = match random.u8(0..24) {
        0..3 => "instance create acme/web".to_owned(),
        3..7 => format!("instance start {one}"),
        7..10 => format!("instance sleep {one}"),
        10..13 => format!("instance wake {one}"),
        13..15 => format!("instance warm {one}"),
        15..17 => format!("instance resume {one}"),
        17 => format!("instance archive {one}"),
        18..20 => format!("instance stop {one} --force"),
        20 => format!("instance destroy {one} --yes --wipe-volumes"),
        21 => "node recover".to_owned(),
        22 => "node gc --scrub".to_owned(),
        _ => format!("pool scale acme/web --running {}", random.u8(0..3)),
    };
    let mut command = sandbox.command(&format!("{command} --json"));
    if random.u8(0..6) == 0 {
        command.env("MVM_FAILPOINT", format!("#{}", random.u8(1..40)));
    }
    command
}

#[test]
fn random_operations_at_once_agree_with_the_state_table() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok(&format!(
        "tenant update acme --max-running {MAX_RUNNING} --max-warm {MAX_WARM} --max-instances-per-pool 4"
    ));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let running = sandbox.vmms().len();
                assert!(running <= MAX_RUNNING + MAX_WARM, "{running} VMMs run");
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
        });
        let workers: Vec<_> = (0..4)
            .map(|seed| {
                let sandbox = &sandbox;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..COMMANDS {
                        let output = random_command(sandbox, &mut random).output().expect("mvm runs");
                        let killed = support::was_killed(&output);
                        // What a recovery could not do it says on stdout.
                        assert!(killed || matches!(output.status.code(), Some(0 | 3 | 4)), "{output:?}");
                    }
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("the quota was kept");
        for result in results {
            result.expect("no command failed in an unexpected way");
        }
    });
    sandbox.ok("node recover");
    let leaks = sandbox.leaks();
    assert!(leaks.is_empty(), "{leaks:#?}");
    let mut model = replay(&sandbox.ok("tenant audit acme"));
    model.retain(|_, state| *state != State::Destroyed);
    let list = sandbox.ok("instance list");
    let is: HashMap<String, State> = list.as_array().into_iter().flatten().map(path_and_state).collect();
    let as_listed = |state: State| if state == State::Created { State::Ready } else { state };
    assert_eq!(is, model.into_iter().map(|(path, state)| (path, as_listed(state))).collect());
}

fn path_and_state(instance: &Value) -> (String, State) {
    (text(&instance["path"]), text(&instance["status"]).parse().expect("a state"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What the audit log says of every instance, each line checked against the state table.
fn replay(log: &Value) -> HashMap<String, State> {
    let mut model = HashMap::new();
    for record in log.as_array().into_iter().flatten() {
        let (path, phase) = (text(&record["path"]), text(&record["phase"]));
        let what = text(&record["what"]);
        let (Some(verb), false) = (what.strip_prefix("instance."), phase == "intent") else { continue };
        let was = model.get(&path).copied();
        match (verb, phase.as_str()) {
            ("create", "done") => drop(model.insert(path, State::Created)),
            ("create" | "destroy", _) => drop(model.insert(path, State::Destroyed)),
            // What failed or was rolled back says where it is.
            ("start" | "sleep" | "wake" | "warm" | "resume", "failed") | ("archive", _) => {}
            ("start" | "sleep" | "wake" | "warm" | "resume", "recovered") => {
                if let Ok(state) = text(&record["to"]).parse() {
                    model.insert(path, state);
                }
            }
            ("start" | "stop" | "died" | "sleep" | "wake" | "warm" | "resume", _) => {
                let verbs = Event::ALL.into_iter().find(|event| event.name() == verb);
                let event = verbs.unwrap_or_else(|| panic!("no event: {record}"));
                let from = match was {
                    Some(State::Created) => State::Ready,
                    // A line that was written before its process was killed is followed by that of the recovery.
                    Some(State::Stopped) if phase == "recovered" => continue,
                    other => other.unwrap_or_else(|| panic!("nothing was made: {record}")),
                };
                match state::next(from, event) {
                    Next::To(state) => drop(model.insert(path, state)),
                    other => panic!("{from} does not {verb}: {other:?} {record}"),
                }
            }
            _ => panic!("an unknown line: {record}"),
        }
    }
    model
}
