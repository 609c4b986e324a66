//! Settling what a killed operation, a VMM that ended or a reboot left behind.

use super::{
    LifecycleError, Operator,
    destroy::{Volumes, discard},
    lookup::try_lock,
    stop::finish_stop,
};
use crate::{
    security::audit::Phase,
    vm::{
        instance::{
            config::{Exit, Instance, Operation},
            launch,
        },
        naming::InstancePath,
    },
    vmm::process,
};

/// Loads an instance and settles what was cut off; `None` where it is gone. The caller holds its lock.
pub(super) fn settled(
    operator: &mut Operator,
    path: &InstancePath,
) -> Result<Option<Instance>, LifecycleError> {
    match Instance::load_if_there(&operator.roots, path)? {
        Some(instance) => settle_locked(operator, instance),
        None => Ok(None),
    }
}

/// Settles what an instance's last operation left, if nobody works on it: an operation that was cut off, a VMM that ended
/// by itself, a host that rebooted. `None` where the instance is gone by that.
///
/// # Errors
/// When it cannot be settled; the intent stays.
pub fn settle(operator: &mut Operator, instance: Instance) -> Result<Option<Instance>, LifecycleError> {
    if !needs_settling(&instance, &process::boot_id()) {
        return Ok(Some(instance));
    }
    let path = instance.path();
    match try_lock(&operator.roots, &path)? {
        // Somebody works on it: what they left is theirs to finish.
        None => Ok(Some(instance)),
        Some(lock) => match Instance::load_if_there(&operator.roots, &path)? {
            Some(fresh) => {
                let settled = settle_locked(operator, fresh)?;
                if settled.is_none() {
                    lock.remove();
                }
                Ok(settled)
            }
            None => Ok(None),
        },
    }
}

/// Was an operation cut off, or has a VMM ended that should be there?
pub fn needs_settling(instance: &Instance, boot_id: &str) -> bool {
    instance.pending.is_some() || (instance.status.has_vmm() && !instance.vmm_is_alive(boot_id))
}

fn settle_locked(
    operator: &mut Operator,
    mut instance: Instance,
) -> Result<Option<Instance>, LifecycleError> {
    let boot_id = process::boot_id();
    if !needs_settling(&instance, &boot_id) {
        return Ok(Some(instance));
    }
    operator.net()?;
    let roots = operator.roots.clone();
    let slot = instance.slot(&roots)?;
    let vmm = instance.find_vmm();
    match instance.pending.as_ref().map(|intent| intent.operation) {
        Some(Operation::Create) => {
            let why = "it was cut off and rolled back";
            discard(operator, &instance, Volumes::Wipe, ("create", Phase::Recovered), why)?;
            return Ok(None);
        }
        Some(Operation::Destroy { wipe_volumes }) => {
            let volumes = if wipe_volumes { Volumes::Wipe } else { Volumes::Keep };
            let why = "it was cut off and finished";
            discard(operator, &instance, volumes, ("destroy", Phase::Recovered), why)?;
            return Ok(None);
        }
        Some(Operation::Start) => {
            launch::teardown(operator, slot, vmm.as_ref())?;
            let why = "a start was cut off and rolled back".to_owned();
            operator.audit(&instance, "start", Phase::Recovered, |entry| {
                entry.to = Some(instance.status.to_string());
                entry.detail = Some(why.clone());
            })?;
            instance.pending = None;
            instance.last_exit = Some(Exit { when: roots.now(), why });
            instance.save(&roots)?;
        }
        Some(Operation::Stop) => {
            launch::teardown(operator, slot, vmm.as_ref())?;
            let why = "a stop was cut off and finished".into();
            finish_stop(operator, &mut instance, ("stop", Phase::Recovered), why)?;
        }
        None => {
            let rebooted = instance.vmm.as_ref().is_some_and(|vmm| vmm.boot_id != boot_id);
            let why = if rebooted { "the host rebooted" } else { "the VMM ended by itself" };
            launch::teardown(operator, slot, None)?;
            finish_stop(operator, &mut instance, ("died", Phase::Observed), why.into())?;
        }
    }
    Ok(Some(instance))
}
