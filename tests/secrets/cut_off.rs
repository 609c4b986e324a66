//! Killed between what is stored and what guests have.

use std::{fs, os::unix::fs::MetadataExt};

use serde_json::json;

use crate::{
    support::{Sandbox, was_killed},
    world::{KEY, behind, changed, feed, generation, has, says, start, world},
};

fn killed(sandbox: &Sandbox, arguments: &str, content: &[u8], point: &str) {
    let mut command = sandbox.command(arguments);
    command.env("MVM_FAILPOINT", point);
    let output = feed(command, content);
    assert!(was_killed(&output), "{arguments} at {point}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_was_stored_and_not_given_is_said_and_given_by_the_next_one() {
    let Some(sandbox) = world() else { return };
    changed(&sandbox, "set", "DB", b"one");
    let recovered = || {
        sandbox.ok("node recover");
        let log = sandbox.ok("tenant audit acme");
        let mut lines = log.as_array().into_iter().flatten();
        let last = lines.rfind(|line| line["phase"] == "recovered").map(|line| line["detail"].to_string());
        last.unwrap_or_default()
    };
    let (path, sleeper) = (start(&sandbox), start(&sandbox));
    killed(&sandbox, "tenant secrets rotate acme DB", b"two", "secrets.announced");
    assert_eq!(behind(&sandbox), json!([]), "nothing was stored");
    assert!(recovered().contains("is as it was before"), "{}", recovered());
    killed(&sandbox, "tenant secrets rotate acme DB", b"two", "secrets.saved");
    assert!(recovered().contains("is as it was to be"), "{}", recovered());
    assert_eq!(has(&sandbox, &path, "DB"), "one");
    let mut both = [path.clone(), sleeper.clone()];
    both.sort();
    assert_eq!(behind(&sandbox), json!(both));
    let said = format!("guests have older ones: {}", both.join(", "));
    assert_eq!(sandbox.checked("secrets"), ("warn".to_owned(), said));
    let listed = sandbox.run("tenant secrets list acme");
    assert!(String::from_utf8_lossy(&listed.stderr).contains(&format!("{path} has older ones")));
    // A wake gives it, as a start does.
    sandbox.ok(&format!("instance sleep {sleeper}"));
    sandbox.ok(&format!("instance wake {sleeper}"));
    assert_eq!((has(&sandbox, &sleeper, "DB"), behind(&sandbox)), ("two".into(), json!([path])));
    // So does the same again.
    let again = changed(&sandbox, "rotate", "DB", b"two");
    assert_eq!((&again["changed"], &again["given"]), (&json!(false), &json!([path])));
    assert_eq!((has(&sandbox, &path, "DB"), behind(&sandbox)), ("two".into(), json!([])));
    // Killed when the guest had it, before that was written down: it is given once more.
    killed(&sandbox, "tenant secrets rotate acme DB", b"three", "secrets.given");
    assert_eq!(changed(&sandbox, "rotate", "DB", b"three")["failed"], json!([]));
    for path in [&path, &sleeper] {
        assert_eq!((has(&sandbox, path, "DB"), generation(&sandbox, path)), ("three".into(), json!(3)));
    }
    assert_eq!(sandbox.leaks(), [""; 0]);
}

/// Its guest is greeted when it goes on, which gives it what there is by now.
#[test]
fn a_sleep_that_its_guest_refuses_gives_it_what_was_stored() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool update acme/web --drain-timeout 0");
    changed(&sandbox, "set", "DB", b"one");
    let path = start(&sandbox);
    killed(&sandbox, "tenant secrets rotate acme DB", b"two", "secrets.saved");
    assert_eq!(sandbox.ok("node recover")["behind"], json!([path]));
    assert_eq!((has(&sandbox, &path, "DB"), behind(&sandbox)), ("one".into(), json!([path])));
    says(&sandbox, &path, "worker busy");
    assert_eq!(sandbox.refused(&format!("instance sleep {path}"), 4), "guest_busy");
    assert_eq!((has(&sandbox, &path, "DB"), generation(&sandbox, &path)), ("two".into(), json!(2)));
    assert_eq!((behind(&sandbox), &sandbox.ok("node recover")["behind"]), (json!([]), &json!([])));
}

/// A wake that was cut off is settled by who has no master key: its guest is paused, and is greeted, gets its secrets and joins the
/// network when it is resumed.
#[test]
fn a_wake_is_settled_without_the_master_key() {
    let Some(sandbox) = world() else { return };
    let with_key = |arguments: &str, content: &[u8]| {
        let mut command = sandbox.command(arguments);
        command.env("MVM_MASTER_KEY", KEY);
        let output = feed(command, content);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    with_key("tenant secrets set acme DB", b"one");
    let path = sandbox.instance("acme/web");
    with_key(&format!("instance start {path}"), b"");
    let info = || sandbox.ok(&format!("instance info {path}"));
    for (point, content) in [("wake.consume", "two"), ("wake.resume", "three"), ("wake.greet", "four")] {
        sandbox.ok(&format!("instance sleep {path}"));
        with_key("tenant secrets rotate acme DB", content.as_bytes());
        let mut wake = sandbox.command(&format!("instance wake {path}"));
        wake.envs([("MVM_MASTER_KEY", KEY), ("MVM_FAILPOINT", point)]);
        assert!(was_killed(&wake.output().expect("mvm runs")), "{point}");
        sandbox.ok("node recover");
        assert_eq!((&info()["status"], &info()["pending"]), (&json!("warm"), &json!(null)), "{point}");
        assert_eq!(sandbox.leaks(), [""; 0], "{point}");
        let log = sandbox.ok("tenant audit acme");
        let last = log.as_array().and_then(|log| log.last().cloned()).unwrap_or_default();
        assert_eq!((&last["what"], &last["to"]), (&json!("instance.wake"), &json!("warm")), "{last}");
        assert!(!sandbox.is_joined(&path), "{point}");
        with_key(&format!("instance resume {path}"), b"");
        assert_eq!(has(&sandbox, &path, "DB"), content, "{point}");
        assert!(sandbox.is_joined(&path), "{point}");
    }
    let cut_off = || {
        sandbox.ok(&format!("instance sleep {path}"));
        let mut wake = sandbox.command(&format!("instance wake {path}"));
        wake.envs([("MVM_MASTER_KEY", KEY), ("MVM_FAILPOINT", "wake.consume")]);
        assert!(was_killed(&wake.output().expect("mvm runs")));
    };
    cut_off();
    // Also where that is cut off, everywhere.
    let mut points = 0;
    while was_killed(&sandbox.run_with("node recover", format!("#{}", points + 1))) {
        points += 1;
        sandbox.ok("node recover");
        assert_eq!((&info()["status"], &info()["pending"]), (&json!("warm"), &json!(null)), "{points}");
        assert_eq!(sandbox.leaks(), [""; 0], "{points}");
        with_key(&format!("instance resume {path}"), b"");
        cut_off();
    }
    assert!(points > 5, "{points}");
    assert_eq!(info()["status"], "warm");
    // That it waited is its VMM's matter, and ends with it: the next one is like any other.
    sandbox.ok(&format!("instance sleep {path}"));
    let mut wake = sandbox.command(&format!("instance wake {path}"));
    wake.envs([("MVM_MASTER_KEY", KEY), ("MVM_FAILPOINT", "wake.consume")]);
    assert!(was_killed(&wake.output().expect("mvm runs")));
    with_key("node recover", b"");
    assert!(was_killed(&sandbox.run_with(&format!("instance warm {path}"), "warm.reserved")));
    with_key("node recover", b"");
    assert_eq!((&info()["status"], sandbox.is_joined(&path)), (&json!("running"), true));
    cut_off();
    sandbox.ok(&format!("instance stop {path}"));
    assert_eq!((info()["status"].clone(), sandbox.leaks()), ("stopped".into(), vec![]));
}

#[test]
fn what_is_said_to_have_failed_was_not_stored() {
    let Some(sandbox) = world() else { return };
    changed(&sandbox, "set", "DB", b"one");
    let version = || sandbox.ok("tenant secrets list acme")[0]["version"].as_u64();
    let (mut failed, mut stands) = (0, 0);
    for point in 1.. {
        let before = version();
        let mut rotate = sandbox.command("tenant secrets rotate acme DB");
        rotate.env("MVM_FAILPOINT", format!("fail:#{point}"));
        if feed(rotate, format!("{point}").as_bytes()).status.success() {
            break;
        }
        let log = sandbox.ok("tenant audit acme");
        let last = log.as_array().and_then(|log| log.last().cloned()).unwrap_or_default();
        let has_failed = last["phase"] == "failed";
        assert!(!has_failed || version() == before, "{last}");
        failed += u32::from(has_failed);
        stands += u32::from(version() != before);
        sandbox.ok("node recover");
    }
    assert!(failed > 0 && stands > 0, "{failed} {stands}");
}

#[test]
fn a_tenant_that_is_destroyed_takes_its_key_along() {
    let Some(sandbox) = world() else { return };
    changed(&sandbox, "set", "DB", b"one");
    let folder = sandbox.root().join("tenants/acme");
    let (key, stored) = (folder.join("secrets.key"), folder.join("secrets.json"));
    // Other names of the same files, as in a backup.
    let copies = tempfile::tempdir_in(sandbox.root()).expect("a folder");
    let copy = |name: &str| copies.path().join(name);
    fs::hard_link(&key, copy("key")).expect("a link");
    fs::copy(&stored, copy("json")).expect("a copy");
    let destroy = "tenant destroy acme --yes --wipe-volumes";
    for point in ["shred.overwritten", "tenant-destroy.shredded"] {
        assert!(was_killed(&sandbox.run_with(destroy, point)), "{point}");
        let bytes = fs::read(copy("key")).expect("a file");
        assert!(!bytes.is_empty() && bytes.iter().all(|byte| *byte == 0), "what it lay in holds it");
    }
    // They are not taken for lost.
    assert!(!key.exists() && stored.exists());
    sandbox.ok("node recover");
    sandbox.ok("tenant info acme");
    sandbox.ok(destroy);
    assert!(!folder.exists());
    assert_eq!(fs::metadata(copy("key")).expect("a file").nlink(), 1);
    // What was copied of its secrets is noise, also for a tenant of that name and with the same master key.
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    sandbox.ok("pool create acme/web --vmm sim --mem 128 --data-disk 8 --agent required");
    sandbox.import("acme/web", "");
    fs::copy(copy("json"), &stored).expect("a copy");
    let path = sandbox.instance("acme/web");
    assert_eq!(sandbox.refused(&format!("instance start {path}"), 1), "damaged");
    fs::remove_file(&stored).expect("a file");
    changed(&sandbox, "set", "OTHER", b"x");
    fs::copy(copy("json"), &stored).expect("a copy");
    assert_eq!(sandbox.refused(&format!("instance start {path}"), 1), "damaged");
}
