//! Bringing the number of a pool's running instances to what is wanted, several at a time.

use std::sync::{Mutex, mpsc};

use super::lifecycle::{PoolError, update};
use crate::{
    store::{Lock, Sharing, StoreError},
    vm::{
        instance::{
            self,
            config::Instance,
            lifecycle::{self, CreateOptions, LifecycleError, Operator, Outcome},
            state::State,
        },
        naming::{InstancePath, PoolPath},
        pool::artifacts::Artifacts,
        tenant::quota::within,
    },
};

/// How many instances are started or stopped at one time: a stop may wait for its guest.
const AT_ONCE: usize = 4;

/// What is done to one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Job {
    Stop(InstancePath),
    Start(InstancePath),
    Create,
}

/// What was done to one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaled {
    /// It was stopped.
    Stopped,
    /// It was there, and was started.
    Started,
    /// It was made and started.
    Created,
}

/// Writes down how many instances shall run.
///
/// # Errors
/// When there is no such pool.
pub fn want(operator: &mut Operator, path: &PoolPath, running: u32) -> Result<(), PoolError> {
    update(operator, path, |pool| pool.desired_counts.running = running).map(drop)
}

/// Brings the number of running instances to `running`: starts those that are stopped, makes new ones, stops the newest
/// that are too many. Calls `tell` after each.
///
/// # Errors
/// The first failure, after what was under way was finished. What was done stays done; the same call again goes on.
pub fn scale(
    operator: &mut Operator,
    path: &PoolPath,
    running: u32,
    mut tell: impl FnMut(&Instance, Scaled),
) -> Result<(), PoolError> {
    let roots = operator.roots.clone();
    let name = format!("scale.{}.{}", path.tenant, path.pool);
    // Two that count at the same time would both make what is missing.
    let _lock = Lock::take(
        &roots.lock_file(&name),
        &format!("the scale of {path}"),
        Sharing::Exclusive,
        roots.lock_timeout,
    )?;
    let (tenant, pool) = lifecycle::load_pool(&roots, path)?;
    if running > 0 && Artifacts::of(&roots, path).current()?.is_none() {
        return Err(LifecycleError::NoRevision { pool: pool.path() }.into());
    }
    within("max_running", 0, running.into(), tenant.quotas.max_running.into())
        .map_err(|exceeded| PoolError::TooMany { tenant: path.tenant.to_string(), exceeded })?;
    want(operator, path, running)?;
    let jobs = plan(operator, path, running as usize)?;
    let workers = jobs.len().min(AT_ONCE);
    let jobs = Mutex::new(jobs.into_iter());
    let next = || jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let (done, results) = mpsc::channel();
    let mut first_error = None;
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (done, mut operator) = (done.clone(), Operator::new(roots.clone()));
            scope.spawn(move || {
                while let Some(job) = next() {
                    // Nobody listens any more after a failure: then the rest is left.
                    if done.send(carry_out(&mut operator, path, job)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for result in results {
            match result {
                Ok((instance, scaled)) => tell(&instance, scaled),
                Err(error) => {
                    first_error.get_or_insert(error);
                    while next().is_some() {}
                }
            }
        }
    });
    first_error.map_or(Ok(()), |error: LifecycleError| Err(error.into()))
}

fn plan(operator: &mut Operator, path: &PoolPath, wanted: usize) -> Result<Vec<Job>, PoolError> {
    let roots = operator.roots.clone();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for path in instance::config::paths(&roots, path)? {
        let read = Instance::load_if_there(&roots, &path);
        let instance = match read {
            Ok(Some(instance)) => lifecycle::settle(operator, instance)?,
            // One whose record cannot be read is neither counted nor touched.
            Ok(None) | Err(StoreError::Damaged { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        match instance.as_ref().map(|instance| instance.status) {
            Some(State::Running) => up.extend(instance),
            Some(State::Created | State::Ready | State::Stopped) => down.push(path),
            Some(State::Warm | State::Sleeping | State::Destroyed) | None => {}
        }
    }
    up.sort_by_key(|instance| instance.entered_running_at);
    let surplus = up.len().saturating_sub(wanted);
    let missing = wanted.saturating_sub(up.len());
    let stops = up.iter().rev().take(surplus).map(|instance| Job::Stop(instance.path()));
    let starts = down.into_iter().map(Job::Start).chain(std::iter::repeat(Job::Create)).take(missing);
    Ok(stops.chain(starts).collect())
}

fn carry_out(
    operator: &mut Operator,
    pool: &PoolPath,
    job: Job,
) -> Result<(Instance, Scaled), LifecycleError> {
    let (Outcome { instance, .. }, scaled) = match job {
        Job::Stop(path) => (lifecycle::stop(operator, &path, false)?, Scaled::Stopped),
        Job::Start(path) => (lifecycle::start(operator, &path)?, Scaled::Started),
        Job::Create => {
            let path = lifecycle::create(operator, pool, CreateOptions::default())?.path();
            let started = lifecycle::start(operator, &path);
            if started.is_err() {
                // One that was made to run and does not is nobody's wish; why it does not matters more than its removal.
                let _ = lifecycle::destroy(operator, &path, true);
            }
            (started?, Scaled::Created)
        }
    };
    Ok((instance, scaled))
}
