//! What a launch is refused for before anything of it begins: what a start and a wake ask alike, and all of it, of an instance that
//! does not run, where somebody wants to know why.

use super::{LifecycleError, Operator, check_production, load_pool, start};
use crate::{
    vm::{
        instance::{config::Instance, guard::Guard, launch, snapshot::Delta, state::State},
        naming::TenantId,
        pool::{
            artifacts::Artifacts,
            config::{AgentMode, VmmKind},
        },
        room::{self, NodeConfig},
        tenant,
    },
    vmm::{install, process::Program},
};

/// The program that a launch gets, where neither the node's production nor the key of its tenant's secrets is in the way.
///
/// # Errors
/// What is in the way.
pub(super) fn program(
    operator: &Operator,
    tenant: &TenantId,
    (vmm, version): (VmmKind, Option<&str>),
    agent: AgentMode,
) -> Result<Program, LifecycleError> {
    may_run(operator, tenant, vmm, agent)?;
    launch::program(operator, vmm, version)
}

fn may_run(
    operator: &Operator,
    tenant: &TenantId,
    vmm: VmmKind,
    agent: AgentMode,
) -> Result<(), LifecycleError> {
    let roots = &operator.roots;
    check_production(roots, vmm)?;
    if agent == AgentMode::Required {
        // Nothing is begun for a guest whose secrets it cannot be given, and no snapshot used up.
        tenant::secrets::open(roots, tenant)?;
    }
    Ok(())
}

/// Would an instance that does not run be started, or where it sleeps, woken? Asked are its node, its VMM, its tenant's secrets, room,
/// its snapshot and its disks; the audit log, the network, and whether there would be a base to start it from are not.
///
/// # Errors
/// What it would be refused for.
pub fn may_launch(operator: &Operator, instance: &Instance) -> Result<(), LifecycleError> {
    let (roots, path) = (&operator.roots, instance.path());
    let (tenant, pool) = load_pool(roots, &path.pool_path())?;
    let (artifacts, mut instance) = (Artifacts::of(roots, &pool.path()), instance.clone());
    let delta = match instance.status {
        State::Sleeping => Some(Delta::load(roots, &path)?.ok_or(LifecycleError::NoSnapshot { path })?),
        _ => {
            (instance.agent, instance.resources) = (pool.agent, start::resources(roots, &instance, &pool));
            None
        }
    };
    let (vmm, version, revision) = match &delta {
        Some(delta) => (delta.origin.vmm, Some(&delta.origin.vmm_version), Some(delta.revision.clone())),
        None => (pool.vmm, pool.vmm_version.as_ref(), artifacts.current()?),
    };
    let revision = revision.ok_or_else(|| LifecycleError::NoRevision { pool: pool.path() })?;
    let node = NodeConfig::load(roots)?;
    if delta.is_none() {
        room::check_free(roots, &node, 0)?;
    }
    let (slot, manifest) = (instance.slot(roots)?, artifacts.manifest(&revision)?);
    may_run(operator, &tenant.tenant_id, vmm, instance.agent)?;
    let version = version.map(String::as_str);
    // Who looks installs nothing: that is left to the start.
    let installs = vmm == VmmKind::Firecracker && roots.firecracker_bin.is_some();
    if !installs || install::is_installed(roots, version)? {
        Guard::of(roots, &pool, &launch::program(operator, vmm, version)?, slot)?;
    }
    room::check(roots, &tenant, slot, launch::takes(&instance, &manifest))?;
    match &delta {
        Some(delta) => {
            delta.check(roots, &instance.path(), false)?;
            let unpacked_mib = delta.archive.as_ref().map(|_| delta.image.mem.size_bytes >> 20);
            unpacked_mib.map_or(Ok(()), |mib| Ok(room::check_free(roots, &node, mib)?))
        }
        None => {
            artifacts.check(&manifest)?;
            launch::check_data_disk(roots, &instance)
        }
    }
}
