//! Guest images: what is refused, and one that is made for real where the machine has the tools.

mod support;

use std::{fs, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::{Sandbox, skip};

#[test]
fn what_is_no_image_is_refused_before_anything_is_made() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    for (command, exit, code) in [
        ("pool create acme/web --image debian", 3, "no_such_image"),
        ("pool create acme/web --image ../x", 2, "usage"),
        ("pool create acme/web --image debian --flake .", 2, "usage"),
        ("image debian --name Debian", 2, "usage"),
        ("image debian --package -oDir=/", 2, "usage"),
        ("image debian --package a,b", 2, "usage"),
        ("image fedora", 2, "usage"),
    ] {
        assert_eq!(sandbox.refused(command, exit), code, "mvm {command}");
    }
    let said = sandbox.run("pool create acme/web --image debian");
    assert!(String::from_utf8_lossy(&said.stderr).contains("try: mvm image debian"));
    assert_eq!(sandbox.ok("image list"), serde_json::json!([]));
    assert_eq!(sandbox.ok("pool list"), serde_json::json!([]));
}

/// Who ends a run gets all of it taken away, though nobody reads what its command says.
#[test]
fn a_run_that_is_ended_leaves_no_instance_though_its_output_is_stuck() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.put_image_with("debian", "required");
    let mut child =
        sandbox.command("run debian --vmm sim -n -- yes").stdout(Stdio::piped()).spawn().expect("mvm runs");
    let _stdout = child.stdout.take().expect("a pipe");
    support::await_stuck(&child);
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(143));
    assert_eq!(sandbox.states(), [""; 0]);
}

/// One line for who just wants to see it: everything is made, and nothing but what the next run starts from is left.
#[test]
fn run_runs_a_command_and_leaves_no_instance() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.put_image_with("debian", "required");
    // Somebody else has the first net id that is tried, and somebody the subnet.
    sandbox.ok("tenant create acme --net-id 4095 --subnet 10.240.3.0/24");
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.255.254.0/24");
    let mut names = Vec::new();
    for _ in 0..2 {
        let output = sandbox.run("run debian --vmm sim -n -- hostname");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        names.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        assert_eq!(sandbox.states(), [""; 0]);
    }
    assert!(names[0].starts_with("i-") && names[0] != names[1], "{names:?}");
    assert_eq!(sandbox.run("run debian --vmm sim -n -- exit 9").status.code(), Some(9));
    assert_eq!(sandbox.run("run debian --vmm sim -n -- nonesuch").status.code(), Some(127));
    assert_eq!(sandbox.run("run nonesuch --vmm sim -n -- true").status.code(), Some(3));
    // A run that is killed leaves its instance to the next one; one that is kept stays.
    let killed = sandbox.run_with("run debian --vmm sim -n -- true", "start.identify");
    assert!(support::was_killed(&killed));
    let kept = sandbox.run("run debian --vmm sim -n --keep -- hostname");
    let kept = String::from_utf8_lossy(&kept.stdout).trim().to_owned();
    assert!(sandbox.run("run debian --vmm sim -n -- true").status.success());
    let states = sandbox.states();
    assert!(states.len() == 1 && states[0].contains(&kept) && states[0].ends_with("running"), "{states:?}");
    // A node's recovery takes away what killed ones left, too.
    let killed = sandbox.run_with("run debian --vmm sim --mem 64 -n -- true", "start.recorded");
    assert!(support::was_killed(&killed));
    assert_eq!(sandbox.states().len(), 2);
    let recovered = sandbox.ok("node recover");
    assert!(recovered["reclaimed"][0].as_str().is_some_and(|what| what.ends_with("of a killed mvm run")));
    assert_eq!(sandbox.states(), states);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn an_image_without_an_agent_runs_nothing() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.put_image_with("plain", "none");
    let output = sandbox.run("run --json plain --vmm sim -n -- true");
    assert_eq!(output.status.code(), Some(4));
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(said["error"]["code"], "no_agent");
    assert_eq!(sandbox.ok("tenant list"), serde_json::json!([]));
}

#[test]
fn a_pool_starts_from_an_image_and_keeps_its_own_copy() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.put_image("debian");
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    let pool = sandbox.ok("pool create acme/web --image debian --vmm sim --mem 128 --data-disk 8");
    assert_eq!((&pool["image"], &pool["agent"]), (&"debian".into(), &"none".into()));
    assert!(pool["revision"].is_string());
    let again = sandbox.ok("pool create acme/web --image debian --vmm sim --mem 128 --data-disk 8");
    assert_eq!(again["revision"], pool["revision"]);
    assert_eq!(sandbox.refused("pool create acme/web --vmm sim --mem 128 --data-disk 8", 4), "exists");
    // A pool whose import was cut off gets its revision by the same command.
    let cut = sandbox.run_with("pool create acme/late --image debian --vmm sim --mem 128", "import.copied");
    assert!(support::was_killed(&cut));
    sandbox.ok("pool create acme/late --image debian --vmm sim --mem 128");
    fs::remove_dir_all(sandbox.root().join("images")).expect("it was there");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn a_damaged_image_is_said_and_in_the_way_of_no_other() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.put_image("debian");
    sandbox.put_image("other");
    fs::write(sandbox.root().join("images/debian/current/initrd"), "").expect("a file");
    let list = sandbox.run("image list --json");
    assert_eq!(list.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&list.stderr).contains("image_changed"));
    assert!(String::from_utf8_lossy(&list.stdout).contains("other"));
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    assert_eq!(sandbox.refused("pool create acme/web --image debian --vmm sim", 1), "image_changed");
}

/// Made for real, twice, and killed in between: a minute, and packages from the mirror of apt. So only where it is asked for.
#[test]
fn the_same_versions_give_the_same_debian_and_a_kill_leaves_nothing() {
    if std::env::var_os("MVM_TEST_IMAGE").is_none() {
        return skip("MVM_TEST_IMAGE is not set: making a Debian image takes a minute and a mirror");
    }
    let missing = |tool: &&&str| mvm::infra::shell::find(tool).is_none();
    if let Some(tool) = ["mmdebstrap", "mke2fs", "apt-get"].iter().find(missing) {
        return skip(&format!("no {tool}"));
    }
    // No network namespace: packages are fetched.
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join(".throw-away"), "").expect("a mark");
    let mvm = |root: &str, failpoint: &str| {
        let root = dir.path().join(root);
        fs::create_dir_all(&root).expect("a folder");
        fs::write(root.join(".throw-away"), "").expect("a mark");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mvm"));
        command.args(["image", "debian", "--json"]).env("MVM_ROOT", root).env("MVM_FAILPOINT", failpoint);
        command.output().expect("mvm runs")
    };
    assert!(support::was_killed(&mvm("a", "image.root")));
    let (a, b) = (mvm("a", ""), mvm("b", ""));
    let revision = |output: &std::process::Output| {
        let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        made["revision"].as_str().map(str::to_owned)
    };
    assert!(revision(&a).is_some(), "{}", String::from_utf8_lossy(&a.stderr));
    assert_eq!(revision(&a), revision(&b));
    let mut left: Vec<_> = fs::read_dir(dir.path().join("a/images/debian"))
        .expect("it is there")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left.len(), 2, "{left:?}");
}
