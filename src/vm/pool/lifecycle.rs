//! Making, changing and destroying pools. What they run comes in by `import`.

use serde::Serialize;

use super::{
    artifacts::{ArtifactError, Artifacts, Manifest},
    base,
    config::{self, DesiredCounts, Pool, VmmKind},
    import,
};
use crate::{
    infra::{config::Roots, failpoint, relief},
    security::{
        audit::{self, AuditError, Entry, Phase},
        policy::SeccompPolicy,
    },
    store::{self, Lock, Sharing, StoreError},
    vm::{
        image::{ImageError, oci::OciError},
        instance::{
            self,
            config::Instance,
            fc_config::files,
            lifecycle::{self, LifecycleError, Operator, lease, lock_tenant},
            net as wiring,
        },
        naming::{BaseKey, PoolPath, RevisionHash},
        room::{self, NodeConfig, RoomError},
        tenant::{
            self,
            config::Tenant,
            quota::{Exceeded, within},
        },
    },
    vmm::install::InstallError,
};

/// Why an operation on a pool did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// There is a pool of that name with another content.
    #[error("pool {path} exists, and is another one: its {what} differs")]
    Exists {
        /// The pool.
        path: PoolPath,
        /// What differs.
        what: String,
    },
    /// The tenant has as many pools as its quota allows.
    #[error("the quota of tenant {tenant} does not allow it: {exceeded}")]
    TooMany {
        /// The tenant.
        tenant: String,
        /// Which limit.
        exceeded: Exceeded,
    },
    /// Somebody made an instance in it at this moment.
    #[error("{path} is not empty: something was made in it while it was destroyed")]
    NotEmpty {
        /// The pool.
        path: PoolPath,
    },
    /// Data would be lost.
    #[error("pool {path} has data disks: {disks}")]
    HasVolumes {
        /// The pool.
        path: PoolPath,
        /// Where.
        disks: String,
    },
    /// There is no such revision.
    #[error("pool {path} has no revision {wanted}; {there}")]
    NoSuchRevision {
        /// The pool.
        path: PoolPath,
        /// What was asked for.
        wanted: String,
        /// Those that there are.
        there: String,
    },
    /// More than one revision begins like that.
    #[error("{wanted} is ambiguous: {number} revisions begin like that")]
    AmbiguousRevision {
        /// What was asked for.
        wanted: String,
        /// How many begin like that.
        number: usize,
    },
    /// What an image from elsewhere runs is started by the agent.
    #[error("the guests of pool {path} have no agent, and an image from elsewhere needs one as its init")]
    NoAgent {
        /// The pool.
        path: PoolPath,
    },
    /// There is nothing to go back to.
    #[error("pool {path} has no earlier revision")]
    NoEarlierRevision {
        /// The pool.
        path: PoolPath,
    },
    /// Firecracker does not take that.
    #[error("{why}")]
    Resources {
        /// What is wrong.
        why: String,
    },
    /// The simulated VMM has no filter that a policy could choose.
    #[error("the simulated VMM has no seccomp filter: the strict one is for Firecracker")]
    SimulatedFilter,
    /// A production node refuses what is for trying out.
    #[error("this node is in production: {why}")]
    Production {
        /// What it refuses.
        why: &'static str,
    },
    /// The artifacts are not what they should be.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The image that the kernel was to come from.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image that was to be unpacked.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// No room.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// No VMM.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// One of its instances.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// A failpoint.
    #[error(transparent)]
    Failpoint(#[from] std::io::Error),
}

/// The lock of a pool's artifacts: exclusive for who changes them, shared for who starts something from them.
///
/// # Errors
/// When somebody else holds it for too long.
pub fn lock(roots: &Roots, path: &PoolPath, sharing: Sharing) -> Result<Lock, StoreError> {
    let name = format!("pool.{}.{}", path.tenant, path.pool);
    Lock::take(&roots.lock_file(&name), &format!("pool {path}"), sharing, roots.lock_timeout)
}

/// May there be such a pool on this node?
///
/// # Errors
/// [`PoolError::Production`] where there may not.
pub fn check_production(roots: &Roots, vmm: VmmKind, insecure: bool) -> Result<(), PoolError> {
    match NodeConfig::load(roots)?.production && (vmm == VmmKind::Sim || insecure) {
        true => Err(PoolError::Production { why: "it takes neither the simulated VMM nor --insecure" }),
        false => Ok(()),
    }
}

/// Makes a pool. True where it is new; the same again is well.
///
/// # Errors
/// [`PoolError`] names what is in the way.
pub fn create(operator: &Operator, pool: &Pool) -> Result<(Pool, bool), PoolError> {
    let roots = &operator.roots;
    check(pool, None)?;
    check_production(roots, pool.vmm, pool.insecure)?;
    room::check_disk(roots, &NodeConfig::load(roots)?, 0)?;
    let path = pool.path();
    lifecycle::load_tenant(roots, &path.tenant)?;
    let _lock = lock_tenant(roots, &path.tenant)?;
    let tenant = lifecycle::load_tenant(roots, &path.tenant)?;
    if let Some(there) = store::read_if_there::<Pool>(&config::file(roots, &path))? {
        return match difference(&there, pool) {
            None => Ok((there, false)),
            Some(what) => Err(PoolError::Exists { path, what }),
        };
    }
    let count = config::paths(roots, &path.tenant)?.len() as u64;
    within("max_pools", count, 1, tenant.quotas.max_pools.into())
        .map_err(|exceeded| PoolError::TooMany { tenant: path.tenant.to_string(), exceeded })?;
    let mut entry = Entry::new("pool.create", &path, Phase::Intent);
    entry.detail = Some(audit::pool_made(pool));
    let (folder, place) = (config::pools_folder(roots, &path.tenant), config::folder(roots, &path));
    let log = tenant::config::folder(roots, &path.tenant);
    audit::replace(roots, (path.tenant.as_ref(), &log), entry, [&false, &true], |is_there| {
        if !is_there {
            // What has that place and is not this one is somebody's.
            let own =
                store::read_if_there(&config::file(roots, &path))?.is_some_and(|there: Pool| there == *pool);
            return if own { Ok(store::vanish(&place)?) } else { Ok(()) };
        }
        store::make_folder(&folder)?;
        store::sweep(&folder)?;
        let new = store::unfinished(&place);
        store::make_folder(&new)?;
        store::write(&new.join("pool.json"), pool)?;
        store::rename(&new, &place)?;
        store::sync_folder(&folder)?;
        Ok::<_, PoolError>(failpoint::hit("pool-create", "in-place")?)
    })?;
    Ok((pool.clone(), true))
}

/// Can a pool be like that? What it was before, it may stay.
fn check(pool: &Pool, before: Option<&Pool>) -> Result<(), PoolError> {
    pool.instance_resources.check().map_err(|why| PoolError::Resources { why })?;
    let is_chosen = before.is_none_or(|before| before.seccomp_policy != pool.seccomp_policy);
    match (pool.vmm, pool.seccomp_policy) {
        (VmmKind::Sim, SeccompPolicy::Strict) if is_chosen => Err(PoolError::SimulatedFilter),
        _ => Ok(()),
    }
}

/// The first field in which two pools differ, but for what time and use put there.
fn difference(there: &Pool, wanted: &Pool) -> Option<String> {
    let mut same = wanted.clone();
    same.created_at = there.created_at;
    same.desired_counts = there.desired_counts;
    if wanted.vmm_version.is_none() {
        same.vmm_version.clone_from(&there.vmm_version);
    }
    let (there, wanted) = (serde_json::to_value(there).ok()?, serde_json::to_value(&same).ok()?);
    let fields = there.as_object()?;
    let name = |name: &String| there.get(name) != wanted.get(name);
    fields.keys().chain(wanted.as_object()?.keys()).find(|field| name(field)).cloned()
}

/// Changes a pool under its tenant's lock. What its instances get, they get at their next start; egress applies at once.
///
/// # Errors
/// When there is no such pool, or what it would be is not possible.
pub fn update(
    operator: &mut Operator,
    path: &PoolPath,
    change: impl FnOnce(&mut Pool),
) -> Result<(Pool, bool), PoolError> {
    // Also where nothing changes: a kill may have come between the file and the kernel.
    rewrite(operator, path, change, apply_egress)
}

/// Changes how many of a pool's instances there shall be: nothing of them but that.
pub(super) fn want(
    operator: &mut Operator,
    path: &PoolPath,
    change: impl FnOnce(&mut DesiredCounts),
) -> Result<(), PoolError> {
    rewrite(operator, path, |pool| change(&mut pool.desired_counts), |_, _, _| Ok(())).map(drop)
}

/// Rewrites a pool's record, and lets the change have its effect.
fn rewrite(
    operator: &mut Operator,
    path: &PoolPath,
    change: impl FnOnce(&mut Pool),
    apply: impl Fn(&mut Operator, &Tenant, &Pool) -> Result<(), PoolError>,
) -> Result<(Pool, bool), PoolError> {
    let roots = operator.roots.clone();
    let _lock = lock_tenant(&roots, &path.tenant)?;
    let (tenant, old) = lifecycle::load_pool(&roots, path)?;
    let mut pool = old.clone();
    change(&mut pool);
    check(&pool, Some(&old))?;
    if pool.insecure && !old.insecure {
        check_production(&roots, pool.vmm, true)?;
    }
    if pool == old {
        apply(operator, &tenant, &pool)?;
        return Ok((pool, false));
    }
    let mut entry = Entry::new("pool.update", path, Phase::Intent);
    entry.detail = audit::changes(&old, &pool);
    let folder = tenant::config::folder(&roots, &path.tenant);
    audit::replace(&roots, (path.tenant.as_ref(), &folder), entry, [&old, &pool], |pool| {
        pool.save(&roots)?;
        failpoint::hit("pool-update", "saved")?;
        apply(operator, &tenant, pool)
    })?;
    Ok((pool, true))
}

/// Gives the pool's instances its egress policy, where they have another one. Alone with the network: an instance that is
/// made at this moment reads the policy under the same lock.
fn apply_egress(operator: &mut Operator, tenant: &Tenant, pool: &Pool) -> Result<(), PoolError> {
    let roots = operator.roots.clone();
    let mut leases = Vec::new();
    for path in instance::config::paths(&roots, &pool.path())? {
        let instance = Instance::load_if_there(&roots, &path)?;
        if let Some(instance) = instance
            && lease::is_its(&roots, &instance)
        {
            leases.push(wiring::lease(tenant, pool, &instance));
        }
    }
    if leases.is_empty() {
        return Ok(());
    }
    operator.net()?;
    let _net_lock = wiring::lock(&roots, Sharing::Exclusive)?;
    Ok(operator.net()?.update_egress(&leases).map_err(LifecycleError::from)?)
}

/// Makes an earlier revision current: the one named, or the one before.
///
/// # Errors
/// When there is none; the current one stays where it fails.
pub fn rollback(
    operator: &Operator,
    path: &PoolPath,
    wanted: Option<&RevisionHash>,
) -> Result<(Manifest, bool), PoolError> {
    let roots = &operator.roots;
    lifecycle::load_pool(roots, path)?;
    let _lock = lock(roots, path, Sharing::Exclusive)?;
    let artifacts = Artifacts::of(roots, path);
    let current = artifacts.current()?;
    let there = artifacts.all()?;
    let revision = match wanted {
        Some(wanted) => {
            let matching: Vec<_> = there.iter().filter(|one| one.starts_with(wanted)).collect();
            match matching[..] {
                [one] => one.clone(),
                [_, _, ..] => {
                    return Err(PoolError::AmbiguousRevision {
                        wanted: wanted.to_string(),
                        number: matching.len(),
                    });
                }
                [] => {
                    let shorts: Vec<_> = there.iter().map(RevisionHash::short).collect();
                    let there = format!(
                        "it has {}",
                        if shorts.is_empty() { "none".into() } else { shorts.join(", ") }
                    );
                    return Err(PoolError::NoSuchRevision {
                        path: path.clone(),
                        wanted: wanted.to_string(),
                        there,
                    });
                }
            }
        }
        None => artifacts
            .history()?
            .entries
            .into_iter()
            .rev()
            .map(|entry| entry.revision)
            .find(|revision| Some(revision) != current.as_ref() && there.contains(revision))
            .ok_or_else(|| PoolError::NoEarlierRevision { path: path.clone() })?,
    };
    let manifest = artifacts.verify(&revision)?;
    if current.as_ref() == Some(&revision) {
        return Ok((manifest, false));
    }
    let mut entry = Entry::new("pool.rollback", path, Phase::Intent);
    entry.revision = Some(revision.to_string());
    entry.detail = current.map(|current| format!("from {}", current.short()));
    switch(roots, path, entry, (&revision, "rollback"))?;
    Ok((manifest, true))
}

/// Makes a revision the current one, between its lines in the log.
pub(super) fn switch(
    roots: &Roots,
    path: &PoolPath,
    entry: Entry,
    (revision, by): (&RevisionHash, &str),
) -> Result<(), PoolError> {
    let artifacts = Artifacts::of(roots, path);
    let folder = tenant::config::folder(roots, &path.tenant);
    let (was, new) = (artifacts.current()?, Some(revision.clone()));
    audit::replace(roots, (path.tenant.as_ref(), &folder), entry, [&was, &new], |current| {
        if artifacts.current()? != *current {
            artifacts.lead_to(current.as_ref())?;
            if *current == new {
                artifacts.remember(roots, revision, by)?;
            }
        }
        Ok(())
    })
}

/// What of a pool nothing needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Its revisions.
    pub revisions: Vec<RevisionHash>,
    /// Its base snapshots.
    pub bases: Vec<BaseKey>,
}

/// Removes revisions that are neither current nor any instance's, nor the one to roll back to, and base snapshots that are
/// neither current nor any instance's. Returns those removed.
///
/// # Errors
/// When one cannot be removed.
pub fn collect(operator: &Operator, path: &PoolPath) -> Result<Dropped, PoolError> {
    let roots = &operator.roots;
    lifecycle::load_pool(roots, path)?;
    let _lock = lock(roots, path, Sharing::Exclusive)?;
    let artifacts = Artifacts::of(roots, path);
    let current = artifacts.current()?;
    let history = artifacts.history()?.entries.into_iter().rev().map(|entry| entry.revision);
    let before = history.into_iter().find(|revision| Some(revision) != current.as_ref());
    let mut needed: Vec<RevisionHash> = current.into_iter().chain(before).collect();
    for instance in instance::config::paths(roots, path)? {
        let instance = Instance::load_if_there(roots, &instance)?;
        needed.extend(instance.and_then(|instance| instance.revision));
    }
    let mut removed = Vec::new();
    for revision in artifacts.all()?.into_iter().filter(|revision| !needed.contains(revision)) {
        artifacts.remove(&revision)?;
        removed.push(revision);
    }
    Ok(Dropped { revisions: removed, bases: base::collect(roots, path)? })
}

/// The data disks of a pool's instances, and those that are kept of destroyed ones.
///
/// # Errors
/// When a folder cannot be read.
pub fn volumes(roots: &Roots, path: &PoolPath) -> Result<Vec<String>, StoreError> {
    let mut disks = Vec::new();
    for path in instance::config::paths(roots, path)? {
        if instance::config::folder(roots, &path).join("volumes").join(files::DATA).exists() {
            disks.push(path.to_string());
        }
    }
    let kept = store::names(&lifecycle::kept_folder(roots, path), |name| !name.starts_with('.'))?;
    disks.extend(kept.into_iter().map(|name| format!("{path}/kept/{name}")));
    Ok(disks)
}

/// Destroys a pool with its instances.
///
/// # Errors
/// [`PoolError::HasVolumes`] where data would be lost and nobody said so.
pub fn destroy(operator: &mut Operator, path: &PoolPath, wipe_volumes: bool) -> Result<(), PoolError> {
    let roots = operator.roots.clone();
    let _relief = relief::allow(&roots.root);
    lifecycle::load_pool(&roots, path)?;
    refuse_to_lose(&roots, path, wipe_volumes)?;
    // Who unpacks an image there at this moment would go on in a folder that is being removed.
    let import_lock = import::lock(&roots, path, Sharing::Exclusive)?;
    let (log, entry) =
        (tenant::config::folder(&roots, &path.tenant), Entry::new("pool.destroy", path, Phase::Intent));
    let log = (path.tenant.as_ref(), log.as_path());
    let (lock, _tenant_lock) = audit::announced(&roots, log, entry, || {
        for instance in instance::config::paths(&roots, path)? {
            match lifecycle::destroy(operator, &instance, wipe_volumes) {
                // Somebody else was faster.
                Ok(()) | Err(LifecycleError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        failpoint::hit("pool-destroy", "instances")?;
        let locks = (lock(&roots, path, Sharing::Exclusive)?, lock_tenant(&roots, &path.tenant)?);
        if !instance::config::paths(&roots, path)?.is_empty() {
            return Err(PoolError::NotEmpty { path: path.clone() });
        }
        // Looked at again: what somebody made and destroyed since then may have left its disk.
        refuse_to_lose(&roots, path, wipe_volumes)?;
        let folder = config::folder(&roots, path);
        match store::vanish(&folder) {
            // What is left of it has no name any more.
            Err(_) if !folder.exists() => Ok(locks),
            vanished => Ok(vanished.map(|()| locks)?),
        }
    })?;
    failpoint::hit("pool-destroy", "audited")?;
    lock.remove();
    import_lock.remove();
    Ok(())
}

/// Refuses where data disks would be lost and nobody said so.
///
/// # Errors
/// [`PoolError::HasVolumes`] names them.
pub fn refuse_to_lose(roots: &Roots, path: &PoolPath, wipe_volumes: bool) -> Result<(), PoolError> {
    let disks = volumes(roots, path)?;
    if wipe_volumes || disks.is_empty() {
        return Ok(());
    }
    Err(PoolError::HasVolumes { path: path.clone(), disks: disks.join(", ") })
}
