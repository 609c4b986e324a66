//! Intents without an outcome: what was cut off between its first effect and its last line gets one from a recovery.
//!
//! An outcome belongs to the last open intent of the same thing and verb that its own process has written. What a later command
//! has settled (`recovered`, `observed`) is another process's: it belongs to the last one of anybody's, for who settles a
//! thing has it alone; a line of a whole log's recovery names its intent. Lines of before processes had a beginning close
//! every earlier intent of the same thing and verb.

use std::path::Path;

use serde_json::Value;

use super::{
    AuditError, Entry, Phase, Place, Record, append_to,
    changes::{held, parts},
    head_of, lock, records,
};
use crate::infra::config::Roots;

/// Writes an outcome for each intent whose process is no more and that has none: what was cut off between its last effect
/// and its last line. Those of paths that are still unsettled stay open. `now` is the record that an intent was to change, as it is.
/// Returns how many there were.
///
/// # Errors
/// When the log cannot be read or written.
pub fn close_cut_off(
    roots: &Roots,
    tenant: &str,
    folder: &Path,
    is_unsettled: impl Fn(&str) -> bool,
    now: impl Fn(&Entry) -> Option<Value>,
) -> Result<usize, AuditError> {
    let mut cut_off = intents(&records(folder, Place::default())?.0);
    cut_off.retain(|record| !record.who.is_alive() && !is_unsettled(&record.entry.path));
    if cut_off.is_empty() {
        return Ok(0);
    }
    // What wrote its outcome after the log was read, and ended then, was not cut off; the dead write no more. Nor does anybody
    // else who closes them: the log is locked from this look to the lines.
    let lock = lock(roots, tenant)?;
    let all = records(folder, Place::default())?.0;
    let still = intents(&all);
    cut_off.retain(|record| still.contains(record));
    let entry = |record: &Record| Entry {
        closes: Some(record.seq),
        detail: Some(what_became_of(record, &all, &now)),
        ..Entry::new(&record.entry.what, &record.entry.path, Phase::Recovered)
    };
    append_to(roots, (tenant, folder), lock, head_of(folder)?, cut_off.iter().map(entry).collect())?;
    Ok(cut_off.len())
}

fn what_became_of(record: &Record, all: &[Record], now: impl Fn(&Entry) -> Option<Value>) -> String {
    let entry = &record.entry;
    let touches = |one: &Entry| match (fields(entry), fields(one)) {
        (Some(these), Some(those)) => these.iter().any(|name| those.contains(name)),
        _ => true,
    };
    let is_later = |one: &Record| {
        let is_done = one.seq > record.seq && one.entry.phase == Phase::Done;
        is_done && is_same(&one.entry, entry) && touches(&one.entry)
    };
    let held = match &entry.detail {
        Some(_) if all.iter().any(is_later) => None,
        Some(changes) => now(entry).and_then(|now| held(changes, &now)),
        None => None,
    };
    let more = held.map_or(String::new(), |held| format!("; {held}"));
    format!("it was cut off, and nothing of it is open any more{more}")
}

/// The names of what a change changes.
fn fields(entry: &Entry) -> Option<Vec<&str>> {
    Some(parts(entry.detail.as_deref()?)?.into_iter().map(|[name, ..]| name).collect())
}

/// Is it the same done to the same thing?
fn is_same(one: &Entry, other: &Entry) -> bool {
    (&one.what, &one.path) == (&other.what, &other.path)
}

/// The intents that have no outcome.
fn intents(records: &[Record]) -> Vec<Record> {
    let mut open: Vec<Record> = Vec::new();
    for record in records {
        close(&mut open, record);
        if record.entry.phase == Phase::Intent {
            open.push(record.clone());
        }
    }
    open
}

/// Takes out what a line is the outcome of.
fn close(open: &mut Vec<Record>, by: &Record) {
    let is_same = |one: &Record| is_same(&one.entry, &by.entry);
    let closed = match (by.entry.closes, by.entry.phase) {
        (Some(seq), _) => open.iter().position(|one| one.seq == seq),
        (None, _) if by.who.began.is_none() => return open.retain(|one| !is_same(one)),
        (None, Phase::Intent) => None,
        (None, Phase::Done | Phase::Failed) => {
            open.iter().rposition(|one| is_same(one) && one.who.is(&by.who))
        }
        (None, Phase::Recovered | Phase::Observed) => open.iter().rposition(is_same),
    };
    closed.map(|at| open.remove(at));
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::Barrier};

    use super::*;
    use crate::{
        infra::config::Environment,
        security::audit::{append, begin, log_file, verify},
    };

    /// What the mvm before wrote: an update that was killed, one that was done, another one that was killed.
    const OLD: &str = include_str!("old.log");

    fn log() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), &Environment::default()).unwrap();
        begin(&roots, "acme", dir.path(), Entry::new("test.begin", "acme", Phase::Done)).unwrap();
        (dir, roots)
    }

    /// The same roots for another process, which is no more.
    fn killed(roots: &Roots, number: u32) -> Roots {
        let mut roots = roots.clone();
        roots.actor.pid = i32::MAX.unsigned_abs() - number;
        roots.actor.began = Some(format!("an earlier boot/{number}"));
        roots
    }

    fn write(roots: &Roots, folder: &Path, phase: Phase) {
        append(roots, "acme", folder, Entry::new("test.set", "acme", phase)).unwrap();
    }

    fn open(folder: &Path) -> Vec<u64> {
        intents(&records(folder, Place::default()).unwrap().0).iter().map(|record| record.seq).collect()
    }

    /// What the lines of recoveries close.
    fn closed(folder: &Path) -> Vec<Option<u64>> {
        let records = records(folder, Place::default()).unwrap().0;
        let recovered = records.into_iter().filter(|record| record.entry.phase == Phase::Recovered);
        recovered.map(|record| record.entry.closes).collect()
    }

    #[test]
    fn what_another_process_has_done_closes_no_intent_but_its_own() {
        let (dir, roots) = log();
        let folder = dir.path();
        let other = killed(&roots, 1);
        write(&other, folder, Phase::Intent);
        write(&roots, folder, Phase::Intent);
        write(&other, folder, Phase::Intent);
        write(&roots, folder, Phase::Done);
        assert_eq!(open(folder), [2, 4], "it was killed: that another one's was done says nothing of it");
        assert_eq!(close_cut_off(&roots, "acme", folder, |_| false, |_| None).unwrap(), 2);
        assert_eq!(closed(folder), [Some(2), Some(4)]);
        assert!(open(folder).is_empty());
        assert_eq!(close_cut_off(&roots, "acme", folder, |_| false, |_| None).unwrap(), 0);
    }

    #[test]
    fn an_outcome_closes_one_intent() {
        let (dir, roots) = log();
        let folder = dir.path();
        // Where no outcome could be written, a later one of that process is not its outcome.
        write(&roots, folder, Phase::Intent);
        write(&roots, folder, Phase::Intent);
        write(&roots, folder, Phase::Failed);
        assert_eq!(open(folder), [2]);
        write(&killed(&roots, 1), folder, Phase::Intent);
        write(&roots, folder, Phase::Recovered);
        assert_eq!(open(folder), [2], "who settles a thing closes what was begun last, whoever began it");
    }

    #[test]
    fn a_pid_that_was_given_out_again_is_not_the_writer() {
        let (dir, roots) = log();
        let mut other = roots.clone();
        other.actor.began = killed(&roots, 1).actor.began;
        write(&other, dir.path(), Phase::Intent);
        write(&roots, dir.path(), Phase::Intent);
        assert!(roots.actor.is_alive() && !other.actor.is_alive());
        assert_eq!(close_cut_off(&roots, "acme", dir.path(), |_| false, |_| None).unwrap(), 1);
        assert_eq!(open(dir.path()), [3], "this process is there, and may write its outcome yet");
    }

    #[test]
    fn who_closes_a_change_says_whether_it_holds() {
        let (dir, roots) = log();
        let change = |detail: &str| Entry {
            detail: Some(detail.to_owned()),
            ..Entry::new("test.set", "acme", Phase::Intent)
        };
        for detail in ["max from 4 to 8", "max from 1 to 4", "to what a word says"] {
            append(&killed(&roots, 1), "acme", dir.path(), change(detail)).unwrap();
        }
        let now = |entry: &Entry| (entry.what == "test.set").then(|| serde_json::json!({ "max": 4 }));
        assert_eq!(close_cut_off(&roots, "acme", dir.path(), |_| false, now).unwrap(), 3);
        let records = records(dir.path(), Place::default()).unwrap().0;
        let said = records.iter().skip(4).map(|record| record.entry.detail.as_deref().unwrap_or_default());
        let ends = ["is as it was before", "is as it was to be", "open any more"];
        assert!(said.zip(ends).all(|(said, end)| said.ends_with(end)), "{records:?}");
        assert_eq!(records.len(), 7);
        // What another one did to the same since says nothing of it.
        append(&killed(&roots, 1), "acme", dir.path(), change("max from 1 to 4")).unwrap();
        write(&roots, dir.path(), Phase::Intent);
        write(&roots, dir.path(), Phase::Done);
        assert_eq!(close_cut_off(&roots, "acme", dir.path(), |_| false, now).unwrap(), 1);
        let last = super::records(dir.path(), Place::default()).unwrap().0.pop().unwrap();
        assert!(last.entry.detail.unwrap().ends_with("open any more"));
    }

    #[test]
    fn two_recoveries_at_once_close_an_intent_once() {
        let (dir, roots) = log();
        let folder = dir.path();
        (0..40).for_each(|number| write(&killed(&roots, number), folder, Phase::Intent));
        let both_have_looked = Barrier::new(2);
        let recover = || {
            let looked = std::cell::Cell::new(0);
            let is_unsettled = |_: &str| {
                looked.set(looked.get() + 1);
                if looked.get() == 40 {
                    both_have_looked.wait();
                }
                false
            };
            close_cut_off(&roots, "acme", folder, is_unsettled, |_| None).unwrap()
        };
        let closed_by = std::thread::scope(|scope| {
            let other = scope.spawn(recover);
            (recover(), other.join().unwrap())
        });
        assert!(matches!(closed_by, (40, 0) | (0, 40)), "{closed_by:?}");
        assert_eq!(closed(folder), (2..42).map(Some).collect::<Vec<_>>());
        assert_eq!(verify(&roots, "acme", folder).unwrap().records, 81);
    }

    #[test]
    fn a_log_of_before_is_whole_and_understood_as_it_was_meant() {
        let (dir, roots) = log();
        fs::write(log_file(dir.path()), OLD).unwrap();
        fs::remove_file(dir.path().join("audit.head")).unwrap();
        // The head follows from the log where it lags behind.
        super::super::Head::at_start().write(dir.path()).unwrap();
        assert_eq!(open(dir.path()), [6]);
        write(&roots, dir.path(), Phase::Intent);
        write(&roots, dir.path(), Phase::Done);
        assert_eq!(verify(&roots, "acme", dir.path()).unwrap().records, 8);
        assert_eq!(open(dir.path()), [6]);
    }
}
