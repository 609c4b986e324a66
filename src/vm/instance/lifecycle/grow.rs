//! Growing an instance's data disk.

use super::{LifecycleError, Operator, lookup::lock_instance, settle::settled};
use crate::{
    security::audit::Phase,
    vm::{
        instance::{
            config::{self, Instance},
            disk,
            fc_config::files,
        },
        naming::InstancePath,
        room::{self, NodeConfig},
    },
};

/// Grows the data disk; a running guest sees the new size at its next start.
///
/// # Errors
/// When there is none, it would shrink, or the tenant has no room.
pub fn grow_disk(
    operator: &mut Operator,
    path: &InstancePath,
    size_mib: u64,
) -> Result<Instance, LifecycleError> {
    let roots = operator.roots.clone();
    let _lock = lock_instance(&roots, path)?;
    let mut instance = settled(operator, path)?;
    room::check_disk(&roots, &NodeConfig::load(&roots)?)?;
    disk::grow(&config::folder(&roots, path).join("volumes").join(files::DATA), size_mib)?;
    instance.resources.data_disk_mib = size_mib;
    instance.save(&roots)?;
    operator
        .audit(&instance, "disk-grow", Phase::Done, |entry| entry.detail = Some(format!("{size_mib} MiB")))?;
    Ok(instance)
}
