//! Dropping what nobody needs, and hunting what rotted.

use std::{collections::BTreeSet, fmt::Display};

use super::NodeError;
use crate::{
    infra::{config::Roots, relief, text::with_causes},
    security::audit::{self, Entry, Phase},
    store::{self, Lock, Sharing, StoreError},
    vm::{
        fleet,
        instance::{
            self,
            config::Instance,
            lifecycle::{self, Operator},
            logs,
            snapshot::{self, Delta},
            state::State,
        },
        naming::{InstancePath, PoolPath},
        pool::{
            base::Bases,
            config::{Pool, VmmKind},
            lifecycle as pools,
        },
        room::NodeConfig,
        snapshot::SnapshotError,
        tenant::{config::Tenant, lifecycle::all_kept_audit_logs},
    },
    vmm::install,
};

/// Something that is not what was written, or could not be read.
#[derive(Debug)]
pub struct Damage {
    /// What it is: an instance, a pool, a base of one.
    pub path: String,
    /// What is wrong with it.
    pub error: NodeError,
}

impl Damage {
    fn of(path: impl Display, error: impl Into<NodeError>) -> Self {
        Self { path: path.to_string(), error: error.into() }
    }
}

/// What was dropped, and what was found to be damaged.
#[derive(Debug, Default)]
pub struct Collected {
    /// A line for each thing that is gone.
    pub dropped: Vec<String>,
    /// Snapshots that were read in whole.
    pub scrubbed: usize,
    /// Each that is not what was written, or could not be read.
    pub damaged: Vec<Damage>,
}

/// Drops files that nobody refers to: old revisions and base snapshots, VMM versions without a pool, logs beyond their
/// limit, audit logs beyond their retention, what earlier sleeps left. With `scrub` every snapshot is read and compared with its sums.
///
/// # Errors
/// When the node's own state cannot be read.
pub fn collect(operator: &Operator, scrub: bool) -> Result<Collected, NodeError> {
    let roots = &operator.roots;
    let _relief = relief::allow(&roots.root);
    let mut collected = Collected::default();
    for pool in fleet::pools(roots, None)? {
        if let Err(error) = collect_pool(operator, &pool, &mut collected.dropped) {
            collected.damaged.push(Damage::of(&pool, error));
        }
    }
    // What keeps all of them is said of the pool or the instance that does.
    let versions = collect_vmms(roots)?.removed;
    collected.dropped.extend(versions.into_iter().map(|version| format!("Firecracker {version}")));
    for path in fleet::instances(roots)? {
        sleeper(roots, &path, scrub, &mut collected)?;
    }
    if scrub {
        for pool in fleet::pools(roots, None)? {
            scrub_bases(roots, &pool, &mut collected)?;
        }
    }
    collect_audit_logs(roots, &mut collected)?;
    Ok(collected)
}

/// Drops what nobody refers to of one pool.
fn collect_pool(operator: &Operator, pool: &PoolPath, dropped: &mut Vec<String>) -> Result<(), NodeError> {
    let roots = &operator.roots;
    let (tenant, _) = lifecycle::load_pool(roots, pool)?;
    for instance in instance::config::paths(roots, pool)? {
        logs::cut(roots, &instance, tenant.quotas.log_mib)?;
    }
    let gone = pools::collect(operator, pool)?;
    dropped.extend(gone.revisions.iter().map(|one| format!("revision {} of {pool}", one.short())));
    dropped.extend(gone.bases.iter().map(|one| format!("base {} of {pool}", one.short())));
    Ok(())
}

/// Drops what lies beside an instance's snapshot, and scrubs it. Who is at work with it at this moment is left alone.
fn sleeper(
    roots: &Roots,
    path: &InstancePath,
    scrub: bool,
    collected: &mut Collected,
) -> Result<(), NodeError> {
    let Some(_lock) = lifecycle::try_lock(roots, path)? else { return Ok(()) };
    let instance = match Instance::load_if_there(roots, path) {
        Ok(Some(instance)) => instance,
        Ok(None) => return Ok(()),
        Err(error) => {
            collected.damaged.push(Damage::of(path, error));
            return Ok(());
        }
    };
    if instance.status != State::Sleeping || instance.pending.is_some() {
        return Ok(());
    }
    let found = match Delta::load(roots, path) {
        Ok(Some(mut delta)) => {
            delta.drop_others(roots)?;
            if !scrub {
                return Ok(());
            }
            collected.scrubbed += 1;
            let found = delta.scrub(roots, path);
            if matches!(found, Err(SnapshotError::Damaged { .. })) {
                delta.distrust(roots)?;
            }
            found
        }
        Ok(None) => Err(SnapshotError::Store(StoreError::Damaged {
            path: instance::snapshot::folder(roots, path),
            why: "the instance sleeps, and its snapshot is gone".into(),
        })),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = found {
        collected.damaged.push(Damage::of(path, error));
    }
    Ok(())
}

/// Reads a pool's bases in whole. Shared with starts, a base at a time: a large one is no reason for an import to give up.
fn scrub_bases(roots: &Roots, pool: &PoolPath, collected: &mut Collected) -> Result<(), NodeError> {
    let bases = Bases::of(roots, pool);
    for key in bases.all()? {
        let _lock = pools::lock(roots, pool, Sharing::Shared)?;
        match bases.scrub(&key) {
            Ok(true) => collected.scrubbed += 1,
            // It was dropped meanwhile.
            Ok(false) => {}
            Err(error) => {
                collected.scrubbed += 1;
                collected.damaged.push(Damage::of(format!("base {} of {pool}", key.short()), error));
            }
        }
    }
    Ok(())
}

/// VMM versions that were removed.
#[derive(Debug, Default)]
pub struct Versions {
    /// Those that nobody needs.
    pub removed: Vec<String>,
    /// What cannot be read, and may need any of them: then none is removed.
    pub unreadable: Vec<Damage>,
}

/// Removes the VMM versions that no pool, no instance and no snapshot names and that are not the default. Where one of those
/// cannot be read, all stay.
///
/// # Errors
/// When it cannot be listed what there is, or a version not removed.
pub fn collect_vmms(roots: &Roots) -> Result<Versions, StoreError> {
    let mut needed = BTreeSet::new();
    let mut unreadable = Vec::new();
    for pool in fleet::pools(roots, None)? {
        match Pool::load(roots, &pool) {
            Ok(pool) => needed.extend(pool.vmm_version),
            Err(error) => unreadable.push(Damage::of(pool, error)),
        }
    }
    for path in fleet::instances(roots)? {
        match Instance::load_if_there(roots, &path) {
            Ok(instance) => {
                let vmm = instance.and_then(|instance| instance.vmm);
                needed.extend(vmm.filter(|vmm| vmm.kind == VmmKind::Firecracker).map(|vmm| vmm.version));
            }
            Err(error) => unreadable.push(Damage::of(&path, error)),
        }
        match Delta::load(roots, &path) {
            // Nothing else reads what it wrote.
            Ok(delta) => needed.extend(delta.map(|delta| delta.origin.vmm_version)),
            Err(error) => unreadable.push(Damage::of(&path, error)),
        }
        // One that is being woken at this moment has neither in its record yet nor any more in its snapshot which VMM it is.
        if let Ok(Some(consumed)) = snapshot::consumed(roots, &path) {
            needed.insert(consumed.origin.vmm_version);
        }
    }
    if !unreadable.is_empty() {
        return Ok(Versions { removed: Vec::new(), unreadable });
    }
    let installed = install::list(roots)?;
    let newest = installed.last().map(|one| one.version.clone());
    let any_default = installed.iter().any(|one| one.default);
    let mut removed = Vec::new();
    for one in installed {
        let kept = one.default || (!any_default && Some(&one.version) == newest.as_ref());
        if !kept && !needed.contains(&one.version) {
            install::remove(roots, &one)?;
            removed.push(one.version);
        }
    }
    Ok(Versions { removed, unreadable })
}

/// The logs of destroyed tenants are kept for their retention, by the clock: that one goes is said in the node's log first.
/// What lies there and says of no tenant that it was destroyed goes by no clock.
fn collect_audit_logs(roots: &Roots, collected: &mut Collected) -> Result<(), NodeError> {
    // Two at once would say of one log twice that it goes.
    let what = "the logs of destroyed tenants";
    let _lock = Lock::take(&roots.lock_file("kept-logs"), what, Sharing::Exclusive, roots.lock_timeout)?;
    for folder in all_kept_audit_logs(roots)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let tenant = match store::read_if_there::<Tenant>(&folder.join("tenant.json")) {
            Ok(Some(tenant)) => tenant,
            Ok(None) => continue,
            Err(error) => {
                collected.damaged.push(Damage::of(format!("audit log {name}"), error));
                continue;
            }
        };
        let Some(at) = name.rsplit_once('-').and_then(|(_, at)| at.parse::<i64>().ok()) else { continue };
        let days = tenant.retention_days;
        if roots.now().as_second() - at <= i64::from(days) * 86_400 {
            continue;
        }
        let damaged = |why: String| {
            let error = StoreError::Damaged { path: folder.clone(), why };
            Damage::of(format!("audit log {name}"), error)
        };
        match audit::verify(roots, tenant.tenant_id.as_ref(), &folder) {
            Ok(verified) if verified.is_ended => {}
            Ok(_) => {
                let why = "it does not end with its tenant's destroy, and is kept";
                collected.damaged.push(damaged(why.to_owned()));
                continue;
            }
            Err(error) => {
                collected.damaged.push(damaged(with_causes(&error)));
                continue;
            }
        }
        let node = NodeConfig::load(roots)?;
        let mut entry = Entry::new("node.audit.drop", &node.node_id, Phase::Intent);
        entry.detail = Some(format!("{name}, kept for {days} days"));
        match super::announced(roots, entry, || Ok(store::vanish(&folder)?)) {
            Ok(()) => collected.dropped.push(format!("audit log {name}")),
            Err(error) => collected.damaged.push(damaged(with_causes(&error))),
        }
    }
    Ok(())
}
