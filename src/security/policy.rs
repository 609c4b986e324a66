//! What a person may ask of a VMM's seccomp filter.

use serde::{Deserialize, Serialize};

/// Which filter a VMM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SeccompPolicy {
    /// Firecracker's own.
    Baseline,
    /// A tighter one of mvm's.
    Strict,
}

impl std::fmt::Display for SeccompPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            SeccompPolicy::Baseline => "baseline",
            SeccompPolicy::Strict => "strict",
        })
    }
}
