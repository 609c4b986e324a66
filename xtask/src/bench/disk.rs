//! Fresh file systems on loop devices, on which what sleeps is kept.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use super::run_quietly;

/// The file system on which the files lie: a fresh one on a loop device, as it comes, with its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    Ext4,
    Btrfs,
}

impl Disk {
    pub fn name(self) -> &'static str {
        match self {
            Disk::Ext4 => "ext4",
            Disk::Btrfs => "btrfs",
        }
    }
}

/// A folder on a file system of its own.
pub struct Folder {
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Folder {
    pub fn new(disk: Disk) -> Result<Self> {
        // Not in /tmp, which may be memory: what is measured is a disk's fsync.
        let dir = tempfile::tempdir_in("target")?;
        let (image, path) = (dir.path().join("image"), std::path::absolute(dir.path().join("mount"))?);
        std::fs::File::create(&image)?.set_len(16 << 30)?;
        std::fs::create_dir(&path)?;
        run_quietly(Command::new(format!("mkfs.{}", disk.name())).arg("-q").arg(&image))?;
        // The mount namespace is this process's own.
        run_quietly(Command::new("mount").args(["--make-rprivate", "/"]))?;
        run_quietly(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path))?;
        Ok(Self { path, _dir: dir })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = run_quietly(Command::new("umount").arg(&self.path));
    }
}
