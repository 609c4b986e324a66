//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;

use crate::infra::config::DEFAULT_ROOT;

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The folder that holds all state
    #[arg(long, global = true, env = "MVM_ROOT", default_value = DEFAULT_ROOT, value_name = "DIR", hide_env_values = true)]
    pub root: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Print only what was asked for and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Print more: steps and their times, all causes of an error
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// No colours
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// Destroying asks first.
#[derive(Debug, Clone, Args)]
pub struct DestroyArguments {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Also remove data disks; without this they are kept, or their loss is refused
    #[arg(long)]
    pub wipe_volumes: bool,
}
