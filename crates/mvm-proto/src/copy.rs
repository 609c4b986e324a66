//! Trees of files on their way between host and guest, and what a receiver takes.
//!
//! ```text
//! Entry, data …, (no data), Entry, …, End | Failed
//! ```
//! The first entry is the top and has an empty path; each other one is below a folder that came before it. A file is
//! followed by its content, which an empty frame of data ends.
//!
//! The sender is not trusted. All of it goes into a place beside the target, reached by descriptors only, and gets its name
//! when it is whole: nothing that is there is followed or written into, links that came are never followed, and setuid and
//! setgid bits are dropped. Devices, sockets and pipes are not sent, and there is no way to say them.

mod send;
mod work;

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::fd::{BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid,
        mkdirat, openat, openat2, renameat_with, statat, symlinkat, utimensat,
    },
    io::Errno,
};
use serde::{Deserialize, Serialize};

pub use self::send::{SendError, send};
use self::work::Work;
use crate::{
    frame::{Frames, Kind, ProtoError},
    message::{Answer, Copied, Refused},
};

/// Folders within folders at most.
const MAX_DEPTH: usize = 64;
/// Bytes of a path at most.
const MAX_PATH: usize = 4095;
/// Files, folders and links of one copy at most.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// What an entry takes of a file system besides its content, and counts.
const ENTRY_BYTES: u64 = 4096;
/// Bytes of the paths of folders that are kept until their end, at most.
const MAX_FOLDER_PATHS: usize = 64 << 20;

/// What a sender says, between the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "item", rename_all = "snake_case")]
pub enum Item {
    /// What comes next.
    Entry(Entry),
    /// There is no more.
    End {
        /// What was left out.
        skipped: u64,
    },
    /// There will be no more, and what came is not whole.
    Failed {
        /// Why.
        why: String,
    },
}

/// A file, a folder or a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where, below the top: names separated by `/`; empty for the top itself.
    pub path: String,
    /// What.
    pub node: Node,
    /// Its permission bits.
    #[serde(default)]
    pub mode: u32,
    /// When it was last written to, in s since 1970.
    #[serde(default)]
    pub modified: i64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// A file, whose content follows.
    File,
    /// A folder.
    Folder,
    /// A symbolic link to this.
    Link(String),
}

/// What a receiver takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes that it takes: content, and a block for each entry.
    pub bytes: u64,
}

/// Why a copy was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The connection failed, or carries nonsense.
    #[error(transparent)]
    Proto(#[from] ProtoError),
    /// The other side cannot send it.
    #[error("{0}")]
    Sender(String),
    /// The other side will not: the agent's answer in place of the first entry.
    #[error("{}", .0.why)]
    Refused(Refused),
    /// A path that leads elsewhere, or nowhere.
    #[error("the sender names {path:?}: {why}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than is taken.
    #[error("more than {most} {what}")]
    TooMuch {
        /// The most.
        most: u64,
        /// Of what.
        what: &'static str,
    },
    /// There is something of that name.
    #[error("{path} is there already", path = path.display())]
    Exists {
        /// Its place.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write {path}", path = path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Who gets what is received, where it shall belong to somebody.
pub type Owner = Option<(Uid, Gid)>;

/// Receives what [`send`] sends, to `target`, in whose folder nothing of that name may be but a file that is replaced by
/// a file. Nothing is left where it fails.
///
/// # Errors
/// [`CopyError`] says why it was not taken.
pub fn receive<S: Read>(
    frames: &mut Frames<S>,
    target: &Path,
    limits: Limits,
    owner: Owner,
) -> Result<Copied, CopyError> {
    let io_error = |errno: Errno| CopyError::Io { path: target.to_path_buf(), source: errno.into() };
    let name = target.file_name().ok_or_else(|| io_error(Errno::INVAL))?;
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = openat(CWD, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io_error)?;
    let there = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(io_error(errno)),
    };
    work::sweep(&folder, name);
    // One folder of our own holds it until it is whole; nobody else writes there.
    let work = Work::make(&folder, name).map_err(io_error)?;
    let (copied, is_file) = receive_into(frames, work.descriptor(), target, limits, owner)?;
    if there.is_some_and(|there| !is_file || there != FileType::RegularFile) {
        return Err(CopyError::Exists { path: target.to_path_buf() });
    }
    match is_file && there.is_some() {
        true => rustix::fs::renameat(work.descriptor(), TOP, &folder, name),
        false => renameat_with(work.descriptor(), TOP, &folder, name, RenameFlags::NOREPLACE),
    }
    .map_err(io_error)?;
    Ok(copied)
}

/// What the top is called until it gets its name.
const TOP: &str = "top";

fn receive_into<S: Read>(
    frames: &mut Frames<S>,
    work: BorrowedFd<'_>,
    target: &Path,
    limits: Limits,
    owner: Owner,
) -> Result<(Copied, bool), CopyError> {
    let mut receiver = Receiver {
        work,
        target,
        limits,
        owner,
        copied: Copied::default(),
        taken: 0,
        paths: 0,
        folders: Vec::new(),
    };
    let mut is_file = None;
    loop {
        let first = is_file.is_none();
        match next(frames, first)? {
            Item::Entry(entry) => {
                // A sender resolves its top: one that is a link is a trick, and would take a file's place.
                if first && matches!(entry.node, Node::Link(_)) {
                    return Err(CopyError::Path { path: entry.path, why: "the top is a link" });
                }
                is_file.get_or_insert(entry.node == Node::File);
                receiver.entry(frames, entry, first)?;
            }
            Item::End { skipped } => {
                let Some(is_file) = is_file else {
                    return Err(CopyError::Sender("there is nothing in it".into()));
                };
                receiver.copied.skipped = skipped;
                receiver.finish()?;
                return Ok((receiver.copied, is_file));
            }
            Item::Failed { why } => return Err(CopyError::Sender(why)),
        }
    }
}

/// What the sender says next; an agent that serves nobody at this moment says so in place of the first.
fn next<S: Read>(frames: &mut Frames<S>, first: bool) -> Result<Item, CopyError> {
    match frames.advance()? {
        Some(Kind::Message) => {}
        Some(_) => return Err(ProtoError::Unexpected.into()),
        None => return Err(ProtoError::Closed.into()),
    }
    frames.parse().map_err(|error| match frames.parse() {
        Ok(Answer::Refused(refused)) if first => CopyError::Refused(refused),
        _ => error.into(),
    })
}

struct Receiver<'a> {
    work: BorrowedFd<'a>,
    target: &'a Path,
    limits: Limits,
    owner: Owner,
    copied: Copied,
    /// What it takes.
    taken: u64,
    /// Bytes of the paths below.
    paths: usize,
    /// Folders, whose modes and times come last: they are written into before.
    folders: Vec<(PathBuf, Mode, i64)>,
}

impl Receiver<'_> {
    fn io_error(&self, place: &Path) -> impl Fn(Errno) -> CopyError + use<> {
        let below = place.strip_prefix(TOP).unwrap_or(place);
        let path =
            if below.as_os_str().is_empty() { self.target.to_path_buf() } else { self.target.join(below) };
        move |errno| CopyError::Io { path: path.clone(), source: errno.into() }
    }

    fn entry<S: Read>(&mut self, frames: &mut Frames<S>, entry: Entry, first: bool) -> Result<(), CopyError> {
        let Entry { path, node, mode, modified } = entry;
        self.copied.entries += 1;
        if self.copied.entries > self.limits.entries {
            return Err(CopyError::TooMuch { most: self.limits.entries, what: "files" });
        }
        self.take(ENTRY_BYTES)?;
        let place = Path::new(TOP).join(check(&path, first)?);
        let failed = self.io_error(&place);
        let (parent, name) = (place.parent().unwrap_or(Path::new("")), place.file_name().unwrap_or_default());
        let parent = self.open(parent).map_err(&failed)?;
        // Setuid, setgid and sticky mean something else on this side.
        let mode = Mode::from_raw_mode(mode & 0o777);
        match node {
            Node::Folder => {
                mkdirat(&parent, name, Mode::RWXU).map_err(&failed)?;
                self.own(&parent, name).map_err(&failed)?;
                self.paths += place.as_os_str().len();
                if self.paths > MAX_FOLDER_PATHS {
                    return Err(CopyError::TooMuch { most: MAX_FOLDER_PATHS as u64, what: "bytes of paths" });
                }
                self.folders.push((place, mode, modified));
            }
            Node::Link(target) => {
                if target.is_empty() || target.len() > MAX_PATH || target.contains('\0') {
                    return Err(CopyError::Path { path, why: "its link leads nowhere" });
                }
                symlinkat(&target, &parent, name).map_err(&failed)?;
                self.own(&parent, name).map_err(&failed)?;
            }
            Node::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(&failed)?;
                let mut file = File::from(file);
                self.content(frames, &mut file, &failed)?;
                self.own(&parent, name).map_err(&failed)?;
                rustix::fs::fchmod(&file, mode).map_err(&failed)?;
                rustix::fs::futimens(&file, &times(modified)).map_err(&failed)?;
            }
        }
        Ok(())
    }

    fn content<S: Read>(
        &mut self,
        frames: &mut Frames<S>,
        file: &mut File,
        failed: &impl Fn(Errno) -> CopyError,
    ) -> Result<(), CopyError> {
        loop {
            match frames.advance()? {
                Some(Kind::Data) if frames.content().is_empty() => return Ok(()),
                Some(Kind::Data) => {}
                // It cannot go on reading.
                Some(Kind::Message) => {
                    return Err(match frames.parse()? {
                        Item::Failed { why } => CopyError::Sender(why),
                        _ => ProtoError::Unexpected.into(),
                    });
                }
                Some(Kind::Errors) => return Err(ProtoError::Unexpected.into()),
                None => return Err(ProtoError::Closed.into()),
            }
            self.copied.bytes += frames.content().len() as u64;
            self.take(frames.content().len() as u64)?;
            file.write_all(frames.content())
                .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        }
    }

    fn take(&mut self, bytes: u64) -> Result<(), CopyError> {
        self.taken = self.taken.saturating_add(bytes);
        match self.taken <= self.limits.bytes {
            true => Ok(()),
            false => Err(CopyError::TooMuch { most: self.limits.bytes, what: "bytes" }),
        }
    }

    /// Opens a folder that came: no link leads out of there, or anywhere.
    fn open(&self, place: &Path) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(self.work, place, flags, Mode::empty(), resolve)
    }

    fn own(&self, parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        match self.owner {
            Some((uid, gid)) => {
                rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            }
            None => Ok(()),
        }
    }

    /// Modes and times of folders, the innermost first.
    fn finish(&mut self) -> Result<(), CopyError> {
        for (place, mode, modified) in std::mem::take(&mut self.folders).into_iter().rev() {
            let failed = self.io_error(&place);
            let (parent, name) =
                (place.parent().unwrap_or(Path::new("")), place.file_name().unwrap_or_default());
            let parent = self.open(parent).map_err(&failed)?;
            utimensat(&parent, name, &times(modified), AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
            // It is a folder of our own making, so there is no link to be followed.
            rustix::fs::chmodat(&parent, name, mode, AtFlags::empty()).map_err(&failed)?;
        }
        Ok(())
    }
}

fn times(modified: i64) -> Timestamps {
    let time = Timespec { tv_sec: modified, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// A path below the top, or the top.
fn check(path: &str, first: bool) -> Result<&Path, CopyError> {
    let refuse = |why| Err(CopyError::Path { path: path.chars().take(200).collect(), why });
    if path.is_empty() != first {
        return refuse(if first { "the top comes first" } else { "the top comes once" });
    }
    if path.len() > MAX_PATH || path.contains('\0') {
        return refuse("no path is like that");
    }
    let mut depth = 0;
    for part in Path::new(path).components() {
        depth += 1;
        if !matches!(part, Component::Normal(_)) {
            return refuse("it leads elsewhere");
        }
    }
    // `a//b` and `a/.` are paths to Rust.
    if !first && path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse("it leads elsewhere");
    }
    match depth <= MAX_DEPTH {
        true => Ok(Path::new(path)),
        false => refuse("it is too deep"),
    }
}

#[cfg(test)]
mod tests;
