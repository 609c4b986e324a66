//! `pool.json`: what a pool is, and where its things lie.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::on_rotate::OnRotate;
use crate::{
    infra::config::Roots,
    net::egress::Egress,
    security::policy::SeccompPolicy,
    store::{self, Schema, StoreError},
    vm::{
        naming::{ImageName, PoolId, PoolPath, TenantId},
        tenant,
    },
};

/// A pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Its id.
    pub pool_id: PoolId,
    /// When it was made.
    pub created_at: Timestamp,
    /// What is built; parsed by nobody yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flake_ref: Option<String>,
    /// The guest image that its first revision was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageName>,
    /// The flake's profile.
    pub profile: String,
    /// Which VMM runs it.
    pub vmm: VmmKind,
    /// Its version, fixed by the first revision: snapshots are not portable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_version: Option<String>,
    /// Whether the guest runs mvm's agent.
    pub agent: AgentMode,
    /// Accepts VMMs without a jail.
    pub insecure: bool,
    /// The seccomp filter of its VMMs.
    #[serde(default = "baseline")]
    pub seccomp_policy: SeccompPolicy,
    /// What each instance gets.
    pub instance_resources: Resources,
    /// How many instances there shall be, by state.
    pub desired_counts: DesiredCounts,
    /// Where guests may connect to.
    pub egress: Egress,
    /// Whether guests may ask their VMM about themselves, at 169.254.169.254.
    #[serde(default = "yes")]
    pub metadata_enabled: bool,
    /// Times that bind the sleep policy, and how a guest is ended.
    pub runtime_policy: RuntimePolicy,
    /// Who hears in its guests that their secrets have changed.
    #[serde(default)]
    pub on_rotate: OnRotate,
    /// Labels, for people.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Never put to sleep by anything but a person.
    #[serde(default)]
    pub pinned: bool,
    /// Never touched by anything but a person.
    #[serde(default)]
    pub critical: bool,
}

fn baseline() -> SeccompPolicy {
    SeccompPolicy::Baseline
}

/// For pools of before: what they get is what a new one gets.
fn yes() -> bool {
    true
}

/// A VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum VmmKind {
    /// Firecracker.
    Firecracker,
    /// The simulated one, which runs no guest.
    Sim,
}

impl std::fmt::Display for VmmKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            VmmKind::Firecracker => "firecracker",
            VmmKind::Sim => "sim",
        })
    }
}

/// Does the guest run mvm's agent?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AgentMode {
    /// It does not: it learns its address from the kernel's command line and is asked nothing.
    None,
    /// It does: guests start from one base snapshot, and each is told who it is.
    Required,
}

/// What an instance gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// vCPUs: 1 to 32.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub mem_mib: u64,
    /// The data disk's virtual size, in MiB; 0: none.
    pub data_disk_mib: u64,
}

/// How many instances a pool shall have, by state.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DesiredCounts {
    /// Running.
    pub running: u32,
    /// Warm.
    #[serde(default)]
    pub warm: u32,
    /// Sleeping.
    #[serde(default)]
    pub sleeping: u32,
}

/// Times, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimePolicy {
    /// How long an instance runs at least before a policy pauses it.
    pub min_running_seconds: u32,
    /// How long it is warm at least before a policy puts it to sleep.
    pub min_warm_seconds: u32,
    /// How long a guest may take to get ready for sleep.
    pub drain_timeout_seconds: u32,
    /// How long a guest may take to shut down before its VMM is killed.
    pub graceful_shutdown_seconds: u32,
}

impl Default for RuntimePolicy {
    fn default() -> Self {
        Self {
            min_running_seconds: 60,
            min_warm_seconds: 30,
            drain_timeout_seconds: 30,
            graceful_shutdown_seconds: 15,
        }
    }
}

impl Resources {
    /// What Firecracker takes: up to 32 vCPUs, memory from 32 MiB up, disks in whole MiB.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub fn check(self) -> Result<Self, String> {
        if !(1..=32).contains(&self.vcpus) {
            return Err(format!("{} vCPUs: from 1 to 32 are possible", self.vcpus));
        }
        if !(32..=1024 * 1024).contains(&self.mem_mib) {
            return Err(format!("{} MiB of memory: from 32 MiB to 1 TiB is possible", self.mem_mib));
        }
        match self.data_disk_mib {
            0 | 8..=16_777_216 => Ok(self),
            size => Err(format!("a data disk of {size} MiB: none (0) or 8 MiB to 16 TiB is possible")),
        }
    }
}

impl Pool {
    /// Reads `pool.json`.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where there is no such pool.
    pub fn load(roots: &Roots, path: &PoolPath) -> Result<Self, StoreError> {
        store::read_own(&file(roots, path))
    }

    /// Writes `pool.json`.
    ///
    /// # Errors
    /// The old content stays where it fails.
    pub fn save(&self, roots: &Roots) -> Result<(), StoreError> {
        store::write(&file(roots, &self.path()), self)
    }

    /// Its path.
    pub fn path(&self) -> PoolPath {
        PoolPath { tenant: self.tenant_id.clone(), pool: self.pool_id.clone() }
    }
}

/// `tenants/<t>/pools`.
pub fn pools_folder(roots: &Roots, tenant: &TenantId) -> PathBuf {
    tenant::config::folder(roots, tenant).join("pools")
}

/// `tenants/<t>/pools/<p>`.
pub fn folder(roots: &Roots, path: &PoolPath) -> PathBuf {
    pools_folder(roots, &path.tenant).join(&path.pool)
}

/// `tenants/<t>/pools/<p>/pool.json`.
pub fn file(roots: &Roots, path: &PoolPath) -> PathBuf {
    folder(roots, path).join("pool.json")
}

/// The paths of a tenant's pools, sorted.
///
/// # Errors
/// When the folder cannot be read.
pub fn paths(roots: &Roots, tenant: &TenantId) -> Result<Vec<PoolPath>, StoreError> {
    let names = store::names(&pools_folder(roots, tenant), |name| !name.starts_with('.'))?;
    Ok(names
        .into_iter()
        .filter_map(|name| Some(PoolPath { tenant: tenant.clone(), pool: name.parse().ok()? }))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_what_firecracker_takes() {
        let fine = Resources { vcpus: 2, mem_mib: 128, data_disk_mib: 0 };
        assert!(fine.check().is_ok());
        for bad in [
            Resources { vcpus: 0, ..fine },
            Resources { vcpus: 34, ..fine },
            Resources { mem_mib: 0, ..fine },
            Resources { mem_mib: u64::MAX, ..fine },
            Resources { data_disk_mib: 1, ..fine },
            Resources { data_disk_mib: u64::MAX, ..fine },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
