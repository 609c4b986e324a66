//! Talking to the agent in a guest. The guest is not trusted: what it says is bounded in length and time, is checked where
//! it matters, and is never believed where the host can know better.

pub mod identity;

use std::{
    io,
    time::{Duration, Instant},
};

use mvm_proto::{
    Answer, Code, Frames, Hello, Incompatible, Kind, ProtoError, Request,
    message::{Refused, Stats, Status},
};

use super::{config::Instance, fc_config::files};
use crate::{
    infra::{config::Roots, text},
    vmm::{process::Vmm, vsock::Connection},
};

/// How many times as long as an answer it may take a guest to become somebody.
const IDENTIFY: u32 = 3;
/// The same for a boot, until the agent listens.
const BOOT: u32 = 12;
/// How long a guest may take to write out what its disks have not yet, before a sleep: what it holds in memory, through
/// limits of the disk.
const SYNC: Duration = Duration::from_secs(120);
/// What mvm calls itself.
const PROGRAM: &str = concat!("mvm ", env!("CARGO_PKG_VERSION"));

/// Why a guest's agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Nobody listens, or the connection broke.
    #[error("the agent in the guest cannot be reached")]
    Unreachable {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the agent in the guest did not answer {request} within {} s", limit.as_secs())]
    Silent {
        /// What was asked.
        request: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// It cannot be asked like that: no agent would take it.
    #[error("{request} cannot be asked like that: {why}")]
    Request {
        /// What was to be asked.
        request: &'static str,
        /// Why not.
        why: String,
    },
    /// It closed the connection.
    #[error("the agent in the guest ended the connection in place of an answer to {request}")]
    Closed {
        /// What was asked.
        request: &'static str,
    },
    /// It said something that is no answer.
    #[error("the guest's answer to {request} makes no sense: {why}")]
    Nonsense {
        /// What was asked.
        request: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// It speaks another version.
    #[error("the agent in the guest does not fit: {0}")]
    Incompatible(#[from] Incompatible),
    /// It answered that it would not.
    #[error("the guest refused {request}: {why}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Why, as a word.
        code: Code,
        /// Why.
        why: String,
    },
    /// It could not become who it should be.
    #[error("the guest could not set its {fact}: {why}")]
    Failed {
        /// What.
        fact: String,
        /// Why not.
        why: String,
    },
    /// It confirmed something else than it was told, or did not confirm it.
    #[error("the guest did not confirm its {fact}: it should be {expected}, and it says {said}")]
    Unconfirmed {
        /// What.
        fact: String,
        /// What it was told.
        expected: String,
        /// What it says.
        said: String,
    },
}

/// A connection to a guest's agent on which one request is made.
#[derive(Debug)]
pub struct Guest {
    frames: Frames<Connection>,
    /// The instance whose guest is meant; none where it cannot know yet.
    instance_id: Option<String>,
    /// Since when an answer is waited for.
    since: Instant,
    /// How long an answer may take that needs no work.
    answer_limit: Duration,
    /// How long the answer may take.
    limit: Duration,
    request: &'static str,
}

impl Guest {
    /// Connects to the guest of an instance that runs.
    ///
    /// # Errors
    /// [`GuestError::Unreachable`] where there is nobody.
    pub fn of(roots: &Roots, instance: &Instance) -> Result<Self, GuestError> {
        let (limit, since) = (roots.guest_timeout, Instant::now());
        let directory = roots.vmm_dir(&instance.net.tap_dev);
        // Who takes its time with the connection has the less for the answer.
        Connection::open(&directory, files::VSOCK, mvm_proto::PORT, since + limit)
            .map(|connection| Self::on(connection, since, limit).meaning(instance))
            .map_err(|source| unreachable(source, limit))
    }

    /// Connects to a guest that was just loaded, as soon as its agent listens.
    ///
    /// # Errors
    /// [`GuestError::Unreachable`] at the limit, or where the VMM has ended.
    pub fn await_loaded(roots: &Roots, instance: &Instance, vmm: &Vmm) -> Result<Self, GuestError> {
        let guest = Self::await_open(roots, &instance.net.tap_dev, vmm, roots.guest_timeout * IDENTIFY)?;
        Ok(guest.meaning(instance))
    }

    /// The same with one that has answered since it was loaded: it takes no longer than an answer.
    ///
    /// # Errors
    /// As [`Guest::await_loaded`].
    pub fn await_again(roots: &Roots, instance: &Instance, vmm: &Vmm) -> Result<Self, GuestError> {
        let guest = Self::await_open(roots, &instance.net.tap_dev, vmm, roots.guest_timeout)?;
        Ok(guest.meaning(instance))
    }

    /// Connects to a guest that boots, as soon as its agent listens.
    ///
    /// # Errors
    /// [`GuestError::Unreachable`] at the limit, or where the VMM has ended.
    pub fn await_booted(roots: &Roots, tap: &str, vmm: &Vmm) -> Result<Self, GuestError> {
        Self::await_open(roots, tap, vmm, roots.guest_timeout * BOOT)
    }

    fn await_open(roots: &Roots, tap: &str, vmm: &Vmm, limit: Duration) -> Result<Self, GuestError> {
        let deadline = Instant::now() + limit;
        let is_there = || !vmm.has_ended();
        Connection::await_open(&roots.vmm_dir(tap), files::VSOCK, mvm_proto::PORT, deadline, is_there)
            .map(|connection| Self::on(connection, Instant::now(), roots.guest_timeout))
            .map_err(|source| unreachable(source, limit))
    }

    fn on(connection: Connection, since: Instant, limit: Duration) -> Self {
        let (frames, request) = (Frames::on(connection), "a connection");
        Self { frames, instance_id: None, since, answer_limit: limit, limit, request }
    }

    fn meaning(self, instance: &Instance) -> Self {
        Self { instance_id: Some(instance.instance_id.to_string()), ..self }
    }

    /// Gives it so much longer for what it was asked.
    pub fn give_more(&mut self, time: Duration) {
        self.limit += time;
        self.frames.stream_mut().set_deadline(Some(self.since + self.limit));
    }

    /// Makes the request, which takes so much longer than one that needs no work, and returns the first answer.
    ///
    /// # Errors
    /// Everything that is none.
    pub fn ask(&mut self, request: &Request, work: Duration) -> Result<Answer, GuestError> {
        self.limit = self.answer_limit + work;
        self.begin(request)?;
        self.answer()
    }

    /// Makes the request, and hears that the guest speaks the same protocol.
    ///
    /// # Errors
    /// Where it does not.
    pub fn begin(&mut self, request: &Request) -> Result<(), GuestError> {
        self.request = name_of(request);
        self.frames.stream_mut().set_deadline(Some(self.since + self.limit));
        let ours = Hello::of(PROGRAM).to(self.instance_id.clone());
        let sent = self.frames.send(&ours).and_then(|()| self.frames.send(request));
        // An agent that refuses before it has heard all of it says why.
        match sent {
            Ok(()) | Err(ProtoError::Io(_)) => {}
            // It was not sent, and is nothing that the guest did.
            Err(error) => return Err(GuestError::Request { request: self.request, why: error.to_string() }),
        }
        let theirs: Hello = self.frames.message().map_err(|error| self.explain(error))?;
        ours.agree(&theirs)?;
        Ok(())
    }

    /// Sends bytes that belong to the request, and keeps no copy of them.
    ///
    /// # Errors
    /// Where the guest does not take them.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        self.frames.data_uncopied(Kind::Data, bytes).map_err(|error| self.explain(error))
    }

    /// The next answer.
    ///
    /// # Errors
    /// Everything that is none; [`GuestError::Refused`] where it refuses.
    pub fn answer(&mut self) -> Result<Answer, GuestError> {
        match self.frames.message() {
            Ok(Answer::Refused(Refused { code, why })) => {
                Err(GuestError::Refused { request: self.request, code, why: printable(&why) })
            }
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// How long a guest may take to become somebody, beyond an answer.
    pub fn identify_limit(&self) -> Duration {
        self.answer_limit * (IDENTIFY - 1)
    }

    /// From now on the guest may take as long as it likes.
    pub fn set_patient(&mut self) {
        self.frames.stream_mut().set_deadline(None);
    }

    /// The connection, for requests after whose answer more is said. What is said takes as long as it takes.
    pub fn into_frames(mut self) -> Frames<Connection> {
        self.frames.stream_mut().set_deadline(None);
        self.frames
    }

    /// What an error of the connection means.
    pub fn explain(&self, error: ProtoError) -> GuestError {
        explain(self.request, self.limit, error)
    }

    /// An answer that does not belong to the request.
    pub fn unexpected(&self) -> GuestError {
        GuestError::Nonsense { request: self.request, why: "it answers something else".into() }
    }

    /// How is it?
    ///
    /// # Errors
    /// When it does not say.
    pub fn status(mut self) -> Result<Status, GuestError> {
        match self.ask(&Request::Status {}, Duration::ZERO)? {
            Answer::Status(status) => Ok(status),
            _ => Err(self.unexpected()),
        }
    }

    /// What does it use?
    ///
    /// # Errors
    /// When it does not say.
    pub fn stats(mut self) -> Result<Stats, GuestError> {
        match self.ask(&Request::Stats {}, Duration::ZERO)? {
            Answer::Stats(stats) => Ok(stats),
            _ => Err(self.unexpected()),
        }
    }

    /// Asks it to get ready for sleep within this time; [`Guest::is_ready`] is the answer.
    ///
    /// # Errors
    /// Where it does not listen.
    pub fn prepare_sleep(&mut self, drain: Duration) -> Result<(), GuestError> {
        let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
        // That it listens is said at once; the rest takes its time.
        self.limit = self.answer_limit;
        self.begin(&Request::SleepPrep { drain_ms })?;
        self.limit = self.answer_limit + drain + SYNC;
        self.frames.stream_mut().set_deadline(Some(Instant::now() + self.limit));
        Ok(())
    }

    /// Whether its answer has begun to come, waited for so long.
    ///
    /// # Errors
    /// [`GuestError::Silent`] where it should be there by now.
    pub fn has_answered(&self, limit: Duration) -> Result<bool, GuestError> {
        self.frames.stream().is_readable(limit).map_err(|error| self.explain(error.into()))
    }

    /// Is it ready for sleep?
    ///
    /// # Errors
    /// [`GuestError::Refused`] with [`Code::Busy`] where it does not get ready in time; it goes on then.
    pub fn is_ready(&mut self) -> Result<(), GuestError> {
        // An answer that has begun is there at once.
        self.limit = self.answer_limit;
        self.frames.stream_mut().set_deadline(Some(Instant::now() + self.limit));
        match self.answer()? {
            Answer::Ready {} => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Asks it to switch off.
    ///
    /// # Errors
    /// When it does not say that it will.
    pub fn shut_down(mut self, grace: Duration) -> Result<(), GuestError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        match self.ask(&Request::Shutdown { grace_ms }, Duration::ZERO)? {
            Answer::Done {} => Ok(()),
            _ => Err(self.unexpected()),
        }
    }
}

/// What an error of a connection on which `request` was made means.
pub fn explain(request: &'static str, limit: Duration, error: ProtoError) -> GuestError {
    match error {
        ProtoError::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
            GuestError::Silent { request, limit }
        }
        ProtoError::Io(error)
            if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
        {
            GuestError::Closed { request }
        }
        ProtoError::Io(source) => GuestError::Unreachable { source },
        ProtoError::Closed => GuestError::Closed { request },
        error => GuestError::Nonsense { request, why: error.to_string() },
    }
}

fn unreachable(source: io::Error, limit: Duration) -> GuestError {
    match source.kind() {
        io::ErrorKind::TimedOut => GuestError::Silent { request: "a connection", limit },
        _ => GuestError::Unreachable { source },
    }
}

fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Status {} => "Status",
        Request::Identify(_) => "Identify",
        Request::Wake(_) => "Wake",
        Request::Secrets(_) => "Secrets",
        Request::SleepPrep { .. } => "SleepPrep",
        Request::Exec(_) => "Exec",
        Request::Put { .. } => "Put",
        Request::Get { .. } => "Get",
        Request::Stats {} => "Stats",
        Request::Logs { .. } => "Logs",
        Request::Shutdown { .. } => "Shutdown",
        Request::Unknown => "an unknown request",
    }
}

/// A guest's text as it may stand in records and on terminals.
pub fn printable(text: &str) -> String {
    const MOST: usize = 400;
    text::printable(text, MOST)
}
