//! What a VMM finds in its directory, and what is taken from there. All of it has names that are the same for every VMM, so
//! that one snapshot serves any clone.
//!
//! ```text
//! what is shared   kernel, root disk of guests with an agent, base    a symbolic link; in a jail a mount that is read-only
//! what is its own  disks, logs, memory                                a hard link: the file stays where it belongs
//! what it writes   snapshots                                          in folders of the directory; taken from there by [`take`]
//! ```
//! The directory may be a jail's, and a jail is hostile: its VMM may put anything under any name in it, at any time. So nothing
//! in it is opened but beneath it, through no link, and taken only if it is the VMM's own file and has no other name.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, OFlags, linkat, unlinkat},
    io::Errno,
};

use crate::{
    infra::beneath,
    store::{self, StoreError},
};

/// A VMM's directory that is being filled.
#[derive(Debug)]
pub struct VmmDir {
    path: PathBuf,
    /// The user of a jailed VMM.
    jailed: Option<u32>,
    /// What is to be mounted, and under which names.
    mounts: Vec<(PathBuf, String)>,
}

impl VmmDir {
    /// An empty one, in place of what is there.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn make(path: &Path, jailed: Option<u32>) -> Result<Self, StoreError> {
        remove(path)?;
        store::make_folder(path)?;
        Ok(Self { path: path.to_path_buf(), jailed, mounts: Vec::new() })
    }

    /// A file that others use too.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn share(&mut self, file: &Path, name: &str) -> Result<(), StoreError> {
        let place = self.path.join(name);
        if self.jailed.is_none() {
            return symlink(file, &place).map_err(StoreError::io("link", &place));
        }
        // It lies in a folder that only root may enter: to read it harms nobody.
        let readable = Permissions::from_mode(0o444);
        fs::set_permissions(file, readable).map_err(StoreError::io("make readable", file))?;
        store::create_file(&place)?;
        self.mounts.push((file.to_path_buf(), name.to_owned()));
        Ok(())
    }

    /// A file of its own.
    ///
    /// # Errors
    /// When the operating system refuses, or the file lies on another file system.
    pub fn give(&self, file: &Path, name: &str) -> Result<(), StoreError> {
        let link = self.path.join(name);
        own(file, self.jailed)?;
        fs::hard_link(file, &link).map_err(|error| not_linked(file, error))
    }

    /// A folder in which it may write.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn folder(&self, name: &str) -> Result<(), StoreError> {
        let folder = self.path.join(name);
        store::make_folder(&folder)?;
        own(&folder, self.jailed)
    }

    /// A new file of its own, which goes with the directory.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn file(&self, name: &str) -> Result<File, StoreError> {
        let path = self.path.join(name);
        let file = store::create_file(&path)?;
        own(&path, self.jailed)?;
        Ok(file)
    }

    /// What is to be mounted there when the VMM is started, and under which names.
    pub fn into_mounts(self) -> Vec<(PathBuf, String)> {
        self.mounts
    }
}

/// Removes a VMM's directory, and whatever it put there. The VMM is dead by then.
///
/// # Errors
/// When something cannot be removed.
pub fn remove(directory: &Path) -> Result<(), StoreError> {
    beneath::remove_all(directory).map_err(StoreError::io("remove", directory))
}

/// Makes a file the VMM's.
fn own(file: &Path, uid: Option<u32>) -> Result<(), StoreError> {
    match uid {
        Some(uid) => lchown(file, Some(uid), Some(uid)).map_err(StoreError::io("change the owner of", file)),
        None => Ok(()),
    }
}

/// Gives a VMM that runs as this user one more file of its own, in place of what has this name in its directory.
///
/// # Errors
/// When the operating system refuses.
pub fn give(directory: &Path, file: &Path, name: &str, uid: u32) -> Result<(), StoreError> {
    own(file, Some(uid))?;
    drop_written(directory, name)?;
    let error = |errno: Errno| not_linked(file, errno.into());
    let (folder, name) = open_parent(directory, name).map_err(error)?;
    linkat(CWD, file, &folder, name, AtFlags::empty()).map_err(error)
}

/// Why a file cannot get a name in a VMM's directory.
fn not_linked(file: &Path, error: io::Error) -> StoreError {
    StoreError::io("give the VMM", file)(match error.kind() {
        io::ErrorKind::CrossesDevices => {
            io::Error::other("it lies on another file system than run/, or behind a mount of its own")
        }
        _ => error,
    })
}

/// Opens a file that a VMM wrote, for reading.
///
/// # Errors
/// Where it is none, or not the VMM's, or has another name too.
pub fn open(directory: &Path, name: &str, uid: u32) -> Result<File, StoreError> {
    let file = directory.join(name);
    let opened = beneath::open(directory, name, OFlags::RDONLY | OFlags::NONBLOCK)
        .map_err(|errno| StoreError::io("open", &file)(errno.into()))?;
    let meta = opened.metadata().map_err(StoreError::io("look at", &file))?;
    let why = match (meta.is_file(), meta.uid() == uid, meta.nlink()) {
        (true, true, 1) => return Ok(opened),
        (false, ..) => "it is no file",
        (_, false, _) => "it belongs to somebody else",
        (..) => "it has another name too",
    };
    Err(StoreError::io("open", &file)(io::Error::other(format!("its VMM made something else of it: {why}"))))
}

/// Takes a file that a VMM wrote out of its directory: it gets this name too. It is well where that is the file already.
///
/// # Errors
/// Where it is none that may be taken ([`open`]).
pub fn take(directory: &Path, name: &str, uid: u32, to: &Path) -> Result<(), StoreError> {
    if is_same(directory, name, to) {
        return Ok(());
    }
    let file = open(directory, name, uid)?;
    store::remove_file(to)?;
    // The file that was looked at, whatever has its name by now.
    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, file, CWD, to, AtFlags::SYMLINK_FOLLOW)
        .map_err(|errno| StoreError::io("link", to)(errno.into()))
}

/// Removes what a VMM has under this name.
///
/// # Errors
/// When the operating system refuses.
pub fn drop_written(directory: &Path, name: &str) -> Result<(), StoreError> {
    let removed =
        open_parent(directory, name).and_then(|(folder, name)| unlinkat(&folder, name, AtFlags::empty()));
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(StoreError::io("remove", &directory.join(name))(errno.into())),
    }
}

/// Removes the files of a folder in which a VMM writes. What cannot be removed goes with the VMM.
pub fn sweep(directory: &Path, folder: &str) {
    let Ok(folder) = beneath::open(directory, folder, OFlags::RDONLY | OFlags::DIRECTORY) else { return };
    for entry in Dir::read_from(&folder).into_iter().flatten().flatten() {
        let _ = unlinkat(&folder, entry.file_name(), AtFlags::empty());
    }
}

fn is_same(directory: &Path, name: &str, to: &Path) -> bool {
    let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let Ok(there) = fs::symlink_metadata(to).map(inode) else { return false };
    let written = beneath::open(directory, name, OFlags::PATH).ok().and_then(|file| file.metadata().ok());
    written.map(inode) == Some(there)
}

fn open_parent<'a>(directory: &Path, name: &'a str) -> Result<(File, &'a str), Errno> {
    let (parent, name) = name.rsplit_once('/').unwrap_or((".", name));
    Ok((beneath::open(directory, parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{FileType, Mode, mknodat};

    use super::*;

    fn own_uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    /// A directory with a folder, and a file beside it that is nobody's business.
    fn world() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (jail, secret) = (dir.path().join("jail"), dir.path().join("secret"));
        VmmDir::make(&jail, None).unwrap().folder("delta").unwrap();
        fs::write(&secret, "secret").unwrap();
        (dir, jail, secret)
    }

    #[test]
    fn only_a_file_of_the_vmms_own_is_taken_and_nothing_else_changes() {
        let (dir, jail, secret) = world();
        type Plant = fn(&Path, &Path);
        let plants: [(&str, Plant); 6] = [
            ("a link", |place, secret| symlink(secret, place).unwrap()),
            ("a link that leads nowhere", |place, _| symlink("nowhere", place).unwrap()),
            ("another name", |place, secret| fs::hard_link(secret, place).unwrap()),
            ("a FIFO", |place, _| mknodat(CWD, place, FileType::Fifo, Mode::RUSR, 0).unwrap()),
            ("a socket", |place, _| drop(UnixListener::bind(place).unwrap())),
            ("a folder", |place, _| fs::create_dir(place).unwrap()),
        ];
        let to = dir.path().join("taken");
        for (what, plant) in plants {
            let place = jail.join("delta/file");
            plant(&place, &secret);
            assert!(open(&jail, "delta/file", own_uid()).is_err(), "{what}");
            assert!(take(&jail, "delta/file", own_uid(), &to).is_err() && !to.exists(), "{what}");
            let _ = fs::remove_dir(&place);
            drop_written(&jail, "delta/file").unwrap();
            assert!(!place.exists(), "{what}");
        }
        // The folder is a link that leads out.
        fs::remove_dir(jail.join("delta")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/file"), "outside").unwrap();
        symlink("../outside", jail.join("delta")).unwrap();
        assert!(take(&jail, "delta/file", own_uid(), &to).is_err() && !to.exists());
        assert!(
            drop_written(&jail, "delta/file").is_err()
                && give(&jail, &secret, "delta/file", own_uid()).is_err()
        );
        assert_eq!(fs::read_to_string(dir.path().join("outside/file")).unwrap(), "outside");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    }

    #[test]
    fn what_a_vmm_wrote_is_taken_as_it_is_and_given_again() {
        let (dir, jail, _) = world();
        fs::write(jail.join("delta/file"), "written").unwrap();
        let to = dir.path().join("taken");
        fs::write(&to, "older").unwrap();
        assert!(take(&jail, "delta/file", own_uid() + 1, &to).is_err(), "somebody else's");
        take(&jail, "delta/file", own_uid(), &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "written");
        // It has two names now, and is the same.
        take(&jail, "delta/file", own_uid(), &to).unwrap();
        assert!(open(&jail, "delta/file", own_uid()).is_err());
        drop_written(&jail, "delta/file").unwrap();
        drop_written(&jail, "delta/file").unwrap();
        // What has the name meanwhile goes.
        symlink("/etc/passwd", jail.join("delta/file")).unwrap();
        give(&jail, &to, "delta/file", own_uid()).unwrap();
        assert_eq!(fs::read_to_string(jail.join("delta/file")).unwrap(), "written");
    }
}
