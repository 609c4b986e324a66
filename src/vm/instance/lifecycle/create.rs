//! Making an instance.

use std::fs;

use super::{
    LifecycleError, Operator,
    destroy::{Volumes, discard},
    intent, load_pool, lock_tenant,
    lookup::lock_instance,
    report,
};
use crate::{
    infra::{config::Roots, failpoint},
    net::egress::Port,
    security::audit::Phase,
    store::{self, Schema, Sharing, StoreError},
    vm::{
        instance::{
            config::{self, Instance, Operation},
            disk,
            fc_config::files,
            net as wiring,
            runner::{self, Step},
            state::State,
        },
        naming::{InstanceId, PoolPath},
        pool::{self, config::Pool},
        room::{self, NodeConfig},
        tenant::{self, config::Tenant, leases, quota::within},
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
    pool: Pool,
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
    room::check_disk(&operator.roots, &NodeConfig::load(&operator.roots)?)?;
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
    check_published(&roots, &options.published)?;
    let (first, last) = tenant.offsets();
    let offset = leases::choose(&roots, &tenant)?.ok_or_else(|| LifecycleError::NoAddress {
        tenant: tenant.tenant_id.clone(),
        count: u32::from(last.get()).saturating_sub(first.get().into()) + 1,
        subnet: tenant.network.ipv4_subnet.to_string(),
    })?;
    let id = (0..)
        .map(|attempt| InstanceId::from_bits(roots.id_bits(attempt)))
        .find(|id| !instances.join(id).exists())
        .unwrap_or(InstanceId::from_bits(0));
    let mut instance = Instance {
        schema_version: Schema,
        generation: 1,
        tenant_id: tenant.tenant_id.clone(),
        pool_id: pool.pool_id.clone(),
        instance_id: id.clone(),
        status: State::Created,
        pending: Some(intent(&roots, Operation::Create)),
        net: wiring::identity(&tenant, offset, options.published),
        resources: pool.instance_resources,
        revision: None,
        vmm: None,
        created_at: roots.now(),
        entered_running_at: None,
        entered_stopped_at: None,
        last_receipt: None,
        last_exit: None,
    };
    let _lock = lock_instance(&roots, &instance.path())?;
    operator.audit(&instance, "create", Phase::Intent, |_| ())?;
    // The folder appears with its record in it, or not at all.
    let new = instances.join(format!(".new-{id}"));
    store::make_folder(&new)?;
    store::write(&new.join("instance.json"), &instance)?;
    fs::rename(&new, instances.join(&id)).map_err(StoreError::io("rename", &new))?;
    store::sync_folder(&instances)?;
    failpoint::hit("create", "intent")?;
    leases::hold(&roots, &instance.path(), offset)?;
    drop(tenant_lock);

    let steps: [Step<Creation, LifecycleError>; 2] = [
        Step {
            name: "disk",
            run: |creation| {
                let volumes =
                    config::folder(&creation.operator.roots, &creation.instance.path()).join("volumes");
                store::make_folder(&volumes)?;
                match creation.instance.resources.data_disk_mib {
                    0 => Ok(()),
                    size => Ok(disk::make_data_disk(&volumes.join(files::DATA), size)?),
                }
            },
            undo: None,
        },
        Step {
            name: "network",
            run: |creation| {
                let lease = wiring::lease(&creation.tenant, &creation.pool, &creation.instance);
                let tenant = wiring::tenant_net(&creation.tenant);
                let net = creation.operator.net()?;
                net.ensure_tenant(&tenant)?;
                let _lock = wiring::lock(&creation.operator.roots, Sharing::Shared)?;
                Ok(creation.operator.net()?.add_lease(&lease)?)
            },
            undo: None,
        },
    ];
    let mut creation = Creation { operator, tenant, pool, instance: instance.clone() };
    let result = runner::run("create", &steps, &mut creation);
    match result {
        Ok(_) => {
            instance.pending = None;
            instance.save(&roots)?;
            failpoint::hit("create", "recorded")?;
            operator.audit(&instance, "create", Phase::Done, |entry| {
                entry.to = Some(instance.status.to_string());
                entry.detail = Some(format!("address {} mac {}", instance.net.guest_ip, instance.net.mac));
            })?;
            Ok(instance)
        }
        Err(failed) => {
            let undone = discard(operator, &instance, Volumes::Wipe);
            Err(report(operator, &instance, "create", failed, undone))
        }
    }
}

fn check_published(roots: &Roots, wanted: &[Port]) -> Result<(), LifecycleError> {
    if wanted.is_empty() {
        return Ok(());
    }
    for tenant in tenant::config::ids(roots)? {
        for pool in pool::config::paths(roots, &tenant)? {
            for path in config::paths(roots, &pool)? {
                let Some(instance) = store::read_if_there::<Instance>(&config::file(roots, &path))? else {
                    continue;
                };
                let same = |port: &&Port| {
                    wanted.iter().any(|w| (w.protocol, w.host_port) == (port.protocol, port.host_port))
                };
                if let Some(port) = instance.net.published.iter().find(same) {
                    return Err(LifecycleError::PortTaken { port: port.to_string(), by: path });
                }
            }
        }
    }
    Ok(())
}
