//! Arguments, a file per command group: what can be typed, and what it becomes. No effects, on every platform.

pub mod audit;
pub mod demo;
pub mod events;
pub mod guest;
pub mod image;
pub mod instance;
pub mod net;
pub mod node;
pub mod pool;
pub mod tenant;
pub mod vmm;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Runs fleets of Firecracker microVMs for many tenants.
#[derive(Debug, Parser)]
#[command(name = "mvm", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What is asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what mvm does, with real packets, in a throw-away root and network namespace
    Demo(demo::DemoCommand),
    /// Run a command in a microVM of its own, which is gone afterwards
    ///
    /// Its pools are --insecure: where this machine has no jail, no limits or no seccomp filter for VMMs, it runs without, and says so.
    Run(guest::RunArguments),
    /// Show what runs on this node
    Status,
    /// Look for settings of this host that hurt
    Doctor {
        /// Put right what is a setting of the kernel, until the next boot
        #[arg(long)]
        fix: bool,
    },
    /// Show what happened, on all tenants
    Events(events::EventsCommand),
    /// Tenants: isolation, quotas, audit
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Pools: what to run, and how
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Guest images: what a pool can start from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Instances: one microVM each
    #[command(subcommand)]
    Instance(instance::InstanceCommand),
    /// The tenants' networks in the kernel
    #[command(subcommand)]
    Net(net::NetCommand),
    /// This node: limits, recovery, cleaning up
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Installed versions of Firecracker
    #[command(subcommand)]
    Vmm(vmm::VmmCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page per command into a folder
    Man {
        /// Where to write them
        #[arg(long)]
        dir: Option<std::path::PathBuf>,
    },
}

/// Where help lists the options of every command.
const COMMON: &str = "Options of every command";

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The folder that holds all state [default: MVM_ROOT, else /var/lib/mvm]
    #[arg(long, global = true, value_name = "DIR", help_heading = COMMON)]
    pub root: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true, help_heading = COMMON)]
    pub json: bool,
    /// Print only what was asked for and errors
    #[arg(short, long, global = true, help_heading = COMMON)]
    pub quiet: bool,
    /// Print more: the steps of a start and their times
    #[arg(short, long, global = true, help_heading = COMMON)]
    pub verbose: bool,
    /// No colours
    #[arg(long, global = true, help_heading = COMMON)]
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

/// A text that is shown again on terminals.
fn parse_printable(text: &str) -> Result<String, String> {
    match text.chars().any(char::is_control) {
        true => Err(format!("{text:?} has control characters")),
        false => Ok(text.to_owned()),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    parse_printable(text)?;
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is no label: expected KEY=VALUE")),
    }
}
