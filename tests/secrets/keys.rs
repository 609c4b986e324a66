//! Master keys: given, wrong, missing, and what a node in production takes.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Output, Stdio},
    time::Duration,
};

use mvm::{
    infra::config::{Environment, Roots},
    store::{Lock, Sharing},
};
use serde_json::Value;

use crate::{
    support::{Sandbox, own_mounts, run, wait_until},
    world::{KEY, OTHER_KEY, error, faulty_world, feed, says, start, world},
};

fn with(sandbox: &Sandbox, key: Option<&str>, arguments: &str, content: &[u8]) -> Output {
    let mut command = sandbox.command(&format!("{arguments} --json"));
    command.envs(key.map(|key| ("MVM_MASTER_KEY", key)));
    feed(command, content)
}

#[track_caller]
fn refused(output: &Output) -> String {
    let (code, word, what) = error(output);
    assert_eq!((code, word.as_str()), (Some(5), "master_key"), "{what}");
    what
}

#[test]
fn a_wrong_master_key_is_said_and_makes_nothing_new() {
    let Some(sandbox) = world() else { return };
    let set = "tenant secrets set acme DB";
    assert!(with(&sandbox, Some(KEY), set, b"one").status.success());
    assert!(!sandbox.root().join("master.key").exists(), "one was given");
    let files = || {
        ["secrets.json", "secrets.key"]
            .map(|name| fs::read(sandbox.root().join("tenants/acme").join(name)).expect("a file"))
    };
    let before = files();
    let what = refused(&with(&sandbox, Some(OTHER_KEY), "tenant secrets rotate acme DB", b"two"));
    let is_id = |word: &&str| word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let ids: Vec<&str> = what.split([' ', ',']).filter(is_id).collect();
    assert!(matches!(ids[..], [expected, given] if expected != given), "{what}");
    assert!(!what.contains(OTHER_KEY), "{what}");
    let what = refused(&with(&sandbox, None, set, b"one"));
    assert!(what.contains(ids[0]) && what.ends_with("no master key is given"), "{what}");
    assert_eq!(files(), before);
    // Names and hashes need no key; guests do, and nothing is begun for them.
    assert_eq!(sandbox.ok("tenant secrets list acme")[0]["name"], "DB");
    let path = sandbox.instance("acme/web");
    let go = |verb: &str, key| with(&sandbox, key, &format!("instance {verb} {path}"), b"");
    let status = || sandbox.ok(&format!("instance info {path}"))["status"].clone();
    refused(&go("start", Some(OTHER_KEY)));
    assert_eq!((status(), sandbox.leaks()), ("ready".into(), vec![]));
    assert!(go("start", Some(KEY)).status.success());
    assert!(go("sleep", None).status.success());
    refused(&go("wake", None));
    assert_eq!((status(), sandbox.leaks()), ("sleeping".into(), vec![]));
    assert!(go("wake", Some(KEY)).status.success());
    // Another tenant's key is sealed with the same one, or not at all.
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    refused(&with(&sandbox, Some(OTHER_KEY), "tenant secrets set globex DB", b"one"));
    refused(&with(&sandbox, None, "tenant secrets set globex DB", b"one"));
    assert!(
        !sandbox.root().join("tenants/globex/secrets.key").exists()
            && !sandbox.root().join("master.key").exists()
    );
    assert!(with(&sandbox, Some(KEY), "tenant secrets set globex DB", b"one").status.success());
}

/// Where tenants have their first secrets at once, one master key is taken or made, and who has another one is refused.
#[test]
fn first_secrets_at_once_are_sealed_with_one_master_key() {
    for keys in [[Some(KEY), Some(OTHER_KEY)], [None, None]] {
        let Some(sandbox) = Sandbox::new() else { return };
        let roots = Roots::new(sandbox.root(), &Environment::default()).expect("roots");
        let content = sandbox.root().join("content");
        fs::write(&content, "one").expect("a file");
        let all = keys.iter().cycle().zip(3..11).map(|(key, id)| {
            let tenant = format!("t{id}");
            sandbox.ok(&format!("tenant create {tenant} --net-id {id} --subnet 10.240.{id}.0/24"));
            let file = roots.lock_file(&format!("tenant.{tenant}"));
            let lock = Lock::take(&file, &tenant, Sharing::Exclusive, Duration::ZERO).expect("a lock");
            let set = format!("tenant secrets set {tenant} DB --json --file {}", content.display());
            let mut command = sandbox.command(&set);
            command
                .envs(key.map(|key| ("MVM_MASTER_KEY", key)))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            (command.spawn().expect("mvm runs"), (file, lock))
        });
        let (children, locks): (Vec<Child>, Vec<(PathBuf, Lock)>) = all.unzip();
        for (child, (file, _)) in children.iter().zip(&locks) {
            wait_until("it waits", || {
                let open = fs::read_dir(format!("/proc/{}/fd", child.id())).expect("it is there");
                open.flatten().any(|one| fs::read_link(one.path()).is_ok_and(|open| open == *file))
            });
        }
        drop(locks);
        let outputs: Vec<Output> =
            children.into_iter().map(|child| child.wait_with_output().expect("it ends")).collect();
        let (good, bad): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
        bad.iter().for_each(|output| drop(refused(output)));
        assert_eq!(good.len(), if keys[0].is_some() { 4 } else { 8 }, "{outputs:?}");
        let files = (3..11).map(|id| sandbox.root().join(format!("tenants/t{id}/secrets.key")));
        let read = |file: PathBuf| serde_json::from_slice::<Value>(&fs::read(file).ok()?).ok();
        let mut ids: Vec<_> = files.filter_map(read).map(|file| file["master_key"].to_string()).collect();
        assert_eq!(ids.len(), good.len());
        ids.dedup();
        assert_eq!(ids.len(), 1, "{ids:?}");
    }
}

/// A link that leads nowhere, to a disk that is not mounted for example.
#[test]
fn no_master_key_is_made_in_place_of_one_that_is_missing() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    let (link, elsewhere) = (sandbox.root().join("master.key"), sandbox.root().join("elsewhere"));
    std::os::unix::fs::symlink(&elsewhere, &link).expect("a link");
    assert!(refused(&with(&sandbox, None, "tenant secrets set acme DB", b"one")).contains("cannot be read"));
    assert!(link.is_symlink() && !elsewhere.exists());
    assert!(!sandbox.root().join("tenants/acme/secrets.key").exists());
}

/// Who has no master key can stop what runs, and leaves nothing half done by trying something else.
#[test]
fn without_a_master_key_what_runs_can_be_stopped() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --drain-timeout 0");
    assert!(with(&sandbox, Some(KEY), "tenant secrets set acme DB", b"one").status.success());
    let path = sandbox.instance("acme/web");
    let go = |verb: &str, key| with(&sandbox, key, &format!("instance {verb} {path}"), b"");
    let state = || {
        let info = sandbox.ok(&format!("instance info {path}"));
        (info["status"].clone(), info["pending"].clone())
    };
    assert!(go("start", Some(KEY)).status.success());
    assert!(go("warm", None).status.success());
    refused(&go("resume", None));
    assert_eq!(state(), ("warm".into(), serde_json::Value::Null));
    assert!(go("resume", Some(KEY)).status.success());
    // Its guest is at work, so it does not sleep; what undoes that cannot open its secrets.
    says(&sandbox, &path, "worker busy");
    assert_eq!(go("sleep", None).status.code(), Some(4));
    assert_eq!(state(), ("running".into(), serde_json::Value::Null));
    assert!(go("stop", None).status.success());
    assert_eq!((state().0, sandbox.leaks()), ("stopped".into(), vec![]));
}

#[test]
fn a_master_key_comes_from_a_file_or_from_systemd() {
    let Some(sandbox) = world() else { return };
    let file = sandbox.root().join("key.in");
    let credentials = sandbox.root().join("credentials");
    fs::create_dir(&credentials).expect("a folder");
    fs::write(credentials.join("mvm-master-key"), format!("{KEY}\n")).expect("a file");
    fs::write(&file, KEY).expect("a file");
    let run = |verb: &str, variables: &[(&str, &str)]| {
        let mut command = sandbox.command(&format!("tenant secrets {verb} acme DB --json"));
        command.envs(variables.iter().copied());
        feed(command, b"one")
    };
    let given = [("MVM_MASTER_KEY_FILE", file.to_str().expect("a path"))];
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it can be changed");
    assert!(refused(&run("set", &given)).contains("may be read by others: its mode is 644"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it can be changed");
    assert!(run("set", &given).status.success());
    assert!(
        run("rotate", &[("CREDENTIALS_DIRECTORY", credentials.to_str().expect("a path"))]).status.success()
    );
    refused(&run("rotate", &[given[0], ("MVM_MASTER_KEY", KEY)]));
    for bad in [vec![0xff; 10 << 20], b"password\n".to_vec(), vec![]] {
        fs::write(&file, bad).expect("a file");
        assert!(refused(&run("rotate", &given)).starts_with("there is no master key in"));
    }
    fs::remove_file(&file).expect("a file");
    assert!(refused(&run("rotate", &given)).contains("cannot be read"));
}

#[test]
fn a_node_in_production_takes_no_key_that_lies_beside_what_it_protects() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    let key = sandbox.root().join("master.key");
    let set = |name: &str, key| with(&sandbox, key, &format!("tenant secrets set acme {name}"), b"one");
    let production = |switch: &str| drop(sandbox.ok(&format!("node set production {switch}")));
    sandbox.ok("node set plain-storage-waiver on");
    production("on");
    refused(&set("A", None));
    assert!(!key.exists() && !sandbox.root().join("tenants/acme/secrets.key").exists());
    production("off");
    let made = set("A", None);
    assert!(String::from_utf8_lossy(&made.stdout).contains("master_key_made"), "it is said");
    assert_eq!(fs::metadata(&key).expect("a key").permissions().mode() & 0o777, 0o600);
    let (level, said) = sandbox.checked("master-key");
    assert!(level == "warn" && said.contains("beside what it protects"), "{level}: {said}");
    production("on");
    refused(&set("B", None));
    refused(&set("B", Some(OTHER_KEY)));
    assert_eq!(sandbox.checked("master-key").0, "fail");
    // The same key, given from elsewhere.
    let moved = fs::read_to_string(&key).expect("a key");
    fs::remove_file(&key).expect("a key");
    assert!(set("B", Some(&moved)).status.success());
}

/// The only program that gets mvm's own environment is the one that mvm becomes.
#[test]
fn a_program_that_mvm_becomes_gets_no_master_key() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    own_mounts();
    run("mount", &["-t", "tmpfs", "tmpfs", "/usr/local/sbin"]);
    fs::write("/usr/local/sbin/ssh", "#!/bin/sh\nenv\n").expect("a script");
    fs::set_permissions("/usr/local/sbin/ssh", fs::Permissions::from_mode(0o755)).expect("it can be run");
    let mut command = sandbox.command(&format!("instance ssh {path}"));
    let output = command.env("MVM_MASTER_KEY", KEY).output().expect("mvm runs");
    let said = String::from_utf8(output.stdout).expect("a text");
    assert!(said.contains("MVM_ROOT="), "{said}");
    assert!(!said.contains("MVM_MASTER_KEY") && !said.contains(KEY), "{said}");
}

/// A node that was in production before anybody asked for that.
#[test]
fn a_node_in_production_starts_nothing_on_plain_storage() {
    let Some(sandbox) = faulty_world() else { return };
    if mvm::security::storage::look(sandbox.root()).is_encrypted() {
        return crate::support::skip("the temporary folder lies on encrypted storage");
    }
    let (ready, sleeper) = (sandbox.instance("acme/web"), start(&sandbox));
    sandbox.ok(&format!("instance sleep {sleeper}"));
    let file = sandbox.root().join("node.json");
    let node = fs::read_to_string(&file).expect("a file");
    fs::write(&file, node.replace("\"production\": false", "\"production\": true")).expect("a file");
    for verb in ["start", "wake"] {
        let path = if verb == "start" { &ready } else { &sleeper };
        let (code, word, what) = error(&sandbox.run(&format!("instance {verb} {path} --json")));
        assert_eq!((code, word.as_str()), (Some(4), "production"), "{what}");
        assert!(what.contains("must lie on encrypted storage"), "{what}");
    }
    fs::write(&file, node).expect("a file");
    sandbox.ok(&format!("instance wake {sleeper}"));
}

#[test]
fn production_needs_encrypted_storage_or_a_word_that_it_does_not() {
    let Some(sandbox) = Sandbox::new() else { return };
    if mvm::security::storage::look(sandbox.root()).is_encrypted() {
        return crate::support::skip("the temporary folder lies on encrypted storage");
    }
    assert_eq!(sandbox.refused("node set production on", 4), "plain_storage");
    assert_eq!(sandbox.ok("node info")["production"], false);
    sandbox.ok("node set plain-storage-waiver on");
    let running = sandbox.run("node set production on");
    assert!(running.status.success() && running.stderr.is_empty());
    assert_eq!(sandbox.ok("node info")["plain_storage_waiver"], true);
    assert_eq!(sandbox.refused("node set plain-storage-waiver off", 4), "plain_storage");
    sandbox.ok("node set production off");
    sandbox.ok("node set plain-storage-waiver off");
}

/// What runs is not ended by it; it is named, and nothing is made for what is refused.
#[test]
fn a_node_that_becomes_one_in_production_names_what_runs_outside_its_rules() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    sandbox.ok("node set plain-storage-waiver on");
    let said = sandbox.run("node set production on");
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains(&format!("{path} runs on with the simulated VMM")), "{said}");
    assert_eq!(says(&sandbox, &path, "echo on"), "on");
    for arguments in ["run debian --vmm sim -- true", "run debian -- true"] {
        let refused = sandbox.run(arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(4) && said.contains("this node is in production"), "{said}");
    }
    let names = |folder: &str| fs::read_dir(sandbox.root().join(folder)).map_or(0, Iterator::count);
    assert_eq!((names("tenants"), names("images")), (1, 0));
}
