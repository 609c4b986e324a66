//! Whose a slot is: an instance's, by its lease; where that is lost, by its record.

use std::collections::HashSet;

use super::lock_tenant;
use crate::{
    infra::config::Roots,
    store::StoreError,
    vm::{
        instance::{
            self,
            config::{Instance, Intent, Operation},
        },
        naming::{InstancePath, Offset, Slot, TenantId},
        pool,
        tenant::{config::Tenant, leases},
    },
};

/// Is the slot that its record names its own? Nothing of one that is not may be touched in its name. What cannot be read of its
/// tenant, or its lease, keeps nobody from ending it.
pub fn is_its(roots: &Roots, instance: &Instance) -> bool {
    let holder = leases::holder(roots, &instance.tenant_id, instance.net.offset);
    why_not(roots, instance, holder.unwrap_or_default()).is_none()
}

/// The same for who goes no further without.
///
/// # Errors
/// [`StoreError::Damaged`] where it is not; when the lease cannot be read.
pub fn check(roots: &Roots, instance: &Instance) -> Result<(), StoreError> {
    let path = instance.path();
    match why_not(roots, instance, leases::holder(roots, &path.tenant, instance.net.offset)?) {
        None => Ok(()),
        Some(why) => Err(StoreError::Damaged { path: instance::config::file(roots, &path), why }),
    }
}

/// Why is the slot not its own, which that one holds?
fn why_not(roots: &Roots, instance: &Instance, holder: Option<InstancePath>) -> Option<String> {
    let (path, offset, name) = (instance.path(), instance.net.offset, &instance.net.tap_dev);
    let slot = Slot::from_tap(name).filter(|slot| slot.offset == offset);
    let tenant = Tenant::load(roots, &path.tenant).ok();
    if slot.is_none() || tenant.is_some_and(|tenant| slot != Some(tenant.slot(offset))) {
        return Some(format!("{name} is not the TAP of its tenant's offset {offset}"));
    }
    let other = match holder {
        Some(holder) if holder == path => return None,
        Some(holder) => Some(holder),
        None if !claims(roots, instance) => return Some(format!("it has no lease of offset {offset}")),
        None => rival(roots, &path, offset),
    };
    other.map(|other| format!("its offset, {offset}, is that of {other}, too"))
}

/// Has it a slot, as far as its record tells? One that is being made has nothing there before it has its lease, and one that is
/// being destroyed nothing any more once it gave that back.
fn claims(roots: &Roots, instance: &Instance) -> bool {
    match instance.pending {
        Some(Intent { operation: Operation::Create, .. }) => false,
        Some(Intent { operation: Operation::Destroy { .. }, .. }) => {
            let (path, offset) = (instance.path(), instance.net.offset);
            // Before its holder is looked for: who leases it anew removes that last.
            let was_freed = leases::was_freed(roots, &path.tenant, offset);
            match leases::holder(roots, &path.tenant, offset) {
                Ok(Some(holder)) => holder == path,
                Ok(None) => !was_freed,
                Err(_) => true,
            }
        }
        _ => true,
    }
}

/// Another one whose lease is lost, and whose record names the same.
fn rival(roots: &Roots, path: &InstancePath, offset: Offset) -> Option<InstancePath> {
    let lost = lost(roots, &path.tenant).named.into_iter();
    lost.filter(|(named, _)| *named == offset).map(|(_, other)| other).find(|other| other != path)
}

/// Gives an instance the lease of its record back, where nobody holds that. Was it gone? The caller holds the instance's lock.
///
/// # Errors
/// As [`check`]'s, and when the lease cannot be written.
pub fn restore(roots: &Roots, instance: &Instance) -> Result<bool, StoreError> {
    if !claims(roots, instance) {
        return Ok(false);
    }
    let (path, offset) = (instance.path(), instance.net.offset);
    check(roots, instance)?;
    if leases::is_held(roots, &path.tenant, offset) {
        return Ok(false);
    }
    let _tenant = lock_tenant(roots, &path.tenant)?;
    check(roots, instance)?;
    leases::hold(roots, &path, offset).map(|()| true)
}

/// What a tenant's instances have of which no lease says whose it is.
#[derive(Debug, Default)]
pub struct Lost {
    named: Vec<(Offset, InstancePath)>,
    /// Why it is not known what one of them has: its record cannot be read either.
    pub unknown: Option<StoreError>,
}

impl Lost {
    /// Is that the offset of one?
    pub fn has(&self, offset: Offset) -> bool {
        self.named.iter().any(|(named, _)| *named == offset)
    }

    fn read<T>(&mut self, result: Result<T, StoreError>) -> Option<T> {
        result.map_err(|error| self.unknown = Some(error)).ok()
    }
}

/// What do instances have whose leases are lost? Read are the records of those alone. Who wants it to stay so holds the tenant's
/// lock.
pub fn lost(roots: &Roots, tenant: &TenantId) -> Lost {
    let mut lost = Lost::default();
    let leases = lost.read(leases::each(roots, tenant)).unwrap_or_default();
    let holders: HashSet<InstancePath> = leases.into_iter().flatten().map(|lease| lease.instance).collect();
    for pool in lost.read(pool::config::paths(roots, tenant)).unwrap_or_default() {
        let paths = lost.read(instance::config::paths(roots, &pool)).unwrap_or_default();
        for path in paths.iter().filter(|path| !holders.contains(path)) {
            let instance = lost.read(Instance::load_if_there(roots, path)).flatten();
            let named = instance.filter(|instance| claims(roots, instance)).map(|one| one.net.offset);
            lost.named.extend(named.map(|offset| (offset, path.clone())));
        }
    }
    lost
}
