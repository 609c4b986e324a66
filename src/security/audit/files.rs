//! The files of a log: `audit.log`, which grows, and before it those that are full, `audit.<number of its first line>.log`.
//!
//! ```text
//! audit.000000000001.log  audit.000000010342.log  audit.log        one chain, oldest first
//! ```
//! Readers take no lock: a file that is renamed while they look is seen under one of its names.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{head::Head, record::Record};
use crate::{
    infra::{failpoint, regular, relief},
    store::{self, StoreError},
};

/// A file that is as long, in bytes, gets no further line.
pub const FULL: u64 = 4 << 20;

/// `audit.log` in a tenant's folder.
pub fn current(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

/// A file that is full, by the number of its first line.
pub(super) fn full(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("audit.{first:012}.log"))
}

/// Those that are full: the numbers of their first lines, ascending.
fn all_full(folder: &Path) -> Result<Vec<u64>, StoreError> {
    let first = |name: &str| name.strip_prefix("audit.")?.strip_suffix(".log")?.parse::<u64>().ok();
    let names = store::names(folder, |name| first(name).is_some())?;
    let mut all: Vec<u64> = names.iter().filter_map(|name| first(name)).collect();
    all.sort_unstable();
    Ok(all)
}

/// The number of the first line of the last file that is full.
pub(super) fn last_full(folder: &Path) -> Result<Option<u64>, StoreError> {
    Ok(all_full(folder)?.pop())
}

/// The names in a tenant's folder that belong to its log, also to one that was given up.
///
/// # Errors
/// When the folder cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    store::names(folder, |name| name.starts_with("audit.") || name.starts_with("audit-"))
}

/// One file of a log, as it is found.
pub(super) struct Part {
    pub path: PathBuf,
    /// The number of its first line, as its name says; of `audit.log`, as that line says, where it has one.
    pub first: Option<u64>,
    /// `audit.log`, which may have another name by now.
    open: Option<File>,
}

impl Part {
    /// Is it the one that lines are appended to?
    pub fn grows(&self) -> bool {
        self.open.is_some()
    }

    pub fn open(&self) -> Result<File, StoreError> {
        let opened = match &self.open {
            Some(file) => file.try_clone(),
            None => regular::open(&self.path),
        };
        opened.map_err(StoreError::io("open", &self.path))
    }
}

/// The files of a log, oldest first.
pub(super) fn parts(folder: &Path) -> Result<Vec<Part>, StoreError> {
    let path = current(folder);
    let last = match regular::open(&path) {
        Ok(file) => Some(Part { first: first_of(&file), path, open: Some(file) }),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(source) => return Err(StoreError::io("open", &path)(source)),
    };
    // Listed after that: what was renamed since then is among them, once more.
    let began = last.as_ref().and_then(|last| last.first);
    let before = all_full(folder)?.into_iter().filter(|first| began.is_none_or(|began| *first < began));
    let part = |first| Part { path: full(folder, first), first: Some(first), open: None };
    Ok(before.map(part).chain(last).collect())
}

/// The number of a file's first line: the first thing in it.
fn first_of(file: &File) -> Option<u64> {
    let mut bytes = [0; 32];
    let length = file.read_at(&mut bytes, 0).ok()?;
    let text = str::from_utf8(&bytes[..length]).ok()?.strip_prefix("{\"seq\":")?;
    text.split_once(',')?.0.parse().ok()
}

/// How far a log was read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of the first line of the file.
    first: u64,
    /// The length of what was read of it, in bytes.
    bytes: u64,
}

/// Reads the log's records without checking them, from a place on; also returns where it ended. A line that is no
/// record is left out: `verify` is for that.
///
/// # Errors
/// When the log cannot be read.
pub fn records(folder: &Path, from: Place) -> Result<(Vec<Record>, Place), StoreError> {
    let (mut records, mut place) = (Vec::new(), from);
    let parts = parts(folder)?;
    let last = parts.iter().filter_map(|part| part.first).max();
    if last.is_some_and(|last| last < place.first) {
        // It is another log by now.
        place = Place::default();
    }
    for part in parts {
        let first = part.first.unwrap_or(place.first);
        if first < place.first {
            continue;
        }
        if first > place.first {
            place = Place { first, bytes: 0 };
        }
        let mut text = Vec::new();
        let mut file = part.open()?;
        file.seek(SeekFrom::Start(place.bytes))
            .and_then(|_| file.read_to_end(&mut text))
            .map_err(StoreError::io("read", &part.path))?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines = text[..whole].split(|&byte| byte == b'\n');
        records.extend(lines.filter_map(|line| serde_json::from_slice::<Record>(line).ok()));
        place.bytes += whole as u64;
    }
    Ok((records, place))
}

/// Opens `audit.log` for the next line; made where it may be.
pub(super) fn open_current(folder: &Path, may_make: bool) -> Result<File, StoreError> {
    let path = current(folder);
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(may_make).mode(0o600).custom_flags(regular::NO_WAIT);
    let open = || options.open(&path).and_then(regular::check);
    relief::retry(open).map_err(StoreError::io("open", &path))
}

/// Puts a full file aside and begins the next one. The log is locked, and `head` is where it ends. Killed at any point, the next
/// writer finds the file under one of its names.
pub(super) fn rotate(folder: &Path, file: &File, head: &mut Head) -> Result<File, StoreError> {
    let path = current(folder);
    let io = |action| StoreError::io(action, &path);
    // A power cut must not take lines of this one and leave lines of the next.
    file.sync_data().map_err(io("sync"))?;
    failpoint::hit("audit", "synced").map_err(io("rename"))?;
    store::rename(&path, &full(folder, head.first))?;
    failpoint::hit("audit", "renamed").map_err(io("rename"))?;
    let next = open_current(folder, true)?;
    failpoint::hit("audit", "begun").map_err(io("create"))?;
    store::sync_folder(folder)?;
    (head.first, head.bytes) = (head.count + 1, 0);
    Ok(next)
}

/// Is there a file of that name that is full?
pub(super) fn is_full(folder: &Path, first: u64) -> bool {
    fs::symlink_metadata(full(folder, first)).is_ok()
}
