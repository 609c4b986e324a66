//! The sender's half: reads what is there, and says what it is.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, readlinkat, statat},
    io::Errno,
};

use super::{Entry, Item, MAX_DEPTH, Node};
use crate::{
    frame::{Frames, Kind, MAX_DATA, ProtoError},
    message::Copied,
};

/// Sends a file, a folder with all that is in it, or a link.
///
/// # Errors
/// Where the connection fails. What cannot be read is [`SendError::Unreadable`], and was said to the receiver.
pub fn send<S: Write>(frames: &mut Frames<S>, path: &Path) -> Result<Copied, SendError> {
    let mut sender = Sender { frames, copied: Copied::default(), at: String::new() };
    let unreadable = match sender.node(CWD, path.as_os_str(), "", 0) {
        Err(Stopped::Proto(error)) => return Err(error.into()),
        Err(Stopped::Io(source)) => {
            // What was looked at last is what stopped it.
            let path = if sender.at.is_empty() { path.to_path_buf() } else { path.join(&sender.at) };
            Some((path, source))
        }
        Ok(()) if sender.copied.entries == 0 => {
            Some((path.to_path_buf(), io::Error::other("neither a file, a folder nor a link")))
        }
        Ok(()) => None,
    };
    match unreadable {
        Some((path, source)) => {
            let why = format!("{}: {source}", path.display());
            sender.frames.send(&Item::Failed { why })?;
            Err(SendError::Unreadable { path, source })
        }
        None => {
            sender.frames.send(&Item::End { skipped: sender.copied.skipped })?;
            Ok(sender.copied)
        }
    }
}

/// Why a copy was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection failed.
    #[error(transparent)]
    Proto(#[from] ProtoError),
    /// It cannot be read here; the receiver has heard so.
    #[error("cannot read {path}", path = path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

struct Sender<'a, S> {
    frames: &'a mut Frames<S>,
    copied: Copied,
    /// What is being looked at, below the top.
    at: String,
}

enum Stopped {
    Proto(ProtoError),
    Io(io::Error),
}

impl From<ProtoError> for Stopped {
    fn from(error: ProtoError) -> Self {
        Self::Proto(error)
    }
}

impl From<Errno> for Stopped {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl<S: Write> Sender<'_, S> {
    fn node(&mut self, at: BorrowedFd<'_>, name: &OsStr, path: &str, depth: usize) -> Result<(), Stopped> {
        path.clone_into(&mut self.at);
        // The top may be named by a link, as everywhere; what is below is sent as it is.
        let flags = if depth == 0 { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = match statat(at, name, flags) {
            Ok(stat) => stat,
            // It went while it was looked for: that is no failure of those that are there.
            Err(Errno::NOENT) if depth > 0 => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut entry = Entry {
            path: path.to_owned(),
            node: Node::File,
            mode: stat.st_mode & 0o7777,
            modified: stat.st_mtime,
        };
        let no_follow = if depth == 0 { OFlags::empty() } else { OFlags::NOFOLLOW };
        let open =
            |more| openat(at, name, OFlags::RDONLY | OFlags::CLOEXEC | no_follow | more, Mode::empty());
        match kind {
            FileType::RegularFile => {
                // Something else may have taken its place: a pipe would block.
                let file = match open(OFlags::NONBLOCK) {
                    Ok(file) => File::from(file),
                    Err(Errno::ACCESS | Errno::PERM) if depth > 0 => return self.skip(),
                    Err(errno) => return Err(errno.into()),
                };
                self.entry(&entry)?;
                self.content(&file)
            }
            FileType::Directory => {
                let folder = match open(OFlags::DIRECTORY) {
                    Ok(folder) => folder,
                    Err(Errno::ACCESS | Errno::PERM) if depth > 0 => return self.skip(),
                    Err(errno) => return Err(errno.into()),
                };
                entry.node = Node::Folder;
                self.entry(&entry)?;
                if depth >= MAX_DEPTH {
                    return Err(Stopped::Io(io::Error::other("it is too deep")));
                }
                self.folder(&folder, path, depth)
            }
            FileType::Symlink => match readlinkat(at, name, Vec::new())?.into_string() {
                Ok(target) => {
                    entry.node = Node::Link(target);
                    self.entry(&entry)
                }
                Err(_) => self.skip(),
            },
            _ => self.skip(),
        }
    }

    fn folder(&mut self, folder: &OwnedFd, path: &str, depth: usize) -> Result<(), Stopped> {
        for member in Dir::read_from(folder)? {
            path.clone_into(&mut self.at);
            let name = member?.file_name().to_owned();
            let Ok(text) = name.to_str() else {
                self.skip()?;
                continue;
            };
            if matches!(text, "." | "..") {
                continue;
            }
            let path = if path.is_empty() { text.to_owned() } else { format!("{path}/{text}") };
            self.node(folder.as_fd(), OsStr::new(text), &path, depth + 1)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), Stopped> {
        self.copied.entries += 1;
        Ok(self.frames.send(&Item::Entry(entry.clone()))?)
    }

    fn skip(&mut self) -> Result<(), Stopped> {
        self.copied.skipped += 1;
        Ok(())
    }

    fn content(&mut self, mut file: &File) -> Result<(), Stopped> {
        loop {
            let mut failed = None;
            let count = self.frames.data_from(Kind::Data, MAX_DATA, |space| {
                file.read(space).or_else(|error| {
                    failed = Some(error);
                    Ok(0)
                })
            })?;
            if let Some(error) = failed {
                return Err(Stopped::Io(error));
            }
            if count == 0 {
                return Ok(self.frames.data(Kind::Data, b"")?);
            }
            self.copied.bytes += count as u64;
        }
    }
}
