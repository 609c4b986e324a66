//! What a start, a wake and a resume are refused for before anything of them begins: what they ask alike, and all of it where somebody
//! wants to know why.

use super::{LifecycleError, Operator, check_production, lease, load_pool, start};
use crate::{
    infra::config::Roots,
    net::Net,
    security::audit,
    vm::{
        instance::{
            config::Instance,
            guard::{self, Guard},
            launch,
            snapshot::Delta,
            state::State,
        },
        naming::{Slot, TenantId},
        pool::{
            artifacts::{Artifacts, Manifest},
            config::{AgentMode, Pool, VmmKind},
        },
        room::{self, NodeConfig},
        tenant,
    },
    vmm::{install, process::Program},
};

/// The program that a launch gets, where neither the node's production, nor the key of its tenant's secrets, nor its audit log is in the way.
///
/// # Errors
/// What is in the way.
pub(super) fn program(
    operator: &Operator,
    tenant: &TenantId,
    (vmm, version): (VmmKind, Option<&str>),
    agent: AgentMode,
) -> Result<Program, LifecycleError> {
    check_whole(&operator.roots, tenant, vmm, agent)?;
    launch::program(operator, vmm, version)
}

/// Does the node run such a VMM, could its guest be given its tenant's secrets, and does the audit log take a line?
fn check_whole(
    roots: &Roots,
    tenant: &TenantId,
    vmm: VmmKind,
    agent: AgentMode,
) -> Result<(), LifecycleError> {
    check_production(roots, vmm)?;
    may_greet(roots, tenant, agent)?;
    may_announce(roots, tenant)
}

/// Does a warm instance's VMM go on, for all that its node, its pool, and the key of its tenant's secrets want by now?
///
/// # Errors
/// What is in the way.
pub(super) fn resume(roots: &Roots, pool: &Pool, instance: &Instance) -> Result<(), LifecycleError> {
    check_production(roots, instance.vmm.as_ref().map_or(pool.vmm, |vmm| vmm.kind))?;
    if let Some(vmm) = instance.find_vmm() {
        guard::check(roots, pool, &vmm, instance.slot(roots)?)?;
    }
    may_greet(roots, &instance.tenant_id, instance.agent)
}

/// Could a guest be given its tenant's secrets?
fn may_greet(roots: &Roots, tenant: &TenantId, agent: AgentMode) -> Result<(), LifecycleError> {
    if agent == AgentMode::Required {
        // Nothing is begun for a guest whose secrets it cannot be given, and no snapshot used up.
        tenant::secrets::open(roots, tenant)?;
    }
    Ok(())
}

/// Would a warm instance be resumed?
///
/// # Errors
/// What it would be refused for.
pub fn may_resume(operator: &Operator, instance: &Instance) -> Result<(), LifecycleError> {
    let roots = &operator.roots;
    let (tenant, pool) = load_pool(roots, &instance.path().pool_path())?;
    let slot = instance.slot(roots)?;
    resume(roots, &pool, instance)?;
    may_announce(roots, &tenant.tenant_id)?;
    if instance.is_ungreeted() {
        // Then it joins its bridge.
        check_network(&NodeConfig::load(roots)?, slot)?;
    }
    Ok(room::check(roots, &tenant, slot, launch::takes_of(roots, instance)?.resumed())?)
}

/// Is the root disk what it was, where a guest that wakes has the revision's and not its own?
///
/// # Errors
/// [`LifecycleError::Artifact`] where it is not.
pub(super) fn check_shared(
    artifacts: &Artifacts,
    manifest: &Manifest,
    agent: AgentMode,
) -> Result<(), LifecycleError> {
    match agent {
        AgentMode::Required => Ok(artifacts.check_part(&manifest.revision, &manifest.rootfs)?),
        AgentMode::None => Ok(()),
    }
}

/// Does the audit log take a line?
fn may_announce(roots: &Roots, tenant: &TenantId) -> Result<(), LifecycleError> {
    Ok(audit::check(roots, tenant.as_ref(), &tenant::config::folder(roots, tenant))?)
}

/// Is the kernel's network, as far as it is made, mvm's?
fn check_network(node: &NodeConfig, slot: Slot) -> Result<(), LifecycleError> {
    let mut net = Net::open(&node.node_id)?;
    net.has_tables()?;
    net.check_tap(slot)?;
    match net.check_bridge(slot) {
        // What is not there is made.
        Err(error) if error.is_no_device() => Ok(()),
        checked => Ok(checked?),
    }
}

/// Would an instance that does not run be started, or where it sleeps, woken? Asked are its node, its VMM, its tenant's secrets, room,
/// the audit log, the network, its snapshot and its disks; whether there would be a base to start it from is not.
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
    lease::check(roots, &instance)?;
    check_whole(roots, &tenant.tenant_id, vmm, instance.agent)?;
    let version = version.map(String::as_str);
    // Who looks installs nothing: that is left to the start.
    let installs = vmm == VmmKind::Firecracker && roots.firecracker_bin.is_some();
    if !installs || install::is_installed(roots, version)? {
        Guard::of(roots, &pool, &launch::program(operator, vmm, version)?, slot)?;
    }
    room::check(roots, &tenant, slot, launch::takes(&instance, &manifest))?;
    match &delta {
        Some(delta) => {
            check_shared(&artifacts, &manifest, instance.agent)?;
            delta.check(roots, &instance.path(), false)?;
            let unpacked_mib = delta.archive.as_ref().map(|_| delta.image.mem.size_bytes >> 20);
            unpacked_mib.map_or(Ok(()), |mib| room::check_free(roots, &node, mib))?;
        }
        None => {
            artifacts.check(&manifest)?;
            launch::check_data_disk(roots, &instance)?;
        }
    }
    check_network(&node, slot)
}
