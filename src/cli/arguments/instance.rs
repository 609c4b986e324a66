//! Arguments of `mvm instance …`.

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};

use super::{
    DestroyArguments,
    guest::{CopyArguments, ExecArguments, SshArguments},
};
use crate::{
    net::egress::Port,
    vm::{
        instance::state::State,
        naming::{InstanceRef, NameError, PoolPath, Scope},
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
    /// Pause an instance: it keeps its memory and does nothing
    Warm {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
    },
    /// Let a warm instance go on
    Resume {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
    },
    /// Put an instance to sleep: its memory goes to disk, its VMM goes
    Sleep {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        /// Do not wait for the guest to get ready; one without an agent is never asked
        #[arg(long)]
        force: bool,
    },
    /// Wake an instance: its guest goes on where it was
    Wake {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        /// Also where a disk was touched or put back from a copy; it must hold what it held
        #[arg(long)]
        force: bool,
    },
    /// Compress what a sleeping instance takes on the disk; its next wake takes longer
    Archive {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
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
    /// Run a command in a guest; its exit code is this one's
    Exec(ExecArguments),
    /// Copy files to a guest, or from it
    ///
    /// A file takes the place of a file; nothing else is ever replaced. Links are copied as links and never followed, devices,
    /// sockets and pipes are left out, setuid and setgid bits are dropped. What is not whole at the end is not there.
    Cp(CopyArguments),
    /// Log in to a guest: this process becomes ssh
    Ssh(SshArguments),
    /// Show what a guest's workload printed; without an agent, what its VMM wrote
    Logs {
        /// TENANT/POOL/INSTANCE
        instance: InstanceRef,
        /// Only lines from then on: a time (RFC 3339), or how long ago (10m, 1h30m)
        #[arg(long, value_name = "TIME")]
        since: Option<Since>,
        /// Go on as more comes
        #[arg(short, long)]
        follow: bool,
        /// Say when each line was printed
        #[arg(short, long, conflicts_with = "vmm")]
        timestamps: bool,
        /// What the VMM wrote
        #[arg(long)]
        vmm: bool,
    },
    /// Show what a guest printed, and type on its console
    ///
    /// On a terminal every key goes to the guest, and Ctrl-] leaves. What comes through a pipe or from a file goes to the
    /// guest too; then what it prints from then on is shown, until it is quiet for a second. Otherwise (--print, --follow,
    /// or stdin is /dev/null) what was printed is shown.
    Console(ConsoleArguments),
    /// Show what instances use; of one also what its guest says
    Stats {
        /// TENANT, TENANT/POOL, TENANT/POOL/INSTANCE; all, where nothing is named
        #[arg(value_name = "TENANT[/POOL[/INSTANCE]]")]
        of: Option<StatsOf>,
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

/// Whose usage is asked for.
#[derive(Debug, Clone)]
pub enum StatsOf {
    /// Of a tenant or a pool.
    Scope(Scope),
    /// Of one.
    Instance(InstanceRef),
}

impl std::str::FromStr for StatsOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.matches('/').count() {
            0 | 1 => text.parse().map(Self::Scope).map_err(|error: NameError| error.to_string()),
            _ => text.parse().map(Self::Instance).map_err(|error: NameError| error.to_string()),
        }
    }
}

#[derive(Debug, Args)]
pub struct ConsoleArguments {
    /// TENANT/POOL/INSTANCE
    pub instance: InstanceRef,
    /// Only show, and go on as more comes
    #[arg(short, long)]
    pub follow: bool,
    /// Only show what there is, also on a terminal
    #[arg(long, conflicts_with = "follow")]
    pub print: bool,
    /// Do not escape what could talk to the terminal
    #[arg(long)]
    pub raw: bool,
    /// Go on until the guest has printed this; no end in sight is a failure
    #[arg(long, value_name = "TEXT")]
    pub until: Option<String>,
    /// How long to wait for that, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "until")]
    pub timeout: u64,
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

/// A time, or how long ago it was.
#[derive(Debug, Clone, Copy)]
pub enum Since {
    /// That time.
    At(Timestamp),
    /// So long ago.
    Ago(SignedDuration),
}

impl Since {
    /// The time that is meant, seen from `now`.
    pub fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Since::At(at) => at,
            Since::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }
}

impl std::str::FromStr for Since {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.parse().map(Since::At).ok();
        let ago = || text.parse::<SignedDuration>().ok().filter(|ago| !ago.is_negative()).map(Since::Ago);
        at.or_else(ago).ok_or_else(|| {
            format!("{text:?} is neither a time (2026-01-02T03:04:05Z) nor how long ago it was (10m, 1h30m)")
        })
    }
}
