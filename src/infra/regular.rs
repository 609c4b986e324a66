//! Files that are to be files: what lies in the place of one, a FIFO for example, is an error, and waited for by nobody.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// The flag with which what others would wait for is opened at once.
pub const NO_WAIT: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// Opens a file to read it.
///
/// # Errors
/// When there is none that can be read.
pub fn open(path: &Path) -> io::Result<File> {
    check(OpenOptions::new().read(true).custom_flags(NO_WAIT).open(path)?)
}

/// Reads a whole file.
///
/// # Errors
/// When there is none that can be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What was opened with [`NO_WAIT`], where it is a file.
///
/// # Errors
/// When it is something else.
pub fn check(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}
