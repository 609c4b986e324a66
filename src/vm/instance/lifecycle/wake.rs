//! Waking an instance from its snapshot.

use std::time::Instant;

use super::{
    LifecycleError, Operator, Outcome, denied, effective_state, intent, load_pool, lookup::locked_to_wake,
    receipt,
};
use crate::{
    infra::failpoint,
    security::audit::{Network, Phase},
    vm::{
        instance::{
            config::{Instance, Operation},
            launch::{self, Launch},
            runner::{self, Failed},
            snapshot::Delta,
            state::{self, Event, Next, State},
        },
        naming::InstancePath,
        pool::{artifacts::Artifacts, config::VmmKind},
        room::NodeConfig,
    },
};

/// Wakes an instance: its guest goes on where it was. `force` takes disks that were touched meanwhile.
///
/// # Errors
/// Where it fails before its snapshot is used up, the instance sleeps on; after that it is stopped, and says why.
pub fn wake(operator: &mut Operator, path: &InstancePath, force: bool) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let (_lock, before) = locked_to_wake(operator, path)?;
    let (tenant, pool) = load_pool(&roots, &path.pool_path())?;
    let artifacts = Artifacts::of(&roots, &pool.path());
    let state = effective_state(&before, artifacts.current()?.is_some());
    match state::next(state, Event::Wake) {
        Next::Already => return Ok(Outcome { instance: before, changed: false }),
        Next::Denied => return Err(denied(path, state, Event::Wake)),
        Next::To(_) => {}
    }
    if NodeConfig::load(&roots)?.production && pool.vmm == VmmKind::Sim {
        return Err(LifecycleError::Production { why: "it does not run the simulated VMM" });
    }
    let Some(delta) = Delta::load(&roots, path)? else {
        return Err(LifecycleError::NoSnapshot { path: path.clone() });
    };
    let program = launch::program(operator, delta.origin.vmm, Some(&delta.origin.vmm_version))?;
    operator.net()?;
    let mut instance = before.clone();
    instance.pending = Some(intent(&roots, Operation::Wake));
    let mut launch = Launch {
        slot: instance.slot(&roots)?,
        manifest: artifacts.manifest(&delta.revision)?,
        operator,
        tenant,
        pool,
        instance: instance.clone(),
        program,
        vmm: None,
        client: None,
        delta: Some(delta),
        force,
    };
    let clock = Instant::now();
    // Where not even the intent can be written, nothing was begun.
    instance.save(&roots)?;
    let loaded = match begin(&launch, &instance) {
        Ok(()) => runner::run("wake", &launch::wake_steps(), &mut launch),
        Err(error) => Err(Failed { step: "intent", error: error.into(), left: None }),
    };
    let mut times = match loaded {
        Ok(times) => times,
        Err(failed) => return Err(give_up(operator, before, instance, failed)),
    };
    // From here on there is no way back, and none is needed: what is cut off or fails is finished by the next operation.
    let failed = |step| move |error: LifecycleError| Failed { step, error: error.into(), left: None };
    instance.vmm = launch::record(&launch);
    runner::run("wake", &launch::awake_steps(), &mut launch)
        .and_then(|more| {
            times.extend(more);
            instance.last_receipt = Some(receipt("wake", clock, times));
            finish(launch.operator, &mut instance, Phase::Done).map_err(failed("record"))
        })
        .map_err(|failed| LifecycleError::step("wake", failed, Ok(())))?;
    Ok(Outcome { instance, changed: true })
}

/// Announces the intent.
fn begin(launch: &Launch, instance: &Instance) -> Result<(), LifecycleError> {
    failpoint::hit("wake", "intent")?;
    launch.operator.audit(instance, "wake", Phase::Intent, |entry| {
        entry.from = Some(State::Sleeping.to_string());
        entry.revision = instance.revision.as_ref().map(ToString::to_string);
        entry.network = Some(Network::from(&instance.net));
    })?;
    Ok(failpoint::hit("wake", "announced")?)
}

/// The new state of an instance whose VMM is in its record. Its line comes first, as a start's does.
pub(super) fn finish(
    operator: &Operator,
    instance: &mut Instance,
    phase: Phase,
) -> Result<(), LifecycleError> {
    operator.audit(instance, "wake", phase, |entry| {
        entry.from = Some(State::Sleeping.to_string());
        entry.to = Some(State::Running.to_string());
        entry.detail =
            instance.vmm.as_ref().map(|vmm| format!("{} {} pid {}", vmm.kind, vmm.version, vmm.pid));
    })?;
    failpoint::hit("wake", "audited")?;
    instance.pending = None;
    instance.status = State::Running;
    instance.entered_running_at = Some(operator.roots.now());
    instance.save(&operator.roots)?;
    Ok(failpoint::hit("wake", "recorded")?)
}

/// The wake did not come to its commit: the instance sleeps on. What could not be undone needs its intent: the next
/// operation goes on with it, as it does where even the commit could not be taken back.
fn give_up(
    operator: &Operator,
    before: Instance,
    mut instance: Instance,
    failed: Failed<LifecycleError>,
) -> LifecycleError {
    let roots = &operator.roots;
    let undone = match (&failed.left, Delta::load(roots, &before.path())) {
        (None, Ok(Some(delta))) => {
            let generation = instance.generation;
            instance = before;
            instance.generation = generation;
            delta.sweep(roots).and_then(|()| instance.save(roots)).map_err(Into::into)
        }
        _ => Ok(()),
    };
    let error = LifecycleError::step("wake", failed, undone);
    let detail = error.to_string();
    // The error that is being reported matters more than one of the log.
    let _ = operator.audit(&instance, "wake", Phase::Failed, |entry| entry.detail = Some(detail));
    error
}
