//! The requests, their answers, and what follows them. Does no I/O.
//!
//! | request | then |
//! | --- | --- |
//! | Status, Stats, Identify, Wake, SleepPrep, Shutdown | one answer |
//! | Exec | Started; data, errors and Took from the guest, data and [`Input`] from the host; Exited |
//! | Put | the host: entries as in [`super::copy`], End; the guest: Copied |
//! | Get | the guest: entries, End |
//! | Secrets | Ready; the host: what [`super::secrets`] says; Receipt |
//! | Logs | a Line each, End; none where it follows, until the host closes the connection |

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::secrets::SecretSet;

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Who and how are you?
    Status {},
    /// Be this one: the first thing that a guest hears after it was cloned or booted.
    Identify(Box<Identity>),
    /// You slept: here is what has changed since.
    Wake(Wake),
    /// Have these secrets, and no others.
    Secrets(SecretSet),
    /// You are about to sleep: finish what is under way, take nothing new, sync. Taken back by Wake.
    SleepPrep {
        /// How long that may take, in ms.
        drain_ms: u64,
    },
    /// Run a command.
    Exec(Exec),
    /// Take files.
    Put {
        /// Where they go: an absolute path, whose folder must be there.
        path: String,
        /// What they are called where `path` is a folder itself.
        name: String,
    },
    /// Give files.
    Get {
        /// Which: an absolute path.
        path: String,
    },
    /// What is being used?
    Stats {},
    /// What has the workload printed?
    Logs {
        /// Nothing older than that, in ms since 1970.
        #[serde(default)]
        since_unix_ms: u64,
        /// Also what it prints from now on.
        #[serde(default)]
        follow: bool,
    },
    /// Switch off, in an orderly way.
    Shutdown {
        /// How long the workload may take to end, in ms.
        grace_ms: u64,
    },
    /// One that this side does not know.
    #[serde(other)]
    Unknown,
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To Status.
    Status(Status),
    /// To Identify, Wake and Secrets.
    Receipt(Receipt),
    /// To SleepPrep: nothing is under way any more, and the disks are synced. To Secrets: let them come.
    Ready {},
    /// To Exec: it runs.
    Started {
        /// The process's id in the guest.
        pid: u32,
        /// So many bytes of input may be on their way that the command has not taken: so much the agent holds, and reads on,
        /// so that a signal is heard behind them. 0 from an agent that says nothing of what was taken.
        #[serde(default)]
        window: u64,
    },
    /// To Exec: so many more bytes of input are taken.
    Took {
        /// How many.
        bytes: u64,
    },
    /// To Exec: it has ended, and all that it wrote was sent.
    Exited(Exited),
    /// To Put: all of it is there.
    Copied(Copied),
    /// To Stats.
    Stats(Stats),
    /// To Logs.
    Line(Line),
    /// To Logs: there is no more.
    End {},
    /// To Shutdown: it is under way.
    Done {},
    /// To anything.
    Refused(Refused),
    /// One that this side does not know.
    #[serde(other)]
    Unknown,
}

/// What the host says to a command that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "input", rename_all = "snake_case")]
pub enum Input {
    /// The terminal has another size.
    Resize(Size),
    /// Send it this signal.
    Signal {
        /// Its number on Linux.
        number: i32,
    },
    /// One that this side does not know.
    #[serde(other)]
    Unknown,
}

/// Who a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The instance's id.
    pub instance_id: String,
    /// The host's name for it.
    pub hostname: String,
    /// `/etc/machine-id`: 32 hex digits.
    pub machine_id: String,
    /// Random bytes of the host: mixed in before anything is made from randomness.
    pub entropy: Entropy,
    /// Its network.
    pub net: Net,
    /// The wall clock, in ns since 1970.
    pub clock_unix_ns: u64,
    /// Its data disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataDisk>,
    /// Public keys that may log in, a line each as in `authorized_keys`.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}

/// Random bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Entropy(pub [u8; 32]);

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Logs are no place for it.
        f.write_str("Entropy(..)")
    }
}

/// A guest's network: one interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// Its MAC: `02:fc:00:03:00:05`.
    pub mac: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// The length of its network's prefix.
    pub prefix: u8,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// Who resolves names for it.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// Bytes of a packet at most.
    pub mtu: u32,
}

/// A guest's data disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDisk {
    /// Its file system's UUID, as `blkid` writes it.
    pub uuid: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Where it is mounted.
    pub mount: String,
}

/// What a guest that slept has to hear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// Who it should be.
    pub instance_id: String,
    /// Random bytes of the host.
    pub entropy: Entropy,
    /// The wall clock, in ns since 1970.
    pub clock_unix_ns: u64,
}

/// What a guest confirms, in the order in which it did it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// What was done, each read back.
    pub confirmed: Vec<Confirmed>,
    /// What failed, after which nothing else was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failure>,
}

impl Receipt {
    /// What was done beside or after it; what failed first counts.
    pub fn append(&mut self, other: Receipt) {
        self.confirmed.extend(other.confirmed);
        self.failed = self.failed.take().or(other.failed);
    }
}

/// One thing that a guest has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Confirmed {
    /// What: one of [`facts`].
    pub fact: String,
    /// What it reads back.
    #[serde(default)]
    pub value: String,
    /// How long it took, in ms.
    pub ms: f64,
}

/// What a guest could not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What.
    pub fact: String,
    /// Why not.
    pub why: String,
}

/// What a guest confirms.
pub mod facts {
    /// The host's randomness is mixed in. No value.
    pub const ENTROPY: &str = "entropy";
    /// The interface's MAC.
    pub const MAC: &str = "mac";
    /// Its address and prefix: `10.240.3.5/24`.
    pub const ADDRESS: &str = "address";
    /// The default route's gateway.
    pub const GATEWAY: &str = "gateway";
    /// The resolvers, separated by blanks.
    pub const DNS: &str = "dns";
    /// The interface's MTU.
    pub const MTU: &str = "mtu";
    /// The host's name.
    pub const HOSTNAME: &str = "hostname";
    /// `/etc/machine-id`.
    pub const MACHINE_ID: &str = "machine-id";
    /// The public half of its SSH host key, as in `known_hosts`.
    pub const HOST_KEY: &str = "host-key";
    /// Who may log in: how many keys.
    pub const SSH_KEYS: &str = "ssh-keys";
    /// The wall clock: ns since 1970.
    pub const CLOCK: &str = "clock";
    /// The data disk's UUID, once it is mounted.
    pub const DATA: &str = "data";
    /// The instance's id.
    pub const INSTANCE: &str = "instance";
    /// The secrets: [`crate::secrets::confirmation`] of what is there.
    pub const SECRETS: &str = "secrets";
    /// Who heard that they are others now, and what came of it.
    pub const TOLD: &str = "told";
    /// The workload is started; its pid, where it has one.
    pub const WORKLOAD: &str = "workload";
}

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// `KEY=VALUE`, on top of the guest's own.
    #[serde(default)]
    pub env: Vec<String>,
    /// Where it runs; the user's home where none is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; root where none is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Size>,
    /// Whether there will be input.
    #[serde(default)]
    pub stdin: bool,
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exited {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What was left out: devices, sockets, pipes, and names that are no UTF-8.
    pub skipped: u64,
}

/// How a guest is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who it is; nobody before Identify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Whether it takes nothing new, since it is about to sleep.
    #[serde(default)]
    pub draining: bool,
    /// Requests under way besides this one.
    #[serde(default)]
    pub under_way: u32,
    /// The guest kernel's id of this boot.
    #[serde(default)]
    pub boot_id: String,
    /// Since the guest booted, without the time it slept, in ms.
    #[serde(default)]
    pub uptime_ms: u64,
    /// What the workload says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Worker>,
    /// How long ago it said so, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_for_ms: Option<u64>,
    /// The workload's process.
    #[serde(default)]
    pub workload: WorkloadStatus,
    /// How often it was started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_restarts: Option<u32>,
}

/// What a workload says of itself, through `/run/mvm/worker-{ready,idle,busy}` or `/run/mvm/worker.sock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Worker {
    /// It is up.
    Ready,
    /// It has nothing to do.
    Idle,
    /// It is at work: a sleep waits for it.
    Busy,
}

/// A guest's own program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadStatus {
    /// There is none.
    #[default]
    None,
    /// Not before the guest knows who it is.
    Waiting,
    /// It runs.
    Running {
        /// Its pid in the guest.
        pid: u32,
        /// How often it was started again.
        restarts: u32,
    },
    /// It has ended, and is not started again.
    Ended(Exited),
    /// It could not be started.
    Failed {
        /// Why.
        why: String,
    },
}

/// What a guest uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Since the guest booted, without the time it slept, in ms.
    #[serde(default)]
    pub uptime_ms: u64,
    /// CPU time that it used since, of all vCPUs together, in ms.
    #[serde(default)]
    pub cpu_ms: u64,
    /// The average number of runnable processes in the last minute.
    #[serde(default)]
    pub load: f64,
    /// All memory, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Memory that a program could have, in bytes.
    #[serde(default)]
    pub memory_available_bytes: u64,
    /// Memory of the agent itself, in bytes.
    #[serde(default)]
    pub agent_bytes: u64,
    /// Processes.
    #[serde(default)]
    pub processes: u32,
    /// Size of the data disk's file system, in bytes; 0 where there is none.
    #[serde(default)]
    pub data_bytes: u64,
    /// What is used of it.
    #[serde(default)]
    pub data_used_bytes: u64,
    /// Bytes received.
    #[serde(default)]
    pub received_bytes: u64,
    /// Bytes sent.
    #[serde(default)]
    pub sent_bytes: u64,
}

/// A line that the workload printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, in ms since 1970.
    pub at_unix_ms: u64,
    /// Whether it is of its error output.
    #[serde(default)]
    pub errors: bool,
    /// The line, without its end; what is no UTF-8 is replaced.
    pub text: String,
}

/// What a guest did not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why, as a word.
    pub code: Code,
    /// Why, for people.
    pub why: String,
}

/// Why a guest refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// There is no version that both speak.
    Incompatible,
    /// It does not know the request.
    Unsupported,
    /// It is about to sleep.
    Draining,
    /// It does not know yet who it is.
    Unidentified,
    /// It is somebody else.
    OtherIdentity,
    /// It did not get ready in time.
    Busy,
    /// There is no such file or program.
    NotFound,
    /// It may not be run, read or written.
    Denied,
    /// Something else.
    Failed,
    /// A reason that this side does not know.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_version_adds_is_ignored_or_known_as_unknown() {
        let parse = |text: &str| serde_json::from_str::<Request>(text).unwrap();
        assert_eq!(parse(r#"{"request":"status","depth":3}"#), Request::Status {});
        assert_eq!(
            parse(r#"{"request":"sleep_prep","drain_ms":5,"why":"idle"}"#),
            Request::SleepPrep { drain_ms: 5 }
        );
        assert_eq!(parse(r#"{"request":"migrate","to":"node-2"}"#), Request::Unknown);
        let exec = r#"{"request":"exec","argv":["true"],"nice":3}"#;
        assert!(matches!(parse(exec), Request::Exec(exec) if exec.argv == ["true"] && !exec.stdin));
        let parse = |text: &str| serde_json::from_str::<Answer>(text).unwrap();
        assert_eq!(parse(r#"{"answer":"migrated"}"#), Answer::Unknown);
        let refused = parse(r#"{"answer":"refused","code":"on_fire","why":"it burns"}"#);
        assert!(matches!(refused, Answer::Refused(refused) if refused.code == Code::Other));
        assert_eq!(serde_json::from_str::<Input>(r#"{"input":"paste"}"#).unwrap(), Input::Unknown);
    }

    /// What an agent of version 1 sends stays understood.
    #[test]
    fn an_old_agents_answers_are_understood() {
        for text in [
            r#"{"answer":"status"}"#,
            r#"{"answer":"receipt","confirmed":[{"fact":"entropy","ms":0.1}]}"#,
            r#"{"answer":"ready"}"#,
            r#"{"answer":"exited","code":3}"#,
            r#"{"answer":"exited","signal":9}"#,
            r#"{"answer":"stats"}"#,
        ] {
            let answer: Answer = serde_json::from_str(text).unwrap();
            assert_ne!(answer, Answer::Unknown, "{text}");
        }
    }

    #[test]
    fn everything_survives_the_way() {
        let exec =
            Exec { argv: vec!["a".into()], terminal: Some(Size { rows: 1, columns: 2 }), ..Exec::default() };
        for request in [
            Request::Status {},
            Request::Exec(exec),
            Request::Logs { since_unix_ms: 3, follow: true },
            Request::Wake(Wake { instance_id: "i".into(), entropy: Entropy([7; 32]), clock_unix_ns: 1 }),
        ] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        }
        for answer in [Answer::Exited(Exited::Code(3)), Answer::Ready {}, Answer::Copied(Copied::default())] {
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
        }
    }

    #[test]
    fn randomness_is_in_no_log() {
        assert!(!format!("{:?}", Entropy([0x5a; 32])).contains("90"));
    }
}
