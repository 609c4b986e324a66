//! Arguments of `mvm net …`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum NetCommand {
    /// Compare the kernel's network with what it should be
    Verify,
    /// Make the kernel's network what it should be
    Repair,
}
