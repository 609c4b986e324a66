//! What protects tenants from each other and makes what happened provable.

pub mod audit;
pub mod cgroups;
pub mod jailer;
pub mod master_key;
pub mod metadata;
pub mod node_key;
pub mod policy;
pub mod sealing;
pub mod seccomp;
pub mod storage;
pub mod users;

use std::fmt;

/// What a VMM runs without that would protect others from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// A jail.
    Jail,
    /// A cgroup that limits it.
    Limits,
    /// A seccomp filter that is more than an empty one.
    Filter,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jail => f.write_str("no jail"),
            Self::Limits => f.write_str("no limits"),
            Self::Filter => f.write_str("no seccomp filter"),
        }
    }
}
