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
    /// Write what was found to this file too, with what keeps the VMMs that run to themselves, as JSON that is signed with the
    /// node's key
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// In place of all that: say who signed a report, and whether it is still what was signed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["deep", "report"])]
    pub check_report: Option<PathBuf>,
}
