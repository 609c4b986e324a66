//! Waiting for an instance to reach a state, on events: writes of its record and the end of its VMM.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use super::{
    config::{self, Instance},
    lifecycle::{self, LifecycleError, Operator},
    state::State,
};
use crate::{
    infra::watch::Watch,
    store::StoreError,
    vm::{naming::InstancePath, pool::artifacts::Artifacts},
};

/// When to look again where no event will come.
const AGAIN: Duration = Duration::from_millis(10);

/// Waits until the instance is in `wanted`, as lists show it; `None` when `limit` passes first. An instance that is gone is
/// Destroyed.
///
/// # Errors
/// When its record cannot be read or watched.
pub fn wait(
    operator: &mut Operator,
    path: &InstancePath,
    wanted: State,
    limit: Duration,
) -> Result<Option<Option<Instance>>, LifecycleError> {
    // A limit beyond what a clock can count is none.
    let deadline = Instant::now().checked_add(limit);
    let folder = config::folder(&operator.roots, path);
    let watch = Watch::new(&folder).map_err(StoreError::io("watch", &folder))?;
    loop {
        let instance = match Instance::load_if_there(&operator.roots, path)? {
            Some(instance) => lifecycle::settle(operator, instance)?,
            None => None,
        };
        let has_revision = Artifacts::of(&operator.roots, &path.pool_path()).current()?.is_some();
        let state = instance
            .as_ref()
            .map_or(State::Destroyed, |instance| lifecycle::effective_state(instance, has_revision));
        if state == wanted && instance.as_ref().is_none_or(|instance| instance.pending.is_none()) {
            return Ok(Some(instance));
        }
        if instance.is_none() {
            return Err(LifecycleError::NotFound { what: format!("there is no instance {path}") });
        }
        let should_run = instance.as_ref().is_some_and(|instance| instance.status.has_vmm());
        let vmm = instance.and_then(|instance| instance.find_vmm());
        // It ended between the two looks: nothing will tell of that any more, so it is looked at again soon.
        let missed = should_run && vmm.is_none();
        let others: Vec<_> = vmm.iter().map(|vmm| vmm.pidfd.as_fd()).collect();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let limit = if missed { Some(left.unwrap_or(AGAIN).min(AGAIN)) } else { left };
        if !watch.wait(&others, limit) && (!missed || left.is_some_and(|left| left.is_zero())) {
            return Ok(None);
        }
    }
}
