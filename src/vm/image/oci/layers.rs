//! Laying one layer over what is there: files, folders, links, and what takes something away from the layers below.
//!
//! ```text
//! dir/name          replaces what is there; a folder that is one already keeps what is in it
//! dir/.wh.name      takes dir/name of the layers below away
//! dir/.wh..wh..opq  takes all of dir away that the layers below put there; what this layer puts there stays, in any order
//! ```
//!
//! Devices and sockets are counted and left out: the guest has devtmpfs, and a socket is of a process.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use rustix::fs::FileType;

use super::{
    entries::{self, Entries, Entry, Kind, TarError},
    left::{self, Exceeded, Left},
    names::{Name, NameError, shown},
    stream::Source,
    tree::{Made, Meta, Place, Tree, TreeError},
};

/// Why a file of a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No guest's file has such a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A name that takes away what cannot be.
    #[error("its name begins with .wh., and says nothing that could be taken away")]
    Whiteout,
    /// The root is a folder.
    #[error("it is the root, and no folder")]
    Root,
    /// Ids of owners have 32 bits, and the last one is none.
    #[error("its owner or group is beyond what a guest has")]
    Owner,
    /// A hard link that leads nowhere.
    #[error("it is a hard link to {0:?}, which is no file here")]
    Link(String),
    /// What a hard link or symbolic link leads to.
    #[error("what it links to cannot be: {0}")]
    Target(NameError),
    /// A letter that no engine knows.
    #[error("it is of a kind that is not known: {0:?}")]
    Kind(char),
    /// It could not be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Why a layer is not taken.
#[derive(Debug)]
pub enum LayerError {
    /// It is no archive, or cannot be read.
    Stream(TarError),
    /// It is more than it may be.
    Exceeded(Exceeded),
    /// A file of it; its name, escaped.
    Entry(String, Refusal),
}

impl From<TarError> for LayerError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(source) => match Exceeded::of(&source) {
                Some(what) => Self::Exceeded(what),
                None => Self::Stream(TarError::Read(source)),
            },
            error => Self::Stream(error),
        }
    }
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        TarError::from(error).into()
    }
}

impl From<Exceeded> for LayerError {
    fn from(what: Exceeded) -> Self {
        Self::Exceeded(what)
    }
}

/// What was there, and what was left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Entries of all layers.
    pub entries: u64,
    /// Devices, left out.
    pub devices_left_out: u64,
    /// Sockets, left out.
    pub sockets_left_out: u64,
    /// Extended attributes that mean nothing in a guest, left out.
    pub attributes_left_out: u64,
    /// Files with extended attributes.
    #[serde(skip)]
    pub with_attributes: u64,
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Notes of the file system that whiteouts come from.
const NOTES: &[u8] = b".wh..wh.";

/// Lays a layer over the tree.
///
/// # Errors
/// [`LayerError`]; what was laid down until then stays, and the tree is of no use.
pub fn apply<R: Source>(
    tree: &Tree,
    entries: &mut Entries<R>,
    left: &Left,
    counts: &mut Counts,
) -> Result<(), LayerError> {
    let mut made = Made::default();
    while let Some(entry) = entries.next()? {
        left.entry()?;
        counts.entries += 1;
        counts.attributes_left_out += entry.left_out;
        let layer = Layer { tree, left, made: &mut made, counts: &mut *counts };
        match layer.lay(&entry, entries) {
            Ok(()) => {}
            Err(Failure::Stream(error)) => return Err(error.into()),
            Err(Failure::Entry(Refusal::Tree(TreeError::Exceeded(what)))) => return Err(what.into()),
            Err(Failure::Entry(refusal)) => return Err(LayerError::Entry(shown(&entry.name), refusal)),
        }
    }
    Ok(())
}

enum Failure {
    Stream(io::Error),
    Entry(Refusal),
}

impl<E: Into<Refusal>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Entry(error.into())
    }
}

struct Layer<'a> {
    tree: &'a Tree,
    left: &'a Left,
    made: &'a mut Made,
    counts: &'a mut Counts,
}

impl Layer<'_> {
    fn lay<R: Source>(self, entry: &Entry, entries: &mut Entries<R>) -> Result<(), Failure> {
        let name = Name::parse(&entry.name)?;
        let Some((folder, last)) = name.split_last() else {
            // What owns the root folder, and who may enter it, is the file system's own.
            return match entry.kind {
                Kind::Folder => Ok(()),
                _ => Err(Refusal::Root.into()),
            };
        };
        let is_note = |part: &[u8]| part.starts_with(NOTES) && part != OPAQUE;
        if folder.iter().any(|part| is_note(part)) || is_note(last) {
            return Ok(());
        }
        if folder.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(Refusal::Whiteout.into());
        }
        if let Some(hidden) = last.strip_prefix(WHITEOUT) {
            return Ok(self.hide(&name, folder, hidden)?);
        }
        let meta = meta(entry)?;
        let Some(place) = self.tree.place(&name, self.left)? else { return Ok(()) };
        let is_there = entry.kind == Kind::Folder && place.is_folder()?;
        if !is_there {
            // What came of the stream is counted there. It is less where files are small, and nothing at all of a hole.
            let more = takes(entry).saturating_sub(entries::takes(entry));
            self.left.bytes(more).map_err(TreeError::from)?;
        }
        if !entry.attributes.is_empty() {
            self.counts.with_attributes += 1;
        }
        match entry.kind {
            Kind::Folder if is_there => place.give(&meta)?,
            Kind::Folder => {
                place.remove()?;
                place.make_folder(&meta)?;
            }
            Kind::File => {
                place.remove()?;
                let pieces = entry.pieces.as_deref();
                place.make_file(&meta, |file| {
                    let mut content = entries.content();
                    match pieces {
                        None => write(file, &mut content, 0, entry.size)?,
                        Some(pieces) => {
                            for piece in pieces {
                                write(file, &mut content, piece.at, piece.length)?;
                            }
                        }
                    }
                    // Zeros at the end were not written.
                    file.set_len(entry.size).map_err(cannot_write)
                })?;
            }
            Kind::Symlink => {
                let target = Some(&entry.link).filter(|link| !link.is_empty() && !link.contains(&0));
                let target = target.ok_or(Refusal::Target(NameError::Empty))?;
                place.remove()?;
                place.make_symlink(target, &meta)?;
            }
            Kind::HardLink => self.link(entry, &place)?,
            Kind::Fifo => {
                place.remove()?;
                place.make_fifo(&meta)?;
            }
            Kind::Device => {
                self.counts.devices_left_out += 1;
                place.remove()?;
            }
            Kind::Socket => {
                self.counts.sockets_left_out += 1;
                place.remove()?;
            }
            Kind::Other(letter) => return Err(Refusal::Kind(letter.into()).into()),
        }
        self.made.note(&place);
        Ok(())
    }

    fn hide(self, name: &Name, folder: &[Vec<u8>], hidden: &[u8]) -> Result<(), Refusal> {
        if name.split_last().is_some_and(|(_, last)| last == OPAQUE) {
            return match self.tree.place_if_there(name)? {
                Some(place) => Ok(place.hide_siblings(self.made)?),
                None => Ok(()),
            };
        }
        let mut path = folder.join(&b'/');
        path.push(b'/');
        path.extend(hidden);
        // Parsed like any other: `.wh...` would be the folder above.
        let name = Name::parse(&path).map_err(|_| Refusal::Whiteout)?;
        if hidden.is_empty() || name.split_last().map(|(_, last)| last) != Some(hidden) {
            return Err(Refusal::Whiteout);
        }
        match self.tree.place_if_there(&name)? {
            Some(place) => Ok(place.hide(self.made)?),
            None => Ok(()),
        }
    }

    /// A second name for a file of this layer or one below. Owner and permissions are that file's.
    fn link(&self, entry: &Entry, place: &Place) -> Result<(), Refusal> {
        let nowhere = || Refusal::Link(shown(&entry.link));
        let target = Name::parse(&entry.link).map_err(Refusal::Target)?;
        let target = self.tree.place_if_there(&target)?.ok_or_else(nowhere)?;
        let stat = target.look()?.ok_or_else(nowhere)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(nowhere());
        }
        if place.look()?.is_some_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        place.remove()?;
        // It may have lain in what was removed.
        target.look()?.ok_or_else(nowhere)?;
        Ok(place.make_link(&target)?)
    }
}

/// What an entry takes of a disk; a second name of a file no more than its place in a folder.
fn takes(entry: &Entry) -> u64 {
    let attributes = if entry.attributes.is_empty() { 0 } else { left::BLOCK };
    let itself = match entry.kind {
        Kind::File => left::on_disk(entry.size),
        Kind::Folder => left::on_disk(left::BLOCK),
        // A short one lies in its inode.
        Kind::Symlink if entry.link.len() < 60 => left::on_disk(0),
        Kind::Symlink => left::on_disk(left::BLOCK),
        Kind::Fifo => left::on_disk(0),
        Kind::HardLink | Kind::Device | Kind::Socket | Kind::Other(_) => return 0,
    };
    itself.saturating_add(attributes)
}

fn meta(entry: &Entry) -> Result<Meta<'_>, Refusal> {
    let id = |id: u64| u32::try_from(id).ok().filter(|&id| id != u32::MAX).ok_or(Refusal::Owner);
    let (uid, gid) = (id(entry.uid)?, id(entry.gid)?);
    Ok(Meta { mode: entry.mode, uid, gid, mtime: entry.mtime, attributes: &entry.attributes })
}

fn cannot_write(source: io::Error) -> Failure {
    TreeError::Io { action: "write", source }.into()
}

const BLOCK: usize = 4096;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Writes so much content from there on. Blocks of zeros become holes.
fn write(file: &File, content: &mut impl Read, mut at: u64, length: u64) -> Result<(), Failure> {
    let mut buffer = [0; 16 * BLOCK];
    let end = at + length;
    while at < end {
        // Blocks of the buffer are blocks of the file.
        let until = (at - at % BLOCK as u64 + buffer.len() as u64).min(end);
        let part = &mut buffer[..(until - at) as usize];
        content.read_exact(part).map_err(Failure::Stream)?;
        let first = (BLOCK - (at % BLOCK as u64) as usize).min(part.len());
        let (head, rest) = part.split_at(first);
        let mut run: Option<(u64, usize)> = None;
        let mut from = 0;
        for block in std::iter::once(head).chain(rest.chunks(BLOCK)) {
            let is_hole = *block == ZEROS[..block.len()];
            match (&mut run, is_hole) {
                (None, false) => run = Some((at + from as u64, from)),
                (Some((start, begin)), true) => {
                    file.write_all_at(&part[*begin..from], *start).map_err(cannot_write)?;
                    run = None;
                }
                _ => {}
            }
            from += block.len();
        }
        if let Some((start, begin)) = run {
            file.write_all_at(&part[begin..], start).map_err(cannot_write)?;
        }
        at = until;
    }
    Ok(())
}
