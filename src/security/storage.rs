//! Is what lies in a folder encrypted by the kernel before it is on a disk? Looks at block devices, and changes nothing.
//!
//! ```text
//! folder ── file system ── device ──┬─ dm-crypt                          encrypted
//!                                   ├─ a part of it, or made of others   as these are, if all of them are
//!                                   └─ any other                         not known to be
//! ```

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{major, minor};

use crate::infra::mounts::{self, Mount};

/// How deep devices are made of devices.
const DEPTH: u32 = 16;

/// How a folder's content is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// By dm-crypt: the device.
    Encrypted(String),
    /// Not known to be encrypted: what it is on.
    Plain(String),
}

impl Storage {
    /// Is it?
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }
}

/// How the content of this folder is stored, also of what is mounted in it; of one that is not there yet, how that of the one
/// above it is.
pub fn look(folder: &Path) -> Storage {
    look_in(folder, Path::new("/sys"), &mounts::all())
}

fn look_in(folder: &Path, sys: &Path, mounts: &[Mount]) -> Storage {
    let there = folder.ancestors().find_map(|path| fs::canonicalize(path).ok());
    let Some(there) = there else { return Storage::Plain("nothing that can be looked at".to_owned()) };
    // Not by the device's number: btrfs gives each subvolume one of its own. Of those in one place the last one is on top.
    let own = mounts
        .iter()
        .filter(|mount| there.starts_with(&mount.place))
        .max_by_key(|mount| mount.place.as_os_str().len());
    let Some(own) = own else { return Storage::Plain(there.display().to_string()) };
    let below = mounts.iter().filter(|mount| mount.place != there && mount.place.starts_with(&there));
    let found = storage_of(own, sys);
    match found {
        Storage::Plain(_) => found,
        Storage::Encrypted(_) => {
            below.map(|mount| storage_of(mount, sys)).find(|one| !one.is_encrypted()).unwrap_or(found)
        }
    }
}

/// How the file system of a mount is stored. Some have a number that is no device's, and say what they are on.
fn storage_of(mount: &Mount, sys: &Path) -> Storage {
    let blocks = sys.join("dev/block");
    let source = fs::metadata(&mount.source).ok().filter(|_| mount.source.is_absolute());
    let source = source.map(|meta| format!("{}:{}", major(meta.rdev()), minor(meta.rdev())));
    let found =
        [Some(mount.device.clone()), source].into_iter().flatten().find(|one| blocks.join(one).exists());
    let is_crypt = |device: &PathBuf| is_crypt(&blocks, device, DEPTH);
    match found {
        Some(device) if all_of(sys, &blocks.join(&device)).iter().all(is_crypt) => Storage::Encrypted(device),
        _ => Storage::Plain(mount.source.display().to_string()),
    }
}

/// The devices of a file system that has this one among them: btrfs takes several.
fn all_of(sys: &Path, device: &Path) -> Vec<PathBuf> {
    let place = fs::canonicalize(device).ok();
    let systems = fs::read_dir(sys.join("fs/btrfs")).into_iter().flatten().flatten();
    for system in systems {
        let devices = fs::read_dir(system.path().join("devices")).into_iter().flatten().flatten();
        let devices: Vec<PathBuf> = devices.map(|one| one.path()).collect();
        if devices.iter().any(|one| fs::canonicalize(one).ok() == place) {
            return devices;
        }
    }
    vec![device.to_path_buf()]
}

fn is_crypt(blocks: &Path, device: &Path, depth: u32) -> bool {
    let uuid = fs::read_to_string(device.join("dm/uuid")).unwrap_or_default();
    // dm-integrity and dm-verity of cryptsetup's begin like that, too.
    if ["CRYPT-LUKS1-", "CRYPT-LUKS2-", "CRYPT-PLAIN-"].iter().any(|kind| uuid.starts_with(kind)) {
        return true;
    }
    if depth == 0 {
        return false;
    }
    let number =
        |folder: &Path| fs::read_to_string(folder.join("dev")).ok().map(|text| text.trim().to_owned());
    let is_below =
        |folder: &Path| number(folder).is_some_and(|one| is_crypt(blocks, &blocks.join(one), depth - 1));
    // A partition lies in the folder of its disk.
    if device.join("partition").exists() {
        return fs::canonicalize(device)
            .ok()
            .and_then(|device| Some(is_below(device.parent()?)))
            .unwrap_or(false);
    }
    let slaves: Vec<PathBuf> =
        fs::read_dir(device.join("slaves")).into_iter().flatten().flatten().map(|one| one.path()).collect();
    !slaves.is_empty() && slaves.iter().all(|slave| is_below(slave))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree like that of sysfs: devices with their names, numbers, and what they are made of.
    struct Sys(tempfile::TempDir);

    impl Sys {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("dev/block")).unwrap();
            Self(dir)
        }

        fn device(&self, place: &str, number: &str, uuid: Option<&str>, slaves: &[&str]) {
            let folder = self.0.path().join("devices").join(place);
            fs::create_dir_all(folder.join("slaves")).unwrap();
            fs::write(folder.join("dev"), format!("{number}\n")).unwrap();
            if let Some(uuid) = uuid {
                fs::create_dir(folder.join("dm")).unwrap();
                fs::write(folder.join("dm/uuid"), format!("{uuid}\n")).unwrap();
            }
            for slave in slaves {
                let name = slave.rsplit('/').next().unwrap();
                symlink(self.0.path().join("devices").join(slave), folder.join("slaves").join(name)).unwrap();
            }
            symlink(&folder, self.0.path().join("dev/block").join(number)).unwrap();
        }

        fn is_crypt(&self, number: &str) -> bool {
            let blocks = self.0.path().join("dev/block");
            is_crypt(&blocks, &blocks.join(number), DEPTH)
        }
    }

    #[test]
    fn what_is_made_of_encrypted_devices_alone_is_encrypted() {
        let sys = Sys::new();
        sys.device("sda", "8:0", None, &[]);
        sys.device("sda/sda1", "8:1", None, &[]);
        fs::write(sys.0.path().join("devices/sda/sda1/partition"), "1\n").unwrap();
        sys.device("dm-0", "254:0", Some("CRYPT-LUKS2-0123-root"), &["sda/sda1"]);
        sys.device("dm-1", "254:1", Some("LVM-abc"), &["dm-0"]);
        sys.device("dm-2", "254:2", Some("LVM-def"), &["dm-0", "sda"]);
        sys.device("dm-3", "254:3", Some("LVM-CRYPT-"), &["sda"]);
        sys.device("dm-0p1", "259:0", None, &[]);
        sys.device("loop", "7:0", Some("LVM-loop"), &["loop"]);
        // A partition of an encrypted disk.
        sys.device("dm-4", "254:4", Some("CRYPT-PLAIN-x"), &[]);
        sys.device("dm-4/p1", "259:1", None, &[]);
        fs::write(sys.0.path().join("devices/dm-4/p1/partition"), "1\n").unwrap();
        for (number, is) in [
            ("254:0", true),
            ("254:1", true),
            ("259:1", true),
            ("254:2", false),
            ("254:3", false),
            ("259:0", false),
            ("8:1", false),
            ("7:0", false),
            ("9:9", false),
        ] {
            assert_eq!(sys.is_crypt(number), is, "{number}");
        }
    }

    /// A device that is here on every machine stands for the one that a file system is on.
    fn mount(device: &str, place: &Path, source: &str) -> Mount {
        let (device, place, source) = (device.to_owned(), place.to_path_buf(), source.into());
        Mount { device, place, kind: "btrfs".to_owned(), source }
    }

    fn number_of(device: &str) -> String {
        let number = fs::metadata(device).unwrap().rdev();
        format!("{}:{}", major(number), minor(number))
    }

    #[test]
    fn a_folders_device_is_that_of_the_mount_in_which_it_is() {
        let (sys, dir) = (Sys::new(), tempfile::tempdir().unwrap());
        let look = |mounts: &[Mount]| look_in(&dir.path().join("not/there/yet"), sys.0.path(), mounts);
        let folder = fs::canonicalize(dir.path()).unwrap();
        assert_eq!(look(&[]), Storage::Plain(folder.display().to_string()));
        // As btrfs has it: no device has the number.
        let mounts = [mount("0:1", "/".as_ref(), "overlay"), mount("0:40", &folder, "/dev/null")];
        assert_eq!(look(&mounts), Storage::Plain("/dev/null".into()));
        sys.device("dm-0", &number_of("/dev/null"), Some("CRYPT-LUKS2-0"), &[]);
        assert_eq!(look(&mounts), Storage::Encrypted(number_of("/dev/null")));
        assert_eq!(look(&mounts[..1]), Storage::Plain("overlay".into()));
    }

    #[test]
    fn what_is_mounted_below_counts_and_so_does_each_disk_of_a_btrfs() {
        let (sys, dir) = (Sys::new(), tempfile::tempdir().unwrap());
        sys.device("dm-0", &number_of("/dev/null"), Some("CRYPT-LUKS2-0"), &[]);
        sys.device("sda", &number_of("/dev/zero"), None, &[]);
        let folder = fs::canonicalize(dir.path()).unwrap();
        let look = |below: &Path| {
            let mounts = [mount("0:40", "/".as_ref(), "/dev/null"), mount("0:99", below, "/dev/zero")];
            look_in(dir.path(), sys.0.path(), &mounts)
        };
        assert!(look("/elsewhere".as_ref()).is_encrypted());
        assert_eq!(look(&folder.join("tenants")), Storage::Plain("/dev/zero".into()));
        let devices = sys.0.path().join("fs/btrfs/an-id/devices");
        fs::create_dir_all(&devices).unwrap();
        let add = |name: &str| symlink(sys.0.path().join("devices").join(name), devices.join(name)).unwrap();
        add("dm-0");
        assert!(look("/elsewhere".as_ref()).is_encrypted());
        add("sda");
        assert_eq!(look("/elsewhere".as_ref()), Storage::Plain("/dev/null".into()));
    }
}
