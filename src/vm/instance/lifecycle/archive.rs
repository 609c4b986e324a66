//! Compressing what a long sleeper takes on the disk.

use super::{
    LifecycleError, Operator, Outcome, begun, intent,
    lookup::{decide, locked},
    unchanged,
};
use crate::{
    infra::failpoint,
    security::audit::Phase,
    vm::{
        instance::{config::Operation, snapshot::Delta, state::Event},
        naming::InstancePath,
    },
};

/// Compresses the memory of an instance that sleeps. Its next wake unpacks it first, which takes time.
///
/// # Errors
/// Where it fails, the instance sleeps as before.
pub fn archive(operator: &mut Operator, path: &InstancePath) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let (_lock, mut instance) = locked(operator, path)?;
    if decide(&roots, &instance, Event::Archive)?.is_none() {
        return Ok(unchanged(instance));
    }
    let Some(mut delta) = Delta::load(&roots, path)? else {
        return Err(LifecycleError::NoSnapshot { path: path.clone() });
    };
    if delta.archive.is_some() {
        return Ok(unchanged(instance));
    }
    instance.pending = Some(intent(&roots, Operation::Archive));
    instance.save(&roots)?;
    failpoint::hit("archive", "intent")?;
    let before = delta.taken_bytes(&roots);
    let said = operator.audit(&instance, "archive", Phase::Intent, |_| ());
    begun(&roots, &mut instance, None, said)?;
    let packed = match delta.pack(&roots) {
        Ok(()) => {
            operator.audit_end(&instance, "archive", Phase::Done, |entry| {
                entry.detail = Some(format!("{} bytes in place of {before}", delta.taken_bytes(&roots)));
            })?;
            Ok(())
        }
        Err(error) => {
            if let Some(delta) = Delta::load(&roots, path)? {
                delta.drop_others_surely(&roots)?;
            }
            Err(operator.failed(&instance, "archive", error.into()))
        }
    };
    instance.pending = None;
    instance.save(&roots)?;
    packed?;
    Ok(Outcome { instance, changed: true })
}
