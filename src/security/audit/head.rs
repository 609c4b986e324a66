//! `audit.head`: the number and the hash of the last line, beside the log.

use std::{
    fs::OpenOptions,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::record::nothing;
use crate::{
    infra::relief,
    store::{self, Durability, Schema, StoreError},
};

/// Its length: it is replaced by one write, in place, and must never be shorter than it was.
const LENGTH: usize = 256;

/// The last line's number and hash, and where the log ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// How many lines the log has.
    pub count: u64,
    /// The hash of the last one.
    pub hash: String,
    /// The length of the file that it is in, in bytes.
    pub bytes: u64,
    /// The number of the first line of that file.
    #[serde(default = "one")]
    pub first: u64,
}

fn one() -> u64 {
    1
}

impl Head {
    /// That of a log without a line.
    pub(super) fn at_start() -> Self {
        Self { schema_version: Schema, count: 0, hash: nothing(), bytes: 0, first: 1 }
    }

    /// It is made new with every line. The first one is durable: a power cut must not leave a log without any head, for that is
    /// what a log looks like that somebody cut.
    pub(super) fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let path = file(folder);
        let mut text = serde_json::to_vec(self)
            .map_err(|error| StoreError::io("write", &path)(std::io::Error::other(error)))?;
        text.resize(text.len().max(LENGTH - 1), b' ');
        text.push(b'\n');
        if !path.exists() {
            return store::replace(&path, &text, Durability::Durable);
        }
        let open = || OpenOptions::new().write(true).mode(0o600).open(&path);
        relief::retry(|| open()?.write_all_at(&text, 0)).map_err(StoreError::io("write", &path))
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("audit.head")
}

/// Reads it; `None` where there is none.
///
/// # Errors
/// When it cannot be read, or its numbers do not fit each other.
pub(super) fn read(folder: &Path) -> Result<Option<Head>, StoreError> {
    let path = file(folder);
    let Some(head) = store::read_if_there::<Head>(&path)? else { return Ok(None) };
    // A file is as long as nothing exactly where it has no line.
    match head.first > 0 && (head.bytes == 0) == (head.count.checked_add(1) == Some(head.first)) {
        true => Ok(Some(head)),
        false => Err(StoreError::Damaged { path, why: "its numbers do not fit each other".to_owned() }),
    }
}
