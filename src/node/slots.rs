//! Leases and slots: each given back to whom it belongs to, and taken where it belongs to nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    NodeError,
    recover::{Recovered, There},
};
use crate::{
    infra::config::Roots,
    store::{self, StoreError},
    vm::{
        instance::{
            self,
            config::Instance,
            launch::{self, Keep},
            lifecycle::{self, Operator, lease, lock_tenant},
            state::State,
        },
        naming::{InstancePath, Offset, Slot},
        room,
        tenant::{
            self,
            config::Tenant,
            leases::{self, Lease},
            quota::Use,
        },
    },
    vmm::process,
};

/// Gives leases back that are gone, and removes VMM directories, TAPs and reservations of slots in which nothing runs and on
/// which nobody works; returns what was done, a line each, and what could not be.
///
/// # Errors
/// When it cannot be listed what there is.
pub fn reclaim(operator: &mut Operator) -> Result<Recovered, NodeError> {
    let mut recovered = Recovered::default();
    let there = There::look(&operator.roots, &mut recovered)?;
    restore_leases(&operator.roots, &there, &mut recovered);
    reclaim_slots(operator, &mut recovered)?;
    Ok(recovered)
}

/// An instance whose lease is gone gets it back: what is in its slot is its own, and its record says which one that is. One
/// whose place another one holds is said.
pub(super) fn restore_leases(roots: &Roots, there: &There, recovered: &mut Recovered) {
    for path in &there.instances {
        if recovered.note(format!("lease of {path}"), restore_lease(roots, path)) == Some(true) {
            recovered.settled.push(format!("{path}: its lease, which was gone"));
        }
    }
}

/// Was it gone?
fn restore_lease(roots: &Roots, path: &InstancePath) -> Result<bool, NodeError> {
    let Some(_lock) = lifecycle::try_lock(roots, path)? else { return Ok(false) };
    // Who settles it, or looks at its slot, says that it cannot be read.
    let Ok(Some(instance)) = Instance::load_if_there(roots, path) else { return Ok(false) };
    Ok(lease::restore(roots, &instance)?)
}

/// Leases whose instances are not there.
pub(super) fn reclaim_leases(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    let roots = operator.roots.clone();
    for tenant in tenant::config::ids(&roots)? {
        let whose = format!("leases of {tenant}");
        let Some(_lock) = recovered.note(&whose, lock_tenant(&roots, &tenant)) else { continue };
        let all = recovered.note(&whose, leases::each(&roots, &tenant));
        for lease in all.into_iter().flatten() {
            let Some(lease) = recovered.note(&whose, lease) else { continue };
            let what = format!("lease {} of {}", lease.offset, lease.instance);
            if recovered.note(&what, free_of_nobody(&roots, &lease)) == Some(true) {
                recovered.reclaimed.push(what);
            }
        }
    }
    Ok(())
}

/// Frees a lease whose instance is not there. Was it freed?
fn free_of_nobody(roots: &Roots, lease: &Lease) -> Result<bool, StoreError> {
    if !is_gone(roots, &lease.instance)? {
        return Ok(false);
    }
    leases::free(roots, &lease.instance.tenant, lease.offset).map(|()| true)
}

/// Is an instance not there? One that cannot be looked for may be.
fn is_gone(roots: &Roots, path: &InstancePath) -> Result<bool, StoreError> {
    Ok(!instance::config::folder(roots, path).exists()
        && !instance::config::paths(roots, &path.pool_path())?.contains(path))
}

/// What there is of slots, as it is before each is looked at under its lock.
struct Slots {
    reserved: BTreeMap<Slot, Use>,
    /// With a VMM's directory or a TAP.
    have_parts: BTreeSet<Slot>,
    owners: HashMap<Slot, InstancePath>,
    tenants: Vec<Tenant>,
    /// A tenant cannot be read: a slot of nobody may be its.
    is_partial: bool,
}

impl Slots {
    fn look(operator: &mut Operator, recovered: &mut Recovered) -> Result<Self, NodeError> {
        let roots = operator.roots.clone();
        let directories = store::names(&roots.vmm_dirs(), |_| true)?;
        let mut slots = Self {
            reserved: room::reserved(&roots)?.into_iter().collect(),
            have_parts: directories.iter().filter_map(|name| Slot::from_tap(name)).collect(),
            owners: HashMap::new(),
            tenants: Vec::new(),
            is_partial: false,
        };
        slots.have_parts.extend(operator.net()?.list_taps()?);
        for id in tenant::config::ids(&roots)? {
            let Some(tenant) = recovered.note(&id, Tenant::load(&roots, &id)) else {
                slots.is_partial = true;
                continue;
            };
            // What cannot be read was said before, and keeps its slot.
            for lease in leases::each(&roots, &id).into_iter().flatten().flatten() {
                slots.owners.insert(tenant.slot(lease.offset), lease.instance);
            }
            slots.tenants.push(tenant);
        }
        Ok(slots)
    }

    fn all(&self) -> BTreeSet<Slot> {
        self.reserved.keys().chain(&self.have_parts).copied().collect()
    }
}

pub(super) fn reclaim_slots(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    let slots = Slots::look(operator, recovered)?;
    let boot_id = process::boot_id();
    for slot in slots.all() {
        let done = reclaim_slot(operator, &slots, slot, &boot_id);
        let whose = slots.owners.get(&slot).map_or(String::new(), |path| format!("{path}: "));
        if recovered.note(format!("{whose}slot {}", slot.tap()), done) == Some(true) {
            recovered.reclaimed.push(format!("what was left in slot {}", slot.tap()));
        }
    }
    Ok(())
}

/// Was something of it removed?
fn reclaim_slot(
    operator: &mut Operator,
    slots: &Slots,
    slot: Slot,
    boot_id: &str,
) -> Result<bool, NodeError> {
    let roots = operator.roots.clone();
    let mut keep = Keep::Nothing;
    let _lock = match slots.owners.get(&slot) {
        Some(path) => {
            let Some(lock) = lifecycle::try_lock(&roots, path)? else {
                return Ok(false);
            };
            // Somebody may have given the slot back, and another one taken it, since the leases were read.
            if leases::holder(&roots, &path.tenant, slot.offset)?.as_ref() != Some(path) {
                return Ok(false);
            }
            match Instance::load_if_there(&roots, path) {
                // What was cut off is settled with all that it has, and not taken away before: its VMM may be all that is left.
                Ok(Some(instance)) if instance.pending.is_some() || instance.vmm_is_alive(boot_id) => {
                    return Ok(false);
                }
                Ok(Some(instance)) if instance.status == State::Sleeping => {
                    let takes = launch::takes_of(&roots, &instance)?;
                    if !slots.have_parts.contains(&slot) && slots.reserved.get(&slot) == Some(&takes.asleep())
                    {
                        return Ok(false);
                    }
                    keep = Keep::Asleep(takes);
                    Some(lock)
                }
                Ok(None) if !is_gone(&roots, path)? => return Ok(false),
                Ok(_) => Some(lock),
                // What a record that cannot be read says of its VMM is not known: it is left alone.
                Err(_) => return Ok(false),
            }
        }
        None => match slots.tenants.iter().find(|tenant| tenant.network.tenant_net_id == slot.net_id) {
            Some(tenant) => {
                // A base snapshot may be on its way.
                let Some(_base) = lifecycle::base::try_lock(&roots, &tenant.tenant_id)? else {
                    return Ok(false);
                };
                let lock = lock_tenant(&roots, &tenant.tenant_id)?;
                let lost = lease::lost(&roots, &tenant.tenant_id);
                if leases::is_held(&roots, &tenant.tenant_id, slot.offset) || lost.has(slot.offset) {
                    return Ok(false);
                }
                // It may be that one's; that of builders is no instance's.
                lost.unknown.filter(|_| slot.offset != Offset::BUILDER).map_or(Ok(()), Err)?;
                Some(lock)
            }
            None if slots.is_partial => return Ok(false),
            None => None,
        },
    };
    launch::teardown(operator, slot, None, keep)?;
    Ok(true)
}
