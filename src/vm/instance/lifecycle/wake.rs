//! Waking an instance from its snapshot.

use std::time::Instant;

use super::{
    LifecycleError, Operator, Outcome, denied, effective_state, intent, load_pool, lookup::locked_to_wake,
    receipt, stop::finish_stop,
};
use crate::{
    infra::failpoint,
    security::audit::{Network, Phase},
    vm::{
        instance::{
            config::{Exit, Instance, Operation},
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
    let steps = launch::wake_steps();
    let result = match begin(&launch, &instance) {
        Ok(()) => runner::run("wake", &steps, &mut launch).and_then(|times| {
            instance.last_receipt = Some(receipt("wake", clock, times));
            record(&launch, &mut instance).map_err(|error| Failed {
                step: "record",
                error: error.into(),
                left: runner::undo(&steps, &mut launch),
            })
        }),
        Err(error) => Err(Failed { step: "intent", error: error.into(), left: None }),
    };
    match result {
        Ok(()) => Ok(Outcome { instance, changed: true }),
        Err(failed) => Err(give_up(operator, before, instance, failed)),
    }
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

/// The new state. Its line comes first, as a start's does.
fn record(launch: &Launch, instance: &mut Instance) -> Result<(), LifecycleError> {
    instance.vmm = launch::record(launch);
    finish(launch.operator, instance, Phase::Done)
}

/// The new state of an instance whose VMM is in its record.
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

/// The wake failed. What could not be undone needs its intent: the next operation goes on with it.
fn give_up(
    operator: &Operator,
    before: Instance,
    mut instance: Instance,
    failed: Failed<LifecycleError>,
) -> LifecycleError {
    let (roots, path) = (&operator.roots, before.path());
    let mut stopped = None;
    let undone = match (&failed.left, Delta::load(roots, &path)) {
        (Some(_), _) => Ok(()),
        // It sleeps on.
        (None, Ok(Some(_)) | Err(_)) => {
            let generation = instance.generation;
            instance = before;
            instance.generation = generation;
            instance.save(roots).map_err(Into::into)
        }
        (None, Ok(None)) => {
            let why = format!("a wake failed after its snapshot was used up: {}", failed.error);
            stopped = Some(Exit { when: roots.now(), why: why.clone() });
            finish_stop(operator, &mut instance, ("wake", Phase::Failed), why)
        }
    };
    let error = LifecycleError::step("wake", failed, undone);
    if stopped.is_none() {
        let detail = error.to_string();
        // The error that is being reported matters more than one of the log.
        let _ = operator.audit(&instance, "wake", Phase::Failed, |entry| entry.detail = Some(detail));
    }
    error
}
