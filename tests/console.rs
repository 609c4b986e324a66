//! What is typed on a guest's console: through a pipe, and on a terminal, on the simulated and the real Firecracker.

mod support;

use std::{
    fs,
    io::Write,
    process::{ChildStdin, Command, Output, Stdio},
    time::Duration,
};

use support::{Sandbox, wait_until};

/// A kernel that shows again what comes on its serial port: the tiny one with another program in it.
fn echoing_kernel() -> Vec<u8> {
    const PROGRAM: [u8; 17] = [
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, // wait: in al, dx
        0xa8, 0x01, // test al, 1
        0x74, 0xfb, // jz wait
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0xee, // out dx, al
        0xeb, 0xef, // jmp to the beginning
    ];
    let mut kernel = mvm::cli::tiny_kernel();
    kernel[0x1000..0x1000 + PROGRAM.len()].copy_from_slice(&PROGRAM);
    kernel
}

/// A running instance whose guest shows again what is typed, on each VMM that there is.
fn on_both(test: impl Fn(&Sandbox, &str)) {
    for vmm in ["sim", "firecracker"] {
        if vmm == "firecracker" && support::firecracker().is_none() {
            continue;
        }
        let Some(sandbox) = Sandbox::new() else { return };
        let (kernel, _) = sandbox.artifacts();
        fs::write(kernel, echoing_kernel()).expect("a kernel");
        sandbox.pool(vmm);
        let path = sandbox.instance("acme/web");
        sandbox.ok(&format!("instance start {path}"));
        test(&sandbox, &path);
        sandbox.ok(&format!("instance destroy {path} --yes --wipe-volumes"));
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    }
}

fn fed(mut command: Command, typed: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("a pipe").write_all(typed).expect("it is typed");
    child.wait_with_output().expect("it ends")
}

#[test]
fn what_comes_through_a_pipe_reaches_the_guest_and_its_answer_comes_back() {
    on_both(|sandbox, path| {
        // Twice: the guest never sees that somebody who typed has gone.
        for text in ["first", "second"] {
            let console = sandbox.command(&format!("instance console {path} --until {text}! --timeout 20"));
            let output = fed(console, format!("{text}!\n").as_bytes());
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(shown.contains(&format!("{text}!")) && !shown.contains("boot"), "{shown}");
        }
        // More than a UART holds, with bytes that would talk to a terminal.
        let long = format!("{}\x1b[2J.\n", "0123456789".repeat(20));
        let output = fed(sandbox.command(&format!("instance console {path}")), long.as_bytes());
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(shown.matches("0123456789").count(), 20, "{shown}");
        assert!(shown.contains("\\u{1b}[2J."), "{shown}");
        let all = sandbox.run(&format!("instance console {path}"));
        assert!(String::from_utf8_lossy(&all.stdout).contains("first!"));
    });
}

/// Types on the console of an instance from a terminal until the guest shows it, and then leaves in this way. Returns what the
/// terminal showed, its settings after that at the end.
fn converse(sandbox: &Sandbox, path: &str, leave: impl Fn(&mut ChildStdin)) -> String {
    let console = sandbox.command("");
    let program = console.get_program().to_string_lossy().into_owned();
    let root = sandbox.root().display();
    let story = format!("{program} --root {root} instance console {path}; echo exit $?; stty -a");
    let mut child = Command::new("script")
        .args(["-qec", &story, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(fs::File::create(sandbox.root().join("seen")).expect("a file"))
        .spawn()
        .expect("script runs");
    let seen =
        || String::from_utf8_lossy(&fs::read(sandbox.root().join("seen")).unwrap_or_default()).into_owned();
    wait_until("the console is there", || seen().contains("Ctrl-] leaves"));
    let mut keys = child.stdin.take().expect("a pipe");
    wait_until("what is typed is shown", || {
        keys.write_all(b"hello").expect("it is typed");
        std::thread::park_timeout(Duration::from_millis(50));
        seen().matches("hello").count() > 1
    });
    // A key that would be a signal, were the terminal not raw.
    keys.write_all(b"\x03+").expect("it is typed");
    wait_until("the guest shows it", || seen().contains("\x03+"));
    leave(&mut keys);
    wait_until("the terminal is as it was", || seen().contains(" icanon") && seen().contains(" echo "));
    drop(keys);
    child.wait().expect("it ends");
    seen()
}

#[test]
fn a_person_types_on_a_terminal_and_leaves_it_as_it_was() {
    on_both(|sandbox, path| {
        let seen = converse(sandbox, path, |keys| keys.write_all(b"\x1d").expect("it is typed"));
        assert!(seen.contains("exit 0") && seen.contains("runs on"), "{seen}");
    });
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let mark = format!("\0instance\0console\0{path}\0");
    let seen = converse(&sandbox, &path, |_| {
        let is_it = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).ends_with(&mark)
        };
        let all = fs::read_dir("/proc").expect("/proc is there").flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let pid = pids.find(is_it).and_then(rustix::process::Pid::from_raw).expect("it runs");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is told");
    });
    assert!(seen.contains("exit 1"), "{seen}");
}

#[test]
fn waiting_for_words_ends_with_them_or_says_why_not() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    // No guest, nothing to type on.
    let console = sandbox.command(&format!("instance console {path} --json"));
    let output = fed(console, b"anybody?\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(4) && said.contains(r#""code":"state""#), "{said}");
    assert_eq!(sandbox.refused(&format!("instance console {path} --until x"), 1), "guest_ended");
    sandbox.ok(&format!("instance start {path}"));
    let said = sandbox.run(&format!("instance console {path} --until boot"));
    assert!(said.status.success() && String::from_utf8_lossy(&said.stdout).contains("boot"));
    assert_eq!(sandbox.refused(&format!("instance console {path} --until never --timeout 1"), 1), "timeout");
    assert_eq!(sandbox.refused(&format!("instance console {path} --timeout 1"), 2), "usage");
    assert_eq!(sandbox.refused(&format!("instance console {path} --print --follow"), 2), "usage");
}
