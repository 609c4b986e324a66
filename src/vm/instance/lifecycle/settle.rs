//! Settling what a killed operation, a VMM that ended or a reboot left behind.

use super::{
    LifecycleError, Operator,
    destroy::{Volumes, discard, gone},
    lookup::try_lock,
    stop::finish_stop,
};
use crate::{
    security::audit::Phase,
    store,
    vm::{
        instance::{
            config::{self, Exit, Instance, Operation},
            launch,
        },
        naming::InstancePath,
    },
    vmm::process,
};

/// Loads an instance and settles what was cut off. The caller holds its lock.
pub(super) fn settled(operator: &mut Operator, path: &InstancePath) -> Result<Instance, LifecycleError> {
    match store::read_if_there::<Instance>(&config::file(&operator.roots, path))? {
        Some(instance) => settle_locked(operator, instance)?.ok_or_else(|| gone(path)),
        None => Err(gone(path)),
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
        Some(lock) => match store::read_if_there(&config::file(&operator.roots, &path))? {
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
    let vmm = instance.vmm.as_ref().and_then(|vmm| process::find(vmm.identity()));
    let (operation, phase) = match instance.pending.as_ref().map(|intent| intent.operation) {
        Some(Operation::Create) => {
            discard(operator, &instance, Volumes::Wipe)?;
            operator.audit(&instance, "create", Phase::Recovered, |entry| {
                entry.detail = Some("it was cut off and rolled back".into());
            })?;
            return Ok(None);
        }
        Some(Operation::Destroy { wipe_volumes }) => {
            discard(operator, &instance, if wipe_volumes { Volumes::Wipe } else { Volumes::Keep })?;
            operator.audit(&instance, "destroy", Phase::Recovered, |entry| {
                entry.detail = Some("it was cut off and finished".into());
            })?;
            return Ok(None);
        }
        Some(Operation::Start) => {
            launch::teardown(operator, slot, vmm.as_ref())?;
            instance.pending = None;
            instance.last_exit =
                Some(Exit { when: roots.now(), why: "a start was cut off and rolled back".into() });
            instance.save(&roots)?;
            ("start", Phase::Recovered)
        }
        Some(Operation::Stop) => {
            launch::teardown(operator, slot, vmm.as_ref())?;
            finish_stop(operator, &mut instance, "a stop was cut off and finished".into())?;
            ("stop", Phase::Recovered)
        }
        None => {
            let rebooted = instance.vmm.as_ref().is_some_and(|vmm| vmm.boot_id != boot_id);
            let why = if rebooted { "the host rebooted" } else { "the VMM ended by itself" };
            launch::teardown(operator, slot, None)?;
            finish_stop(operator, &mut instance, why.into())?;
            ("died", Phase::Observed)
        }
    };
    operator.audit(&instance, operation, phase, |entry| {
        entry.to = Some(instance.status.to_string());
        entry.detail = instance.last_exit.as_ref().map(|exit| exit.why.clone());
    })?;
    Ok(Some(instance))
}
