//! Giving up a log that is broken or gone, for a new one whose first line says why, and the next ones what was found.
//!
//! ```text
//! audit-new.log written · audit.* → audit-N.* · audit.head of that line · audit-new.log → audit.log
//! ```
//! Between the second and the last of these there is no log that anything could be appended to: killed there, it is done again.

use std::path::Path;

use super::{
    AuditError, Entry, Head, Phase, Record, head, line_after, lock, log_file, names, verify::verify_locked,
};
use crate::{
    infra::{config::Roots, failpoint},
    store::{self, Durability, StoreError},
};

/// How the names of a log's files begin that are not put aside.
const OWN: &str = "audit.";
/// What its first line is. Those of what was found are `node.found`, `tenant.found`, `pool.found`.
pub(super) const ANEW: &str = "audit.begin-anew";

/// Gives up a log that is broken or gone: its files are put aside, and the next one begins with a record that says why, and those of
/// what was found. Returns what was wrong.
///
/// # Errors
/// [`AuditError::Whole`] where nothing is wrong with it.
pub fn begin_anew(
    roots: &Roots,
    tenant: &str,
    folder: &Path,
    found: Vec<Entry>,
) -> Result<String, AuditError> {
    // Held from the verdict to the last rename: nobody else gives up what is new by then.
    let _lock = lock(roots, tenant)?;
    let prepared = folder.join("audit-new.log");
    let is_file = |name: &String| folder.join(name).metadata().is_ok_and(|meta| meta.is_file());
    let mut own = names(folder)?.into_iter().filter(|name| name.starts_with(OWN));
    let odd = own.find(|name| !is_file(name)).map(|name| format!("{name} is no file"));
    let why = match verify_locked(tenant, folder) {
        // A folder, a pipe, a link that leads nowhere: no other try would read it.
        Err(_) if let Some(odd) = odd => odd,
        Ok(verified) => {
            // It was put right after somebody was killed here.
            store::remove_file(&prepared)?;
            return Err(AuditError::Whole { records: verified.records });
        }
        // What cannot be read now is not broken by that.
        Err(AuditError::Store(error @ (StoreError::Io { .. } | StoreError::Locked { .. }))) => {
            return Err(error.into());
        }
        Err(error) => error.to_string(),
    };
    let io = |action| StoreError::io(action, &prepared);
    let mut words = why.clone();
    if let Some(head) = head::read(folder).ok().flatten() {
        words += &format!("; its head named record {}, {}", head.count, head.hash);
    }
    let cut_off = match std::fs::read(&prepared) {
        Ok(lines) => lines
            .split(|byte| *byte == b'\n')
            .next()
            .and_then(|first| serde_json::from_slice::<Record>(first).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(io("read")(error).into()),
    };
    match cut_off.and_then(|record| record.entry.detail) {
        // Nothing had been put aside yet.
        Some(earlier) if earlier.starts_with(&words) => words = earlier,
        Some(earlier) => words += &format!("; what was given up before that, and cut off: {earlier}"),
        None => {}
    }
    let first = Entry { detail: Some(words), ..Entry::new(ANEW, tenant, Phase::Done) };
    let (mut lines, mut head) = (String::new(), Head::at_start());
    for entry in [first].into_iter().chain(found) {
        let (line, next) = line_after(roots, &head, entry).map_err(io("write"))?;
        (lines, head) = (lines + &line, next);
    }
    store::replace(&prepared, lines.as_bytes(), Durability::Durable)?;
    failpoint::hit("anew", "prepared").map_err(io("write"))?;
    put_aside(folder)?;
    // It is ahead of a log that is not there yet, which nobody goes on with.
    head.write(folder)?;
    failpoint::hit("anew", "head").map_err(io("rename"))?;
    store::rename(&prepared, &log_file(folder))?;
    store::sync_folder(folder)?;
    failpoint::hit("anew", "begun").map_err(io("rename"))?;
    Ok(why)
}

/// Gives all files of the log names of the next number that is free.
fn put_aside(folder: &Path) -> Result<(), StoreError> {
    let left = names(folder)?;
    let is_taken = |number: &u32| left.iter().any(|name| name.starts_with(&format!("audit-{number}.")));
    let number = (1..).find(|number| !is_taken(number)).unwrap_or_default();
    for (name, rest) in left.iter().filter_map(|name| Some((name, name.strip_prefix(OWN)?))) {
        store::rename(&folder.join(name), &folder.join(format!("audit-{number}.{rest}")))?;
        failpoint::hit("anew", "aside").map_err(StoreError::io("rename", &folder.join(name)))?;
    }
    store::sync_folder(folder)
}
