//! Secrets that are gone or older than the last change: nothing starts without them unnoticed.

use std::fs;

use serde_json::{Value, json};

use crate::{
    support::{Sandbox, was_killed},
    world::{KEY, OTHER_KEY, change, changed, error, feed, generation, has, start, world},
};

fn file(sandbox: &Sandbox, name: &str) -> std::path::PathBuf {
    sandbox.root().join("tenants/acme").join(name)
}

#[track_caller]
fn is_lost(sandbox: &Sandbox, arguments: &str, how: &str) {
    let output = sandbox.run(&format!("{arguments} --json"));
    let (code, word, what) = error(&output);
    assert_eq!((code, word.as_str()), (Some(1), "damaged"), "{arguments}: {what}");
    assert!(what.contains(how), "{arguments}: {what}");
}

#[test]
fn where_both_files_are_gone_nothing_starts_without_secrets_until_somebody_says_so() {
    let Some(sandbox) = world() else { return };
    changed(&sandbox, "set", "DB", b"one");
    let path = start(&sandbox);
    sandbox.ok(&format!("instance stop --force {path}"));
    for name in ["secrets.json", "secrets.key"] {
        fs::remove_file(file(&sandbox, name)).expect("a file");
    }
    let how = "is gone, and tenant acme had secrets of generation 1";
    for arguments in [&format!("instance start {path}"), "tenant secrets list acme", "tenant info acme"] {
        is_lost(&sandbox, arguments, how);
    }
    assert_eq!(error(&change(&sandbox, "set", "DB", b"one")).1, "damaged");
    let recovered = sandbox.run("node recover --json");
    assert_eq!(recovered.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&recovered.stdout).contains(how));
    assert!(sandbox.leaks().is_empty() && !file(&sandbox, "secrets.json").exists());
    let accepted = sandbox.ok("tenant secrets accept acme");
    assert_eq!((&accepted["generation"], &accepted["names"]), (&json!(2), &json!([])));
    assert_eq!(sandbox.ok("tenant secrets accept acme")["changed"], false);
    sandbox.ok("node recover");
    sandbox.ok(&format!("instance start {path}"));
    changed(&sandbox, "set", "DB", b"two");
    assert_eq!((has(&sandbox, &path, "DB"), generation(&sandbox, &path)), ("two".into(), json!(3)));
    let log = sandbox.ok("tenant audit acme");
    let accepts = log.as_array().into_iter().flatten().filter(|one| one["what"] == "tenant.secrets.accept");
    let said: Vec<_> = accepts.map(|one| (one["phase"].clone(), one["detail"].clone())).collect();
    let detail = json!("secrets.json is gone: generation 2 from now on");
    assert_eq!(said, [(json!("intent"), detail.clone()), (json!("done"), detail)]);
}

#[test]
fn an_older_file_that_is_put_back_is_refused_until_somebody_takes_it() {
    let Some(sandbox) = world() else { return };
    changed(&sandbox, "set", "DB", b"one");
    let stored = file(&sandbox, "secrets.json");
    let old = fs::read(&stored).expect("a file");
    let path = start(&sandbox);
    changed(&sandbox, "rotate", "DB", b"two");
    let last = fs::read(&stored).expect("a file");
    fs::write(&stored, &old).expect("a file");
    let how = "has generation 1, and tenant acme had secrets of generation 2";
    sandbox.ok(&format!("instance sleep {path}"));
    is_lost(&sandbox, &format!("instance wake {path}"), how);
    is_lost(&sandbox, "tenant secrets remove acme DB", how);
    assert_eq!(fs::read(&stored).expect("a file"), old);
    fs::write(&stored, last).expect("a file");
    sandbox.ok(&format!("instance wake {path}"));
    // Somebody wants them back.
    fs::write(&stored, old).expect("a file");
    let accepted = sandbox.ok("tenant secrets accept acme");
    assert_eq!((&accepted["generation"], &accepted["names"]), (&json!(3), &json!(["DB"])));
    assert_eq!(accepted["given"], json!([path]));
    assert_eq!((has(&sandbox, &path, "DB"), generation(&sandbox, &path)), ("one".into(), json!(3)));
    // Also of an older mvm's record, which knows no generation: what a guest has is never given out again.
    forget_generation(&sandbox);
    fs::remove_file(&stored).expect("a file");
    let accepted = sandbox.ok("tenant secrets accept acme");
    assert_eq!((&accepted["generation"], &accepted["given"]), (&json!(4), &json!([path])));
}

/// Makes of a tenant's record one of an older mvm.
fn forget_generation(sandbox: &Sandbox) {
    let record = file(sandbox, "tenant.json");
    let mut old: Value = serde_json::from_slice(&fs::read(&record).expect("a file")).expect("JSON");
    old.as_object_mut().expect("an object").remove("secrets_generation");
    fs::write(&record, old.to_string()).expect("a file");
}

/// What an older mvm did not write down, or a change that was cut off.
#[test]
fn recovery_and_the_next_change_write_down_what_was_not() {
    let Some(sandbox) = world() else { return };
    let known = || sandbox.ok("tenant list")[0]["secrets_generation"].clone();
    assert_eq!(known(), Value::Null);
    changed(&sandbox, "set", "DB", b"one");
    assert_eq!(known(), 1);
    forget_generation(&sandbox);
    assert_eq!(known(), Value::Null);
    sandbox.ok("node recover");
    assert_eq!(known(), 1);
    for next in ["node recover", "the same again"] {
        let mut command = sandbox.command("tenant secrets rotate acme DB");
        command.env("MVM_FAILPOINT", "secrets.saved");
        assert!(was_killed(&feed(command, next.as_bytes())));
        let before = known().as_u64().expect("a number");
        match next {
            "node recover" => drop(sandbox.ok(next)),
            _ => assert_eq!(changed(&sandbox, "rotate", "DB", next.as_bytes())["changed"], false),
        }
        assert_eq!(known(), before + 1, "{next}");
    }
}

/// Its key is gone, damaged, another tenant's, or of a master key that nobody has: that is said, and there is a way out.
#[test]
fn what_does_not_open_is_said_and_can_be_set_again() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    let set = |tenant: &str, master: &str| {
        let mut command = sandbox.command(&format!("tenant secrets set {tenant} DB --json"));
        command.env("MVM_MASTER_KEY", master);
        feed(command, b"one")
    };
    assert!(set("globex", KEY).status.success() && set("acme", KEY).status.success());
    let path = sandbox.instance("acme/web");
    let (key, globex) = (file(&sandbox, "secrets.key"), sandbox.root().join("tenants/globex/secrets.key"));
    let with_key = |arguments: &str| {
        let mut command = sandbox.command(&format!("{arguments} --json"));
        command.env("MVM_MASTER_KEY", KEY).output().expect("mvm runs")
    };
    let whole = fs::read_to_string(&key).expect("a key");
    let rows: [(&str, &dyn Fn()); 3] = [
        ("is gone", &|| fs::remove_file(&key).expect("a key")),
        ("the key of tenant acme cannot be read", &|| fs::write(&key, "{}").expect("a file")),
        ("the key of tenant acme cannot be read", &|| {
            fs::copy(&globex, &key).expect("a copy");
        }),
    ];
    for (how, damage) in rows {
        damage();
        for arguments in ["tenant info acme", "tenant secrets accept acme", &format!("instance start {path}")]
        {
            let (code, word, what) = error(&with_key(arguments));
            assert!(code == Some(1) && word == "damaged" && what.contains(how), "{arguments}: {what}");
        }
        for (arguments, code) in [("node recover", 1), ("doctor", 5)] {
            let said = with_key(arguments);
            let text = String::from_utf8_lossy(&said.stdout).into_owned();
            assert!(said.status.code() == Some(code) && text.contains(how), "{arguments}: {text}");
        }
        assert!(!set("acme", KEY).status.success());
        sandbox.ok("tenant secrets remove acme DB");
        assert!(set("acme", KEY).status.success(), "{how}");
        assert!(with_key("tenant info acme").status.success());
    }
    // Without the master key nobody can tell whose key it is, and nothing is said of that; with another one it is.
    assert_ne!(fs::read_to_string(&key).expect("a key"), whole);
    sandbox.ok("tenant info acme");
    let mut other = sandbox.command("tenant info acme --json");
    assert_eq!(error(&other.env("MVM_MASTER_KEY", OTHER_KEY).output().expect("mvm runs")).1, "master_key");
    // A set that is damaged can be given up.
    fs::write(file(&sandbox, "secrets.json"), "{").expect("a file");
    is_lost(&sandbox, "tenant secrets remove acme DB", "is damaged");
    assert_eq!(sandbox.ok("tenant secrets accept acme")["names"], json!([]));
    assert!(set("acme", KEY).status.success());
    // A master key that nobody has any more: as long as another tenant has secrets under it, no other one is taken.
    sandbox.ok("tenant secrets remove acme DB");
    assert_eq!(error(&set("acme", OTHER_KEY)).1, "master_key");
    sandbox.ok("tenant secrets remove globex DB");
    assert!(set("acme", OTHER_KEY).status.success() && set("globex", OTHER_KEY).status.success());
}

#[test]
fn no_two_keys_come_into_one_set() {
    let Some(sandbox) = world() else { return };
    changed(&sandbox, "set", "A", b"one");
    let key = file(&sandbox, "secrets.key");
    let first = fs::read(&key).expect("a key");
    sandbox.ok("tenant secrets remove acme A");
    changed(&sandbox, "set", "A", b"two");
    let second = fs::read(&key).expect("a key");
    fs::write(&key, first).expect("a file");
    let stored = fs::read(file(&sandbox, "secrets.json")).expect("a file");
    for (verb, name) in [("set", "B"), ("rotate", "A")] {
        assert_eq!(error(&change(&sandbox, verb, name, b"three")).1, "damaged");
    }
    assert_eq!(fs::read(file(&sandbox, "secrets.json")).expect("a file"), stored);
    fs::write(&key, second).expect("a file");
    changed(&sandbox, "set", "B", b"three");
}
