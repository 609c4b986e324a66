//! Files in and out.

use std::{fs, path::Path};

use mvm_proto::{
    Answer, Code, Request,
    copy::{self, Limits},
    message::Copied,
};

use crate::world::World;

fn put(world: &World, from: &Path, to: &str) -> Answer {
    let mut frames = world.ask(&Request::Put { path: to.into(), name: "named".into() });
    copy::send(&mut frames, from).unwrap();
    frames.message().unwrap()
}

#[test]
fn a_folder_goes_in_and_comes_back() {
    let Some(world) = World::identified("") else { return };
    let source = world.shared().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::write(source.join("a/big"), vec![7; 3_000_000]).unwrap();
    fs::write(source.join("a/b/small"), "x").unwrap();
    std::os::unix::fs::symlink("a/big", source.join("link")).unwrap();
    let answer = put(&world, &source, "/run/copy");
    assert_eq!(answer, Answer::Copied(Copied { entries: 6, bytes: 3_000_001, skipped: 0 }));
    let there =
        "cd /run/copy; wc -c <a/big; cat a/b/small; echo; readlink link; ls -A /run | grep mvm-cp || true";
    assert_eq!(world.shell(there), "3000000\nx\na/big");
    // Into a folder that is there it goes under its own name.
    assert!(matches!(put(&world, &source.join("a/b/small"), "/run/copy/a"), Answer::Copied(_)));
    assert_eq!(world.shell("cat /run/copy/a/named; rm /run/copy/a/named"), "x");
    let mut frames = world.ask(&Request::Get { path: "/run/copy".into() });
    let limits = Limits { entries: 100, bytes: 10_000_000 };
    let back = world.shared().join("back");
    assert_eq!(copy::receive(&mut frames, &back, limits, None).unwrap().entries, 6);
    assert_eq!(fs::read(back.join("a/big")).unwrap(), vec![7; 3_000_000]);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("a/big"));
}

#[test]
fn what_cannot_be_copied_is_said_and_leaves_nothing() {
    let Some(world) = World::identified(
        "mkdir /run/small /run/there /run/there/named; mount -t tmpfs -o size=1m tmpfs /run/small",
    ) else {
        return;
    };
    let file = world.shared().join("file");
    fs::write(&file, vec![1; 4_000_000]).unwrap();
    for (to, code) in [
        ("/run/none/file", Code::NotFound),
        ("/proc/file", Code::NotFound),
        ("relative", Code::Failed),
        ("/run/small/file", Code::Failed),
        ("/run/small", Code::Failed),
        ("/run/there", Code::Failed),
    ] {
        match put(&world, &file, to) {
            Answer::Refused(refused) => assert_eq!(refused.code, code, "{to}: {}", refused.why),
            other => panic!("{to}: {other:?}"),
        }
    }
    assert_eq!(world.shell("ls -A /run/small"), "");
    let mut frames = world.ask(&Request::Get { path: "/run/none".into() });
    assert!(matches!(frames.message().unwrap(), copy::Item::Failed { .. }));
}

#[test]
fn a_host_that_vanishes_half_way_leaves_nothing() {
    let Some(world) = World::identified("mkdir /run/in") else { return };
    let mut frames = world.ask(&Request::Put { path: "/run/in/file".into(), name: "named".into() });
    let entry = copy::Entry { path: String::new(), node: copy::Node::File, mode: 0o644, modified: 0 };
    frames.send(&copy::Item::Entry(entry)).unwrap();
    frames.data(mvm_proto::Kind::Data, &[1; 100_000]).unwrap();
    crate::world::eventually("it has begun", || (world.shell("ls -A /run/in | wc -l") == "1").then_some(()));
    drop(frames);
    crate::world::eventually("it is gone", || (world.shell("ls -A /run/in | wc -l") == "0").then_some(()));
}
