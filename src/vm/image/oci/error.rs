//! Why an image from elsewhere is not taken.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    config::ConfigError,
    layers::Refusal,
    left::Exceeded,
    limits::{Limits, MAX_TIME, Reason},
};
use crate::{
    store::StoreError,
    vm::{image::ImageError, room::RoomError},
};

/// Why an image from elsewhere is not taken.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// It is something else, or nothing that a guest could run.
    #[error("{path} is no image that can be taken: {why}", path = path.display())]
    NotAnImage {
        /// The archive.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// It is not what was written.
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is for other machines.
    #[error("{path} is for {found}, and this machine is {host}", path = path.display())]
    Platform {
        /// The archive.
        path: PathBuf,
        /// Those that it is for.
        found: String,
        /// This one.
        host: String,
    },
    /// There are more than one.
    #[error(
        "{path} holds {number} images, and one is taken{}",
        if names.is_empty() { String::new() } else { format!(": {names}") },
        path = path.display()
    )]
    Several {
        /// The archive.
        path: PathBuf,
        /// How many.
        number: usize,
        /// Their names.
        names: String,
    },
    /// Its configuration is not one that a guest could have.
    #[error("the image in {path} cannot be taken", path = path.display())]
    Config {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// A file of it cannot be taken.
    #[error("layer {layer} of {path} cannot be unpacked at {name:?}", path = path.display())]
    Entry {
        /// The archive.
        path: PathBuf,
        /// The layer, from 1.
        layer: usize,
        /// The file, escaped.
        name: String,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// It has more files than any guest needs.
    #[error("{path} has more than {limit} files and folders", path = path.display())]
    TooMany {
        /// The archive.
        path: PathBuf,
        /// How many there may be.
        limit: u64,
    },
    /// It is larger than it may be here.
    #[error("{path} unpacks to more than {limit_mib} MiB: {reason}", path = path.display())]
    TooLarge {
        /// The archive.
        path: PathBuf,
        /// How much it may be.
        limit_mib: u64,
        /// Whose limit that is.
        reason: Reason,
    },
    /// It takes too long.
    #[error("{path} is not unpacked within {} minutes", MAX_TIME.as_secs() / 60, path = path.display())]
    TooSlow {
        /// The archive.
        path: PathBuf,
    },
    /// No room for the file system that is made of it.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The file system could not be made of it.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl OciError {
    /// More came of it than that.
    pub fn exceeded(path: &Path, limits: &Limits, what: Exceeded) -> Self {
        let path = path.to_path_buf();
        match what {
            Exceeded::Bytes => {
                Self::TooLarge { path, limit_mib: limits.bytes >> 20, reason: limits.reason.clone() }
            }
            Exceeded::Entries => Self::TooMany { path, limit: limits.entries },
            Exceeded::Time => Self::TooSlow { path },
        }
    }

    /// A part of it could not be read, of which only the time is counted.
    pub fn reading(path: &Path, error: io::Error) -> Self {
        match Exceeded::of(&error) {
            Some(_) => Self::TooSlow { path: path.to_path_buf() },
            None => StoreError::io("read", path)(error).into(),
        }
    }
}
