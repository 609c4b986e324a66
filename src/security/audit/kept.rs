//! Heads that somebody else keeps: signed by the node, and what a log is held against later. Root can rewrite a log and its
//! head together, but not what is kept elsewhere.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AuditError, NODE, Place, Verified, anew::ANEW, records, verify::verify_asking};
use crate::{
    infra::config::Roots,
    security::node_key::{self, NodeKey, NotSigned},
    store::Schema,
};

/// What says that it is a head, and not something else that the node signed.
const KIND: &str = "mvm-audit-head";

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whose {
    /// The node's id.
    pub node_id: String,
    /// The tenant, or [`super::NODE`].
    pub tenant_id: String,
    /// When the tenant was made: another one of the same name has another log. Of the node it is the epoch.
    pub tenant_created_at: Timestamp,
}

/// A log's last line, as it was at some time. Signed, it is a JSON object with `key_id`, `public_key` and `signature` besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptHead {
    kind: String,
    /// The version of its form.
    pub schema_version: Schema<1>,
    /// Whose log it is.
    #[serde(flatten)]
    pub whose: Whose,
    /// How many lines the log had.
    pub count: u64,
    /// The hash of the last one.
    pub hash: String,
    /// When that was.
    pub at: Timestamp,
}

/// Why a kept head cannot be used, or what it shows.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It is something else.
    #[error("it is no head of an audit log: {0}")]
    NotAHead(#[source] serde_json::Error),
    /// It is not what a node signed.
    #[error("the kept head is not to be believed: {0}")]
    Forged(#[from] NotSigned),
    /// Another key signed it.
    #[error("the kept head was signed with the key {theirs}, and this node's is {ours}, made at {made_at}")]
    OtherKey {
        /// The id of that key.
        theirs: String,
        /// The id of this node's.
        ours: String,
        /// When this node's was made.
        made_at: Timestamp,
    },
    /// This node has no key.
    #[error("the kept head was signed with the key {theirs}, and this node has none")]
    NoKey {
        /// The id of that key.
        theirs: String,
    },
    /// It is of another log.
    #[error("the kept head is of {theirs}, and this log is of {ours}")]
    OtherLog {
        /// What it is of.
        theirs: String,
        /// What the log is of.
        ours: String,
    },
    /// The log is shorter than it was.
    #[error(
        "the audit log was cut and rewritten: it ends with record {records}, and had record {kept} at {at}"
    )]
    Shorter {
        /// Its records.
        records: u64,
        /// Those that it had.
        kept: u64,
        /// When the head was kept.
        at: Timestamp,
    },
    /// A line is not what it was.
    #[error("the audit log was rewritten: record {record} has the hash {is}, and had {was} at {at}")]
    Rewritten {
        /// The record.
        record: u64,
        /// Its hash.
        is: String,
        /// The hash that it had.
        was: String,
        /// When the head was kept.
        at: Timestamp,
    },
    /// The log of that time was given up, or that is what somebody wants believed.
    #[error(
        "the kept head is not of this log, whose first line says that it was begun anew at {began}: {why}"
    )]
    BegunAnew {
        /// When, as that says.
        began: Timestamp,
        /// What its first line says of that.
        why: String,
    },
    /// The log itself is broken.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl Whose {
    fn describe(&self) -> String {
        match self.tenant_id.as_str() {
            NODE => format!("the settings of {}", self.node_id),
            tenant => format!("{tenant} on {}, made at {}", self.node_id, self.tenant_created_at),
        }
    }
}

impl KeptHead {
    /// The head of a log that was verified at this moment.
    pub fn of(whose: Whose, verified: &Verified, at: Timestamp) -> Self {
        let (count, hash) = (verified.records, verified.hash.clone());
        Self { kind: KIND.to_owned(), schema_version: Schema, whose, count, hash, at }
    }

    /// It, signed.
    ///
    /// # Errors
    /// When it cannot be made into JSON.
    pub fn sign(&self, key: &NodeKey) -> serde_json::Result<Value> {
        let fields = serde_json::to_value(self)?;
        Ok(key.sign(fields.as_object().cloned().unwrap_or_default()))
    }

    /// Reads one that this node signed.
    ///
    /// # Errors
    /// [`KeptError`] says why it is not to be believed.
    pub fn read(text: &[u8], key: Option<&NodeKey>) -> Result<Self, KeptError> {
        let document: Value = serde_json::from_slice(text).map_err(KeptError::NotAHead)?;
        let head: Self = serde_json::from_value(document.clone()).map_err(KeptError::NotAHead)?;
        if head.kind != KIND {
            return Err(KeptError::NotAHead(serde::de::Error::custom(format!("its kind is not {KIND}"))));
        }
        let signer = node_key::check(&document)?;
        let theirs = document["key_id"].as_str().unwrap_or_default().to_owned();
        match key.map(NodeKey::public) {
            Some(ours) if signer == ours.public_key => Ok(head),
            Some(ours) => Err(KeptError::OtherKey { theirs, ours: ours.key_id, made_at: ours.made_at }),
            None => Err(KeptError::NoKey { theirs }),
        }
    }

    /// Holds the log in a tenant's folder against it.
    ///
    /// # Errors
    /// [`KeptError`] where the log is broken, or is not the one that it was.
    pub fn hold_against(&self, roots: &Roots, folder: &Path, whose: &Whose) -> Result<Verified, KeptError> {
        if self.whose != *whose {
            return Err(KeptError::OtherLog { theirs: self.whose.describe(), ours: whose.describe() });
        }
        let verified = verify_asking(roots, &whose.tenant_id, folder, &[self.count])?;
        let is = verified.asked.get(&self.count);
        if is != Some(&self.hash)
            && let Some(first) =
                records(folder, Place::default()).map_err(AuditError::from)?.0.into_iter().next()
            && first.entry.what == ANEW
            && first.at >= self.at
        {
            let why = first.entry.detail.unwrap_or_default();
            return Err(KeptError::BegunAnew { began: first.at, why });
        }
        match is {
            Some(is) if *is == self.hash => Ok(verified),
            Some(is) => Err(KeptError::Rewritten {
                record: self.count,
                is: is.clone(),
                was: self.hash.clone(),
                at: self.at,
            }),
            None => Err(KeptError::Shorter { records: verified.records, kept: self.count, at: self.at }),
        }
    }
}
