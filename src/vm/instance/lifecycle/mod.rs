//! Every operation that changes an instance, for whoever asks: the only writer of `instance.json`.
//!
//! ```text
//! lock → load → settle what was cut off → decide (state, quota, room) → intent → steps → record → audit
//! ```
//! An operation that is killed leaves its intent. The next one on the same instance, or `node recover`, settles it by
//! looking at the world: create and start are rolled back, stop and destroy are finished.

mod create;
mod destroy;
mod error;
mod grow;
mod lookup;
mod settle;
mod start;
mod stop;

pub use self::{
    create::{CreateOptions, create},
    destroy::{destroy, kept_folder},
    error::LifecycleError,
    grow::grow_disk,
    lookup::{effective_state, load_pool, load_tenant, lock_tenant, resolve, try_lock},
    settle::{needs_settling, settle},
    start::start,
    stop::stop,
};
use super::{
    config::{Instance, Intent, Operation},
    net as wiring,
    runner::Failed,
    state::{Denial, Event, State},
};
use crate::{
    infra::config::Roots,
    net::Net,
    security::audit::{self, AuditError, Entry, Phase},
    vm::{naming::InstancePath, tenant},
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
            let mut net = Net::open()?;
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
        let mut entry = Entry::new(format!("instance.{operation}"), instance.path(), phase);
        more(&mut entry);
        let folder = tenant::config::folder(&self.roots, &instance.tenant_id);
        audit::append(&self.roots, instance.tenant_id.as_ref(), &folder, entry)
    }
}

fn intent(roots: &Roots, operation: Operation) -> Intent {
    Intent { operation, since: roots.now(), pid: std::process::id() }
}

/// Writes the outcome of a failed operation to the audit log and makes one error of it all.
fn report(
    operator: &Operator,
    instance: &Instance,
    operation: &'static str,
    failed: Failed<LifecycleError>,
    undone: Result<(), LifecycleError>,
) -> LifecycleError {
    let mut left: Vec<String> =
        failed.left.into_iter().map(|(step, error)| format!("{step}: {error}")).collect();
    left.extend(undone.err().map(|error| error.to_string()));
    let error = LifecycleError::Step { operation, step: failed.step, error: Box::new(failed.error), left };
    let detail = error.to_string();
    // The error that is being reported matters more than one of the log.
    let _ = operator.audit(instance, operation, Phase::Failed, |entry| entry.detail = Some(detail));
    error
}

fn denied(path: &InstancePath, state: State, event: Event) -> LifecycleError {
    LifecycleError::Denied { path: path.clone(), denial: Denial { state, event } }
}
