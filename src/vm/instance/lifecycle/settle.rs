//! Settling what a killed operation, a VMM that ended or a reboot left behind.

use std::time::Instant;

use super::{
    LifecycleError, Operator,
    destroy::{Volumes, discard},
    lease,
    lookup::{load_pool, try_lock},
    pause, receipt, refusal, sleep,
    stop::finish_stop,
    wake,
};
use crate::{
    infra::{beneath, config::Roots, failpoint, relief, text::printable},
    security::{audit::Phase, cgroups, seccomp},
    vm::{
        instance::{
            config::{Exit, Instance, Operation, Parent},
            launch::{self, Keep},
            logs,
            snapshot::{self, Delta},
            state::State,
            vmm_dir,
        },
        naming::{InstancePath, Slot},
        pool::config::AgentMode,
        room::{self, NodeConfig},
    },
    vmm::{
        client::{Client, LOG},
        process,
    },
};

/// How much of the end of a VMM's log may say why it ended, in bytes.
const LAST_WORDS: u64 = 4096;

/// Loads an instance and settles what was cut off; `None` where it is gone. The caller holds its lock.
pub(super) fn settled(
    operator: &mut Operator,
    path: &InstancePath,
) -> Result<Option<Instance>, LifecycleError> {
    match Instance::load_if_there(&operator.roots, path)? {
        Some(instance) => settle_locked(operator, instance),
        None => Ok(None),
    }
}

/// Settles what an instance's last operation left, if nobody works on it: an operation that was cut off, a VMM that ended
/// by itself, a host that rebooted. `None` where the instance is gone by that.
///
/// # Errors
/// When it cannot be settled; the intent stays.
pub fn settle(operator: &mut Operator, instance: Instance) -> Result<Option<Instance>, LifecycleError> {
    settle_as(operator, instance, Asking::All)
}

/// The same for who only shows it, and waits for nobody: what cannot be settled without that is left as it is.
///
/// # Errors
/// When it cannot be settled; the intent stays.
pub fn settle_unasked(
    operator: &mut Operator,
    instance: Instance,
) -> Result<Option<Instance>, LifecycleError> {
    settle_as(operator, instance, Asking::Nobody)
}

/// Who may be asked.
#[derive(PartialEq, Eq)]
enum Asking {
    All,
    Nobody,
}

fn settle_as(
    operator: &mut Operator,
    instance: Instance,
    asking: Asking,
) -> Result<Option<Instance>, LifecycleError> {
    if !needs_settling(&operator.roots, &instance, &process::boot_id()) {
        return Ok(Some(instance));
    }
    let path = instance.path();
    match try_lock(&operator.roots, &path)? {
        // Somebody works on it: what they left is theirs to finish.
        None => Ok(Some(instance)),
        Some(lock) => match Instance::load_if_there(&operator.roots, &path)? {
            Some(fresh) if asking == Asking::Nobody && has_to_wait(&operator.roots, &fresh)? => {
                Ok(Some(fresh))
            }
            Some(fresh) => {
                let settled = settle_locked(operator, fresh)?;
                if settled.is_none() {
                    lock.remove();
                }
                Ok(settled)
            }
            None => Ok(None),
        },
    }
}

/// Was an operation cut off, or has a VMM ended that should be there? A power cut may have taken a wake's intent with its VMM;
/// then the snapshot that it used up tells.
pub fn needs_settling(roots: &Roots, instance: &Instance, boot_id: &str) -> bool {
    instance.pending.is_some()
        || (instance.status.has_vmm() && !instance.vmm_is_alive(boot_id))
        || (instance.status == State::Sleeping && snapshot::is_used_up(roots, &instance.path()))
}

/// Has somebody to be waited for where this is settled: a guest that goes on after what was cut off, or its VMM, where that does not
/// answer at once?
pub(super) fn has_to_wait(roots: &Roots, instance: &Instance) -> Result<bool, LifecycleError> {
    let Some(intent) = &instance.pending else { return Ok(false) };
    let goes_on = match intent.operation {
        Operation::Warm | Operation::Resume => instance.find_vmm().is_some(),
        Operation::Sleep => instance.find_vmm().is_some() && Delta::load(roots, &instance.path())?.is_none(),
        Operation::Wake => {
            Delta::load(roots, &instance.path())?.is_none()
                && !launch::vmms_in(roots, instance.slot(roots)?)?.is_empty()
        }
        Operation::Create
        | Operation::Start
        | Operation::Stop
        | Operation::Archive
        | Operation::Destroy { .. } => false,
    };
    let directory = roots.vmm_dir(&instance.net.tap_dev);
    Ok(goes_on && (instance.agent == AgentMode::Required || !Client::answers(&directory)))
}

fn settle_locked(
    operator: &mut Operator,
    mut instance: Instance,
) -> Result<Option<Instance>, LifecycleError> {
    let boot_id = process::boot_id();
    if !needs_settling(&operator.roots, &instance, &boot_id) {
        return Ok(Some(instance));
    }
    operator.net()?;
    let roots = operator.roots.clone();
    let _relief = relief::allow(&roots.root);
    let slot = instance.slot(&roots)?;
    let vmm = instance.find_vmm();
    match instance.pending.as_ref().map(|intent| intent.operation) {
        Some(Operation::Create) => {
            let why = "it was cut off and rolled back";
            discard(operator, &instance, Volumes::Wipe, ("create", Phase::Recovered), why)?;
            return Ok(None);
        }
        Some(Operation::Destroy { wipe_volumes }) => {
            let volumes = if wipe_volumes { Volumes::Wipe } else { Volumes::Keep };
            let why = "it was cut off and finished";
            discard(operator, &instance, volumes, ("destroy", Phase::Recovered), why)?;
            return Ok(None);
        }
        Some(Operation::Warm | Operation::Resume) if vmm.is_some() => pause::settle(operator, &mut instance)?,
        // An instance with a VMM has no snapshot before its next sleep commits: where there is one, that was under way,
        // also where a power cut took the intent.
        None | Some(Operation::Sleep) if Delta::load(&roots, &instance.path())?.is_some() => {
            sleep::end(operator, &instance, vmm.as_ref())?;
            sleep::finish(operator, &mut instance, Phase::Recovered)?;
        }
        Some(Operation::Sleep) if vmm.is_some() => {
            pause::set(operator, &instance, instance.status)?;
            let status = instance.status;
            pause::greet_if_it_hears(operator, &mut instance, status)?;
            operator.audit(&instance, "sleep", Phase::Recovered, |entry| {
                entry.to = Some(instance.status.to_string());
                entry.detail = Some("a sleep was cut off before its commit: the guest goes on".into());
            })?;
            // Whether its last Diff was written is not known: nothing is built on it, and nothing of it is kept.
            snapshot::discard(&roots, &instance.path())?;
            vmm_dir::sweep(&roots.vmm_dir(&slot.tap()), snapshot::FOLDER);
            if let Some(vmm) = &mut instance.vmm {
                vmm.parent = Parent::Unknown;
            }
            instance.pending = None;
            instance.save(&roots)?;
        }
        Some(Operation::Wake) => settle_wake(operator, &mut instance)?,
        Some(Operation::Archive) => {
            if let Some(delta) = Delta::load(&roots, &instance.path())? {
                delta.drop_others_surely(&roots)?;
            }
            operator.audit(&instance, "archive", Phase::Recovered, |_| ())?;
            instance.pending = None;
            instance.save(&roots)?;
        }
        Some(Operation::Start) => {
            launch::teardown_of(operator, &instance, vmm.as_ref(), Keep::Nothing)?;
            let why = "a start was cut off and rolled back".to_owned();
            operator.audit(&instance, "start", Phase::Recovered, |entry| {
                entry.to = Some(instance.status.to_string());
                entry.detail = Some(why.clone());
            })?;
            instance.pending = None;
            instance.last_exit = Some(Exit { when: roots.now(), why });
            instance.save(&roots)?;
        }
        Some(Operation::Stop) => {
            launch::teardown_of(operator, &instance, vmm.as_ref(), Keep::Nothing)?;
            let why = "a stop was cut off and finished".into();
            finish_stop(operator, &mut instance, ("stop", Phase::Recovered), why)?;
        }
        None if instance.status == State::Sleeping => {
            launch::teardown_of(operator, &instance, None, Keep::Nothing)?;
            let why = "its host went down while it woke, and its snapshot is used up";
            finish_stop(operator, &mut instance, ("wake", Phase::Observed), why.into())?;
        }
        None | Some(Operation::Warm | Operation::Resume | Operation::Sleep) => {
            let rebooted = instance.vmm.as_ref().is_some_and(|vmm| vmm.boot_id != boot_id);
            // What its cgroup tells goes with it.
            let node = NodeConfig::load(&roots)?;
            let events = cgroups::events(&node.node_id, &slot.tap()).unwrap_or_default();
            let log = beneath::tail(&logs::folder(&roots, &instance.path()), LOG, LAST_WORDS);
            let why = match (rebooted, events.oom_kills, events.oom, seccomp::forbidden_call(&log)) {
                (true, ..) => "the host rebooted".to_owned(),
                (false, 0, _, Some(call)) => {
                    format!("the VMM made system call {call}, which its filter forbids, and ended")
                }
                (false, 0, _, None) => ended_by_itself(&log),
                (false, _, 0, _) => "the kernel killed the VMM for want of memory".to_owned(),
                (false, ..) => "the kernel killed the VMM: it needed more memory than its limit".to_owned(),
            };
            launch::teardown_of(operator, &instance, None, Keep::Nothing)?;
            finish_stop(operator, &mut instance, ("died", Phase::Observed), why)?;
        }
    }
    Ok(Some(instance))
}

/// With the words of its panic, where that was it.
fn ended_by_itself(log: &[u8]) -> String {
    /// Firecracker's panic hook (`vmm_main.rs`); a line or two follow.
    const PANIC: &str = "Firecracker panicked at ";
    let log = String::from_utf8_lossy(log);
    let said = log.rfind(PANIC).map(|at| log[at..].lines().take(2).collect::<Vec<_>>().join(" "));
    let said = said.map(|said| format!(": {}", printable(&said, 300))).unwrap_or_default();
    format!("the VMM ended by itself{said}")
}

/// A guest that woke and does not confirm who it is: it is not let onto the network, and there is no way back.
fn unserved(
    operator: &mut Operator,
    instance: &mut Instance,
    error: &LifecycleError,
) -> Result<(), LifecycleError> {
    launch::teardown_of(operator, instance, None, Keep::Nothing)?;
    finish_stop(operator, instance, ("wake", Phase::Recovered), format!("it woke, and {error}"))
}

/// A guest whose secrets cannot be opened by who settles its wake, for want of the master key for one, or whose VMM is not guarded
/// as is wanted by now: its vCPUs stay paused, or are, it does not join the network, and nothing of it is lost. Who resumes it
/// greets it.
fn hold(
    operator: &mut Operator,
    instance: &mut Instance,
    slot: Slot,
    why: &LifecycleError,
) -> Result<(), LifecycleError> {
    let roots = operator.roots.clone();
    pause::set(operator, instance, State::Warm)?;
    failpoint::hit("wake", "held")?;
    room::note(&roots, slot, launch::takes_of(&roots, instance)?.paused())?;
    operator.audit(instance, "wake", Phase::Recovered, |entry| {
        entry.from = Some(instance.status.to_string());
        entry.to = Some(State::Warm.to_string());
        entry.detail = Some(format!("it is paused, and not on the network, until it is resumed: {why}"));
    })?;
    instance.pending = None;
    instance.status = State::Warm;
    if let Some(vmm) = &mut instance.vmm {
        vmm.ungreeted = true;
    }
    instance.entered_warm_at = Some(roots.now());
    instance.save(&roots)?;
    Ok(failpoint::hit("wake", "recorded")?)
}

/// A wake that was cut off: the instance sleeps on where its snapshot was not used up; otherwise it is finished, if its VMM
/// is there.
fn settle_wake(operator: &mut Operator, instance: &mut Instance) -> Result<(), LifecycleError> {
    let clock = Instant::now();
    let roots = operator.roots.clone();
    let (path, slot) = (instance.path(), instance.slot(&roots)?);
    if let Some(delta) = Delta::load(&roots, &path)? {
        let takes = launch::takes_of(&roots, instance)?;
        launch::teardown_of(operator, instance, None, Keep::Asleep(takes))?;
        delta.drop_others_surely(&roots)?;
        operator.audit(instance, "wake", Phase::Recovered, |entry| {
            entry.to = Some(State::Sleeping.to_string());
            entry.detail = Some("a wake was cut off and rolled back".into());
        })?;
        instance.pending = None;
        return Ok(instance.save(&roots)?);
    }
    let is_its = lease::is_its(&roots, instance);
    let found = launch::vmms_in(&roots, slot)?.into_iter().next().filter(|_| is_its);
    let gone = if found.is_some() { "what its VMM had loaded is not known" } else { "its VMM is gone" };
    if let (Some(vmm), Some(delta)) = (found, snapshot::consumed(&roots, &path)?) {
        let origin = &delta.origin;
        let parent = Parent::File(delta.image.mem.file.clone());
        instance.vmm =
            Some(launch::record_of(&roots, &vmm, &slot.tap(), (origin.vmm, &origin.vmm_version), parent));
        let pool = load_pool(&roots, &path.pool_path())?.1;
        match refusal::resume(&roots, &pool, instance) {
            Err(
                error @ (LifecycleError::Unprotected(_)
                | LifecycleError::Production { .. }
                | LifecycleError::Secrets(_)),
            ) => return hold(operator, instance, slot, &error),
            Err(error @ LifecycleError::Vmm(_)) => return unserved(operator, instance, &error),
            checked => checked?,
        }
        pause::set(operator, instance, State::Running)?;
        let confirmed = match pause::greet(operator, instance, State::Running) {
            Err(error @ (LifecycleError::Guest(_) | LifecycleError::Unprotected(_))) => {
                return unserved(operator, instance, &error);
            }
            greeted => {
                let given = greeted?;
                instance.secrets = given.generation.or(instance.secrets);
                given.confirmed
            }
        };
        match operator.net()?.join(slot) {
            // It runs without, as one does whose TAP goes later: net verify says so, and a stop takes it down.
            Err(error) if error.is_no_device() => {}
            joined => joined?,
        }
        let steps = vec![("recover", clock.elapsed().as_secs_f64() * 1000.0)];
        instance.last_receipt = Some(receipt("wake", clock, steps, (instance.agent, confirmed)));
        return wake::finish(operator, instance, Phase::Recovered);
    }
    launch::teardown_of(operator, instance, None, Keep::Nothing)?;
    let why = format!("a wake was cut off after its snapshot was used up, and {gone}");
    finish_stop(operator, instance, ("wake", Phase::Recovered), why)
}
