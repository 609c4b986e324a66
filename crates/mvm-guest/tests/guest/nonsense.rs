//! What no host of ours would do.

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use mvm_proto::{
    Answer, Code, Frames, Hello, Request,
    message::{Exec, Refused},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::world::{LONG, World, command, eventually};

#[test]
fn garbage_ends_its_own_connection_only() {
    let Some(world) = World::identified("") else { return };
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 5000],
        &[0, 0, 0, 0, 0],
        &[4, 0, 0, 0, 0, b'n', b'u', b'l', b'l'],
        &[0, 0, 4, 0, 1],
        b"",
    ] {
        let mut stream = world.connect();
        // It may be closed before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    for nested in ["[", "{\"request\":"] {
        let mut frames = Frames::on(world.connect());
        frames.send(&Hello::of("test")).unwrap();
        let text = nested.repeat(20_000);
        let mut frame = (60_000.min(text.len()) as u32).to_le_bytes().to_vec();
        frame.push(0);
        frame.extend_from_slice(&text.as_bytes()[..60_000.min(text.len())]);
        frames.stream_mut().write_all(&frame).unwrap();
        let _: Hello = frames.message().unwrap();
        assert!(matches!(
            frames.message().unwrap(),
            Answer::Refused(Refused { code: Code::Unsupported, .. })
        ));
    }
    // In the middle of an exec, too.
    let mut running = world.start(Exec { stdin: true, ..command(&["cat"]) });
    running.frames.stream_mut().write_all(&[9; 100]).unwrap();
    let _ = running.frames.stream_mut().read_to_end(&mut Vec::new());
    assert_eq!(world.shell("echo well"), "well");
    eventually("nothing is under way", || (world.status().under_way == 0).then_some(()));
}

/// As after a snapshot: whoever was connected is gone, at whatever it was.
#[test]
fn a_thousand_hosts_that_vanish_leave_nothing() {
    let Some(world) = World::identified("") else { return };
    let count = "ls /proc/1/fd | wc -l; ls /proc/1/task | wc -l";
    let before = world.shell(count);
    for round in 0..1000 {
        let stream = world.connect();
        let mut frames = Frames::on(&stream);
        match round % 5 {
            0 => {}
            1 => drop((&stream).write_all(&[9, 0, 0])),
            2 => drop(frames.send(&Hello::of("test"))),
            3 => {
                let _ = frames.send(&Hello::of("test"));
                let _ = frames.send(&Request::Logs { since_unix_ms: 0, follow: true });
            }
            _ => {
                let _ = frames.send(&Hello::of("test"));
                let _ = frames.send(&Request::Exec(command(&["sleep", "6000"])));
            }
        }
    }
    eventually("all of it is gone", || (world.shell_soon(count) == before).then_some(()));
    assert_eq!(world.count("sleep 6000"), 0);
}

#[test]
fn a_flood_of_connections_is_bounded_and_passes() {
    let Some(world) = World::identified("") else { return };
    let threads = "ls /proc/1/task | wc -l";
    let before: usize = world.shell(threads).parse().unwrap();
    let flood: Vec<_> = (0..200).map(|_| world.connect()).collect();
    // Those that are too many are told so, and nobody else is told anything.
    let mut waiting: Vec<_> = flood.iter().collect();
    while waiting.len() > 64 {
        let mut fds: Vec<_> = waiting.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
        let limit = Timespec::try_from(LONG).unwrap();
        assert!(poll(&mut fds, Some(&limit)).unwrap() > 0, "{} of them were told nothing", waiting.len());
        let told: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (stream, _) in waiting.iter().zip(&told).filter(|(_, told)| **told) {
            let mut frames = Frames::on(*stream);
            let _: Hello = frames.message().unwrap();
            assert!(matches!(frames.message().unwrap(), Answer::Refused(Refused { code: Code::Busy, .. })));
        }
        let mut told = told.into_iter();
        waiting.retain(|_| !told.next().unwrap());
    }
    // Who asked before may still have had a place.
    assert!(waiting.len() >= 63, "{} were taken", waiting.len());
    drop(flood);
    eventually("its threads have ended", || {
        world.shell_soon(threads).parse().is_ok_and(|now: usize| now <= before).then_some(())
    });
    eventually("nothing is under way", || (world.status().under_way == 0).then_some(()));
    let resident = world.shell("grep VmRSS /proc/1/status | tr -dc 0-9");
    println!("resident after the flood: {resident} KiB");
}
