//! What is done to one instance, with an agent in its guest and without.

use crate::{
    Case, assert_clean_but_files, assert_precious, data_disk, destroy_all_instances, fleet, kill_everywhere,
    support::{self, Sandbox},
    write_precious,
};

#[test]
fn instance_create() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let case = Case {
        operation: "instance create acme/web",
        reset: &destroy_all_instances,
        // The first may have been made before it was killed, and the second one is another one.
        check: &|sandbox| assert!(sandbox.states().len() <= 2),
        finishes_later: false,
    };
    kill_everywhere(&sandbox, &case);
}

fn start_case(vmm: &str) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool(vmm);
    let path = sandbox.instance("acme/web");
    write_precious(&sandbox, &path);
    let operation = format!("instance start {path}");
    let case = Case {
        operation: &operation,
        reset: &|sandbox| {
            if sandbox.states()[0].ends_with("running") {
                sandbox.ok(&format!("instance stop {path} --force"));
            }
        },
        check: &|sandbox| {
            assert_eq!(sandbox.states().len(), 1);
            assert_precious(&data_disk(sandbox, &path));
        },
        finishes_later: false,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn instance_start() {
    start_case("sim");
}

/// Before it is announced a start's intent has no name that lasts.
#[test]
fn a_start_whose_intent_a_power_cut_took_leaves_nothing() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let record = sandbox.root().join("tenants").join(path.replacen('/', "/pools/", 1).replacen(
        "web/",
        "web/instances/",
        1,
    ));
    let record = record.join("instance.json");
    let start = format!("instance start {path}");
    for (point, next) in
        [("start.reserve", "node recover"), ("start.spawn", "node recover"), ("start.spawn", &start)]
    {
        let before = std::fs::read(&record).expect("a record");
        assert!(support::was_killed(&sandbox.run_with(&start, point)), "{point}");
        sandbox.vmms().into_iter().for_each(|(pid, _)| support::kill_and_wait(pid));
        std::fs::write(&record, before).expect("it can be written");
        sandbox.ok(next);
        let leaks = sandbox.leaks();
        assert!(leaks.is_empty(), "{point}, {next}: {leaks:?}");
        sandbox.ok("tenant audit acme --verify");
        let state = if next == start { "running" } else { "ready" };
        assert!(sandbox.states()[0].ends_with(state), "{point}, {next}: {:?}", sandbox.states());
    }
}

/// A start of a guest with an agent, which makes the base snapshot first where there is none.
fn agent_start_case(reset_base: bool) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.agent_pool("sim");
    sandbox.ok(&format!("tenant secrets set acme DB --file {}", fleet::secret(&sandbox, "one")));
    let path = sandbox.instance("acme/web");
    write_precious(&sandbox, &path);
    let operation = format!("instance start {path}");
    let bases = sandbox.root().join("tenants/acme/pools/web/snapshots/base");
    let reset = |sandbox: &Sandbox| {
        if sandbox.states()[0].ends_with("running") {
            sandbox.ok(&format!("instance stop {path} --force"));
        }
        if reset_base {
            let _ = std::fs::remove_dir_all(&bases);
        }
    };
    reset(&sandbox);
    let case = Case {
        operation: &operation,
        reset: &reset,
        check: &|sandbox| {
            assert_eq!(sandbox.states().len(), 1);
            assert_precious(&data_disk(sandbox, &path));
            if sandbox.states()[0].ends_with("running") {
                assert_is_itself(sandbox, &path);
                assert_has_secret(sandbox, &path);
            }
        },
        // What a base was made in is cleared by who makes the next one.
        finishes_later: reset_base,
    };
    kill_everywhere(&sandbox, &case);
}

/// The guest is who it should be, also to itself.
fn assert_is_itself(sandbox: &Sandbox, path: &str) {
    let output = sandbox.run(&format!("instance exec -n {path} -- hostname"));
    assert_eq!(path.rsplit('/').next(), Some(String::from_utf8_lossy(&output.stdout).trim()), "{output:?}");
}

/// What its tenant's guests have, it has.
fn assert_has_secret(sandbox: &Sandbox, path: &str) {
    let output = sandbox.run(&format!("instance exec -n {path} -- cat /run/secrets/DB"));
    assert_eq!(output.stdout, b"one", "{output:?}");
}

#[test]
fn instance_start_from_a_base() {
    agent_start_case(false);
}

#[test]
fn instance_start_that_makes_its_base() {
    agent_start_case(true);
}

#[test]
fn instance_start_on_real_firecracker() {
    if support::firecracker().is_some() {
        start_case("firecracker");
    }
}

fn stop_case(make_pool: &dyn Fn(&Sandbox), verb: &str, look: &dyn Fn(&Sandbox, &str)) {
    let Some(sandbox) = Sandbox::new() else { return };
    make_pool(&sandbox);
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    write_precious(&sandbox, &path);
    let operation = format!("instance {verb} {path}");
    let case = Case {
        operation: &operation,
        reset: &|sandbox| {
            sandbox.ok(&format!("instance start {path}"));
            look(sandbox, &path);
        },
        check: &|sandbox| assert_precious(&data_disk(sandbox, &path)),
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn instance_stop() {
    stop_case(&|sandbox| sandbox.pool("sim"), "stop", &|_, _| ());
}

#[test]
fn instance_stop_on_real_firecracker() {
    if support::firecracker().is_some() {
        stop_case(&|sandbox| sandbox.pool("firecracker"), "stop --force", &|_, _| ());
    }
}

#[test]
fn instance_stop_with_an_agent() {
    stop_case(&|sandbox| sandbox.agent_pool("sim"), "stop", &assert_is_itself);
}

/// Has the guest's memory stayed what it was, through everything that happened to it? It knows how often it wrote.
fn assert_memory(sandbox: &Sandbox, path: &str) {
    let info = sandbox.ok(&format!("instance info {path}"));
    let tap = info["net"]["tap_dev"].as_str().expect("a TAP");
    let sum = sandbox.tell(tap, &serde_json::json!({ "cmd": "checksum" }));
    assert!(sum["sum"].is_string() && sum["writes"].as_u64() >= Some(50), "{sum}");
}

fn write_memory(sandbox: &Sandbox, path: &str) {
    let info = sandbox.ok(&format!("instance info {path}"));
    let tap = info["net"]["tap_dev"].as_str().expect("a TAP");
    sandbox.tell(tap, &serde_json::json!({ "cmd": "dirty", "pages": 50 }));
}

/// One verb killed everywhere, on an instance whose memory is looked at each time. `back` brings it back to where the verb
/// is possible.
fn memory_case(verb: &str, from: &[&str], back: &[&str]) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    memory_case_in(&sandbox, verb, from, back, &write_memory, &assert_memory);
}

/// The same in a jail, with a real guest, which does nothing: that it goes on is all that is known of it.
fn jailed_case(verb: &str, from: &[&str], back: &[&str]) {
    if support::firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("firecracker");
    memory_case_in(&sandbox, verb, from, back, &|_, _| (), &|_, _| ());
}

/// The same with a guest that has an agent, which takes requests again afterwards.
fn agent_memory_case(verb: &str, from: &[&str], back: &[&str]) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.agent_pool("sim");
    sandbox.ok(&format!("tenant secrets set acme DB --file {}", fleet::secret(&sandbox, "one")));
    memory_case_in(&sandbox, verb, from, back, &write_memory, &|sandbox, path| {
        assert_memory(sandbox, path);
        assert_is_itself(sandbox, path);
        assert_has_secret(sandbox, path);
    });
}

fn memory_case_in(
    sandbox: &Sandbox,
    verb: &str,
    from: &[&str],
    back: &[&str],
    work: &dyn Fn(&Sandbox, &str),
    look: &dyn Fn(&Sandbox, &str),
) {
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    work(sandbox, &path);
    write_precious(sandbox, &path);
    let all =
        |verbs: &[&str]| verbs.iter().for_each(|verb| drop(sandbox.ok(&format!("instance {verb} {path}"))));
    all(from);
    let operation = format!("instance {verb} {path}");
    let state = |sandbox: &Sandbox| sandbox.states()[0].rsplit(' ').next().unwrap_or_default().to_owned();
    let awake = |sandbox: &Sandbox| match state(sandbox).as_str() {
        "sleeping" => drop(sandbox.ok(&format!("instance wake {path}"))),
        "warm" => drop(sandbox.ok(&format!("instance resume {path}"))),
        other => assert_eq!(other, "running"),
    };
    let case = Case {
        operation: &operation,
        reset: &|sandbox| {
            awake(sandbox);
            all(back);
        },
        // Through all of this the guest is never lost: it is awake, or it can be woken.
        check: &|sandbox| {
            awake(sandbox);
            assert_precious(&data_disk(sandbox, &path));
            assert_clean_but_files(sandbox, "awake");
            look(sandbox, &path);
        },
        finishes_later: true,
    };
    kill_everywhere(sandbox, &case);
}

#[test]
fn instance_sleep_with_an_agent() {
    agent_memory_case("sleep", &[], &[]);
}

/// A guest that is asked nothing is found as well as one that was.
#[test]
fn instance_sleep_by_force_with_an_agent() {
    agent_memory_case("sleep --force", &[], &[]);
}

#[test]
fn instance_sleep_of_a_warm_one_with_an_agent() {
    agent_memory_case("sleep", &["warm"], &["warm"]);
}

#[test]
fn instance_wake_with_an_agent() {
    agent_memory_case("wake", &["sleep"], &["sleep"]);
}

#[test]
fn instance_resume_with_an_agent() {
    agent_memory_case("resume", &["warm"], &["warm"]);
}

#[test]
fn instance_sleep() {
    memory_case("sleep", &[], &[]);
}

#[test]
fn instance_sleep_of_a_warm_one() {
    memory_case("sleep", &["warm"], &["warm"]);
}

#[test]
fn instance_wake() {
    memory_case("wake", &["sleep"], &["sleep"]);
}

#[test]
fn instance_sleep_on_real_firecracker() {
    jailed_case("sleep", &[], &[]);
}

#[test]
fn instance_wake_on_real_firecracker() {
    jailed_case("wake", &["sleep"], &["sleep"]);
}

#[test]
fn instance_warm() {
    memory_case("warm", &[], &[]);
}

#[test]
fn instance_resume() {
    memory_case("resume", &["warm"], &["warm"]);
}

#[test]
fn instance_archive() {
    memory_case("archive", &["sleep"], &["sleep"]);
}

#[test]
fn instance_wake_of_an_archived_one() {
    memory_case("wake", &["sleep", "archive"], &["sleep", "archive"]);
}

fn destroy_case(flags: &str, kept: bool) {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let current = std::cell::RefCell::new(String::new());
    let reset = |sandbox: &Sandbox| {
        destroy_all_instances(sandbox);
        let _ = std::fs::remove_dir_all(sandbox.root().join("tenants/acme/pools/web/kept"));
        let path = sandbox.instance("acme/web");
        sandbox.ok(&format!("instance start {path}"));
        write_precious(sandbox, &path);
        *current.borrow_mut() = path;
    };
    reset(&sandbox);
    // The path changes with each instance: a prefix that fits any is what a person would type.
    let operation = format!("instance destroy acme/web/i- --yes {flags}");
    let case = Case {
        operation: &operation,
        reset: &reset,
        check: &|sandbox| {
            let path = current.borrow();
            let id = path.rsplit('/').next().unwrap_or_default();
            let kept_disk = sandbox.root().join(format!("tenants/acme/pools/web/kept/{id}.data.ext4"));
            match sandbox.states().is_empty() {
                true if kept => assert_precious(&kept_disk),
                true => assert!(!kept_disk.exists()),
                false => assert_precious(&data_disk(sandbox, &path)),
            }
        },
        finishes_later: true,
    };
    kill_everywhere(&sandbox, &case);
}

#[test]
fn instance_destroy_keeps_the_data_disk() {
    destroy_case("", true);
}

#[test]
fn instance_destroy_with_its_volumes() {
    destroy_case("--wipe-volumes", false);
}
