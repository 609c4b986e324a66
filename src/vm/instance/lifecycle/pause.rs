//! Warm and back: the vCPUs of an instance pause and go on, and its memory stays where it is.

use super::{
    LifecycleError, Operator, Outcome, begun, intent,
    lookup::{Decided, decide, locked},
    refusal, unchanged,
};
use crate::{
    infra::failpoint,
    security::audit::Phase,
    vm::{
        instance::{
            config::{Instance, Operation},
            delivery::{self, Given},
            disk_rates, launch,
            state::{Event, State},
        },
        naming::InstancePath,
        room,
        tenant::quota::Use,
    },
    vmm::{
        client::{Client, VmmError},
        quirks,
        wire::Call,
    },
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
    let Some(Decided { tenant, pool, from, to }) = decide(&roots, &instance, event)? else {
        return Ok(unchanged(instance));
    };
    if to != State::Warm {
        refusal::resume(&roots, &pool, &instance)?;
    }
    let slot = instance.slot(&roots)?;
    let takes = launch::takes_of(&roots, &instance)?;
    let before = room::of_slot(&roots, slot)?;
    instance.pending = Some(intent(&roots, operation));
    instance.save(&roots)?;
    failpoint::hit(operation.name(), "intent")?;
    let said = operator.audit(&instance, operation.name(), Phase::Intent, |entry| {
        entry.from = Some(from.to_string());
    });
    begun(&roots, &mut instance, None, said)?;
    failpoint::hit(operation.name(), "announced")?;
    let switched = room::reserve(&roots, &tenant, slot, takes_in(to, takes))
        .map_err(LifecycleError::from)
        .and_then(|()| {
            failpoint::hit(operation.name(), "reserved")?;
            set(operator, &instance, to)
        });
    let was_switched = switched.is_ok();
    let done = switched.and_then(|()| {
        failpoint::hit(operation.name(), "switched")?;
        let given = greet(operator, &instance, to)?;
        if instance.is_ungreeted() {
            operator.net()?.join(slot)?;
        }
        Ok(given)
    });
    match done {
        Ok(given) => {
            instance.secrets = given.generation.or(instance.secrets);
            if let Some(vmm) = &mut instance.vmm {
                vmm.ungreeted = false;
            }
            finish(operator, &mut instance, to, Phase::Done)?;
            Ok(Outcome { instance, changed: true })
        }
        Err(error) => {
            let is_as_before = match (was_switched, instance.is_ungreeted()) {
                (false, _) => is_as_before(&error),
                // Whom nobody has greeted goes on waiting for it.
                (true, true) => set(operator, &instance, State::Warm).is_ok(),
                (true, false) => false,
            };
            if is_as_before {
                if let Some(before) = before {
                    room::note(&roots, slot, before)?;
                }
                instance.pending = None;
                instance.save(&roots)?;
            }
            Err(operator.failed(&instance, operation.name(), error))
        }
    }
}

/// Is the VMM in the state in which it was? Where that is not known, the intent stays, and the next operation asks it.
fn is_as_before(error: &LifecycleError) -> bool {
    match error {
        LifecycleError::Room(_) => true,
        LifecycleError::Vmm(error) => error.changed_nothing(),
        _ => false,
    }
}

/// What an instance takes in this state that takes this when it runs.
fn takes_in(state: State, takes: Use) -> Use {
    if state == State::Warm { takes.paused() } else { takes.resumed() }
}

/// A warm or resume that was cut off: the instance is in the state in which its VMM is.
pub(super) fn settle(operator: &Operator, instance: &mut Instance) -> Result<(), LifecycleError> {
    let roots = &operator.roots;
    let info = Client::connect_now(&roots.vmm_dir(&instance.net.tap_dev))?.info()?;
    let mut state = if info.is_paused() { State::Warm } else { State::Running };
    if instance.is_ungreeted() && state != State::Warm {
        set(operator, instance, State::Warm)?;
        state = State::Warm;
    }
    greet_if_it_hears(operator, instance, state)?;
    let takes = launch::takes_of(roots, instance)?;
    room::note(roots, instance.slot(roots)?, takes_in(state, takes))?;
    finish(operator, instance, state, Phase::Recovered)
}

/// Tells the VMM to be in this state; it is well when it is.
pub(super) fn set(operator: &Operator, instance: &Instance, to: State) -> Result<(), LifecycleError> {
    let directory = operator.roots.vmm_dir(&instance.net.tap_dev);
    // A sleep that was cut off had let its VMM write as fast as it could.
    let _ = disk_rates::bind(&operator.roots, instance);
    let mut client = Client::connect_now(&directory)?;
    match (to, &instance.vmm) {
        (State::Warm, _) => client.call(&Call::Pause)?,
        (_, Some(vmm)) => quirks::resume(&mut client, &vmm.version)?,
        (_, None) => client.call(&Call::Resume)?,
    }
    Ok(())
}

/// Tells a guest that goes on what time it is, and gives it its secrets: its clock may have stood still, these may be others by now, and
/// it may have been told to get ready for a sleep that did not come.
pub(super) fn greet(operator: &Operator, instance: &Instance, to: State) -> Result<Given, LifecycleError> {
    match instance.find_vmm() {
        Some(vmm) if to != State::Warm => delivery::greet(&operator.roots, instance, &vmm),
        _ => Ok(Given::default()),
    }
}

/// The same where the guest goes on whatever it answers: one that is silent, or gets no secrets, keeps nobody from stopping it.
pub(super) fn greet_if_it_hears(
    operator: &Operator,
    instance: &mut Instance,
    to: State,
) -> Result<(), LifecycleError> {
    instance.secrets = heard(greet(operator, instance, to))?.or(instance.secrets);
    Ok(())
}

/// Which set of secrets a guest has got that goes on whatever it answered to a greeting.
pub(super) fn heard(greeted: Result<Given, LifecycleError>) -> Result<Option<u64>, LifecycleError> {
    match greeted {
        Err(
            LifecycleError::Guest(_)
            | LifecycleError::Secrets(_)
            | LifecycleError::Unprotected(_)
            | LifecycleError::Vmm(VmmError::Refused { .. }),
        ) => Ok(None),
        greeted => Ok(greeted?.generation),
    }
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
    operator.audit_end(instance, operation, phase, |entry| {
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
