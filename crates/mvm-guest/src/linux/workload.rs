//! The guest's own program, as `/etc/mvm/workload.json` says: started once the guest knows who it is, started again where
//! that is wanted, asked to end where the machine is switched off. What it prints goes into the log and to the console.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant, SystemTime},
};

use mvm_guest::log::{Log, Splitter};
use mvm_proto::{
    message::{Exited, Line, WorkloadStatus},
    secrets::HOOK_LIMIT,
    settings::{Restart, Workload as Settings},
};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    launch::{Launched, Launcher, Plan, Streams},
    screen::Screen,
    session::Session,
    spawn, users,
};

pub const FILE: &str = Settings::FILE;

/// From one end to the next start: twice as long each time, up to the longest. One that ran as long as that is well again.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// What is said where nobody was told, since nothing runs that could hear it.
const NOBODY: &str = "nobody";

/// The workload.
pub struct Workload {
    launcher: Arc<Launcher>,
    pub log: Log,
    screen: Arc<Screen>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    status: Option<WorkloadStatus>,
    /// How often it was started again.
    restarts: u32,
    /// What runs, and the signal that asks it to end.
    session: Option<(Arc<Session>, i32)>,
    /// It is not started again.
    ending: bool,
}

impl Workload {
    pub fn new(launcher: Arc<Launcher>, screen: Arc<Screen>) -> Self {
        Self { launcher, log: Log::default(), screen, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is, and how often it was started again.
    pub fn status(&self) -> (WorkloadStatus, u32) {
        let state = self.state();
        let status = match state.status.clone() {
            Some(status) => status,
            None if fs::exists(FILE).unwrap_or(true) => WorkloadStatus::Waiting,
            None => WorkloadStatus::None,
        };
        (status, state.restarts)
    }

    /// Starts it, where there is one and it has not been started. Returns its pid, or nothing.
    ///
    /// # Errors
    /// Where what is to be started is not said clearly, or it cannot be started.
    pub fn start(self: &Arc<Self>) -> io::Result<String> {
        match self.state().status.clone() {
            Some(WorkloadStatus::Running { pid, .. }) => return Ok(pid.to_string()),
            None | Some(WorkloadStatus::Failed { .. }) => {}
            Some(_) => return Ok(String::new()),
        }
        let started =
            settings().and_then(|settings| settings.map(|settings| self.begin(settings)).transpose());
        let status = match &started {
            Ok(None) => WorkloadStatus::None,
            Ok(Some(pid)) => return Ok(pid.to_string()),
            Err(error) => WorkloadStatus::Failed { why: error.to_string() },
        };
        self.state().status = Some(status);
        started.map(|_| String::new())
    }

    fn begin(self: &Arc<Self>, settings: Settings) -> io::Result<u32> {
        let launched = self.launch(&settings, 0).map_err(io::Error::other)?;
        let pid = launched.pid.unsigned_abs();
        let own = self.clone();
        spawn("workload", move || own.supervise(&settings, launched))?;
        Ok(pid)
    }

    fn launch(&self, settings: &Settings, restarts: u32) -> Result<Launched, String> {
        let plan = Plan {
            argv: &settings.argv,
            env: &settings.env,
            cwd: &settings.cwd,
            user: &settings.user,
            streams: Streams::Pipes { stdin: false },
        };
        let mut state = self.state();
        if state.ending {
            return Err("the machine is being switched off".into());
        }
        let launched = self.launcher.launch(plan).map_err(|refused| refused.why)?;
        state.session = Some((launched.session.clone(), settings.stop_signal));
        let pid = launched.pid.unsigned_abs();
        state.restarts = restarts;
        state.status = Some(WorkloadStatus::Running { pid, restarts });
        Ok(launched)
    }

    fn supervise(&self, settings: &Settings, mut launched: Launched) {
        let mut pause = SHORTEST;
        for restarts in 1_u32.. {
            let begun = Instant::now();
            let exited = self.listen(&mut launched);
            // What it started belongs to it: the next one finds no leftovers.
            launched.session.kill();
            let again = match settings.restart {
                Restart::Never => false,
                Restart::OnFailure => exited != Exited::Code(0),
                Restart::Always => true,
            };
            if begun.elapsed() >= LONGEST {
                pause = SHORTEST;
            }
            if !self.ended(exited, again, pause) {
                return;
            }
            pause = (pause * 2).min(LONGEST);
            launched = match self.launch(settings, restarts) {
                Ok(launched) => launched,
                Err(why) => {
                    self.line(format!("mvm-guest: the workload: {why}"), true);
                    self.state().status = Some(WorkloadStatus::Failed { why });
                    return;
                }
            };
        }
    }

    /// Says how it ended, and waits for the time to start it again. False where it is not.
    fn ended(&self, exited: Exited, again: bool, pause: Duration) -> bool {
        let then = match again {
            true => format!(", and is started again in {:.1} s", pause.as_secs_f64()),
            false => String::new(),
        };
        let what = format!("it {}{then}", words(exited));
        self.line(format!("mvm-guest: the workload: {what}"), true);
        let mut state = self.state();
        state.session = None;
        state.status = Some(match again && !state.ending {
            true => WorkloadStatus::Failed { why: what },
            false => WorkloadStatus::Ended(exited),
        });
        self.changed.notify_all();
        let deadline = Instant::now() + pause;
        while again && !state.ending {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        state.status = Some(WorkloadStatus::Ended(exited));
        false
    }

    /// Keeps what it prints until it ends.
    fn listen(&self, launched: &mut Launched) -> Exited {
        let mut streams = [(launched.stdout.take(), false), (launched.stderr.take(), true)]
            .map(|(file, errors)| (file, errors, Splitter::default()));
        let mut buffer = [0; 8192];
        loop {
            let mut fds = vec![PollFd::from_borrowed_fd(launched.exited.as_fd(), PollFlags::IN)];
            let open = streams.iter().filter_map(|(file, ..)| file.as_ref());
            fds.extend(open.map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)));
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let mut ready = ready.into_iter();
            let ended = ready.next().unwrap_or(false);
            for (file, errors, splitter) in &mut streams {
                let Some(open) = file.as_mut() else { continue };
                if !ready.next().unwrap_or(false) {
                    continue;
                }
                match open.read(&mut buffer) {
                    Ok(0) | Err(_) => *file = None,
                    Ok(count) => splitter.take(&buffer[..count], |text| self.line(text, *errors)),
                }
            }
            if ended {
                for (file, errors, mut splitter) in streams {
                    if let Some(file) = file {
                        self.rest(file, errors, &mut splitter, &mut buffer);
                    }
                    splitter.finish(|text| self.line(text, errors));
                }
                let mut bytes = [0; 8];
                // It has ended, whatever the pipe says.
                let read = launched.exited.read_exact(&mut bytes);
                return read.map_or(Exited::Signal(libc::SIGKILL), |()| mvm_guest::Process::decode(bytes));
            }
        }
    }

    /// What it printed before it ended; its children may go on for ever.
    fn rest(&self, mut file: File, errors: bool, splitter: &mut Splitter, buffer: &mut [u8]) {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        for _ in 0..16 {
            let mut fds = [PollFd::new(&file, PollFlags::IN)];
            if !matches!(poll(&mut fds, Some(&now)), Ok(1..)) {
                return;
            }
            match file.read(buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => splitter.take(&buffer[..count], |text| self.line(text, errors)),
            }
        }
    }

    fn line(&self, text: String, errors: bool) {
        self.screen.line(&text);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.log.push(Line { at_unix_ms, errors, text });
    }

    /// Sends it a signal, where it runs. Returns what was done.
    ///
    /// # Errors
    /// Where there is no such signal.
    pub fn signal(&self, number: i32) -> io::Result<String> {
        if !(1..=64).contains(&number) {
            return Err(io::Error::other(format!("there is no signal {number}")));
        }
        let Some((session, _)) = self.state().session.clone() else { return Ok(NOBODY.to_owned()) };
        session.signal(number);
        Ok(format!("signal {number}"))
    }

    /// Runs a program as the workload would be, once that has been started. Its output is the workload's. Returns what was done.
    ///
    /// # Errors
    /// Where it does not end well, and in time.
    pub fn run_hook(self: &Arc<Self>, program: &str) -> io::Result<String> {
        if self.state().status.is_none() {
            return Ok(NOBODY.to_owned());
        }
        let (argv, settings) = ([program.to_owned()], settings()?);
        let (env, cwd, user) = match &settings {
            Some(settings) => (settings.env.as_slice(), settings.cwd.as_str(), settings.user.as_str()),
            None => Default::default(),
        };
        let plan = Plan { argv: &argv, env, cwd, user, streams: Streams::Pipes { stdin: false } };
        let mut launched = self.launcher.launch(plan).map_err(|refused| io::Error::other(refused.why))?;
        let (session, own, (done, ended)) = (launched.session.clone(), self.clone(), mpsc::channel());
        spawn("hook", move || {
            let exited = own.listen(&mut launched);
            launched.session.kill();
            // Who waited for it may have given up.
            let _ = done.send(exited);
        })?;
        let why = match ended.recv_timeout(HOOK_LIMIT) {
            Ok(Exited::Code(0)) => return Ok(format!("{program} ended well")),
            Ok(exited) => words(exited),
            Err(_) => {
                session.kill();
                format!("did not end within {} s", HOOK_LIMIT.as_secs())
            }
        };
        Err(io::Error::other(format!("{program} {why}")))
    }

    /// Asks it to end, and makes it end when its time is over.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut state = self.state();
        state.ending = true;
        self.changed.notify_all();
        let Some((session, signal)) = state.session.clone() else { return };
        session.signal(signal);
        while state.session.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                session.kill();
                return;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn words(exited: Exited) -> String {
    match exited {
        Exited::Code(code) => format!("ended with code {code}"),
        Exited::Signal(signal) => format!("was ended by signal {signal}"),
    }
}

/// Who it runs as: user and group.
///
/// # Errors
/// Where that is not said clearly.
pub fn user() -> io::Result<(u32, u32)> {
    let wanted = settings()?.map(|settings| settings.user).unwrap_or_default();
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let user = users::find(&wanted, &read("/etc/passwd"), &read("/etc/group")).map_err(io::Error::other)?;
    Ok((user.uid, user.gid))
}

fn settings() -> io::Result<Option<Settings>> {
    let bytes = match fs::read(FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io::Error::other(format!("{FILE}: {error}"))),
    };
    let settings: Settings =
        serde_json::from_slice(&bytes).map_err(|error| io::Error::other(format!("{FILE}: {error}")))?;
    match settings.schema_version {
        Settings::VERSION => Ok(Some(settings)),
        other => Err(io::Error::other(format!("{FILE}: this agent does not know its version {other}"))),
    }
}
