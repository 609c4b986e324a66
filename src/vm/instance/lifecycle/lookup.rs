//! Finding and locking what an operation is about.

use std::time::Duration;

use super::{
    LifecycleError, Operator, denied,
    settle::{has_to_wait, settled},
    sleep,
};
use crate::{
    infra::config::Roots,
    store::{Lock, Sharing, StoreError},
    vm::{
        instance::{
            config::{self, Instance, Intent, Operation},
            state::{self, Event, Next, State},
        },
        naming::{InstanceId, InstancePath, InstanceRef, PoolPath, TenantId},
        pool::{self, artifacts::Artifacts, config::Pool},
        tenant::{self, config::Tenant},
    },
};

/// The lock of a tenant: held while its pools, instances and leases are counted or change in number.
///
/// # Errors
/// When somebody else holds it for too long.
pub fn lock_tenant(roots: &Roots, tenant: &TenantId) -> Result<Lock, StoreError> {
    let name = format!("tenant.{tenant}");
    Lock::take(&roots.lock_file(&name), &format!("tenant {tenant}"), Sharing::Exclusive, roots.lock_timeout)
}

fn lock_path(roots: &Roots, path: &InstancePath) -> std::path::PathBuf {
    roots.lock_file(&format!("instance.{}.{}.{}", path.tenant, path.pool, path.instance))
}

/// The lock of an instance, if nobody holds it.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn try_lock(roots: &Roots, path: &InstancePath) -> Result<Option<Lock>, StoreError> {
    Lock::try_take(&lock_path(roots, path))
}

pub(super) fn lock_instance(roots: &Roots, path: &InstancePath) -> Result<Lock, StoreError> {
    lock_within(roots, path, roots.lock_timeout)
}

fn lock_within(roots: &Roots, path: &InstancePath, limit: Duration) -> Result<Lock, StoreError> {
    Lock::take(&lock_path(roots, path), &path.to_string(), Sharing::Exclusive, limit)
}

/// Held, shared, by those who want an instance that is falling asleep for something else; it dies with them.
fn wish_path(roots: &Roots, path: &InstancePath) -> std::path::PathBuf {
    roots.lock_file(&format!("wish.{}.{}.{}", path.tenant, path.pool, path.instance))
}

/// Does somebody wait to wake, stop or destroy this instance?
pub(super) fn is_wanted(roots: &Roots, path: &InstancePath) -> Result<bool, StoreError> {
    let wish = wish_path(roots, path);
    Ok(wish.exists() && Lock::try_take(&wish)?.map(Lock::remove).is_none())
}

/// An instance and its lock, after what was cut off of it was settled.
pub(super) fn locked(
    operator: &mut Operator,
    path: &InstancePath,
) -> Result<(Lock, Instance), LifecycleError> {
    let lock = lock_instance(&operator.roots, path)?;
    settled_under(operator, path, lock)
}

/// Like [`locked_cancelling_sleep`]; where what was cut off cannot be settled, or somebody would have to be waited for, the instance
/// as it is: for who takes everything away.
pub(super) fn locked_as_it_is(
    operator: &mut Operator,
    path: &InstancePath,
) -> Result<(Lock, Instance), LifecycleError> {
    let lock = lock_cancelling_sleep(&operator.roots, path)?;
    match Instance::load_if_there(&operator.roots, path)? {
        Some(instance) if has_to_wait(&operator.roots, &instance)? => return Ok((lock, instance)),
        _ => {}
    }
    match settled(operator, path) {
        Ok(Some(instance)) => Ok((lock, instance)),
        Ok(None) => {
            lock.remove();
            Err(gone(path))
        }
        Err(error) => match Instance::load_if_there(&operator.roots, path)? {
            // Its slot may be another one's by now: that is taken away by nothing but the rest of what was begun.
            Some(Instance {
                pending: Some(Intent { operation: Operation::Create | Operation::Destroy { .. }, .. }),
                ..
            }) => Err(error),
            Some(instance) => Ok((lock, instance)),
            None => Err(gone(path)),
        },
    }
}

/// Like [`locked`]; a sleep that holds the lock and is not at its commit yet lets go at the next opportunity.
pub(super) fn locked_cancelling_sleep(
    operator: &mut Operator,
    path: &InstancePath,
) -> Result<(Lock, Instance), LifecycleError> {
    let lock = lock_cancelling_sleep(&operator.roots, path)?;
    settled_under(operator, path, lock)
}

/// The lock of an instance, taken from a sleep that is not at its commit yet.
pub(super) fn lock_cancelling_sleep(roots: &Roots, path: &InstancePath) -> Result<Lock, StoreError> {
    if let Some(lock) = try_lock(roots, path)? {
        return Ok(lock);
    }
    let what = format!("the wish for {path}");
    let wish = Lock::take(&wish_path(roots, path), &what, Sharing::Shared, roots.lock_timeout)?;
    // A sleep looks whether it is wanted when its VMM has answered, which takes its time.
    let falls_asleep =
        |one: &Instance| one.pending.as_ref().is_some_and(|it| it.operation == Operation::Sleep);
    let longer = Instance::load_if_there(roots, path)?
        .filter(falls_asleep)
        .map_or(Duration::ZERO, |one| sleep::longest(one.resources.mem_mib));
    let lock = lock_within(roots, path, roots.lock_timeout + longer)?;
    drop(wish);
    // Nothing of it is left, unless somebody else has a wish too.
    is_wanted(roots, path)?;
    Ok(lock)
}

fn settled_under(
    operator: &mut Operator,
    path: &InstancePath,
    lock: Lock,
) -> Result<(Lock, Instance), LifecycleError> {
    match settled(operator, path)? {
        Some(instance) => Ok((lock, instance)),
        None => {
            lock.remove();
            Err(gone(path))
        }
    }
}

pub(super) fn gone(path: &InstancePath) -> LifecycleError {
    LifecycleError::NotFound { what: format!("there is no instance {path}") }
}

/// The tenant, or [`LifecycleError::NotFound`].
///
/// # Errors
/// When it cannot be read.
pub fn load_tenant(roots: &Roots, id: &TenantId) -> Result<Tenant, LifecycleError> {
    Tenant::load(roots, id).map_err(|error| match error {
        StoreError::Missing { .. } => {
            let there = tenant::config::ids(roots).unwrap_or_default();
            LifecycleError::NotFound {
                what: format!("there is no tenant {id}; {}", these("there is", &there)),
            }
        }
        other => other.into(),
    })
}

/// The pool, or [`LifecycleError::NotFound`].
///
/// # Errors
/// When it cannot be read.
pub fn load_pool(roots: &Roots, path: &PoolPath) -> Result<(Tenant, Pool), LifecycleError> {
    let tenant = load_tenant(roots, &path.tenant)?;
    let pool = Pool::load(roots, path).map_err(|error| match error {
        StoreError::Missing { .. } => {
            let there = pool::config::paths(roots, &path.tenant).unwrap_or_default();
            let what = format!("there is no pool {path}; {}", these(&format!("{} has", path.tenant), &there));
            LifecycleError::NotFound { what }
        }
        other => other.into(),
    })?;
    Ok((tenant, pool))
}

fn these<T: ToString>(there_is: &str, all: &[T]) -> String {
    match all {
        [] => format!("{there_is} none yet"),
        _ if all.len() > 10 => format!("{there_is} {}", all.len()),
        _ => format!("{there_is} {}", all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// The one instance that a person means.
///
/// # Errors
/// [`LifecycleError::NotFound`] and [`LifecycleError::Ambiguous`] name those that there are.
pub fn resolve(roots: &Roots, typed: &InstanceRef) -> Result<InstancePath, LifecycleError> {
    if let Err(error @ LifecycleError::NotFound { .. }) = load_pool(roots, &typed.pool) {
        return Err(error);
    }
    // What is damaged of its tenant or its pool is said by who needs it.
    let all = config::paths(roots, &typed.pool)?;
    let matching: Vec<&InstancePath> =
        all.iter().filter(|path| typed.prefix.matches(&path.instance)).collect();
    let ids =
        |paths: &[&InstancePath]| paths.iter().map(|path| path.instance.clone()).collect::<Vec<InstanceId>>();
    match matching[..] {
        [one] => Ok(one.clone()),
        [] => {
            let there = these("it has", &ids(&all.iter().collect::<Vec<_>>()));
            let what = format!("no instance of {} starts with {}; {there}", typed.pool, typed.prefix);
            Err(LifecycleError::NotFound { what })
        }
        _ => Err(LifecycleError::Ambiguous {
            prefix: typed.to_string(),
            candidates: ids(&matching).iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// The state as it is: an instance that was made before its pool's first revision is Ready once there is one.
pub fn effective_state(instance: &Instance, pool_has_revision: bool) -> State {
    match instance.status {
        State::Created if pool_has_revision => State::Ready,
        state => state,
    }
}

/// What a verb may be carried out on.
pub(super) struct Decided {
    pub tenant: Tenant,
    pub pool: Pool,
    /// The state in which the instance is.
    pub from: State,
    /// The state to which the verb leads.
    pub to: State,
}

/// May this happen to an instance that is locked and settled? `None` where it is so already.
///
/// # Errors
/// [`LifecycleError::Denied`] where its state does not allow it.
pub(super) fn decide(
    roots: &Roots,
    instance: &Instance,
    event: Event,
) -> Result<Option<Decided>, LifecycleError> {
    let (tenant, pool) = load_pool(roots, &instance.path().pool_path())?;
    let step = transition(roots, instance, event)?;
    Ok(step.map(|(from, to)| Decided { tenant, pool, from, to }))
}

/// The same where neither tenant nor pool is asked: from which state to which.
///
/// # Errors
/// As [`decide`].
pub(super) fn transition(
    roots: &Roots,
    instance: &Instance,
    event: Event,
) -> Result<Option<(State, State)>, LifecycleError> {
    let path = instance.path();
    let has_revision = Artifacts::of(roots, &path.pool_path()).current()?.is_some();
    let from = effective_state(instance, has_revision);
    match state::next(from, event) {
        Next::Already => Ok(None),
        Next::Denied => Err(denied(&path, from, event)),
        Next::To(to) => Ok(Some((from, to))),
    }
}
