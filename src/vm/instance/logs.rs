//! What a guest and its VMM wrote: bounded in rate by the VMM itself, cut here when an instance starts.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{config, fc_config::files};
use crate::{
    infra::config::Roots,
    store::{self, StoreError},
    vm::naming::InstancePath,
    vmm::client::LOG,
};

/// How many consoles are kept besides the current one.
const KEPT: u32 = 3;

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
    cut(&folder, u64::from(log_mib.max(1)) << 20)
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), StoreError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(StoreError::io("rename", from)),
    }
}

/// Removes numbered logs, oldest first, until all together are at most half of `limit`: the other half is the current
/// console's. Then cuts a VMM's log that has grown beyond a tenth.
///
/// # Errors
/// When a file cannot be removed.
pub fn cut(folder: &Path, limit: u64) -> Result<(), StoreError> {
    let mut old = Vec::new();
    for name in store::names(folder, |_| true)? {
        let Some(number) = name.rsplit_once('.').and_then(|(_, number)| number.parse::<u32>().ok()) else {
            continue;
        };
        let path = folder.join(name);
        let Ok(meta) = fs::metadata(&path) else { continue };
        old.push((std::cmp::Reverse(number), meta.len(), path));
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
    let log = folder.join(LOG);
    if fs::metadata(&log).is_ok_and(|meta| meta.blocks() * 512 > limit / 10) {
        // The VMM writes on where it was: what is cut off in front becomes a hole, which takes no space.
        File::options()
            .write(true)
            .open(&log)
            .and_then(|file| file.set_len(0))
            .map_err(StoreError::io("cut", &log))?;
    }
    Ok(())
}

/// Reads a log from byte `from` on; also returns where the reading ended. Nothing where there is no log.
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
    // What was cut off in front is a hole.
    let from = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(from)).unwrap_or(from);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.read_to_end(&mut bytes))
        .map_err(StoreError::io("read", path))?;
    let end = from + bytes.len() as u64;
    Ok((bytes, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_go_first_and_only_as_many_as_needed() {
        let dir = tempfile::tempdir().unwrap();
        for (number, size) in [(3, 600), (2, 300), (1, 200)] {
            fs::write(dir.path().join(format!("console.log.{number}")), vec![0; size]).unwrap();
        }
        fs::write(dir.path().join("console.log"), vec![0; 5000]).unwrap();
        fs::write(dir.path().join(LOG), vec![1; 500]).unwrap();
        cut(dir.path(), 1000).unwrap();
        assert_eq!(
            store::names(dir.path(), |_| true).unwrap(),
            ["console.log", "console.log.1", "console.log.2", LOG]
        );
        assert_eq!(fs::metadata(dir.path().join(LOG)).unwrap().len(), 0);
    }
}
