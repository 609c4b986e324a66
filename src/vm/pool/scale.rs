//! Bringing the numbers of a pool's instances in each state to what is wanted, several at a time.

use std::sync::{Mutex, mpsc};

use jiff::Timestamp;

use super::lifecycle::{self as pools, PoolError};
use crate::{
    infra::{config::Roots, relief},
    store::{Lock, Sharing},
    vm::{
        instance::{
            self,
            config::Instance,
            lifecycle::{self, CreateOptions, LifecycleError, Operator},
            state::State,
        },
        naming::{InstancePath, PoolPath},
        pool::artifacts::Artifacts,
        tenant::quota::within,
    },
};

/// How many instances are worked on at one time: a stop may wait for its guest.
const AT_ONCE: usize = 4;

/// How many instances there shall be in each state; a state that is not named keeps those that it has, unless more shall
/// run: then they are the first to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// Running.
    pub running: Option<u32>,
    /// Warm.
    pub warm: Option<u32>,
    /// Sleeping.
    pub sleeping: Option<u32>,
}

/// One instance that goes from one state to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The instance; `None`: one that is made for it.
    pub path: Option<InstancePath>,
    /// The state in which it is.
    pub from: State,
    /// The state in which it shall be.
    pub to: State,
}

impl Move {
    /// Does it take no more of the node's memory and of the tenant's quota than before?
    fn gives_room(&self) -> bool {
        self.to == State::Stopped || (self.from.has_vmm() && self.to != State::Running)
    }
}

/// Writes down how many instances there shall be.
///
/// # Errors
/// When there is no such pool.
pub fn want(operator: &mut Operator, path: &PoolPath, goal: Goal) -> Result<(), PoolError> {
    pools::want(operator, path, |counts| {
        counts.running = goal.running.unwrap_or(counts.running);
        counts.warm = goal.warm.unwrap_or(counts.warm);
        counts.sleeping = goal.sleeping.unwrap_or(counts.sleeping);
    })
}

/// An instance that is neither counted nor touched, and why: its record cannot be read, or what was cut off of it not be
/// settled.
pub type LeftOut = (InstancePath, LifecycleError);

/// Brings the numbers of instances to a goal: wakes those that sleep, resumes those that are warm, starts those that are
/// stopped, makes new ones; of those that are too many the newest go to where some are missing, or are stopped. Calls
/// `tell` after each. Returns those that are in no state that could be told.
///
/// # Errors
/// The first failure, after what was under way was finished. What was done stays done; the same call again goes on.
pub fn scale(
    operator: &mut Operator,
    path: &PoolPath,
    goal: Goal,
    mut tell: impl FnMut(&Instance, &Move),
) -> Result<Vec<LeftOut>, PoolError> {
    let roots = operator.roots.clone();
    // It may be less that shall run; what is made or started asks for itself whether there is room.
    let _relief = relief::allow(&roots.root);
    let name = format!("scale.{}.{}", path.tenant, path.pool);
    // Two that count at the same time would both make what is missing.
    let _lock = Lock::take(
        &roots.lock_file(&name),
        &format!("the scale of {path}"),
        Sharing::Exclusive,
        roots.lock_timeout,
    )?;
    let (tenant, pool) = lifecycle::load_pool(&roots, path)?;
    let any = [goal.running, goal.warm, goal.sleeping].into_iter().flatten().any(|count| count > 0);
    if any && Artifacts::of(&roots, path).current()?.is_none() {
        return Err(LifecycleError::NoRevision { pool: pool.path() }.into());
    }
    let (running, warm) = (goal.running.unwrap_or(0), goal.warm.unwrap_or(0));
    within("max_running", 0, running.into(), tenant.quotas.max_running.into())
        .and_then(|()| within("max_warm", 0, warm.into(), tenant.quotas.max_warm.into()))
        .map_err(|exceeded| PoolError::TooMany { tenant: path.tenant.to_string(), exceeded })?;
    want(operator, path, goal)?;
    let (there, left_out) = there_are(operator, path)?;
    let (give, take): (Vec<Move>, Vec<Move>) = plan(&there, goal).into_iter().partition(Move::gives_room);
    // What takes room begins once what gives it has ended: it could be refused for what is about to go.
    for moves in [give, take] {
        carry_out_all(&roots, path, moves, &mut tell)?;
    }
    Ok(left_out)
}

/// Carries moves out, several at a time, in their order.
fn carry_out_all(
    roots: &Roots,
    path: &PoolPath,
    moves: Vec<Move>,
    tell: &mut impl FnMut(&Instance, &Move),
) -> Result<(), LifecycleError> {
    let workers = moves.len().min(AT_ONCE);
    let moves = Mutex::new(moves.into_iter());
    let next = || moves.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
    let (done, results) = mpsc::channel();
    let mut first_error = None;
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (done, mut operator) = (done.clone(), Operator::new(roots.clone()));
            scope.spawn(move || {
                while let Some(one) = next() {
                    // Nobody listens any more after a failure: then the rest is left.
                    let result = carry_out(&mut operator, path, &one).map(|instance| (instance, one));
                    if done.send(result).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for result in results {
            match result {
                Ok((instance, one)) => tell(&instance, &one),
                Err(error) => {
                    first_error.get_or_insert(error);
                    while next().is_some() {}
                }
            }
        }
    });
    first_error.map_or(Ok(()), Err)
}

/// The pool's instances by state, the longest in it first.
#[derive(Debug, Default)]
struct There {
    running: Vec<InstancePath>,
    warm: Vec<InstancePath>,
    sleeping: Vec<InstancePath>,
    down: Vec<InstancePath>,
}

fn there_are(operator: &mut Operator, pool: &PoolPath) -> Result<(There, Vec<LeftOut>), PoolError> {
    let roots = operator.roots.clone();
    let (mut instances, mut left_out) = (Vec::new(), Vec::new());
    for path in instance::config::paths(&roots, pool)? {
        let settled = Instance::load_if_there(&roots, &path)
            .map_err(LifecycleError::from)
            .and_then(|instance| instance.map_or(Ok(None), |instance| lifecycle::settle(operator, instance)));
        match settled {
            Ok(instance) => instances.extend(instance),
            Err(error) => left_out.push((path, error)),
        }
    }
    let in_state = |state: State, since: fn(&Instance) -> Option<Timestamp>| {
        let mut these: Vec<&Instance> = instances.iter().filter(|i| i.status == state).collect();
        these.sort_by_key(|instance| since(instance));
        these.into_iter().map(Instance::path).collect()
    };
    let is_down = |i: &&Instance| matches!(i.status, State::Created | State::Ready | State::Stopped);
    let there = There {
        running: in_state(State::Running, |instance| instance.entered_running_at),
        warm: in_state(State::Warm, |instance| instance.entered_warm_at),
        sleeping: in_state(State::Sleeping, |instance| instance.entered_sleeping_at),
        down: instances.iter().filter(is_down).map(Instance::path).collect(),
    };
    Ok((there, left_out))
}

/// Who goes where. Pure.
fn plan(there: &There, goal: Goal) -> Vec<Move> {
    use State::{Created, Running, Sleeping, Stopped, Warm};
    /// Those of a state that are more than are wanted, newest last, and how many are missing.
    fn split(have: &[InstancePath], wanted: Option<u32>) -> (Vec<InstancePath>, usize) {
        let wanted = wanted.map_or(have.len(), |wanted| wanted as usize);
        (have.get(wanted..).unwrap_or_default().to_vec(), wanted.saturating_sub(have.len()))
    }
    let (mut running, more_running) = split(&there.running, goal.running);
    let (mut warm, more_warm) = split(&there.warm, goal.warm);
    let (mut sleeping, more_sleeping) = split(&there.sleeping, goal.sleeping);
    // What nobody wants a number of may run, and is not stopped.
    let (mut spare_warm, mut spare_sleeping) = (Vec::new(), Vec::new());
    if goal.warm.is_none() {
        spare_warm.clone_from(&there.warm);
    }
    if goal.sleeping.is_none() {
        spare_sleeping.clone_from(&there.sleeping);
    }
    let mut down = there.down.clone();
    down.reverse();
    let mut moves = Vec::new();
    let mut go = |path, from, to| moves.push(Move { path, from, to });
    let mut raise = |to, count: usize, from: &mut [(State, &mut Vec<InstancePath>)]| {
        for _ in 0..count {
            let found = from.iter_mut().find_map(|(state, paths)| Some((paths.pop()?, *state)));
            match found {
                Some((path, state)) => go(Some(path), state, to),
                None => go(None, Created, to),
            }
        }
    };
    let from = &mut [
        (Sleeping, &mut sleeping),
        (Sleeping, &mut spare_sleeping),
        (Warm, &mut warm),
        (Warm, &mut spare_warm),
        (Stopped, &mut down),
    ];
    raise(Running, more_running, from);
    raise(Warm, more_warm, &mut [(Running, &mut running), (Sleeping, &mut sleeping), (Stopped, &mut down)]);
    raise(Sleeping, more_sleeping, &mut [(Warm, &mut warm), (Running, &mut running), (Stopped, &mut down)]);
    for (from, paths) in [(Running, running), (Warm, warm), (Sleeping, sleeping)] {
        moves.extend(paths.into_iter().rev().map(|path| Move { path: Some(path), from, to: Stopped }));
    }
    moves
}

fn carry_out(operator: &mut Operator, pool: &PoolPath, one: &Move) -> Result<Instance, LifecycleError> {
    let Some(path) = &one.path else {
        let path = lifecycle::create(operator, pool, CreateOptions::default())?.path();
        let moved = go(operator, &path, one.from, one.to);
        if moved.is_err() {
            // One that was made to run and never did is nobody's wish; why it did not matters more than its removal.
            let never_ran = Instance::load(&operator.roots, &path)
                .is_ok_and(|one| one.entered_running_at.is_none() && one.pending.is_none());
            if never_ran {
                let _ = lifecycle::destroy(operator, &path, true);
            }
        }
        return moved;
    };
    go(operator, path, one.from, one.to)
}

/// From one state to another, over Running where there is no shorter way.
fn go(
    operator: &mut Operator,
    path: &InstancePath,
    from: State,
    to: State,
) -> Result<Instance, LifecycleError> {
    if to == State::Stopped {
        return Ok(lifecycle::stop(operator, path, false)?.instance);
    }
    let there = match from {
        State::Running => None,
        State::Warm if to == State::Sleeping => None,
        State::Warm => Some(lifecycle::resume(operator, path)?),
        State::Sleeping => Some(lifecycle::wake(operator, path, false)?),
        _ => Some(lifecycle::start(operator, path)?),
    };
    let there = match to {
        State::Warm => Some(lifecycle::warm(operator, path)?),
        State::Sleeping => Some(lifecycle::sleep(operator, path, false)?),
        _ => there,
    };
    match there {
        Some(outcome) => Ok(outcome.instance),
        None => Ok(Instance::load(&operator.roots, path)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(names: &str) -> Vec<InstancePath> {
        let path = |name: &str| format!("t/p/i-0000000{name}").parse().unwrap();
        names.split_whitespace().map(path).collect()
    }

    fn planned(there: [&str; 4], goal: [Option<u32>; 3]) -> String {
        let [running, warm, sleeping, down] = there.map(paths);
        let [r, w, s] = goal;
        let goal = Goal { running: r, warm: w, sleeping: s };
        let text = |one: Move| {
            let name = one.path.map_or("+".to_owned(), |path| path.instance.to_string()[9..].to_owned());
            format!("{name}:{}", one.to)
        };
        let moves = plan(&There { running, warm, sleeping, down }, goal);
        let (give, take): (Vec<Move>, Vec<Move>) = moves.into_iter().partition(Move::gives_room);
        give.into_iter().chain(take).map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_shortest_way_comes_first() {
        let all = ["1 2", "3", "4", "5"];
        for (there, goal, expected) in [
            (all, [Some(2), None, None], ""),
            (all, [Some(3), None, None], "4:running"),
            (all, [Some(6), None, None], "4:running 3:running 5:running +:running"),
            (all, [Some(3), Some(1), Some(1)], "5:running"),
            (all, [Some(1), None, None], "2:stopped"),
            (all, [Some(1), Some(2), None], "2:warm"),
            (all, [Some(0), Some(1), Some(3)], "2:sleeping 1:sleeping"),
            (all, [None, Some(0), None], "3:stopped"),
            (all, [None, Some(0), Some(2)], "3:sleeping"),
            (all, [None, None, Some(3)], "5:sleeping +:sleeping"),
            (all, [None, None, Some(0)], "4:stopped"),
            (["", "", "", ""], [Some(1), Some(1), Some(1)], "+:running +:warm +:sleeping"),
        ] {
            assert_eq!(planned(there, goal), expected, "{goal:?}");
        }
    }
}
