//! Settling what was cut off, adopting what runs, reclaiming what belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::NodeError;
use crate::{
    infra::config::Roots,
    security::audit,
    store::{self, Lock, Sharing, StoreError},
    vm::{
        fleet, image,
        instance::{
            self,
            config::Instance,
            launch::{self, Keep},
            lifecycle::{self, Operator, lock_tenant},
            net as wiring, snapshot,
            state::State,
        },
        naming::{InstancePath, Slot},
        pool::{self, artifacts::Artifacts, base::Bases},
        room,
        tenant::{self, leases, lifecycle::kept_audit_logs, quota::Use},
    },
    vmm::process,
};
/// What recovery found and did, a line each.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Recovered {
    /// Instances whose last operation was cut off, or whose VMM had ended.
    pub settled: Vec<String>,
    /// Instances whose VMMs run on.
    pub adopted: Vec<InstancePath>,
    /// Things that belonged to nobody.
    pub reclaimed: Vec<String>,
    /// What was repaired in the kernel's network.
    pub network: Vec<String>,
    /// What could not be settled, and why: a damaged file, for example. Everything else was gone on with.
    pub failed: Vec<String>,
}

/// Settles every intent, adopts what runs, and reclaims what belongs to nobody: files of killed writers, leases,
/// reservations, VMMs and their directories, TAPs, rules, locks. What somebody works on at this moment is left to them.
///
/// # Errors
/// When there is no permission, or the state of the node itself cannot be read.
pub fn recover(operator: &mut Operator) -> Result<Recovered, NodeError> {
    let mut recovered = Recovered::default();
    let roots = operator.roots.clone();
    operator.net()?;
    sweep(&roots, &mut recovered)?;
    for path in fleet::instances(&roots)? {
        if let Err(error) = settle_one(operator, &path, &mut recovered) {
            recovered.failed.push(format!("{path}: {error}"));
        }
    }
    for (what, stage) in STAGES {
        if let Err(error) = stage(operator, &mut recovered) {
            recovered.failed.push(format!("{what}: {error}"));
        }
    }
    Ok(recovered)
}

type Stage = fn(&mut Operator, &mut Recovered) -> Result<(), NodeError>;

/// What follows once the instances are settled; where one cannot be done, the others are.
const STAGES: [(&str, Stage); 5] = [
    ("leases", reclaim_leases),
    ("slots", reclaim_slots),
    ("audit logs", close_audit_logs),
    ("the network", repair_network),
    ("locks", |operator, _| Ok(remove_stale_locks(&operator.roots)?)),
];

/// Outcomes for what was cut off before it could write one; not for what could not be settled.
fn close_audit_logs(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    let roots = &operator.roots;
    for tenant in tenant::config::ids(roots)? {
        let unsettled =
            |path: &str| recovered.failed.iter().any(|failed| failed.starts_with(&format!("{path}: ")));
        let folder = tenant::config::folder(roots, &tenant);
        match audit::close_cut_off(roots, tenant.as_ref(), &folder, unsettled) {
            Ok(0) => {}
            Ok(number) => recovered.settled.push(format!("{tenant}: {number} open lines of its audit log")),
            Err(error) => recovered.failed.push(format!("{tenant}: {error}")),
        }
    }
    Ok(())
}

fn repair_network(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    let roots = operator.roots.clone();
    let _lock = wiring::lock(&roots, Sharing::Exclusive)?;
    let desired = wiring::desired(&roots)?;
    recovered.network = operator.net()?.repair(&desired)?;
    if desired.tenants.is_empty() {
        operator.net()?.leave()?;
    }
    Ok(())
}

/// Removes what killed commands left unfinished; the names say whose it was.
fn sweep(roots: &Roots, recovered: &mut Recovered) -> Result<(), StoreError> {
    let mut folders = vec![
        roots.root.clone(),
        roots.root.join("run"),
        roots.vmm_versions(),
        roots.tenants(),
        kept_audit_logs(roots),
    ];
    folders.extend(image::folders(roots)?);
    for tenant in tenant::config::ids(roots)? {
        folders.push(tenant::config::folder(roots, &tenant));
        folders.push(leases::folder(roots, &tenant));
        folders.push(pool::config::pools_folder(roots, &tenant));
    }
    for pool in fleet::pools(roots, None)? {
        folders.push(pool::config::folder(roots, &pool));
        folders.push(instance::config::instances_folder(roots, &pool));
        folders.extend(Artifacts::of(roots, &pool).folders());
        folders.push(Bases::of(roots, &pool).folder().to_path_buf());
    }
    for path in fleet::instances(roots)? {
        let folder = instance::config::folder(roots, &path);
        folders.push(folder.join("volumes"));
        folders.push(snapshot::folder(roots, &path));
        folders.push(folder);
    }
    for folder in folders {
        let count = store::sweep(&folder)?;
        if count > 0 {
            let place = folder.strip_prefix(&roots.root).unwrap_or(&folder).display().to_string();
            recovered.reclaimed.push(format!("{count} unfinished files of killed commands in {place}/"));
        }
    }
    Ok(())
}

/// Locks of things that are no more, which nobody holds. Whoever waits for one finds out and takes a new one.
fn remove_stale_locks(roots: &Roots) -> Result<(), StoreError> {
    for name in store::names(&roots.lock_file(""), |_| true)? {
        let there = match name.split('.').collect::<Vec<_>>()[..] {
            ["tenant" | "audit", tenant] => roots.tenants().join(tenant).exists(),
            ["pool" | "scale", tenant, pool] => {
                roots.tenants().join(tenant).join("pools").join(pool).exists()
            }
            ["instance" | "wake", tenant, pool, instance] => roots
                .tenants()
                .join(tenant)
                .join("pools")
                .join(pool)
                .join("instances")
                .join(instance)
                .exists(),
            _ => true,
        };
        if !there && let Some(lock) = Lock::try_take(&roots.lock_file(&name))? {
            lock.remove();
        }
    }
    Ok(())
}

fn settle_one(
    operator: &mut Operator,
    path: &InstancePath,
    recovered: &mut Recovered,
) -> Result<(), NodeError> {
    let roots = operator.roots.clone();
    let Some(instance) = Instance::load_if_there(&roots, path)? else {
        return Ok(());
    };
    let before = instance.generation;
    match lifecycle::settle(operator, instance)? {
        None => recovered.settled.push(format!("{path}: what was left of it is gone")),
        Some(instance) if instance.generation != before => {
            let has_revision = Artifacts::of(&roots, &path.pool_path()).current()?.is_some();
            let state = lifecycle::effective_state(&instance, has_revision);
            let why = instance.last_exit.map(|exit| exit.why).unwrap_or_default();
            recovered.settled.push(format!("{path}: {state} ({why})"));
        }
        Some(instance) if instance.status.has_vmm() => recovered.adopted.push(path.clone()),
        Some(instance) if instance.status == State::Sleeping => keep_place(&roots, &instance)?,
        Some(_) => {}
    }
    Ok(())
}

/// A sleeper's place on the disk stays reserved: what a power cut took of that is written again.
fn keep_place(roots: &Roots, instance: &Instance) -> Result<(), NodeError> {
    let slot = instance.slot(roots)?;
    let Some(_lock) = lifecycle::try_lock(roots, &instance.path())? else { return Ok(()) };
    let sleeps = Instance::load_if_there(roots, &instance.path())?
        .is_some_and(|fresh| fresh.generation == instance.generation);
    if sleeps && room::of_slot(roots, slot)?.is_none() {
        room::note(roots, slot, launch::takes_of(roots, instance)?.asleep())?;
    }
    Ok(())
}

/// Leases whose instances are not there.
fn reclaim_leases(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    let roots = operator.roots.clone();
    for tenant in tenant::config::ids(&roots)? {
        let _lock = lock_tenant(&roots, &tenant)?;
        for lease in leases::held(&roots, &tenant)? {
            if !instance::config::folder(&roots, &lease.instance).exists() {
                leases::free(&roots, &lease.instance, lease.offset)?;
                recovered.reclaimed.push(format!("lease {} of {}", lease.offset, lease.instance));
            }
        }
    }
    Ok(())
}

/// Removes VMM directories, TAPs and reservations of slots in which nothing runs and on which nobody works; returns what
/// was removed, a line each.
///
/// # Errors
/// When one cannot be removed.
pub fn reclaim(operator: &mut Operator) -> Result<Vec<String>, NodeError> {
    let mut recovered = Recovered::default();
    reclaim_slots(operator, &mut recovered)?;
    Ok(recovered.reclaimed)
}

fn reclaim_slots(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    let roots = operator.roots.clone();
    let reserved: BTreeMap<Slot, Use> = room::reserved(&roots)?.into_iter().collect();
    let directories = store::names(&roots.vmm_dirs(), |_| true)?;
    let mut has_parts: BTreeSet<Slot> = directories.iter().filter_map(|name| Slot::from_tap(name)).collect();
    has_parts.extend(operator.net()?.list_taps()?);
    let slots: BTreeSet<Slot> = reserved.keys().chain(&has_parts).copied().collect();
    let owners: std::collections::HashMap<Slot, InstancePath> =
        wiring::held_slots(&roots)?.into_iter().collect();
    let tenants = tenant::config::all(&roots)?;
    let boot_id = process::boot_id();
    for slot in slots {
        let mut keep = Keep::Nothing;
        let _lock = match owners.get(&slot) {
            Some(path) => {
                let Some(lock) = lifecycle::try_lock(&roots, path)? else {
                    continue;
                };
                // Somebody may have given the slot back, and another one taken it, since the leases were read.
                if !leases::is_held_by(&roots, path, slot.offset)? {
                    continue;
                }
                match Instance::load_if_there(&roots, path) {
                    Ok(Some(instance)) if instance.vmm_is_alive(&boot_id) => continue,
                    Ok(Some(instance))
                        if instance.status == State::Sleeping && instance.pending.is_none() =>
                    {
                        let takes = launch::takes_of(&roots, &instance)?;
                        if !has_parts.contains(&slot) && reserved.get(&slot) == Some(&takes.asleep()) {
                            continue;
                        }
                        keep = Keep::Asleep(takes);
                        Some(lock)
                    }
                    Ok(_) => Some(lock),
                    // What a record that cannot be read says of its VMM is not known: it is left alone.
                    Err(_) => continue,
                }
            }
            None => match tenants.iter().find(|tenant| tenant.network.tenant_net_id == slot.net_id) {
                Some(tenant) => {
                    let lock = lock_tenant(&roots, &tenant.tenant_id)?;
                    let held = leases::held(&roots, &tenant.tenant_id)?;
                    if held.iter().any(|lease| lease.offset == slot.offset) {
                        continue;
                    }
                    Some(lock)
                }
                None => None,
            },
        };
        launch::teardown(operator, slot, None, keep)?;
        recovered.reclaimed.push(format!("what was left in slot {}", slot.tap()));
    }
    Ok(())
}
