//! What a launch is refused for before anything of it begins: said of an instance that does not run, where somebody asks why.

use super::{LifecycleError, Operator, check_production, load_pool};
use crate::{
    vm::{
        instance::{config::Instance, guard::Guard, launch, snapshot::Delta, state::State},
        pool::config::{AgentMode, VmmKind},
        room::NodeConfig,
        tenant,
    },
    vmm::install,
};

/// Would an instance that does not run be started, or where it sleeps, woken? Asked are the node's production, the VMM's program,
/// the key of its tenant's secrets, and what protects others from its VMM; its snapshot, and room, are not.
///
/// # Errors
/// What it would be refused for.
pub fn may_launch(operator: &Operator, instance: &Instance) -> Result<(), LifecycleError> {
    let roots = &operator.roots;
    let (_, pool) = load_pool(roots, &instance.path().pool_path())?;
    let (vmm, version, agent) = match instance.status {
        State::Sleeping => match Delta::load(roots, &instance.path())? {
            Some(delta) => (delta.origin.vmm, Some(delta.origin.vmm_version), instance.agent),
            None => return Ok(()),
        },
        _ => (pool.vmm, pool.vmm_version.clone(), pool.agent),
    };
    check_production(roots, &NodeConfig::load(roots)?, vmm)?;
    if agent == AgentMode::Required {
        tenant::secrets::open(roots, &instance.tenant_id)?;
    }
    // Who looks installs nothing: that is left to the start.
    if vmm == VmmKind::Firecracker && roots.firecracker_bin.is_some() && install::list(roots)?.is_empty() {
        return Ok(());
    }
    let program = launch::program(operator, vmm, version.as_deref())?;
    Guard::of(roots, &pool, &program, instance.slot(roots)?).map(drop)
}
