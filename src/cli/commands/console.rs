//! `mvm instance console`: what a guest printed, and what is typed to it.
//!
//! | stdin | what happens |
//! | --- | --- |
//! | a terminal (and stdout too) | every key goes to the guest, Ctrl-] leaves |
//! | a pipe or a file | goes to the guest; shown is what it prints from then on, until it is quiet for a second |
//! | anything else | what was printed is shown |

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::instance::print_lines;
use crate::cli::{
    arguments::instance::ConsoleArguments,
    error::{CliError, Kind},
    output::Out,
};
use crate::{
    infra::{
        terminal::{self, RawTerminal},
        watch::Watch,
    },
    store::StoreError,
    vm::{
        instance::{
            config::Instance,
            lifecycle::{Operator, load_tenant, resolve},
            logs,
            state::{Denial, Event, State},
        },
        naming::InstancePath,
    },
    vmm::process,
};

/// Ctrl-]
const LEAVE: u8 = 0x1d;
/// How much of what was printed before is shown to who comes to type.
const TAIL: u64 = 4096;
/// A guest that has printed nothing for so long has answered.
const QUIET: Duration = Duration::from_secs(1);

/// How the console is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A person types.
    Typing,
    /// A program feeds it.
    Fed,
    /// Nothing goes to the guest.
    Reading,
}

/// Runs the command.
pub fn run(out: &Out, operator: &Operator, arguments: &ConsoleArguments) -> Result<u8, CliError> {
    let path = resolve(&operator.roots, &arguments.instance)?;
    let tenant = load_tenant(&operator.roots, &path.tenant)?;
    logs::cut(&operator.roots, &path, tenant.quotas.log_mib)?;
    let stdin = io::stdin();
    let only_read = arguments.follow || arguments.print;
    let mode = match () {
        () if only_read => Mode::Reading,
        () if terminal::is_fed(stdin.as_fd()) => Mode::Fed,
        () if stdin.is_terminal() && io::stdout().is_terminal() && !out.json => Mode::Typing,
        () => Mode::Reading,
    };
    let mut console = Console::open(out, operator, path, arguments, mode)?;
    match mode {
        Mode::Typing if console.to_guest.is_some() => console.converse(),
        Mode::Fed => match console.to_guest {
            Some(_) => console.feed(),
            None => Err(console.no_input()),
        },
        Mode::Typing | Mode::Reading => console.read(),
    }
}

struct Console<'a> {
    out: &'a Out,
    operator: &'a Operator,
    arguments: &'a ConsoleArguments,
    path: InstancePath,
    file: PathBuf,
    from: u64,
    mode: Mode,
    watch: Watch,
    to_guest: Option<File>,
    /// What the guest has not taken yet.
    pending: Vec<u8>,
    /// The end of what was printed, as long as something is looked for in it.
    seen: Vec<u8>,
    started: Instant,
}

impl<'a> Console<'a> {
    fn open(
        out: &'a Out,
        operator: &'a Operator,
        path: InstancePath,
        arguments: &'a ConsoleArguments,
        mode: Mode,
    ) -> Result<Self, CliError> {
        let roots = &operator.roots;
        let (folder, file) = (logs::folder(roots, &path), logs::console(roots, &path));
        let watch = Watch::new(&folder).map_err(StoreError::io("watch", &folder))?;
        let directory = roots.vmm_dir(&Instance::load(roots, &path)?.slot(roots)?.tap());
        let to_guest = match mode {
            Mode::Reading => None,
            Mode::Typing | Mode::Fed => process::open_console(&directory)
                .map_err(StoreError::io("open the console in", &directory))?,
        };
        let length = std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let from = match mode {
            Mode::Typing if to_guest.is_some() => length.saturating_sub(TAIL),
            Mode::Fed => length,
            Mode::Typing | Mode::Reading => 0,
        };
        let (pending, seen, started) = (Vec::new(), Vec::new(), Instant::now());
        Ok(Self { out, operator, arguments, path, file, from, mode, watch, to_guest, pending, seen, started })
    }

    fn no_input(&self) -> CliError {
        let what = format!("{} has no console to type on: its guest does not run", self.path);
        let state = Instance::load(&self.operator.roots, &self.path).map_or(State::Stopped, |one| one.status);
        let way = Denial { state, event: Event::Start }.way().unwrap_or(Event::Start);
        CliError::new(Kind::Refused, "state", what).fix(format!("mvm instance {way} {}", self.path))
    }

    fn is_alive(&self) -> Result<bool, CliError> {
        Ok(Instance::load(&self.operator.roots, &self.path)?.vmm_is_alive(&process::boot_id()))
    }

    /// Shows what was printed since the last time. False where that was nothing.
    fn show(&mut self) -> Result<bool, CliError> {
        // A start makes a new one.
        self.watch.add(&self.file);
        let (bytes, end) = logs::read(&self.file, self.from)?;
        self.from = end;
        match self.arguments.raw || self.mode == Mode::Typing {
            true => self.out.raw(&bytes),
            false => print_lines(self.out, &bytes),
        }
        if self.arguments.until.is_some() {
            self.seen.extend_from_slice(&bytes);
        }
        Ok(!bytes.is_empty())
    }

    /// Was that printed that is waited for?
    fn is_found(&mut self) -> bool {
        let Some(text) = self.arguments.until.as_deref().map(str::as_bytes) else { return false };
        let found = text.is_empty() || self.seen.windows(text.len()).any(|window| window == text);
        let kept = self.seen.len().saturating_sub(text.len());
        self.seen.drain(..kept);
        found
    }

    /// The end of waiting in vain.
    fn check_patience(&self, alive: bool) -> Result<(), CliError> {
        let Some(text) = &self.arguments.until else { return Ok(()) };
        let limit = Duration::from_secs(self.arguments.timeout);
        let (code, what) = match alive {
            false => ("guest_ended", format!("{} ended without printing {text:?}", self.path)),
            true if self.started.elapsed() >= limit => {
                ("timeout", format!("{} did not print {text:?} within {} s", self.path, limit.as_secs()))
            }
            true => return Ok(()),
        };
        Err(CliError::new(Kind::Failed, code, what).fix(format!("mvm instance why {}", self.path)))
    }

    /// Shows what there is, and goes on where that is asked for.
    fn read(&mut self) -> Result<u8, CliError> {
        loop {
            let alive = self.is_alive()?;
            self.show()?;
            let more = self.arguments.follow || self.arguments.until.is_some();
            if self.is_found() || !more || self.out.is_unheard() {
                return Ok(0);
            }
            self.check_patience(alive)?;
            if !alive {
                return Ok(0);
            }
            self.watch.wait(&[], Some(Duration::from_secs(1)));
        }
    }

    /// Gives the guest what it takes of what is pending. A guest that takes nothing stops nobody.
    fn push(&mut self) -> Result<(), CliError> {
        let Some(fifo) = &mut self.to_guest else { return Ok(()) };
        while !self.pending.is_empty() {
            match fifo.write(&self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The VMM has ended: that is seen elsewhere.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.pending.clear();
                }
                Err(error) => return Err(StoreError::io("type on the console of", &self.file)(error).into()),
            }
        }
        Ok(())
    }

    /// Sends what stdin brings, and shows what comes back until nothing does.
    fn feed(&mut self) -> Result<u8, CliError> {
        let stdin = io::stdin();
        let mut buffer = [0; 4096];
        let (mut open, mut last) = (true, Instant::now());
        loop {
            let alive = self.is_alive()?;
            if open && self.pending.is_empty() && terminal::is_readable(&stdin) {
                let read =
                    rustix::io::read(&stdin, &mut buffer[..]).map_err(|errno| unread(&errno.into()))?;
                self.pending.extend_from_slice(&buffer[..read]);
                open = read > 0;
                last = Instant::now();
            }
            self.push()?;
            if self.show()? {
                last = Instant::now();
            }
            if self.is_found() || self.out.is_unheard() {
                return Ok(0);
            }
            self.check_patience(alive)?;
            let quiet = !open && self.pending.is_empty() && last.elapsed() >= QUIET;
            if !alive || (quiet && self.arguments.until.is_none()) {
                return Ok(0);
            }
            let pause = Some(Duration::from_millis(100));
            match open && self.pending.is_empty() {
                true => self.watch.wait(&[stdin.as_fd()], pause),
                false => self.watch.wait(&[], pause),
            };
        }
    }

    /// Lets a person type.
    fn converse(&mut self) -> Result<u8, CliError> {
        let signals: OwnedFd = terminal::catch_deadly_signals().map_err(|error| unread(&error))?;
        self.out.note(format!("the console of {}; Ctrl-] leaves", self.path));
        let raw = RawTerminal::enter().map_err(|error| unread(&error))?;
        let ended = self.talk(&signals);
        drop(raw);
        // What the guest printed last need not be a whole line.
        self.out.note("");
        match ended? {
            Left::Key => self.out.note(format!("left; {} runs on", self.path)),
            Left::Ended => self.out.note(format!("{} has ended", self.path)),
            Left::Signal => return Ok(1),
        }
        Ok(0)
    }

    fn talk(&mut self, signals: &OwnedFd) -> Result<Left, CliError> {
        let stdin = io::stdin();
        let mut buffer = [0; 4096];
        loop {
            let alive = self.is_alive()?;
            self.show()?;
            if !alive {
                return Ok(Left::Ended);
            }
            if terminal::is_readable(signals) || self.out.is_unheard() {
                return Ok(Left::Signal);
            }
            if terminal::is_readable(&stdin) {
                let read =
                    rustix::io::read(&stdin, &mut buffer[..]).map_err(|errno| unread(&errno.into()))?;
                let typed = &buffer[..read];
                let leave = typed.iter().position(|&byte| byte == LEAVE);
                self.pending.extend_from_slice(&typed[..leave.unwrap_or(read)]);
                // Who types into a guest that takes nothing is not to fill memory.
                self.pending.truncate(64 << 10);
                self.push()?;
                if leave.is_some() || read == 0 {
                    return Ok(Left::Key);
                }
            }
            self.push()?;
            // What is pending is tried again soon; whether the VMM lives is looked at now and then.
            let pause = if self.pending.is_empty() { 1000 } else { 50 };
            self.watch.wait(&[stdin.as_fd(), signals.as_fd()], Some(Duration::from_millis(pause)));
        }
    }
}

/// How a conversation ended.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// By Ctrl-], or the end of the terminal.
    Key,
    /// The VMM ended.
    Ended,
    /// By a signal.
    Signal,
}

fn unread(error: &io::Error) -> CliError {
    CliError::new(Kind::Failed, "io", format!("cannot use the terminal: {error}"))
}
