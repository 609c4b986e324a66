//! Arguments of `mvm node …`.

use clap::{Subcommand, ValueEnum};

use super::audit::LogArguments;

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Show the node's id and limits
    Info,
    /// Show what is in use
    Stats,
    /// Change one of the node's settings
    #[command(subcommand)]
    Set(Setting),
    /// Show the audit log of what was done to the node itself
    Audit(LogArguments),
    /// Drop files that nobody refers to
    Gc {
        /// Also read every snapshot, and say which are not what was written
        #[arg(long)]
        scrub: bool,
    },
    /// Settle what was cut off, adopt what runs, reclaim what belongs to nobody
    Recover,
}

/// A setting of the node.
#[derive(Debug, Subcommand)]
pub enum Setting {
    /// Memory for guests and their VMMs, in MiB
    MemMib {
        /// A number, or auto: what the machine has, less the floor
        #[arg(value_parser = parse_limit)]
        mib: Limit,
    },
    /// Memory that stays with the host, in MiB, where mem-mib is auto
    MemFloorMib {
        /// A number
        mib: u64,
    },
    /// VMMs at one time
    MaxVms {
        /// A number
        number: u32,
    },
    /// Free disk space below which nothing new is made, in MiB
    DiskFloorMib {
        /// A number
        mib: u64,
    },
    /// Refuse what is only for trying out
    Production {
        /// on or off
        switch: Switch,
    },
    /// Let production go without encrypted storage
    PlainStorageWaiver {
        /// on or off
        switch: Switch,
    },
    /// A label, for who places work on nodes
    Label {
        /// KEY=VALUE; an empty value removes it
        #[arg(value_name = "KEY=VALUE", value_parser = super::parse_label)]
        label: (String, String),
    },
}

/// A limit, or none of one's own.
pub type Limit = Option<u64>;

fn parse_limit(text: &str) -> Result<Limit, String> {
    match text {
        "auto" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| format!("{text:?} is neither a number nor auto")),
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    Off,
}
