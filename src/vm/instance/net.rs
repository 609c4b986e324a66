//! What the kernel's network needs to know of tenants and instances, read from their files.
//!
//! Locks: who adds or removes elements for a lease holds the network's lock shared; who rebuilds everything from the
//! files holds it exclusively, so that nothing is lost between reading the files and writing the rules.

use crate::{
    infra::config::Roots,
    net::{self, Desired, Net, NetError},
    store::{self, Durability, Lock, Sharing, StoreError},
    vm::{
        instance::{
            config::{self, Instance},
            lifecycle,
        },
        naming::{InstancePath, Offset, Slot},
        pool::{self, config::Pool},
        tenant::{self, config::Tenant},
    },
    vmm::process,
};

/// The network identity of an instance at an offset.
pub fn identity(tenant: &Tenant, offset: Offset, published: Vec<net::egress::Port>) -> config::InstanceNet {
    let slot = tenant.slot(offset);
    let subnet = tenant.network.ipv4_subnet;
    config::InstanceNet {
        offset,
        tap_dev: slot.tap(),
        mac: slot.mac(),
        guest_ip: subnet.address(offset),
        gateway_ip: subnet.gateway(),
        cidr: subnet,
        published,
    }
}

/// A tenant, as the kernel's network sees it.
pub fn tenant_net(tenant: &Tenant) -> net::TenantNet {
    net::TenantNet {
        net_id: tenant.network.tenant_net_id,
        subnet: tenant.network.ipv4_subnet,
        rates: net::TenantRates {
            max_conns: tenant.quotas.max_conns,
            new_per_second: tenant.quotas.conns_per_second,
        },
    }
}

/// An instance's lease, as the kernel's network sees it.
pub fn lease(tenant: &Tenant, pool: &Pool, instance: &Instance) -> net::Lease {
    net::Lease {
        slot: tenant.slot(instance.net.offset),
        ip: instance.net.guest_ip,
        subnet: tenant.network.ipv4_subnet,
        egress: pool.egress.clone(),
        published: instance.net.published.clone(),
    }
}

/// The network's lock.
///
/// # Errors
/// When somebody else holds it for too long.
pub fn lock(roots: &Roots, sharing: Sharing) -> Result<Lock, StoreError> {
    Lock::take(&roots.lock_file("net"), "the network", sharing, roots.lock_timeout)
}

/// What the kernel's network should be, from the files of all tenants.
///
/// # Errors
/// When the file of a tenant or a pool cannot be read: half a picture would be taken for the whole.
pub fn desired(roots: &Roots) -> Result<Desired, StoreError> {
    let mut desired = Desired::default();
    let boot_id = process::boot_id();
    for tenant in tenant::config::all(roots)? {
        desired.tenants.push(tenant_net(&tenant));
        if lifecycle::base::is_being_made(roots, &tenant.tenant_id)? {
            desired.busy.insert(lifecycle::base::slot(&tenant));
        }
        for pool_path in pool::config::paths(roots, &tenant.tenant_id)? {
            let pool = Pool::load(roots, &pool_path)?;
            for path in config::paths(roots, &pool_path)? {
                let read = Instance::load_if_there(roots, &path);
                let instance = match read {
                    Ok(Some(instance)) => instance,
                    // One that is made or destroyed at this moment may be gone again.
                    Ok(None) => continue,
                    Err(StoreError::Damaged { .. }) => {
                        desired_by_lease(roots, &tenant, &pool, &path, &mut desired)?;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                // One that is being made has no lease yet, or one that is being destroyed none any more.
                if !lifecycle::lease::is_its(roots, &instance) {
                    continue;
                }
                desired.leases.push(lease(&tenant, &pool, &instance));
                let slot = tenant.slot(instance.net.offset);
                if instance.pending.is_some() || instance.is_ungreeted() {
                    desired.busy.insert(slot);
                } else if instance.status.has_vmm() && instance.vmm_is_alive(&boot_id) {
                    desired.attached.push(slot);
                }
            }
        }
    }
    Ok(desired)
}

/// An instance whose record cannot be read keeps what its lease gives it: its neighbours must not suffer for it, and its
/// guest, where it runs, must stay as guarded as it was.
fn desired_by_lease(
    roots: &Roots,
    tenant: &Tenant,
    pool: &Pool,
    path: &InstancePath,
    desired: &mut Desired,
) -> Result<(), StoreError> {
    let Some(lease) = tenant::leases::of(roots, path)? else { return Ok(()) };
    let slot = tenant.slot(lease.offset);
    desired.leases.push(net::Lease {
        slot,
        ip: tenant.network.ipv4_subnet.address(lease.offset),
        subnet: tenant.network.ipv4_subnet,
        egress: pool.egress.clone(),
        published: Vec::new(),
    });
    let directory = roots.vmm_dir(&slot.tap());
    let directory = std::fs::canonicalize(&directory).unwrap_or(directory);
    if !process::find_in(&directory).is_empty() {
        desired.attached.push(slot);
    }
    Ok(())
}

/// Two slots of a tenant that no instance holds, for probes: the last ones, which are the last to be leased. The caller
/// holds the tenant's lock.
pub fn free_slots(roots: &Roots, tenant: &Tenant) -> Option<[Slot; 2]> {
    let lost = lifecycle::lease::lost(roots, &tenant.tenant_id);
    let is_free =
        |offset: &Offset| !tenant::leases::is_held(roots, &tenant.tenant_id, *offset) && !lost.has(*offset);
    let (first, last) = tenant.offsets();
    let mut free = (first.get()..=last.get()).rev().map(Offset::new).filter(is_free);
    Some([tenant.slot(free.next()?), tenant.slot(free.next()?)])
}

/// Makes the whole network from the files where this boot, or this network namespace, has not seen it yet.
///
/// # Errors
/// When the files cannot be read or the kernel refuses.
pub fn ensure<E>(roots: &Roots, net: &mut Net) -> Result<(), E>
where
    E: From<StoreError> + From<NetError>,
{
    let seen = roots.root.join("run/network");
    let here = here();
    // Somebody may have flushed all rules since: a guest must not start on a bridge that nothing guards.
    let is_whole = net.has_tables()? || tenant::config::ids(roots)?.is_empty();
    if is_whole && std::fs::read_to_string(&seen).is_ok_and(|text| text.trim() == here) {
        return Ok(());
    }
    let _lock = lock(roots, Sharing::Exclusive)?;
    net.repair(&desired(roots)?)?;
    store::make_folder(&roots.root.join("run"))?;
    store::replace(&seen, format!("{here}\n").as_bytes(), Durability::Atomic)?;
    Ok(())
}

/// Names the boot and the network namespace.
fn here() -> String {
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    format!("{} {}", process::boot_id(), namespace.display())
}
