//! `mvm instance exec`: a command in a guest, as if it ran here.
//!
//! Three threads beside the caller's: one reads the guest, one reads stdin, one hears signals. Each may be stuck for ever with
//! somebody who does not read or write; the caller is not: it goes on as soon as the command has ended or has to be given up,
//! and what it still has to do gets done. The exit code is the command's; 128 and its number where a signal ended it; 125 where
//! mvm failed, 126 where it cannot be run, 127 where there is no such program.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    os::fd::AsFd,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use mvm_proto::{
    Answer, Code, Frames, Input, Kind as Frame, ProtoError, Request,
    message::{Exec, Exited, Size},
};

use super::reachable;
use crate::{
    cli::{
        arguments::guest::{ExecArguments, ExecOptions},
        error::{CliError, Kind},
        output::{Escaper, Out},
    },
    infra::terminal::{self, RawTerminal, Signals},
    vm::instance::{
        config::Instance,
        guest::{Guest, GuestError, printable},
        lifecycle::Operator,
    },
    vmm::vsock::Connection,
};

/// mvm failed.
pub const FAILED: u8 = 125;
/// The program cannot be run.
const CANNOT: u8 = 126;
/// There is no such program.
const NO_PROGRAM: u8 = 127;
/// A guest that reads takes a signal at once, and so does somebody who reads what it says.
const SIGNAL_LIMIT: Duration = Duration::from_secs(1);
/// How often after a signal it is looked whether the output is stuck.
const LOOKS: u32 = 3;

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, arguments: ExecArguments) -> u8 {
    let ExecArguments { instance, how, argv } = arguments;
    match reachable(operator, &instance) {
        Ok(instance) => in_guest(out, operator, &instance, &how, argv),
        Err(error) => {
            out.error(&error);
            FAILED
        }
    }
}

/// Runs a command in a guest that runs. What goes wrong is said; the exit code says it too.
pub fn in_guest(
    out: &Out,
    operator: &Operator,
    instance: &Instance,
    how: &ExecOptions,
    argv: Vec<String>,
) -> u8 {
    let path = instance.path();
    let program = argv.first().map_or("", String::as_str);
    if let Err(error) = operator.audit_access(instance, "exec", &printable(program)) {
        out.error(&error.into());
        return FAILED;
    }
    let said = converse(operator, instance, how, argv);
    said.unwrap_or_else(|failure| {
        let error = match failure {
            Failure::Guest(error) => error,
            Failure::Output(error) => {
                let what = format!("what it says cannot be written here: {error}");
                out.error(&CliError::new(Kind::Failed, "io", what).about(&path));
                return FAILED;
            }
        };
        let code = match &error {
            GuestError::Refused { code: Code::NotFound, .. } => NO_PROGRAM,
            GuestError::Refused { code: Code::Denied, .. } => CANNOT,
            _ => FAILED,
        };
        out.error(&CliError::from(error).about(&path));
        code
    })
}

/// Why nobody knows how a command ended.
enum Failure {
    /// The guest does not say.
    Guest(GuestError),
    /// What it says cannot be written here: it was not waited for.
    Output(io::Error),
}

impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Self {
        Self::Guest(error)
    }
}

/// The half of a connection on which is written, by several, and how much input the guest still holds.
struct Speaker {
    state: Mutex<State>,
    changed: Condvar,
    /// Ends the connection, with whatever is stuck in it.
    closer: Connection,
    /// Counts what is written here, by the beginnings and ends of it: odd while it is being written.
    written: AtomicU64,
}

struct State {
    /// Not there while somebody writes.
    frames: Option<Frames<Connection>>,
    /// Bytes of input that may be sent before the guest has taken some.
    room: u64,
}

impl Speaker {
    fn new(stream: &Connection, window: u64) -> io::Result<Self> {
        let state = State {
            frames: Some(Frames::on(stream.try_clone()?)),
            // An agent that has no window never says what it has taken.
            room: if window == 0 { u64::MAX } else { window },
        };
        let (state, closer) = (Mutex::new(state), stream.try_clone()?);
        Ok(Self { state, changed: Condvar::new(), closer, written: AtomicU64::new(0) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, once nobody else does; `None` where that takes too long.
    fn say<T>(&self, limit: Duration, write: impl FnOnce(&mut Frames<Connection>) -> T) -> Option<T> {
        let state = self.state();
        let waited = self.changed.wait_timeout_while(state, limit, |state| state.frames.is_none());
        let mut frames = waited.unwrap_or_else(PoisonError::into_inner).0.frames.take()?;
        let said = write(&mut frames);
        self.state().frames = Some(frames);
        self.changed.notify_all();
        Some(said)
    }

    /// How much input may be sent: waits until there is room for some.
    fn room(&self) -> u64 {
        let waited = self.changed.wait_while(self.state(), |state| state.room == 0);
        waited.unwrap_or_else(PoisonError::into_inner).room
    }

    fn took(&self, bytes: u64) {
        let mut state = self.state();
        state.room = state.room.saturating_add(bytes);
        self.changed.notify_all();
    }

    /// Ends the connection, and with it the command, as if this signal had ended it.
    fn give_up(&self, number: i32, end: &Sender<Result<Exited, Cut>>) {
        // First, so that the end of the connection is not heard before it.
        let _ = end.send(Ok(Exited::Signal(number)));
        self.closer.close();
    }
}

fn converse(
    operator: &Operator,
    instance: &Instance,
    how: &ExecOptions,
    argv: Vec<String>,
) -> Result<u8, Failure> {
    let terminal = how.terminal.then(|| terminal::size().unwrap_or(Size { rows: 24, columns: 80 }));
    let mut env = how.env.clone();
    if let (Some(_), Ok(term)) = (terminal, std::env::var("TERM")) {
        env.push(format!("TERM={term}"));
    }
    let stdin =
        !how.no_stdin && (how.terminal || terminal::is_fed(io::stdin().as_fd()) || io::stdin().is_terminal());
    let command = Exec { argv, env, cwd: how.workdir.clone(), user: how.user.clone(), terminal, stdin };
    // Before any thread is there that would take them.
    let signals = Signals::catch().map_err(|source| GuestError::Unreachable { source })?;
    let mut guest = Guest::of(&operator.roots, instance)?;
    let Answer::Started { window, .. } = guest.ask(&Request::Exec(command), Duration::ZERO)? else {
        return Err(guest.unexpected().into());
    };
    let mut frames = guest.into_frames();
    let io_error = |source| GuestError::Unreachable { source };
    let speaker: &'static Speaker =
        Box::leak(Box::new(Speaker::new(frames.stream(), window).map_err(io_error)?));
    let raw =
        (how.terminal && io::stdin().is_terminal()).then(RawTerminal::enter).transpose().map_err(io_error)?;
    // They live as long as the process, which ends soon after the command: what they wait for cannot be ended.
    if stdin {
        thread::spawn(|| send_input(speaker));
    }
    let (end, ended) = mpsc::channel();
    let (has_terminal, given_up) = (how.terminal, end.clone());
    thread::spawn(move || send_signals(speaker, &signals, has_terminal, &given_up));
    let escape = !how.terminal && !how.raw;
    thread::spawn(move || end.send(receive(&mut frames, speaker, escape)));
    let ended = ended.recv().unwrap_or(Err(Cut::Connection(ProtoError::Closed)));
    drop(raw);
    match ended {
        Ok(Exited::Code(code)) => Ok(u8::try_from(code & 0xff).unwrap_or(FAILED)),
        Ok(Exited::Signal(signal)) => Ok(by_signal(signal)),
        Err(Cut::Connection(error)) => {
            Err(crate::vm::instance::guest::explain("Exec", operator.roots.guest_timeout, error).into())
        }
        Err(Cut::Output(error)) => Err(Failure::Output(error)),
    }
}

/// The exit code of a command that a signal ended, as a shell says it.
fn by_signal(number: i32) -> u8 {
    u8::try_from(number.saturating_add(128)).unwrap_or(u8::MAX)
}

/// What ended before the command.
enum Cut {
    Connection(ProtoError),
    Output(io::Error),
}

impl From<ProtoError> for Cut {
    fn from(error: ProtoError) -> Self {
        Self::Connection(error)
    }
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// What the command writes, until it has ended.
fn receive(frames: &mut Frames<Connection>, speaker: &Speaker, escape: bool) -> Result<Exited, Cut> {
    let mut stdout = Sink::new(io::stdout(), escape);
    let mut stderr = Sink::new(io::stderr(), escape);
    loop {
        match frames.advance()? {
            Some(kind @ (Frame::Data | Frame::Errors)) => {
                speaker.written.fetch_add(1, Ordering::AcqRel);
                match kind {
                    Frame::Data => stdout.take(frames.content())?,
                    _ => stderr.take(frames.content())?,
                }
                speaker.written.fetch_add(1, Ordering::AcqRel);
            }
            Some(Frame::Message) => match frames.parse()? {
                Answer::Exited(exited) => {
                    stdout.finish()?;
                    stderr.finish()?;
                    return Ok(exited);
                }
                Answer::Took { bytes } => speaker.took(bytes),
                Answer::Unknown => {}
                _ => return Err(ProtoError::Unexpected.into()),
            },
            None => return Err(ProtoError::Closed.into()),
        }
        // Nobody reads what it says: it is ended by the end of the connection.
        if stdout.is_unheard {
            return Ok(Exited::Signal(libc::SIGPIPE));
        }
    }
}

/// Where output goes: as it is, or without what could talk to a terminal.
struct Sink<W> {
    to: W,
    escaper: Option<Escaper>,
    is_unheard: bool,
}

impl<W: Write + IsTerminal> Sink<W> {
    fn new(to: W, escape: bool) -> Self {
        let escaper = (escape && to.is_terminal()).then(Escaper::default);
        Self { to, escaper, is_unheard: false }
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let text = self.escaper.as_mut().map(|escaper| escaper.escape(bytes));
        self.write(text.as_ref().map_or(bytes, String::as_bytes))
    }

    /// What is held of a character that never became whole.
    fn finish(&mut self) -> io::Result<()> {
        let rest = self.escaper.as_mut().map(Escaper::finish).unwrap_or_default();
        self.write(rest.as_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.to.write_all(bytes).and_then(|()| self.to.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_unheard = true;
                Ok(())
            }
            written => written,
        }
    }
}

fn send_input(speaker: &Speaker) {
    // Not std's, whose buffer would hold what was typed.
    let Ok(stdin) = io::stdin().as_fd().try_clone_to_owned() else { return };
    let mut stdin = File::from(stdin);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let room = usize::try_from(speaker.room()).unwrap_or(usize::MAX).min(buffer.len());
        let count = stdin.read(&mut buffer[..room]).unwrap_or(0);
        speaker.state().room -= count as u64;
        // None at all are the end.
        let sent = speaker.say(Duration::MAX, |frames| frames.data(Frame::Data, &buffer[..count]));
        if !matches!(sent, Some(Ok(()))) || count == 0 {
            return;
        }
    }
}

/// Passes signals on. One that cannot be, since a guest does not read, gives the command up: the end of the connection ends it.
fn send_signals(
    speaker: &'static Speaker,
    signals: &Signals,
    has_terminal: bool,
    end: &Sender<Result<Exited, Cut>>,
) {
    while let Ok(number) = signals.wait() {
        let input = match number {
            libc::SIGWINCH if has_terminal => terminal::size().map(Input::Resize),
            libc::SIGWINCH => None,
            number => Some(Input::Signal { number }),
        };
        let Some(input) = input else { continue };
        let sent = speaker.say(SIGNAL_LIMIT, |frames| {
            frames.stream_mut().set_deadline(Some(Instant::now() + SIGNAL_LIMIT));
            let sent = frames.send(&input);
            frames.stream_mut().set_deadline(None);
            sent
        });
        if number != libc::SIGWINCH && !matches!(sent, Some(Ok(()))) {
            speaker.give_up(number, end);
        } else if is_deadly(number) {
            let end = end.clone();
            thread::spawn(move || end_what_is_stuck(speaker, number, &end));
        }
    }
}

/// Is the signal one by which somebody says that it should end?
fn is_deadly(number: i32) -> bool {
    [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT].contains(&number)
}

/// Gives the command up where soon after the signal nobody takes its output here: a guest whose output is stuck hears nothing,
/// and that its command has ended would come behind that output.
fn end_what_is_stuck(speaker: &Speaker, number: i32, end: &Sender<Result<Exited, Cut>>) {
    let mut before = speaker.written.load(Ordering::Acquire);
    for _ in 0..LOOKS {
        thread::sleep(SIGNAL_LIMIT);
        let now = speaker.written.load(Ordering::Acquire);
        if now == before && !now.is_multiple_of(2) {
            return speaker.give_up(number, end);
        }
        before = now;
    }
}
