//! The files in a guest's root that say what it runs: written by who makes an image, read by the agent. Does no I/O.

use serde::{Deserialize, Serialize};

/// [`Workload::FILE`] in a guest: what it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The version of this file's form: [`Workload::VERSION`].
    pub schema_version: u32,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// `KEY=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Where it runs.
    #[serde(default)]
    pub cwd: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; root where it is empty.
    #[serde(default)]
    pub user: String,
    /// Whether it is started again.
    #[serde(default)]
    pub restart: Restart,
    /// How it is asked to end: a signal's number.
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
}

impl Workload {
    /// Where it lies, in the guest's root.
    pub const FILE: &str = "/etc/mvm/workload.json";
    /// The version of its form that is known.
    pub const VERSION: u32 = 1;
}

fn sigterm() -> i32 {
    15
}

/// Whether a workload that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It is not.
    #[default]
    Never,
    /// Where it ended otherwise than with 0.
    OnFailure,
    /// Always.
    Always,
}

/// `/etc/mvm/console.json` in a guest: what root finds on its console once the guest knows who it is. Started again whenever
/// it has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// The version of this file's form: 1.
    pub schema_version: u32,
    /// The program and its arguments: `["/bin/bash", "-l"]`.
    pub argv: Vec<String>,
    /// `KEY=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
}
