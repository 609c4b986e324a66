//! Arguments of `mvm instance …`.

use clap::Subcommand;

use super::DestroyArguments;
use crate::{
    net::egress::Port,
    vm::{
        instance::state::State,
        naming::{InstanceRef, PoolPath, TenantId},
    },
};

#[derive(Debug, Subcommand)]
pub enum InstanceCommand {
    /// Make an instance: a name, an address, a data disk; it does not run yet
    Create {
        /// TENANT/POOL
        pool: PoolPath,
        /// Reach a port of the guest on the host's own addresses; may be given again
        #[arg(long = "publish", value_name = "PROTOCOL:HOST-PORT:GUEST-PORT")]
        published: Vec<Port>,
    },
    /// List instances, of a tenant, of a pool, or of all
    List {
        /// TENANT, or TENANT/POOL
        #[arg(value_name = "TENANT[/POOL]")]
        scope: Option<Scope>,
    },
    /// Show an instance
    Info {
        /// TENANT/POOL/INSTANCE; a beginning of the id is enough
        instance: InstanceRef,
    },
    /// Say why an instance is in the state it is in, and what can be done
    Why {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
    },
    /// Boot an instance
    Start {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
    },
    /// Shut an instance down; after the pool's time for that it is killed
    Stop {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        /// Kill it at once
        #[arg(long)]
        force: bool,
    },
    /// Wait until an instance is in a state
    Wait {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        /// The state
        #[arg(long = "for", value_name = "STATE", default_value = "running")]
        state: State,
        /// How long, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
    },
    /// Show what an instance's VMM wrote
    Logs {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        /// Go on as more comes
        #[arg(short, long)]
        follow: bool,
    },
    /// Show what a guest printed
    Console {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        /// Go on as more comes
        #[arg(short, long)]
        follow: bool,
        /// Do not escape what could talk to the terminal
        #[arg(long)]
        raw: bool,
    },
    /// Show what instances use
    Stats {
        /// TENANT, TENANT/POOL; all, where nothing is named
        #[arg(value_name = "TENANT[/POOL]")]
        scope: Option<Scope>,
    },
    /// An instance's data disk
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Destroy an instance, in any state
    Destroy {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        #[command(flatten)]
        destroy: DestroyArguments,
    },
}

#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Make the data disk larger; a running guest sees it at its next start
    Grow {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        /// Its new size, in MiB
        #[arg(long, value_name = "MIB")]
        size: u64,
    },
}

/// A tenant, or one of its pools.
#[derive(Debug, Clone)]
pub struct Scope {
    pub tenant: TenantId,
    pub pool: Option<PoolPath>,
}

impl std::str::FromStr for Scope {
    type Err = crate::vm::naming::NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('/') {
            let pool: PoolPath = text.parse()?;
            return Ok(Self { tenant: pool.tenant.clone(), pool: Some(pool) });
        }
        Ok(Self { tenant: text.parse()?, pool: None })
    }
}
