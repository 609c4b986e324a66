//! The data disk: checked against what the host says, and mounted. Before that it is not held open, so that each clone of a
//! snapshot may have another one in its place.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use mvm_proto::{disk::ext4_uuid, message::DataDisk};
use rustix::mount::{MountFlags, mount};

use super::kernel;

/// Where hosts want it mounted.
pub const USUAL: &str = "/data";
/// The second disk.
const DEVICE: &str = "/dev/vdb";

/// Mounts it. Returns its UUID.
///
/// # Errors
/// Where it is another disk than the host says, or cannot be mounted.
pub fn attach(wanted: &DataDisk) -> io::Result<String> {
    attach_from(Path::new(DEVICE), wanted)
}

fn attach_from(device: &Path, wanted: &DataDisk) -> io::Result<String> {
    let named = |error: io::Error| io::Error::other(format!("{}: {error}", device.display()));
    let disk = File::open(device).map_err(named)?;
    let place = PathBuf::from(&wanted.mount);
    if !place.is_absolute() {
        return Err(io::Error::other(format!("{:?} is no place for it", wanted.mount)));
    }
    // One that is mounted has been checked, and its superblock is in use.
    let number = fs::metadata(device)?.rdev();
    let mounted = fs::metadata(&place).is_ok_and(|place| place.dev() == number);
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

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt, process::Command};

    use super::*;

    /// A loop device, detached when this is dropped.
    struct Loop(PathBuf);

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
        }
    }

    /// One with an ext4 of this UUID on it; none, said visibly, where this machine has none.
    fn disk(folder: &Path, uuid: &str, size: u64) -> Option<Loop> {
        let file = folder.join("disk");
        File::create(&file).unwrap().set_len(size).unwrap();
        let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-U", uuid]).arg(&file).status();
        assert!(made.unwrap().success());
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Loop(String::from_utf8(output.stdout).unwrap().trim_end().into()))
            }
            other => {
                super::super::skip(&format!("no loop device here: {other:?}"));
                None
            }
        }
    }

    /// Another disk than the host says is not mounted, and the right one is.
    #[test]
    fn only_the_disk_that_the_host_means_is_mounted() {
        const UUID: &str = "6c1e9b0e-7c0a-4b7e-9a52-0d7d0c5b6f11";
        const SIZE: u64 = 4 << 20;
        use rustix::thread::{UnshareFlags, unshare_unsafe};
        // SAFETY: the thread belongs to this test alone, and no other one of it shares its file system.
        if let Err(error) = unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) } {
            return super::super::skip(&format!("no mount namespace here: {error}"));
        }
        assert!(Command::new("mount").args(["--make-rprivate", "/"]).status().unwrap().success());
        let dir = tempfile::tempdir().unwrap();
        let Some(device) = disk(dir.path(), UUID, SIZE) else { return };
        let place = dir.path().join("data");
        let attach = |uuid: &str, size_bytes: u64, mount: &Path| {
            let mount = mount.to_str().unwrap().to_owned();
            attach_from(&device.0, &DataDisk { uuid: uuid.to_owned(), size_bytes, mount })
                .map_err(|error| error.to_string())
        };
        let other = UUID.replace("6c", "6d");
        for (uuid, size, mount, why) in [
            (other.as_str(), SIZE, place.as_path(), format!("it is {UUID} in place of {other}")),
            ("", SIZE, &place, format!("it is {UUID} in place of ")),
            (UUID, SIZE * 2, &place, format!("it has {SIZE} bytes in place of {}", SIZE * 2)),
            (UUID, SIZE - 512, &place, format!("it has {SIZE} bytes in place of {}", SIZE - 512)),
            (UUID, SIZE, Path::new("data"), "\"data\" is no place for it".to_owned()),
        ] {
            assert_eq!(attach(uuid, size, mount), Err(why));
            assert!(!place.exists(), "it was refused, and its place made");
        }
        for _ in 0..2 {
            assert_eq!(attach(&UUID.to_uppercase(), SIZE, &place), Ok(UUID.to_owned()));
            assert!(place.join("lost+found").is_dir());
        }
        // It is checked also where it is mounted already.
        assert!(attach(&other, SIZE, &place).unwrap_err().contains("in place of"));
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::empty()).unwrap();
        File::options().write(true).open(&device.0).unwrap().write_all_at(&[0; 4096], 0).unwrap();
        assert_eq!(attach(UUID, SIZE, &place), Err("there is no ext4 on it".to_owned()));
        // What is no disk is none.
        assert!(
            attach_from(dir.path(), &DataDisk { uuid: UUID.into(), size_bytes: SIZE, mount: "/x".into() })
                .is_err()
        );
        assert!(
            attach_from(
                &dir.path().join("disk"),
                &DataDisk { uuid: UUID.into(), size_bytes: SIZE, mount: "/x".into() }
            )
            .is_err()
        );
    }
}
