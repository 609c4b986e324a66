//! Guests that mean harm to who copies from them or reads their logs: what they say is bounded, and nothing of it is written
//! elsewhere, or talks to a terminal.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use serde_json::{Value, json};

use crate::{
    support::{self, Sandbox},
    world::{exec, faulty_world, start, start_hostile},
};

/// A folder on a file system of its own, of this size.
struct Small(tempfile::TempDir);

impl Small {
    /// The mount namespace belongs to the test.
    fn new(mib: u32) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let size = format!("size={mib}m");
        support::run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &dir.path().display().to_string()]);
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        support::run("umount", &[&self.path().display().to_string()]);
    }
}

fn entry(path: &str, node: impl Into<Value>) -> Value {
    json!({ "message": { "item": "entry", "path": path, "node": node.into(), "mode": 0o644 } })
}

fn end() -> Value {
    json!({ "message": { "item": "end", "skipped": 0 } })
}

/// Copies from a guest that says this; the word for what is wrong, and the text.
fn copied(sandbox: &Sandbox, path: &str, to: &Path, says: &Value, again: &Value) -> (String, String) {
    start_hostile(sandbox, path, "get", says, again);
    let output = sandbox.run(&format!("instance cp {path}:/x {} --json", to.display()));
    assert!(!output.status.success(), "{says}");
    let said: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    let text = |field: &str| said["error"][field].as_str().unwrap_or_default().to_owned();
    (text("code"), text("what"))
}

#[test]
fn a_copy_without_end_is_cut_off() {
    let Some(sandbox) = faulty_world() else { return };
    // 16 MiB may be taken.
    sandbox.ok("node set disk-floor-mib 64");
    let small = Small::new(16);
    sandbox.ok("node set disk-floor-mib 8");
    let path = start(&sandbox);
    let empty = json!({ "data": 0 });
    for (says, again) in [
        (json!([entry("", "file")]), json!([{ "data": 256 << 10 }])),
        (json!([entry("", "folder")]), json!([entry("d{n}", "folder")])),
        (json!([entry("", "folder")]), json!([entry("f{n}", "file"), empty])),
        (json!([entry("", "folder")]), json!([entry("l{n}", json!({ "link": "x".repeat(4000) }))])),
    ] {
        let (code, what) = copied(&sandbox, &path, &small.path().join("to"), &says, &again);
        assert_eq!(code, "too_much", "{says}: {what}");
        assert!(what.ends_with(&format!("it is more than {} bytes", 8 << 20)), "{what}");
        assert_eq!(small.names(), [""; 0], "{says}");
    }
    // The guest is as well as before.
    assert!(exec(&sandbox, &path, "true").status.success());
}

#[test]
fn no_name_leads_out_of_a_copy() {
    let Some(sandbox) = faulty_world() else { return };
    let small = Small::new(16);
    sandbox.ok("node set disk-floor-mib 8");
    let path = start(&sandbox);
    fs::create_dir(small.path().join("outside")).expect("a folder");
    fs::write(small.path().join("outside/own"), "own").expect("a file");
    let (outside, to) = (small.path().join("outside"), small.path().join("to"));
    let outside = outside.display().to_string();
    let file =
        |name: &str| json!([entry("", "folder"), entry(name, "file"), { "data": 9 }, { "data": 0 }, end()]);
    let deep = vec!["d"; 70].join("/");
    for name in [
        "../outside/evil",
        "../../evil",
        "a/../../outside/evil",
        &format!("{outside}/evil"),
        "..",
        ".",
        "",
        "a//b",
        "./a",
        "a/",
        "a\0b",
        &deep,
        &"x".repeat(5000),
    ] {
        let (code, what) = copied(&sandbox, &path, &to, &file(name), &json!([]));
        assert_eq!(code, "guest_nonsense", "{name:?}: {what}");
        assert_eq!(small.names(), ["outside"], "{name:?}");
    }
    let through = |link: &str| json!([entry("", "folder"), entry("l", json!({ "link": link })), entry("l/evil", "file"), { "data": 0 }, end()]);
    for (says, word) in [
        (through(&outside), "io"),
        (through("."), "io"),
        // Twice the same, and a file in a file.
        (json!([entry("", "folder"), entry("a", "folder"), entry("a", "folder"), end()]), "io"),
        (json!([entry("", "file"), { "data": 0 }, entry("a", "file"), { "data": 0 }, end()]), "io"),
        // The top is a link: it would take a file's place.
        (json!([entry("", json!({ "link": outside })), end()]), "guest_nonsense"),
        (json!([entry("", "folder"), entry("l", json!({ "link": "" })), end()]), "guest_nonsense"),
    ] {
        let (code, what) = copied(&sandbox, &path, &to, &says, &json!([]));
        assert_eq!(code, word, "{says}: {what}");
        assert_eq!(small.names(), ["outside"], "{says}");
    }
    assert_eq!(fs::read_dir(&outside).expect("a folder").count(), 1);
}

#[test]
fn a_copy_that_makes_no_sense_is_none() {
    let Some(sandbox) = faulty_world() else { return };
    let small = Small::new(16);
    sandbox.ok("node set disk-floor-mib 8");
    let path = start(&sandbox);
    let to = small.path().join("to");
    let refusal =
        |code: &str| json!({ "message": { "answer": "refused", "code": code, "why": "\u{1b}[2Jno\nno" } });
    for (says, word) in [
        (json!([{ "raw": "HTTP/1.1 200 OK\r\n\r\n" }]), "guest_nonsense"),
        (json!([{ "message": "end" }]), "guest_nonsense"),
        (json!([{ "message": { "answer": "done" } }]), "guest_nonsense"),
        (json!([{ "data": 3 }]), "guest_nonsense"),
        (json!([entry("", "device")]), "guest_nonsense"),
        (json!([entry("", "file"), end()]), "guest_nonsense"),
        (json!([entry("", "folder"), refusal("draining")]), "guest_nonsense"),
        (json!([refusal("draining")]), "guest_draining"),
        (json!([refusal("busy")]), "guest_busy"),
        (json!([end()]), "copy"),
        (json!([{ "message": { "item": "failed", "why": "\u{1b}[2J\u{202e}no\nno" } }]), "copy"),
        (json!([entry("", "file"), { "data": 9 }, { "message": { "item": "failed", "why": "" } }]), "copy"),
    ] {
        let (code, what) = copied(&sandbox, &path, &to, &says, &json!([]));
        assert_eq!(code, word, "{says}: {what}");
        assert!(!what.contains(['\u{1b}', '\u{202e}', '\n']), "{what:?}");
        assert_eq!(small.names(), [""; 0], "{says}");
    }
}

fn line(text: &str) -> Value {
    json!({ "message": { "answer": "line", "at_unix_ms": 1, "text": text } })
}

#[test]
fn logs_without_end_are_cut_off() {
    let Some(sandbox) = faulty_world() else { return };
    let path = start(&sandbox);
    for (again, most) in [
        (line("x{n}"), 10_000),
        // Many more bytes than the ring of a guest holds.
        (line(&"x".repeat(60_000)), 18),
        (line(""), 10_000),
    ] {
        start_hostile(&sandbox, &path, "logs", &json!([]), &json!([again]));
        let output = sandbox.run(&format!("instance logs {path} --json"));
        assert_eq!(output.status.code(), Some(1));
        let said: Value = serde_json::from_slice(&output.stderr).expect("JSON");
        assert_eq!(said["error"]["code"], "guest_nonsense", "{said}");
        let lines = output.stdout.iter().filter(|&&byte| byte == b'\n').count();
        assert!((1..=most).contains(&lines), "{lines}");
    }
    // Who follows them has them as long as somebody reads.
    let mut command = sandbox.command(&format!("instance logs --follow {path}"));
    let mut child = command.stdout(Stdio::piped()).spawn().expect("mvm runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for _ in 0..20_000 {
        assert_eq!(lines.next().expect("a line").expect("a line"), "");
    }
    drop(lines);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn logs_talk_to_no_terminal() {
    let Some(sandbox) = faulty_world() else { return };
    let path = start(&sandbox);
    let said = "\u{1b}]0;evil\u{7}\u{9b}2J\u{202e}\r\u{feff}\nand more";
    let evil = line(said);
    let end = json!({ "message": { "answer": "end" } });
    start_hostile(&sandbox, &path, "logs", &json!([evil, line("well"), end]), &json!([]));
    let output = sandbox.run(&format!("instance logs {path}"));
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(!text.contains(|c: char| mvm::infra::text::is_dangerous(c) && c != '\n'), "{text:?}");
    assert!(
        text.starts_with("\\u{1b}]0;evil\\u{7}\\u{9b}2J\\u{202e}") && text.ends_with("\\nand more\nwell\n"),
        "{text:?}"
    );
    assert_eq!(text.lines().count(), 2, "{text:?}");
    let output = sandbox.run(&format!("instance logs {path} --json"));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(!text.contains(|c: char| mvm::infra::text::is_dangerous(c) && c != '\n'), "{text:?}");
    let first: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["line"], said);

    for (says, word) in [
        (json!([line("one"), { "raw": "garbage, garbage" }]), "guest_nonsense"),
        (json!([line("one"), { "data": 9 }]), "guest_nonsense"),
        (json!([line("one"), { "message": { "answer": "ready" } }]), "guest_nonsense"),
        (json!([line("one"), { "message": { "answer": "migrated" } }]), "guest_nonsense"),
        (
            json!([line("one"), { "message": { "answer": "line", "at_unix_ms": -1, "text": 7 } }]),
            "guest_nonsense",
        ),
        (
            json!([line("one"), { "message": { "answer": "refused", "code": "busy", "why": "" } }]),
            "guest_busy",
        ),
        // There is no end.
        (json!([line("one")]), "guest_silent"),
    ] {
        start_hostile(&sandbox, &path, "logs", &says, &json!([]));
        let mut command = sandbox.command(&format!("instance logs {path} --json"));
        let output = command.env("MVM_GUEST_TIMEOUT_MS", "500").output().expect("mvm runs");
        let said: Value = serde_json::from_slice(&output.stderr).expect("JSON");
        assert_eq!(said["error"]["code"], word, "{says}: {said}");
        // What made sense is shown.
        assert!(String::from_utf8_lossy(&output.stdout).contains(r#""line":"one""#), "{says}");
    }
}
