//! The life of instances as a user sees it, on the simulated and on the real Firecracker: what runs goes on running, what
//! ended is found, what a guest prints stays bounded, what fails leaves no trace.

mod support;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use support::{Sandbox, wait_until};

const VMMS: [&str; 2] = ["sim", "firecracker"];

/// Runs a test on both; the real one only where it is.
fn on_both(test: impl Fn(&Sandbox, &str)) {
    for vmm in VMMS {
        if vmm == "firecracker" && support::firecracker().is_none() {
            continue;
        }
        let Some(sandbox) = Sandbox::new() else { return };
        test(&sandbox, vmm);
    }
}

fn console(sandbox: &Sandbox, path: &str) -> std::path::PathBuf {
    let parts: Vec<&str> = path.split('/').collect();
    let pool = sandbox.root().join("tenants").join(parts[0]).join("pools").join(parts[1]);
    pool.join("instances").join(parts[2]).join("logs/console.log")
}

/// What has a folder of that name in a container is the container's.
#[test]
fn a_vmm_of_another_mount_namespace_in_a_folder_of_the_same_name_is_left_alone() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let (pid, tap) = sandbox.vmms().remove(0);
    let root = fs::canonicalize(sandbox.root()).expect("the root is there");
    let folder = root.join("run/firecracker").join(tap).join("root");
    let inside = format!(
        "mount --make-rprivate / && mount -t tmpfs tmpfs {0} && cd {0} && cp /bin/sleep firecracker && exec ./firecracker 1000",
        folder.display()
    );
    let mut stranger = Command::new("unshare").args(["-m", "sh", "-c", &inside]).spawn().expect("it runs");
    let process = Path::new("/proc").join(stranger.id().to_string());
    wait_until("it runs", || {
        fs::read_link(process.join("exe")).is_ok_and(|exe| exe == folder.join("firecracker"))
    });
    assert_eq!(fs::read_link(process.join("cwd")).expect("it is there"), folder, "the name is the same");
    support::kill_and_wait(pid);
    sandbox.ok("node recover");
    assert_eq!(sandbox.states(), [format!("{path} stopped")]);
    assert!(stranger.try_wait().expect("a child").is_none(), "it was killed");
    stranger.kill().expect("it can be killed");
    stranger.wait().expect("it ends");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn an_instance_lives_from_create_to_destroy() {
    on_both(|sandbox, vmm| {
        sandbox.pool(vmm);
        let path = sandbox.instance("acme/web");
        assert_eq!(sandbox.states(), [format!("{path} ready")]);
        let started = sandbox.ok(&format!("instance start {path}"));
        assert_eq!(started["status"], "running");
        assert_eq!(started["vmm"]["kind"], vmm);
        let steps = started["last_receipt"]["steps"].as_array().map_or(0, Vec::len);
        assert_eq!(steps, 9);
        wait_until("the guest prints", || {
            fs::metadata(console(sandbox, &path)).is_ok_and(|meta| meta.len() > 0)
        });
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
        // Asked again, it says so and changes nothing.
        let again = sandbox.ok(&format!("instance start {path}"));
        assert_eq!(again["vmm"], started["vmm"]);
        let stopped = sandbox.ok(&format!("instance stop {path} --force"));
        assert_eq!((&stopped["status"], stopped["vmm"].is_null()), (&json!("stopped"), true));
        assert!(sandbox.vmms().is_empty() && sandbox.links("tn").is_empty());
        sandbox.ok(&format!("instance start {path}"));
        sandbox.ok(&format!("instance destroy {path} --yes --wipe-volumes"));
        assert!(sandbox.states().is_empty() && sandbox.vmms().is_empty());
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    });
}

#[test]
fn a_vmm_that_ended_by_itself_is_found_and_audited() {
    on_both(|sandbox, vmm| {
        sandbox.pool(vmm);
        let path = sandbox.instance("acme/web");
        sandbox.ok(&format!("instance start {path}"));
        let (pid, _) = sandbox.vmms()[0];
        support::kill_and_wait(pid);
        assert_eq!(sandbox.states(), [format!("{path} stopped")]);
        let info = sandbox.ok(&format!("instance info {path}"));
        assert_eq!(info["last_exit"]["why"], "the VMM ended by itself");
        let log = sandbox.ok("tenant audit acme");
        let observed =
            |record: &serde_json::Value| record["phase"] == "observed" && record["what"] == "instance.died";
        assert!(log.as_array().is_some_and(|records| records.iter().any(observed)));
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
        sandbox.ok(&format!("instance start {path}"));
    });
}

#[test]
fn a_pid_that_was_used_again_is_nobody_of_ours() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let (pid, _) = sandbox.vmms()[0];
    support::kill_and_wait(pid);
    // This test's own pid, which lives, with a start time that is not its own.
    edit(&sandbox, &path, |record| record["vmm"]["pid"] = json!(std::process::id()));
    assert_eq!(sandbox.states(), [format!("{path} stopped")]);
    sandbox.ok(&format!("instance destroy {path} --yes --wipe-volumes"));
}

fn edit(sandbox: &Sandbox, path: &str, change: impl Fn(&mut serde_json::Value)) {
    let parts: Vec<&str> = path.split('/').collect();
    let pool = sandbox.root().join("tenants").join(parts[0]).join("pools").join(parts[1]);
    let file = pool.join("instances").join(parts[2]).join("instance.json");
    let mut record = serde_json::from_slice(&fs::read(&file).expect("a record")).expect("JSON");
    change(&mut record);
    fs::write(&file, record.to_string()).expect("it can be written");
}

#[test]
fn after_a_reboot_the_network_is_rebuilt_and_instances_start_again() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let other = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let (pid, _) = sandbox.vmms()[0];
    support::kill_and_wait(pid);
    edit(&sandbox, &path, |record| record["vmm"]["boot_id"] = json!("00000000-0000-0000-0000-000000000000"));
    // What a reboot takes away: a network namespace in which nothing is.
    sandbox.enter_empty_network();
    assert!(sandbox.links("br-").is_empty());
    let mut states = vec![format!("{path} stopped"), format!("{other} ready")];
    states.sort();
    assert_eq!(sandbox.states(), states);
    let info = sandbox.ok(&format!("instance info {path}"));
    assert_eq!(info["last_exit"]["why"], "the host rebooted");
    for path in [&path, &other] {
        sandbox.ok(&format!("instance start {path}"));
    }
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn what_a_simulated_guest_prints_for_ever_stays_bounded() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    sandbox.ok("tenant update acme --log-mib 1");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let text = "x".repeat(60_000);
    for _ in 0..60 {
        sandbox.tell("tn3i3", &json!({ "cmd": "print", "text": text }));
    }
    // 3.6 MB were printed, with no mvm process running; a day's half is 0.5 MiB.
    let length = fs::metadata(console(&sandbox, &path)).expect("a console").len();
    assert!((100_000..600_000).contains(&length), "{length}");
    for _ in 0..6 {
        sandbox.ok(&format!("instance stop {path} --force"));
        sandbox.ok(&format!("instance start {path}"));
        for _ in 0..20 {
            sandbox.tell("tn3i3", &json!({ "cmd": "print", "text": text }));
        }
    }
    let total = size_of(console(&sandbox, &path).parent().expect("a folder"));
    assert!(total <= 1 << 20, "{total}");
}

#[test]
fn what_a_real_guest_prints_for_ever_stays_bounded() {
    if support::firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    let kernel = sandbox.artifacts().0;
    let mut elf = fs::read(&kernel).expect("a kernel");
    // Instead of halting it begins again: the jump at the end of the code goes back to its start.
    let halt = elf.windows(3).position(|bytes| bytes == [0xf4, 0xeb, 0xfd]).expect("the guest halts");
    let back = i8::try_from(0x1000_i64 - (halt as i64 + 3)).expect("a short way");
    elf[halt..halt + 3].copy_from_slice(&[0x90, 0xeb, back.to_le_bytes()[0]]);
    fs::write(&kernel, elf).expect("it can be written");
    sandbox.pool("firecracker");
    sandbox.ok("tenant update acme --log-mib 1");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let length = || fs::metadata(console(&sandbox, &path)).map_or(0, |meta| meta.len());
    wait_until("the burst is used up", || length() >= 250_000);
    // It prints on: what it computes from here on, half a second of it, is more than the day has left.
    let cpu = || sandbox.ok("instance stats")[0]["cpu_ms"].as_u64().unwrap_or_default();
    let before = cpu();
    wait_until("the guest computes on", || cpu() >= before + 500);
    assert!(length() <= 512 << 10, "{}", length());
}

fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

#[test]
fn a_kernel_that_does_not_boot_leaves_the_instance_as_it_was() {
    on_both(|sandbox, vmm| {
        let (kernel, _) = sandbox.artifacts();
        // It is whole, and its one segment lies where the guest has no memory.
        let mut elf = fs::read(&kernel).expect("a kernel");
        for field in [24, 64 + 16, 64 + 24] {
            elf[field..field + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        }
        fs::write(&kernel, elf).expect("it can be written");
        sandbox.pool(vmm);
        let path = sandbox.instance("acme/web");
        assert_eq!(sandbox.refused(&format!("instance start {path}"), 1), "vmm_refused");
        assert_eq!(sandbox.states(), [format!("{path} ready")]);
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    });
}

#[test]
fn running_instances_keep_their_revision() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let first = sandbox.ok(&format!("instance start {path}"))["revision"].clone();
    sandbox.import("acme/web", "2");
    assert_eq!(
        sandbox.ok("pool gc acme/web"),
        json!({ "revisions": [], "bases": [] }),
        "the running one and the one to go back to are needed"
    );
    assert_eq!(sandbox.ok(&format!("instance info {path}"))["revision"], first);
    sandbox.import("acme/web", "3");
    sandbox.ok(&format!("instance stop {path} --force"));
    let third = sandbox.ok(&format!("instance start {path}"))["revision"].clone();
    assert_ne!(first, third);
    assert_eq!(sandbox.ok("pool gc acme/web")["revisions"].as_array().map(Vec::len), Some(1));
}

#[test]
fn waiting_ends_with_the_event() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    let waiter = sandbox.command(&format!("instance wait {path} --for running --timeout 60")).spawn();
    let mut waiter = waiter.expect("mvm runs");
    sandbox.ok(&format!("instance start {path}"));
    assert!(waiter.wait().expect("it ends").success());
    let begun = Instant::now();
    assert_eq!(sandbox.refused(&format!("instance wait {path} --for stopped --timeout 0"), 1), "timeout");
    let mut waiter =
        sandbox.command(&format!("instance wait {path} --for stopped")).spawn().expect("mvm runs");
    support::kill_and_wait(sandbox.vmms()[0].0);
    assert!(waiter.wait().expect("it ends").success());
    assert!(begun.elapsed() < Duration::from_secs(50));
}

#[test]
fn following_ends_when_nobody_reads_any_more() {
    let Some(sandbox) = Sandbox::new() else { return };
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    for command in [format!("instance console {path} -f"), "events -f".to_owned()] {
        let mut child =
            sandbox.command(&command).stdout(std::process::Stdio::piped()).spawn().expect("mvm runs");
        let mut first = [0];
        let mut stdout = child.stdout.take().expect("a pipe");
        std::io::Read::read_exact(&mut stdout, &mut first).expect("something is printed");
        drop(stdout);
        // What comes next finds no reader.
        wait_until("the command ends", || {
            sandbox.tell("tn3i3", &json!({ "cmd": "print", "text": "more\n" }));
            sandbox.ok("pool update acme/web --label a=b");
            sandbox.ok("pool update acme/web --label a=");
            child.try_wait().expect("it can be asked").is_some()
        });
    }
}

/// It may come to the process alone, as here, or from a terminal.
#[test]
fn an_interrupted_demo_says_so_and_leaves_nothing() {
    let Some(sandbox) = Sandbox::new() else { return };
    let mut demo = sandbox.command("demo --json");
    let demo = demo.env("TMPDIR", sandbox.root()).stdout(std::process::Stdio::null()).spawn();
    let mut demo = demo.expect("mvm runs");
    let root = sandbox.root().join(format!("mvm-demo-{}", demo.id()));
    let vmms = root.join("run/firecracker");
    wait_until("its guests run", || fs::read_dir(&vmms).is_ok_and(|found| found.count() == 3));
    let pid = rustix::process::Pid::from_child(&demo);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is there");
    assert_eq!(demo.wait().expect("it ends").code(), Some(130));
    assert!(!root.exists());
    let works_there = |entry: fs::DirEntry| {
        fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(sandbox.root()))
    };
    assert!(!fs::read_dir("/proc").expect("/proc is there").flatten().any(works_there));
}

#[test]
fn reflinks_are_used_where_the_file_system_has_them() {
    let Some(sandbox) = Sandbox::new() else { return };
    // SAFETY: the thread belongs to this test alone; mounts stay in its own namespace.
    if unsafe {
        rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS)
    }
    .is_err()
    {
        return support::skip("no mount namespaces here");
    }
    let image = sandbox.root().join("btrfs.img");
    let mounted = sandbox.root().join("mounted");
    fs::File::create(&image).and_then(|file| file.set_len(256 << 20)).expect("an image");
    fs::create_dir(&mounted).expect("a folder");
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    let private = run("mount", &["--make-rprivate".as_ref(), "/".as_ref()]);
    let made = run("mkfs.btrfs", &["-q".as_ref(), image.as_ref()]);
    if !private || !made || !run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), mounted.as_ref()])
    {
        return support::skip("no btrfs on a loop device here");
    }
    let (from, to) = (mounted.join("a"), mounted.join("b"));
    fs::write(&from, vec![7; 8 << 20]).expect("a file");
    let copied = mvm::vm::instance::disk::copy(&from, &to).expect("a copy");
    assert_eq!(copied, mvm::vm::instance::disk::Copied::Reflink);
    assert_eq!(fs::read(&from).expect("readable"), fs::read(&to).expect("readable"));
    assert!(run("umount", &[mounted.as_ref()]));
}
