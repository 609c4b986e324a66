//! Making, changing and destroying tenants.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use crate::{
    infra::{config::Roots, failpoint, relief},
    net::NetError,
    security::audit::{self, AuditError, Entry, Phase},
    store::{self, Lock, Schema, Sharing, StoreError},
    vm::{
        instance::{
            lifecycle::{self, LifecycleError, Operator, lock_tenant},
            net as wiring,
        },
        naming::{NetId, Offset, Slot, Subnet, TenantId},
        pool::{self, lifecycle::PoolError},
        room::{self, NodeConfig, RoomError},
        tenant::{
            config::{self, Tenant, TenantNetwork},
            quota::{self, Quotas},
            secrets::{self, SecretsError},
        },
    },
};

/// Why an operation on a tenant did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// There is a tenant of that name with another content.
    #[error("tenant {id} exists, and its {what} is {is}, not {wanted}")]
    Exists {
        /// The tenant.
        id: TenantId,
        /// What differs.
        what: &'static str,
        /// As it is.
        is: String,
        /// As it was asked for.
        wanted: String,
    },
    /// The net id belongs to another tenant.
    #[error("net id {net_id} belongs to tenant {by}")]
    NetIdUsed {
        /// The net id.
        net_id: NetId,
        /// The other tenant.
        by: TenantId,
    },
    /// Something of an earlier tenant with that net id is left.
    #[error("net id {net_id} cannot be given out again yet: {left} of an earlier tenant is left")]
    NetIdLeft {
        /// The net id.
        net_id: NetId,
        /// What is left.
        left: String,
    },
    /// The subnet shares addresses with another tenant's.
    #[error("subnet {subnet} overlaps {other} of tenant {by}")]
    Overlap {
        /// The subnet.
        subnet: Subnet,
        /// The other one.
        other: Subnet,
        /// Its tenant.
        by: TenantId,
    },
    /// A range of offsets that holds none.
    #[error(
        "the offset range {first} to {last} holds none of the offsets {low} to {high} that {subnet} has for instances"
    )]
    OffsetRange {
        /// Its first.
        first: Offset,
        /// Its last.
        last: Offset,
        /// The first possible.
        low: Offset,
        /// The last possible.
        high: Offset,
        /// The subnet.
        subnet: Subnet,
    },
    /// Data would be lost.
    #[error("tenant {id} has data disks: {disks}")]
    HasVolumes {
        /// The tenant.
        id: TenantId,
        /// Where.
        disks: String,
    },
    /// Its secrets.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// No room.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel's network refused.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// One of its instances.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// One of its pools.
    #[error(transparent)]
    Pool(#[from] Box<PoolError>),
    /// A failpoint.
    #[error(transparent)]
    Failpoint(#[from] std::io::Error),
}

/// A tenant to be.
pub struct TenantSpec<'a> {
    /// Its id.
    pub id: TenantId,
    /// Its number in the cluster.
    pub net_id: NetId,
    /// Its addresses.
    pub subnet: Subnet,
    /// The offsets that this node may lease.
    pub offset_range: Option<(Offset, Offset)>,
    /// Puts what is given of its quotas into those that it has, or has by default.
    pub quotas: &'a dyn Fn(&mut Quotas),
}

/// Makes a tenant and its bridge. True where it is new; the same again is well.
///
/// # Errors
/// [`TenantError`] names what is in the way.
pub fn create(operator: &mut Operator, spec: &TenantSpec<'_>) -> Result<(Tenant, bool), TenantError> {
    operator.net()?;
    let roots = operator.roots.clone();
    finish_destroy(operator, &spec.id)?;
    room::check_disk(&roots, &NodeConfig::load(&roots)?, 0)?;
    let _lock = lock_tenant(&roots, &spec.id)?;
    // Net ids and subnets belong to the node: looked at and taken under its lock, which is held for nothing longer.
    let node_lock = room::lock(&roots)?;
    if let Some(tenant) = store::read_if_there::<Tenant>(&config::file(&roots, &spec.id))? {
        drop(node_lock);
        same(&tenant, spec)?;
        bring_up(operator, &tenant)?;
        return Ok((tenant, false));
    }
    check_network(&roots, spec)?;
    let mut quotas = Quotas::default();
    (spec.quotas)(&mut quotas);
    let tenant = Tenant {
        schema_version: Schema,
        tenant_id: spec.id.clone(),
        created_at: roots.now(),
        network: TenantNetwork {
            tenant_net_id: spec.net_id,
            ipv4_subnet: spec.subnet,
            gateway_ip: spec.subnet.gateway(),
            offset_range: spec.offset_range,
        },
        quotas,
        pinned: false,
        retention_days: 90,
        secrets_generation: None,
    };
    let folder = roots.tenants();
    store::make_folder(&folder)?;
    store::sweep(&folder)?;
    let new = store::unfinished(&config::folder(&roots, &spec.id));
    store::make_folder(&new)?;
    store::write(&new.join("tenant.json"), &tenant)?;
    let mut entry = Entry::new("tenant.create", &spec.id, Phase::Intent);
    entry.detail = Some(audit::tenant_made(&tenant));
    audit::begin(&roots, spec.id.as_ref(), &new, entry)?;
    store::rename(&new, &config::folder(&roots, &spec.id))?;
    store::sync_folder(&folder)?;
    drop(node_lock);
    failpoint::hit("tenant-create", "in-place")?;
    if let Err(error) = bring_up(operator, &tenant) {
        // A bridge of that name that is somebody's stays theirs: then the tenant that needs it is not made.
        let _ = operator.net()?.remove_tenant(&wiring::tenant_net(&tenant));
        let _ = store::vanish(&config::folder(&roots, &spec.id));
        return Err(error);
    }
    failpoint::hit("tenant-create", "network")?;
    let (made, folder) =
        (Entry::new("tenant.create", &spec.id, Phase::Intent), config::folder(&roots, &spec.id));
    audit::outcome(&roots, (spec.id.as_ref(), &folder), made, Ok((tenant, true)))
}

fn bring_up(operator: &mut Operator, tenant: &Tenant) -> Result<(), TenantError> {
    operator.net()?;
    let _lock = wiring::lock(&operator.roots, Sharing::Shared)?;
    Ok(operator.net()?.ensure_tenant(&wiring::tenant_net(tenant))?)
}

fn same(tenant: &Tenant, spec: &TenantSpec<'_>) -> Result<(), TenantError> {
    let differs = |what, is: String, wanted: String| {
        if is == wanted { Ok(()) } else { Err(TenantError::Exists { id: spec.id.clone(), what, is, wanted }) }
    };
    let network = &tenant.network;
    differs("net id", network.tenant_net_id.to_string(), spec.net_id.to_string())?;
    differs("subnet", network.ipv4_subnet.to_string(), spec.subnet.to_string())?;
    // What was not given is not asked for: the same line again is well, whatever was updated since.
    if let Some((first, last)) = spec.offset_range {
        let (low, high) = tenant.offsets();
        let is = network.offset_range.unwrap_or((low, high));
        differs("offset range", format!("{}-{}", is.0, is.1), format!("{first}-{last}"))?;
    }
    let mut wanted = tenant.quotas.clone();
    (spec.quotas)(&mut wanted);
    match quota::difference(&tenant.quotas, &wanted) {
        Some((what, is, wanted)) => differs(what, is, wanted),
        None => Ok(()),
    }
}

fn check_network(roots: &Roots, spec: &TenantSpec<'_>) -> Result<(), TenantError> {
    for other in config::all(roots)? {
        let network = &other.network;
        if network.tenant_net_id == spec.net_id {
            return Err(TenantError::NetIdUsed { net_id: spec.net_id, by: other.tenant_id });
        }
        if network.ipv4_subnet.overlaps(spec.subnet) {
            let (subnet, other_subnet) = (spec.subnet, network.ipv4_subnet);
            return Err(TenantError::Overlap { subnet, other: other_subnet, by: other.tenant_id });
        }
    }
    let left = |left: String| Err(TenantError::NetIdLeft { net_id: spec.net_id, left });
    for name in store::names(&roots.vmm_dirs(), |_| true)? {
        if Slot::from_tap(&name).is_some_and(|slot| slot.net_id == spec.net_id) {
            return left(format!("the VMM directory {name}"));
        }
    }
    if room::reserved(roots)?.iter().any(|(slot, _)| slot.net_id == spec.net_id) {
        return left("a reservation".into());
    }
    if let Some((first, last)) = spec.offset_range {
        let (low, high) = (Offset::FIRST_INSTANCE, spec.subnet.last_offset());
        if first > last || last < low || first > high {
            return Err(TenantError::OffsetRange { first, last, low, high, subnet: spec.subnet });
        }
    }
    Ok(())
}

/// Changes a tenant under its lock.
///
/// # Errors
/// When there is no such tenant, or it cannot be written.
pub fn update(
    operator: &mut Operator,
    id: &TenantId,
    change: impl FnOnce(&mut Tenant),
) -> Result<(Tenant, bool), TenantError> {
    let roots = operator.roots.clone();
    let _lock = lock_tenant(&roots, id)?;
    let old = lifecycle::load_tenant(&roots, id)?;
    let mut tenant = old.clone();
    change(&mut tenant);
    if tenant == old {
        // A kill may have come between the file and the kernel.
        bring_up(operator, &tenant)?;
        return Ok((tenant, false));
    }
    let mut entry = Entry::new("tenant.update", id, Phase::Intent);
    entry.detail = audit::changes(&old, &tenant);
    let folder = config::folder(&roots, id);
    audit::replace(&roots, (id.as_ref(), &folder), entry, [&old, &tenant], |tenant| {
        tenant.save(&roots)?;
        failpoint::hit("tenant-update", "saved")?;
        bring_up(operator, tenant)
    })?;
    Ok((tenant, true))
}

/// The data disks that destroying a tenant would have to wipe.
///
/// # Errors
/// When a folder cannot be read.
pub fn volumes(roots: &Roots, id: &TenantId) -> Result<Vec<String>, StoreError> {
    let mut disks = Vec::new();
    for path in pool::config::paths(roots, id)? {
        disks.extend(pool::lifecycle::volumes(roots, &path)?);
    }
    Ok(disks)
}

/// Destroys a tenant with its pools and instances. Its audit log is kept under `audit/` for its retention.
///
/// # Errors
/// [`TenantError::HasVolumes`] where data would be lost and nobody said so.
pub fn destroy(operator: &mut Operator, id: &TenantId, wipe_volumes: bool) -> Result<(), TenantError> {
    operator.net()?;
    let roots = operator.roots.clone();
    let _relief = relief::allow(&roots.root);
    lifecycle::load_tenant(&roots, id)?;
    refuse_to_lose(&roots, id, wipe_volumes)?;
    let (log, entry) = (config::folder(&roots, id), Entry::new("tenant.destroy", id, Phase::Intent));
    let lock = audit::announced(&roots, (id.as_ref(), &log), entry, || {
        for path in pool::config::paths(&roots, id)? {
            pool::lifecycle::destroy(operator, &path, wipe_volumes).map_err(Box::new)?;
        }
        failpoint::hit("tenant-destroy", "pools")?;
        let lock = lock_tenant(&roots, id)?;
        // Somebody else may have been faster, and a third one may have made it anew.
        let tenant = lifecycle::load_tenant(&roots, id)?;
        // A pool that was made between the two looks is somebody's: the next destroy takes it.
        if let Some(path) = pool::config::paths(&roots, id)?.first() {
            return Err(Box::new(PoolError::NotEmpty { path: path.clone() }).into());
        }
        {
            let _net_lock = wiring::lock(&roots, Sharing::Shared)?;
            operator.net()?.remove_tenant(&wiring::tenant_net(&tenant))?;
        }
        failpoint::hit("tenant-destroy", "network")?;
        // From here on it has nothing that could need them.
        secrets::shred(&roots, id)?;
        failpoint::hit("tenant-destroy", "shredded")?;
        Ok::<_, TenantError>(lock)
    })?;
    remove(operator, id, lock)
}

/// Finishes a destroy that was cut off behind its last line in the audit log. True where there was one.
///
/// # Errors
/// When something cannot be read or removed, or the log that says so is not whole.
pub fn finish_destroy(operator: &mut Operator, id: &TenantId) -> Result<bool, TenantError> {
    let (roots, folder) = (operator.roots.clone(), config::folder(&operator.roots, id));
    let is_destroyed = || -> Result<bool, AuditError> {
        Ok(audit::says_ended(&folder)? && audit::verify(&roots, id.as_ref(), &folder)?.is_ended)
    };
    if !is_destroyed()? {
        return Ok(false);
    }
    let _relief = relief::allow(&roots.root);
    let lock = lock_tenant(&roots, id)?;
    // Somebody may have finished it, or gone on with it, before this lock was had.
    if !is_destroyed()? || !pool::config::paths(&roots, id)?.is_empty() {
        return Ok(false);
    }
    remove(operator, id, lock)?;
    Ok(true)
}

/// What follows the last line of a destroy: the log is kept elsewhere, and the rest goes.
fn remove(operator: &mut Operator, id: &TenantId, lock: Lock) -> Result<(), TenantError> {
    let roots = operator.roots.clone();
    keep_audit_log(&roots, id)?;
    failpoint::hit("tenant-destroy", "kept")?;
    store::vanish(&config::folder(&roots, id))?;
    let net_lock = wiring::lock(&roots, Sharing::Exclusive)?;
    // A tenant that is made at this moment is in its place before it waits for this lock.
    if config::ids(&roots)?.is_empty() {
        operator.net()?.leave()?;
    }
    drop(net_lock);
    store::remove_file(&roots.lock_file(&format!("audit.{id}")))?;
    lock.remove();
    Ok(())
}

/// Refuses where data disks would be lost and nobody said so.
///
/// # Errors
/// [`TenantError::HasVolumes`] names them.
pub fn refuse_to_lose(roots: &Roots, id: &TenantId, wipe_volumes: bool) -> Result<(), TenantError> {
    let disks = volumes(roots, id)?;
    if wipe_volumes || disks.is_empty() {
        return Ok(());
    }
    Err(TenantError::HasVolumes { id: id.clone(), disks: disks.join(", ") })
}

/// `audit/`: the logs of destroyed tenants.
pub fn kept_audit_logs(roots: &Roots) -> std::path::PathBuf {
    roots.root.join("audit")
}

/// Where the logs of destroyed tenants of that name are kept, the last one first.
///
/// # Errors
/// When the folder cannot be read.
pub fn kept_audit_logs_of(roots: &Roots, id: &TenantId) -> Result<Vec<std::path::PathBuf>, StoreError> {
    let folder = kept_audit_logs(roots);
    let destroyed_at =
        |name: &str| name.strip_prefix::<&str>(id.as_ref())?.strip_prefix('-')?.parse::<u64>().ok();
    let mut kept = store::names(&folder, |name| destroyed_at(name).is_some())?;
    kept.sort_by_key(|name| std::cmp::Reverse(destroyed_at(name)));
    Ok(kept.into_iter().map(|name| folder.join(name)).collect())
}

/// Where the logs of all destroyed tenants are kept.
///
/// # Errors
/// When the folder cannot be read.
pub fn all_kept_audit_logs(roots: &Roots) -> Result<Vec<std::path::PathBuf>, StoreError> {
    let folder = kept_audit_logs(roots);
    let names = store::names(&folder, |name| !name.starts_with('.'))?;
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn keep_audit_log(roots: &Roots, id: &TenantId) -> Result<(), StoreError> {
    let (folder, own) = (kept_audit_logs(roots), config::folder(roots, id));
    // Killed before the tenant's own names of these files went: one destroy leaves one log.
    let place = |folder: &Path| fs::metadata(audit::log_file(folder)).ok().map(|log| (log.dev(), log.ino()));
    if kept_audit_logs_of(roots, id)?.iter().any(|kept| place(kept).is_some_and(|it| Some(it) == place(&own)))
    {
        return Ok(());
    }
    store::make_folder(&folder)?;
    let now = roots.now().as_second();
    let kept = (now..).map(|at| folder.join(format!("{id}-{at}"))).find(|path| !path.exists());
    let kept = kept.unwrap_or_else(|| folder.join(format!("{id}-{now}")));
    let new = store::unfinished(&kept);
    store::make_folder(&new)?;
    // A second name for each: a log is as large as it is, and the disk may be full.
    for name in audit::names(&own)?.into_iter().chain(["tenant.json".to_owned()]) {
        let (from, to) = (own.join(&name), new.join(&name));
        relief::retry(|| fs::hard_link(&from, &to)).map_err(StoreError::io("keep", &from))?;
    }
    store::sync_folder(&new)?;
    store::rename(&new, &kept)?;
    store::sync_folder(&folder)
}
