//! What a guest's signals mean for mvm: the workload's own word (`/run/mvm/worker-{ready,idle,busy}`), and how its process is.
//! Does no I/O.
//!
//! A guest may say anything. What it says is bounded and made printable here, and counts for nothing but itself: a time that
//! cannot be is unknown, and never put right.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use mvm_proto::message::{Exited, Status, Worker, WorkloadStatus};
use serde::Serialize;

use crate::infra::text::printable;

/// Characters of a guest's text at most.
const MOST: usize = 400;

/// How a guest is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signals {
    /// What its workload says of itself; `None` where it has said nothing.
    pub worker: Option<Said>,
    /// The workload's process.
    pub workload: Workload,
    /// Since when there is nothing to do; `None` where there is something, or it is not known since when.
    pub idle_since: Option<Timestamp>,
    /// Whether it takes nothing new, since it is about to sleep.
    pub draining: bool,
    /// Commands and copies under way.
    pub under_way: u32,
}

/// A workload's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Said {
    /// The word.
    pub state: Worker,
    /// When it was said; `None` where that is not known.
    pub since: Option<Timestamp>,
}

/// A workload's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Workload {
    /// The guest has none.
    None,
    /// The guest does not know yet who it is.
    Waiting,
    /// It runs.
    Running {
        /// Its pid in the guest.
        pid: u32,
        /// How often it was started again.
        restarts: u32,
    },
    /// It has ended, and is not started again.
    Ended {
        /// How.
        #[serde(flatten)]
        how: Exited,
        /// How often it was started again; `None` where that is not known.
        restarts: Option<u32>,
    },
    /// It does not run, and may be started again.
    Failed {
        /// What the guest says of it.
        why: String,
        /// How often it was started again; `None` where that is not known.
        restarts: Option<u32>,
    },
}

/// The guest that answers is another one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    /// It says that it is somebody else.
    #[error("the guest says that it is {said}")]
    Other {
        /// Who.
        said: String,
    },
    /// It does not know who it is.
    #[error("the guest does not know yet who it is")]
    Nobody,
}

/// What a status means that the guest of this instance gave at `now`; nothing in it is older than `made`.
///
/// # Errors
/// Where it is the status of another one.
pub fn understand(
    status: Status,
    instance_id: &str,
    now: Timestamp,
    made: Timestamp,
) -> Result<Signals, HookError> {
    match status.instance_id {
        None => return Err(HookError::Nobody),
        Some(said) if said != instance_id => return Err(HookError::Other { said: printable(&said, MOST) }),
        Some(_) => {}
    }
    let since = |ms: u64| {
        let before = SignedDuration::from_millis(i64::try_from(ms).ok()?);
        now.checked_sub(before).ok().filter(|since| *since >= made)
    };
    let worker = status.worker.map(|state| Said { state, since: status.worker_for_ms.and_then(since) });
    let restarts = status.workload_restarts;
    let workload = match status.workload {
        WorkloadStatus::None => Workload::None,
        WorkloadStatus::Waiting => Workload::Waiting,
        WorkloadStatus::Running { pid, restarts } => Workload::Running { pid, restarts },
        WorkloadStatus::Ended(how) => Workload::Ended { how, restarts },
        WorkloadStatus::Failed { why } => Workload::Failed { why: printable(&why, MOST), restarts },
    };
    let idle_since = match worker {
        Some(Said { state: Worker::Idle, since }) if status.under_way == 0 => since,
        _ => None,
    };
    Ok(Signals { worker, workload, idle_since, draining: status.draining, under_way: status.under_way })
}

/// A word, as a workload says it.
pub fn word(worker: Worker) -> &'static str {
    match worker {
        Worker::Ready => "ready",
        Worker::Idle => "idle",
        Worker::Busy => "busy",
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = match self {
            Self::None => return f.write_str("none"),
            Self::Waiting => return f.write_str("not started yet"),
            Self::Running { pid, restarts } => {
                write!(f, "running as pid {pid}")?;
                Some(*restarts)
            }
            Self::Ended { how: Exited::Code(code), restarts } => {
                write!(f, "ended with code {code}")?;
                *restarts
            }
            Self::Ended { how: Exited::Signal(signal), restarts } => {
                write!(f, "ended by signal {signal}")?;
                *restarts
            }
            Self::Failed { why, restarts } => {
                write!(f, "not running: {why}")?;
                *restarts
            }
        };
        match again {
            None => f.write_str(", restarts unknown"),
            Some(0) => Ok(()),
            Some(1) => f.write_str(", restarted once"),
            Some(times) => write!(f, ", restarted {times} times"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "i-0f3a91c2";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn status(worker: Option<Worker>, worker_for_ms: Option<u64>) -> Status {
        Status { instance_id: Some(ID.into()), worker, worker_for_ms, ..Status::default() }
    }

    fn signals(status: Status) -> Signals {
        understand(status, ID, at(1_000), at(900)).unwrap()
    }

    #[test]
    fn a_word_is_as_old_as_it_can_be_or_its_age_is_unknown() {
        for (ms, since) in [
            (Some(0), Some(at(1_000))),
            (Some(40_000), Some(at(960))),
            (Some(100_000), Some(at(900))),
            (Some(100_001), None),
            (Some(u64::MAX), None),
            (Some(i64::MAX as u64), None),
            (None, None),
        ] {
            let said = signals(status(Some(Worker::Busy), ms)).worker.unwrap();
            assert_eq!(said, Said { state: Worker::Busy, since }, "{ms:?}");
        }
        assert_eq!(signals(status(None, Some(3))).worker, None);
    }

    #[test]
    fn idle_is_who_says_so_and_has_nothing_under_way() {
        let idle = status(Some(Worker::Idle), Some(10_000));
        assert_eq!(signals(idle.clone()).idle_since, Some(at(990)));
        assert_eq!(signals(Status { under_way: 1, ..idle.clone() }).idle_since, None);
        assert_eq!(signals(Status { worker_for_ms: None, ..idle }).idle_since, None);
        for other in [None, Some(Worker::Ready), Some(Worker::Busy)] {
            assert_eq!(signals(status(other, Some(10_000))).idle_since, None, "{other:?}");
        }
    }

    #[test]
    fn another_guests_status_is_no_status() {
        let said = |id: Option<&str>| {
            let status = Status { instance_id: id.map(str::to_owned), ..Status::default() };
            understand(status, ID, at(1), at(0)).unwrap_err()
        };
        assert_eq!(said(None), HookError::Nobody);
        assert_eq!(said(Some("i-\x1b[2J")).to_string(), "the guest says that it is i-\\u{1b}[2J");
        let long = said(Some(&"x".repeat(9_000))).to_string();
        assert!(long.len() < 500, "{long}");
    }

    #[test]
    fn how_a_workload_is_in_words() {
        let shown = |workload: WorkloadStatus, restarts: Option<u32>| {
            signals(Status { workload, workload_restarts: restarts, ..status(None, None) })
                .workload
                .to_string()
        };
        assert_eq!(shown(WorkloadStatus::None, None), "none");
        assert_eq!(shown(WorkloadStatus::Waiting, None), "not started yet");
        assert_eq!(
            shown(WorkloadStatus::Running { pid: 7, restarts: 2 }, None),
            "running as pid 7, restarted 2 times"
        );
        assert_eq!(shown(WorkloadStatus::Ended(Exited::Code(3)), Some(0)), "ended with code 3");
        assert_eq!(
            shown(WorkloadStatus::Ended(Exited::Signal(9)), None),
            "ended by signal 9, restarts unknown"
        );
        let why = format!("\x1b[2J\n{}", "x".repeat(9_000));
        let failed = shown(WorkloadStatus::Failed { why }, Some(1));
        assert!(failed.starts_with("not running: \\u{1b}[2J\\u{a}xx"), "{failed}");
        assert!(failed.len() < 600 && failed.ends_with("…, restarted once"), "{failed}");
    }
}
