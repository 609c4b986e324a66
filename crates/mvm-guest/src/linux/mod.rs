//! A Linux guest: what the agent does on a real machine, and the program around it. The only place of the agent with system
//! calls that change the machine.
//!
//! ```text
//! boot ── from the kernel's first program to the identity barrier        power ── signals, the end
//! listener ── connections ── the agent (library) ── System for Linux
//!    launch, session, cgroup, children, users    programs, and their end     workload, console, worker
//!    files, net, netlink, kernel, data, secrets  the facts of an identity    stats, screen
//! ```
//! At the barrier the guest is nobody: it has no address, its data disk is not open, its workload not started, and nothing
//! was made from randomness. A snapshot of it can become anybody.

mod boot;
mod cgroup;
mod children;
mod console;
mod data;
mod files;
mod kernel;
mod launch;
mod listener;
mod net;
mod netlink;
mod power;
mod screen;
mod secrets;
mod session;
mod stats;
mod users;
mod worker;
mod workload;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    thread,
    time::Duration,
};

use mvm_guest::{Agent, Fact, Process, Running, State, System, log::Log};
use mvm_proto::{
    Code, Frames, ProtoError,
    copy::{self, CopyError, Limits, SendError},
    message::{Copied, Exec, Refused, Stats, Worker as Word, WorkloadStatus},
    secrets::Tell,
};
use zeroize::Zeroizing;

use self::{
    children::Children,
    console::Console,
    launch::{Launched, Launcher, Plan, Streams, refused},
    listener::Place,
    net::Interface,
    power::Signals,
    screen::Screen,
    secrets::Place as Secrets,
    session::Handle,
    worker::Worker,
    workload::Workload,
};

/// Says that a test cannot run here, where it is seen and counted.
#[cfg(test)]
fn skip(reason: &str) {
    use std::io::Write;
    println!("SKIP ({reason})");
    if let Some(log) = std::env::var_os("MVM_SKIP_LOG") {
        let line = format!("{reason}\n");
        let _ = File::options().append(true).open(log).and_then(|mut log| log.write_all(line.as_bytes()));
    }
}

/// What a thread needs: none of them goes deep.
const STACK: usize = 128 << 10;

/// Starts a thread.
///
/// # Errors
/// Where there is no memory for one.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run).map(drop)
}

/// How the agent is a service.
#[derive(Debug, Default)]
pub struct Options {
    listen_unix: Option<PathBuf>,
    keep_clock: bool,
}

impl Options {
    /// Reads its arguments.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn parse(mut words: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        loop {
            words = match words {
                [] => return Ok(options),
                ["--listen-unix", path, rest @ ..] => {
                    options.listen_unix = Some(PathBuf::from(path));
                    rest
                }
                ["--keep-clock", rest @ ..] => {
                    options.keep_clock = true;
                    rest
                }
                [other, ..] => {
                    return Err(format!("{other}: there is no such option, or it lacks its value"));
                }
            };
        }
    }
}

/// A guest.
pub struct Linux(Arc<Parts>);

/// What a guest consists of.
struct Parts {
    launcher: Arc<Launcher>,
    workload: Arc<Workload>,
    console: Arc<Console>,
    worker: Arc<Worker>,
    /// The agent is the first program: all others are its children.
    is_first: bool,
    /// The agent has mounted the root, and the console is its own.
    owns_root: bool,
    /// No host key of the image is there any more, and nothing that an identity replaces has anybody's content.
    is_ready: bool,
    keep_clock: bool,
    /// The machine is being switched off.
    ending: AtomicBool,
    /// Where the data disk is mounted.
    data: Mutex<Option<PathBuf>>,
    /// The host key that was made: the same identity said twice keeps it.
    host_key: Mutex<Option<String>>,
    secrets: Secrets,
}

impl Parts {
    fn data(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is this the machine's first program?
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// The first program of an initial RAM disk: brings the machine up to the identity barrier, and is its PID 1 from then on.
pub fn init() -> ExitCode {
    let why = match boot::boot() {
        Ok(()) => match run(&Place::Vsock, Screen::console(), true, false) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    Screen::console().line(&format!("mvm-guest: {why}"));
    // Nobody can do anything with such a machine; the VMM ends with it.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    ExitCode::FAILURE
}

/// A service in a guest that has an init of its own.
pub fn serve(options: Options) -> ExitCode {
    let place = options.listen_unix.map_or(Place::Vsock, Place::Unix);
    match run(&place, Screen::errors(), false, options.keep_clock) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mvm-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Listens, and runs until a signal says that it is over.
fn run(place: &Place, screen: Screen, owns_root: bool, keep_clock: bool) -> io::Result<()> {
    spare_memory();
    let signals = Signals::block()?;
    let is_first = is_first();
    if !is_first {
        // Who forks twice away from a command comes here in place of the machine's init: it can be waited for.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
    let is_ready = owns_root
        && files::make_ready(&[workload::FILE, console::FILE, data::USUAL])
            // Whoever it becomes fails where that matters, and says so.
            .inspect_err(|error| screen.line(&format!("mvm-guest: {error}")))
            .is_ok();
    let listener = place.listen().map_err(|error| io::Error::other(format!("it cannot listen: {error}")))?;
    let screen = Arc::new(screen);
    let children = Arc::new(Children::default());
    let launcher = Arc::new(Launcher::new(children.clone()));
    let (worker, listening) = Worker::listen(Path::new(worker::FOLDER));
    if let Err(error) = listening {
        screen.line(&format!("mvm-guest: {}: {error}", worker::FOLDER));
    }
    let parts = Arc::new(Parts {
        workload: Arc::new(Workload::new(launcher.clone(), screen.clone())),
        console: Arc::new(Console::new(launcher.clone(), screen.clone())),
        launcher,
        worker,
        is_first,
        owns_root,
        is_ready,
        keep_clock,
        ending: AtomicBool::new(false),
        data: Mutex::new(None),
        host_key: Mutex::new(None),
        secrets: Secrets::default(),
    });
    spawn("reaper", move || children.reap())?;
    let agent = Arc::new(Agent::new(Linux(parts.clone()), crate::PROGRAM, State::default()));
    screen.line("mvm-guest: ready, and waits to hear who it is");
    thread::scope(|scope| -> io::Result<()> {
        thread::Builder::new()
            .name("listener".into())
            .stack_size(STACK)
            .spawn_scoped(scope, || listener::run(&agent, place, listener))?;
        signals.wait();
        if !is_first {
            // A service that is stopped takes its own program with it, and nothing else.
            parts.workload.stop(power::GRACE);
            std::process::exit(0);
        }
        power::switch_off(&parts, power::GRACE);
        loop {
            signals.wait();
        }
    })
}

/// One arena for all threads, and large buffers given back at once: the agent is in every guest's memory.
fn spare_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: these set numbers of the allocator's, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
    }
}

impl System for Linux {
    fn running(&self) -> Running<'_> {
        None
    }

    fn apply(&self, fact: &Fact<'_>) -> io::Result<String> {
        match fact {
            Fact::Entropy(entropy) => kernel::add_entropy(entropy).map(|()| String::new()),
            Fact::Clock(_) if self.0.keep_clock => Ok(kernel::clock().to_string()),
            Fact::Clock(unix_ns) => kernel::set_clock(*unix_ns),
            Fact::Mac(mac) => Interface::find()?.set_mac(mac),
            Fact::Mtu(mtu) => Interface::find()?.set_mtu(*mtu),
            Fact::Address(ip, prefix) => Interface::find()?.set_address(*ip, *prefix),
            Fact::Gateway(gateway) => Interface::find()?.set_gateway(*gateway),
            Fact::Dns(resolvers) => files::resolvers(resolvers),
            Fact::Hostname(name) => files::hostname(name),
            Fact::MachineId(id) => files::machine_id(id),
            Fact::HostKey => {
                let mut made = self.0.host_key.lock().unwrap_or_else(PoisonError::into_inner);
                match made.as_ref() {
                    Some(key) => Ok(key.clone()),
                    None => {
                        if !self.0.is_ready {
                            files::forget_host_keys()?;
                        }
                        Ok(made.insert(files::host_key()?).clone())
                    }
                }
            }
            Fact::SshKeys(keys) => files::ssh_keys(keys),
            Fact::Data(disk) => {
                let uuid = data::attach(disk)?;
                *self.0.data() = Some(PathBuf::from(&disk.mount));
                Ok(uuid)
            }
            Fact::Secrets(secrets) => {
                self.0.secrets.put(&secrets.files, workload::user()?)?;
                Ok(secrets.confirm(&secrets::read()?))
            }
            Fact::Told(Tell::Signal(number)) => self.0.workload.signal(*number),
            Fact::Told(Tell::Exec(program)) => self.0.workload.run_hook(program),
            Fact::Told(_) => Err(io::Error::other("this agent does not know whom to tell")),
            Fact::Workload => self.0.workload.start(),
        }
    }

    fn secrets(&self) -> io::Result<Vec<(String, Zeroizing<Vec<u8>>)>> {
        secrets::read()
    }

    fn identified(&self) {
        if self.0.owns_root {
            self.0.console.start();
        }
    }

    fn remember(&self, _state: &State) {
        // The agent's own memory is the guest's.
    }

    fn boot_id(&self) -> String {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    }

    fn uptime(&self) -> Duration {
        stats::uptime()
    }

    fn worker(&self) -> Option<(Word, Duration)> {
        self.0.worker.said()
    }

    fn workload(&self) -> (WorkloadStatus, u32) {
        self.0.workload.status()
    }

    fn log(&self) -> &Log {
        &self.0.workload.log
    }

    fn stats(&self) -> Stats {
        let data = self.0.data().clone();
        stats::read(data.as_deref())
    }

    fn sync(&self) -> io::Result<()> {
        rustix::fs::sync();
        // That one says nothing of a disk that failed; the data disk's own does.
        let data = self.0.data().clone();
        data.map_or(Ok(()), |place| Ok(rustix::fs::syncfs(File::open(place)?)?))
    }

    fn spawn(&self, command: &Exec) -> Result<Process, Refused> {
        let streams = match command.terminal {
            Some(size) => Streams::Terminal(size),
            None => Streams::Pipes { stdin: command.stdin },
        };
        let plan = Plan {
            argv: &command.argv,
            env: &command.env,
            cwd: command.cwd.as_deref().unwrap_or_default(),
            user: command.user.as_deref().unwrap_or_default(),
            streams,
        };
        let Launched { pid, exited, session, stdin, stdout, stderr } = self.0.launcher.launch(plan)?;
        let no_output = |error: io::Error| refused(Code::Failed, &error.to_string());
        let stdout = stdout.ok_or_else(|| no_output(io::ErrorKind::BrokenPipe.into()))?;
        let terminal = command.terminal.map(|_| stdout.try_clone()).transpose().map_err(no_output)?;
        Ok(Process {
            pid: pid.unsigned_abs(),
            stdin: stdin.filter(|_| command.stdin),
            stdout,
            stderr,
            exited,
            control: Box::new(Handle { session, terminal }),
        })
    }

    fn put(&self, connection: &File, path: &str, name: &str) -> Result<Copied, Refused> {
        let mut target = absolute(path)?.to_owned();
        if target.is_dir() {
            if name.contains(['/', '\0']) || matches!(name, "" | "." | "..") {
                return Err(refused(Code::Failed, &format!("{name:?} is no name")));
            }
            target.push(name);
        }
        let parent = target.parent().unwrap_or(Path::new("/"));
        let room = rustix::fs::statvfs(parent).map(|stat| stat.f_bavail * stat.f_frsize);
        let bytes = room.map_err(|errno| copy_refused(path, &errno.into()))?;
        let limits = Limits { entries: copy::MAX_ENTRIES, bytes };
        copy::receive(&mut Frames::on(connection), &target, limits, None).map_err(|error| match &error {
            CopyError::Io { path, source } => copy_refused(&path.display().to_string(), source),
            _ => refused(Code::Failed, &error.to_string()),
        })
    }

    fn get(&self, connection: &File, path: &str) -> Result<(), ProtoError> {
        let mut frames = Frames::on(connection);
        match absolute(path) {
            Ok(path) => match copy::send(&mut frames, path) {
                // The host has heard what cannot be read.
                Ok(_) | Err(SendError::Unreadable { .. }) => Ok(()),
                Err(SendError::Proto(error)) => Err(error),
            },
            Err(refused) => frames.send(&copy::Item::Failed { why: refused.why }),
        }
    }

    fn shut_down(&self, grace: Duration) {
        power::switch_off(&self.0, grace);
    }
}

fn absolute(path: &str) -> Result<&Path, Refused> {
    let is_absolute = path.starts_with('/') && !path.contains('\0');
    is_absolute
        .then(|| Path::new(path))
        .ok_or_else(|| refused(Code::Failed, &format!("{path:?} is no absolute path")))
}

fn copy_refused(path: &str, error: &io::Error) -> Refused {
    let code = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Code::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Code::Denied,
        _ => Code::Failed,
    };
    refused(code, &format!("{path}: {error}"))
}
