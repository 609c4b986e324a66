//! `tenant.json`: what a tenant is, and where its things lie.

use std::{net::Ipv4Addr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::quota::Quotas;
use crate::{
    infra::config::Roots,
    store::{self, Schema, StoreError},
    vm::naming::{NetId, Offset, Slot, Subnet, TenantId},
};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// Its id.
    pub tenant_id: TenantId,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its network.
    pub network: TenantNetwork,
    /// What it may use on this node.
    pub quotas: Quotas,
    /// Never stopped by anything but a person.
    pub pinned: bool,
    /// How long its audit log is kept after it was destroyed, in days.
    pub retention_days: u32,
    /// The generation of its secrets that was stored last; `None` where it never had any, or an older mvm wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_generation: Option<u64>,
}

/// A tenant's network, as the coordinator gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantNetwork {
    /// Its number in the cluster.
    pub tenant_net_id: NetId,
    /// Its addresses.
    pub ipv4_subnet: Subnet,
    /// The first usable one of them.
    pub gateway_ip: Ipv4Addr,
    /// The offsets that this node may lease, first and last; all that instances can have, where none were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset_range: Option<(Offset, Offset)>,
}

impl Tenant {
    /// Reads `tenant.json`.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where there is no such tenant.
    pub fn load(roots: &Roots, id: &TenantId) -> Result<Self, StoreError> {
        store::read_own(&file(roots, id))
    }

    /// Writes `tenant.json`.
    ///
    /// # Errors
    /// The old content stays where it fails.
    pub fn save(&self, roots: &Roots) -> Result<(), StoreError> {
        store::write(&file(roots, &self.tenant_id), self)
    }

    /// The slot at an offset.
    pub fn slot(&self, offset: Offset) -> Slot {
        Slot { net_id: self.network.tenant_net_id, offset }
    }

    /// The offsets that instances may have here, first and last.
    pub fn offsets(&self) -> (Offset, Offset) {
        let (first, last) = (Offset::FIRST_INSTANCE, self.network.ipv4_subnet.last_offset());
        match self.network.offset_range {
            Some((low, high)) => (low.max(first), high.min(last)),
            None => (first, last),
        }
    }
}

/// `tenants/<t>`.
pub fn folder(roots: &Roots, id: &TenantId) -> PathBuf {
    roots.tenants().join(id)
}

/// `tenants/<t>/tenant.json`.
pub fn file(roots: &Roots, id: &TenantId) -> PathBuf {
    folder(roots, id).join("tenant.json")
}

/// The ids of all tenants, sorted.
///
/// # Errors
/// When the folder cannot be read.
pub fn ids(roots: &Roots) -> Result<Vec<TenantId>, StoreError> {
    let names = store::names(&roots.tenants(), |name| !name.starts_with('.'))?;
    Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
}

/// All tenants, sorted by id.
///
/// # Errors
/// When one cannot be read.
pub fn all(roots: &Roots) -> Result<Vec<Tenant>, StoreError> {
    ids(roots)?.iter().map(|id| Tenant::load(roots, id)).collect()
}
