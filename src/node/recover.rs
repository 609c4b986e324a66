//! Settling what was cut off, adopting what runs, reclaiming what belongs to nobody.

use std::{fmt::Display, path::Path};

use serde::Serialize;
use serde_json::Value;

use super::{NodeError, slots};
use crate::{
    infra::{config::Roots, relief, text::with_causes},
    security::audit::{self, Entry},
    store::{self, Lock, Sharing, StoreError},
    vm::{
        image,
        instance::{
            self,
            config::Instance,
            launch,
            lifecycle::{self, LifecycleError, Operator},
            net as wiring, snapshot,
            state::State,
        },
        naming::{InstancePath, PoolPath, TenantId},
        pool::{self, artifacts::Artifacts, base::Bases, config::Pool},
        room::{self, NodeConfig},
        tenant::{self, config::Tenant, leases, lifecycle::kept_audit_logs},
    },
    vmm::{install, spares},
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
    /// What could not be settled or removed, and why: a damaged file, for example. Everything else was gone on with.
    pub failed: Vec<String>,
    /// Instances among these whose VMM or guest is in the way.
    pub stuck: Vec<InstancePath>,
    /// Instances whose guests have older secrets than their tenant.
    pub behind: Vec<InstancePath>,
}

impl Recovered {
    /// What came of it; where nothing did, that is said, and all else is gone on with.
    pub(super) fn note<T>(
        &mut self,
        what: impl Display,
        result: Result<T, impl Into<NodeError>>,
    ) -> Option<T> {
        result.map_err(|error| self.failed.push(format!("{what}: {}", with_causes(&error.into())))).ok()
    }

    /// Is it, or something that it lies in, among what could not be settled?
    fn has_failed(&self, path: &str) -> bool {
        let subjects = self.failed.iter().filter_map(|line| line.split(": ").next());
        subjects.into_iter().any(|subject| {
            path.strip_prefix(subject).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// Settles every intent, adopts what runs, and reclaims what belongs to nobody: files of killed writers, leases,
/// reservations, VMMs and their directories, TAPs, rules, locks. What somebody works on at this moment is left to them,
/// and what cannot be settled or removed is in the way of nothing else.
///
/// # Errors
/// When there is no permission, or the state of the node itself cannot be read.
pub fn recover(operator: &mut Operator) -> Result<Recovered, NodeError> {
    let mut recovered = Recovered::default();
    let roots = operator.roots.clone();
    let _relief = relief::allow(&roots.root);
    operator.net()?;
    let there = There::look(&roots, &mut recovered)?;
    sweep(&roots, &there, &mut recovered);
    // What was cut off is settled in a slot that is its own.
    slots::restore_leases(&roots, &there, &mut recovered);
    for path in &there.instances {
        let settled = settle_one(operator, path, &mut recovered);
        if matches!(&settled, Err(NodeError::Lifecycle(error)) if error.is_of_the_vm()) {
            recovered.stuck.push(path.clone());
        }
        recovered.note(path, settled);
    }
    for (what, stage) in STAGES {
        let done = stage(operator, &mut recovered);
        recovered.note(what, done);
    }
    Ok(recovered)
}

/// Everything whose folder can be listed.
#[derive(Debug, Default)]
pub(super) struct There {
    tenants: Vec<TenantId>,
    pools: Vec<PoolPath>,
    pub(super) instances: Vec<InstancePath>,
}

impl There {
    pub(super) fn look(roots: &Roots, recovered: &mut Recovered) -> Result<Self, StoreError> {
        let mut there = Self { tenants: tenant::config::ids(roots)?, ..Self::default() };
        for tenant in &there.tenants {
            there
                .pools
                .extend(recovered.note(tenant, pool::config::paths(roots, tenant)).unwrap_or_default());
        }
        for pool in &there.pools {
            let paths = instance::config::paths(roots, pool);
            there.instances.extend(recovered.note(pool, paths).unwrap_or_default());
        }
        Ok(there)
    }
}

type Stage = fn(&mut Operator, &mut Recovered) -> Result<(), NodeError>;

/// What follows once the instances are settled; where one cannot be done, the others are.
const STAGES: [(&str, Stage); 7] = [
    ("destroyed tenants", finish_destroys),
    ("leases", slots::reclaim_leases),
    ("slots", slots::reclaim_slots),
    ("secrets", settle_secrets),
    ("the network", repair_network),
    // What is open there is said by all that was not settled before.
    ("audit logs", close_audit_logs),
    ("locks", remove_stale_locks),
];

/// Tenants that are gone by their logs.
fn finish_destroys(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    for id in tenant::config::ids(&operator.roots)? {
        match tenant::lifecycle::finish_destroy(operator, &id) {
            Ok(true) => recovered.settled.push(format!("{id}: its destroy is finished")),
            Ok(false) => {}
            Err(error) => recovered.failed.push(format!("{id}: {}", with_causes(&error))),
        }
    }
    Ok(())
}

/// Outcomes for what was cut off before it could write one; not for what could not be settled.
fn close_audit_logs(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    let roots = &operator.roots;
    let logs = tenant::config::ids(roots)?
        .into_iter()
        .map(|tenant| (tenant.to_string(), tenant::config::folder(roots, &tenant)))
        .chain([(audit::NODE.to_owned(), roots.node_log())]);
    for (whose, folder) in logs {
        let is_unsettled = |path: &str| recovered.has_failed(path) || is_being_settled(roots, path);
        let closed =
            audit::close_cut_off(roots, &whose, &folder, is_unsettled, |entry| changed_record(roots, entry));
        match recovered.note(&whose, closed.map_err(LifecycleError::from)) {
            None | Some(0) => {}
            Some(number) => recovered.settled.push(format!("{whose}: {number} open lines of its audit log")),
        }
    }
    Ok(())
}

/// What an entry of the log was to change, as it is now.
fn changed_record(roots: &Roots, entry: &Entry) -> Option<Value> {
    let now = match entry.what.as_str() {
        "tenant.update" => serde_json::to_value(Tenant::load(roots, &entry.path.parse().ok()?).ok()?),
        "pool.update" => serde_json::to_value(Pool::load(roots, &entry.path.parse().ok()?).ok()?),
        "tenant.secrets.set" | "tenant.secrets.rotate" | "tenant.secrets.remove" => {
            let all = tenant::secrets::stored(roots, &entry.path.parse().ok()?).ok()?;
            serde_json::to_value(tenant::secrets::versions(&all.unwrap_or_default()))
        }
        "node.update" => serde_json::to_value(NodeConfig::load_if_there(roots).ok()??),
        _ => return None,
    };
    now.ok()
}

/// Is that an instance with an intent of its own? Who has its lock at this moment settles it, and writes the line.
fn is_being_settled(roots: &Roots, path: &str) -> bool {
    let instance = path.parse().map(|path| Instance::load_if_there(roots, &path));
    matches!(instance, Ok(Ok(Some(instance))) if instance.pending.is_some())
}

/// What a cut-off change of secrets did not write down; secrets that are lost, or whose key is, are said, and guests that have
/// older ones.
fn settle_secrets(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    for tenant in tenant::config::ids(&operator.roots)? {
        let settled = tenant::secrets::settle(&operator.roots, &tenant)
            .and_then(|()| Ok(tenant::secrets::check(&operator.roots, &tenant).map(drop)?));
        match settled {
            // Destroyed meanwhile.
            Err(LifecycleError::NotFound { .. }) => {}
            settled => drop(recovered.note(format!("secrets of {tenant}"), settled)),
        }
        // What cannot be read was said before.
        recovered.behind.extend(lifecycle::behind(operator, &tenant).unwrap_or_default());
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
fn sweep(roots: &Roots, there: &There, recovered: &mut Recovered) {
    let mut folders = vec![
        roots.root.clone(),
        roots.root.join("run"),
        roots.vmm_versions(),
        roots.tenants(),
        kept_audit_logs(roots),
        roots.node_log(),
    ];
    folders.extend(recovered.note("images", image::folders(roots)).unwrap_or_default());
    folders
        .extend(install::list(roots).unwrap_or_default().iter().map(|one| spares::folder(&one.firecracker)));
    for tenant in &there.tenants {
        folders.push(tenant::config::folder(roots, tenant));
        folders.push(leases::folder(roots, tenant));
        folders.push(pool::config::pools_folder(roots, tenant));
    }
    for pool in &there.pools {
        folders.push(pool::config::folder(roots, pool));
        folders.push(instance::config::instances_folder(roots, pool));
        folders.extend(Artifacts::of(roots, pool).folders());
        folders.push(Bases::of(roots, pool).folder().to_path_buf());
    }
    for path in &there.instances {
        let folder = instance::config::folder(roots, path);
        folders.push(folder.join("volumes"));
        folders.push(snapshot::folder(roots, path));
        folders.push(folder);
    }
    const WHAT: &str = "unfinished files";
    for folder in folders {
        let left = recovered.note(WHAT, store::leftovers(&folder)).unwrap_or_default();
        let removed = left.iter().filter_map(|path| recovered.note(WHAT, store::remove_leftover(path)));
        let count = removed.count();
        if count > 0 {
            let place = folder.strip_prefix(&roots.root).unwrap_or(&folder).display().to_string();
            recovered.reclaimed.push(format!("{count} unfinished files of killed commands in {place}/"));
        }
    }
}

/// Locks of things that are no more, which nobody holds. Whoever waits for one finds out and takes a new one.
fn remove_stale_locks(operator: &mut Operator, recovered: &mut Recovered) -> Result<(), NodeError> {
    let roots = &operator.roots;
    for name in store::names(&roots.lock_file(""), |_| true)? {
        let there = match name.split('.').collect::<Vec<_>>()[..] {
            ["tenant" | "audit" | "base", tenant] => roots.tenants().join(tenant).exists(),
            ["pool" | "scale" | "import", tenant, pool] => {
                roots.tenants().join(tenant).join("pools").join(pool).exists()
            }
            ["instance" | "wish" | "run", tenant, pool, instance] => roots
                .tenants()
                .join(tenant)
                .join("pools")
                .join(pool)
                .join("instances")
                .join(instance)
                .exists(),
            _ => true,
        };
        if !there {
            recovered.note("locks", remove_lock(&roots.lock_file(&name)));
        }
    }
    Ok(())
}

/// Removes the file of a lock, unless somebody holds it.
fn remove_lock(file: &Path) -> Result<(), StoreError> {
    match Lock::try_take(file)? {
        Some(_lock) => store::remove_file(file),
        None => Ok(()),
    }
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
    let (before, last_exit) = (instance.generation, instance.last_exit.clone());
    match lifecycle::settle(operator, instance)? {
        None => recovered.settled.push(format!("{path}: what was left of it is gone")),
        Some(instance) if instance.generation != before => {
            let has_revision = Artifacts::of(&roots, &path.pool_path()).current()?.is_some();
            let state = lifecycle::effective_state(&instance, has_revision);
            // That of an earlier end says nothing of what was cut off now.
            let why = instance.last_exit.filter(|exit| Some(exit) != last_exit.as_ref());
            let why = why.map_or(String::new(), |exit| format!(" ({})", exit.why));
            recovered.settled.push(format!("{path}: {state}{why}"));
            if state.has_vmm() {
                recovered.adopted.push(path.clone());
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_something_that_failed_has_failed() {
        let failed = ["acme/web: cannot list /a: b", "globex/db/i-1: x", "leases of beta: y"];
        let recovered = Recovered { failed: failed.map(str::to_owned).to_vec(), ..Recovered::default() };
        for path in ["acme/web", "acme/web/i-2", "globex/db/i-1"] {
            assert!(recovered.has_failed(path), "{path}");
        }
        for path in ["acme", "acme/web2", "acme/web2/i-2", "globex/db/i-12", "beta"] {
            assert!(!recovered.has_failed(path), "{path}");
        }
    }
}
