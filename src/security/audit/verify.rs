//! Is the log what was written, from its first line to its head? The first line that is not is named, with its file.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, ErrorKind},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Serialize;

use super::{
    ANOTHERS, AuditError, Entry, Phase,
    files::{self, Part, Place},
    head::Head,
    head_of, lock,
    record::{nothing, unseal},
};
use crate::{infra::config::Roots, store::StoreError};

/// Remarks that are told one by one.
const REMARKS: usize = 10;

/// With what a tenant's log ends.
const END: &str = "tenant.destroy";

/// A log that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its lines.
    pub records: u64,
    /// The hash of the last one.
    pub hash: String,
    /// When the first one was written.
    pub first_at: Option<Timestamp>,
    /// Its tenant was destroyed, and nothing was begun after that.
    pub is_ended: bool,
    /// What is strange about it and breaks nothing: the first ten.
    pub remarks: Vec<Remark>,
    /// How many there are of them.
    pub remarked: usize,
    /// The hashes of those lines that were asked for.
    pub asked: BTreeMap<u64, String>,
}

/// Something strange that breaks no chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// The record.
    pub record: u64,
    /// What is strange.
    pub what: String,
}

fn is_ended_after(is_ended: bool, entry: &Entry) -> bool {
    match entry.phase {
        Phase::Done if entry.what == END => true,
        // Who came second with the same finds it gone.
        Phase::Intent if entry.what != END => false,
        _ => is_ended,
    }
}

/// Does a log say that its tenant was destroyed, and nothing begun after that? Whether it is to be believed, [`verify`] says.
///
/// # Errors
/// When the log cannot be read.
pub fn says_ended(folder: &Path) -> Result<bool, StoreError> {
    let (records, _) = files::records(folder, Place::default())?;
    Ok(records.iter().fold(false, |is_ended, record| is_ended_after(is_ended, &record.entry)))
}

/// Checks the whole chain against itself and the head.
///
/// # Errors
/// [`AuditError`] names the first line that is wrong, or the records that are missing.
pub fn verify(roots: &Roots, tenant: &str, folder: &Path) -> Result<Verified, AuditError> {
    verify_asking(roots, tenant, folder, &[])
}

/// The same; also gives the hashes of some records.
pub(super) fn verify_asking(
    roots: &Roots,
    tenant: &str,
    folder: &Path,
    asked: &[u64],
) -> Result<Verified, AuditError> {
    // The head is read while nobody writes it; lines that come later are as good as those of before.
    let (head, parts) = {
        let _lock = match lock(roots, tenant) {
            // Then nobody writes it.
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::ReadOnlyFilesystem => None,
            lock => Some(lock?),
        };
        (head_of(folder)?, files::parts(folder)?)
    };
    verify_parts(tenant, folder, asked, &head, parts)
}

/// The same for who holds the log's lock.
pub(super) fn verify_locked(tenant: &str, folder: &Path) -> Result<Verified, AuditError> {
    verify_parts(tenant, folder, &[], &head_of(folder)?, files::parts(folder)?)
}

fn verify_parts(
    tenant: &str,
    folder: &Path,
    asked: &[u64],
    head: &Head,
    parts: Vec<Part>,
) -> Result<Verified, AuditError> {
    let mut chain = Chain::new(tenant, head.count, asked);
    let mut before: Option<PathBuf> = None;
    for part in parts {
        chain.check_first(&part, before.as_deref(), folder)?;
        chain.go_through(&part)?;
        before = Some(part.path);
    }
    match &chain.at_head {
        None => {
            let place = format!("at its end: {} was cut or removed", files::current(folder).display());
            Err(AuditError::Missing { first: chain.verified.records + 1, last: head.count, place })
        }
        Some((path, line, hash)) if *hash != head.hash => Err(AuditError::Broken {
            path: path.clone(),
            line: *line,
            record: head.count,
            why: "it is not the line that audit.head names",
        }),
        Some(_) => Ok(chain.verified),
    }
}

/// A chain, as far as it was gone through.
struct Chain<'a> {
    /// Whose it is.
    tenant: &'a str,
    verified: Verified,
    last_at: Option<Timestamp>,
    /// The record that the head names.
    head: u64,
    /// Its file, line and hash.
    at_head: Option<(PathBuf, u64, String)>,
    asked: &'a [u64],
}

impl<'a> Chain<'a> {
    fn new(tenant: &'a str, head: u64, asked: &'a [u64]) -> Self {
        let (remarks, asked_for) = (Vec::new(), BTreeMap::new());
        let (hash, first_at, is_ended) = (nothing(), None, false);
        let verified =
            Verified { records: 0, hash, first_at, is_ended, remarks, remarked: 0, asked: asked_for };
        Self { tenant, verified, last_at: None, head, at_head: None, asked }
    }

    /// Does a file begin where the one before it ends?
    fn check_first(&self, part: &Part, before: Option<&Path>, folder: &Path) -> Result<(), AuditError> {
        let next = self.verified.records + 1;
        match part.first {
            Some(first) if first > next => {
                let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let gone = name(&files::full(folder, next));
                let place = match before {
                    Some(before) => format!(
                        "between {} and {}: the one was cut, or {gone} was removed",
                        name(before),
                        name(&part.path)
                    ),
                    None => format!("before {}: {gone} was removed", name(&part.path)),
                };
                Err(AuditError::Missing { first: next, last: first - 1, place })
            }
            Some(first) if first < next => Err(AuditError::Broken {
                path: part.path.clone(),
                line: 1,
                record: next,
                why: "it begins with a record that is in the file before",
            }),
            _ => Ok(()),
        }
    }

    fn go_through(&mut self, part: &Part) -> Result<(), AuditError> {
        let read = |source| StoreError::io("read", &part.path)(source);
        let mut reader = BufReader::with_capacity(1 << 16, part.open()?);
        let (mut bytes, mut line) = (Vec::new(), 0);
        while reader.read_until(b'\n', &mut bytes).map_err(read)? > 0 {
            line += 1;
            let number = self.verified.records + 1;
            let broken = |why| AuditError::Broken { path: part.path.clone(), line, record: number, why };
            let Some(whole) = bytes.strip_suffix(b"\n") else {
                // Half a line behind the head is what a killed writer left: the next one cuts it off.
                let is_left = part.grows() && self.at_head.is_some();
                return if is_left { Ok(()) } else { Err(broken("it was cut off")) };
            };
            let (record, hash) = unseal(whole, &self.verified.hash).map_err(broken)?;
            if record.seq != number {
                return Err(broken("its number is not the next one"));
            }
            if !record.is_of(self.tenant) {
                return Err(broken(ANOTHERS));
            }
            if let Some(before) = self.last_at.replace(record.at).filter(|before| *before > record.at) {
                let what = format!("the clock went back, from {before} to {}", record.at);
                self.remark(Remark { record: number, what });
            }
            self.verified.first_at.get_or_insert(record.at);
            if number == self.head {
                self.at_head = Some((part.path.clone(), line, hash.clone()));
            }
            if self.asked.contains(&number) {
                self.verified.asked.insert(number, hash.clone());
            }
            (self.verified.records, self.verified.hash) = (number, hash);
            self.verified.is_ended = is_ended_after(self.verified.is_ended, &record.entry);
            bytes.clear();
        }
        Ok(())
    }

    fn remark(&mut self, remark: Remark) {
        self.verified.remarked += 1;
        if self.verified.remarks.len() < REMARKS {
            self.verified.remarks.push(remark);
        }
    }
}
