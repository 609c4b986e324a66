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

/// How the content of this folder is stored; of one that is not there yet, how that of the one above it is.
pub fn look(folder: &Path) -> Storage {
    look_in(folder, Path::new("/sys/dev/block"), Path::new("/proc/self/mountinfo"))
}

fn look_in(folder: &Path, blocks: &Path, mounts: &Path) -> Storage {
    let there = folder.ancestors().find_map(|path| fs::metadata(path).ok());
    let Some(meta) = there else { return Storage::Plain("nothing that can be looked at".to_owned()) };
    let number = |device: u64| format!("{}:{}", major(device), minor(device));
    let mounts = fs::read_to_string(mounts).unwrap_or_default();
    let (own, source) = (number(meta.dev()), source_of(&mounts, &number(meta.dev())));
    // Some file systems have a number of their own, and say in the table of mounts what they are on.
    let of_source = source.as_ref().and_then(|path| fs::metadata(path).ok()).map(|meta| number(meta.rdev()));
    let found = [Some(own.clone()), of_source].into_iter().flatten().find(|one| blocks.join(one).exists());
    match found {
        Some(device) if is_crypt(blocks, &blocks.join(&device), DEPTH) => Storage::Encrypted(device),
        found => {
            let named = source.map(|path| path.display().to_string()).or(found);
            Storage::Plain(named.unwrap_or(own))
        }
    }
}

/// What the file system with this number is on, as the table of mounts says.
fn source_of(mounts: &str, number: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (before.split(' ').nth(2) == Some(number)).then(|| after.split(' ').nth(1).map(PathBuf::from))?
    })
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

    #[test]
    fn a_folders_device_is_found_by_its_number_or_by_its_mount() {
        let (sys, dir) = (Sys::new(), tempfile::tempdir().unwrap());
        let meta = fs::metadata(dir.path()).unwrap();
        let own = format!("{}:{}", major(meta.dev()), minor(meta.dev()));
        let mounts = dir.path().join("mountinfo");
        let look = || look_in(&dir.path().join("not/there/yet"), &sys.0.path().join("dev/block"), &mounts);
        assert_eq!(look(), Storage::Plain(own.clone()));
        // A device that is here on every machine stands for the one that the file system is on.
        let null = fs::metadata("/dev/null").unwrap().rdev();
        let line = format!("36 29 {own} / /var rw - btrfs /dev/null rw,subvol=/\n");
        fs::write(&mounts, format!("35 29 0:1 / /x rw - tmpfs tmpfs rw\n{line}")).unwrap();
        assert_eq!(look(), Storage::Plain("/dev/null".into()));
        let number = format!("{}:{}", major(null), minor(null));
        sys.device("dm-0", &number, Some("CRYPT-LUKS2-0"), &[]);
        assert_eq!(look(), Storage::Encrypted(number));
    }
}
