//! A tenant's audit log: JSON lines, each chained to the one before by hash; head and count are kept in a file apart.
//!
//! A line is appended and synced before the effect that it announces. The head follows once the line is on the disk, without a
//! sync of its own: it may lag behind the log, which the chain heals; a head that is *ahead* of the log means that lines were
//! cut off. Root can rewrite log and head together: only a signed copy of the head elsewhere ([`kept`]) shows that.
//!
//! A log begins once, with its tenant ([`begin`]). One that is gone is not begun again but by a person ([`begin_anew`]).

mod files;
mod head;
pub mod kept;
mod record;
mod verify;

use std::{
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

pub use self::{
    files::{FULL, Place, current as log_file, names, records},
    record::{Entry, Limits, Network, Phase, Record},
    verify::{Remark, Verified, verify},
};
use self::{
    head::Head,
    record::{seal, unseal},
};
use crate::{
    infra::{config::Roots, failpoint, relief},
    store::{self, Lock, Sharing, StoreError},
};

/// Why an audit log cannot be written or believed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A line is not what mvm wrote.
    #[error("the audit log {path} is broken at line {line}, record {record}: {why}", path = path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line in it, from 1.
        line: u64,
        /// The record that should be there.
        record: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// Records are not there.
    #[error("{} from the audit log {place}", missing(*first, *last))]
    Missing {
        /// The first that is missing.
        first: u64,
        /// The last.
        last: u64,
        /// Between which files.
        place: String,
    },
    /// A file is shorter than it was.
    #[error("the audit log {path} is shorter than audit.head says: it was cut", path = path.display())]
    Cut {
        /// The file.
        path: PathBuf,
    },
    /// There is a log, and no head: nothing tells it from one that was cut.
    #[error("the audit log in {folder} has no audit.head: nothing tells whether it was cut", folder = folder.display())]
    NoHead {
        /// The tenant's folder.
        folder: PathBuf,
    },
    /// Neither log nor head is there.
    #[error("the audit log in {folder} is gone", folder = folder.display())]
    Gone {
        /// The tenant's folder.
        folder: PathBuf,
    },
    /// A log that is whole is not given up.
    #[error("the audit log is whole up to its last record, {records}: it is not begun anew")]
    Whole {
        /// How many lines it has.
        records: u64,
    },
}

fn missing(first: u64, last: u64) -> String {
    if first == last {
        format!("record {first} is missing")
    } else {
        format!("records {first} to {last} are missing")
    }
}

/// Begins the log of a tenant that is being made, in its folder, with a first record.
///
/// # Errors
/// When it cannot be written.
pub fn begin(roots: &Roots, tenant: &str, folder: &Path, entry: Entry) -> Result<(), AuditError> {
    let lock = lock(roots, tenant)?;
    append_to(roots, (tenant, folder), lock, Head::at_start(), entry)
}

/// Appends a record to the log in a tenant's folder and syncs it. `tenant` names the lock.
///
/// # Errors
/// When the log cannot be written, or what is there is broken.
pub fn append(roots: &Roots, tenant: &str, folder: &Path, entry: Entry) -> Result<(), AuditError> {
    let lock = lock(roots, tenant)?;
    let head = head_of(folder)?;
    append_to(roots, (tenant, folder), lock, head, entry)
}

fn append_to(
    roots: &Roots,
    (tenant, folder): (&str, &Path),
    lock: Lock,
    mut head: Head,
    entry: Entry,
) -> Result<(), AuditError> {
    let mut file = catch_up(folder, &mut head)?;
    if head.bytes >= FULL {
        file = files::rotate(folder, &file, &mut head)?;
    }
    let path = log_file(folder);
    let io = |action| StoreError::io(action, &path);
    let record = Record {
        seq: head.count + 1,
        at: roots.now(),
        who: roots.actor.clone(),
        entry,
        prev: head.hash.clone(),
    };
    let (line, hash) = seal(&record).map_err(|error| io("append to")(std::io::Error::other(error)))?;
    relief::retry(|| append_line(&mut file, line.as_bytes(), head.bytes)).map_err(io("append to"))?;
    // Others may append meanwhile: the disk syncs the lines of several at once.
    drop(lock);
    file.sync_data().map_err(io("sync"))?;
    failpoint::hit("audit", "before-head").map_err(io("append to"))?;
    (head.count, head.hash) = (record.seq, hash);
    head.bytes += line.len() as u64;
    Ok(advance_head(roots, tenant, folder, &head)?)
}

/// Appends a line to a file of that length, or nothing.
fn append_line(file: &mut File, line: &[u8], length: u64) -> std::io::Result<()> {
    let (first, rest) = line.split_at(line.len() / 2);
    let written = file
        .write_all(first)
        .and_then(|()| failpoint::hit("audit", "torn"))
        .and_then(|()| file.write_all(rest));
    if written.is_err() {
        // Half a line must not stay in front of the next one.
        let _ = file.set_len(length);
    }
    written
}

fn lock(roots: &Roots, tenant: &str) -> Result<Lock, StoreError> {
    let file = roots.lock_file(&format!("audit.{tenant}"));
    Lock::take(&file, "the audit log", Sharing::Exclusive, roots.lock_timeout)
}

/// The head of a log that has begun.
fn head_of(folder: &Path) -> Result<Head, AuditError> {
    match head::read(folder)? {
        Some(head) => Ok(head),
        None if files::parts(folder)?.is_empty() => Err(AuditError::Gone { folder: folder.to_path_buf() }),
        None => Err(AuditError::NoHead { folder: folder.to_path_buf() }),
    }
}

/// Lets the head name a line that is synced, unless it names a later one already: it must never be ahead of what a power cut
/// leaves of the log.
fn advance_head(roots: &Roots, tenant: &str, folder: &Path, to: &Head) -> Result<(), StoreError> {
    let is_later = |head: Option<Head>| head.is_some_and(|head| head.count >= to.count);
    // Without the lock it may be read while it is written.
    if head::read(folder).is_ok_and(is_later) {
        return Ok(());
    }
    let _lock = lock(roots, tenant)?;
    match is_later(head::read(folder)?) {
        true => Ok(()),
        false => to.write(folder),
    }
}

/// Others have not come to write the head, or were killed before that: whole lines that continue the chain count, half a line is
/// cut off. Returns the file that the next line goes to.
fn catch_up(folder: &Path, head: &mut Head) -> Result<File, AuditError> {
    // The file that the head names may be full by now, and others that came after it, too.
    while files::is_full(folder, head.first) {
        let path = files::full(folder, head.first);
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        if read_on(&path, &file, head)? != 0 {
            return Err(broken_after(&path, head, "it was cut off"));
        }
        (head.first, head.bytes) = (head.count + 1, 0);
    }
    let path = log_file(folder);
    // A file that holds a line is never made anew.
    let file = match files::open_current(folder, head.bytes == 0) {
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let place = format!("at its end: {} is not there", path.display());
            let first = head.first;
            return Err(AuditError::Missing { first, last: head.count, place });
        }
        opened => opened?,
    };
    if read_on(&path, &file, head)? != 0 {
        file.set_len(head.bytes).map_err(StoreError::io("cut", &path))?;
    }
    Ok(file)
}

/// Goes on from the head through the whole lines of a file. Returns how many bytes follow them.
fn read_on(path: &Path, file: &File, head: &mut Head) -> Result<u64, AuditError> {
    let length = file.metadata().map_err(StoreError::io("look at", path))?.len();
    if length < head.bytes {
        return Err(AuditError::Cut { path: path.to_path_buf() });
    }
    if length == head.bytes {
        return Ok(0);
    }
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(head.bytes)).map_err(StoreError::io("read", path))?;
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(StoreError::io("read", path))? > 0 {
        let Some(whole) = line.strip_suffix(b"\n") else { break };
        let (record, hash) = unseal(whole, &head.hash).map_err(|why| broken_after(path, head, why))?;
        (head.count, head.hash) = (record.seq, hash);
        head.bytes += line.len() as u64;
        line.clear();
    }
    Ok(length - head.bytes)
}

/// The line after the head is wrong.
fn broken_after(path: &Path, head: &Head, why: &'static str) -> AuditError {
    let record = head.count + 1;
    AuditError::Broken { path: path.to_path_buf(), line: record.saturating_sub(head.first) + 1, record, why }
}

/// Writes an outcome for each intent whose process is no more and that has none: what was cut off between its last effect
/// and its last line. Those of paths that are still unsettled stay open. Returns how many there were.
///
/// # Errors
/// When the log cannot be read or written.
pub fn close_cut_off(
    roots: &Roots,
    tenant: &str,
    folder: &Path,
    is_unsettled: impl Fn(&str) -> bool,
) -> Result<usize, AuditError> {
    let mut cut_off = open_intents(folder)?;
    let is_over = |record: &Record| !store::is_alive(record.who.pid);
    cut_off.retain(|record| is_over(record) && !is_unsettled(&record.entry.path));
    if !cut_off.is_empty() {
        // One that wrote its outcome after the log was read, and ended then, was not cut off. The dead write no more.
        let still = open_intents(folder)?;
        cut_off.retain(|record| still.contains(record));
    }
    for record in &cut_off {
        let mut entry = Entry::new(&record.entry.what, &record.entry.path, Phase::Recovered);
        entry.detail = Some("it was cut off, and nothing of it is open any more".into());
        append(roots, tenant, folder, entry)?;
    }
    Ok(cut_off.len())
}

/// The intents that no outcome follows.
fn open_intents(folder: &Path) -> Result<Vec<Record>, AuditError> {
    let mut open: Vec<Record> = Vec::new();
    for record in records(folder, Place::default())?.0 {
        let entry = &record.entry;
        open.retain(|one| (&one.entry.what, &one.entry.path) != (&entry.what, &entry.path));
        if entry.phase == Phase::Intent {
            open.push(record);
        }
    }
    Ok(open)
}

/// Gives up a log that is broken or gone: its files are put aside, and the next one begins with a record that says why. Returns
/// what was wrong.
///
/// # Errors
/// [`AuditError::Whole`] where nothing is wrong with it.
pub fn begin_anew(roots: &Roots, tenant: &str, folder: &Path) -> Result<String, AuditError> {
    // Held from the verdict to the first line: nobody else gives up what is new by then.
    let lock = lock(roots, tenant)?;
    let why = match verify::verify_locked(folder, &[]) {
        Ok(verified) => return Err(AuditError::Whole { records: verified.records }),
        // What cannot be read now is not broken by that.
        Err(AuditError::Store(error @ (StoreError::Io { .. } | StoreError::Locked { .. }))) => {
            return Err(error.into());
        }
        Err(error) => error.to_string(),
    };
    let named = head::read(folder).ok().flatten();
    let left = names(folder)?;
    let is_taken = |number: &u32| left.iter().any(|name| name.starts_with(&format!("audit-{number}.")));
    let number = (1..).find(|number| !is_taken(number)).unwrap_or_default();
    for (name, rest) in left.iter().filter_map(|name| Some((name, name.strip_prefix("audit.")?))) {
        store::rename(&folder.join(name), &folder.join(format!("audit-{number}.{rest}")))?;
    }
    store::sync_folder(folder)?;
    // A log without a head would be one that was cut.
    Head::at_start().write(folder)?;
    let mut entry = Entry::new("audit.begin-anew", tenant, Phase::Done);
    let named = named.map(|head| format!("; its head named record {}, {}", head.count, head.hash));
    entry.detail = Some(format!("{why}{}", named.unwrap_or_default()));
    append_to(roots, (tenant, folder), lock, Head::at_start(), entry)?;
    Ok(why)
}

#[cfg(test)]
mod tests;
