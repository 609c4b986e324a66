//! Commands: their streams, ends, users and folders, and that nothing of them is left.

use mvm_proto::{
    Answer, Code, Input, Request,
    message::{Exec, Exited},
};

use crate::world::{World, command, eventually, shell};

#[test]
fn streams_and_codes_come_through() {
    let Some(world) = World::identified("") else { return };
    let (output, errors, exited) = world.run(shell("echo out; echo err >&2; exit 3"));
    assert_eq!((&*output, &*errors, exited), ("out\n", "err\n", Exited::Code(3)));
    let (_, _, exited) = world.run(shell("kill -9 $$"));
    assert_eq!(exited, Exited::Signal(9));
    // Without input there is none to wait for.
    assert_eq!(world.run(command(&["cat"])).2, Exited::Code(0));
    // Nothing of the agent's is open in a command, or blocked.
    assert_eq!(world.shell("ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3");
    // Of those that there are names for; glibc ignores one of its own in whom it spawns.
    let signals = "grep -E 'SigBlk|SigIgn' /proc/self/status | cut -c17- | sed 's/^8/0/' | sort -u";
    assert_eq!(world.shell(signals), "00000000");
    assert_eq!(world.shell("umask"), "0022");
}

#[test]
fn much_goes_both_ways_at_once() {
    let Some(world) = World::identified("") else { return };
    let mut cat = world.start(Exec { stdin: true, ..command(&["cat"]) });
    let piece: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).take(200_000).collect();
    const PIECES: usize = 40;
    let mut writer = mvm_proto::Frames::on(cat.frames.stream().try_clone().unwrap());
    let copy = piece.clone();
    let thread = std::thread::spawn(move || {
        for _ in 0..PIECES {
            writer.data(mvm_proto::Kind::Data, &copy).unwrap();
        }
        writer.data(mvm_proto::Kind::Data, b"").unwrap();
    });
    let (mut received, mut taken) = (0, 0);
    let exited = loop {
        match cat.frames.advance().unwrap().unwrap() {
            mvm_proto::Kind::Message => match cat.frames.parse().unwrap() {
                Answer::Took { bytes } => taken += bytes,
                other => break other,
            },
            _ => {
                for byte in cat.frames.content() {
                    assert_eq!(*byte, piece[received % piece.len()], "byte {received}");
                    received += 1;
                }
            }
        }
    };
    assert_eq!(exited, Answer::Exited(Exited::Code(0)));
    assert_eq!(received, PIECES * piece.len());
    // What is little is not told at once.
    assert!((received - (64 << 10)..=received).contains(&(taken as usize)), "{taken} of {received}");
    thread.join().unwrap();
}

/// The host sends a window of input at most, and the agent reads behind it.
#[test]
fn a_signal_is_heard_behind_input_that_is_not_taken() {
    let Some(world) = World::identified("") else { return };
    let mut frames = world.ask(&Request::Exec(Exec { stdin: true, ..command(&["sleep", "4000"]) }));
    let Answer::Started { window, .. } = frames.message().unwrap() else { panic!("it does not run") };
    // What a pipe takes is taken, and gives room for as much again.
    let mut room = window;
    while room > 0 {
        let piece = room.min(50_000) as usize;
        frames.data(mvm_proto::Kind::Data, &vec![b'x'; piece]).unwrap();
        room -= piece as u64;
    }
    frames.send(&Input::Signal { number: 15 }).unwrap();
    let exited = loop {
        match frames.message().unwrap() {
            Answer::Took { bytes } => assert!(bytes <= window),
            other => break other,
        }
    };
    assert_eq!(exited, Answer::Exited(Exited::Signal(15)));
}

#[test]
fn who_reads_no_input_does_not_keep_it_from_ending() {
    let Some(world) = World::identified("") else { return };
    let mut quick = world.start(Exec { stdin: true, ..shell("exec 0</dev/null; read -r x; echo done") });
    for _ in 0..4 {
        // It may have ended, and the connection with it.
        let _ = quick.frames.data(mvm_proto::Kind::Data, &[b'x'; 200_000]);
    }
    assert_eq!(quick.finish().0, "done\n");
}

#[test]
fn what_goes_on_in_the_background_is_not_waited_for_and_ends() {
    let Some(world) = World::identified("") else { return };
    let (output, _, exited) = world.run(shell("yes & sleep 1000 & setsid sleep 1001 & echo here; exit 4"));
    assert!(output.contains("here"));
    assert_eq!(exited, Exited::Code(4));
    eventually("the background ends", || {
        (world.count("sleep 100") == 0 && world.count("yes") == 0).then_some(())
    });
}

#[test]
fn signals_reach_the_command_and_what_it_started() {
    let Some(world) = World::identified("") else { return };
    let mut running =
        world.start(shell("trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done"));
    running.until("ready");
    running.says(&Input::Signal { number: 10 });
    let (output, _, exited) = running.finish();
    assert_eq!((output.contains("caught"), exited), (true, Exited::Code(5)));
    let mut running = world.start(shell("sleep 1000 | sleep 1000; echo $?"));
    // Numbers that are no signals are nobody's harm.
    for number in [-1, 0, 9999] {
        running.says(&Input::Signal { number });
    }
    running.says(&Input::Signal { number: 15 });
    assert_eq!(running.finish().2, Exited::Signal(15));
}

#[test]
fn a_host_that_vanishes_ends_its_command_and_all_that_it_started() {
    let Some(world) = World::identified("") else { return };
    let hangs =
        "trap '' HUP TERM; (setsid sh -c 'sleep 2000 & sleep 2000' &) ; sleep 2000 & echo ready; wait";
    for stdin in [false, true] {
        let mut running = world.start(Exec { stdin, ..shell(hangs) });
        running.until("ready");
        assert!(world.count("sleep 2000") > 0);
        drop(running);
        eventually("all of it ends", || (world.count("sleep 2000") == 0).then_some(()));
    }
    // Also where it does not take its input: the host's end is seen all the same.
    let mut running = world.start(Exec { stdin: true, ..shell("echo ready; sleep 3000") });
    running.until("ready");
    for _ in 0..2 {
        running.input(&[b'x'; 100_000]);
    }
    drop(running);
    eventually("all of it ends", || (world.count("sleep 3000") == 0).then_some(()));
    eventually("nothing is under way", || (world.status().under_way == 0).then_some(()));
}

#[test]
fn what_cannot_be_run_is_told_apart() {
    let Some(world) = World::identified("echo x >/run/plain; mkdir /run/closed; chmod 700 /run/closed")
    else {
        return;
    };
    let refused = |exec: Exec| match world.answer(&Request::Exec(exec)) {
        Answer::Refused(refused) => refused.code,
        other => panic!("{other:?}"),
    };
    let at = |cwd: &str| Exec { cwd: Some(cwd.into()), ..command(&["true"]) };
    let by = |user: &str| Exec { user: Some(user.into()), ..command(&["true"]) };
    assert_eq!(refused(command(&["no-such-program"])), Code::NotFound);
    assert_eq!(refused(command(&["/run/none/x"])), Code::NotFound);
    assert_eq!(refused(command(&["/run/plain"])), Code::Denied);
    assert_eq!(refused(command(&["/run"])), Code::Denied);
    assert_eq!(refused(at("/nowhere")), Code::NotFound);
    assert_eq!(refused(Exec { user: Some("ann".into()), ..at("/run/closed") }), Code::Denied);
    for wrong in [by("eve"), by("ann:eves"), command(&[]), command(&["a\0b"])] {
        assert_eq!(refused(wrong), Code::Failed);
    }
    assert_eq!(refused(Exec { env: vec!["no pair".into()], ..command(&["true"]) }), Code::Failed);
    // None of them left anything to be reaped.
    assert_eq!(world.shell("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null || true"), "");
}

#[test]
fn a_command_runs_as_whom_and_where_it_is_said() {
    let Some(world) = World::identified("") else { return };
    let by = |user: &str, line: &str| {
        let (output, errors, exited) = world.run(Exec { user: Some(user.into()), ..shell(line) });
        assert_eq!(exited, Exited::Code(0), "{errors}");
        output.trim().to_owned()
    };
    assert_eq!(
        world.shell("id -u; pwd; echo $HOME $USER $SHELL").replace('\n', " "),
        "0 /root /root root /bin/sh"
    );
    let all = "id -u; id -g; id -G; pwd; echo $USER $LOGNAME";
    assert_eq!(by("ann", all).replace('\n', " "), "1000 1000 1000 26 /tmp ann ann");
    assert_eq!(by("1000", all), by("ann", all));
    assert_eq!(by("ann:tape", "id -g; id -G").replace('\n', " "), "26 26");
    assert_eq!(by("4242:4343", "id -u; id -g; id -G; pwd").replace('\n', " "), "4242 4343 4343 /");
    // Nothing of root is left to it.
    assert_eq!(by("ann", "grep CapEff /proc/self/status | cut -f2"), "0000000000000000");
    let (output, ..) = world.run(Exec {
        env: vec!["A=b=c".into(), "PATH=/nowhere:/bin:/usr/bin".into()],
        cwd: Some("/usr".into()),
        ..shell("echo $A $PATH; pwd; echo $TERM")
    });
    assert_eq!(output, "b=c /nowhere:/bin:/usr/bin\n/usr\n\n");
}
