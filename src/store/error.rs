//! Why state could not be read or written.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is not there.
    #[error("{path} does not exist", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what mvm wrote.
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        why: String,
    },
    /// A key that is its owner's alone may be read by others.
    #[error("{path} may be read by others: its mode is {mode:03o}, and its owner {owner}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner's uid.
        owner: u32,
    },
    /// The file was written by a later mvm.
    #[error("{path} has schema version {found}; this mvm knows versions up to {known}", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The highest version that this mvm reads.
        known: u32,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else held the lock for too long.
    #[error("{what} is locked by {holder}; waited {} ms", waited.as_millis())]
    Locked {
        /// What the lock guards.
        what: String,
        /// Who holds it, as they wrote it into the lock file.
        holder: String,
        /// How long this process waited.
        waited: Duration,
    },
}

impl StoreError {
    /// An I/O error of `action` on `path`, for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
