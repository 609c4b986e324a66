//! Compressing what a long sleeper takes on the disk.

use super::{LifecycleError, Operator, Outcome, denied, effective_state, intent, load_pool, lookup::locked};
use crate::{
    infra::failpoint,
    security::audit::Phase,
    vm::{
        instance::{
            config::Operation,
            snapshot::Delta,
            state::{Event, State},
        },
        naming::InstancePath,
        pool::artifacts::Artifacts,
    },
};

/// Compresses the memory of an instance that sleeps. Its next wake unpacks it first, which takes time.
///
/// # Errors
/// Where it fails, the instance sleeps as before.
pub fn archive(operator: &mut Operator, path: &InstancePath) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let (_lock, mut instance) = locked(operator, path)?;
    let (_, pool) = load_pool(&roots, &path.pool_path())?;
    let state = effective_state(&instance, Artifacts::of(&roots, &pool.path()).current()?.is_some());
    if state != State::Sleeping {
        return Err(denied(path, state, Event::Archive));
    }
    let Some(mut delta) = Delta::load(&roots, path)? else {
        return Err(LifecycleError::NoSnapshot { path: path.clone() });
    };
    if delta.archive.is_some() {
        return Ok(Outcome { instance, changed: false });
    }
    instance.pending = Some(intent(&roots, Operation::Archive));
    instance.save(&roots)?;
    failpoint::hit("archive", "intent")?;
    let before = delta.taken_bytes(&roots);
    operator.audit(&instance, "archive", Phase::Intent, |_| ())?;
    let packed = delta.pack(&roots);
    if packed.is_err()
        && let Some(delta) = Delta::load(&roots, path)?
    {
        delta.sweep(&roots)?;
    }
    instance.pending = None;
    instance.save(&roots)?;
    let (phase, detail) = match &packed {
        Ok(()) => (Phase::Done, format!("{} bytes in place of {before}", delta.taken_bytes(&roots))),
        Err(error) => (Phase::Failed, error.to_string()),
    };
    operator.audit(&instance, "archive", phase, |entry| entry.detail = Some(detail))?;
    packed?;
    Ok(Outcome { instance, changed: true })
}
