//! What is said of an audit log that is not what was written, and of heads that were kept.

use super::{CliError, Kind};
use crate::security::audit::{AuditError, kept::KeptError};

/// Where it is not known whose log it is.
const ANY_LOG: &str = "mvm tenant audit TENANT --begin-anew (of the node: mvm node audit --begin-anew)";

/// What can be done where a log is not what it was: its files from a copy, or this, which begins it anew.
pub fn restore_or(anew: &str) -> String {
    format!("put its files back from a copy; or {anew}, whose first record says what was lost")
}

impl From<&AuditError> for CliError {
    fn from(error: &AuditError) -> Self {
        match error {
            AuditError::Store(error) => error.into(),
            AuditError::Broken { .. }
            | AuditError::Missing { .. }
            | AuditError::Cut { .. }
            | AuditError::NoHead { .. }
            | AuditError::Gone { .. } => {
                Self::of(Kind::Failed, "audit_broken", error).fix(restore_or(ANY_LOG))
            }
            AuditError::Unsaid { source, .. } => Self::of(Kind::Failed, "audit_unsaid", error)
                .fix_then_recover(&(&**source).into(), "closes its line"),
            AuditError::Whole { .. } => Self::of(Kind::Refused, "audit_whole", error),
        }
    }
}

impl From<&KeptError> for CliError {
    fn from(error: &KeptError) -> Self {
        match error {
            KeptError::Audit(error) => error.into(),
            KeptError::NotAHead(_) => Self::of(Kind::Failed, "not_a_head", error)
                .fix("keep what mvm tenant audit TENANT --head --json prints, or mvm node audit --head --json"),
            KeptError::Forged(_) => Self::of(Kind::Failed, "head_forged", error)
                .fix("use another copy: somebody changed this one"),
            KeptError::OtherKey { .. } => Self::of(Kind::Failed, "head_other_key", error).fix(
                "mvm node info shows this node's key: another node signed it, or its node.key was lost and made anew",
            ),
            KeptError::NoKey { .. } => Self::of(Kind::Failed, "head_other_key", error)
                .fix("put node.key back from a copy: nothing else says that this node signed it"),
            KeptError::OtherLog { .. } => Self::of(Kind::Failed, "head_other_log", error),
            KeptError::BegunAnew { .. } => Self::of(Kind::Failed, "audit_begun_anew", error).fix(
                "ask who did that, and keep a new head; where nobody did, root on this node rewrote it: believe no line that nobody else kept",
            ),
            KeptError::Shorter { .. } | KeptError::Rewritten { .. } => {
                Self::of(Kind::Failed, "audit_rewritten", error)
                    .fix("believe no line of this log that nobody else kept: who did that was root on this node")
            }
        }
    }
}
