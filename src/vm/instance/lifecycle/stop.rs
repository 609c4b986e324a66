//! Ending an instance's VMM.

use std::time::Duration;

use super::{
    LifecycleError, Operator, Outcome, begun, intent,
    lookup::{decide, locked_as_it_is, locked_cancelling_sleep, transition},
    pause, unchanged,
};
use crate::{
    infra::{failpoint, relief},
    security::audit::Phase,
    vm::{
        instance::{
            config::{Exit, Instance, Operation},
            guest::Guest,
            launch::{self, Keep},
            snapshot::{self, Delta},
            state::{Event, State},
        },
        naming::InstancePath,
        pool::config::AgentMode,
        room,
    },
    vmm::{client::Client, process::Vmm, wire::Call},
};

/// How long an agent may take for the end of a machine beyond the time that its workload has.
const AFTER_GRACE: Duration = Duration::from_secs(10);

/// Ends an instance's VMM: asks the guest to shut down, waits as long as the pool says, then kills. `force` kills at once.
///
/// # Errors
/// Where it fails half-way, the next operation goes on with it.
pub fn stop(operator: &mut Operator, path: &InstancePath, force: bool) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let _relief = relief::allow(&roots.root);
    let (_lock, mut instance) = match force {
        true => locked_as_it_is(operator, path)?,
        false => locked_cancelling_sleep(operator, path)?,
    };
    let decided = match force {
        // What is damaged of its tenant or its pool keeps nobody from ending it.
        true => transition(&roots, &instance, Event::Stop)?.map(|(from, _)| (from, 0)),
        false => decide(&roots, &instance, Event::Stop)?
            .map(|it| (it.from, it.pool.runtime_policy.graceful_shutdown_seconds)),
    };
    let Some((state, grace)) = decided else { return Ok(unchanged(instance)) };
    if !force {
        operator.net()?;
    }
    instance.pending = Some(intent(&roots, Operation::Stop));
    instance.save(&roots)?;
    let said = operator.audit(&instance, "stop", Phase::Intent, |entry| entry.from = Some(state.to_string()));
    begun(&roots, &mut instance, None, said)?;
    failpoint::hit("stop", "intent")?;
    let vmm = instance.find_vmm();
    let mut why = format!("stopped by uid {}", roots.actor.uid);
    if let (Some(vmm), false) = (&vmm, force)
        && !shut_down(operator, &instance, vmm, grace)
    {
        why.push_str("; the guest did not shut down and was killed");
    }
    failpoint::hit("stop", "shutdown")?;
    let stopped = launch::teardown_of(operator, &instance, vmm.as_ref(), Keep::Nothing)
        .and_then(|()| finish_stop(operator, &mut instance, ("stop", Phase::Done), why));
    match stopped {
        Err(error) if state == State::Sleeping && matches!(Delta::load(&roots, path), Ok(Some(_))) => {
            sleep_on(operator, instance, &error)?;
            Err(error)
        }
        stopped => stopped.map(|()| Outcome { instance, changed: true }),
    }
}

/// A stop that could not take a sleeper's snapshot away: it sleeps on, and nobody stops it later.
fn sleep_on(
    operator: &mut Operator,
    mut instance: Instance,
    error: &LifecycleError,
) -> Result<(), LifecycleError> {
    let roots = operator.roots.clone();
    room::note(&roots, instance.slot(&roots)?, launch::takes_of(&roots, &instance)?.asleep())?;
    instance.pending = None;
    instance.status = State::Sleeping;
    instance.save(&roots)?;
    let detail = error.to_string();
    Ok(operator.audit(&instance, "stop", Phase::Failed, |entry| entry.detail = Some(detail))?)
}

/// Asks the agent, or presses Ctrl-Alt-Del, and waits. True where the VMM ended by that.
fn shut_down(operator: &Operator, instance: &Instance, vmm: &Vmm, seconds: u32) -> bool {
    let directory = operator.roots.vmm_dir(&instance.net.tap_dev);
    // A guest that is paused hears nothing. A VMM that does not answer is killed, as one whose guest does not.
    if instance.status == State::Warm && pause::set(operator, instance, State::Running).is_err() {
        return false;
    }
    let grace = Duration::from_secs(seconds.into());
    let agent = (instance.agent == AgentMode::Required)
        .then(|| Guest::of(&operator.roots, instance).and_then(|guest| guest.shut_down(grace)));
    // An agent that does not answer may yet hear the keys.
    let asked = agent.is_some_and(|asked| asked.is_ok())
        || Client::connect_now(&directory).and_then(|mut client| client.call(&Call::SendCtrlAltDel)).is_ok();
    // What is left of the guest's programs is ended after that, and the disks are written out.
    let after = if instance.agent == AgentMode::Required { AFTER_GRACE } else { Duration::ZERO };
    asked && vmm.ended_within(grace + after)
}

/// The new state, once everything of the VMM is gone. Its line comes first, as a start's does.
pub(super) fn finish_stop(
    operator: &Operator,
    instance: &mut Instance,
    (what, phase): (&str, Phase),
    why: String,
) -> Result<(), LifecycleError> {
    let now = operator.roots.now();
    // What slept is discarded, and what is left of a snapshot that was used up.
    snapshot::discard(&operator.roots, &instance.path())?;
    failpoint::hit("stop", "discarded")?;
    operator.audit_end(instance, what, phase, |entry| {
        entry.from = Some(instance.status.to_string());
        entry.to = Some(State::Stopped.to_string());
        entry.detail = Some(why.clone());
    })?;
    failpoint::hit("stop", "audited")?;
    instance.pending = None;
    instance.status = State::Stopped;
    (instance.vmm, instance.secrets) = (None, None);
    instance.entered_stopped_at = Some(now);
    instance.last_exit = Some(Exit { when: now, why });
    instance.save(&operator.roots)?;
    Ok(failpoint::hit("stop", "recorded")?)
}
