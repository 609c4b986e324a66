//! A connection: hello, one request, and what belongs to it.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mvm_proto::{
    Answer, Code, Frames, Hello, ProtoError, Request,
    message::{Confirmed, Identity, Receipt, Refused, Status, Wake, Worker, facts},
    secrets::SecretSet,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
};
use serde::Serialize;

use crate::{
    drain::Drain,
    exec, identify, secrets,
    system::{State, System},
};

/// How long the host may take to say what it wants.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// Commands, copies and readers of the log at once at most: fewer than there may be connections, so that a sleep and a wake
/// are heard however many there are.
const USERS: usize = 48;
/// How often a follower of the log is looked after.
const FOLLOW: Duration = Duration::from_secs(1);
/// How long a host that is refused may go on sending before the connection is closed on it.
const LINGER: Duration = Duration::from_secs(5);

/// The agent.
pub struct Agent<S> {
    system: S,
    program: String,
    drain: Drain,
    /// Requests of users that are being served.
    users: AtomicUsize,
    instance_id: Mutex<Option<String>>,
    /// One set after the other.
    secrets: Mutex<()>,
}

impl<S: System> Agent<S> {
    /// One that runs on this machine, as it was when the machine was last saved. `program` says to people what it is.
    pub fn new(system: S, program: &str, state: State) -> Self {
        let State { instance_id, draining } = state;
        Self {
            system,
            program: program.to_owned(),
            drain: Drain::new(draining),
            users: AtomicUsize::new(0),
            instance_id: Mutex::new(instance_id),
            secrets: Mutex::new(()),
        }
    }

    /// The machine.
    pub fn system(&self) -> &S {
        &self.system
    }

    /// Serves a connection to its end.
    ///
    /// # Errors
    /// Where it fails: that is the end of this connection, and of nothing else.
    pub fn serve(&self, connection: &File) -> Result<(), ProtoError> {
        let mut frames = Frames::on(connection);
        let ours = Hello::of(&self.program);
        // A frame that is begun has to come, too.
        limit_reading(connection, Some(HELLO_LIMIT));
        wait_readable(connection, HELLO_LIMIT)?;
        let theirs: Hello = frames.message()?;
        if let Err(incompatible) = ours.agree(&theirs) {
            frames.send(&ours)?;
            return frames.send(&refused(Code::Incompatible, &incompatible.to_string()));
        }
        wait_readable(connection, HELLO_LIMIT)?;
        let request = match frames.message() {
            Ok(request) => request,
            // What cannot even be parsed is not known here.
            Err(ProtoError::Message(error)) => {
                frames.send(&ours)?;
                return frames.send(&refused(Code::Unsupported, &error.to_string()));
            }
            Err(error) => return Err(error),
        };
        limit_reading(connection, None);
        self.send(&mut frames, &ours)?;
        let other =
            self.instance_id().clone().filter(|own| theirs.instance_id.as_ref().is_some_and(|it| it != own));
        match other {
            None => self.answer(connection, &mut frames, request),
            Some(own) => {
                self.send(&mut frames, &refused(Code::OtherIdentity, &format!("the guest is {own}")))?;
                if matches!(request, Request::Put { .. }) {
                    linger(connection);
                }
                Ok(())
            }
        }
    }

    /// Says to who has connected that too many others are. Reads nothing, and does not wait.
    pub fn refuse(&self, connection: &File) {
        let mut frames = Frames::on(connection);
        // Who does not take even that has gone.
        let _ = frames
            .send(&Hello::of(&self.program))
            .and_then(|()| frames.send(&refused(Code::Busy, "too many connections are open")));
    }

    /// Answers a request, and does what belongs to it.
    ///
    /// # Errors
    /// Where the connection fails: that is the end of it, and of nothing else.
    pub fn answer(
        &self,
        connection: &File,
        frames: &mut Frames<&File>,
        request: Request,
    ) -> Result<(), ProtoError> {
        let answer = match request {
            Request::Status {} => Answer::Status(self.status()),
            Request::Stats {} => Answer::Stats(self.system.stats()),
            Request::Identify(identity) => {
                let answer = self.identify(&identity);
                let is_somebody = matches!(&answer, Answer::Receipt(receipt) if receipt.failed.is_none());
                self.send(frames, &answer)?;
                if is_somebody {
                    self.system.identified();
                }
                return Ok(());
            }
            Request::Wake(wake) => self.wake(&wake),
            Request::Secrets(set) => return self.take_secrets(connection, frames, &set),
            Request::SleepPrep { drain_ms } => self.prepare(Duration::from_millis(drain_ms)),
            Request::Logs { since_unix_ms, follow } => match self.seat() {
                Some(_seat) => return self.log(connection, since_unix_ms, follow),
                None => full(),
            },
            Request::Shutdown { grace_ms } => {
                self.send(frames, &Answer::Done {})?;
                self.system.shut_down(Duration::from_millis(grace_ms));
                return Ok(());
            }
            Request::Unknown => refused(Code::Unsupported, "this agent does not know the request"),
            Request::Exec(_) | Request::Put { .. } | Request::Get { .. } => {
                return self.work(connection, frames, request);
            }
        };
        self.send(frames, &answer)
    }

    /// What takes its time, and what a sleep waits for.
    fn work(
        &self,
        connection: &File,
        frames: &mut Frames<&File>,
        request: Request,
    ) -> Result<(), ProtoError> {
        if self.instance_id().is_none() {
            return self.send(frames, &refused(Code::Unidentified, "the guest does not know yet who it is"));
        }
        let Some(_seat) = self.seat() else { return self.send(frames, &full()) };
        let Some(_ticket) = self.drain.enter() else {
            return self.send(frames, &refused(Code::Draining, "the guest is about to sleep"));
        };
        match request {
            Request::Exec(command) => exec::run(&self.system, connection, &command),
            Request::Get { path } => self.system.get(connection, &path),
            Request::Put { path, name } => {
                let answer = match self.system.put(connection, &path, &name) {
                    Ok(copied) => Answer::Copied(copied),
                    Err(refused) => Answer::Refused(refused),
                };
                self.send(frames, &answer)?;
                if matches!(answer, Answer::Refused(_)) {
                    // What is on its way would reset the connection, and the answer would be lost.
                    linger(connection);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A place for a user; some are left for what keeps the guest itself going.
    fn seat(&self) -> Option<Seat<'_>> {
        let seat = (self.users.fetch_add(1, Ordering::AcqRel), Seat(&self.users));
        (seat.0 < USERS).then_some(seat.1)
    }

    /// The CPU is not held meanwhile: the host may take its time.
    fn send(&self, frames: &mut Frames<&File>, answer: &impl Serialize) -> Result<(), ProtoError> {
        drop(self.system.running());
        frames.send(answer)
    }

    fn instance_id(&self) -> MutexGuard<'_, Option<String>> {
        self.instance_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self) {
        let state = State { instance_id: self.instance_id().clone(), draining: self.drain.is_draining() };
        let _running = self.system.running();
        self.system.remember(&state);
    }

    fn status(&self) -> Status {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let worker = self.system.worker();
        let (workload, restarts) = self.system.workload();
        Status {
            instance_id: self.instance_id().clone(),
            draining: self.drain.is_draining(),
            under_way: self.drain.under_way(),
            boot_id: self.system.boot_id(),
            uptime_ms: ms(self.system.uptime()),
            worker: worker.map(|(word, _)| word),
            worker_for_ms: worker.map(|(_, since)| ms(since)),
            workload,
            workload_restarts: Some(restarts),
        }
    }

    /// A guest becomes somebody once; the same again is well.
    fn identify(&self, identity: &Identity) -> Answer {
        let mut instance_id = self.instance_id();
        if let Some(other) = instance_id.as_ref().filter(|id| **id != identity.instance_id) {
            return refused(Code::OtherIdentity, &format!("the guest is {other}"));
        }
        let receipt = identify::apply(&self.system, &identify::of_identity(identity));
        if receipt.failed.is_some() {
            return Answer::Receipt(receipt);
        }
        *instance_id = Some(identity.instance_id.clone());
        drop(instance_id);
        self.drain.open();
        self.remember();
        Answer::Receipt(with_instance(receipt, &identity.instance_id))
    }

    fn wake(&self, wake: &Wake) -> Answer {
        match self.instance_id().as_ref() {
            None => return refused(Code::Unidentified, "the guest does not know yet who it is"),
            Some(id) if *id != wake.instance_id => {
                return refused(Code::OtherIdentity, &format!("the guest is {id}"));
            }
            Some(_) => {}
        }
        let receipt = identify::apply(&self.system, &identify::of_wake(wake));
        if receipt.failed.is_none() {
            self.drain.open();
            self.remember();
        }
        Answer::Receipt(with_instance(receipt, &wake.instance_id))
    }

    /// Secrets come before a guest is somebody, so that its workload finds them, and whenever they are others.
    fn take_secrets(
        &self,
        connection: &File,
        frames: &mut Frames<&File>,
        set: &SecretSet,
    ) -> Result<(), ProtoError> {
        if let Err(why) = set.check() {
            return self.send(frames, &secrets::refuse(why));
        }
        self.send(frames, &Answer::Ready {})?;
        limit_reading(connection, Some(HELLO_LIMIT));
        let taken = secrets::take(set, connection)?;
        let answer = {
            let _alone = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
            secrets::put(&self.system, &taken, &set.tell)
        };
        self.send(frames, &answer)
    }

    fn prepare(&self, limit: Duration) -> Answer {
        let is_busy = || self.system.worker().is_some_and(|(word, _)| word == Worker::Busy);
        if let Err(under_way) = self.drain.close(limit, is_busy) {
            let what = match (under_way, is_busy()) {
                (0, _) => "the workload is busy".to_owned(),
                (count, false) => format!("{count} requests are under way"),
                (count, true) => format!("{count} requests are under way, and the workload is busy"),
            };
            return refused(Code::Busy, &what);
        }
        let synced = {
            let _running = self.system.running();
            self.system.sync()
        };
        if let Err(error) = synced {
            self.drain.open();
            return refused(Code::Failed, &format!("the disks cannot be synced: {error}"));
        }
        self.remember();
        Answer::Ready {}
    }

    fn log(&self, connection: &File, since_unix_ms: u64, follow: bool) -> Result<(), ProtoError> {
        let mut frames = Frames::on(connection);
        let (mut next, mut wait) = (0, Duration::ZERO);
        loop {
            let lines;
            (lines, next) = self.system.log().after(next, since_unix_ms, wait);
            for line in lines {
                self.send(&mut frames, &Answer::Line(line))?;
            }
            if !follow {
                return self.send(&mut frames, &Answer::End {});
            }
            wait = FOLLOW;
            // The host has nothing to say any more: it can only have gone.
            if is_readable(connection, Duration::ZERO)? {
                return Ok(());
            }
        }
    }
}

/// A user who is served until this is dropped.
struct Seat<'a>(&'a AtomicUsize);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn full() -> Answer {
    refused(Code::Busy, &format!("{USERS} requests are under way already"))
}

fn with_instance(mut receipt: Receipt, id: &str) -> Receipt {
    if receipt.failed.is_none() {
        let (fact, value) = (facts::INSTANCE.to_owned(), id.to_owned());
        receipt.confirmed.push(Confirmed { fact, value, ms: 0.0 });
    }
    receipt
}

fn refused(code: Code, why: &str) -> Answer {
    Answer::Refused(Refused { code, why: why.to_owned() })
}

/// Where it is no socket there is no limit, and no host that could be slow.
fn limit_reading(connection: &File, limit: Option<Duration>) {
    let _ = sockopt::set_socket_timeout(connection, sockopt::Timeout::Recv, limit);
}

fn wait_readable(connection: &File, limit: Duration) -> io::Result<()> {
    match is_readable(connection, limit)? {
        true => Ok(()),
        false => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn is_readable(connection: &File, limit: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN)];
    let timeout = Timespec::try_from(limit).unwrap_or_default();
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Hears the host out, so that it hears the answer.
fn linger(mut connection: &File) {
    let deadline = std::time::Instant::now() + LINGER;
    let mut buffer = [0; 4096];
    while let (Ok(true), left) =
        (is_readable(connection, LINGER), deadline.saturating_duration_since(std::time::Instant::now()))
    {
        if left.is_zero() || matches!(connection.read(&mut buffer), Ok(0) | Err(_)) {
            return;
        }
    }
}
