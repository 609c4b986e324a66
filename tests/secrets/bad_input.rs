//! Names, contents and files that are none.

use std::{fs, process::Stdio};

use crate::{
    support::Sandbox,
    world::{change, changed, error, feed},
};

fn tenant() -> Option<Sandbox> {
    let sandbox = Sandbox::new()?;
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    Some(sandbox)
}

#[test]
fn what_is_too_much_is_refused_and_changes_nothing() {
    let Some(sandbox) = tenant() else { return };
    let most = vec![0xa5; 64 << 10];
    for (content, code, word) in [
        (vec![7; 10 << 20], 2, "too_long"),
        ([&most[..], b"x"].concat(), 2, "too_long"),
        (vec![], 2, "empty_secret"),
    ] {
        let output = change(&sandbox, "set", "A", &content);
        let (is, said, what) = error(&output);
        assert_eq!((is, said.as_str()), (Some(code), word), "{what}");
    }
    assert!(!sandbox.root().join("tenants/acme/secrets.key").exists());
    for number in 0..16 {
        changed(&sandbox, "set", &format!("S{number}"), &most);
    }
    assert_eq!(error(&change(&sandbox, "set", "S16", b"x")).1, "too_long");
    changed(&sandbox, "rotate", "S0", b"short");
    changed(&sandbox, "set", "S16", b"x");
    for number in 17..64 {
        changed(&sandbox, "set", &format!("S{number}"), b"x");
    }
    let (code, word, what) = error(&change(&sandbox, "set", "S64", b"x"));
    assert_eq!((code, word.as_str()), (Some(2), "too_long"));
    assert!(what.starts_with("65 secrets of a tenant: at most 64"), "{what}");
    assert_eq!(sandbox.ok("tenant secrets list acme").as_array().map(Vec::len), Some(64));
}

#[test]
fn names_and_files_are_looked_at() {
    let Some(sandbox) = tenant() else { return };
    for name in ["..", ".hidden", "a/b", "ä", "..data", &"x".repeat(129)] {
        let (code, word, what) = error(&change(&sandbox, "set", name, b"x"));
        assert_eq!((code, word.as_str()), (Some(2), "usage"), "{name} {what}");
        assert!(!mvm_proto::secrets::is_name(name), "host and guest differ");
    }
    changed(&sandbox, "set", &"x".repeat(128), b"x");
    let file = sandbox.root().join("in");
    let from = |path: &str| sandbox.command(&format!("tenant secrets set acme A --json --file {path}"));
    for (path, code, word) in [
        ("/no/such", 1, "io"),
        ("/", 1, "io"),
        ("/dev/zero", 2, "too_long"),
        ("/dev/null", 2, "empty_secret"),
    ] {
        let output = from(path).output().expect("mvm runs");
        let (is, said, what) = error(&output);
        assert_eq!((is, said.as_str()), (Some(code), word), "{path} {what}");
    }
    fs::write(&file, b"from a file\n").expect("a file");
    assert!(from(file.to_str().expect("a path")).stdin(Stdio::null()).status().expect("mvm runs").success());
    assert_eq!(
        feed(sandbox.command("tenant secrets set acme A --json"), b"from a file\n").status.code(),
        Some(0)
    );
    assert_eq!(error(&change(&sandbox, "set", "A", b"from a file")).1, "exists", "not a byte less");
    assert_eq!(error(&feed(sandbox.command("tenant secrets set globex A --json"), b"x")).1, "not_found");
}

#[test]
fn what_is_no_file_of_ours_is_said_and_left() {
    let Some(sandbox) = tenant() else { return };
    changed(&sandbox, "set", "A", b"one");
    let folder = sandbox.root().join("tenants/acme");
    for name in ["secrets.json", "secrets.key"] {
        let good = fs::read(folder.join(name)).expect("a file");
        for bad in [vec![0xff; 10 << 20], b"{".to_vec(), b"{\"schema_version\":1}".to_vec(), vec![]] {
            fs::write(folder.join(name), &bad).expect("a file");
            let (code, word, what) = error(&change(&sandbox, "rotate", "A", b"two"));
            assert_eq!((code, word.as_str()), (Some(1), "damaged"), "{name} {what}");
            assert_eq!(fs::read(folder.join(name)).expect("a file"), bad);
        }
        fs::write(folder.join(name), good).expect("a file");
    }
    fs::remove_file(folder.join("secrets.key")).expect("a file");
    let (_, word, what) = error(&change(&sandbox, "rotate", "A", b"two"));
    assert_eq!(word, "damaged");
    assert!(what.contains("cannot be read any more"), "{what}");
    assert!(!folder.join("secrets.key").exists(), "a new one would hide that");
    // There is a way out.
    sandbox.ok("tenant secrets remove acme A");
    changed(&sandbox, "set", "A", b"two");
}
