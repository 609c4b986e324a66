//! Leases of address offsets: one file per offset, so that a kill leaves a lease held or free and nothing between.
//!
//! `leases/<offset>.json` is held and names its instance; `leases/<offset>.freed` was freed, its time inside. An offset
//! that was never leased comes first, then the one that was freed longest ago. The caller holds the tenant's lock.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::{self, Tenant};
use crate::{
    infra::{config::Roots, failpoint},
    store::{self, Schema, StoreError},
    vm::naming::{InstancePath, Offset, TenantId},
};

/// A lease that is held.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lease {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// The offset.
    pub offset: Offset,
    /// Who holds it.
    pub instance: InstancePath,
    /// Since when.
    pub leased_at: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
struct Freed {
    schema_version: Schema<1>,
    freed_at: Timestamp,
}

/// `tenants/<t>/leases`.
pub fn folder(roots: &Roots, tenant: &TenantId) -> PathBuf {
    config::folder(roots, tenant).join("leases")
}

fn held_file(folder: &Path, offset: Offset) -> PathBuf {
    folder.join(format!("{offset}.json"))
}

fn freed_file(folder: &Path, offset: Offset) -> PathBuf {
    folder.join(format!("{offset}.freed"))
}

/// The offset that the next instance gets, none of those that are taken without a lease; `None` where all are held, or a VMM's directory
/// lies there.
///
/// # Errors
/// When the files cannot be read.
pub fn choose(
    roots: &Roots,
    tenant: &Tenant,
    is_lost: impl Fn(Offset) -> bool,
) -> Result<Option<Offset>, StoreError> {
    let folder = folder(roots, &tenant.tenant_id);
    let mut known = HashSet::new();
    let mut freed = Vec::new();
    for name in store::names(&folder, |name| !name.starts_with('.'))? {
        match name.split_once('.') {
            Some((offset, "json")) => known.extend(offset.parse().ok().map(Offset::new)),
            Some((offset, "freed")) => freed.extend(offset.parse().ok().map(Offset::new)),
            _ => {}
        }
    }
    // A kill between the two files of a change leaves both: then the lease is held.
    freed.retain(|offset| !known.contains(offset));
    known.extend(&freed);
    let (first, last) = tenant.offsets();
    // Whose lease is gone may run there, or have its place there.
    let is_taken = |offset: &Offset| is_lost(*offset) || roots.vmm_dir(&tenant.slot(*offset).tap()).exists();
    let mut all = (first.get()..=last.get()).map(Offset::new);
    let fresh = all.find(|offset| !known.contains(offset) && !is_taken(offset));
    if fresh.is_some() {
        return Ok(fresh);
    }
    let mut oldest = None;
    let is_free = |offset: &Offset| (first..=last).contains(offset) && !is_taken(offset);
    for offset in freed.into_iter().filter(is_free) {
        let at = store::read::<Freed>(&freed_file(&folder, offset))?.freed_at;
        oldest = oldest.into_iter().chain([(at, offset)]).min();
    }
    Ok(oldest.map(|(_, offset)| offset))
}

/// Leases an offset to an instance.
///
/// # Errors
/// When the files cannot be written.
pub fn hold(roots: &Roots, instance: &InstancePath, offset: Offset) -> Result<(), StoreError> {
    let folder = folder(roots, &instance.tenant);
    store::make_folder(&folder)?;
    let lease = Lease { schema_version: Schema, offset, instance: instance.clone(), leased_at: roots.now() };
    store::write(&held_file(&folder, offset), &lease)?;
    store::remove_file(&freed_file(&folder, offset))
}

/// Is the offset held, by whomever? Its name alone says so: what is in the file may not be readable.
pub fn is_held(roots: &Roots, tenant: &TenantId, offset: Offset) -> bool {
    held_file(&folder(roots, tenant), offset).exists()
}

/// Was the offset given back, since it was held last?
pub fn was_freed(roots: &Roots, tenant: &TenantId, offset: Offset) -> bool {
    freed_file(&folder(roots, tenant), offset).exists()
}

/// Who holds the offset, if anybody does?
///
/// # Errors
/// When the lease cannot be read.
pub fn holder(roots: &Roots, tenant: &TenantId, offset: Offset) -> Result<Option<InstancePath>, StoreError> {
    Ok(read(&held_file(&folder(roots, tenant), offset), tenant)?.map(|lease| lease.instance))
}

/// A lease that lies in another one's place is as good as damaged.
fn read(file: &Path, tenant: &TenantId) -> Result<Option<Lease>, StoreError> {
    let lease = store::read_if_there::<Lease>(file)?;
    let is_of_it = |lease: &Lease| {
        lease.instance.tenant == *tenant && file.file_stem() == Some(lease.offset.to_string().as_ref())
    };
    match lease {
        Some(lease) if !is_of_it(&lease) => {
            let why = format!("it is that of offset {} of {}", lease.offset, lease.instance.tenant);
            Err(StoreError::Damaged { path: file.to_path_buf(), why })
        }
        lease => Ok(lease),
    }
}

/// Frees an offset, whoever holds it: the caller knows that it is nobody else's.
///
/// # Errors
/// When the files cannot be written.
pub fn free(roots: &Roots, tenant: &TenantId, offset: Offset) -> Result<(), StoreError> {
    let folder = folder(roots, tenant);
    store::make_folder(&folder)?;
    let held = held_file(&folder, offset);
    store::write(&freed_file(&folder, offset), &Freed { schema_version: Schema, freed_at: roots.now() })?;
    failpoint::hit("lease", "freed").map_err(StoreError::io("free", &held))?;
    store::remove_file(&held)?;
    store::sync_folder(&folder)
}

/// The lease that an instance holds; one that cannot be read is not found.
///
/// # Errors
/// When the folder cannot be read.
pub fn of(roots: &Roots, instance: &InstancePath) -> Result<Option<Lease>, StoreError> {
    let leases = each(roots, &instance.tenant)?.into_iter().flatten();
    Ok(leases.into_iter().find(|lease| lease.instance == *instance))
}

/// All leases that are held, and for each that cannot be read why not.
///
/// # Errors
/// When the folder cannot be read.
pub fn each(roots: &Roots, tenant: &TenantId) -> Result<Vec<Result<Lease, StoreError>>, StoreError> {
    let folder = folder(roots, tenant);
    let names = store::names(&folder, |name| !name.starts_with('.') && name.ends_with(".json"))?;
    let read = |name: String| read(&folder.join(name), tenant).transpose();
    Ok(names.into_iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        infra::config::Environment,
        vm::tenant::{config::TenantNetwork, quota::Quotas},
    };

    fn tenant() -> Tenant {
        let subnet: crate::vm::naming::Subnet = "10.240.3.0/29".parse().unwrap();
        Tenant {
            schema_version: Schema,
            tenant_id: "acme".parse().unwrap(),
            created_at: Timestamp::UNIX_EPOCH,
            network: TenantNetwork {
                tenant_net_id: "3".parse().unwrap(),
                ipv4_subnet: subnet,
                gateway_ip: subnet.gateway(),
                offset_range: None,
            },
            quotas: Quotas::default(),
            pinned: false,
            retention_days: 1,
            secrets_generation: None,
        }
    }

    #[test]
    fn the_offset_freed_longest_ago_is_reused_first() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), &Environment::default()).unwrap();
        let instance = |number: u32| -> InstancePath { format!("acme/web/i-{number:08x}").parse().unwrap() };
        let tenant = tenant();
        let choose = || super::choose(&roots, &tenant, |_| false).unwrap().map(Offset::get);
        for number in 3..=6 {
            assert_eq!(choose(), Some(number));
            hold(&roots, &instance(number.into()), Offset::new(number)).unwrap();
        }
        assert_eq!(choose(), None);
        for number in [5, 3] {
            free(&roots, &tenant.tenant_id, Offset::new(number)).unwrap();
        }
        assert_eq!(choose(), Some(5));
        hold(&roots, &instance(7), Offset::new(5)).unwrap();
        assert_eq!(choose(), Some(3));
        assert_eq!(each(&roots, &tenant.tenant_id).unwrap().len(), 3);
    }
}
