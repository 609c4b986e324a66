//! The tree that an image is unpacked to, and the only way into it.
//!
//! Everything goes by descriptors of folders. A folder is opened beneath the tree's root without following any link
//! (`openat2`: beneath, no symbolic links, no other mount), and what is done in it is done to one name that is neither `.` nor
//! `..` and has no `/`, without following it. So no text of an image is ever a path that the kernel resolves outside.
//!
//! A link on the way to a file is followed by hand, inside the tree: what is absolute begins at the tree's root, `..` ends
//! there. That is how the engines read layers, and how the guest would see it. The last part of a name is never followed.
//!
//! What is made changes the time of the folder that it lies in; that is put back each time, so that a folder has the time that
//! its entry says, in whichever order the archive has them.

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT,
        Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr, fstat, futimens, linkat, mkdirat,
        mkfifoat, openat, openat2, readlinkat, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    left::{BLOCK, Exceeded, Left},
    limits::{MAX_DEPTH, MAX_HOPS, MAX_PATH, MAX_STEPS},
    names::Name,
    pax::Attribute,
};
use crate::{infra::sparse, vm::image::ext4};

/// Why something could not be done in the tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// Links that lead to one another.
    #[error("more than {MAX_HOPS} symbolic links are on the way to it")]
    Loop,
    /// A file where a folder would have to be.
    #[error("something on the way to it is no folder")]
    NotAFolder,
    /// Links that lead into each other's depths.
    #[error("what is on the way to it leads deeper than {MAX_DEPTH} folders or {MAX_PATH} bytes")]
    Deep,
    /// Links that lead back and forth.
    #[error("links on the way to it lead over more than {MAX_STEPS} folders")]
    Long,
    /// What it needs, such as the folders on the way to it, is more than it may be.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// More names than mke2fs takes in any time.
    #[error("a folder of it has more than {0} names")]
    Wide(u64),
    /// The operating system refused.
    #[error("cannot {action} it")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn io(action: &'static str) -> impl FnOnce(Errno) -> TreeError {
    move |errno| TreeError::Io { action, source: errno.into() }
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Owner, permissions and time of a file.
#[derive(Debug, Clone, Copy)]
pub struct Meta<'a> {
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// When its content was changed, in seconds.
    pub mtime: i64,
    /// Extended attributes; only of files and folders.
    pub attributes: &'a [Attribute],
}

impl Meta<'_> {
    /// What nobody said anything about.
    pub fn plain(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: ext4::TIME.into(), attributes: &[] }
    }

    fn times(&self) -> Timestamps {
        let time = |seconds| Timespec { tv_sec: seconds, tv_nsec: 0 };
        // As far as every ext4 counts.
        Timestamps {
            last_access: time(ext4::TIME.into()),
            last_modification: time(self.mtime.clamp(0, i32::MAX.into())),
        }
    }

    /// Gives them to what is open. The owner comes first: a change of it takes setuid bits and capabilities away.
    fn give(&self, file: BorrowedFd) -> Result<(), TreeError> {
        fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
            .map_err(io("change the owner of"))?;
        for (name, value) in self.attributes {
            fsetxattr(file, name.as_slice(), value, XattrFlags::empty())
                .map_err(io("give an extended attribute to"))?;
        }
        fchmod(file, Mode::from_raw_mode(self.mode)).map_err(io("change the permissions of"))?;
        futimens(file, &self.times()).map_err(io("change the time of"))
    }
}

/// The tree.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    root: OwnedFd,
}

/// A folder that is open, and where it is, without links.
type Reached = (OwnedFd, Vec<Vec<u8>>);

/// A name in a folder of the tree. The folder is there; the name need not be.
#[derive(Debug)]
pub struct Place {
    folder: OwnedFd,
    /// Where the folder is, without links.
    real: Vec<Vec<u8>>,
    name: Vec<u8>,
}

impl Tree {
    /// Makes an empty tree. The folder around it must be nobody else's: nothing is safe from who changes it meanwhile.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn make(path: &Path) -> Result<Self, TreeError> {
        mkdirat(CWD, path, Mode::from_raw_mode(0o700)).map_err(io("make"))?;
        let root = openat(CWD, path, FOLDER, Mode::empty()).map_err(io("open"))?;
        Meta::plain(0o755).give(root.as_fd())?;
        Ok(Self { path: path.to_path_buf(), root })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, real: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        match real.is_empty() {
            true => openat2(&self.root, c".", FOLDER, Mode::empty(), BENEATH),
            false => openat2(&self.root, real.join(&b'/'), FOLDER, Mode::empty(), BENEATH),
        }
    }

    /// The place of a name; `None` for the root itself. Folders on the way are made where they are missing, and taken from what
    /// is left.
    ///
    /// # Errors
    /// When no folder can be there, or none is left.
    pub fn place(&self, name: &Name, left: &Left) -> Result<Option<Place>, TreeError> {
        self.find(name, Some(left))
    }

    /// The place of a name; `None` where the folder is not there.
    ///
    /// # Errors
    /// When no folder can be there.
    pub fn place_if_there(&self, name: &Name) -> Result<Option<Place>, TreeError> {
        self.find(name, None)
    }

    /// Makes a folder and those on the way to it, where they are missing. A link leads to where it leads, its last part too.
    ///
    /// # Errors
    /// When no folder can be there, or none is left.
    pub fn make_folders(&self, name: &Name, left: &Left) -> Result<(), TreeError> {
        self.walk(name.parts(), Some(left)).map(drop)
    }

    fn find(&self, name: &Name, make: Option<&Left>) -> Result<Option<Place>, TreeError> {
        let Some((folder, last)) = name.split_last() else { return Ok(None) };
        let found = match self.open(folder) {
            Ok(open) => Some((open, folder.to_vec())),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.walk(folder, make)?,
            Err(errno) => return Err(io("open the folder of")(errno)),
        };
        Ok(found.map(|(folder, real)| Place { folder, real, name: last.to_vec() }))
    }

    /// Goes to a folder part by part, through links. `None` where it is not there.
    fn walk(&self, folder: &[Vec<u8>], make: Option<&Left>) -> Result<Option<Reached>, TreeError> {
        let mut ahead: VecDeque<Vec<u8>> = folder.iter().cloned().collect();
        let root = self.open(&[]).map_err(io("open"))?;
        // All folders on the way stay open, so that each step is one, however deep it is.
        let mut way: Vec<(OwnedFd, Vec<u8>)> = Vec::new();
        let (mut bytes, mut hops) = (0, 0);
        for steps in 0.. {
            let Some(part) = ahead.pop_front() else { break };
            if steps == MAX_STEPS {
                return Err(TreeError::Long);
            }
            if part == b".." {
                bytes -= way.pop().map_or(0, |(_, name)| name.len() + 1);
                continue;
            }
            let at = way.last().map_or(root.as_fd(), |(folder, _)| folder.as_fd());
            let folder = match statat(at, part.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => step(at, &part)?,
                    FileType::Symlink => {
                        hops += 1;
                        if hops > MAX_HOPS {
                            return Err(TreeError::Loop);
                        }
                        let target = readlinkat(at, part.as_slice(), Vec::new())
                            .map_err(io("read a link on the way to"))?;
                        let target = target.into_bytes();
                        if target.starts_with(b"/") {
                            way.clear();
                            bytes = 0;
                        }
                        let parts = target.split(|&byte| byte == b'/');
                        for part in parts.rev().filter(|part| !part.is_empty() && *part != b".") {
                            ahead.push_front(part.to_vec());
                        }
                        continue;
                    }
                    _ => return Err(TreeError::NotAFolder),
                },
                Err(Errno::NOENT) => match make {
                    Some(left) => {
                        left.folder()?;
                        make_folder(at, &part, &Meta::plain(0o755))?
                    }
                    None => return Ok(None),
                },
                Err(errno) => return Err(io("look for")(errno)),
            };
            bytes += part.len() + 1;
            way.push((folder, part));
            if way.len() > MAX_DEPTH || bytes > MAX_PATH {
                return Err(TreeError::Deep);
            }
        }
        let (mut folders, real): (Vec<OwnedFd>, Vec<_>) = way.into_iter().unzip();
        Ok(Some((folders.pop().unwrap_or(root), real)))
    }

    /// What a file system needs that holds all of it.
    ///
    /// # Errors
    /// When it cannot be looked at, or a folder has more names than `widest`.
    pub fn measure(&self, widest: u64) -> Result<Size, TreeError> {
        let mut measured = Measured { size: Size::default(), linked: HashSet::new(), widest };
        measure(self.open(&[]).map_err(io("open"))?, &mut measured)?;
        Ok(measured.size)
    }
}

/// Does something in a folder, and gives it the time back that it had.
fn keeping_time<T>(folder: BorrowedFd, work: impl FnOnce() -> Result<T, TreeError>) -> Result<T, TreeError> {
    let before = fstat(folder).map_err(io("look at the folder of"))?;
    let done = work()?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec as _ },
    };
    futimens(folder, &times).map_err(io("change the time of the folder of"))?;
    Ok(done)
}

/// Opens one folder that lies in another one.
fn step(folder: BorrowedFd, name: &[u8]) -> Result<OwnedFd, TreeError> {
    openat2(folder, name, FOLDER, Mode::empty(), BENEATH).map_err(io("open"))
}

fn make_folder(folder: BorrowedFd, name: &[u8], meta: &Meta) -> Result<OwnedFd, TreeError> {
    keeping_time(folder, || mkdirat(folder, name, Mode::from_raw_mode(0o700)).map_err(io("make")))?;
    let made = step(folder, name)?;
    meta.give(made.as_fd())?;
    Ok(made)
}

impl Place {
    /// Where it is, without links: its folder and its name.
    pub fn real(&self) -> (&[Vec<u8>], &[u8]) {
        (&self.real, &self.name)
    }

    /// What is there, if something is.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn look(&self) -> Result<Option<Stat>, TreeError> {
        match statat(&self.folder, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(io("look at")(errno)),
        }
    }

    /// Is a folder there?
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn is_folder(&self) -> Result<bool, TreeError> {
        let stat = self.look()?;
        Ok(stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory))
    }

    fn make<T>(&self, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, TreeError> {
        keeping_time(self.folder.as_fd(), || work().map_err(io("make")))
    }

    /// Makes a folder. Nothing may be there.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn make_folder(&self, meta: &Meta) -> Result<(), TreeError> {
        make_folder(self.folder.as_fd(), &self.name, meta).map(drop)
    }

    /// Gives a folder that is there owner, permissions and time.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn give(&self, meta: &Meta) -> Result<(), TreeError> {
        meta.give(step(self.folder.as_fd(), &self.name)?.as_fd())
    }

    /// Makes a file, lets it be written, and gives it what belongs to it. Nothing may be there.
    ///
    /// # Errors
    /// When the operating system refuses, or what was to be written could not be.
    pub fn make_file<E: From<TreeError>>(
        &self,
        meta: &Meta,
        write: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<(), E> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            self.make(|| openat(&self.folder, self.name.as_slice(), flags, Mode::from_raw_mode(0o600)))?;
        let file = File::from(file);
        write(&file)?;
        Ok(meta.give(file.as_fd())?)
    }

    /// Makes a symbolic link, to whatever it says. Nothing may be there.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn make_symlink(&self, to: &[u8], meta: &Meta) -> Result<(), TreeError> {
        self.make(|| symlinkat(to, &self.folder, self.name.as_slice()))?;
        self.give_by_name(meta)
    }

    /// Makes a named pipe. Nothing may be there.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn make_fifo(&self, meta: &Meta) -> Result<(), TreeError> {
        let name = self.name.as_slice();
        self.make(|| mkfifoat(&self.folder, name, Mode::from_raw_mode(0o600)))?;
        self.give_by_name(meta)?;
        // It was made here just now, and is no link.
        chmodat(&self.folder, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
            .map_err(io("change the permissions of"))
    }

    /// Owner and time of what is not opened.
    fn give_by_name(&self, meta: &Meta) -> Result<(), TreeError> {
        let (name, itself) = (self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
        chownat(&self.folder, name, uid, gid, itself).map_err(io("change the owner of"))?;
        utimensat(&self.folder, name, &meta.times(), itself).map_err(io("change the time of"))
    }

    /// Gives what is at another place a second name here. Nothing may be here.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn make_link(&self, to: &Self) -> Result<(), TreeError> {
        let (from, name) = (to.name.as_slice(), self.name.as_slice());
        self.make(|| linkat(&to.folder, from, &self.folder, name, AtFlags::empty()))
    }

    /// Removes what is there, a folder with all in it; it is well when there is nothing.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn remove(&self) -> Result<(), TreeError> {
        // Most of what is laid down is new.
        if self.look()?.is_none() {
            return Ok(());
        }
        keeping_time(self.folder.as_fd(), || remove(self.folder.as_fd(), &self.name))
    }

    /// Removes what is there from the layers below: all of it, but for what this layer put there.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn hide(&self, made: &mut Made) -> Result<(), TreeError> {
        let mut path = self.real.clone();
        keeping_time(self.folder.as_fd(), || hide(self.folder.as_fd(), &mut path, &self.name, made))
    }

    /// Removes what is in the folder of this place from the layers below. Its own name is not looked at.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn hide_siblings(&self, made: &mut Made) -> Result<(), TreeError> {
        let folder = openat2(&self.folder, c".", FOLDER, Mode::empty(), BENEATH).map_err(io("open"))?;
        hide_all_in(folder, &mut self.real.clone(), made)
    }
}

/// Where one layer put something: also the folders that it lies in. Only hashes are kept, with a key of their own.
#[derive(Debug, Default)]
pub struct Made {
    key: RandomState,
    paths: HashSet<u64>,
    /// Folders in which nothing is left of the layers below: nothing of those comes back, so each is gone through once,
    /// however often the layer says that it hides something.
    gone_through: HashSet<u64>,
}

impl Made {
    /// Notes a place, and every folder above it.
    pub fn note(&mut self, place: &Place) {
        let (folder, name) = place.real();
        let path = join(folder, name);
        let mut end = path.len();
        while self.paths.insert(self.key.hash_one(&path[..end])) {
            match path[..end].iter().rposition(|&byte| byte == b'/') {
                Some(slash) => end = slash,
                None => break,
            }
        }
    }

    /// Is this the first time that somebody goes through the folder?
    fn goes_through(&mut self, folder: &[Vec<u8>]) -> bool {
        self.gone_through.insert(self.key.hash_one(folder.join(&b'/').as_slice()))
    }

    fn has(&self, folder: &[Vec<u8>], name: &[u8]) -> bool {
        self.paths.contains(&self.key.hash_one(join(folder, name).as_slice()))
    }
}

fn join(folder: &[Vec<u8>], name: &[u8]) -> Vec<u8> {
    let mut path = folder.join(&b'/');
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend(name);
    path
}

fn hide(folder: BorrowedFd, path: &mut Vec<Vec<u8>>, name: &[u8], made: &mut Made) -> Result<(), TreeError> {
    if !made.has(path, name) {
        return remove(folder, name);
    }
    match openat2(folder, name, FOLDER, Mode::empty(), BENEATH) {
        Ok(inner) => {
            path.push(name.to_vec());
            let hidden = hide_all_in(inner, path, made);
            path.pop();
            hidden
        }
        // A file that this layer put there.
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => Ok(()),
        Err(errno) => Err(io("open")(errno)),
    }
}

fn hide_all_in(folder: OwnedFd, path: &mut Vec<Vec<u8>>, made: &mut Made) -> Result<(), TreeError> {
    if !made.goes_through(path) {
        return Ok(());
    }
    let mut dir = Dir::new(folder).map_err(io("list"))?;
    let before = dir.stat().map_err(io("look at"))?;
    while let Some(entry) = dir.read() {
        let entry = entry.map_err(io("list"))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            hide(dir.fd().map_err(io("list"))?, path, name, made)?;
        }
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: before.st_mtime, tv_nsec: before.st_mtime_nsec as _ },
    };
    futimens(dir.fd().map_err(io("list"))?, &times).map_err(io("change the time of"))
}

/// Removes a name of a folder, with all in it.
fn remove(folder: BorrowedFd, name: &[u8]) -> Result<(), TreeError> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(io("remove")(errno)),
    }
    let inner = openat2(folder, name, FOLDER, Mode::empty(), BENEATH).map_err(io("open"))?;
    let mut dir = Dir::new(inner).map_err(io("list"))?;
    while let Some(entry) = dir.read() {
        let entry = entry.map_err(io("list"))?;
        let inner = entry.file_name().to_bytes();
        if inner != b"." && inner != b".." {
            remove(dir.fd().map_err(io("list"))?, inner)?;
        }
    }
    unlinkat(folder, name, AtFlags::REMOVEDIR).map_err(io("remove"))
}

/// What a tree takes as an ext4 with blocks of 4 KiB, without what the file system has of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Files, folders, links.
    pub inodes: u64,
    /// Blocks of 4 KiB.
    pub blocks: u64,
}

struct Measured {
    size: Size,
    /// Files with several names, of which one was met.
    linked: HashSet<u64>,
    widest: u64,
}

fn measure(folder: OwnedFd, measured: &mut Measured) -> Result<(), TreeError> {
    let mut dir = Dir::new(folder).map_err(io("list"))?;
    let (mut names, mut bytes) = (0, 0);
    measured.size.inodes += 1;
    while let Some(entry) = dir.read() {
        let entry = entry.map_err(io("list"))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        names += 1;
        bytes += 8 + (name.to_bytes().len() as u64).next_multiple_of(4);
        if names > measured.widest {
            return Err(TreeError::Wide(measured.widest));
        }
        let at = dir.fd().map_err(io("list"))?;
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io("look at"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = openat2(at, name, FOLDER, Mode::empty(), BENEATH).map_err(io("open"))?;
                measure(inner, measured)?;
                continue;
            }
            // Counted where its first name is found.
            _ if stat.st_nlink > 1 && !measured.linked.insert(stat.st_ino) => continue,
            FileType::RegularFile => measured.size.blocks += blocks_of(at, name, &stat)?,
            // A short one lies in its inode.
            FileType::Symlink if stat.st_size >= 60 => measured.size.blocks += 1,
            _ => {}
        }
        measured.size.inodes += 1;
    }
    // A folder's blocks are not filled to the last byte.
    measured.size.blocks += 1 + bytes.div_ceil(BLOCK * 3 / 4);
    Ok(())
}

/// The blocks of a file that are no holes. What the file system here says of that may be about packed blocks.
fn blocks_of(folder: BorrowedFd, name: &std::ffi::CStr, stat: &Stat) -> Result<u64, TreeError> {
    let size = stat.st_size.cast_unsigned();
    if (stat.st_blocks.cast_unsigned()).saturating_mul(512) >= size {
        return Ok(size.div_ceil(BLOCK));
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(folder, name, flags, Mode::empty()).map_err(io("open"))?);
    let data = sparse::data(&file).map_err(|source| TreeError::Io { action: "look at", source })?;
    Ok(data.into_iter().map(|part| part.end.div_ceil(BLOCK) - part.start / BLOCK).sum())
}
