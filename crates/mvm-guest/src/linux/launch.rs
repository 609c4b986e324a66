//! Starts programs: each in a session and a cgroup of its own, as a user of the guest, with none of the agent's descriptors.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use mvm_proto::message::{Code, Refused, Size};
use rustix::{
    io::Errno,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{Winsize, tcsetwinsize},
    thread::{set_thread_gid, set_thread_groups, set_thread_uid},
};

use super::{
    cgroup::Cgroups,
    children::Children,
    session::Session,
    users::{self, User},
};

/// Where programs are looked for, unless something else is said.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a terminal understands, unless something else is said.
const TERM: &str = "xterm";

/// What is started.
pub struct Plan<'a> {
    /// The program and its arguments.
    pub argv: &'a [String],
    /// `KEY=VALUE`, on top of what everybody gets.
    pub env: &'a [String],
    /// Where it runs; the user's home where nothing is said.
    pub cwd: &'a str,
    /// As [`users::find`]; root where nothing is said.
    pub user: &'a str,
    /// What it is connected to.
    pub streams: Streams,
}

/// What a program is connected to.
pub enum Streams {
    /// Pipes; its input is empty where none is wanted.
    Pipes { stdin: bool },
    /// A terminal of this size.
    Terminal(Size),
    /// This terminal.
    Existing(OwnedFd),
}

/// A program that runs.
pub struct Launched {
    pub pid: i32,
    /// Becomes readable when it has ended.
    pub exited: File,
    pub session: Arc<Session>,
    /// The other ends of its streams; the terminal is its output.
    pub stdin: Option<File>,
    pub stdout: Option<File>,
    pub stderr: Option<File>,
}

/// Who starts programs.
pub struct Launcher {
    pub children: Arc<Children>,
    pub cgroups: Cgroups,
    /// The signals that this process ignores, as it was started: what it starts would, too.
    ignored: Arc<[libc::c_int]>,
}

/// The ends of streams: the program's three, and the agent's.
struct Ends {
    program: [Stdio; 3],
    terminal: bool,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Launcher {
    /// One that starts these.
    pub fn new(children: Arc<Children>) -> Self {
        Self { children, cgroups: Cgroups::find(), ignored: ignored().collect() }
    }

    /// Starts a program.
    ///
    /// # Errors
    /// What to answer where it does not start.
    pub fn launch(&self, plan: Plan<'_>) -> Result<Launched, Refused> {
        let [program, arguments @ ..] = plan.argv else {
            return Err(refused(Code::Failed, "there is no program in the command"));
        };
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let user = users::find(plan.user, &read("/etc/passwd"), &read("/etc/group"))
            .map_err(|error| refused(Code::Failed, &error.to_string()))?;
        let cwd = folder(plan.cwd, &user)?;
        let is_terminal = !matches!(plan.streams, Streams::Pipes { .. });
        let failed = |error: io::Error| refused(Code::Failed, &format!("no streams for it: {error}"));
        let ends = ends(plan.streams, &user).map_err(failed)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(environment(&user, is_terminal));
        for pair in plan.env {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| refused(Code::Failed, &format!("{pair:?} is not KEY=VALUE")))?;
            command.env(key, value);
        }
        let [stdin, stdout, stderr] = ends.program;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        // One that cannot be entered would be looked into in vain.
        let (cgroup, entrance) = match self.cgroups.make().map(|cgroup| (cgroup.entrance(), cgroup)) {
            Some((Some(entrance), cgroup)) => (Some(cgroup), Some(entrance)),
            _ => (None, None),
        };
        let ignored = self.ignored.clone();
        become_in_child(&mut command, Setup { user: &user, cwd, entrance, terminal: ends.terminal, ignored });
        let started = self.children.start(&mut command);
        // The program's ends are closed here: its output ends with it.
        drop(command);
        let child = started.map_err(|error| not_started(program, plan.cwd, &error))?;
        let session = Session::new(child.pid, cgroup, self.children.clone());
        Ok(Launched {
            pid: child.pid,
            exited: File::from(child.exited),
            session: Arc::new(session),
            stdin: ends.stdin,
            stdout: ends.stdout,
            stderr: ends.stderr,
        })
    }
}

/// What everybody gets.
fn environment(user: &User, is_terminal: bool) -> impl Iterator<Item = (&'static str, &str)> {
    let always = [
        ("PATH", PATH),
        ("HOME", user.home.as_str()),
        ("USER", user.name.as_str()),
        ("LOGNAME", user.name.as_str()),
        ("SHELL", user.shell.as_str()),
    ];
    always.into_iter().chain(is_terminal.then_some(("TERM", TERM)))
}

/// Where it runs.
fn folder(wanted: &str, user: &User) -> Result<CString, Refused> {
    let wanted = match wanted {
        // Who has a home that is not there gets in all the same.
        "" if Path::new(&user.home).is_dir() => user.home.as_str(),
        "" => "/",
        said if Path::new(said).is_dir() => said,
        said => return Err(refused(Code::NotFound, &format!("there is no folder {said}"))),
    };
    CString::new(wanted).map_err(|_| refused(Code::NotFound, "there is no such folder"))
}

fn ends(streams: Streams, user: &User) -> io::Result<Ends> {
    match streams {
        Streams::Pipes { stdin } => {
            let pipe = io::pipe;
            let (input, own_input) = match stdin {
                true => {
                    let (read, write) = pipe()?;
                    (Stdio::from(read), Some(File::from(OwnedFd::from(write))))
                }
                false => (Stdio::null(), None),
            };
            let (own_output, output) = pipe()?;
            let (own_errors, errors) = pipe()?;
            Ok(Ends {
                program: [input, output.into(), errors.into()],
                terminal: false,
                stdin: own_input,
                stdout: Some(File::from(OwnedFd::from(own_output))),
                stderr: Some(File::from(OwnedFd::from(own_errors))),
            })
        }
        Streams::Terminal(size) => {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let master = openpt(flags)?;
            unlockpt(&master)?;
            resize(&master, size)?;
            let slave = ioctl_tiocgptpeer(&master, flags)?;
            // Who has no rights to a terminal in its own name cannot open it again; the group is that of the mount.
            rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(user.uid)), None)?;
            let master = File::from(master);
            Ok(Ends { stdin: Some(master.try_clone()?), stdout: Some(master), ..terminal(slave)? })
        }
        Streams::Existing(slave) => terminal(slave),
    }
}

fn terminal(slave: OwnedFd) -> io::Result<Ends> {
    let program = [Stdio::from(slave.try_clone()?), Stdio::from(slave.try_clone()?), Stdio::from(slave)];
    Ok(Ends { program, terminal: true, stdin: None, stdout: None, stderr: None })
}

/// Gives a terminal a size.
///
/// # Errors
/// Where it is none.
pub fn resize(terminal: impl AsFd, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// What the child does before it is the program.
struct Setup<'a> {
    user: &'a User,
    cwd: CString,
    entrance: Option<File>,
    terminal: bool,
    ignored: Arc<[libc::c_int]>,
}

fn become_in_child(command: &mut Command, setup: Setup<'_>) {
    let Setup { user, cwd, entrance, terminal, ignored } = setup;
    let groups: Vec<_> = user.groups.iter().map(|&gid| rustix::fs::Gid::from_raw(gid)).collect();
    let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(user.gid));
    let child = move || {
        if let Some(entrance) = &entrance {
            rustix::io::write(entrance, b"0")?;
        }
        rustix::process::setsid()?;
        if terminal {
            // SAFETY: standard input is open: it is the terminal.
            let input = unsafe { std::os::fd::BorrowedFd::borrow_raw(0) };
            rustix::process::ioctl_tiocsctty(input)?;
        }
        default_signals(&ignored)?;
        // Whatever was opened here without a thought of it stays here.
        close_on_exec()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        set_thread_groups(&groups)?;
        set_thread_gid(gid)?;
        set_thread_uid(uid)?;
        rustix::process::chdir(&cwd)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, none of which allocates.
    unsafe { command.pre_exec(child) };
}

/// The signals that this process ignores: what it started with, and what std has put there.
fn ignored() -> impl Iterator<Item = libc::c_int> {
    (1..=libc::SIGRTMAX()).filter(|signal| {
        // SAFETY: all zeros are a valid value, and nothing is changed.
        unsafe {
            let mut is: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, std::ptr::null(), &raw mut is) == 0 && is.sa_sigaction == libc::SIG_IGN
        }
    })
}

/// Signals do what they do by default: those with a handler do by the execution itself, and a call for each of the others would be
/// much of a start.
fn default_signals(ignored: &[libc::c_int]) -> io::Result<()> {
    // SAFETY: the set lives as long as the calls, and is initialised by the first of them.
    unsafe {
        for signal in ignored {
            libc::signal(*signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        match libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Closes everything but the standard streams at exec.
fn close_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    const CLOEXEC: libc::c_uint = 4;
    // SAFETY: a plain system call, and nothing is closed before exec.
    match unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, CLOEXEC) } {
        0 => Ok(()),
        // Older kernels do not have it; all is opened so that it closes anyway.
        _ => match Errno::from_io_error(&io::Error::last_os_error()) {
            Some(Errno::NOSYS | Errno::INVAL) => Ok(()),
            error => Err(error.unwrap_or(Errno::IO).into()),
        },
    }
}

/// As a shell tells them apart: not there (127), or not to be run (126).
fn not_started(program: &str, cwd: &str, error: &io::Error) -> Refused {
    let code = match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NOTDIR) => Code::NotFound,
        Some(Errno::ACCESS | Errno::PERM | Errno::ISDIR | Errno::NOEXEC | Errno::LOOP) => Code::Denied,
        _ => Code::Failed,
    };
    let place = if cwd.is_empty() { String::new() } else { format!(" in {cwd}") };
    refused(code, &format!("cannot run {program}{place}: {error}"))
}

/// An answer that says no.
pub fn refused(code: Code, why: &str) -> Refused {
    Refused { code, why: why.to_owned() }
}
