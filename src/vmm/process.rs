//! VMM processes: started detached, found again, ended.
//!
//! A VMM belongs to nobody's process tree. It is recognised by its working directory together with its start time and
//! the host's boot id; a pid alone is never trusted. A killed starter leaves no window: its child dies with it until its
//! working directory is set, and is known there from that moment on, before it is the VMM ([`shell::ABOUT_TO_BE`]).

use std::{
    ffi::{CString, OsString},
    fs::File,
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, mknodat, openat},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};

use super::{
    client::{API_SOCKET, LOG, VmmError},
    install::SIM_ARGUMENT,
    spares,
};
pub use crate::infra::processes::boot_id;
use crate::infra::{
    beneath,
    processes::{Stat, proc_text, stat},
    shell::{self, Cell, ShellError, Streams},
};

/// A program to run as VMM.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Arguments that come before Firecracker's.
    pub first_arguments: Vec<OsString>,
    /// Its version.
    pub version: String,
    /// The jailer that goes with it.
    pub jailer: Option<PathBuf>,
}

/// What a VMM is locked up in: Firecracker's jailer changes its root to its directory, and its user.
#[derive(Debug, Clone)]
pub struct Jail {
    /// The jailer.
    pub jailer: PathBuf,
    /// The user and the group that the VMM gets.
    pub uid: u32,
    /// The folder in which VMMs have their directories, `<folder>/<program>/<id>/root`.
    pub base: PathBuf,
}

/// A process that cannot be mistaken for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its pid.
    pub pid: i32,
    /// When it was started, in clock ticks since boot.
    pub start_time: u64,
}

/// A VMM that was started or found.
#[derive(Debug)]
pub struct Vmm {
    /// Who it is.
    pub identity: Identity,
    /// A handle that stays its own, whatever becomes of the pid.
    pub pidfd: OwnedFd,
}

/// How many threads the user of a jailed VMM may have: the VMM's own, and one for each of at most 32 vCPUs.
pub const TASKS: u64 = 64;

/// What a VMM's guest prints, in the VMM's directory.
pub const CONSOLE: &str = "console.log";
/// What is typed on the guest's console: a FIFO in the VMM's directory.
pub const CONSOLE_INPUT: &str = "console.in";

/// Where and how a VMM is started.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// Its directory. Its log and its guest's console lie there already; what is typed comes through a FIFO beside them.
    pub directory: &'a Path,
    /// What it calls itself.
    pub id: &'a str,
    /// What it is locked up in.
    pub jail: Option<&'a Jail>,
    /// Files that a jailed one finds in its directory under these names, to be read.
    pub shared: &'a [(PathBuf, String)],
    /// The cgroup in which a jailed one comes up.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The file in its directory that has its seccomp filters; its own, where there is none.
    pub filter: Option<&'a str>,
}

/// Starts a VMM.
///
/// # Errors
/// When the program cannot be run.
pub fn spawn(program: &Program, start: Start) -> Result<Vmm, ShellError> {
    let Start { directory, id, jail, shared, cgroup, filter } = start;
    let wrap = |source| ShellError::Spawn { program: program.path.clone(), source };
    let append = |name| File::options().append(true).create(true).open(directory.join(name)).map_err(wrap);
    let streams = Streams {
        input: console_input(&directory.join(CONSOLE_INPUT)).map_err(wrap)?,
        output: append(CONSOLE)?,
        errors: append(LOG)?,
    };
    let filter = filter.map(|file| ["--seccomp-filter", file]);
    let arguments = [["--api-sock", API_SOCKET], ["--level", "Error"], ["--log-path", LOG]].into_iter();
    let arguments = arguments.chain(filter).flatten().map(OsString::from);
    let (run, first, cell) = match jail {
        None => {
            let first = program.first_arguments.iter().cloned().chain(["--id", id].map(OsString::from));
            (&program.path, first.collect(), None)
        }
        Some(jail) => {
            let mount = |(file, name): &(PathBuf, String)| -> io::Result<_> {
                Ok((shell::read_only(file)?, CString::new(name.as_str())?))
            };
            let mounts = shared.iter().map(mount).collect::<io::Result<_>>().map_err(wrap)?;
            if let Some(name) = program.path.file_name() {
                spares::take(&program.path, &directory.join(name));
            }
            (&jail.jailer, jail.arguments(program, id), Some(Cell { mounts, cgroup, tasks: TASKS }))
        }
    };
    let arguments = first.into_iter().chain(arguments);
    let (pid, pidfd) = shell::spawn_detached(run, arguments, directory, &streams, cell.as_ref())?;
    match stat(pid) {
        Some(Stat { start_time, .. }) => Ok(Vmm { identity: Identity { pid, start_time }, pidfd }),
        None => Err(wrap(io::Error::other("it ended at once"))),
    }
}

impl Jail {
    fn arguments(&self, program: &Program, id: &str) -> Vec<OsString> {
        let uid = self.uid.to_string();
        let [exec, base] = [&program.path, &self.base].map(|path| path.clone().into_os_string());
        let mut arguments: Vec<OsString> =
            ["--id", id, "--uid", &uid, "--gid", &uid, "--exec-file"].map(OsString::from).into();
        arguments.extend([exec, "--chroot-base-dir".into(), base, "--".into()]);
        arguments
    }
}

/// The end of the FIFO that the VMM gets. It is open for writing too, so that the VMM never sees the end of it when those
/// who type go away, and nobody has to stay.
fn console_input(path: &Path) -> io::Result<File> {
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    fifo(openat(CWD, path, flags, Mode::empty())?)
}

/// Opens the console of the VMM in `directory` for typing. `None` where there is none: no VMM, or one that was started before
/// consoles had an input. Nobody waits for a guest that does not read.
///
/// # Errors
/// When it cannot be opened, or is something else than it was made as.
pub fn open_console(directory: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    match beneath::open(directory, CONSOLE_INPUT, flags) {
        Ok(opened) => fifo(opened.into()).map(Some),
        // NXIO: nobody has it open for reading.
        Err(Errno::NOENT | Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The directory may be a jail's, whose VMM may put anything there.
fn fifo(opened: OwnedFd) -> io::Result<File> {
    match FileType::from_raw_mode(fstat(&opened)?.st_mode) {
        FileType::Fifo => Ok(opened.into()),
        _ => Err(io::Error::other("it is no FIFO")),
    }
}

fn handle(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// The process of that identity, unless it has ended.
fn live(identity: Identity) -> Option<Stat> {
    stat(identity.pid).filter(|stat| stat.start_time == identity.start_time && stat.state != b'Z')
}

/// CPU time in ms, and resident memory in bytes, of the VMM with this identity.
pub fn usage(identity: Identity) -> Option<(u64, u64)> {
    let stat = live(identity)?;
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    Some((stat.cpu_time * 1000 / ticks_per_second, stat.resident * rustix::param::page_size() as u64))
}

/// Finds the VMM with this identity; `None` if it has ended.
pub fn find(identity: Identity) -> Option<Vmm> {
    let pidfd = handle(identity.pid)?;
    // The handle comes first: if the start time fits afterwards, the handle is the right process's.
    live(identity).map(|_| Vmm { identity, pidfd })
}

/// Is there still a VMM with this identity? Cheaper than [`find`].
pub fn is_alive(identity: Identity) -> bool {
    live(identity).is_some()
}

/// Finds the VMMs whose working directory is `directory`, whoever started them. Other programs may stand there too: a
/// person's shell, for example. And a container may have a folder of that name, with VMMs of its own.
pub fn find_in(directory: &Path) -> Vec<Vmm> {
    let folder = std::fs::metadata(directory).ok().map(|meta| (meta.dev(), meta.ino()));
    let mounts = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = mounts("self");
    let stands_there = |pid: i32| {
        let place = std::fs::metadata(format!("/proc/{pid}/cwd")).ok().map(|meta| (meta.dev(), meta.ino()));
        folder.is_some() && place == folder
            // Its folder was removed or mounted over: then the name tells, to who sees the same mounts.
            || working_directory(pid).as_deref() == Some(directory) && mounts(&pid.to_string()) == own
    };
    // First what it runs: where others stand is not looked at, it may be a file system that does not answer.
    processes()
        .filter(|&pid| runs_a_vmm(pid) && stands_there(pid))
        .filter_map(adopt)
        // The handle comes first: what is true of the pid afterwards is true of it.
        .filter(|vmm| runs_a_vmm(vmm.identity.pid) && stands_there(vmm.identity.pid))
        .collect()
}

/// Is it a Firecracker, a jailer that is about to become one, this program in the role of the simulated one, or a child of
/// this program's that is about to become any of them?
fn runs_a_vmm(pid: i32) -> bool {
    // In the order in which an execution changes them: what it was before the first look, it is known as by a later one.
    let comm = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    if comm.trim_ascii_end() == shell::ABOUT_TO_BE.to_bytes() {
        return true;
    }
    let name = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    // A program that was replaced while it runs keeps its name with this mark.
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    if ["firecracker", "jailer"].contains(&name.trim_end_matches(" (deleted)")) {
        return true;
    }
    // The arguments come last: a program of that name without any is in the middle of it. (One that ends has neither.)
    let own = std::env::current_exe().unwrap_or_default();
    let is_own = own.file_name().is_some_and(|own| own.to_string_lossy() == name);
    match std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default() {
        none if none.is_empty() => is_own,
        arguments => arguments.split(|&byte| byte == 0).nth(1) == Some(SIM_ARGUMENT.as_bytes()),
    }
}

fn adopt(pid: i32) -> Option<Vmm> {
    let pidfd = handle(pid)?;
    let start_time = stat(pid)?.start_time;
    Some(Vmm { identity: Identity { pid, start_time }, pidfd })
}

/// The working directories of all processes that this one may see.
pub fn all_working_directories() -> Vec<(i32, PathBuf)> {
    processes().filter_map(|pid| Some((pid, working_directory(pid)?))).collect()
}

/// All processes that this one may see, but itself.
fn processes() -> impl Iterator<Item = i32> {
    let own = std::process::id().cast_signed();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |&pid| pid != own)
}

/// The user that a process runs as.
pub fn uid_of(pid: i32) -> Option<u32> {
    // Not the owner of its folder there: that is root, where it may not be looked into.
    let text = proc_text(pid, "status")?;
    text.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

fn working_directory(pid: i32) -> Option<PathBuf> {
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    // A folder that was removed under a process keeps its name with this mark.
    let text = cwd.to_str()?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}

impl Vmm {
    /// Waits until it has ended; false when `limit` passes first.
    pub fn ended_within(&self, limit: Duration) -> bool {
        shell::ended_within(&self.pidfd, limit)
    }

    /// Has it ended?
    pub fn has_ended(&self) -> bool {
        super::client::has_ended(&self.pidfd)
    }

    /// Kills it, without waiting until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn send_kill(&self) -> Result<(), VmmError> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(self.kill_error(errno.into())),
        }
    }

    fn kill_error(&self, source: io::Error) -> VmmError {
        VmmError::Io { action: "kill", path: format!("/proc/{}", self.identity.pid).into(), source }
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed, or is still there after 10 s.
    pub fn kill(&self) -> Result<(), VmmError> {
        self.send_kill()?;
        if !self.ended_within(Duration::from_secs(10)) {
            return Err(self.kill_error(io::Error::other("it is still there after 10 s")));
        }
        self.reap();
        Ok(())
    }

    /// Takes the exit status, where this process is the parent; somebody else's child is reaped by its own.
    pub fn reap(&self) -> Option<i32> {
        use std::os::fd::AsFd;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
            .ok()
            .flatten()
            .and_then(|status| status.exit_status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(directory: &Path) -> Streams {
        let log = || File::create(directory.join("log")).unwrap();
        Streams { input: File::open("/dev/null").unwrap(), output: log(), errors: log() }
    }

    fn sleeper(directory: &Path, name: &str) -> Vmm {
        let program = directory.join(name);
        std::fs::copy("/bin/sleep", &program).unwrap();
        let (pid, pidfd) =
            shell::spawn_detached(&program, ["1000"], directory, &streams(directory), None).unwrap();
        Vmm { identity: Identity { pid, start_time: stat(pid).unwrap().start_time }, pidfd }
    }

    /// What is typed before anybody reads waits; those who type may come and go; with the reader the console is gone.
    #[test]
    fn what_is_typed_reaches_the_vmm_and_its_end_never_does() {
        use std::io::{Read, Write};
        let dir = tempfile::tempdir().unwrap();
        assert!(open_console(dir.path()).unwrap().is_none());
        let mut vmm_end = console_input(&dir.path().join(CONSOLE_INPUT)).unwrap();
        for text in ["one\n", "two\n"] {
            open_console(dir.path()).unwrap().unwrap().write_all(text.as_bytes()).unwrap();
            let mut read = [0; 4];
            vmm_end.read_exact(&mut read).unwrap();
            assert_eq!(read, text.as_bytes());
        }
        drop(vmm_end);
        assert!(open_console(dir.path()).unwrap().is_none());
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join(CONSOLE_INPUT), "").unwrap();
        assert!(open_console(other.path()).is_err(), "a file is no console");
    }

    #[test]
    fn a_process_is_found_by_its_directory_and_by_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let vmm = sleeper(dir.path(), "firecracker");
        let found = find_in(dir.path());
        assert_eq!(found.iter().map(|vmm| vmm.identity).collect::<Vec<_>>(), [vmm.identity]);
        assert!(find(vmm.identity).is_some());
        let (sleep, streams) = (Path::new("/bin/sleep"), streams(dir.path()));
        let (bystander, _) = shell::spawn_detached(sleep, ["1000"], dir.path(), &streams, None).unwrap();
        assert_eq!(find_in(dir.path()).len(), 1, "another program may stand there");
        adopt(bystander).unwrap().kill().unwrap();
        let child = sleeper(dir.path(), shell::ABOUT_TO_BE.to_str().unwrap());
        assert_eq!(find_in(dir.path()).len(), 2, "one that was not executed before its starter was killed");
        child.kill().unwrap();
        let other = Identity { start_time: vmm.identity.start_time + 1, ..vmm.identity };
        assert!(find(other).is_none() && !is_alive(other), "a pid that was used again is nobody of ours");
        vmm.kill().unwrap();
        assert!(!is_alive(vmm.identity) && find_in(dir.path()).is_empty());
        vmm.kill().unwrap();
    }
}
