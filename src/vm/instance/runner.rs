//! Runs an operation's steps in order; undoes them in reverse where one fails.
//!
//! A step and its undo may each run again after a crash: both look at the world and do what is missing. Between any two
//! steps a failpoint can kill the process.

use std::time::Instant;

use crate::infra::failpoint;

/// Takes back what a step did.
pub type Undo<C, E> = fn(&mut C) -> Result<(), E>;

/// One step of an operation on a context `C`.
pub struct Step<C, E> {
    /// Its name, for receipts, failpoints and error texts.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&mut C) -> Result<(), E>,
    /// Takes back what it did, all or in part; `None` where there is nothing to take back.
    pub undo: Option<Undo<C, E>>,
}

/// A step failed; what was done was undone, but for what `left` says.
#[derive(Debug)]
pub struct Failed<E> {
    /// The step.
    pub step: &'static str,
    /// Why it failed.
    pub error: Box<E>,
    /// The first step that could not be undone, and why. What was made before it stays too: it may still be in use.
    pub left: Option<(&'static str, Box<E>)>,
}

/// Runs the steps. Returns each one's name and its ms.
///
/// # Errors
/// [`Failed`] after everything that was done was undone, as far as that goes.
pub fn run<C, E: From<std::io::Error>>(
    operation: &str,
    steps: &[Step<C, E>],
    context: &mut C,
) -> Result<Vec<(&'static str, f64)>, Failed<E>> {
    let mut times = Vec::with_capacity(steps.len());
    for (done, step) in steps.iter().enumerate() {
        let start = Instant::now();
        let result = (step.run)(context).and_then(|()| Ok(failpoint::hit(operation, step.name)?));
        if let Err(error) = result {
            let left = undo(&steps[..=done], context);
            return Err(Failed { step: step.name, error: Box::new(error), left });
        }
        times.push((step.name, start.elapsed().as_secs_f64() * 1000.0));
    }
    Ok(times)
}

/// Undoes steps in reverse. Ends at the first that cannot be undone, and returns it: what was made before it may still be
/// in use by what it left.
pub fn undo<C, E>(steps: &[Step<C, E>], context: &mut C) -> Option<(&'static str, Box<E>)> {
    steps.iter().rev().find_map(|step| Some((step.name, Box::new((step.undo?)(context).err()?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Log = Vec<&'static str>;

    fn note(log: &mut Log, text: &'static str) -> Result<(), std::io::Error> {
        log.push(text);
        Ok(())
    }

    fn steps() -> Vec<Step<Log, std::io::Error>> {
        let stuck = |_: &mut Log| Err(std::io::Error::other("stuck"));
        vec![
            Step { name: "one", run: |log| note(log, "one"), undo: Some(|log| note(log, "-one")) },
            Step { name: "two", run: |log| note(log, "two"), undo: Some(stuck) },
            Step { name: "three", run: stuck, undo: Some(|log| note(log, "-three")) },
        ]
    }

    #[test]
    fn a_failure_undoes_in_reverse() {
        let mut log = Log::new();
        let mut steps = steps();
        steps[1].undo = Some(|log| note(log, "-two"));
        let failed = run("test", &steps, &mut log).unwrap_err();
        assert_eq!(log, ["one", "two", "-three", "-two", "-one"]);
        assert!(failed.step == "three" && failed.left.is_none());
    }

    #[test]
    fn what_cannot_be_undone_keeps_what_it_stands_on() {
        let mut log = Log::new();
        let failed = run("test", &steps(), &mut log).unwrap_err();
        assert_eq!(log, ["one", "two", "-three"]);
        assert_eq!(failed.left.map(|(step, _)| step), Some("two"));
    }

    #[test]
    fn success_gives_each_step_its_time() {
        let times = run("test", &steps()[..2], &mut Log::new()).unwrap();
        assert_eq!(times.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["one", "two"]);
    }
}
