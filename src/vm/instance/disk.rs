//! Disk files: sparse copies that share blocks where the file system can, and data disks.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use mvm_proto::disk::ext4_uuid;
use rustix::{
    fs::{copy_file_range, ioctl_ficlone},
    io::Errno,
};

use crate::{
    infra::{
        shell::{self, ShellError},
        sparse,
    },
    store::{self, StoreError},
};

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// `mke2fs` failed.
    #[error("cannot make a file system of {size_mib} MiB")]
    Format {
        /// The size.
        size_mib: u64,
        /// What it said.
        #[source]
        source: ShellError,
    },
    /// A disk can only grow.
    #[error("the data disk has {now_mib} MiB already: a disk can grow, not shrink")]
    Shrink {
        /// Its size.
        now_mib: u64,
    },
    /// There is no data disk.
    #[error("the instance has no data disk")]
    None,
    /// The data disk that was made with the instance is not there.
    #[error("the data disk {path} is gone: it was made with the instance, and an empty one does not replace it", path = path.display())]
    Lost {
        /// Where it was.
        path: PathBuf,
    },
}

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The blocks are shared: no data was copied.
    Reflink,
    /// The data was copied, holes stayed holes.
    Data,
}

/// Copies a file to a new one and syncs it: by reflink where the file system can, otherwise its data without its holes.
///
/// # Errors
/// A partial copy is removed.
pub fn copy(from: &Path, to: &Path) -> Result<Copied, StoreError> {
    let source = File::open(from).map_err(StoreError::io("open", from))?;
    let target = store::create_file(to)?;
    let copied = (|| {
        let how = match ioctl_ficlone(&target, &source) {
            Ok(()) => Copied::Reflink,
            Err(_) => {
                copy_data(&source, &target)?;
                Copied::Data
            }
        };
        target.sync_all().map(|()| how)
    })();
    copied.map_err(|error| {
        let _ = std::fs::remove_file(to);
        StoreError::io("copy to", to)(error)
    })
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    target.set_len(source.metadata()?.len())?;
    sparse::data(source)?.into_iter().try_for_each(|range| copy_range(source, target, range))
}

fn copy_range(source: &File, target: &File, range: Range<u64>) -> io::Result<()> {
    let Range { start: mut from, end } = range;
    while from < end {
        let (mut read, mut write) = (from, from);
        let want = usize::try_from(end - from).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut read), target, Some(&mut write), want) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => from += copied as u64,
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, mut from: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(buffer.len());
        source.read_exact_at(&mut buffer[..want], from)?;
        target.write_all_at(&buffer[..want], from)?;
        from += want as u64;
    }
    Ok(())
}

/// Makes a sparse ext4 file of this size. It is whole or not there: made beside its place, synced, renamed.
///
/// # Errors
/// When `mke2fs` fails or the disk is full; nothing is left behind.
pub fn make_data_disk(path: &Path, size_mib: u64) -> Result<(), DiskError> {
    let new = store::unfinished(path);
    let made = (|| {
        let file = store::create_file(&new)?;
        file.set_len(size_mib << 20).map_err(StoreError::io("size", &new))?;
        // Lazy initialisation leaves the inode tables to the guest's kernel, and the file sparse.
        // Of whole pages, or a small disk has blocks of 1 KiB, and a mount four times as much to read.
        let options = [
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
        ];
        let arguments = options.iter().map(AsRef::as_ref).chain([new.as_os_str()]);
        shell::run("mke2fs", arguments, b"", Duration::from_secs(120))
            .map_err(|source| DiskError::Format { size_mib, source })?;
        file.sync_all().map_err(StoreError::io("sync", &new))?;
        std::fs::rename(&new, path).map_err(StoreError::io("rename", &new))?;
        Ok(store::sync_folder(path.parent().unwrap_or(Path::new("/")))?)
    })();
    if made.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    made
}

/// The size of a data disk, in MiB.
///
/// # Errors
/// [`DiskError::None`] where there is none.
pub fn size_mib(path: &Path) -> Result<u64, DiskError> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(meta.len() >> 20),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DiskError::None),
        Err(source) => Err(StoreError::io("look at", path)(source).into()),
    }
}

/// What a guest can tell a disk by: the UUID of the ext4 on it, and its size in bytes.
///
/// # Errors
/// When it cannot be read, or holds no ext4.
pub fn ext4_identity(path: &Path) -> Result<(String, u64), StoreError> {
    let read = || -> io::Result<(String, u64)> {
        let file = File::open(path)?;
        let uuid = ext4_uuid(&file)?;
        let uuid = uuid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it holds no ext4"))?;
        Ok((uuid, file.metadata()?.len()))
    };
    read().map_err(StoreError::io("read", path))
}

/// Grows a data disk's file; the guest grows the file system on it when it likes. The same size again is well.
///
/// # Errors
/// [`DiskError::Shrink`] where the size is smaller than what there is.
pub fn grow(path: &Path, size_mib: u64) -> Result<(), DiskError> {
    let now_mib = self::size_mib(path)?;
    if size_mib < now_mib {
        return Err(DiskError::Shrink { now_mib });
    }
    let file = OpenOptions::new().write(true).open(path).map_err(StoreError::io("open", path))?;
    file.set_len(size_mib << 20).and_then(|()| file.sync_all()).map_err(StoreError::io("grow", path))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_stays_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        copy(&from, &to).unwrap();
        let copied = File::open(&to).unwrap();
        let mut bytes = [0; 6];
        copied.read_exact_at(&mut bytes, 32 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
        let meta = copied.metadata().unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    }

    #[test]
    fn a_data_disk_is_an_ext4_that_grows_and_does_not_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.ext4");
        make_data_disk(&path, 64).unwrap();
        let mut magic = [0; 2];
        File::open(&path).unwrap().read_exact_at(&mut magic, 1080).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
        grow(&path, 64).unwrap();
        grow(&path, 128).unwrap();
        assert!(matches!(grow(&path, 64), Err(DiskError::Shrink { now_mib: 128 })));
        assert!(matches!(grow(&dir.path().join("none"), 1), Err(DiskError::None)));
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 16 << 20);
    }
}
