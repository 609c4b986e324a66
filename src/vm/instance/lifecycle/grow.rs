//! Growing an instance's data disk.

use super::{LifecycleError, Operator, load_pool, lookup::locked};
use crate::{
    security::audit::{Entry, Phase},
    vm::{
        instance::{
            config::{self, Instance},
            disk::{self, DiskError},
            fc_config::files,
            state::State,
        },
        naming::InstancePath,
        room::{self, NodeConfig},
    },
};

/// Grows the data disk; a running guest sees the new size at its next start.
///
/// # Errors
/// When there is none, it would shrink, the size is absurd, or the tenant's quota does not allow it.
pub fn grow_disk(
    operator: &mut Operator,
    path: &InstancePath,
    size_mib: u64,
) -> Result<Instance, LifecycleError> {
    let roots = operator.roots.clone();
    let (_lock, mut instance) = locked(operator, path)?;
    let (tenant, _) = load_pool(&roots, &path.pool_path())?;
    if instance.status == State::Sleeping {
        return Err(LifecycleError::DiskInMemory { path: path.clone(), state: instance.status });
    }
    let mut resources = instance.resources;
    resources.data_disk_mib = size_mib;
    resources.check().map_err(|why| LifecycleError::Resources { why })?;
    room::check_disk(&roots, &NodeConfig::load(&roots)?, 0)?;
    let data = config::folder(&roots, path).join("volumes").join(files::DATA);
    let there_mib = match disk::size_mib(&data) {
        Err(DiskError::None) if instance.resources.data_disk_mib > 0 => {
            return Err(DiskError::Lost { path: data }.into());
        }
        size => size?,
    };
    let slot = instance.slot(&roots)?;
    let (before, more_mib) = (room::of_slot(&roots, slot)?, size_mib.saturating_sub(there_mib));
    let detail = |entry: &mut Entry| entry.detail = Some(format!("from {there_mib} to {size_mib} MiB"));
    operator.audit(&instance, "disk-grow", Phase::Intent, detail)?;
    // Where it is cut off after this, the file says what the record does not: a start takes the larger of the two.
    let grown = room::enlarge(&roots, &tenant, slot, more_mib)
        .map_err(LifecycleError::from)
        .and_then(|()| Ok(disk::grow(&data, size_mib)?));
    if let Err(error) = grown {
        if let Some(before) = before {
            room::note(&roots, slot, before)?;
        }
        return Err(operator.failed(&instance, "disk-grow", error));
    }
    operator.audit_end(&instance, "disk-grow", Phase::Done, detail)?;
    instance.resources = resources;
    instance.save(&roots)?;
    Ok(instance)
}
