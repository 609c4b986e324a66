//! Arguments of `mvm tenant …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{DestroyArguments, audit::LogArguments};
use crate::vm::{
    naming::{NetId, Offset, SecretName, Subnet, TenantId},
    tenant::quota::Quotas,
};

#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make a tenant, with its bridge
    Create {
        /// Its name
        tenant: TenantId,
        /// Its number in the cluster, 0 to 4095
        #[arg(long, value_name = "N")]
        net_id: NetId,
        /// Its addresses, inside 10.240.0.0/12
        #[arg(long, value_name = "CIDR")]
        subnet: Subnet,
        /// The offsets that this node may lease, as in 3-127
        #[arg(long, value_name = "FIRST-LAST", value_parser = parse_range)]
        offset_range: Option<(Offset, Offset)>,
        #[command(flatten)]
        quotas: QuotaArguments,
    },
    /// List tenants
    List,
    /// Show a tenant
    Info {
        /// The tenant
        tenant: TenantId,
    },
    /// Change a tenant's quotas
    Update {
        /// The tenant
        tenant: TenantId,
        /// Never stopped by anything but a person
        #[arg(long)]
        pinned: Option<bool>,
        /// How long its audit log is kept after it was destroyed, in days
        #[arg(long, value_name = "N")]
        retention_days: Option<u32>,
        #[command(flatten)]
        quotas: QuotaArguments,
    },
    /// Destroy a tenant with its pools and instances
    Destroy {
        /// The tenant
        tenant: TenantId,
        #[command(flatten)]
        destroy: DestroyArguments,
    },
    /// A tenant's secrets: files in /run/secrets of its guests
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Show a tenant's audit log
    Audit(AuditArguments),
}

/// Whose log is shown, and whether it is followed.
#[derive(Debug, Args)]
pub struct AuditArguments {
    /// The tenant; the last one of that name, where it was destroyed
    pub tenant: TenantId,
    /// Go on as more happens
    #[arg(short, long, conflicts_with_all = ["verify", "against", "head", "begin_anew"])]
    pub follow: bool,
    #[command(flatten)]
    pub log: LogArguments,
}

/// What can be done with secrets. A value comes from a file or from stdin, byte for byte: arguments are seen by everybody.
#[derive(Debug, Subcommand)]
pub enum SecretsCommand {
    /// Set a secret, and give it to the guests that run
    Set(SecretArguments),
    /// Give a secret another content; guests that run get it at once, others when they start or wake
    Rotate(SecretArguments),
    /// List secrets: names, versions and hashes
    List {
        /// The tenant
        tenant: TenantId,
    },
    /// Remove a secret, also from the guests that run
    Remove {
        /// The tenant
        tenant: TenantId,
        /// Its name
        name: SecretName,
    },
    /// Take secrets as they lie there, where the file with them is gone or older than the last change
    Accept {
        /// The tenant
        tenant: TenantId,
    },
}

/// Which secret, and where its content is.
#[derive(Debug, Args)]
pub struct SecretArguments {
    /// The tenant
    pub tenant: TenantId,
    /// Its name: that of the file in the guest
    pub name: SecretName,
    /// The file that holds it, at most 64 KiB [default: stdin]
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

fn parse_range(text: &str) -> Result<(Offset, Offset), String> {
    let parse = || {
        let (first, last) = text.split_once('-')?;
        Some((Offset::new(first.parse().ok()?), Offset::new(last.parse().ok()?)))
    };
    parse().ok_or_else(|| format!("{text:?} is not a range of offsets: expected FIRST-LAST, as in 3-127"))
}

macro_rules! quota_arguments {
    ($($field:ident: $type:ty, $help:literal;)*) => {
        /// One option per quota.
        #[derive(Debug, Clone, Default, Args)]
        pub struct QuotaArguments {
            $(
                #[doc = $help]
                #[arg(long, value_name = "N")]
                pub $field: Option<$type>,
            )*
        }

        impl QuotaArguments {
            /// Puts what was given into `quotas`.
            pub fn apply(&self, quotas: &mut Quotas) {
                $(if let Some(value) = self.$field { quotas.$field = value; })*
            }
        }
    };
}

quota_arguments! {
    max_vcpus: u32, "vCPUs of running instances";
    max_mem_mib: u64, "Memory of running instances, in MiB";
    max_running: u32, "Instances that run";
    max_warm: u32, "Instances that are warm";
    max_pools: u32, "Pools";
    max_instances_per_pool: u32, "Instances of one pool, in any state";
    max_disk_gib: u64, "Virtual disks of running instances, in GiB";
    log_mib: u32, "Console and VMM logs of one instance, in MiB";
    max_conns: u32, "Open connections of one instance";
    conns_per_second: u32, "New connections of one instance, per second";
    net_mbps: u32, "Bandwidth of one instance, in Mbit/s; 0: not limited";
    net_pps: u32, "Packets of one instance, per second; 0: not limited";
    disk_iops: u32, "Operations of each disk, per second; 0: not limited";
    disk_mbps: u32, "Bandwidth of each disk, in MB/s; 0: not limited";
}
