//! Jails: what one is, that a VMM in it can do no harm by what it puts there, and what is refused where there can be none.

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::Value;
use support::{Sandbox, firecracker, own_mounts, run, skip};

/// An instance that runs in a jail; `None`, said visibly, where there are none. Whether it has limits depends on the machine.
fn world() -> Option<Sandbox> {
    firecracker()?;
    let sandbox = Sandbox::new()?;
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    sandbox.ok("pool create acme/web --mem 128 --data-disk 8 --insecure");
    sandbox.import("acme/web", "");
    let path = sandbox.instance("acme/web");
    let started = sandbox.ok(&format!("instance start {path}"));
    match lacks(&started).contains(&"jail") {
        true => {
            skip("no jail: the jailer is not beside Firecracker, or one of them is linked dynamically");
            None
        }
        false => Some(sandbox),
    }
}

fn lacks(record: &Value) -> Vec<&str> {
    record["vmm"]["lacks"].as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

fn info(sandbox: &Sandbox) -> Value {
    let list = sandbox.ok("instance list");
    list[0].clone()
}

fn path(sandbox: &Sandbox) -> String {
    info(sandbox)["path"].as_str().expect("a path").to_owned()
}

/// The VMM's own directory, its jail.
fn jail(sandbox: &Sandbox) -> PathBuf {
    sandbox.root().join("run/firecracker/tn3i3/root")
}

fn status_of(pid: i64, name: &str) -> Vec<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.split_whitespace().map(|word| word.parse().expect("a number")).collect()
}

fn mounts(pid: impl std::fmt::Display) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("it is there");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_vmm_has_a_user_a_root_and_processes_of_its_own() {
    let before = mounts("self").len();
    let Some(sandbox) = world() else { return };
    let record = info(&sandbox);
    let pid = record["vmm"]["pid"].as_i64().expect("a pid");
    let uid = record["vmm"]["uid"].as_u64().expect("a uid");
    // A static build, which a jail needs, carries Firecracker's own filter.
    assert!(!lacks(&record).contains(&"filter"), "{record}");
    assert_eq!(uid, 0x7000_0000 + (3 << 16) + 3);
    assert_eq!((status_of(pid, "Uid:"), status_of(pid, "Gid:")), (vec![uid; 4], vec![uid; 4]));
    assert_eq!(status_of(pid, "Groups:"), [0_u64; 0]);
    let own_pids = status_of(pid, "NSpid:");
    assert_eq!(own_pids.last(), Some(&1), "{own_pids:?}");
    let caps = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(caps.contains(&format!("{set}:\t0000000000000000")), "{set}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it is there");
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).expect("a limit").to_owned();
    assert!(limit("Max core file size").split_whitespace().nth(4) == Some("0"), "{limits}");
    assert!(limit("Max processes").contains("64"), "{limits}");
    // Its root is its directory, and what is shared there it can only read.
    let place = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).expect("it is there");
    assert_eq!(place(Path::new(&format!("/proc/{pid}/root"))), place(&jail(&sandbox)));
    let its_mounts = mounts(pid);
    let names: Vec<&str> = its_mounts.iter().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(names, ["/", "/vmlinux"], "{its_mounts:#?}");
    assert!(its_mounts[1].split(' ').nth(5).expect("options").starts_with("ro,nosuid,nodev,noexec"));
    // Nobody else sees them.
    assert_eq!(mounts("self").len(), before);
    assert_eq!(fs::metadata(jail(&sandbox).join("vmlinux")).expect("a place").len(), 0);
    // The TAP is the VMM's user's.
    let owner = fs::read_to_string("/sys/class/net/tn3i3/owner");
    if let Ok(owner) = owner {
        assert_eq!(owner.trim(), uid.to_string());
    }
    let shown = sandbox.run(&format!("instance info {}", path(&sandbox)));
    assert!(String::from_utf8_lossy(&shown.stdout).contains(", jailed"));
    sandbox.ok(&format!("instance stop --force {}", path(&sandbox)));
    assert!(!jail(&sandbox).parent().expect("a folder").exists());
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    sandbox.ok("tenant destroy acme --yes --wipe-volumes");
}

/// Whatever it holds: the jailer writes all of it.
#[test]
fn a_copy_that_was_made_beforehand_becomes_the_jails_program() {
    let Some(sandbox) = world() else { return };
    let path = path(&sandbox);
    let version = fs::read_dir(sandbox.root().join("vmm")).expect("versions").flatten();
    let version = version.map(|entry| entry.path()).find(|path| path.is_dir()).expect("one");
    sandbox.ok(&format!("instance stop --force {path}"));
    let spare = version.join("spares/1");
    let program = fs::read(version.join("firecracker")).expect("a program");
    fs::write(&spare, vec![7; program.len()]).expect("a spare");
    let inode = fs::metadata(&spare).expect("a spare").ino();
    sandbox.ok(&format!("instance start {path}"));
    let own = jail(&sandbox).join("firecracker");
    assert_eq!((fs::metadata(&own).expect("a program").ino(), spare.exists()), (inode, false));
    assert!(fs::read(&own).expect("a program") == program);
    sandbox.ok(&format!("instance stop --force {path}"));
    assert_eq!(fs::metadata(&spare).expect("a new one").len(), program.len() as u64);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// Puts something in a place of the jail, which points at what is outside, as the jail's user.
type Plant = fn(&Path, &Path, u32);

/// What a VMM that was taken over can do with the names in its jail.
fn plants() -> Vec<(&'static str, Plant)> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    fn own(place: &Path, uid: u32) {
        std::os::unix::fs::lchown(place, Some(uid), Some(uid)).expect("an owner");
    }
    vec![
        ("a link", |place, victim, uid| {
            std::os::unix::fs::symlink(victim, place).expect("a link");
            own(place, uid);
        }),
        ("a hard link", |place, victim, _| fs::hard_link(victim, place).expect("a link")),
        ("a FIFO", |place, _, uid| {
            mknodat(CWD, place, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
            own(place, uid);
        }),
        ("a socket", |place, _, uid| {
            drop(std::os::unix::net::UnixListener::bind(place).expect("a socket"));
            own(place, uid);
        }),
        ("a folder", |place, _, uid| {
            fs::create_dir(place).expect("a folder");
            own(place, uid);
        }),
    ]
}

/// Everything outside the jail that a plant points at, and what it was.
fn victim(sandbox: &Sandbox) -> PathBuf {
    let victim = sandbox.root().join("victim");
    fs::write(&victim, "untouched").expect("a file");
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).expect("a mode");
    victim
}

#[test]
fn what_a_vmm_plants_in_its_jail_changes_nothing_outside_and_nobody_waits_for_it() {
    let Some(sandbox) = world() else { return };
    let (path, victim) = (path(&sandbox), victim(&sandbox));
    let uid = u32::try_from(info(&sandbox)["vmm"]["uid"].as_u64().expect("a uid")).expect("a uid");
    let is_untouched = |what: &str| {
        let meta = fs::symlink_metadata(&victim).expect("it is there");
        assert_eq!(fs::read_to_string(&victim).expect("it is there"), "untouched", "{what}");
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o600), "{what}");
    };
    for (what, plant) in plants() {
        for name in ["console.in", "console.log", "vmm.log", "v.sock", "api.sock", "data.ext4", "delta"] {
            let place = jail(&sandbox).join(name);
            let meta = fs::symlink_metadata(&place).ok();
            let _ = match meta {
                Some(meta) if meta.is_dir() => fs::remove_dir_all(&place),
                _ => fs::remove_file(&place),
            };
            plant(&place, &victim, uid);
            // They may fail, and what they were asked for may not come to be: that is the VMM's own loss.
            for looks in ["console --print", "logs --vmm", "info", "info --json", "stats", "sleep"] {
                let output = sandbox.run(&format!("instance {looks} {path}"));
                is_untouched(&format!("{what} at {name}, {looks}"));
                let said = [output.stdout, output.stderr].concat();
                assert!(!String::from_utf8_lossy(&said).contains("untouched"), "{what} at {name}, {looks}");
            }
            sandbox.ok(&format!("instance stop --force {path}"));
            is_untouched(&format!("{what} at {name}, stop"));
            assert!(!jail(&sandbox).exists(), "{what} at {name}");
            sandbox.ok(&format!("instance start {path}"));
        }
    }
    let console = jail(&sandbox).join("console.in");
    assert!(fs::symlink_metadata(console).expect("it is there").file_type().is_fifo());
    sandbox.ok(&format!("instance stop --force {path}"));
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// Copies the real Firecracker to where no jailer lies beside it.
fn alone(sandbox: &Sandbox) -> PathBuf {
    let folder = sandbox.root().join("alone");
    fs::create_dir(&folder).expect("a folder");
    fs::copy(firecracker().expect("there is one"), folder.join("firecracker")).expect("a copy");
    folder.join("firecracker")
}

/// A pool that takes no VMM without a jail, and one that does.
fn two_pools(sandbox: &Sandbox) -> [String; 2] {
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    sandbox.ok("pool create acme/strict --mem 128");
    sandbox.ok("pool create acme/any --mem 128 --insecure");
    ["acme/strict", "acme/any"].map(|pool| {
        sandbox.import(pool, "");
        sandbox.instance(pool)
    })
}

/// What is missing is named; a pool that takes it gets it, and says so; a node in production takes nothing less.
#[track_caller]
fn is_refused_unless_taken(sandbox: &Sandbox, [strict, any]: &[String; 2], why: &str) {
    let refused = sandbox.run(&format!("instance start {strict} --json"));
    let said: Value = serde_json::from_slice(&refused.stderr).expect("JSON");
    assert_eq!((refused.status.code(), &said["error"]["code"]), (Some(4), &"no_jail".into()), "{said}");
    assert!(said["error"]["what"].as_str().is_some_and(|what| what.contains(why)), "{said}");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    let would = |path: &str| sandbox.ok(&format!("instance why {path}"))["start_refused"].clone();
    assert!(would(strict)["code"] == "no_jail" && would(any).is_null());
    let started = sandbox.ok(&format!("instance start {any}"));
    assert!(lacks(&started).contains(&"jail"), "{started}");
    sandbox.ok(&format!("instance sleep {any}"));
    let commands = [
        format!("instance wake {any}"),
        format!("instance info {any}"),
        "instance list".into(),
        "tenant audit acme --json".into(),
    ];
    for command in commands {
        let shown = String::from_utf8_lossy(&sandbox.run(&command).stdout).into_owned();
        assert!(shown.contains("no jail"), "{shown}");
    }
    sandbox.ok(&format!("instance stop --force {any}"));
    sandbox.ok("node set plain-storage-waiver on");
    sandbox.ok("node set production on");
    assert_eq!(sandbox.refused(&format!("instance start {any}"), 4), "no_jail");
    sandbox.ok("node set production off");
    let doctor = sandbox.run("doctor");
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("cannot be jailed") && doctor.contains(why), "{doctor}");
}

#[test]
fn without_a_jailer_nothing_starts_unless_the_pool_takes_it() {
    if firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    let program = alone(&sandbox);
    sandbox.ok(&format!("vmm install {}", program.display()));
    let pools = two_pools(&sandbox);
    is_refused_unless_taken(&sandbox, &pools, "no jailer is installed beside Firecracker");
}

#[test]
fn a_jailer_that_needs_libraries_is_none() {
    if firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    let program = alone(&sandbox);
    let install = format!("vmm install {}", program.display());
    assert_eq!(sandbox.refused(&format!("{install} --jailer /bin/true"), 1), "not_jailer");
    assert!(sandbox.ok("vmm list").as_array().is_some_and(Vec::is_empty));
    sandbox.ok(&install);
    let installed =
        fs::read_dir(sandbox.root().join("vmm")).expect("a folder").flatten().next().expect("one");
    fs::copy("/bin/true", installed.path().join("jailer")).expect("a copy");
    let pools = two_pools(&sandbox);
    is_refused_unless_taken(&sandbox, &pools, "jailer is linked dynamically");
}

#[test]
fn a_root_without_devices_or_programs_has_no_jails() {
    if firecracker().is_none() {
        return;
    }
    for option in ["nodev", "noexec"] {
        let Some(mut sandbox) = Sandbox::new() else { return };
        support::own_mounts();
        sandbox.mount_tmpfs("256M");
        sandbox.ok("node set disk-floor-mib 0");
        let pools = two_pools(&sandbox);
        let root = sandbox.root().display().to_string();
        support::run("mount", &["-o", &format!("remount,{option}"), &root]);
        let why = format!("is mounted {option}");
        if option == "nodev" {
            is_refused_unless_taken(&sandbox, &pools, &why);
        } else {
            // Nothing at all can be executed there.
            assert_eq!(sandbox.refused(&format!("instance start {}", pools[0]), 4), "no_jail");
        }
    }
}

/// Where limits cannot be had, that is the same.
#[test]
fn without_limits_nothing_starts_unless_the_pool_takes_it() {
    let Some(sandbox) = world() else { return };
    sandbox.ok("pool create acme/strict --mem 128");
    sandbox.import("acme/strict", "");
    let strict = sandbox.instance("acme/strict");
    let list = sandbox.ok("instance list acme/web");
    let shown = String::from_utf8_lossy(&sandbox.run("instance list acme/web").stdout).into_owned();
    match mvm::security::cgroups::hierarchy() {
        Ok(_) => {
            assert!(lacks(&list[0]).is_empty() && !shown.contains("no limits"), "{shown}");
            assert!(lacks(&sandbox.ok(&format!("instance start {strict}"))).is_empty());
        }
        Err(why) => {
            assert!(lacks(&list[0]) == ["limits"] && shown.contains("firecracker (no limits)"), "{shown}");
            let refused = sandbox.run(&format!("instance start {strict}"));
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(4) && said.contains(&why.to_string()), "{said}");
            let would = sandbox.ok(&format!("instance why {strict}"))["start_refused"].clone();
            assert_eq!(would["code"], "no_limits", "{would}");
        }
    }
}

/// A user beside mvm that a VMM's is, too, may end it, and read what it reads.
#[test]
fn a_vmm_whose_user_is_somebodys_is_not_jailed_as_that_one() {
    if firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    own_mounts();
    let over = sandbox.root().join("over");
    let [strict, any] = two_pools(&sandbox);
    for (file, line) in [
        ("/etc/passwd", "somebody:x:1879244803:1879244803::/:/bin/sh"),
        ("/etc/group", "somebody:x:1879244803:"),
        ("/etc/subuid", "somebody:1879244800:65536"),
        ("/etc/subgid", "somebody:1:18446744073709551615"),
    ] {
        let whole = fs::read_to_string(file).expect("it is there");
        fs::write(&over, format!("{whole}{line}\n")).expect("a file");
        run("mount", &["--bind", &over.display().to_string(), file]);
        assert_eq!(sandbox.refused(&format!("instance start {strict}"), 4), "no_jail", "{line}");
        let would = sandbox.ok(&format!("instance why {strict}"))["start_refused"].to_string();
        assert!(would.contains("is somebody's") && would.contains(line), "{would}");
        let doctor = String::from_utf8_lossy(&sandbox.run("doctor").stdout).into_owned();
        assert!(doctor.contains("users of VMMs are somebody's") && doctor.contains(line), "{doctor}");
        run("umount", &[file]);
    }
    // The other one has another, which is nobody's now.
    assert!(!lacks(&sandbox.ok(&format!("instance start {any}"))).contains(&"jail"));
    sandbox.ok(&format!("instance stop --force {any}"));
}

#[test]
fn without_cgroups_of_version_two_nothing_starts_unless_the_pool_takes_it() {
    if firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    own_mounts();
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a table");
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for mount in mounts.lines().map(fields).filter(|fields| fields[2] == "cgroup2") {
        run("umount", &["--lazy", &mount[1]]);
    }
    let [strict, any] = two_pools(&sandbox);
    let refused = sandbox.run(&format!("instance start {strict} --json"));
    let said: Value = serde_json::from_slice(&refused.stderr).expect("JSON");
    assert_eq!((refused.status.code(), &said["error"]["code"]), (Some(4), &"no_limits".into()), "{said}");
    let why = "cgroups of version 2 are not mounted";
    assert!(said.to_string().contains(why), "{said}");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    assert_eq!(lacks(&sandbox.ok(&format!("instance start {any}"))), ["limits"]);
    let doctor = String::from_utf8_lossy(&sandbox.run("doctor").stdout).into_owned();
    assert!(doctor.contains(why), "{doctor}");
    sandbox.ok(&format!("instance stop --force {any}"));
}

/// What an instance has belongs to whoever runs its VMM, in whatever order these come: also where it went to sleep as the other.
#[test]
fn an_instance_loses_its_jail_and_gets_it_back() {
    let Some(sandbox) = world() else { return };
    let path = path(&sandbox);
    let installed = sandbox.root().join("vmm");
    let version = fs::read_dir(&installed).expect("a version").flatten().next().expect("one").path();
    let (jailer, aside) = (version.join("jailer"), version.join("jailer.aside"));
    let data = || {
        let folder = sandbox
            .root()
            .join("tenants/acme/pools/web/instances")
            .join(path.rsplit('/').next().expect("an id"));
        fs::metadata(folder.join("volumes/data.ext4")).expect("a disk").uid()
    };
    let is_jailed = |record: &Value| !lacks(record).contains(&"jail");
    let jailed = data();
    assert!(jailed >= 0x7000_0000);
    for round in 0..2 {
        fs::rename(&jailer, &aside).expect("renamed");
        sandbox.ok(&format!("instance sleep {path}"));
        assert!(!is_jailed(&sandbox.ok(&format!("instance wake {path}"))), "round {round}");
        sandbox.ok(&format!("instance stop --force {path}"));
        assert!(!is_jailed(&sandbox.ok(&format!("instance start {path}"))));
        fs::rename(&aside, &jailer).expect("renamed");
        sandbox.ok(&format!("instance sleep {path}"));
        assert!(is_jailed(&sandbox.ok(&format!("instance wake {path}"))), "round {round}");
        assert_eq!(data(), jailed);
        sandbox.ok(&format!("instance stop --force {path}"));
        assert!(is_jailed(&sandbox.ok(&format!("instance start {path}"))));
    }
}

/// Makes a pool whose VMMs have mvm's own filter, and starts an instance of it; its record.
fn start_strict(sandbox: &Sandbox) -> Value {
    sandbox.ok("pool create acme/strict --mem 128 --data-disk 8 --insecure --seccomp strict");
    sandbox.import("acme/strict", "");
    let path = sandbox.instance("acme/strict");
    sandbox.ok(&format!("instance start {path}"))
}

#[test]
fn a_strict_filter_lets_a_guest_live() {
    let Some(sandbox) = world() else { return };
    assert_eq!(info(&sandbox)["vmm"]["filter"], "baseline");
    let record = start_strict(&sandbox);
    assert_eq!(record["vmm"]["filter"], "strict", "{record}");
    let path = path_of(&record).to_owned();
    for verb in ["warm", "resume", "sleep", "wake", "sleep", "wake"] {
        sandbox.ok(&format!("instance {verb} {path}"));
    }
    assert_eq!(sandbox.ok(&format!("instance info {path}"))["vmm"]["filter"], "strict");
    sandbox.ok(&format!("instance stop {path} --force"));
    sandbox.ok("pool update acme/strict --seccomp baseline");
    assert_eq!(sandbox.ok(&format!("instance start {path}"))["vmm"]["filter"], "baseline");
}

/// Its VMM took Firecracker's own filter, which was all that its pool wanted then.
#[test]
fn a_wake_that_was_cut_off_goes_on_only_with_the_filter_that_is_wanted_by_now() {
    let Some(sandbox) = world() else { return };
    let path = path(&sandbox);
    for (wanted, status) in [("baseline", "running"), ("strict", "warm")] {
        sandbox.ok(&format!("instance sleep {path}"));
        let output = sandbox.run_with(&format!("instance wake {path}"), "wake.consume");
        assert!(support::was_killed(&output));
        sandbox.ok(&format!("pool update acme/web --seccomp {wanted}"));
        sandbox.ok("node recover");
        let record = info(&sandbox);
        assert_eq!((&record["status"], &record["pending"]), (&status.into(), &Value::Null), "{record}");
    }
    // It waits, and a sleep and a wake give it the filter.
    assert_eq!(sandbox.refused(&format!("instance resume {path}"), 4), "no_filter");
    assert!(!sandbox.is_joined(&path));
    sandbox.ok(&format!("instance sleep {path}"));
    assert_eq!(sandbox.ok(&format!("instance wake {path}"))["vmm"]["filter"], "strict");
    assert!(sandbox.is_joined(&path));
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_forbidden_call_kills_the_vmm_and_is_said() {
    let Some(sandbox) = world() else { return };
    let record = start_strict(&sandbox);
    let path = path_of(&record);
    let pid = i32::try_from(record["vmm"]["pid"].as_i64().expect("a pid")).expect("a pid");
    // io_uring_setup: Firecracker's own filter has it.
    calls(pid, 425);
    let ended = sandbox.ok(&format!("instance wait {path} --for stopped --timeout 20"));
    let why = ended["last_exit"]["why"].as_str().expect("a reason");
    assert!(why.contains("system call 425, which its filter forbids"), "{why}");
    // One with Firecracker's own filter makes the call. What comes back is nothing that it expects, and of that it ends.
    let list = sandbox.ok("instance list acme/web");
    let record = &list[0];
    assert_eq!(record["vmm"]["filter"], "baseline");
    let pid = i32::try_from(record["vmm"]["pid"].as_i64().expect("a pid")).expect("a pid");
    calls(pid, 425);
    let ended = sandbox.ok(&format!("instance wait {} --for stopped --timeout 20", path_of(record)));
    let why = ended["last_exit"]["why"].as_str().expect("a reason");
    assert!(why.starts_with("the VMM ended by itself"), "{why}");
}

fn path_of(record: &Value) -> &str {
    record["path"].as_str().expect("a path")
}

/// Lets the first thread of a process make a system call, as somebody would who has taken it over.
#[cfg(target_arch = "x86_64")]
fn calls(pid: i32, number: u64) {
    use std::ptr;
    let nothing: *mut libc::c_void = ptr::null_mut();
    // SAFETY: a process of this test's, stopped while its registers are changed; `registers` outlives the calls.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, pid, nothing, nothing), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, pid, nothing, nothing), 0);
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, libc::__WALL), pid);
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        assert_eq!(libc::ptrace(libc::PTRACE_GETREGS, pid, nothing, &raw mut registers), 0);
        // It waits in a system call: the instruction for one is right before where it goes on.
        registers.rip -= 2;
        registers.rax = number;
        registers.orig_rax = u64::MAX;
        registers.rdi = 0;
        registers.rsi = 0;
        assert_eq!(libc::ptrace(libc::PTRACE_SETREGS, pid, nothing, &raw const registers), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, nothing, nothing), 0);
    }
}
