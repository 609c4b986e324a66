//! What is taken, and what is not.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use proptest::prelude::*;

use super::*;
use crate::frame::MAX_DATA;

const ENOUGH: Limits = Limits { entries: 100, bytes: 1 << 20 };

fn entry(path: &str, node: Node) -> Item {
    Item::Entry(Entry { path: path.into(), node, mode: 0o644, modified: 1 })
}

/// What a sender sends that says these items; files have some content.
fn sent(items: &[Item]) -> Vec<u8> {
    let mut frames = Frames::on(Vec::new());
    for item in items {
        frames.send(item).unwrap();
        if matches!(item, Item::Entry(Entry { node: Node::File, .. })) {
            frames.data(Kind::Data, b"content").unwrap();
            frames.data(Kind::Data, b"").unwrap();
        }
    }
    frames.stream().clone()
}

fn take(bytes: &[u8], target: &Path, limits: Limits) -> Result<Copied, CopyError> {
    receive(&mut Frames::on(bytes), target, limits, None)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_tree_arrives_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("a/empty")).unwrap();
    let big: Vec<u8> = (0..MAX_DATA * 2 + 3).map(|at| at as u8).collect();
    fs::write(from.join("a/big"), &big).unwrap();
    fs::write(from.join("run"), "#!").unwrap();
    fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o6755)).unwrap();
    symlink("/etc/passwd", from.join("link")).unwrap();
    rustix::fs::mknodat(CWD, from.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o555)).unwrap();
    let mut frames = Frames::on(Vec::new());
    let copied = send(&mut frames, &from).unwrap();
    let to = dir.path().join("to");
    assert_eq!(take(frames.stream(), &to, Limits { bytes: 1 << 30, ..ENOUGH }).unwrap(), copied);
    assert_eq!((copied.entries, copied.skipped), (6, 1));
    assert_eq!(fs::read(to.join("a/big")).unwrap(), big);
    assert_eq!(fs::metadata(to.join("run")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(to.join("a")).unwrap().mode() & 0o7777, 0o555);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(
        fs::metadata(to.join("run")).unwrap().mtime(),
        fs::metadata(from.join("run")).unwrap().mtime()
    );
    assert_eq!(names(dir.path()), ["from", "to"]);
    fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_file_takes_the_place_of_a_file_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let target = dir.path().join("target");
    let file = sent(&[entry("", Node::File), Item::End { skipped: 0 }]);
    for _ in 0..2 {
        take(&file, &target, ENOUGH).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"content");
    }
    fs::remove_file(&target).unwrap();
    symlink(&secret, &target).unwrap();
    assert!(matches!(take(&file, &target, ENOUGH), Err(CopyError::Exists { .. })));
    fs::remove_file(&target).unwrap();
    fs::create_dir(&target).unwrap();
    assert!(matches!(take(&file, &target, ENOUGH), Err(CopyError::Exists { .. })));
    let folder = sent(&[entry("", Node::Folder), Item::End { skipped: 0 }]);
    assert!(matches!(take(&folder, &target, ENOUGH), Err(CopyError::Exists { .. })));
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
    assert_eq!(names(dir.path()), ["secret", "target"]);
}

#[test]
fn what_leads_elsewhere_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    let outside = dir.path().join("outside");
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    let top = || entry("", Node::Folder);
    let end = || Item::End { skipped: 0 };
    let outside_text = outside.to_str().unwrap().to_owned();
    let deep = vec!["d"; MAX_DEPTH + 1].join("/");
    let cases: Vec<(&str, Vec<Item>)> = vec![
        ("nothing", vec![end()]),
        ("no top", vec![entry("a", Node::File), end()]),
        ("two tops", vec![top(), top(), end()]),
        ("above", vec![top(), entry("../outside/x", Node::File), end()]),
        ("above in the middle", vec![top(), entry("a/../../outside/x", Node::File), end()]),
        ("itself", vec![top(), entry(".", Node::Folder), end()]),
        ("double slash", vec![top(), entry("a//b", Node::File), end()]),
        ("absolute", vec![top(), entry(&format!("{outside_text}/x"), Node::File), end()]),
        ("nul", vec![top(), entry("a\0b", Node::File), end()]),
        ("too deep", vec![top(), entry(&deep, Node::File), end()]),
        ("no folder", vec![top(), entry("a/b", Node::File), end()]),
        ("below a file", vec![top(), entry("a", Node::File), entry("a/b", Node::File), end()]),
        ("twice", vec![top(), entry("a", Node::File), entry("a", Node::File), end()]),
        (
            "through a link",
            vec![top(), entry("a", Node::Link(outside_text.clone())), entry("a/x", Node::File), end()],
        ),
        (
            "through a relative link",
            vec![top(), entry("a", Node::Link("../../outside".into())), entry("a/x", Node::File), end()],
        ),
        ("onto a link", vec![top(), entry("a", Node::Link(outside_text)), entry("a", Node::File), end()]),
        (
            "a top that is a link, and more",
            vec![entry("", Node::Link("/".into())), entry("x", Node::File), end()],
        ),
        ("a top that is a link", vec![entry("", Node::Link("/etc/passwd".into())), end()]),
        ("a link to nowhere", vec![top(), entry("a", Node::Link(String::new())), end()]),
        ("failed", vec![top(), Item::Failed { why: "no".into() }]),
        ("cut off", vec![top()]),
    ];
    for (what, items) in cases {
        let taken = take(&sent(&items), &inside.join("new"), ENOUGH);
        assert!(taken.is_err(), "{what}: {taken:?}");
        assert!(names(&inside).is_empty() && names(&outside).is_empty(), "{what}: {:?}", names(&inside));
    }
}

#[test]
fn there_is_an_end_to_what_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let many: Vec<Item> = std::iter::once(entry("", Node::Folder))
        .chain((0..200).map(|number| entry(&format!("{number}"), Node::File)))
        .collect();
    let limits = [Limits { entries: 50, ..ENOUGH }, Limits { bytes: 99, ..ENOUGH }];
    for limits in limits {
        let taken = take(&sent(&many), &dir.path().join("new"), limits);
        assert!(matches!(taken, Err(CopyError::TooMuch { .. })), "{taken:?}");
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn what_cannot_be_sent_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for place in ["none", "pipe"] {
        let from = dir.path().join(place);
        if place == "pipe" {
            rustix::fs::mknodat(CWD, &from, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        let mut frames = Frames::on(Vec::new());
        let sent = send(&mut frames, &from);
        assert!(matches!(sent, Err(SendError::Unreadable { path, .. }) if path == from));
        let taken = take(frames.stream(), &dir.path().join("to"), ENOUGH);
        assert!(matches!(taken, Err(CopyError::Sender(_))), "{taken:?}");
    }
}

proptest! {
    #[test]
    fn no_path_leads_out(paths in proptest::collection::vec("[a./\\x00]{0,6}", 1..6)) {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let nodes = [Node::Folder, Node::File, Node::Link("..".into())];
        let items = paths.iter().enumerate().map(|(at, path)| entry(path, nodes[at % 3].clone()));
        let items: Vec<Item> = std::iter::once(entry("", Node::Folder)).chain(items).collect();
        let _ = take(&sent(&items), &inside.join("new"), ENOUGH);
        prop_assert_eq!(names(dir.path()), ["inside"]);
    }
}
