//! Programs that outlive this process, and may be confined to namespaces of their own: of processes, where the program is number
//! one, and of mounts, so that what is mounted for it is seen by nobody else and goes with it.
//!
//! By `clone3`, since nothing else makes both at once, joins a cgroup on the way and returns a handle that is never another
//! process's. The child shares nothing with this process, and does nothing but system calls: other threads may hold any lock.
//! Until it is in its folder, where whoever cleans up looks for it, it dies with the thread that starts it.

use std::{
    ffi::{CStr, CString, OsStr, c_char},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
    sync::PoisonError,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::CWD,
    io::Errno,
    mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree},
    pipe::{PipeFlags, pipe_with},
    process::{
        PidfdFlags, Resource, Rlimit, Signal, chdir, getpid, pidfd_open, set_parent_process_death_signal,
        setrlimit, setsid,
    },
    thread::set_name,
};

use super::{PATH, STARTING, ShellError, fence};

/// `linux/sched.h`; libc's is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// What a child calls itself until it is its program (`comm`, proc(5)): what it runs and its arguments are still this process's.
pub const ABOUT_TO_BE: &CStr = c"about-to-be";

/// What a program reads and writes.
#[derive(Debug)]
pub struct Streams {
    /// Its stdin.
    pub input: File,
    /// Its stdout.
    pub output: File,
    /// Its stderr.
    pub errors: File,
}

/// What keeps a program to itself.
#[derive(Debug)]
pub struct Cell<'a> {
    /// What is mounted in its working directory, and under which names; each is a file already.
    pub mounts: Vec<(OwnedFd, CString)>,
    /// The cgroup that it is in from the beginning.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// How many processes and threads its user may have.
    pub tasks: u64,
}

/// A file that can be mounted elsewhere, to be read and nothing else.
///
/// # Errors
/// When there is none, or the kernel is older than 5.12.
pub fn read_only(file: &Path) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, file, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the text and the attributes outlive the call, and the size is the attributes'.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if set == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

/// Starts a program that shall outlive this process: its own session, its own working directory, its own streams; where there is
/// a cell, in namespaces of its own. Returns its pid here, and a handle; it is a child of this process, and reaped by whoever
/// waits for it. One in a cell is killed with the thread that starts it until it takes another user.
///
/// # Errors
/// When it cannot be executed, or what it shall find not be made.
pub fn spawn_detached<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
    directory: &Path,
    streams: &Streams,
    cell: Option<&Cell>,
) -> Result<(i32, OwnedFd), ShellError> {
    let error = |source| ShellError::Spawn { program: program.to_path_buf(), source };
    let _shared = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    spawn(program, arguments, directory, streams, cell).map_err(error)
}

fn spawn<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
    directory: &Path,
    streams: &Streams,
    cell: Option<&Cell>,
) -> io::Result<(i32, OwnedFd)> {
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
    let program = text(program.as_os_str())?;
    let directory = text(directory.as_os_str())?;
    let arguments =
        arguments.into_iter().map(|argument| text(argument.as_ref())).collect::<io::Result<Vec<_>>>()?;
    let environment = match cell {
        None => vec![text(OsStr::new(&format!("PATH={PATH}")))?, text(OsStr::new("TZ=UTC"))?],
        Some(_) => Vec::new(),
    };
    let pointers = |texts: &mut dyn Iterator<Item = &CString>| -> Vec<*const c_char> {
        texts.map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let argv = pointers(&mut [&program].into_iter().chain(&arguments));
    let envp = pointers(&mut environment.iter());
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
    let starter = pidfd_open(getpid(), PidfdFlags::empty())?;
    let fence = cell.map_or(Ok(None), |_| fence::fence())?;
    let child = Child {
        program: &program,
        argv: &argv,
        envp: &envp,
        directory: &directory,
        cell,
        fence: fence.as_ref().map(AsFd::as_fd),
        streams: [&streams.input, &streams.output, &streams.errors].map(AsFd::as_fd),
        starter: starter.as_fd(),
        writing: writing.as_fd(),
    };
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeros are a valid value: nothing is asked for.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.flags = libc::CLONE_PIDFD as u64;
    if cell.is_some() {
        how.flags |= (libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC) as u64;
    }
    how.pidfd = (&raw mut pidfd) as u64;
    how.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cell.and_then(|cell| cell.cgroup) {
        how.flags |= CLONE_INTO_CGROUP;
        how.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM it is a fork: the child has a copy of everything, and does only system calls, up to its end.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const how, size_of_val(&how)) };
    match pid {
        0 => child.become_it(),
        ..0 => return Err(io::Error::last_os_error()),
        _ => {}
    }
    drop(writing);
    // SAFETY: the kernel has just made it, and nobody else has it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // The pipe ends when it is executed, or is no more.
    let mut said = Vec::new();
    File::from(reading).read_to_end(&mut said)?;
    let why = match said[..] {
        [READY] => return Ok((pid, pidfd)),
        [.., step, a, b, c, d] => {
            let why = io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]));
            let step = STEPS.get(usize::from(step)).map_or("start it", |(name, _)| name);
            io::Error::new(why.kind(), format!("cannot {step}: {why}"))
        }
        _ => io::Error::other("it was killed before it was executed"),
    };
    reap(&pidfd);
    Err(why)
}

fn reap(pidfd: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// What the child does, in order.
const STEPS: [(&str, Step); 10] = [
    ("tie it to its starter", |child| child.tie()),
    ("give it its streams", |child| child.take_streams()),
    ("give it its signals", |child| child.take_signals()),
    ("take its starter's keys from it", |child| child.cell.map_or(Ok(()), |_| child.leave_keys())),
    ("keep its mounts to itself", |child| child.cell.map_or(Ok(()), |_| child.keep_mounts())),
    ("enter its folder", |child| child.enter()),
    ("mount what it shares", |child| child.cell.map_or(Ok(()), |cell| child.mount(cell))),
    ("limit it", |child| child.cell.map_or(Ok(()), |cell| child.limit(cell))),
    ("fence it in", |child| child.fence.map_or(Ok(()), fence::enter)),
    ("execute it", |child| child.execute()),
];

/// What the child says before its last step; after a step that failed it says its number, and why.
const READY: u8 = u8::MAX;

type Step = fn(&Child) -> Result<(), Errno>;

/// What the child has: all of it is there before it is.
struct Child<'a> {
    program: &'a CStr,
    argv: &'a [*const c_char],
    envp: &'a [*const c_char],
    directory: &'a CStr,
    cell: Option<&'a Cell<'a>>,
    fence: Option<BorrowedFd<'a>>,
    streams: [BorrowedFd<'a>; 3],
    starter: BorrowedFd<'a>,
    writing: BorrowedFd<'a>,
}

impl Child<'_> {
    /// Becomes the program, or says why not and ends.
    fn become_it(&self) -> ! {
        for (number, (_, step)) in (0..).zip(STEPS) {
            if let Err(errno) = step(self) {
                let [a, b, c, d] = errno.raw_os_error().to_ne_bytes();
                let _ = rustix::io::write(self.writing, &[number, a, b, c, d]);
                break;
            }
        }
        // SAFETY: it ends here, and runs nothing of what it has a copy of.
        unsafe { libc::_exit(127) }
    }

    /// It dies with its starter: nobody would know of it. Until it is in its folder, or, in a cell, takes another user.
    fn tie(&self) -> Result<(), Errno> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // One that was gone before sends no signal.
        let mut fds = [PollFd::from_borrowed_fd(self.starter, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
            0 => setsid().map(drop),
            _ => Err(Errno::SRCH),
        }
    }

    /// Keys belong to a session, and who is in it has them, whatever its user.
    fn leave_keys(&self) -> Result<(), Errno> {
        const JOIN_SESSION_KEYRING: libc::c_long = 1;
        // SAFETY: a plain system call; without a name the session is a new one.
        match unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0_usize) } {
            0.. => Ok(()),
            _ => match Errno::from_io_error(&io::Error::last_os_error()) {
                // A kernel without keys has none to leave, and a container's filter that is in the way keeps who comes of it, too.
                Some(Errno::NOSYS | Errno::PERM) => Ok(()),
                errno => Err(errno.unwrap_or(Errno::IO)),
            },
        }
    }

    fn take_streams(&self) -> Result<(), Errno> {
        for (number, stream) in (0..).zip(self.streams) {
            // SAFETY: the numbers of the three streams are no object's.
            if unsafe { libc::dup2(stream.as_raw_fd(), number) } < 0 {
                return Err(Errno::BADF);
            }
        }
        Ok(())
    }

    /// None is blocked, and none ignored: Rust's programs ignore SIGPIPE, and what they start would too.
    fn take_signals(&self) -> Result<(), Errno> {
        // SAFETY: plain system calls on a set of the child's own.
        unsafe {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        Ok(())
    }

    fn keep_mounts(&self) -> Result<(), Errno> {
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
    }

    /// By its path: descriptors lead into the namespace of before.
    fn enter(&self) -> Result<(), Errno> {
        set_name(ABOUT_TO_BE)?;
        chdir(self.directory)?;
        match self.cell {
            Some(_) => Ok(()),
            None => set_parent_process_death_signal(None),
        }
    }

    fn mount(&self, cell: &Cell) -> Result<(), Errno> {
        for (tree, name) in &cell.mounts {
            move_mount(tree, c"", CWD, name.as_c_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        Ok(())
    }

    fn limit(&self, cell: &Cell) -> Result<(), Errno> {
        let at_most = |number| Rlimit { current: Some(number), maximum: Some(number) };
        setrlimit(Resource::Core, at_most(0))?;
        setrlimit(Resource::Nproc, at_most(cell.tasks))
    }

    fn execute(&self) -> Result<(), Errno> {
        rustix::io::write(self.writing, &[READY])?;
        // SAFETY: the vectors end with a null pointer, and all texts outlive the call.
        unsafe { libc::execve(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::TcpListener,
        os::linux::net::SocketAddrExt,
        os::unix::net::{SocketAddr, UnixListener},
        path::PathBuf,
        process::Command,
        thread,
    };

    use super::*;
    use crate::infra::tests::skip;

    /// What it reaches of the host, a word each.
    const REACH: &str = r#"
        use Socket;
        my ($name, $port) = @ARGV;
        socket(my $unix, PF_UNIX, SOCK_STREAM, 0) or die;
        print "abstract " if connect($unix, pack_sockaddr_un("\0$name"));
        socket(my $tcp, PF_INET, SOCK_STREAM, 0) or die;
        print "tcp " if connect($tcp, pack_sockaddr_in($port, inet_aton("127.0.0.1")));
        print "own" if socketpair(my $a, my $b, PF_UNIX, SOCK_STREAM, 0);
    "#;

    #[test]
    fn who_is_in_a_cell_reaches_no_service_that_has_no_file() {
        if fence::version() < 6 {
            return skip("this kernel's Landlock knows no abstract sockets");
        }
        let name = format!("mvm-test-{}", std::process::id());
        let _unix = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port().to_string();
        let arguments = ["-e", REACH, &name, &port];
        let free = Command::new("perl").args(arguments).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&free.stdout), "abstract tcp own");

        let dir = tempfile::tempdir().unwrap();
        let streams = streams(dir.path());
        let cell = Cell { mounts: Vec::new(), cgroup: None, tasks: 64 };
        let perl = Path::new("/usr/bin/perl");
        let (_, pidfd) = spawn_detached(perl, arguments, dir.path(), &streams, Some(&cell)).unwrap();
        reap(&pidfd);
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!((read("out").as_str(), read("err").as_str()), ("own", ""));
    }
    fn streams(folder: &Path) -> Streams {
        let file = |name: &str| File::create(folder.join(name)).unwrap();
        Streams { input: File::open("/dev/null").unwrap(), output: file("out"), errors: file("err") }
    }

    /// A cgroup in which nobody gets any further; whoever is in it is killed when this is dropped.
    struct Frozen(PathBuf);

    impl Frozen {
        /// `None`, said visibly, without cgroup v2.
        fn new(name: &str) -> Option<Self> {
            let name = format!("mvm-test-{name}-{}", std::process::id());
            let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
            let v2 = places.into_iter().find(|place| place.join("cgroup.procs").exists());
            let made = v2.map(|place| Self(place.join(&name)));
            let made = made.filter(|made| {
                fs::create_dir(&made.0).is_ok()
                    && made.0.join("cgroup.kill").exists()
                    && made.set("freeze", "1").is_ok()
            });
            if made.is_none() {
                skip("no cgroup v2 here in which processes are frozen and killed");
            }
            made
        }

        fn set(&self, what: &str, value: &str) -> io::Result<()> {
            fs::write(self.0.join(format!("cgroup.{what}")), value)
        }

        /// Waits until so many processes are in it.
        fn await_members(&self, number: usize) {
            for _ in 0..2_000 {
                if fs::read_to_string(self.0.join("cgroup.procs")).unwrap().lines().count() == number {
                    return;
                }
                thread::sleep(std::time::Duration::from_millis(5));
            }
            panic!("{number} processes did not come to be in it");
        }

        /// Starts a program in it that would leave a file of this name.
        fn start(&self, folder: &Path, name: &str) -> Result<(i32, OwnedFd), ShellError> {
            let cgroup = File::open(&self.0).unwrap();
            let cell = Cell { mounts: Vec::new(), cgroup: Some(cgroup.as_fd()), tasks: 64 };
            let touch = Path::new("/usr/bin/touch");
            spawn_detached(touch, [folder.join(name)], folder, &streams(folder), Some(&cell))
        }
    }

    impl Drop for Frozen {
        fn drop(&mut self) {
            // One that a test has left as it was made, or never was.
            if self.set("kill", "1").is_ok() {
                let _ = self.set("freeze", "0");
                self.await_members(0);
            }
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn who_is_killed_before_it_is_executed_was_not_started() {
        let Some(frozen) = Frozen::new("killed") else { return };
        let dir = tempfile::tempdir().unwrap();
        let error = thread::scope(|scope| {
            let starting = scope.spawn(|| frozen.start(dir.path(), "ran").unwrap_err());
            frozen.await_members(1);
            frozen.set("kill", "1").unwrap();
            starting.join().unwrap()
        });
        let ShellError::Spawn { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.to_string(), "it was killed before it was executed");
        assert!(!dir.path().join("ran").exists());
    }

    /// The second one has what its starter had open of the first.
    #[test]
    fn whose_starter_is_gone_is_never_executed() {
        let Some(frozen) = Frozen::new("alone") else { return };
        let dir = tempfile::tempdir().unwrap();
        // SAFETY: the child uses nothing that another thread of this one may hold: a test has a process for itself.
        let starter = unsafe { libc::fork() };
        if starter == 0 {
            thread::scope(|scope| {
                for name in ["first", "second"] {
                    scope.spawn(|| frozen.start(dir.path(), name));
                }
            });
            // SAFETY: nothing of the test may run twice.
            unsafe { libc::_exit(0) };
        }
        frozen.await_members(2);
        // SAFETY: plain system calls on a child of this process's own.
        let ended =
            unsafe { (libc::kill(starter, libc::SIGKILL), libc::waitpid(starter, ptr::null_mut(), 0)) };
        assert_eq!(ended, (0, starter));
        frozen.set("freeze", "0").unwrap();
        frozen.await_members(0);
        assert!(!dir.path().join("first").exists() && !dir.path().join("second").exists());
    }
}
