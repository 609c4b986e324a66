//! Removing an instance, from any state.

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    LifecycleError, Operator, begun, intent, lease, load_pool, lock_tenant,
    lookup::{gone, lock_cancelling_sleep},
};
use crate::{
    infra::{config::Roots, failpoint, relief},
    security::audit::Phase,
    store::{self, Sharing, StoreError},
    vm::{
        instance::{
            config::{self, Instance, Operation},
            fc_config::files,
            launch::{self, Keep},
            net as wiring,
            state::State,
        },
        naming::{InstanceId, InstancePath, PoolPath},
        pool,
        tenant::leases,
    },
};

/// What becomes of a data disk when its instance goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Volumes {
    /// It is kept in the pool's `kept/`.
    Keep,
    /// It is removed.
    Wipe,
}

/// Removes an instance from any state. Its data disk is kept in the pool's `kept/`, unless `wipe_volumes`.
///
/// # Errors
/// Where it fails half-way, the next operation goes on with it.
pub fn destroy(
    operator: &mut Operator,
    path: &InstancePath,
    wipe_volumes: bool,
) -> Result<(), LifecycleError> {
    operator.net()?;
    let roots = operator.roots.clone();
    let _relief = relief::allow(&roots.root);
    let lock = lock_cancelling_sleep(&roots, path)?;
    let mut is_whole = true;
    let mut instance = match Instance::load_if_there(&roots, path) {
        Ok(Some(instance)) => instance,
        Ok(None) => {
            lock.remove();
            return Err(gone(path));
        }
        // Its lease still says which slot it has: that is all that has to be known to take it away.
        Err(damaged @ StoreError::Damaged { .. }) => {
            is_whole = false;
            from_lease(&roots, path)?.ok_or(damaged)?
        }
        Err(error) => return Err(error.into()),
    };
    let from = instance.status;
    let announce = |instance: &Instance| {
        operator.audit(instance, "destroy", Phase::Intent, |entry| entry.from = Some(from.to_string()))
    };
    if !is_whole {
        // A record that is damaged is no place for an intent that the log does not take.
        announce(&instance)?;
    }
    let before = instance.pending.clone();
    let is_half_made = before.as_ref().is_some_and(|intent| intent.operation == Operation::Create);
    // What was never leased to it must not look as if it were lost.
    if !is_half_made || lease::is_its(&roots, &instance) {
        instance.pending = Some(intent(&roots, Operation::Destroy { wipe_volumes }));
    }
    instance.save(&roots)?;
    if is_whole {
        let said = announce(&instance);
        begun(&roots, &mut instance, before, said)?;
    }
    failpoint::hit("destroy", "intent")?;
    let volumes = if wipe_volumes { Volumes::Wipe } else { Volumes::Keep };
    discard(operator, &instance, volumes, ("destroy", Phase::Done), "")?;
    lock.remove();
    Ok(())
}

/// An instance whose record cannot be read, as far as its lease tells.
fn from_lease(roots: &Roots, path: &InstancePath) -> Result<Option<Instance>, LifecycleError> {
    let (tenant, pool) = load_pool(roots, &path.pool_path())?;
    let Some(lease) = leases::of(roots, path)? else { return Ok(None) };
    Ok(Some(Instance::new(path, wiring::identity(&tenant, lease.offset, Vec::new()), &pool, lease.leased_at)))
}

/// Takes everything of an instance away. Its lease is given back last but one: as long as it is held, nobody else has
/// the slot, and once it is free, nothing of the slot is touched again. Its record goes last, after the line that says so.
pub(super) fn discard(
    operator: &mut Operator,
    instance: &Instance,
    volumes: Volumes,
    (what, phase): (&str, Phase),
    why: &str,
) -> Result<(), LifecycleError> {
    let roots = operator.roots.clone();
    let path = instance.path();
    launch::teardown_of(operator, instance, instance.find_vmm().as_ref(), Keep::Nothing)?;
    {
        // Under it nobody leases the slot anew.
        let _tenant_lock = lock_tenant(&roots, &path.tenant)?;
        if lease::is_its(&roots, instance) {
            let (tenant, pool) = load_pool(&roots, &path.pool_path())?;
            let rules = wiring::lease(&tenant, &pool, instance);
            operator.net()?;
            let _net_lock = wiring::lock(&roots, Sharing::Shared)?;
            operator.net()?.remove_lease(&wiring::tenant_net(&tenant), &rules)?;
            failpoint::hit("discard", "network")?;
            leases::free(&roots, &path.tenant, instance.net.offset)?;
        }
    }
    failpoint::hit("discard", "lease")?;
    if volumes == Volumes::Keep {
        keep_volume(&roots, &path)?;
    }
    failpoint::hit("discard", "volumes")?;
    operator.audit_end(instance, what, phase, |entry| {
        entry.from = Some(instance.status.to_string());
        entry.to = Some(State::Destroyed.to_string());
        entry.detail = Some(why.to_owned()).filter(|why| !why.is_empty());
    })?;
    failpoint::hit("discard", "audited")?;
    Ok(store::vanish(&config::folder(&roots, &path))?)
}

/// Where the data disks of destroyed instances are kept.
pub fn kept_folder(roots: &Roots, pool: &PoolPath) -> std::path::PathBuf {
    pool::config::folder(roots, pool).join("kept")
}

/// Where an instance's data disk is kept once it is destroyed.
pub(super) fn kept_disk(roots: &Roots, pool: &PoolPath, instance: &InstanceId) -> std::path::PathBuf {
    kept_folder(roots, pool).join(format!("{instance}.data.ext4"))
}

fn keep_volume(roots: &Roots, path: &InstancePath) -> Result<(), StoreError> {
    let from = config::folder(roots, path).join("volumes").join(files::DATA);
    if !from.exists() {
        return Ok(());
    }
    let kept = kept_folder(roots, &path.pool_path());
    store::make_folder(&kept)?;
    // No two instances of a pool have the same id while a disk is kept under it.
    let to = kept_disk(roots, &path.pool_path(), &path.instance);
    relief::retry(|| Ok(renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)?))
        .map_err(StoreError::io("keep", &from))?;
    store::sync_folder(&kept)
}
