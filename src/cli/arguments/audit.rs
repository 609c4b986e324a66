//! Arguments of `mvm tenant audit` and `mvm node audit`.

use std::path::PathBuf;

use clap::Args;

/// What is wanted of a log: to see it, where nothing is said.
#[derive(Debug, Args)]
pub struct LogArguments {
    /// Check the chain of hashes from the first line to the head
    #[arg(long)]
    pub verify: bool,
    /// Also check that the log is still the one whose head was kept in this file
    #[arg(long, value_name = "FILE", requires = "verify", conflicts_with_all = ["head", "begin_anew"])]
    pub against: Option<PathBuf>,
    /// Check the log, and print number and hash of its last line, signed by this node, to keep elsewhere
    #[arg(long, conflicts_with = "verify")]
    pub head: bool,
    /// Give up a log that is broken or gone: the next one begins with a record that says so
    #[arg(long, conflicts_with_all = ["verify", "head"])]
    pub begin_anew: bool,
    /// Do not ask
    #[arg(long, requires = "begin_anew")]
    pub yes: bool,
}
