//! Warm and back: the vCPUs of an instance pause and go on, and its memory stays where it is.

use super::{
    LifecycleError, Operator, Outcome, denied, effective_state, intent, load_pool, load_tenant,
    lookup::locked,
};
use crate::{
    infra::failpoint,
    security::audit::Phase,
    vm::{
        instance::{
            config::{Instance, Operation},
            launch,
            state::{self, Event, Next, State},
        },
        naming::InstancePath,
        pool::artifacts::Artifacts,
        room,
    },
    vmm::{client::Client, quirks, wire::Call},
};

/// Pauses an instance's vCPUs.
///
/// # Errors
/// Where it fails half-way, the next operation goes on with it.
pub fn warm(operator: &mut Operator, path: &InstancePath) -> Result<Outcome, LifecycleError> {
    switch(operator, path, Event::Pause, Operation::Warm)
}

/// Lets a warm instance's vCPUs go on.
///
/// # Errors
/// Where it fails half-way, the next operation goes on with it.
pub fn resume(operator: &mut Operator, path: &InstancePath) -> Result<Outcome, LifecycleError> {
    switch(operator, path, Event::Resume, Operation::Resume)
}

fn switch(
    operator: &mut Operator,
    path: &InstancePath,
    event: Event,
    operation: Operation,
) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let (_lock, mut instance) = locked(operator, path)?;
    let (_, pool) = load_pool(&roots, &path.pool_path())?;
    let has_revision = Artifacts::of(&roots, &pool.path()).current()?.is_some();
    let state = effective_state(&instance, has_revision);
    let to = match state::next(state, event) {
        Next::Already => return Ok(Outcome { instance, changed: false }),
        Next::Denied => return Err(denied(path, state, event)),
        Next::To(to) => to,
    };
    let before = room::of_slot(&roots, instance.slot(&roots)?)?;
    reserve(operator, &instance, to)?;
    instance.pending = Some(intent(&roots, operation));
    instance.save(&roots)?;
    failpoint::hit(operation.name(), "intent")?;
    operator.audit(&instance, operation.name(), Phase::Intent, |entry| {
        entry.from = Some(state.to_string());
    })?;
    failpoint::hit(operation.name(), "announced")?;
    match set(operator, &instance, to) {
        Ok(()) => finish(operator, &mut instance, to, Phase::Done)?,
        Err(error) => {
            // It is in the state in which it was: the VMM refused.
            if let Some(before) = before {
                room::shrink(&roots, instance.slot(&roots)?, before)?;
            }
            instance.pending = None;
            instance.save(&roots)?;
            let detail = error.to_string();
            let _ = operator.audit(&instance, operation.name(), Phase::Failed, |entry| {
                entry.detail = Some(detail);
            });
            return Err(error);
        }
    }
    Ok(Outcome { instance, changed: true })
}

/// What it takes in this state, if the tenant's quota allows it.
fn reserve(operator: &Operator, instance: &Instance, to: State) -> Result<(), LifecycleError> {
    let roots = &operator.roots;
    let slot = instance.slot(roots)?;
    let tenant = load_tenant(roots, &instance.tenant_id)?;
    let takes = launch::takes_of(roots, instance)?;
    let takes = if to == State::Warm { takes.paused() } else { takes.resumed() };
    Ok(room::reserve(roots, &tenant, slot, takes)?)
}

/// Tells the VMM to be in this state; it is well when it is.
pub(super) fn set(operator: &Operator, instance: &Instance, to: State) -> Result<(), LifecycleError> {
    let directory = operator.roots.vmm_dir(&instance.net.tap_dev);
    let mut client = Client::connect_now(&directory)?;
    match (to, &instance.vmm) {
        (State::Warm, _) => client.call(&Call::Pause)?,
        (_, Some(vmm)) => quirks::resume(&mut client, &vmm.version)?,
        (_, None) => client.call(&Call::Resume)?,
    }
    Ok(())
}

/// The new state. Its line comes first, as a start's does.
pub(super) fn finish(
    operator: &Operator,
    instance: &mut Instance,
    to: State,
    phase: Phase,
) -> Result<(), LifecycleError> {
    let operation = if to == State::Warm { Operation::Warm } else { Operation::Resume }.name();
    failpoint::hit(operation, "set")?;
    operator.audit(instance, operation, phase, |entry| {
        entry.from = Some(instance.status.to_string());
        entry.to = Some(to.to_string());
    })?;
    failpoint::hit(operation, "audited")?;
    let now = Some(operator.roots.now());
    match to {
        State::Warm => instance.entered_warm_at = now,
        _ => instance.entered_running_at = now,
    }
    instance.pending = None;
    instance.status = to;
    instance.save(&operator.roots)?;
    Ok(failpoint::hit(operation, "recorded")?)
}
