//! Opening what lies beneath a folder in which somebody else may put anything: no link leads out of it, or anywhere.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, Dir, Mode, OFlags, ResolveFlags, open as open_folder, openat, openat2, renameat, unlinkat,
    },
    io::Errno,
};

/// Opens what has this name in `folder`, whose own path is trusted.
///
/// # Errors
/// [`Errno::LOOP`] where a link is on the way.
pub fn open(folder: &Path, name: &str, flags: OFlags) -> Result<File, Errno> {
    let folder = open_folder(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(&folder, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve).map(File::from)
}

/// The last so many bytes of a file; fewer, or none, where there are no more.
pub fn tail(folder: &Path, name: &str, bytes: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        // A FIFO in its place keeps nobody.
        let mut file = open(folder, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut tail = Vec::new();
        file.take(bytes).read_to_end(&mut tail)?;
        Ok(tail)
    };
    read().unwrap_or_default()
}

/// How deep folders are gone into: each is a descriptor that is open meanwhile.
const DEEPEST: usize = 64;

/// Removes a folder with all in it, however deep: what lies very deep is moved up first. It is well when there is
/// none. Nobody may write there any more.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_all(folder: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match open_folder(folder, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let mut moved = 0;
    loop {
        let before = moved;
        empty(&top, &top, 0, &mut moved)?;
        if moved == before {
            return std::fs::remove_dir(folder);
        }
    }
}

fn empty(folder: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> Result<(), Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            Err(Errno::NOENT) => continue,
            removed => {
                removed?;
                continue;
            }
        }
        if depth == DEEPEST {
            // Whatever has such a name already is no reason to stop.
            loop {
                *moved += 1;
                match renameat(folder, name, top, format!(".deep-{moved}")) {
                    Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                    renamed => break renamed?,
                }
            }
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let child = openat(folder, name, flags, Mode::empty())?;
        empty(&child, top, depth + 1, moved)?;
        unlinkat(folder, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deeper than descriptors or a stack would last, and with the names in the way that it uses.
    #[test]
    fn a_folder_goes_however_deep_it_is_and_nothing_behind_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        let outside = dir.path().join("outside");
        std::fs::create_dir(&folder).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "").unwrap();
        std::fs::write(folder.join(".deep-1"), "").unwrap();
        std::fs::create_dir_all(folder.join(".deep-2/full")).unwrap();
        std::os::unix::fs::symlink(&outside, folder.join("link")).unwrap();
        let mut at = open_folder(&folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o000)).unwrap();
            at = openat(&at, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        if let Err(error) = remove_all(&folder) {
            // Who is not root may not look into such a folder.
            assert!(!rustix::process::geteuid().is_root(), "{error}");
            return;
        }
        assert!(!folder.exists() && outside.join("kept").exists());
        remove_all(&folder).unwrap();
    }
}
