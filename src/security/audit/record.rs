//! A line of the log: what it says, and how it is sealed by its hash. Pure.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::NODE;
use crate::infra::{config::Actor, text::hex};

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is about to have effects.
    Intent,
    /// It is done.
    Done,
    /// It failed, and what it did was undone.
    Failed,
    /// It was cut off, and what it did was undone or finished by a later command.
    Recovered,
    /// It happened by itself.
    Observed,
}

/// What a record says: who did what to what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// `instance.start`, `tenant.create`, …
    pub what: String,
    /// The path of what it was done to.
    pub path: String,
    /// Where it stands.
    pub phase: Phase,
    /// The state before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The state after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The revision, where one is involved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Who it is on the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// A hash of everything that its VMM was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,
    /// The number of the intent whose outcome this is, where its own process has not written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closes: Option<u64>,
    /// What else there is to say: the error, for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What an instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub mem_mib: u64,
    /// Its data disk, in MiB.
    pub data_disk_mib: u64,
}

/// Who an instance is on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its TAP.
    pub tap_dev: String,
    /// Its MAC.
    pub mac: String,
    /// Its address.
    pub guest_ip: Ipv4Addr,
}

impl Entry {
    /// An entry without states.
    pub fn new(what: impl Into<String>, path: impl ToString, phase: Phase) -> Self {
        let (what, path) = (what.into(), path.to_string());
        Self {
            what,
            path,
            phase,
            from: None,
            to: None,
            revision: None,
            limits: None,
            network: None,
            config_hash: None,
            closes: None,
            detail: None,
        }
    }
}

/// A line of the log, without its own hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub who: Actor,
    /// What.
    #[serde(flatten)]
    pub entry: Entry,
    /// The hash of the line before; 64 zeros for the first.
    pub prev: String,
}

impl Record {
    /// Does it belong to the log of this tenant? What is the node's is under the node's id.
    pub(super) fn is_of(&self, tenant: &str) -> bool {
        let whose = self.entry.path.split('/').next().unwrap_or_default();
        whose == tenant || tenant == NODE && whose.starts_with("node-")
    }
}

/// What the first line follows from.
pub(super) fn nothing() -> String {
    "0".repeat(64)
}

/// A record as its line, and the line's hash.
pub(super) fn seal(record: &Record) -> serde_json::Result<(String, String)> {
    let body = serde_json::to_string(record)?;
    let hash = hex(&Sha256::digest(body.as_bytes()));
    let open = body.strip_suffix('}').unwrap_or(&body);
    Ok((format!("{open},\"hash\":\"{hash}\"}}\n"), hash))
}

/// Checks one line, without its end, against its own hash and the one before.
pub(super) fn unseal(line: &[u8], prev: &str) -> Result<(Record, String), &'static str> {
    let line = str::from_utf8(line).map_err(|_| "it is not text")?;
    let (open, hash) = line.rsplit_once(",\"hash\":\"").ok_or("it has no hash")?;
    let hash = hash.strip_suffix("\"}").ok_or("it has no hash")?;
    let body = format!("{open}}}");
    if hex(&Sha256::digest(body.as_bytes())) != hash {
        return Err("its hash does not fit its content");
    }
    let record: Record = serde_json::from_str(&body).map_err(|_| "it is no record")?;
    if record.prev != prev {
        return Err("it does not follow from the line before");
    }
    Ok((record, hash.to_owned()))
}
