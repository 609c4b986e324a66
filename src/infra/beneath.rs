//! Opening what lies beneath a folder in which somebody else may put anything: no link leads out of it, or anywhere.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, open as open_folder, openat2},
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
