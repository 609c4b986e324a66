//! Arguments of `mvm node …`.

use clap::{Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Show the node's id and limits
    Info,
    /// Show what is in use
    Stats,
    /// Change the node's limits
    Set {
        /// Memory for guests and their VMMs, in MiB
        #[arg(long, value_name = "MIB")]
        mem_mib: Option<u64>,
        /// Memory that stays with the host, in MiB, where --mem-mib is not set
        #[arg(long, value_name = "MIB")]
        mem_floor_mib: Option<u64>,
        /// VMMs at one time
        #[arg(long, value_name = "N")]
        max_vms: Option<u32>,
        /// Free disk space below which nothing new is made, in MiB
        #[arg(long, value_name = "MIB")]
        disk_floor_mib: Option<u64>,
        /// Refuse what is only for trying out
        #[arg(long, value_name = "on|off")]
        production: Option<Switch>,
    },
    /// Drop files that nobody refers to
    Gc,
    /// Settle what was cut off, adopt what runs, reclaim what belongs to nobody
    Recover,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    Off,
}
