//! A tenant's audit log: JSON lines, each chained to the one before by hash; head and count are kept in a file apart.
//!
//! A line is appended and synced before the effect that it announces. The head follows once the line is on the disk, without a
//! sync of its own: it may lag behind the log, which the chain heals; a head that is *ahead* of the log means that lines were
//! cut off. Root can rewrite both files together: only a copy of the head elsewhere (`tenant audit --head`) shows that.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    infra::{
        config::{Actor, Roots},
        failpoint,
    },
    store::{self, Durability, Lock, Schema, Sharing, StoreError},
};

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is about to have effects.
    Intent,
    /// It is done.
    Done,
    /// It failed, and what it did was undone.
    Failed,
    /// It was cut off, and what it did was undone or finished by a later command.
    Recovered,
    /// It happened by itself.
    Observed,
}

/// What a record says: who did what to what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// `instance.start`, `tenant.create`, …
    pub what: String,
    /// The path of what it was done to.
    pub path: String,
    /// Where it stands.
    pub phase: Phase,
    /// The state before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The state after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The revision, where one is involved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Who it is on the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// A hash of everything that its VMM was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_hash: Option<String>,
    /// What else there is to say: the error, for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What an instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub mem_mib: u64,
    /// Its data disk, in MiB.
    pub data_disk_mib: u64,
}

/// Who an instance is on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its TAP.
    pub tap_dev: String,
    /// Its MAC.
    pub mac: String,
    /// Its address.
    pub guest_ip: Ipv4Addr,
}

impl Entry {
    /// An entry without states.
    pub fn new(what: impl Into<String>, path: impl ToString, phase: Phase) -> Self {
        let (what, path) = (what.into(), path.to_string());
        Self {
            what,
            path,
            phase,
            from: None,
            to: None,
            revision: None,
            limits: None,
            network: None,
            config_hash: None,
            detail: None,
        }
    }
}

/// A line of the log, without its own hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub who: Actor,
    /// What.
    #[serde(flatten)]
    pub entry: Entry,
    /// The hash of the line before; 64 zeros for the first.
    pub prev: String,
}

/// `audit.head`: the last line's number and hash, and where the log ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// How many lines the log has.
    pub count: u64,
    /// The hash of the last one.
    pub hash: String,
    /// The length of the log, in bytes.
    pub bytes: u64,
}

/// Why an audit log cannot be written or believed.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log is not what mvm wrote.
    #[error("the audit log {path} is broken at line {line}: {why}", path = path.display())]
    Broken {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        why: &'static str,
    },
}

fn head_at_start() -> Head {
    Head { schema_version: Schema, count: 0, hash: "0".repeat(64), bytes: 0 }
}

/// `audit.log` in a tenant's folder.
pub fn log_file(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

fn head_file(folder: &Path) -> PathBuf {
    folder.join("audit.head")
}

/// Appends a record to the log in a tenant's folder and syncs it. `tenant` names the lock.
///
/// # Errors
/// When the log cannot be written, or what is there is broken.
pub fn append(roots: &Roots, tenant: &str, folder: &Path, entry: Entry) -> Result<(), AuditError> {
    let path = log_file(folder);
    let lock = lock(roots, tenant)?;
    let mut head = head(folder)?;
    let io = |action| StoreError::io(action, &path);
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(io("open"))?;
    let length = file.metadata().map_err(io("look at"))?.len();
    if length != head.bytes {
        catch_up(&path, &file, length, &mut head)?;
    }
    let record = Record {
        seq: head.count + 1,
        at: roots.now(),
        who: roots.actor.clone(),
        entry,
        prev: head.hash.clone(),
    };
    let (line, hash) = seal(&record).map_err(|error| io("append to")(std::io::Error::other(error)))?;
    let (first, rest) = line.as_bytes().split_at(line.len() / 2);
    let append = |file: &mut File| {
        file.write_all(first)?;
        failpoint::hit("audit", "torn")?;
        file.write_all(rest)
    };
    if let Err(source) = append(&mut file) {
        // Half a line must not stay in front of the next one.
        let _ = file.set_len(head.bytes);
        return Err(io("append to")(source).into());
    }
    // Others may append meanwhile: the disk syncs the lines of several at once.
    drop(lock);
    file.sync_data().map_err(io("sync"))?;
    failpoint::hit("audit", "before-head").map_err(io("append to"))?;
    let bytes = head.bytes + line.len() as u64;
    Ok(advance_head(roots, tenant, folder, &Head { schema_version: Schema, count: record.seq, hash, bytes })?)
}

fn lock(roots: &Roots, tenant: &str) -> Result<Lock, StoreError> {
    let file = roots.lock_file(&format!("audit.{tenant}"));
    Lock::take(&file, "the audit log", Sharing::Exclusive, roots.lock_timeout)
}

/// Lets the head name a line that is synced, unless it names a later one already: it must never be ahead of what a power cut
/// leaves of the log.
fn advance_head(roots: &Roots, tenant: &str, folder: &Path, to: &Head) -> Result<(), StoreError> {
    // Without the lock it may be read while it is written.
    if head(folder).is_ok_and(|head| head.count >= to.count) {
        return Ok(());
    }
    let _lock = lock(roots, tenant)?;
    if head(folder)?.count >= to.count {
        return Ok(());
    }
    let path = head_file(folder);
    let text =
        serde_json::to_vec(to).map_err(std::io::Error::other).map_err(StoreError::io("write", &path))?;
    match to.count {
        // A power cut must not leave a log without any head: that is what a log looks like that somebody cut.
        1 => store::replace(&path, &text, Durability::Durable),
        _ => write_head(&path, &text),
    }
}

/// Writes the head in place: it is made new with every line, and never shorter than before, so that one call replaces it.
fn write_head(path: &Path, text: &[u8]) -> Result<(), StoreError> {
    use std::os::unix::fs::FileExt;
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.write_all_at(text, 0));
    written.map_err(StoreError::io("write", path))
}

/// A record as its line, and the line's hash.
fn seal(record: &Record) -> serde_json::Result<(String, String)> {
    let body = serde_json::to_string(record)?;
    let hash = hex(&Sha256::digest(body.as_bytes()));
    let open = body.strip_suffix('}').unwrap_or(&body);
    Ok((format!("{open},\"hash\":\"{hash}\"}}\n"), hash))
}

/// Checks one line against its own hash and the one before.
fn unseal(line: &str, prev: &str) -> Result<(Record, String), &'static str> {
    let (open, hash) = line.rsplit_once(",\"hash\":\"").ok_or("it has no hash")?;
    let hash = hash.strip_suffix("\"}").ok_or("it has no hash")?;
    let body = format!("{open}}}");
    if hex(&Sha256::digest(body.as_bytes())) != hash {
        return Err("its hash does not fit its content");
    }
    let record: Record = serde_json::from_str(&body).map_err(|_| "it is no record")?;
    if record.prev != prev {
        return Err("it does not follow from the line before");
    }
    Ok((record, hash.to_owned()))
}

/// Others have not come to write the head, or were killed before that: whole lines that continue the chain count, half a line is cut off.
fn catch_up(path: &Path, file: &File, length: u64, head: &mut Head) -> Result<(), AuditError> {
    let broken = |line, why| AuditError::Broken { path: path.to_path_buf(), line, why };
    if length < head.bytes {
        return Err(broken(head.count, "the log is shorter than its head says"));
    }
    let mut tail = String::new();
    let mut reader = BufReader::new(file);
    reader
        .seek(SeekFrom::Start(head.bytes))
        .and_then(|_| reader.read_to_string(&mut tail))
        .map_err(StoreError::io("read", path))?;
    for line in tail.split_inclusive('\n') {
        let Some(whole) = line.strip_suffix('\n') else {
            break;
        };
        let (record, hash) = unseal(whole, &head.hash).map_err(|why| broken(head.count + 1, why))?;
        head.count = record.seq;
        head.hash = hash;
        head.bytes += line.len() as u64;
    }
    if length > head.bytes {
        file.set_len(head.bytes).map_err(StoreError::io("cut", path))?;
    }
    Ok(())
}

/// Reads the log's records without checking them, from byte `from` on; also returns where it ended. A line that is no
/// record is left out: `verify` is for that.
///
/// # Errors
/// When the log cannot be read.
pub fn records(folder: &Path, from: u64) -> Result<(Vec<Record>, u64), StoreError> {
    let path = log_file(folder);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(source) => return Err(StoreError::io("open", &path)(source)),
    };
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.read_to_end(&mut text))
        .map_err(StoreError::io("read", &path))?;
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let records = text[..whole]
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    Ok((records, from + whole as u64))
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
    let mut open: Vec<Record> = Vec::new();
    for record in records(folder, 0)?.0 {
        let entry = &record.entry;
        open.retain(|one| (&one.entry.what, &one.entry.path) != (&entry.what, &entry.path));
        if entry.phase == Phase::Intent {
            open.push(record);
        }
    }
    let is_over = |record: &Record| !store::is_alive(record.who.pid);
    open.retain(|record| is_over(record) && !is_unsettled(&record.entry.path));
    for record in &open {
        let mut entry = Entry::new(&record.entry.what, &record.entry.path, Phase::Recovered);
        entry.detail = Some("it was cut off, and nothing of it is open any more".into());
        append(roots, tenant, folder, entry)?;
    }
    Ok(open.len())
}

/// Reads `audit.head`.
///
/// # Errors
/// When it cannot be read.
pub fn head(folder: &Path) -> Result<Head, StoreError> {
    let path = head_file(folder);
    match std::fs::metadata(&path) {
        // A power cut left nothing of it: the next writer goes through the log itself.
        Ok(meta) if meta.len() == 0 => Ok(head_at_start()),
        _ => Ok(store::read_if_there(&path)?.unwrap_or_else(head_at_start)),
    }
}

/// Checks the whole chain against itself and the head. Returns the number of lines.
///
/// # Errors
/// [`AuditError::Broken`] names the first line that is wrong.
pub fn verify(folder: &Path) -> Result<u64, AuditError> {
    let path = log_file(folder);
    let head = head(folder)?;
    let broken = |line, why| AuditError::Broken { path: path.clone(), line, why };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && head.count == 0 => return Ok(0),
        Err(source) => return Err(StoreError::io("open", &path)(source).into()),
    };
    let (mut count, mut last) = (0, head_at_start().hash);
    // Without a head nothing tells a whole log from one that was cut.
    if head.count == 0 && file.metadata().map_err(StoreError::io("look at", &path))?.len() > 0 {
        return Err(broken(1, "there is a log, and no head beside it"));
    }
    let mut head_seen = head.count == 0;
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).map_err(StoreError::io("read", &path))? > 0 {
        let number = count + 1;
        // Half a line behind the head is what a killed writer left: the next one cuts it off.
        let Some(line) = bytes.strip_suffix(b"\n") else {
            if head_seen {
                break;
            }
            return Err(broken(number, "it was cut off"));
        };
        let line = str::from_utf8(line).map_err(|_| broken(number, "it is not text"))?;
        let (record, hash) = unseal(line, &last).map_err(|why| broken(number, why))?;
        if record.seq != number {
            return Err(broken(number, "its number is not the next one"));
        }
        (count, last) = (number, hash);
        if count == head.count {
            head_seen = last == head.hash;
        }
        bytes.clear();
    }
    if !head_seen {
        return Err(broken(count, "it does not lead to the head in audit.head"));
    }
    Ok(count)
}

/// Bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::config::Environment;

    fn log(lines: u64) -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), &Environment::default()).unwrap();
        for number in 0..lines {
            append(&roots, "acme", dir.path(), Entry::new("test.do", number, Phase::Done)).unwrap();
        }
        (dir, roots)
    }

    #[test]
    fn a_chain_is_whole() {
        let (dir, _) = log(3);
        assert_eq!(verify(dir.path()).unwrap(), 3);
        let (records, _) = records(dir.path(), 0).unwrap();
        assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_changed_a_missing_and_a_cut_line_are_found() {
        let change = |edit: &dyn Fn(Vec<&str>) -> Vec<String>| {
            let (dir, _) = log(3);
            let text = std::fs::read_to_string(log_file(dir.path())).unwrap();
            let lines = edit(text.lines().collect());
            std::fs::write(log_file(dir.path()), lines.join("\n") + "\n").unwrap();
            verify(dir.path()).unwrap_err().to_string()
        };
        let own = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert!(
            change(&|lines| own(lines).iter().map(|l| l.replace("test.do", "test.xx")).collect())
                .contains("line 1")
        );
        assert!(change(&|lines| own(vec![lines[0], lines[2]])).contains("line 2"));
        assert!(change(&|lines| own(vec![lines[0], lines[1]])).contains("head"));
    }

    #[test]
    fn half_a_line_of_a_killed_writer_is_cut_off() {
        let (dir, roots) = log(2);
        let mut file = OpenOptions::new().append(true).open(log_file(dir.path())).unwrap();
        file.write_all(b"{\"seq\":3,").unwrap();
        assert_eq!(verify(dir.path()).unwrap(), 2);
        append(&roots, "acme", dir.path(), Entry::new("test.do", 3, Phase::Done)).unwrap();
        assert_eq!(verify(dir.path()).unwrap(), 3);
    }

    #[test]
    fn lines_of_several_writers_make_one_chain_and_the_last_one_is_its_head() {
        let (dir, roots) = log(1);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let (dir, roots) = (dir.path(), &roots);
                scope.spawn(move || {
                    for number in 0..5 {
                        let entry = Entry::new("test.do", format!("{writer}/{number}"), Phase::Done);
                        append(roots, "acme", dir, entry).unwrap();
                    }
                });
            }
        });
        assert_eq!(verify(dir.path()).unwrap(), 41);
        assert_eq!(head(dir.path()).unwrap().count, 41);
    }

    #[test]
    fn a_line_without_its_head_counts() {
        let (dir, roots) = log(1);
        let before = std::fs::read(head_file(dir.path())).unwrap();
        append(&roots, "acme", dir.path(), Entry::new("test.do", 2, Phase::Done)).unwrap();
        std::fs::write(head_file(dir.path()), before).unwrap();
        assert_eq!(verify(dir.path()).unwrap(), 2);
        append(&roots, "acme", dir.path(), Entry::new("test.do", 3, Phase::Done)).unwrap();
        assert_eq!(verify(dir.path()).unwrap(), 3);
    }
}
