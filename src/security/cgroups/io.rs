//! How fast a VMM may read and write the disk on which its files lie: `io.max`. Its own rate limiters do the same for its guest;
//! this binds a VMM that was taken over, too.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};
use serde::{Deserialize, Serialize};

use super::write;
use crate::store::StoreError;

/// The controller.
pub(super) const CONTROLLER: &str = "io";

/// Its file of rates.
const FILE: &str = "io.max";

/// Rates of reads, and of writes; 0: not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoRates {
    /// Bytes per second.
    pub bytes_per_s: u64,
    /// Operations per second.
    pub ops_per_s: u64,
}

impl IoRates {
    /// Is nothing limited?
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    fn line(self, device: &str) -> String {
        let word = |rate: u64| if rate == 0 { "max".to_owned() } else { rate.to_string() };
        let (bytes, ops) = (word(self.bytes_per_s), word(self.ops_per_s));
        format!("{device} rbps={bytes} wbps={bytes} riops={ops} wiops={ops}")
    }
}

/// The disk that a file system is on, as `io.max` names it. None where there is no single one: btrfs, overlay, tmpfs.
pub fn device_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let number = fs::metadata(path).ok()?.dev();
    let place = PathBuf::from(format!("/sys/dev/block/{}:{}", major(number), minor(number)));
    // The kernel limits whole disks.
    let place = fs::canonicalize(place).ok()?;
    let whole = if place.join("partition").exists() { place.parent()? } else { &place };
    Some(fs::read_to_string(whole.join("dev")).ok()?.trim().to_owned())
}

/// Can rates be set there?
pub(super) fn is_there(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// Sets the rates of a cgroup on a disk; where nothing is limited, what was goes. Reads them back.
pub(super) fn limit(folder: &Path, device: &str, rates: IoRates) -> Result<(), StoreError> {
    write(folder, FILE, &rates.line(device))?;
    let there = read(folder, device).unwrap_or_default();
    if there != rates {
        let why = std::io::Error::other(format!("it says {there:?} after {rates:?} was written"));
        return Err(StoreError::io("limit", &folder.join(FILE))(why));
    }
    Ok(())
}

/// The rates of a cgroup on a disk, as the kernel says them.
pub(super) fn read(folder: &Path, device: &str) -> Option<IoRates> {
    parse(&fs::read_to_string(folder.join(FILE)).ok()?, device)
}

fn parse(text: &str, device: &str) -> Option<IoRates> {
    let line = text.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '))?;
    let rate = |name: &str| {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    Some(IoRates { bytes_per_s: rate("wbps"), ops_per_s: rate("wiops") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_the_kernel_says() {
        let rates = IoRates { bytes_per_s: 20_000_000, ops_per_s: 0 };
        assert_eq!(rates.line("254:0"), "254:0 rbps=20000000 wbps=20000000 riops=max wiops=max");
        let said = format!("8:16 rbps=1 wbps=1 riops=1 wiops=1\n{}\n", rates.line("254:0"));
        assert_eq!(parse(&said, "254:0"), Some(rates));
        assert_eq!((parse(&said, "254:1"), parse("", "254:0")), (None, None));
    }

    #[test]
    fn a_limit_that_is_not_taken_is_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let rates = IoRates { bytes_per_s: 20_000_000, ops_per_s: 0 };
        fs::write(dir.path().join(FILE), "").unwrap();
        limit(dir.path(), "254:0", rates).unwrap();
        assert_eq!(read(dir.path(), "254:0"), Some(rates));
        // What takes all that is written, and keeps none of it.
        fs::remove_file(dir.path().join(FILE)).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join(FILE)).unwrap();
        limit(dir.path(), "254:0", IoRates::default()).unwrap();
        let refused = limit(dir.path(), "254:0", rates).unwrap_err();
        assert!(refused.to_string().starts_with("cannot limit "), "{refused}");
    }

    #[test]
    fn a_file_system_without_a_disk_has_no_device() {
        assert_eq!(device_of(Path::new("/proc")), None);
    }
}
