//! Commands on a terminal.

use mvm_proto::{
    Input,
    message::{Exec, Exited, Size},
};

use crate::world::{World, eventually, shell};

fn on_terminal(line: &str) -> Exec {
    Exec { terminal: Some(Size { rows: 30, columns: 100 }), stdin: true, ..shell(line) }
}

#[test]
fn a_terminal_has_a_size_a_name_and_a_user() {
    let Some(world) = World::identified(DEVPTS) else { return };
    let (output, errors, exited) = world.run(on_terminal("tty; stty size; echo $TERM; echo to >&2; exit 6"));
    assert_eq!(
        (&*output, &*errors, exited),
        ("/dev/pts/0\r\n30 100\r\nxterm\r\nto\r\n", "", Exited::Code(6))
    );
    let (output, ..) = world
        .run(Exec { user: Some("ann".into()), ..on_terminal("echo again >$(tty); stat -c %U:%a $(tty)") });
    assert!(output.contains("again") && output.contains("ann:620"), "{output}");
    // It is the command's controlling terminal.
    assert_eq!(world.run(on_terminal("echo there >/dev/tty")).0, "there\r\n");
}

/// A namespace's own terminals.
const DEVPTS: &str = "mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts /dev/pts";

#[test]
fn keys_and_sizes_reach_the_command() {
    let Some(world) = World::identified(DEVPTS) else { return };
    let mut running =
        world.start(on_terminal("trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"));
    running.until("ready");
    running.says(&Input::Resize(Size { rows: 50, columns: 132 }));
    running.until("50 132");
    // Ctrl-C is for the program in the foreground.
    running.input(b"\x03");
    assert_eq!(running.finish().2, Exited::Signal(2));
    let mut running = world.start(on_terminal("cat"));
    running.input(b"hello\r\x04");
    let (output, _, exited) = running.finish();
    assert_eq!((output.matches("hello").count(), exited), (2, Exited::Code(0)));
}

#[test]
fn the_last_words_on_a_terminal_are_not_lost() {
    let Some(world) = World::identified(DEVPTS) else { return };
    for round in 0..20 {
        let (output, ..) =
            world.run(on_terminal("i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i + 1)); done"));
        assert!(output.ends_with("line 299\r\n") && output.lines().count() == 300, "round {round}: {output}");
    }
}

#[test]
fn a_terminal_that_is_left_ends_what_ran_on_it() {
    let Some(world) = World::identified(DEVPTS) else { return };
    let mut running = world.start(on_terminal("trap '' HUP; echo ready; sleep 4000; sleep 4000"));
    running.until("ready");
    let pid = running.pid;
    drop(running);
    eventually("it ends", || {
        world.shell(&format!("test -e /proc/{pid} || echo gone")).contains("gone").then_some(())
    });
}
