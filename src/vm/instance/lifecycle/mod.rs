//! Every operation that changes an instance, for whoever asks: the only writer of `instance.json`.
//!
//! ```text
//! lock → load → settle what was cut off → decide (state, quota, room) → intent → steps → audit → record
//! ```
//! An operation that is killed leaves its intent. The next one on the same instance, or `node recover`, settles it by
//! looking at the world: create and start are rolled back, stop and destroy are finished, sleep and wake are rolled back
//! before their commit points and finished after them.

mod archive;
pub mod base;
mod create;
mod destroy;
mod error;
mod grow;
pub mod lease;
mod lookup;
mod pause;
mod refusal;
mod secrets;
mod settle;
mod sleep;
mod start;
mod stop;
mod wake;

pub use self::{
    archive::archive,
    create::{CreateOptions, create},
    destroy::{destroy, kept_folder},
    error::LifecycleError,
    grow::grow_disk,
    lookup::{effective_state, load_pool, load_tenant, lock_tenant, resolve, try_lock},
    pause::{resume, warm},
    refusal::{may_launch, may_resume},
    secrets::{Delivered, DeliveryOutcome, behind, give_all},
    settle::{needs_settling, settle, settle_unasked},
    sleep::sleep,
    start::{fix_version, start},
    stop::stop,
    wake::wake,
};
use mvm_proto::message::Confirmed;

use super::{
    config::{self, Instance, InstanceNet, Intent, Operation, Receipt, StepTime},
    net as wiring,
    runner::Failed,
    state::{Denial, Event, State},
};
use crate::{
    infra::config::Roots,
    net::Net,
    security::{
        audit::{self, AuditError, Entry, Limits, Network, Phase},
        storage,
    },
    vm::{
        naming::InstancePath,
        pool::config::{AgentMode, Resources, VmmKind},
        room::NodeConfig,
        tenant,
    },
};

/// Carries operations out: the roots, and the sockets to the kernel's network once they are needed.
pub struct Operator {
    /// Where everything is.
    pub roots: Roots,
    net: Option<Net>,
}

/// What an operation did.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The instance as it is now.
    pub instance: Instance,
    /// False where it was like that already.
    pub changed: bool,
}

impl Operator {
    /// An operator on these roots.
    pub fn new(roots: Roots) -> Self {
        Self { roots, net: None }
    }

    /// The kernel's network, made from the files where this boot has not seen it yet. The first call must not be made
    /// under the network's lock.
    ///
    /// # Errors
    /// When there is no permission, or the kernel refuses.
    pub fn net(&mut self) -> Result<&mut Net, LifecycleError> {
        if self.net.is_none() {
            let mut net = Net::open(&NodeConfig::load(&self.roots)?.node_id)?;
            wiring::ensure::<LifecycleError>(&self.roots, &mut net)?;
            self.net = Some(net);
        }
        match &mut self.net {
            Some(net) => Ok(net),
            None => unreachable!("it was put there three lines above"),
        }
    }

    fn audit(
        &self,
        instance: &Instance,
        operation: &str,
        phase: Phase,
        more: impl FnOnce(&mut Entry),
    ) -> Result<(), AuditError> {
        let mut entry = entry_of(instance, operation, phase);
        more(&mut entry);
        let folder = tenant::config::folder(&self.roots, &instance.tenant_id);
        audit::append(&self.roots, instance.tenant_id.as_ref(), &folder, entry)
    }

    /// The same of how an operation ended which is not taken back for want of this line: where it was done, the error says so.
    fn audit_end(
        &self,
        instance: &Instance,
        operation: &str,
        phase: Phase,
        more: impl FnOnce(&mut Entry),
    ) -> Result<(), AuditError> {
        self.audit(instance, operation, phase, more).map_err(|error| match phase {
            Phase::Done => {
                error.unsaid(entry_of(instance, operation, phase).what, instance.path().to_string())
            }
            _ => error,
        })
    }

    /// Writes the line of what somebody did in a guest; of a command its name alone, since arguments may be secrets.
    ///
    /// # Errors
    /// When the log cannot be written: then it is not done either.
    pub fn audit_access(&self, instance: &Instance, what: &str, detail: &str) -> Result<(), AuditError> {
        self.audit(instance, what, Phase::Done, |entry| entry.detail = Some(detail.to_owned()))
    }

    /// Writes the line of an operation that failed, and gives the error back.
    fn failed(&self, instance: &Instance, operation: &str, error: LifecycleError) -> LifecycleError {
        let folder = tenant::config::folder(&self.roots, &instance.tenant_id);
        let entry = entry_of(instance, operation, Phase::Failed);
        audit::failed(&self.roots, (instance.tenant_id.as_ref(), &folder), entry, &error);
        error
    }
}

fn entry_of(instance: &Instance, operation: &str, phase: Phase) -> Entry {
    Entry::new(format!("instance.{operation}"), instance.path(), phase)
}

impl LifecycleError {
    /// One error of a step's, and of what could not be undone.
    fn step(operation: &'static str, failed: Failed<Self>, undone: Result<(), Self>) -> Self {
        let left: Vec<String> = failed
            .left
            .map(|(step, error)| format!("{step}: {error}"))
            .into_iter()
            .chain(undone.err().map(|error| error.to_string()))
            .collect();
        match *failed.error {
            // A refusal is not a failure: nothing was begun.
            refused @ (Self::Room(_) | Self::Cancelled { .. }) if left.is_empty() => refused,
            error => Self::Step { operation, step: failed.step, error: error.into(), left },
        }
    }
}

impl From<Resources> for Limits {
    fn from(resources: Resources) -> Self {
        let Resources { vcpus, mem_mib, data_disk_mib } = resources;
        Self { vcpus, mem_mib, data_disk_mib }
    }
}

impl From<&InstanceNet> for Network {
    fn from(net: &InstanceNet) -> Self {
        Self { tap_dev: net.tap_dev.clone(), mac: net.mac.to_string(), guest_ip: net.guest_ip }
    }
}

/// Does the node run such a VMM at all? In production it does not run some, and not everywhere.
///
/// # Errors
/// [`LifecycleError::Production`] where it does not.
fn check_production(roots: &Roots, vmm: VmmKind) -> Result<(), LifecycleError> {
    let node = NodeConfig::load(roots)?;
    let why = match (node.production, vmm) {
        (false, _) => return Ok(()),
        (true, VmmKind::Sim) => "it does not run the simulated VMM",
        (true, VmmKind::Firecracker) if node.plain_storage_waiver => return Ok(()),
        (true, VmmKind::Firecracker) => match storage::look(&roots.root).is_encrypted() {
            true => return Ok(()),
            false => "its MVM_ROOT must lie on encrypted storage, or plain-storage-waiver be on",
        },
    };
    Err(LifecycleError::Production { why })
}

fn intent(roots: &Roots, operation: Operation) -> Intent {
    Intent { operation, since: roots.now(), pid: std::process::id() }
}

/// How an operation went that began at `clock` and took these steps.
fn receipt(
    operation: &str,
    clock: std::time::Instant,
    steps: Vec<(&'static str, f64)>,
    (agent, confirmed): (AgentMode, Vec<Confirmed>),
) -> Receipt {
    let round = |ms: f64| (ms * 100.0).round() / 100.0;
    Receipt {
        operation: operation.into(),
        total_ms: round(clock.elapsed().as_secs_f64() * 1000.0),
        steps: steps
            .into_iter()
            .map(|(name, ms)| StepTime { name: name.to_owned(), ms: round(ms) })
            .collect(),
        agent: match (agent, confirmed.is_empty()) {
            (AgentMode::None, _) => "none".into(),
            (AgentMode::Required, true) => String::new(),
            (AgentMode::Required, false) => "confirmed".into(),
        },
        confirmed: confirmed
            .into_iter()
            .map(|Confirmed { fact, value, ms }| config::Confirmed { fact, value, ms: round(ms) })
            .collect(),
    }
}

/// Where the log does not take an intent nothing is begun, and nobody goes on with it later, but with what was before.
fn begun(
    roots: &Roots,
    instance: &mut Instance,
    before: Option<Intent>,
    said: Result<(), AuditError>,
) -> Result<(), LifecycleError> {
    said.or_else(|error| {
        instance.pending = before;
        instance.save(roots)?;
        Err(error.into())
    })
}

/// What there is to say, in one line.
pub(in crate::vm) fn joined(parts: [Option<String>; 2]) -> Option<String> {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn unchanged(instance: Instance) -> Outcome {
    Outcome { instance, changed: false }
}

fn denied(path: &InstancePath, state: State, event: Event) -> LifecycleError {
    LifecycleError::Denied { path: path.clone(), denial: Denial { state, event } }
}
