//! From the kernel's first program to a whole machine: drivers, the root disk, everything that programs expect.
//!
//! ```text
//! /dev /proc /sys → modules → root disk ─┬─ read-only, under a tmpfs: the agent stays PID 1
//!                                        └─ writable: the guest's own init takes over (a guest without an agent)
//! ```
//! The root disk is shared by all guests of its revision, so what a guest writes stays in its memory, and ends with it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
            process::CommandExt,
        },
    },
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use mvm_proto::disk;
use rustix::{
    io::Errno,
    mount::{MountFlags, mount, mount_move},
};

use super::{kernel, net, screen::Screen, worker};

/// The first disk.
const ROOT_DISK: &str = "/dev/vda";
/// How long it may take to appear: its driver looks for it when it is loaded.
const DISK_LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);

/// In the initial RAM disk: where modules lie, in which order they are loaded, and where the root comes together.
const MODULES: &str = "/modules";
const ORDER: &str = "/modules/order";
const NEW_ROOT: &str = "/root";
const LOWER: &str = "/lower";
const UPPER: &str = "/upper";

/// What a guest may write over its root at most, of its memory.
const UPPER_SIZE: &str = "size=50%,mode=0755";
const OVERLAY: &str = "lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work";

/// The init of a guest without an agent.
const OTHER_INIT: &str = "/sbin/init";

/// Why a machine did not come up.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct BootError {
    what: String,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> BootError {
    move |source| BootError { what: what.into(), source: source.into() }
}

/// Brings the machine up. Does not return where the guest's own init takes over.
///
/// # Errors
/// The first thing without which it is no machine.
pub fn boot() -> Result<(), BootError> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    put("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755")?;
    put("proc", "/proc", quiet | MountFlags::NODEV, "")?;
    put("sysfs", "/sys", quiet | MountFlags::NODEV, "")?;
    load_modules();
    wait_for_disk()?;
    let line = fs::read_to_string("/proc/cmdline").map_err(failed("/proc/cmdline"))?;
    if has_other_init(&line) {
        return Err(hand_over());
    }
    mount_root(LOWER, true)?;
    put("tmpfs", UPPER, MountFlags::empty(), UPPER_SIZE)?;
    for folder in ["/upper/upper", "/upper/work"] {
        fs::create_dir(folder).map_err(failed(folder))?;
    }
    put("overlay", NEW_ROOT, MountFlags::empty(), OVERLAY)?;
    switch_root()?;
    furnish();
    Ok(())
}

/// A guest without an agent learns who it is from the kernel's command line.
fn has_other_init(line: &str) -> bool {
    line.split_whitespace().any(|word| word == "mvm.agent=none" || word.starts_with("mvm.ip="))
}

/// Mounts a file system of the kernel's own; its folder is made.
fn put(kind: &str, place: &str, flags: MountFlags, options: &str) -> Result<(), BootError> {
    fs::create_dir_all(place).map_err(failed(place))?;
    let options = std::ffi::CString::new(options).unwrap_or_default();
    match mount(kind, place, kind, flags, &*options) {
        // The kernel has done it already.
        Err(Errno::BUSY) => Ok(()),
        done => done.map_err(failed(format!("{kind} cannot be mounted at {place}"))),
    }
}

/// Loads the drivers. One that fails is said: the machine may do without it.
fn load_modules() {
    let order = fs::read_to_string(ORDER).unwrap_or_default();
    for name in order.lines() {
        let loaded =
            File::open(Path::new(MODULES).join(name)).and_then(|file| kernel::load_module(file.as_fd()));
        if let Err(error) = loaded {
            Screen::console().line(&format!("mvm-guest: {name} cannot be loaded: {error}"));
        }
    }
}

fn wait_for_disk() -> Result<(), BootError> {
    let deadline = Instant::now() + DISK_LIMIT;
    loop {
        match fs::metadata(ROOT_DISK) {
            Ok(meta) if meta.file_type().is_block_device() => return Ok(()),
            other if Instant::now() >= deadline => {
                let error = other.err().unwrap_or_else(|| io::Error::other("it is no disk"));
                return Err(failed(format!("there is no root disk {ROOT_DISK}"))(error));
            }
            _ => {}
        }
        thread::sleep(LOOK);
    }
}

fn mount_root(place: &str, read_only: bool) -> Result<(), BootError> {
    fs::create_dir_all(place).map_err(failed(place))?;
    let kind = File::open(ROOT_DISK).and_then(|disk| disk::file_system(&disk)).map_err(failed(ROOT_DISK))?;
    let unknown = || failed(ROOT_DISK)(io::Error::other("there is no file system on it that is known"));
    let kind = kind.ok_or_else(unknown)?;
    let flags = MountFlags::NOATIME | if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let what = failed(format!("{ROOT_DISK} cannot be mounted as {kind}"));
    match mount(ROOT_DISK, place, kind, flags, None) {
        // Its journal is not empty, and may not be written to: the root is as old as its last whole state.
        Err(Errno::ROFS | Errno::ACCESS) if read_only && kind == "ext4" => {
            mount(ROOT_DISK, place, kind, flags, c"noload").map_err(what)
        }
        done => done.map_err(what),
    }
}

/// Makes the new root the root, and frees what the initial RAM disk takes.
fn switch_root() -> Result<(), BootError> {
    for place in ["dev", "proc", "sys"] {
        let (from, to) = (format!("/{place}"), format!("{NEW_ROOT}/{place}"));
        fs::create_dir_all(&to).map_err(failed(&*to))?;
        mount_move(&from, &to).map_err(failed(to))?;
    }
    std::env::set_current_dir(NEW_ROOT).map_err(failed(NEW_ROOT))?;
    empty_first_root();
    mount_move(".", "/").map_err(failed("the root cannot be moved"))?;
    rustix::process::chroot(".").map_err(failed("the root cannot be changed"))?;
    std::env::set_current_dir("/").map_err(failed("/"))
}

/// Removes the files of the kernel's first root, which lie in memory and can never be reached again. It is one only where it
/// holds this program as `/init`, in memory.
fn empty_first_root() {
    const IN_MEMORY: [u64; 2] = [0x8584_58f6, 0x0102_1994];
    let in_memory = rustix::fs::statfs("/").is_ok_and(|stat| IN_MEMORY.contains(&(stat.f_type as u64)));
    if let (true, true, Ok(root)) = (in_memory, Path::new("/init").is_file(), fs::metadata("/")) {
        empty(Path::new("/"), root.dev());
    }
}

/// Removes what is in a folder, but for what is mounted there.
fn empty(folder: &Path, device: u64) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            empty(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Starts the guest's own init in this one's place. Comes back only where that fails.
fn hand_over() -> BootError {
    let switched = mount_root(NEW_ROOT, false).and_then(|()| switch_root());
    match switched {
        Ok(()) => failed(format!("{OTHER_INIT} cannot be run"))(Command::new(OTHER_INIT).exec()),
        Err(error) => error,
    }
}

/// What programs expect of a machine besides its root. What fails is said: most of them do without.
fn furnish() {
    let private = MountFlags::NOSUID | MountFlags::NODEV;
    let mounts = [
        ("tmpfs", "/run", private, "size=25%,mode=0755"),
        // Everybody may write there, and nobody much.
        ("tmpfs", worker::FOLDER, private | MountFlags::NOEXEC, "size=64k,nr_inodes=64,mode=1777"),
        ("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", private, "size=50%,mode=1777"),
    ];
    let screen = Screen::console();
    let cgroup = |options| put("cgroup2", "/sys/fs/cgroup", private | MountFlags::NOEXEC, options);
    // Each command joins a cgroup of its own: without this that waits for a grace period of the kernel.
    if let Err(error) = cgroup("favordynmods").or_else(|_| cgroup("")) {
        screen.line(&format!("mvm-guest: {error}"));
    }
    for (kind, place, flags, options) in mounts {
        if let Err(error) = put(kind, place, flags, options) {
            screen.line(&format!("mvm-guest: {error}"));
        }
    }
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (target, place) in links {
        let _ = symlink(target, place);
    }
    // Programs of Debian expect them there: lock files, and where sshd confines itself. A small root may have no /tmp.
    for (folder, mode) in [("/run/lock", 0o1777), ("/run/sshd", 0o755), ("/tmp", 0o1777)] {
        if fs::create_dir(folder).is_ok() {
            let _ = fs::set_permissions(folder, fs::Permissions::from_mode(mode));
        }
    }
    if let Err(error) = net::prepare() {
        screen.line(&format!("mvm-guest: lo does not come up: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_whether_the_guest_has_an_agent() {
        for (line, other) in [
            ("console=ttyS0 quiet mvm.agent=1\n", false),
            ("console=ttyS0 mvm.agent=none\n", true),
            ("mvm.ip=10.240.3.5/24 mvm.gw=10.240.3.1\n", true),
            ("xmvm.ip=1\n", false),
            ("", false),
        ] {
            assert_eq!(has_other_init(line), other, "{line}");
        }
    }

    #[test]
    fn only_what_is_not_mounted_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), "").unwrap();
        symlink("/", dir.path().join("link")).unwrap();
        let device = fs::metadata(dir.path()).unwrap().dev();
        empty(dir.path(), device + 1);
        assert!(dir.path().join("a/b").exists());
        empty(dir.path(), device);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
