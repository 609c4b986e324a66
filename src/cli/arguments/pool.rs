//! Arguments of `mvm pool …`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

use super::DestroyArguments;
use crate::{
    net::egress::Egress,
    security::policy::SeccompPolicy,
    vm::{
        naming::{ImageName, PoolPath, RevisionHash, TenantId},
        pool::{
            config::{AgentMode, VmmKind},
            on_rotate::OnRotate,
        },
    },
};

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool
    Create {
        /// TENANT/POOL
        pool: PoolPath,
        #[command(flatten)]
        settings: CreateArguments,
    },
    /// Bring a kernel and a root file system, or an image from elsewhere, in as the pool's new revision
    Import {
        /// TENANT/POOL
        pool: PoolPath,
        #[command(flatten)]
        sources: ImportArguments,
    },
    /// List pools, of one tenant or of all
    List {
        /// The tenant
        tenant: Option<TenantId>,
    },
    /// Show a pool
    Info {
        /// TENANT/POOL
        pool: PoolPath,
    },
    /// Change a pool; instances get it at their next start, egress applies at once
    Update {
        /// TENANT/POOL
        pool: PoolPath,
        #[command(flatten)]
        settings: UpdateArguments,
    },
    /// Start, make or stop instances until so many run
    Scale {
        /// TENANT/POOL
        pool: PoolPath,
        #[command(flatten)]
        counts: Counts,
        /// Only write it down
        #[arg(long)]
        no_apply: bool,
    },
    /// Show which revisions were current, and since when
    History {
        /// TENANT/POOL
        pool: PoolPath,
    },
    /// Make an earlier revision current; what runs keeps its own
    Rollback {
        /// TENANT/POOL
        pool: PoolPath,
        /// The revision, or the first 12 or more of its digits; the one before, where none is named
        #[arg(long, value_name = "HASH")]
        revision: Option<RevisionHash>,
    },
    /// Check every byte of a revision against its manifest
    Verify {
        /// TENANT/POOL
        pool: PoolPath,
        /// The revision; all of them, where none is named
        #[arg(long, value_name = "HASH")]
        revision: Option<RevisionHash>,
    },
    /// Remove revisions and base snapshots that nothing needs
    Gc {
        /// TENANT/POOL
        pool: PoolPath,
    },
    /// Destroy a pool with its instances
    Destroy {
        /// TENANT/POOL
        pool: PoolPath,
        #[command(flatten)]
        destroy: DestroyArguments,
    },
}

#[derive(Debug, Args)]
pub struct CreateArguments {
    /// What is built: a flake reference
    #[arg(long, value_name = "REF", value_parser = super::parse_printable)]
    pub flake: Option<String>,
    /// The guest image that becomes the pool's first revision, as `mvm image list` names it
    #[arg(long, value_name = "NAME", conflicts_with = "flake")]
    pub image: Option<ImageName>,
    /// The flake's profile
    #[arg(long, value_name = "NAME", default_value = "minimal", value_parser = super::parse_printable)]
    pub profile: String,
    /// vCPUs of an instance, 1 to 32
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Memory of an instance, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub mem: u64,
    /// Virtual size of an instance's data disk, in MiB; 0: none
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub data_disk: u64,
    /// Whether guests run mvm's agent [default: the image's, else none]
    #[arg(long, value_name = "MODE")]
    pub agent: Option<AgentMode>,
    /// The VMM, with a version or without
    #[arg(long, value_name = "firecracker[@VERSION]|sim", default_value = "firecracker", value_parser = parse_vmm)]
    pub vmm: (VmmKind, Option<String>),
    /// Accept VMMs for which this machine has no jail, no limits or no seccomp filter
    #[arg(long)]
    pub insecure: bool,
    /// The seccomp filter of its VMMs: Firecracker's own, or a tighter one of mvm's; the simulated VMM has none
    #[arg(long, value_name = "POLICY", default_value = "baseline")]
    pub seccomp: SeccompPolicy,
    /// Where guests may connect to: internet, open, deny, or allow:CIDR[:PORT],…
    #[arg(long, value_name = "POLICY", default_value = "internet")]
    pub egress: Egress,
    /// Whether guests may ask their VMM about themselves, at 169.254.169.254
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub metadata: bool,
    /// Who hears in guests that secrets have changed: none, signal:NAME (the workload), or exec:PATH (a program in the guest)
    #[arg(long, value_name = "WHO", default_value = "none")]
    pub on_rotate: OnRotate,
    /// A label; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = super::parse_label)]
    pub labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("guest_root").required(true).args(["rootfs", "oci_archive"])))]
pub struct ImportArguments {
    /// The kernel: an uncompressed ELF (x86_64) or Image (aarch64)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The root file system: ext4, xfs, squashfs or erofs
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub rootfs: Option<PathBuf>,
    /// An image that becomes the root file system: an OCI layout as a tar archive (skopeo copy … oci-archive:FILE), or what
    /// docker save writes; plain, or packed by gzip or zstd
    #[arg(long, value_name = "FILE")]
    pub oci_archive: Option<PathBuf>,
    /// The guest image of mvm's own whose kernel and initial RAM disk --oci-archive gets, where none are given [default: debian]
    #[arg(long, value_name = "NAME", requires = "oci_archive", conflicts_with = "kernel")]
    pub kernel_image: Option<ImageName>,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; mvm adds who the guest is [default: that of the guest image, where the kernel is from one;
    /// else console=ttyS0 reboot=k panic=-1 quiet loglevel=1]
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
}

#[derive(Debug, Args)]
pub struct UpdateArguments {
    /// vCPUs of an instance
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory of an instance, in MiB
    #[arg(long, value_name = "MIB")]
    pub mem: Option<u64>,
    /// Virtual size of the data disks of instances made from now on, in MiB
    #[arg(long, value_name = "MIB")]
    pub data_disk: Option<u64>,
    /// Where guests may connect to
    #[arg(long, value_name = "POLICY")]
    pub egress: Option<Egress>,
    /// Whether guests may ask their VMM about themselves, from their next start on
    #[arg(long, value_name = "BOOL")]
    pub metadata: Option<bool>,
    /// Whether VMMs are accepted for which this machine has no jail, no limits or no seccomp filter, from their next start or wake on
    #[arg(long, value_name = "BOOL")]
    pub insecure: Option<bool>,
    /// The seccomp filter of its VMMs, from their next start or wake on
    #[arg(long, value_name = "POLICY")]
    pub seccomp: Option<SeccompPolicy>,
    /// Who hears in guests that secrets have changed
    #[arg(long, value_name = "WHO")]
    pub on_rotate: Option<OnRotate>,
    /// How long a guest may take to get ready for sleep, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub drain_timeout: Option<u32>,
    /// How long a guest may take to shut down, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub graceful_shutdown: Option<u32>,
    /// Never put to sleep by anything but a person
    #[arg(long, value_name = "BOOL")]
    pub pinned: Option<bool>,
    /// Never touched by anything but a person
    #[arg(long, value_name = "BOOL")]
    pub critical: Option<bool>,
    /// A label; an empty value removes it
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = super::parse_label)]
    pub labels: Vec<(String, String)>,
}

pub fn parse_vmm(text: &str) -> Result<(VmmKind, Option<String>), String> {
    match text.split_once('@') {
        _ if text == "sim" => Ok((VmmKind::Sim, None)),
        _ if text == "firecracker" => Ok((VmmKind::Firecracker, None)),
        Some(("firecracker", version)) if !version.is_empty() => {
            Ok((VmmKind::Firecracker, Some(version.to_owned())))
        }
        _ => Err(format!("{text:?} is no VMM: expected firecracker, firecracker@VERSION or sim")),
    }
}

/// How many instances there shall be in each state.
#[derive(Debug, Clone, Copy, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Counts {
    /// How many shall run; sleeping, warm and stopped ones are used before new ones are made
    #[arg(long, value_name = "N")]
    pub running: Option<u32>,
    /// How many shall be warm
    #[arg(long, value_name = "N")]
    pub warm: Option<u32>,
    /// How many shall sleep; of those that are too many the memory is given up
    #[arg(long, value_name = "N")]
    pub sleeping: Option<u32>,
}
