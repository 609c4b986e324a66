//! What the agent asks of the machine that it runs on.

use std::{fs::File, io, time::Duration};

use mvm_proto::{
    ProtoError,
    message::{Copied, Exec, Exited, Refused, Size, Stats, Worker, WorkloadStatus},
};
use serde::{Deserialize, Serialize};

use zeroize::Zeroizing;

use crate::{identify::Fact, log::Log};

/// A machine: a Linux guest, or the simulated one.
pub trait System: Send + Sync + 'static {
    /// Holds the guest's CPU for a moment: who simulates a machine lets nothing go on while it is paused.
    fn running(&self) -> Running<'_>;

    /// Makes one thing true, and reads it back: its value as in [`mvm_proto::message::facts`].
    ///
    /// # Errors
    /// Where it is not true afterwards.
    fn apply(&self, fact: &Fact<'_>) -> io::Result<String>;

    /// The secrets that are there, sorted by name.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn secrets(&self) -> io::Result<Vec<(String, Zeroizing<Vec<u8>>)>>;

    /// The guest is somebody, and the host has heard it: what need not be waited for may begin.
    fn identified(&self) {}

    /// Keeps what the agent has to know after a snapshot, where the agent's own memory is not the guest's.
    fn remember(&self, state: &State);

    /// The kernel's id of this boot.
    fn boot_id(&self) -> String;

    /// How long the guest has run, without the time it slept.
    fn uptime(&self) -> Duration;

    /// What the workload says of itself, and how long ago it said so.
    fn worker(&self) -> Option<(Worker, Duration)>;

    /// The workload's process, and how often it was started again.
    fn workload(&self) -> (WorkloadStatus, u32);

    /// What the workload printed.
    fn log(&self) -> &Log;

    /// What is being used.
    fn stats(&self) -> Stats;

    /// Writes everything to the disks.
    ///
    /// # Errors
    /// Where a disk does not take it.
    fn sync(&self) -> io::Result<()>;

    /// Starts a command.
    ///
    /// # Errors
    /// What to answer where it does not start.
    fn spawn(&self, command: &Exec) -> Result<Process, Refused>;

    /// Takes the files that come on this connection to a place; into it, under this name, where it is a folder.
    ///
    /// # Errors
    /// What to answer where it cannot; nothing is left then.
    fn put(&self, connection: &File, path: &str, name: &str) -> Result<Copied, Refused>;

    /// Sends files on this connection.
    ///
    /// # Errors
    /// Where the connection fails; what cannot be read is said on it.
    fn get(&self, connection: &File, path: &str) -> Result<(), ProtoError>;

    /// Begins to switch the machine off: the workload gets so long to end.
    fn shut_down(&self, grace: Duration);
}

/// Something that holds the CPU until it is dropped; nothing does on a real machine.
pub type Running<'a> = Option<Box<dyn Hold + 'a>>;

/// What holds the CPU.
pub trait Hold {}

/// What the agent has to know after a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Who the guest is.
    pub instance_id: Option<String>,
    /// Whether it takes nothing new.
    pub draining: bool,
}

/// A command that runs.
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Where its input goes; none where it has none.
    pub stdin: Option<File>,
    /// Its output; that of its terminal, where it has one.
    pub stdout: File,
    /// Its error output; none where it has a terminal.
    pub stderr: Option<File>,
    /// Becomes readable when it has ended: [`Process::encode`].
    pub exited: File,
    /// What else can be done with it.
    pub control: Box<dyn Control>,
}

/// What can be done with a command that runs.
pub trait Control: Send {
    /// Sends it, and what it started, a signal.
    fn signal(&self, number: i32);
    /// Gives its terminal another size.
    fn resize(&self, size: Size);
    /// Ends it, and what it started: nobody listens any more.
    fn hang_up(&self);
}

impl Process {
    /// How an end is written to [`Process::exited`].
    pub fn encode(exited: Exited) -> [u8; 8] {
        let (tag, value) = match exited {
            Exited::Code(code) => (0_i32, code),
            Exited::Signal(signal) => (1, signal),
        };
        let [tag, value] = [tag.to_le_bytes(), value.to_le_bytes()];
        [tag[0], tag[1], tag[2], tag[3], value[0], value[1], value[2], value[3]]
    }

    /// What [`Process::encode`] wrote.
    pub fn decode(bytes: [u8; 8]) -> Exited {
        let [tag, _, _, _, value @ ..] = bytes;
        let value = i32::from_le_bytes(value);
        if tag == 0 { Exited::Code(value) } else { Exited::Signal(value) }
    }
}
