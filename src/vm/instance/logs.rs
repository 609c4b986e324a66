//! What a guest and its VMM wrote: bounded in rate by the VMM itself, cut here when an instance starts.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustix::fs::FallocateFlags;

use super::{config, fc_config::files};
use crate::{
    infra::config::Roots,
    store::{self, StoreError},
    vm::naming::InstancePath,
    vmm::client::LOG,
};

/// How many consoles are kept besides the current one.
const KEPT: u32 = 3;

/// What is read of a log at one time, in bytes: more than a tenant's logs may take unless said.
const MOST: u64 = 64 << 20;

/// `instances/<i>/logs`.
pub fn folder(roots: &Roots, path: &InstancePath) -> PathBuf {
    config::folder(roots, path).join("logs")
}

/// The console of the current or last run.
pub fn console(roots: &Roots, path: &InstancePath) -> PathBuf {
    folder(roots, path).join(files::CONSOLE)
}

/// The VMM's own log of the current or last run.
pub fn vmm_log(roots: &Roots, path: &InstancePath) -> PathBuf {
    folder(roots, path).join(LOG)
}

/// Makes new, empty log files for a start; the old ones get numbers, the oldest go.
///
/// # Errors
/// When the files cannot be renamed or made.
pub fn rotate(roots: &Roots, path: &InstancePath, log_mib: u32) -> Result<(), StoreError> {
    let folder = folder(roots, path);
    store::make_folder(&folder)?;
    for name in [files::CONSOLE, LOG] {
        let numbered = |number: u32| folder.join(format!("{name}.{number}"));
        let current = folder.join(name);
        if fs::metadata(&current).is_ok_and(|meta| meta.len() > 0) {
            for number in (1..KEPT).rev() {
                rename_if_there(&numbered(number), &numbered(number + 1))?;
            }
            rename_if_there(&current, &numbered(1))?;
        }
        File::create(&current).map_err(StoreError::io("create", &current))?;
    }
    cut(roots, path, log_mib)
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), StoreError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(StoreError::io("rename", from)),
    }
}

/// Makes the log files that are missing: somebody may have removed them.
///
/// # Errors
/// When one cannot be made.
pub fn ensure(roots: &Roots, path: &InstancePath) -> Result<(), StoreError> {
    let folder = folder(roots, path);
    store::make_folder(&folder)?;
    for name in [files::CONSOLE, LOG] {
        let file = folder.join(name);
        File::options().append(true).create(true).open(&file).map_err(StoreError::io("create", &file))?;
    }
    Ok(())
}

/// Keeps an instance's logs within its tenant's `log_mib`: the oldest go, and what is left is cut off in front.
///
/// # Errors
/// When a file cannot be removed or cut.
pub fn cut(roots: &Roots, path: &InstancePath, log_mib: u32) -> Result<(), StoreError> {
    cut_in(&folder(roots, path), u64::from(log_mib.max(1)) << 20)
}

/// Removes numbered logs, oldest first, until all together are at most half of `limit`. The other half is the current
/// console's, but for a tenth that is the VMM's log: what is beyond is cut off in front.
fn cut_in(folder: &Path, limit: u64) -> Result<(), StoreError> {
    let mut old = Vec::new();
    for name in store::names(folder, |_| true)? {
        let Some(number) = name.rsplit_once('.').and_then(|(_, number)| number.parse::<u32>().ok()) else {
            continue;
        };
        let path = folder.join(name);
        let Ok(meta) = fs::metadata(&path) else { continue };
        old.push((std::cmp::Reverse(number), meta.blocks() * 512, path));
    }
    // The higher the number, the older.
    old.sort();
    let mut total: u64 = old.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in old {
        if total <= limit / 2 {
            break;
        }
        store::remove_file(&path)?;
        total -= size;
    }
    cut_front(&folder.join(files::CONSOLE), limit / 2)?;
    cut_front(&folder.join(LOG), limit / 10)
}

/// Gives back what a log takes beyond `limit`, and as much again, so that it is not cut all the time. The VMM writes on
/// where it was: what is cut off in front becomes a hole, which takes no space.
fn cut_front(log: &Path, limit: u64) -> Result<(), StoreError> {
    let meta = match fs::metadata(log) {
        Ok(meta) if meta.blocks() * 512 > limit => meta,
        _ => return Ok(()),
    };
    let file = File::options().write(true).open(log).map_err(StoreError::io("open", log))?;
    // Whole pages: a part of one would be filled with zeros, which a reader would see.
    let hole = meta.len().saturating_sub(limit / 2) & !0xfff;
    if hole == 0 {
        // It is short, and takes much: what lies behind its end goes.
        return file.set_len(meta.len()).map_err(StoreError::io("cut", log));
    }
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, hole)
        .map_err(|errno| StoreError::io("cut", log)(errno.into()))
}

/// Reads a log from byte `from` on, no more than 64 MiB of it at its end; also returns where the reading ended. Nothing where
/// there is no log. It is the VMM's file, and may be as long as it likes.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path, from: u64) -> Result<(Vec<u8>, u64), StoreError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), from)),
        Err(source) => return Err(StoreError::io("open", path)(source)),
    };
    let length = file.metadata().map_err(StoreError::io("look at", path))?.len();
    // A new run began: its log is read from the beginning.
    let from = if length < from { 0 } else { from };
    let from = from.max(length.saturating_sub(MOST));
    // What was cut off in front is a hole.
    let from = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(from)).unwrap_or(from);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.take(MOST).read_to_end(&mut bytes))
        .map_err(StoreError::io("read", path))?;
    let end = from + bytes.len() as u64;
    Ok((bytes, end))
}

/// The lines of a VMM's log from a time on. A line without a time belongs to the one before.
pub fn lines_since(bytes: &[u8], since: Option<Timestamp>) -> Vec<u8> {
    let Some(since) = since else { return bytes.to_vec() };
    let mut shown = false;
    let mut kept = Vec::new();
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        // VMMs run in UTC, and write no zone.
        let time = line.split(|&byte| byte == b' ').next().and_then(|time| str::from_utf8(time).ok());
        if let Some(at) = time.and_then(|time| format!("{time}Z").parse::<Timestamp>().ok()) {
            shown = at >= since;
        }
        if shown {
            kept.extend_from_slice(line);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_from_a_time_on() {
        let log = b"torn\n2026-01-02T03:04:05.1 [a] one\nmore\n2026-01-02T03:04:06 [a] two\n  of it\n";
        let since = |text: &str| {
            let kept = lines_since(log, Some(text.parse().unwrap()));
            String::from_utf8(kept).unwrap()
        };
        assert_eq!(since("2026-01-02T03:04:06Z"), "2026-01-02T03:04:06 [a] two\n  of it\n");
        assert!(since("2026-01-02T03:04:05Z").starts_with("2026-01-02T03:04:05.1"));
        assert_eq!(since("2026-01-03T00:00:00Z"), "");
        assert_eq!(lines_since(log, None), log);
    }

    #[test]
    fn old_logs_go_first_and_only_as_many_as_needed() {
        let dir = tempfile::tempdir().unwrap();
        for (number, size) in [(3, 600), (2, 300), (1, 200)] {
            fs::write(dir.path().join(format!("console.log.{number}")), vec![0; size << 10]).unwrap();
        }
        fs::write(dir.path().join("console.log"), vec![2; 5000 << 10]).unwrap();
        fs::write(dir.path().join(LOG), vec![1; 500 << 10]).unwrap();
        cut_in(dir.path(), 1000 << 10).unwrap();
        assert_eq!(
            store::names(dir.path(), |_| true).unwrap(),
            ["console.log", "console.log.1", "console.log.2", LOG]
        );
        let taken = |name: &str| fs::metadata(dir.path().join(name)).unwrap().blocks() * 512;
        assert!((200 << 10..=260 << 10).contains(&taken("console.log")), "{}", taken("console.log"));
        assert!((40 << 10..=60 << 10).contains(&taken(LOG)), "{}", taken(LOG));
        let (bytes, end) = read(&dir.path().join(LOG), 0).unwrap();
        assert!(
            bytes.iter().all(|&byte| byte == 1) && end == 500 << 10,
            "the newest is there, no hole is read"
        );
    }
}
