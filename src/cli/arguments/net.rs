//! Arguments of `mvm net …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum NetCommand {
    /// Compare the kernel's network with what it should be
    Verify(VerifyCommand),
    /// Make the kernel's network what it should be
    Repair,
}

#[derive(Debug, Args)]
pub struct VerifyCommand {
    /// Send packets too, from two free addresses of each tenant: what must pass, and what must not
    #[arg(long)]
    pub deep: bool,
    /// Write the report, as JSON, to this file too
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}
