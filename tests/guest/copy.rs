//! Files to guests and from them.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    support::{Sandbox, wait_until},
    world::{exec, says, start, world},
};

fn names(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn cp(sandbox: &Sandbox, from: &str, to: &str) {
    sandbox.ok(&format!("instance cp {from} {to}"));
}

#[test]
fn a_tree_goes_there_and_comes_back() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let dir = tempfile::tempdir().expect("a folder");
    let from = dir.path().join("tree");
    fs::create_dir_all(from.join("a/b")).expect("folders");
    fs::write(from.join("a/b/file"), "content").expect("a file");
    fs::write(from.join("run"), [0, 159, 146, 150]).expect("a file");
    fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o4755)).expect("a mode");
    std::os::unix::fs::symlink("/etc/passwd", from.join("link")).expect("a link");
    let from = from.display().to_string();
    cp(&sandbox, &from, &format!("{path}:/root/there"));
    assert_eq!(says(&sandbox, &path, "cat /root/there/a/b/file"), "content");
    // Into a folder it goes under its own name.
    cp(&sandbox, &from, &format!("{path}:/tmp"));
    assert_eq!(says(&sandbox, &path, "cat /tmp/tree/a/b/file"), "content");
    let back = dir.path().join("back");
    cp(&sandbox, &format!("{path}:/root/there"), &back.display().to_string());
    assert_eq!(names(&back), ["a", "link", "run"]);
    assert_eq!(fs::read(back.join("run")).expect("a file"), [0, 159, 146, 150]);
    let mode = fs::metadata(back.join("run")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "without setuid");
    assert_eq!(fs::read_link(back.join("link")).expect("a link"), std::path::Path::new("/etc/passwd"));
    let into = dir.path().join("into");
    fs::create_dir(&into).expect("a folder");
    cp(&sandbox, &format!("{path}:/root/there/run"), &into.display().to_string());
    assert_eq!(names(&into), ["run"]);
}

#[test]
fn what_is_there_is_not_written_over_unless_it_is_a_file() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let dir = tempfile::tempdir().expect("a folder");
    let (file, secret) = (dir.path().join("file"), dir.path().join("secret"));
    fs::write(&file, "new").expect("a file");
    fs::write(&secret, "secret").expect("a file");
    let file = file.display().to_string();
    for _ in 0..2 {
        cp(&sandbox, &file, &format!("{path}:/root/file"));
    }
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&secret, &link).expect("a link");
    let from = format!("instance cp {path}:/root/file {}", link.display());
    assert_eq!(sandbox.refused(&from, 4), "exists");
    assert_eq!(fs::read(&secret).expect("a file"), b"secret");
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).expect("a folder");
    let tree = tree.display().to_string();
    cp(&sandbox, &tree, &format!("{path}:/root/tree"));
    cp(&sandbox, &tree, &format!("{path}:/root/tree"));
    assert_eq!(sandbox.refused(&format!("instance cp {tree} {path}:/root/tree"), 1), "guest_refused");
    assert_eq!(names(dir.path()), ["file", "link", "secret", "tree"]);
}

/// What a copy left that was killed goes with the next one to the same place, and nothing of anybody else's does.
#[test]
fn a_killed_copy_is_swept_by_the_next_one() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let dir = tempfile::tempdir().expect("a folder");
    let to = dir.path().join("to");
    let command = |size: u64| format!("instance cp {path}:/dev/zero/{size} {}", to.display());
    let mut child = sandbox.command(&command(256 << 20)).spawn().expect("mvm runs");
    wait_until("it comes", || {
        names(dir.path()).first().is_some_and(|work| {
            fs::metadata(dir.path().join(work).join("top")).is_ok_and(|file| file.len() > 0)
        })
    });
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    let left = names(dir.path());
    assert!(left.len() == 1 && left[0].starts_with(".to.mvm-cp-"), "{left:?}");
    // That of one that still runs, that of a copy to another place, and what only looks like one.
    let own = std::process::id();
    let stat = fs::read_to_string("/proc/self/stat").expect("it is there");
    let began = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).expect("a time");
    let others =
        [format!(".to.mvm-cp-{own}-{began}-0"), ".other.mvm-cp-0-1-0".into(), ".to.mvm-cp-notes".into()];
    for other in &others {
        fs::create_dir(dir.path().join(other)).expect("a folder");
        fs::write(dir.path().join(other).join("top"), "own").expect("a file");
    }
    // Neither is a link followed.
    let away = tempfile::tempdir().expect("a folder");
    fs::write(away.path().join("own"), "own").expect("a file");
    std::os::unix::fs::symlink(away.path(), dir.path().join(".to.mvm-cp-0-1-7")).expect("a link");
    sandbox.ok(&command(9));
    let mut wanted = others.to_vec();
    wanted.extend([".to.mvm-cp-0-1-7".to_owned(), "to".to_owned()]);
    wanted.sort();
    assert_eq!(names(dir.path()), wanted);
    assert_eq!(names(away.path()), ["own"]);
    assert_eq!(fs::metadata(&to).expect("a file").len(), 9);
}

/// Whoever stops a copy finds nothing of it.
#[test]
fn a_copy_that_is_stopped_takes_away_what_came() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let dir = tempfile::tempdir().expect("a folder");
    let to = dir.path().join("to");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let command = format!("instance cp {path}:/dev/zero/{} {} --json", 1_u64 << 40, to.display());
        let child = sandbox.command(&command).stderr(Stdio::piped()).spawn().expect("mvm runs");
        wait_until("it comes", || !names(dir.path()).is_empty());
        kill_process(Pid::from_child(&child), signal).expect("it is there");
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("\"stopped\""), "{said}");
        assert_eq!(names(dir.path()), [""; 0]);
    }
}

/// A link that came from a guest may lead to anything that this side may read.
#[test]
fn a_link_is_not_followed_into_a_guest() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let dir = tempfile::tempdir().expect("a folder");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/etc/hostname", &link).expect("a link");
    let command = format!("instance cp {} {path}:/root/x", link.display());
    assert_eq!(sandbox.refused(&command, 4), "link");
    assert!(!exec(&sandbox, &path, "cat /root/x").status.success());
}

/// What goes wrong on this side is not the guest's fault.
#[test]
fn what_cannot_be_read_here_is_said_so() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let dir = tempfile::tempdir().expect("a folder");
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join(vec!["d"; 70].join("/"))).expect("folders");
    let pipe = dir.path().join("pipe");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, 0o600.into(), 0).expect("a pipe");
    for (from, what) in [
        // Its first page is nobody's.
        ("/proc/self/mem".to_owned(), "/proc/self/mem: Input/output error"),
        (pipe.display().to_string(), "pipe: neither a file, a folder nor a link"),
        (tree.display().to_string(), "/d: it is too deep"),
    ] {
        let output = sandbox.run(&format!("instance cp {from} {path}:/root/x --json"));
        assert_eq!(output.status.code(), Some(1));
        let said: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
        assert_eq!(said["error"]["code"], "unreadable", "{said}");
        let text = said["error"]["what"].as_str().expect("a text");
        assert!(text.starts_with("cannot read ") && text.contains(what), "{text}");
        assert!(!exec(&sandbox, &path, "cat /root/x").status.success());
    }
    // A command that is longer than any can be.
    let long = "x".repeat(70_000);
    let output = sandbox.run(&format!("instance exec -n {path} --json -- echo {long}"));
    assert_eq!(output.status.code(), Some(125));
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(said["error"]["code"], "too_long", "{said}");
    assert_eq!(says(&sandbox, &path, &format!("echo {}", &long[..60_000])), long[..60_000]);
}

/// A host that does not read keeps a guest from nothing, and least of all from being paused.
#[test]
fn a_guest_whose_copy_is_stuck_can_be_paused() {
    const SIZE: u64 = 64 << 20;
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let dir = tempfile::tempdir().expect("a folder");
    let to = dir.path().join("zeros");
    let command = format!("instance cp {path}:/dev/zero/{SIZE} {}", to.display());
    let mut child = sandbox.command(&command).stderr(Stdio::null()).spawn().expect("mvm runs");
    wait_until("it comes", || !names(dir.path()).is_empty());
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::STOP).expect("it stops");
    assert!(!to.exists(), "it was stopped too late");
    let warm = sandbox.run(&format!("instance warm {path}"));
    kill_process(pid, Signal::CONT).expect("it goes on");
    assert!(warm.status.success(), "{}", String::from_utf8_lossy(&warm.stderr));
    sandbox.ok(&format!("instance resume {path}"));
    // Connections do not outlast that: it is refused, and nothing of it is left.
    assert!(!child.wait().expect("it ends").success());
    assert_eq!(names(dir.path()), [""; 0]);
    cp(&sandbox, &format!("{path}:/etc/hostname"), &to.display().to_string());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let Some(sandbox) = world() else { return };
    let path = start(&sandbox);
    let dir = tempfile::tempdir().expect("a folder");
    let here = dir.path().display().to_string();
    for (arguments, exit, word) in [
        (format!("{here}/none {path}:/root/x"), 3, "not_found"),
        (format!("/etc/hosts {path}:/none/x"), 3, "not_found"),
        (format!("{path}:/none {here}/x"), 1, "copy"),
        (format!("/etc/hosts {here}/x"), 2, "usage"),
        (format!("{path}:/etc/hostname {path}:/root/x"), 2, "usage"),
        (format!("/etc/hosts {path}:relative"), 2, "usage"),
    ] {
        assert_eq!(sandbox.refused(&format!("instance cp {arguments}"), exit), word, "{arguments}");
    }
    // More than the guest has room for: nothing of it is left.
    fs::write(dir.path().join("big"), vec![1; 2 << 20]).expect("a file");
    let big = format!("instance cp {here}/big {path}:/root/big");
    assert_eq!(sandbox.refused(&big, 1), "guest_refused");
    assert!(!exec(&sandbox, &path, "cat /root/big").status.success());
    cp(&sandbox, &format!("{here}/big"), &format!("{path}:/dev/null"));
    assert_eq!(names(dir.path()), ["big"]);
}
