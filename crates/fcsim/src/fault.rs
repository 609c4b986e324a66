//! Faults and latencies on request: what a test of a Firecracker manager needs and the real thing does not offer.
//!
//! Read once at start from `FCSIM_FAULTS` (JSON) or the file named by `FCSIM_FAULTS_FILE`; the README documents them.

use std::{path::PathBuf, sync::Mutex, time::Duration};

use serde::Deserialize;

use crate::http::{Method, Request, Response};

/// All that can be asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Faults {
    /// Faults of single requests; the first that matches is taken.
    pub requests: Vec<RequestFault>,
    /// Added to each request.
    pub delay_ms: u64,
    /// What `vmm_version` says.
    pub version: Option<String>,
    /// The process ends with `exit_code` after so many milliseconds.
    pub exit_after_ms: Option<u64>,
    pub exit_code: i32,
    /// Waits before the guest's first byte.
    pub boot_delay_ms: u64,
    /// The guest prints nothing and answers nothing.
    pub boot_never: bool,
    /// The guest ignores SendCtrlAltDel.
    pub ignore_ctrl_alt_del: bool,
    /// One bit of memory is wrong after a load.
    pub corrupt_memory_on_load: bool,
    /// The guest has a balloon driver and one for hot-pluggable memory.
    pub memory_drivers: bool,
    /// After a pause and a resume with no snapshot in between every vsock connection hangs, as in Firecracker up to
    /// 1.16.1 with a Linux guest.
    pub vsock_dies_after_pause: bool,
    /// Seed of the guest's memory.
    pub seed: Option<u64>,
    /// The guest finds this in place of its data disk.
    pub data_disk: Option<PathBuf>,
    /// What is wrong with the guest's agent.
    pub agent: Option<AgentFault>,
}

/// What is wrong with a guest's agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AgentFault {
    /// It takes connections, and says nothing.
    Silent,
    /// It says what is no frame.
    Garbage,
    /// It says a frame that is as long as any, again and again.
    Flood,
    /// It speaks other versions of the protocol only: the oldest and the newest.
    Versions(u32, u32),
    /// It does not do this, and says that it did.
    Skip(String),
    /// It cannot do this.
    Fail(String),
    /// It confirms this with another value.
    Lie(String, String),
    /// It answers this request, by its name on the wire, with what is said here.
    Hostile {
        request: String,
        #[serde(default)]
        says: Vec<Said>,
        /// Afterwards, again and again. Where there is nothing, it is silent.
        #[serde(default)]
        again: Vec<Said>,
    },
}

/// What a hostile agent says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    /// A message; in its text, `{n}` is how often it said something.
    Message(serde_json::Value),
    /// A frame of data: so many zeros.
    Data(usize),
    /// Bytes as they are.
    Raw(String),
    /// Nothing more, and it reads nothing more either.
    Deaf,
}

/// A fault of one request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestFault {
    /// GET, PUT, PATCH or DELETE; any where left out.
    pub method: Option<String>,
    /// The path, or its beginning where it ends in `*`.
    pub path: String,
    /// Matches only from the n-th such request on (the first is 1).
    #[serde(default = "one")]
    pub nth: u64,
    /// Matches at most so many times.
    pub times: Option<u64>,
    #[serde(default)]
    pub delay_ms: u64,
    #[serde(default)]
    pub effect: Option<Effect>,
    #[serde(skip)]
    seen: Mutex<u64>,
}

fn one() -> u64 {
    1
}

/// What happens instead of, or after, serving a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Effect {
    /// SIGKILL before the request is looked at.
    DieBefore,
    /// SIGKILL once the request has had its effect, before it is answered.
    DieDuring,
    /// SIGKILL once the answer was delivered.
    DieAfter,
    /// Never answers, and serves nobody else any more.
    Hang,
    /// Answers this without looking at the request.
    Answer { status: u16, fault_message: String },
    /// Answers this once the request has had its effect.
    AnswerAfter { status: u16, fault_message: String },
}

/// Faults that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FaultsError {
    #[error("FCSIM_FAULTS_FILE {0:?}: {1}")]
    File(PathBuf, std::io::Error),
    #[error("faults: {0}")]
    Json(#[from] serde_json::Error),
}

impl Faults {
    /// Reads them from the environment.
    pub(crate) fn from_env() -> Result<Self, FaultsError> {
        let text = match (std::env::var("FCSIM_FAULTS"), std::env::var_os("FCSIM_FAULTS_FILE")) {
            (Ok(text), _) => text,
            (Err(_), Some(path)) => {
                std::fs::read_to_string(&path).map_err(|error| FaultsError::File(path.into(), error))?
            }
            (Err(_), None) => return Ok(Self::default()),
        };
        Ok(serde_json::from_str(&text)?)
    }

    /// The fault of this request, if it has one: waits as asked and counts it.
    pub(crate) fn of(&self, request: &Request) -> Option<Effect> {
        std::thread::sleep(Duration::from_millis(self.delay_ms));
        let fault = self.requests.iter().find(|fault| fault.matches(request.method, &request.path))?;
        std::thread::sleep(Duration::from_millis(fault.delay_ms));
        fault.effect.clone()
    }
}

impl RequestFault {
    fn matches(&self, method: Method, path: &str) -> bool {
        let same_path = match self.path.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None => path == self.path,
        };
        if !same_path || self.method.as_ref().is_some_and(|wanted| *wanted != method.to_string()) {
            return false;
        }
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *seen += 1;
        let last = self.times.map_or(u64::MAX, |times| self.nth.saturating_add(times).saturating_sub(1));
        (self.nth..=last).contains(&*seen)
    }
}

impl Effect {
    /// The answer that is given in place of serving the request.
    pub(crate) fn answer(&self) -> Option<Response> {
        match self {
            Self::Answer { status, fault_message } => Some(crate::api::fault(*status, fault_message)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_matches_from_the_nth_request_on() {
        let text =
            r#"{"requests":[{"method":"PUT","path":"/snapshot/*","nth":2,"times":1,"effect":"die_before"}]}"#;
        let faults: Faults = serde_json::from_str(text).unwrap();
        let put = Request { method: Method::Put, path: "/snapshot/create".into(), body: None };
        let get = Request { method: Method::Get, path: "/snapshot/create".into(), body: None };
        assert_eq!(faults.of(&get), None);
        assert_eq!(faults.of(&put), None);
        assert_eq!(faults.of(&put), Some(Effect::DieBefore));
        assert_eq!(faults.of(&put), None);
    }

    #[test]
    fn an_unknown_fault_is_refused() {
        assert!(serde_json::from_str::<Faults>(r#"{"delay":1}"#).is_err());
    }
}
