//! Giving guests that run their tenant's secrets, after these have changed.

use std::sync::{Mutex, PoisonError};

use super::{LifecycleError, Operator, lookup::locked};
use crate::{
    infra::{failpoint, relief},
    security::audit::Phase,
    vm::{
        instance::{
            config::{self, Instance},
            delivery,
            guest::Guest,
            state::State,
        },
        naming::{InstancePath, TenantId},
        pool::{self, config::AgentMode},
        tenant,
    },
};

/// So many guests are asked at a time.
const AT_ONCE: usize = 8;

/// What became of one instance.
#[derive(Debug)]
pub enum Delivered {
    /// Its guest has them now.
    Given,
    /// Its guest has them now, and who should have heard of it has not.
    Untold(String),
    /// It had them already, or does not run: it gets them when it does.
    Not,
    /// Its guest runs, and has no agent that could take them.
    NoAgent,
}

/// What became of one instance, or why it has not what it should.
pub type DeliveryOutcome = Result<Delivered, LifecycleError>;

/// Gives the guest of an instance its tenant's secrets, if it runs and has others.
///
/// # Errors
/// When it does not confirm them: it runs on with those that it had, or with some of the new ones unsaid.
fn give(operator: &mut Operator, path: &InstancePath) -> DeliveryOutcome {
    let roots = operator.roots.clone();
    let (_lock, mut instance) = locked(operator, path)?;
    if instance.status == State::Running && instance.agent == AgentMode::None {
        return Ok(Delivered::NoAgent);
    }
    let stored = tenant::secrets::stored(&roots, &path.tenant)?;
    if instance.status != State::Running || !delivery::is_behind(&instance, stored.as_ref()) {
        return Ok(Delivered::Not);
    }
    // Its guest has others from here on: that is written down on a full disk, too.
    let _relief = relief::allow(&roots.root);
    let Some(vmm) = instance.find_vmm() else { return Ok(Delivered::Not) };
    let given = delivery::give(&roots, &instance, &vmm, || Guest::of(&roots, &instance))
        .map_err(|error| operator.failed(&instance, "secrets", error))?;
    failpoint::hit("secrets", "given")?;
    instance.secrets = given.generation.or(instance.secrets);
    operator.audit_end(&instance, "secrets", Phase::Done, |entry| entry.detail = detail(&instance))?;
    instance.save(&roots)?;
    Ok(given.untold.map_or(Delivered::Given, Delivered::Untold))
}

/// Which set an instance's guest has, for the audit log.
pub(super) fn detail(instance: &Instance) -> Option<String> {
    instance.secrets.map(|generation| format!("secrets of generation {generation}"))
}

/// Gives all guests of a tenant that run its secrets; one that does not take them is in nobody's way.
///
/// # Errors
/// When its instances cannot be listed.
pub fn give_all(
    operator: &Operator,
    tenant: &TenantId,
) -> Result<Vec<(InstancePath, DeliveryOutcome)>, LifecycleError> {
    let roots = &operator.roots;
    let mut paths = Vec::new();
    for pool in pool::config::paths(roots, tenant)? {
        paths.extend(config::paths(roots, &pool)?);
    }
    let workers = paths.len().min(AT_ONCE);
    let (paths, results) = (Mutex::new(paths.into_iter()), Mutex::new(Vec::new()));
    let next = || paths.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut operator = Operator::new(roots.clone());
                while let Some(path) = next() {
                    let given = match give(&mut operator, &path) {
                        // Destroyed meanwhile.
                        Err(LifecycleError::NotFound { .. }) => continue,
                        given => given,
                    };
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((path, given));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(path, _)| path.to_string());
    Ok(results)
}

/// The instances of a tenant whose guests have another set of secrets than it. One that cannot be read is none: what lists instances
/// says it.
///
/// # Errors
/// When the secrets cannot be read, or the instances not be listed.
pub fn behind(operator: &Operator, tenant: &TenantId) -> Result<Vec<InstancePath>, LifecycleError> {
    let roots = &operator.roots;
    let Some(stored) = tenant::secrets::stored(roots, tenant)? else { return Ok(Vec::new()) };
    let mut behind = Vec::new();
    for pool in pool::config::paths(roots, tenant)? {
        for path in config::paths(roots, &pool)? {
            let instance = Instance::load_if_there(roots, &path).ok().flatten();
            behind.extend(instance.filter(|one| delivery::is_behind(one, Some(&stored))).map(|_| path));
        }
    }
    Ok(behind)
}
