//! Killed between what is stored and what guests have.

use std::{fs, os::unix::fs::MetadataExt};

use serde_json::json;

use crate::{
    support::{Sandbox, was_killed},
    world::{behind, changed, feed, generation, has, start, world},
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
    let (path, sleeper) = (start(&sandbox), start(&sandbox));
    killed(&sandbox, "tenant secrets rotate acme DB", b"two", "secrets.announced");
    assert_eq!(behind(&sandbox), json!([]), "nothing was stored");
    killed(&sandbox, "tenant secrets rotate acme DB", b"two", "secrets.saved");
    assert_eq!(has(&sandbox, &path, "DB"), "one");
    let mut both = [path.clone(), sleeper.clone()];
    both.sort();
    assert_eq!(behind(&sandbox), json!(both));
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
    assert!(!key.exists() && stored.exists());
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
