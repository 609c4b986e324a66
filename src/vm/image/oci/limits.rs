//! What an archive may make of this machine's memory and disk. Everything that an image says is measured against these before
//! it is believed.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::vm::naming::TenantId;

/// What all layers together may unpack to: more is a bomb, or no guest of this node. Each entry counts with what it takes of
/// the stream, headers and padding included, or with its blocks and its inode, whichever is more.
pub const MAX_BYTES: u64 = 16 << 30;
/// Files, folders, links and whiteouts of all layers together, and folders that no entry names.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// How long it may take from the first byte of an archive to the file system: a large image on a slow disk is far from it.
pub const MAX_TIME: Duration = Duration::from_secs(30 * 60);
/// As many as the engines have that make images.
pub const MAX_LAYERS: usize = 127;
/// One manifest, index or configuration; they are read into memory.
pub const MAX_JSON: u64 = 4 << 20;
/// Indexes that lie in one another, below `index.json`.
pub const MAX_NESTING: usize = 4;
/// Files of the archive around the layers; their names are kept in memory.
pub const MAX_MEMBERS: usize = 16_384;
/// A path, as the guest's kernel takes it.
pub const MAX_PATH: usize = 4095;
/// One part of a path.
pub const MAX_NAME: usize = 255;
/// Folders in one another: also one descriptor each while a folder is removed or measured.
pub const MAX_DEPTH: usize = 256;
/// Names in one folder: mke2fs looks through all of them for each one more, two minutes for that many.
pub const MAX_FOLDER: u64 = 65_536;
/// Symbolic links on the way to one file, as in the kernel.
pub const MAX_HOPS: usize = 40;
/// Steps on the way to one file, where links are on it: they may lead back and forth.
pub const MAX_STEPS: usize = 1024;
/// One extended header: its long name, times and attributes are read into memory.
pub const MAX_HEADER: u64 = 1 << 20;
/// Parts of one sparse file that are not holes.
pub const MAX_PIECES: usize = 65_536;
/// Extended attributes of one file, names and values: what ext4 has a block for.
pub const MAX_ATTRIBUTES: usize = 3500;
/// What a packed stream may need to be unpacked, as a power of two: 128 MiB, the most that zstd's usual levels need.
pub const MAX_WINDOW_LOG: u32 = 27;

/// The limits that depend on where the image goes, or that a test makes small.
#[derive(Debug, Clone)]
pub struct Limits {
    /// What all layers together may unpack to.
    pub bytes: u64,
    /// Whose limit that is.
    pub reason: Reason,
    /// Entries of all layers together.
    pub entries: u64,
    /// When the time is over that all of it may take.
    pub until: Instant,
}

impl Default for Limits {
    fn default() -> Self {
        let until = Instant::now() + MAX_TIME;
        Self { bytes: MAX_BYTES, reason: Reason::Format, entries: MAX_ENTRIES, until }
    }
}

impl Limits {
    /// The same, with no more bytes than that.
    pub fn at_most(self, bytes: u64, reason: Reason) -> Self {
        if bytes < self.bytes { Self { bytes, reason, ..self } } else { self }
    }
}

/// Why an image may not be larger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No image may.
    Format,
    /// The tenant's quota has no more.
    Quota(TenantId),
    /// The node's disk has no more above its floor: the files and the file system made of them lie there at one time.
    Room,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Format => f.write_str("no image may be larger"),
            Self::Quota(tenant) => write!(f, "max_disk_gib of tenant {tenant} has no more left"),
            Self::Room => f.write_str("the disk has no more above its floor"),
        }
    }
}
