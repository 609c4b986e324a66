//! A tenant's audit log: JSON lines, each chained to the one before by hash; head and count are kept in a file apart.
//!
//! A line is appended and synced before the effect that it announces; that of a launch before its VMM is told anything. The head follows once the line is on the disk, without a
//! sync of its own: it may lag behind the log, which the chain heals; a head that is *ahead* of the log means that lines were
//! cut off. Root can rewrite log and head together: only a signed copy of the head elsewhere ([`kept`]) shows that.
//!
//! What a line is the outcome of, [`close_cut_off`] has to know; the tenant may also be the node itself ([`NODE`]).
//! A log begins once, with its tenant ([`begin`]). One that is gone is not begun again but by a person ([`begin_anew`]).

mod anew;
mod changes;
mod files;
mod head;
pub mod kept;
mod last_set;
mod open;
mod record;
mod verify;

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

pub use self::{
    anew::begin_anew,
    changes::{changes, differing},
    files::{FULL, Place, current as log_file, names, records},
    last_set::{Fields, last_set, node_found, pool_made, tenant_made},
    open::close_cut_off,
    record::{Entry, Limits, Network, Phase, Record},
    verify::{Remark, Verified, says_ended, verify},
};
use self::{
    head::Head,
    record::{seal, unseal},
};
use crate::{
    infra::{config::Roots, failpoint, regular, relief, text::with_causes},
    store::{Lock, Sharing, StoreError},
};

/// Whose log the node's own is: no tenant has a name like that.
pub const NODE: &str = "the.node";
/// Why a line is not taken that is in its place, but under another name.
const ANOTHERS: &str = "it is a line of another log";

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
    /// Something was done, and the log did not take the line that says so.
    #[error("{what} of {path} was done, and the line that says so could not be written into the audit log")]
    Unsaid {
        /// What was done.
        what: String,
        /// To what.
        path: String,
        /// Why not.
        source: Box<Self>,
    },
    /// A log that is whole is not given up.
    #[error("the audit log is whole up to its last record, {records}: it is not begun anew")]
    Whole {
        /// How many lines it has.
        records: u64,
    },
}

impl AuditError {
    /// The same of the line of something that was done, and stays so.
    pub fn unsaid(self, what: String, path: String) -> Self {
        Self::Unsaid { what, path, source: Box::new(self) }
    }
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
    append_to(roots, (tenant, folder), lock, Head::at_start(), vec![entry])
}

/// Appends a record to the log in a tenant's folder and syncs it. `tenant` names the lock.
///
/// # Errors
/// When the log cannot be written, or what is there is broken.
pub fn append(roots: &Roots, tenant: &str, folder: &Path, entry: Entry) -> Result<(), AuditError> {
    let lock = lock(roots, tenant)?;
    let head = head_of(folder)?;
    append_to(roots, (tenant, folder), lock, head, vec![entry])
}

/// Would a line be taken? Half a line that is at the end is cut off by that, as by the next line.
///
/// # Errors
/// Why none would be.
pub fn check(roots: &Roots, tenant: &str, folder: &Path) -> Result<(), AuditError> {
    let _lock = lock(roots, tenant)?;
    catch_up((tenant, folder), &mut head_of(folder)?).map(drop)
}

/// Does something between its lines in the log; what may follow only once its last line is there is the caller's.
///
/// # Errors
/// Of the log, and of what is done.
pub fn announced<T, E: From<AuditError> + std::error::Error>(
    roots: &Roots,
    log: (&str, &Path),
    entry: Entry,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    append(roots, log.0, log.1, entry.clone())?;
    outcome(roots, log, entry, work())
}

/// Writes how it went what an entry announced, and gives that on.
///
/// # Errors
/// The one that is given, or where that is none, [`AuditError::Unsaid`].
pub fn outcome<T, E: From<AuditError> + std::error::Error>(
    roots: &Roots,
    log: (&str, &Path),
    announced: Entry,
    went: Result<T, E>,
) -> Result<T, E> {
    match &went {
        Ok(_) => {
            let (what, path) = (announced.what.clone(), announced.path.clone());
            append(roots, log.0, log.1, Entry { phase: Phase::Done, ..announced })
                .map_err(|error| error.unsaid(what, path))?;
        }
        Err(error) => failed(roots, log, announced, error),
    }
    went
}

/// Writes that what an entry announced has failed. The error matters more than one of the log.
pub fn failed(
    roots: &Roots,
    (tenant, folder): (&str, &Path),
    mut announced: Entry,
    error: &dyn std::error::Error,
) {
    announced.phase = Phase::Failed;
    let detail = announced.detail.map_or(String::new(), |detail| format!("{detail}: "));
    announced.detail = Some(format!("{detail}{}", with_causes(error)));
    // It may have failed for want of the page that this needs.
    let _relief = relief::allow(&roots.root);
    let _ = append(roots, tenant, folder, announced);
}

/// Puts something new in the place of what was, between its lines in the log. Where that fails, what was is put there again.
///
/// # Errors
/// Of the log, and of the putting. Where it cannot be taken back either, its intent stays open for who recovers.
pub fn replace<T, E: From<AuditError> + std::error::Error>(
    roots: &Roots,
    log: (&str, &Path),
    entry: Entry,
    [was, new]: [&T; 2],
    put: impl FnMut(&T) -> Result<(), E>,
) -> Result<(), E> {
    append(roots, log.0, log.1, entry.clone())?;
    replace_announced(roots, log, entry, [was, new], put)
}

/// The same, where its intent is in the log by now.
///
/// # Errors
/// As [`replace`].
pub fn replace_announced<T, E: From<AuditError> + std::error::Error>(
    roots: &Roots,
    log: (&str, &Path),
    entry: Entry,
    [was, new]: [&T; 2],
    mut put: impl FnMut(&T) -> Result<(), E>,
) -> Result<(), E> {
    let went = put(new);
    if went.is_err() {
        let _relief = relief::allow(&roots.root);
        if put(was).is_err() {
            return went;
        }
    }
    outcome(roots, log, entry, went)
}

fn append_to(
    roots: &Roots,
    (tenant, folder): (&str, &Path),
    lock: Lock,
    mut head: Head,
    entries: Vec<Entry>,
) -> Result<(), AuditError> {
    let mut file = catch_up((tenant, folder), &mut head)?;
    let path = log_file(folder);
    let io = |action| StoreError::io(action, &path);
    for entry in entries {
        if head.bytes >= FULL {
            file = files::rotate(folder, &file, &mut head)?;
        }
        let (line, next) = line_after(roots, &head, entry).map_err(io("append to"))?;
        relief::retry(|| append_line(&mut file, line.as_bytes(), head.bytes)).map_err(io("append to"))?;
        head = next;
    }
    // Others may append meanwhile: the disk syncs the lines of several at once.
    drop(lock);
    file.sync_data().map_err(io("sync"))?;
    failpoint::hit("audit", "before-head").map_err(io("append to"))?;
    Ok(advance_head(roots, tenant, folder, &head)?)
}

/// The line that comes after this head, and the head that it makes.
fn line_after(roots: &Roots, head: &Head, entry: Entry) -> std::io::Result<(String, Head)> {
    let (seq, prev) = (head.count + 1, head.hash.clone());
    let record = Record { seq, at: roots.now(), who: roots.actor.clone(), entry, prev };
    let (line, hash) = seal(&record)?;
    let bytes = head.bytes + line.len() as u64;
    Ok((line, Head { count: seq, hash, bytes, ..head.clone() }))
}

/// Appends a line to a file of that length, or nothing.
fn append_line(file: &mut File, line: &[u8], length: u64) -> std::io::Result<()> {
    let (first, rest) = line.split_at(line.len() / 2);
    let written = file
        .write_all(first)
        .and_then(|()| failpoint::hit("audit", "torn"))
        .and_then(|()| file.write_all(rest));
    if written.is_err() && file.set_len(length).is_err() {
        // Half a line must not stay in front of the next one: who comes after this one cuts it off.
        return Err(std::io::Error::other("half a line of it was written, and could not be taken back"));
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
/// cut off. Returns the file that the next line goes to, which is the tenant's.
fn catch_up((tenant, folder): (&str, &Path), head: &mut Head) -> Result<File, AuditError> {
    // The file that the head names may be full by now, and others that came after it, too.
    while files::is_full(folder, head.first) {
        let path = files::full(folder, head.first);
        let file = regular::open(&path).map_err(StoreError::io("open", &path))?;
        if read_on(&path, &file, head)? != 0 {
            return Err(broken_after(&path, head, "it was cut off"));
        }
        (head.first, head.bytes) = (head.count + 1, 0);
    }
    let path = log_file(folder);
    // A file that holds a line is never made anew.
    let file = match files::open_current(folder, head.bytes == 0) {
        Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let place = format!("at its end: {} is not there", path.display());
            let first = head.first;
            return Err(AuditError::Missing { first, last: head.count, place });
        }
        opened => opened?,
    };
    match files::last_full(folder)? {
        // Nothing is in the one that grows: the one before it says whose they are.
        Some(first) if head.bytes == 0 => {
            let path = files::full(folder, first);
            let full = regular::open(&path).map_err(StoreError::io("open", &path))?;
            check_owner(tenant, &path, &full, first)?;
        }
        _ => check_owner(tenant, &path, &file, head.first)?,
    }
    if read_on(&path, &file, head)? != 0 {
        file.set_len(head.bytes).map_err(StoreError::io("cut", &path))?;
    }
    Ok(file)
}

/// Is a file the tenant's, as its first line says? A whole log that was put in another's place goes with its head.
fn check_owner(tenant: &str, path: &Path, file: &File, first: u64) -> Result<(), AuditError> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(file);
    reader
        .rewind()
        .and_then(|()| reader.read_until(b'\n', &mut line))
        .map_err(StoreError::io("read", path))?;
    match serde_json::from_slice::<Record>(&line) {
        Ok(record) if !record.is_of(tenant) => {
            Err(AuditError::Broken { path: path.to_path_buf(), line: 1, record: first, why: ANOTHERS })
        }
        // What is no line of a log at all follows from none, which `verify` says.
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests;
