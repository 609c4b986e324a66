//! Guests that lie, are silent, say what makes no sense, or cannot do what they are told: they are stopped and reported, and
//! nothing of them gets onto the network.

use serde_json::{Value, json};

use crate::{
    support::{Sandbox, faulty::set_faults},
    world::{faulty_world, info, leaves_nothing, start},
};

/// Starts an instance whose guest has this fault; the word for what is wrong, and the text.
fn refused(sandbox: &Sandbox, path: &str, fault: &Value) -> (String, String) {
    set_faults(sandbox, &json!({ "agent": fault }));
    let mut command = sandbox.command(&format!("instance start {path} --json"));
    let output = command.env("MVM_GUEST_TIMEOUT_MS", "300").output().expect("mvm runs");
    let said: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert!(matches!(output.status.code(), Some(1 | 4)), "{fault}: {:?} {said}", output.status.code());
    let text = |field: &str| said["error"][field].as_str().unwrap_or_default().to_owned();
    (text("code"), text("what"))
}

#[test]
fn what_does_not_confirm_who_it_is_is_never_served() {
    let Some(sandbox) = faulty_world() else { return };
    let path = sandbox.instance("acme/web");
    let lies = [
        ("mac", "02:fc:00:03:00:04"),
        ("address", "10.240.3.4/24"),
        ("gateway", "10.240.3.2"),
        ("dns", "8.8.8.8"),
        ("mtu", "9000"),
        ("hostname", "i-00000000"),
        ("machine-id", ""),
        ("host-key", "ssh-ed25519 AAAA\nother ssh-ed25519 BBBB"),
        ("clock", "1000000000"),
        ("ssh-keys", "2"),
        ("data", "00000000-0000-0000-0000-000000000000"),
    ];
    for (fact, lie) in lies {
        let (code, what) = refused(&sandbox, &path, &json!({ "lie": [fact, lie] }));
        assert_eq!(code, "guest_identity", "{fact}: {what}");
        assert!(what.contains(&format!("did not confirm its {fact}")), "{what}");
        assert!(!what.contains('\n'), "{what}");
    }
    for fact in ["entropy", "clock", "mac", "data", "workload"] {
        let (code, what) = refused(&sandbox, &path, &json!({ "fail": fact }));
        assert_eq!(code, "guest_identity", "{what}");
        assert!(what.contains(&format!("could not set its {fact}: it does not work")), "{what}");
        let shown = info(&sandbox, &path);
        assert_eq!(shown["status"], "ready");
        assert!(shown["last_exit"]["why"].as_str().is_some_and(|why| why.contains(fact)), "{shown}");
        leaves_nothing(&sandbox);
    }
    set_faults(&sandbox, &json!({}));
    sandbox.ok(&format!("instance start {path}"));
}

#[test]
fn what_makes_no_sense_ends_in_time() {
    let Some(sandbox) = faulty_world() else { return };
    let path = sandbox.instance("acme/web");
    for (fault, word) in [
        (json!("silent"), "guest_silent"),
        (json!("garbage"), "guest_nonsense"),
        (json!("flood"), "guest_nonsense"),
        (json!({ "versions": [7, 9] }), "guest_incompatible"),
        (json!({ "versions": [0, 0] }), "guest_incompatible"),
    ] {
        let (code, what) = refused(&sandbox, &path, &fault);
        assert_eq!(code, word, "{fault}: {what}");
        leaves_nothing(&sandbox);
    }
}

/// Another disk than the one that mvm made is not written to.
#[test]
fn another_data_disk_is_refused() {
    let Some(sandbox) = faulty_world() else { return };
    let path = sandbox.instance("acme/web");
    let parts: Vec<&str> = path.split('/').collect();
    let own = sandbox.root().join(format!("tenants/acme/pools/web/instances/{}/volumes/data.ext4", parts[2]));
    let uuid = |file: &std::path::Path| mvm::vm::instance::disk::ext4_identity(file).expect("an ext4").0;
    let other = sandbox.root().join("other.ext4");
    let start_with = |what: &str, prepare: &dyn Fn(&std::path::Path)| {
        std::fs::copy(&own, &other).expect("a copy");
        prepare(&other);
        set_faults(&sandbox, &json!({ "data_disk": other }));
        let output = sandbox.run(&format!("instance start {path} --json"));
        let said: Value = serde_json::from_slice(&output.stderr).expect("JSON");
        assert_eq!(said["error"]["code"], "guest_identity", "{what}: {said}");
        let text = said["error"]["what"].as_str().expect("a text").to_owned();
        assert!(text.contains("could not set its data") && text.contains(what), "{text}");
        assert_eq!(info(&sandbox, &path)["status"], "ready");
        leaves_nothing(&sandbox);
    };
    start_with("the data disk is 6c1e9b0e-7c0a-4b7e-9a52-0d7d0c5b6f11", &|disk| {
        let uuid = "6c1e9b0e-7c0a-4b7e-9a52-0d7d0c5b6f11";
        let output = std::process::Command::new("tune2fs").args(["-U", uuid]).arg(disk).output();
        assert!(output.expect("tune2fs runs").status.success());
    });
    start_with("bytes in place of", &|disk| {
        let file = std::fs::File::options().write(true).open(disk).expect("it is there");
        file.set_len(file.metadata().expect("a file").len() * 2).expect("it grows");
        assert_eq!(uuid(disk), uuid(&own));
    });
    start_with("holds no ext4", &|disk| {
        let size = std::fs::metadata(disk).expect("a file").len();
        std::fs::write(disk, "").expect("it is empty");
        std::fs::File::options()
            .write(true)
            .open(disk)
            .and_then(|file| file.set_len(size))
            .expect("it grows");
    });
    // It is the disk that was refused.
    std::fs::copy(&own, &other).expect("a copy");
    sandbox.ok(&format!("instance start {path}"));
}

/// A base is made of a guest that comes up, or not at all; what it said last is shown.
#[test]
fn a_guest_that_does_not_come_up_is_no_base() {
    let Some(sandbox) = faulty_world() else { return };
    let bases = sandbox.root().join("tenants/acme/pools/web/snapshots/base");
    std::fs::remove_dir_all(&bases).expect("it is there");
    let path = sandbox.instance("acme/web");
    let (code, what) = refused(&sandbox, &path, &json!("silent"));
    assert_eq!(code, "no_guest", "{what}");
    assert!(what.contains("fcsim guest: boot"), "{what}");
    assert_eq!(std::fs::read_dir(&bases).map_or(0, Iterator::count), 0);
    leaves_nothing(&sandbox);
}

/// One that does not answer after its wake is stopped: its snapshot is used up, and it may not serve.
#[test]
fn a_guest_that_wakes_and_is_silent_is_stopped() {
    let Some(sandbox) = faulty_world() else { return };
    let path = start(&sandbox);
    sandbox.ok(&format!("instance sleep {path}"));
    set_faults(&sandbox, &json!({ "agent": "silent" }));
    let mut command = sandbox.command(&format!("instance wake {path} --json"));
    let output = command.env("MVM_GUEST_TIMEOUT_MS", "300").output().expect("mvm runs");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = info(&sandbox, &path);
    assert_eq!(shown["status"], "stopped");
    assert!(shown["last_exit"]["why"].as_str().is_some_and(|why| why.contains("it woke, and")), "{shown}");
    leaves_nothing(&sandbox);
    set_faults(&sandbox, &json!({}));
    sandbox.ok(&format!("instance start {path}"));
}
