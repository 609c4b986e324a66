//! The data disk: checked against what the host says, and mounted. Before that it is not held open, so that each clone of a
//! snapshot may have another one in its place.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use mvm_proto::{disk::ext4_uuid, message::DataDisk};
use rustix::{
    fs::{major, minor},
    mount::{MountFlags, mount},
};

use super::kernel;

/// The second disk.
const DEVICE: &str = "/dev/vdb";

/// Mounts it. Returns its UUID.
///
/// # Errors
/// Where it is another disk than the host says, or cannot be mounted.
pub fn attach(wanted: &DataDisk) -> io::Result<String> {
    let device = Path::new(DEVICE);
    let disk = File::open(device).map_err(|error| io::Error::other(format!("{DEVICE}: {error}")))?;
    let place = PathBuf::from(&wanted.mount);
    if !place.is_absolute() {
        return Err(io::Error::other(format!("{:?} is no place for it", wanted.mount)));
    }
    // One that is mounted has been checked, and its superblock is in use.
    let mounted = is_mounted(fs::metadata(device)?.rdev(), &place)?;
    if !mounted {
        kernel::forget_buffers(&disk)?;
    }
    let size = kernel::disk_size(&disk)?;
    if size != wanted.size_bytes {
        return Err(io::Error::other(format!("it has {size} bytes in place of {}", wanted.size_bytes)));
    }
    let uuid = ext4_uuid(&disk)?.ok_or_else(|| io::Error::other("there is no ext4 on it"))?;
    if !uuid.eq_ignore_ascii_case(&wanted.uuid) {
        return Err(io::Error::other(format!("it is {uuid} in place of {}", wanted.uuid)));
    }
    drop(disk);
    if !mounted {
        fs::create_dir_all(&place)?;
        let flags = MountFlags::NOATIME | MountFlags::NOSUID | MountFlags::NODEV;
        // A fresh disk's inode tables are written when they are needed, and not by a thread in the background of every start.
        mount(device, &place, "ext4", flags, Some(c"noinit_itable")).map_err(|errno| {
            io::Error::other(format!("it cannot be mounted at {}: {errno}", place.display()))
        })?;
    }
    Ok(uuid)
}

fn is_mounted(device: u64, place: &Path) -> io::Result<bool> {
    let number = format!("{}:{}", major(device), minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| {
        let fields: Vec<&str> = line.split(' ').take(5).collect();
        fields.get(2) == Some(&number.as_str()) && fields.get(4).map(Path::new) == Some(place)
    }))
}
