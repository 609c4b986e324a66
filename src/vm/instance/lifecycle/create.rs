//! Making an instance.

use std::fs;

use super::{
    LifecycleError, Operator,
    destroy::{Volumes, discard, kept_disk},
    intent, lease, load_pool, lock_tenant,
    lookup::lock_instance,
};
use crate::{
    infra::{config::Roots, failpoint},
    net::egress::Port,
    security::audit::{Limits, Network, Phase},
    store::{self, Lock, Sharing, StoreError},
    vm::{
        fleet,
        instance::{
            config::{self, Instance, Operation},
            disk,
            fc_config::files,
            net as wiring,
            runner::{self, Failed, Step},
        },
        naming::{InstanceId, InstancePath, PoolPath},
        room::{self, NodeConfig},
        tenant::{config::Tenant, leases, quota::within},
    },
};

/// What an instance is made with.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Ports of the guest that are reachable on the host's own addresses.
    pub published: Vec<Port>,
}

struct Creation<'a> {
    operator: &'a mut Operator,
    tenant: Tenant,
    instance: Instance,
}

/// Makes an instance: a name, an address, a data disk, and the rules that go with the address.
///
/// # Errors
/// Nothing of it is left where it fails.
pub fn create(
    operator: &mut Operator,
    pool: &PoolPath,
    options: CreateOptions,
) -> Result<Instance, LifecycleError> {
    // The environment first: without the network there is no instance, and nothing shall be half made.
    operator.net()?;
    room::check_disk(&operator.roots, &NodeConfig::load(&operator.roots)?, 0)?;
    let roots = operator.roots.clone();
    let tenant_lock = lock_tenant(&roots, &pool.tenant)?;
    let (tenant, pool) = load_pool(&roots, pool)?;
    let path = pool.path();
    let instances = config::instances_folder(&roots, &path);
    store::make_folder(&instances)?;
    store::sweep(&instances)?;
    let there = config::paths(&roots, &path)?.len() as u64;
    within("max_instances_per_pool", there, 1, tenant.quotas.max_instances_per_pool.into())
        .map_err(|exceeded| LifecycleError::TooMany { tenant: tenant.tenant_id.clone(), exceeded })?;
    // Ports belong to the host: all tenants share them.
    let published_lock = match options.published.is_empty() {
        true => None,
        false => Some(lock_published(&roots)?),
    };
    check_published(&roots, &options.published)?;
    let (first, last) = tenant.offsets();
    let mut lost = lease::lost(&roots, &tenant.tenant_id);
    // Any that is given out may be that one's.
    lost.unknown.take().map_or(Ok(()), Err)?;
    let offset = leases::choose(&roots, &tenant, |offset| lost.has(offset))?.ok_or_else(|| {
        LifecycleError::NoAddress {
            tenant: tenant.tenant_id.clone(),
            count: u32::from(last.get()).saturating_sub(first.get().into()) + 1,
            subnet: tenant.network.ipv4_subnet.to_string(),
        }
    })?;
    let id = (0..)
        .map(|attempt| InstanceId::from_bits(roots.id_bits(attempt)))
        .find(|id| !instances.join(id).exists() && !kept_disk(&roots, &path, id).exists())
        .unwrap_or(InstanceId::from_bits(0));
    let path = InstancePath { tenant: path.tenant, pool: path.pool, instance: id };
    let net = wiring::identity(&tenant, offset, options.published);
    let mut instance = Instance::new(&path, net, &pool, roots.now());
    instance.pending = Some(intent(&roots, Operation::Create));
    let lock = lock_instance(&roots, &path)?;
    operator.audit(&instance, "create", Phase::Intent, |entry| {
        entry.limits = Some(Limits::from(instance.resources));
        entry.network = Some(Network::from(&instance.net));
    })?;
    let begun = begin(&roots, &instance);
    drop((tenant_lock, published_lock));
    let failed = |step| move |error: LifecycleError| Failed { step, error: error.into(), left: None };
    let mut creation = Creation { operator, tenant, instance: instance.clone() };
    let result = begun
        .map_err(failed("intent"))
        .and_then(|()| runner::run("create", &steps(), &mut creation))
        .and_then(|_| record(creation.operator, &mut instance).map_err(failed("record")));
    match result {
        Ok(()) => Ok(instance),
        Err(failed) => {
            let why = failed.error.to_string();
            let undone = discard(operator, &instance, Volumes::Wipe, ("create", Phase::Failed), &why);
            if undone.is_ok() {
                lock.remove();
            }
            Err(LifecycleError::step("create", failed, undone))
        }
    }
}

/// The record with the intent, and the lease. The caller holds the tenant's lock.
fn begin(roots: &Roots, instance: &Instance) -> Result<(), LifecycleError> {
    let path = instance.path();
    let place = config::folder(roots, &path);
    // The folder appears with its record in it, or not at all.
    let new = store::unfinished(&place);
    store::make_folder(&new)?;
    store::write(&new.join("instance.json"), instance)?;
    fs::rename(&new, &place).map_err(StoreError::io("rename", &new))?;
    store::sync_folder(&config::instances_folder(roots, &path.pool_path()))?;
    failpoint::hit("create", "intent")?;
    Ok(leases::hold(roots, &path, instance.net.offset)?)
}

// Nothing is undone step by step: a failed creation is discarded as a whole, as any other instance.
fn steps<'a>() -> [Step<Creation<'a>, LifecycleError>; 2] {
    [Step { name: "disk", run: make_disk, undo: None }, Step { name: "network", run: add_lease, undo: None }]
}

fn make_disk(creation: &mut Creation) -> Result<(), LifecycleError> {
    let volumes = config::folder(&creation.operator.roots, &creation.instance.path()).join("volumes");
    store::make_folder(&volumes)?;
    match creation.instance.resources.data_disk_mib {
        0 => Ok(()),
        size => Ok(disk::make_data_disk(&volumes.join(files::DATA), size)?),
    }
}

fn add_lease(creation: &mut Creation) -> Result<(), LifecycleError> {
    let roots = creation.operator.roots.clone();
    let tenant = wiring::tenant_net(&creation.tenant);
    let net = creation.operator.net()?;
    net.ensure_tenant(&tenant)?;
    let _lock = wiring::lock(&roots, Sharing::Shared)?;
    // Read under the lock: who changes the policy holds it alone.
    let (_, pool) = load_pool(&roots, &creation.instance.path().pool_path())?;
    let lease = wiring::lease(&creation.tenant, &pool, &creation.instance);
    Ok(creation.operator.net()?.add_lease(&lease)?)
}

/// The new state. Its line comes first, as a start's does.
fn record(operator: &Operator, instance: &mut Instance) -> Result<(), LifecycleError> {
    operator.audit(instance, "create", Phase::Done, |entry| {
        entry.to = Some(instance.status.to_string());
        entry.detail = Some(format!("address {} mac {}", instance.net.guest_ip, instance.net.mac));
    })?;
    failpoint::hit("create", "audited")?;
    instance.pending = None;
    instance.save(&operator.roots)?;
    Ok(failpoint::hit("create", "recorded")?)
}

fn lock_published(roots: &Roots) -> Result<Lock, StoreError> {
    Lock::take(&roots.lock_file("published"), "the published ports", Sharing::Exclusive, roots.lock_timeout)
}

fn check_published(roots: &Roots, wanted: &[Port]) -> Result<(), LifecycleError> {
    let place = |port: &Port| (port.protocol, port.host_port);
    for (at, port) in wanted.iter().enumerate() {
        if wanted[..at].iter().any(|other| place(other) == place(port)) {
            return Err(LifecycleError::PortTaken { port: port.to_string(), by: "this command".into() });
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    for path in fleet::instances(roots)? {
        let instance = match Instance::load_if_there(roots, &path) {
            Ok(Some(instance)) => instance,
            // The kernel still refuses what a record that cannot be read has published.
            Ok(None) | Err(StoreError::Damaged { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let taken = |port: &&Port| wanted.iter().any(|wanted| place(wanted) == place(port));
        if let Some(port) = instance.net.published.iter().find(taken) {
            return Err(LifecycleError::PortTaken { port: port.to_string(), by: path.to_string() });
        }
    }
    Ok(())
}
