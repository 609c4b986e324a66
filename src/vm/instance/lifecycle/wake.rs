//! Waking an instance from its snapshot.
//!
//! ```text
//! reserve → check → directory → spawn → announce → tap → unpack → load → consume   | resume → (greet) → join → record
//! ```
//! Up to the end of `consume` all of it is taken back where it fails, and the instance sleeps on; after it all of it is
//! finished, by whoever comes next.

use std::time::Instant;

use super::{
    LifecycleError, Operator, Outcome, intent, joined,
    lookup::{Decided, decide, locked_cancelling_sleep},
    receipt, refusal, secrets,
    settle::settled,
    unchanged,
};
use crate::{
    infra::failpoint,
    security::audit::{Network, Phase},
    vm::{
        instance::{
            config::{Instance, Operation},
            delivery, fc_config,
            launch::{self, Launch, LaunchStep},
            runner::{self, Failed, Step},
            snapshot::{self, Delta},
            state::{Event, State},
            vmm_dir,
        },
        naming::InstancePath,
        pool::{artifacts::Artifacts, config::AgentMode},
        room::{self, NodeConfig},
    },
    vmm::{
        client::Client,
        wire::{Call, MemBackend, SnapshotLoad},
    },
};

/// Wakes an instance: its guest goes on where it was. `force` takes disks that were touched meanwhile.
///
/// # Errors
/// Where it fails before its snapshot is used up, the instance sleeps on. After that it runs, or it is stopped and says why.
pub fn wake(operator: &mut Operator, path: &InstancePath, force: bool) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let (_lock, before) = locked_cancelling_sleep(operator, path)?;
    let Some(Decided { tenant, pool, .. }) = decide(&roots, &before, Event::Wake)? else {
        return Ok(unchanged(before));
    };
    let Some(delta) = Delta::load(&roots, path)? else {
        return Err(LifecycleError::NoSnapshot { path: path.clone() });
    };
    let vmm = (delta.origin.vmm, Some(delta.origin.vmm_version.as_str()));
    let program = refusal::program(operator, &path.tenant, vmm, before.agent)?;
    operator.net()?;
    let mut instance = before.clone();
    instance.pending = Some(intent(&roots, Operation::Wake));
    let manifest = Artifacts::of(&roots, &pool.path()).manifest(&delta.revision)?;
    let mut launch = Launch::new(operator, (tenant, pool), instance.clone(), manifest, program)?;
    (launch.delta, launch.force) = (Some(delta), force);
    let clock = Instant::now();
    // Where not even the intent can be written, nothing was begun.
    instance.save_unsynced(&roots)?;
    let failed = |step| move |error: LifecycleError| Failed { step, error: error.into(), left: None };
    let loaded = failpoint::hit("wake", "intent")
        .map_err(|error| failed("intent")(error.into()))
        .and_then(|()| runner::run("wake", &steps(), &mut launch));
    let mut times = match loaded {
        Ok(times) => times,
        Err(failed) => return Err(give_up(operator, before, instance, failed)),
    };
    // From here on there is no way back: what fails is settled as it is where it was cut off.
    instance.vmm = launch::record(&launch);
    let awake = runner::run("wake", &awake_steps(instance.agent), &mut launch).and_then(|more| {
        times.extend(more);
        let confirmed = std::mem::take(&mut launch.confirmed);
        instance.secrets = launch.secrets.or(instance.secrets);
        instance.last_receipt = Some(receipt("wake", clock, times, (instance.agent, confirmed)));
        finish(launch.operator, &mut instance, Phase::Done).map_err(failed("record"))
    });
    match awake {
        Ok(()) => Ok(Outcome { instance, changed: true }),
        Err(failed) => match settled(operator, path) {
            // What failed at first went well when it was done again.
            Ok(Some(instance)) if instance.status == State::Running => {
                Ok(Outcome { instance, changed: true })
            }
            settled => Err(LifecycleError::step("wake", failed, settled.map(drop))),
        },
    }
}

/// The steps of a wake up to its commit.
fn steps<'a>() -> Vec<LaunchStep<'a>> {
    let reserve = Step {
        name: "reserve",
        run: launch::reserve,
        undo: Some(|launch: &mut Launch| {
            Ok(room::note(&launch.operator.roots, launch.slot, launch.takes().asleep())?)
        }),
    };
    let consume = Step {
        name: "consume",
        run: consume,
        // No vCPU ran yet.
        undo: Some(|launch: &mut Launch| match &launch.delta {
            Some(delta) => Ok(delta.give_back(&launch.operator.roots)?),
            None => Ok(()),
        }),
    };
    let step = |name, run| Step { name, run, undo: None };
    [reserve, step("check", check)]
        .into_iter()
        .chain(launch::steps(announce))
        .chain([step("unpack", unpack), step("load", load), consume])
        .collect()
}

/// The steps of a wake after its commit: the snapshot is used up, and there is no way back.
fn awake_steps<'a>(agent: AgentMode) -> Vec<LaunchStep<'a>> {
    let greet = Step { name: "greet", run: greet, undo: None };
    [
        Some(Step { name: "resume", run: launch::resume, undo: None }),
        (agent == AgentMode::Required).then_some(greet),
        Some(Step { name: "join", run: launch::join, undo: None }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn announce(launch: &mut Launch) -> Result<(), LifecycleError> {
    Ok(launch.operator.audit(&launch.instance, "wake", Phase::Intent, |entry| {
        entry.from = Some(State::Sleeping.to_string());
        entry.revision = launch.instance.revision.as_ref().map(ToString::to_string);
        entry.network = Some(Network::from(&launch.instance.net));
    })?)
}

/// A guest that slept hears what time it is, and something that no copy of it knows. It has no network before.
fn greet(launch: &mut Launch) -> Result<(), LifecycleError> {
    let Some(vmm) = &launch.vmm else { return Ok(()) };
    let greeted = delivery::greet(&launch.operator.roots, &launch.instance, vmm)?;
    (launch.confirmed, launch.secrets) = (greeted.confirmed, greeted.generation);
    Ok(())
}

/// An archived memory is brought back: that takes time, and room on the disk.
fn unpack(launch: &mut Launch) -> Result<(), LifecycleError> {
    let roots = &launch.operator.roots;
    match &mut launch.delta {
        Some(delta) if delta.archive.is_some() => {
            let needed_mib = delta.image.mem.size_bytes >> 20;
            room::check_disk(roots, &NodeConfig::load(roots)?, needed_mib)?;
            Ok(delta.unpack(roots)?)
        }
        _ => Ok(()),
    }
}

fn check(launch: &mut Launch) -> Result<(), LifecycleError> {
    let (roots, path) = (&launch.operator.roots, launch.instance.path());
    let Some(delta) = &launch.delta else { return Err(LifecycleError::NoSnapshot { path }) };
    let artifacts = Artifacts::of(roots, &path.pool_path());
    refusal::check_shared(&artifacts, &launch.manifest, launch.instance.agent)?;
    Ok(delta.check(roots, &path, launch.force)?)
}

/// Loads the snapshot; the vCPUs stay paused. A VMM that refuses it has used up nothing.
fn load(launch: &mut Launch) -> Result<(), LifecycleError> {
    let directory = launch.operator.roots.vmm_dir(&launch.slot.tap());
    let (Some(vmm), Some(delta)) = (&launch.vmm, &launch.delta) else { return Ok(()) };
    let mut client = Client::connect(&directory, &vmm.pidfd, launch::API_LIMIT)?;
    let folder = snapshot::folder(&launch.operator.roots, &launch.instance.path());
    for file in [&delta.image.vmstate.file, &delta.image.mem.file] {
        vmm_dir::give(&directory, &folder.join(file), &snapshot::name(file), launch.uid())?;
    }
    client.call(&fc_config::serial(&launch.tenant.quotas))?;
    delivery::put_metadata(&mut client, &launch.instance, &launch.pool)?;
    client.call(&Call::SnapshotLoad(SnapshotLoad {
        snapshot_path: snapshot::name(&delta.image.vmstate.file),
        mem_backend: MemBackend { backend_type: "File", backend_path: snapshot::name(&delta.image.mem.file) },
        track_dirty_pages: true,
        resume_vm: false,
        network_overrides: Vec::new(),
    }))?;
    launch.client = Some(client);
    // As long as there is a way back.
    launch::check(launch)
}

fn consume(launch: &mut Launch) -> Result<(), LifecycleError> {
    match &launch.delta {
        Some(delta) => Ok(delta.consume(&launch.operator.roots)?),
        None => Ok(()),
    }
}

/// The new state of an instance whose VMM is in its record. Its line comes first, as a start's does.
pub(super) fn finish(
    operator: &Operator,
    instance: &mut Instance,
    phase: Phase,
) -> Result<(), LifecycleError> {
    operator.audit_end(instance, "wake", phase, |entry| {
        entry.from = Some(State::Sleeping.to_string());
        entry.to = Some(State::Running.to_string());
        let vmm = instance.vmm.as_ref().map(|vmm| vmm.in_words());
        entry.detail = joined([vmm, secrets::detail(instance)]);
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
            delta.drop_others_surely(roots).and_then(|()| instance.save(roots)).map_err(Into::into)
        }
        _ => Ok(()),
    };
    operator.failed(&instance, "wake", LifecycleError::step("wake", failed, undone))
}
