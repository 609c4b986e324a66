//! What an image may still take of this machine: counted down while it is read, before anything of it is made.

use std::{cell::Cell, io, time::Instant};

use super::limits::Limits;

/// What a file, folder or link takes besides its content, and what its content is counted in: as ext4 has them.
const INODE: u64 = 256;
pub const BLOCK: u64 = 4096;

/// More came than may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// More bytes.
    #[error("it takes more room than it may")]
    Bytes,
    /// More files and folders.
    #[error("it has more files and folders than it may")]
    Entries,
    /// Its time is over.
    #[error("it takes longer than it may")]
    Time,
}

impl Exceeded {
    /// What it is, where an error of a reader is that.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<Exceeded> for io::Error {
    fn from(exceeded: Exceeded) -> Self {
        Self::other(exceeded)
    }
}

/// What all layers together may still take.
#[derive(Debug)]
pub struct Left {
    bytes: Cell<u64>,
    entries: Cell<u64>,
    until: Instant,
}

impl Left {
    /// All of it.
    pub fn of(limits: &Limits) -> Self {
        let Limits { bytes, entries, until, .. } = limits;
        Self { bytes: Cell::new(*bytes), entries: Cell::new(*entries), until: *until }
    }

    /// Is there time left?
    ///
    /// # Errors
    /// [`Exceeded`] where there is none.
    pub fn time(&self) -> Result<(), Exceeded> {
        in_time(self.until)
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    /// [`Exceeded`] where there are not as many, or no time is left.
    pub fn bytes(&self, bytes: u64) -> Result<(), Exceeded> {
        self.bytes.set(self.bytes.get().checked_sub(bytes).ok_or(Exceeded::Bytes)?);
        self.time()
    }

    /// Takes an entry.
    ///
    /// # Errors
    /// [`Exceeded`] where there is none, or no time is left.
    pub fn entry(&self) -> Result<(), Exceeded> {
        self.entries.set(self.entries.get().checked_sub(1).ok_or(Exceeded::Entries)?);
        self.time()
    }

    /// Takes a folder that no entry names: somebody has to make it all the same.
    ///
    /// # Errors
    /// [`Exceeded`] where there is no entry or no room for it.
    pub fn folder(&self) -> Result<(), Exceeded> {
        self.entry()?;
        self.bytes(on_disk(BLOCK))
    }
}

/// What something takes of a disk that has so many bytes of content.
pub fn on_disk(content: u64) -> u64 {
    content.div_ceil(BLOCK).saturating_mul(BLOCK).saturating_add(INODE)
}

/// Is it not yet that late?
///
/// # Errors
/// [`Exceeded`] where it is.
pub fn in_time(until: Instant) -> Result<(), Exceeded> {
    if Instant::now() < until { Ok(()) } else { Err(Exceeded::Time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_something_takes_is_whole_blocks_and_its_inode() {
        for (content, takes) in [(0, 256), (1, 4352), (4096, 4352), (4097, 8448), (u64::MAX, u64::MAX)] {
            assert_eq!(on_disk(content), takes, "{content}");
        }
    }

    #[test]
    fn a_folder_takes_an_entry_and_its_room() {
        let limits = Limits { entries: 3, bytes: 9000, ..Limits::default() };
        let left = Left::of(&limits);
        assert_eq!([left.folder(), left.folder(), left.folder()], [Ok(()), Ok(()), Err(Exceeded::Bytes)]);
        assert_eq!([left.entry(), left.bytes(9000)], [Err(Exceeded::Entries), Err(Exceeded::Bytes)]);
    }
}
