//! What a snapshot consists of, whoever's it is: the VMM's state, the guest's memory, and what proves that both are what
//! was written.
//!
//! ```text
//! vmstate.<n>   devices and vCPUs: small, with a sum that is always checked
//! mem.<n>       the guest's memory, complete; holes are pages of zeros
//! sums.<n>      a sum for each page of it, written as the pages are
//! meta.json     names them and says where they come from; without it there is no snapshot
//! ```
//! Memory is not read to be trusted: a file whose inode, size and mtime are those that were recorded when its sums were
//! made is taken as it is, any other one is compared page by page first.

mod dirty;
mod origin;
mod sums;

use std::{
    fs::{self, File},
    hash::Hasher,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize};
use twox_hash::XxHash3_64;

pub use self::{
    dirty::written_pages,
    origin::{Origin, cpu_model},
    sums::{PAGE, Sums, data_pages, is_zeros},
};
use crate::store::StoreError;

/// Why a snapshot is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is not what was written.
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It belongs to somebody else.
    #[error("{path} is a snapshot of {of}", path = path.display())]
    Foreign {
        /// The file that says so.
        path: PathBuf,
        /// Whose it is.
        of: String,
    },
    /// It was made on another CPU.
    #[error("it was made on the CPU {then:?}, and this is {now:?}")]
    OtherCpu {
        /// That of the snapshot.
        then: String,
        /// This one.
        now: String,
    },
    /// A disk is not as the guest left it.
    #[error("{path} {why}: the guest would write what it remembers over it", path = path.display())]
    DiskChanged {
        /// The disk.
        path: PathBuf,
        /// What changed.
        why: String,
        /// Its size is as it was: the content may be the same.
        may_be_forced: bool,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// When a file was last written to, in ns since 1970.
pub fn mtime_ns(meta: &fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// A file, as it was when it was last looked at in whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Its name in its folder: no path, since what it names is written, removed and given to VMMs.
    #[serde(deserialize_with = "plain_name")]
    pub file: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its inode: another file of the same name has another one.
    pub inode: u64,
    /// When it was last written to, in ns since 1970. Not ctime: links and owners change that.
    pub mtime_ns: i128,
}

impl Stamp {
    /// A file as it is now.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn of(folder: &Path, name: &str) -> Result<Self, StoreError> {
        let path = folder.join(name);
        let meta = fs::metadata(&path).map_err(StoreError::io("look at", &path))?;
        Ok(Self {
            file: name.to_owned(),
            size_bytes: meta.len(),
            inode: meta.ino(),
            mtime_ns: mtime_ns(&meta),
        })
    }

    /// Has the file the length that it had? Returns what else of it has changed.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] where it has not, or is gone.
    pub fn check_length(&self, folder: &Path) -> Result<Option<Change>, SnapshotError> {
        match self.change(folder)? {
            Some(change @ (Change::Gone | Change::Size { .. })) => {
                Err(SnapshotError::Damaged { path: folder.join(&self.file), why: format!("it {change}") })
            }
            change => Ok(change),
        }
    }

    /// What of the file is not as it was; `None` where all is.
    ///
    /// # Errors
    /// When it cannot be looked at, unless it is not there: that is a change.
    pub fn change(&self, folder: &Path) -> Result<Option<Change>, StoreError> {
        let path = folder.join(&self.file);
        if !path.exists() {
            return Ok(Some(Change::Gone));
        }
        let now = Self::of(folder, &self.file)?;
        Ok(if now.size_bytes != self.size_bytes {
            Some(Change::Size { then: self.size_bytes, now: now.size_bytes })
        } else if now.inode != self.inode {
            Some(Change::Replaced)
        } else {
            (now.mtime_ns != self.mtime_ns).then_some(Change::Time)
        })
    }
}

fn plain_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let mut parts = Path::new(&name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(one)), None) if one.as_encoded_bytes() == name.as_bytes() => Ok(name),
        _ => Err(serde::de::Error::custom(format!("{name:?} is not the name of a file"))),
    }
}

/// How a file differs from its stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// There is none.
    Gone,
    /// It is longer or shorter.
    Size {
        /// What it was, in bytes.
        then: u64,
        /// What it is, in bytes.
        now: u64,
    },
    /// It is another file of the same name.
    Replaced,
    /// It was written to, or touched.
    Time,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Change::Gone => f.write_str("is gone"),
            Change::Size { then, now } => write!(f, "has {now} bytes in place of {then}"),
            Change::Replaced => f.write_str("was replaced by another file"),
            Change::Time => f.write_str("was written to"),
        }
    }
}

/// The files of a snapshot, in one folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The VMM's state.
    pub vmstate: Stamp,
    /// Its sum.
    pub vmstate_sum: String,
    /// The guest's memory.
    pub mem: Stamp,
    /// The sums of the memory's pages.
    pub sums: Stamp,
    /// Their sum: other sums would prove other memory.
    pub sums_sum: String,
}

impl Image {
    /// The image that these files are, once they are written and the memory's sums are made.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of(folder: &Path, vmstate: &str, mem: &str, sums: &str) -> Result<Self, StoreError> {
        Ok(Self {
            vmstate: Stamp::of(folder, vmstate)?,
            vmstate_sum: sum_of(&folder.join(vmstate), MAX_VMSTATE)?,
            mem: Stamp::of(folder, mem)?,
            sums: Stamp::of(folder, sums)?,
            sums_sum: sum_of(&folder.join(sums), u64::MAX)?,
        })
    }

    /// Is it what was written? Reads the VMM's state, and of the memory and its sums only what cannot be trusted.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] says what is not.
    pub fn check(&self, folder: &Path) -> Result<(), SnapshotError> {
        self.check_vmstate(folder)?;
        // The next sleep goes on with them.
        if self.sums.change(folder)?.is_some() {
            self.check_sums(folder)?;
        }
        match self.mem.check_length(folder)? {
            None => Ok(()),
            Some(_) => self.scrub(folder),
        }
    }

    /// Is every byte of it what was written?
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] says what is not.
    pub fn scrub(&self, folder: &Path) -> Result<(), SnapshotError> {
        self.check_vmstate(folder)?;
        self.check_sums(folder)?;
        self.mem.check_length(folder)?;
        let path = folder.join(&self.mem.file);
        let wrong = Sums::in_file(&folder.join(&self.sums.file)).compare(&path)?;
        match wrong.first() {
            None => Ok(()),
            Some(first) => {
                let why = match wrong.len() {
                    1 => format!("page {first} is not what was written"),
                    count => format!("{count} pages are not what was written, the first is page {first}"),
                };
                Err(SnapshotError::Damaged { path, why })
            }
        }
    }

    fn check_vmstate(&self, folder: &Path) -> Result<(), SnapshotError> {
        check_content(folder, &self.vmstate, &self.vmstate_sum, MAX_VMSTATE)
    }

    fn check_sums(&self, folder: &Path) -> Result<(), SnapshotError> {
        check_content(folder, &self.sums, &self.sums_sum, u64::MAX)
    }

    /// The names of its files.
    pub fn files(&self) -> [&str; 3] {
        [&self.vmstate.file, &self.mem.file, &self.sums.file]
    }
}

/// Is a file, read in whole, what was written?
fn check_content(folder: &Path, stamp: &Stamp, sum: &str, limit: u64) -> Result<(), SnapshotError> {
    stamp.check_length(folder)?;
    let path = folder.join(&stamp.file);
    if sum_of(&path, limit)? != sum {
        return Err(SnapshotError::Damaged { path, why: "its content is not what was written".into() });
    }
    Ok(())
}

/// The sum of a file's first so many bytes.
fn sum_of(path: &Path, limit: u64) -> Result<String, StoreError> {
    let mut hasher = XxHash3_64::new();
    let mut buffer = vec![0; 128 << 10];
    let hashed = File::open(path).and_then(|file| {
        let mut file = file.take(limit);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher.finish()),
                count => hasher.write(&buffer[..count]),
            }
        }
    });
    Ok(format!("xxh3:{:016x}", hashed.map_err(StoreError::io("read", path))?))
}

/// The longest state that Firecracker itself would read.
const MAX_VMSTATE: u64 = 16 << 20;

/// The bytes that a file takes on its file system; 0 where there is none.
pub fn taken_bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

/// What `error` says, where a file was shorter than what was to be read of it.
fn ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_names_a_file_in_its_folder_and_nothing_else() {
        let read = |name: &str| {
            let value = serde_json::json!({ "file": name, "size_bytes": 1, "inode": 1, "mtime_ns": 1 });
            serde_json::from_value::<Stamp>(value)
        };
        assert_eq!(read("mem.7").unwrap().file, "mem.7");
        for name in ["", ".", "..", "/etc/passwd", "../mem.7", "a/b", "mem.7/", "./mem.7"] {
            assert!(read(name).is_err(), "{name:?}");
        }
    }
}
