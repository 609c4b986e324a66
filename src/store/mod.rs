//! The only writer of state files: versioned JSON, replaced atomically and durably, and locks that name their holder.
//!
//! A file is written beside its place, synced, renamed over it, and the folder is synced: a reader sees the old or the
//! new content, never a mixture, also after a crash. Locks are flock(2), so they die with their owner.

mod error;

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

pub use self::error::StoreError;
use crate::infra::{failpoint, processes, regular, relief, text::printable};

/// The schema version of a stored type: written as the number `N`, and nothing else is read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Schema<const N: u32>;

impl<const N: u32> Serialize for Schema<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(N)
    }
}

impl<'de, const N: u32> Deserialize<'de> for Schema<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            version if version == u64::from(N) => Ok(Self),
            version => Err(serde::de::Error::custom(format!("schema_version is {version}, not {N}"))),
        }
    }
}

/// The highest schema version that this mvm reads, of any file.
const KNOWN_SCHEMA: u32 = 1;

/// Reads a state file.
///
/// # Errors
/// [`StoreError::Missing`], [`StoreError::Newer`] and [`StoreError::Damaged`] are told apart; nothing is repaired silently.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    let bytes = match regular::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { path: path.to_path_buf() });
        }
        Err(source) => return Err(StoreError::io("read", path)(source)),
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        #[derive(Deserialize)]
        struct Version {
            schema_version: u64,
        }
        match serde_json::from_slice::<Version>(&bytes) {
            Ok(version) if version.schema_version > u64::from(KNOWN_SCHEMA) => StoreError::Newer {
                path: path.to_path_buf(),
                found: version.schema_version,
                known: KNOWN_SCHEMA,
            },
            _ => StoreError::Damaged { path: path.to_path_buf(), why: error.to_string() },
        }
    })
}

/// Like [`read`]; `None` where the file is not there.
///
/// # Errors
/// As [`read`], but for a missing file.
pub fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    match read(path) {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the file that its folder never is without.
///
/// # Errors
/// As [`read`]: [`StoreError::Missing`] where there is no such folder, [`StoreError::Damaged`] where there is one, and the file is gone.
pub fn read_own<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    read(path).map_err(|error| match error {
        StoreError::Missing { path } if path.parent().is_some_and(Path::is_dir) => {
            StoreError::Damaged { path, why: "it is gone, and its folder is there".to_owned() }
        }
        error => error,
    })
}

/// Is a write on disk before the call returns, or only ordered before the next durable one?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Synced, file and folder: survives a power cut.
    Durable,
    /// Atomic, but a power cut may bring the old content back.
    Atomic,
}

/// Replaces a state file, durably.
///
/// # Errors
/// The old content stays where anything fails.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    write_with(path, value, Durability::Durable)
}

/// Replaces a state file, as durably as is said.
///
/// # Errors
/// The old content stays where anything fails.
pub fn write_with<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::io("serialize", path)(io::Error::other(error)))?;
    bytes.push(b'\n');
    replace(path, &bytes, durability)
}

/// Replaces a file's content by these bytes. Mode 0600.
///
/// # Errors
/// The old content stays where anything fails.
pub fn replace(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let temporary = unfinished(path);
    let written = relief::retry(|| {
        let written = write_beside(path, &temporary, bytes);
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    });
    written.map_err(StoreError::io("write", path))?;
    if durability == Durability::Durable {
        sync_folder(folder)?;
    }
    failpoint::hit("write", "after-rename").map_err(StoreError::io("write", path))
}

/// Writes and syncs a file, and gives it its name.
fn write_beside(path: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create(temporary)?;
    // In two parts, so that a test can stop between them: a torn temporary file must never count.
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    file.write_all(first)?;
    failpoint::hit("write", "torn")?;
    file.write_all(rest)?;
    // A name that leads to an empty file would be worse than the old content.
    file.sync_data()?;
    failpoint::hit("write", "before-rename")?;
    fs::rename(temporary, path)
}

/// Makes a folder's entries durable.
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("sync", folder))
}

/// Makes an empty file, 0600, in place of what is there.
///
/// # Errors
/// When the operating system refuses.
pub fn create_file(path: &Path) -> Result<File, StoreError> {
    relief::retry(|| create(path)).map_err(StoreError::io("create", path))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Makes a folder and those above it, 0700, where they are missing.
///
/// # Errors
/// When the operating system refuses.
pub fn make_folder(path: &Path) -> Result<(), StoreError> {
    let make = || fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    relief::retry(make).map_err(StoreError::io("create", path))
}

/// Gives something its place; what was there is where it was before, and at no moment is the place empty. Where the file system
/// cannot do that, it is removed first.
///
/// # Errors
/// When the operating system refuses.
pub fn exchange(new: &Path, place: &Path) -> Result<(), StoreError> {
    match renameat_with(CWD, new, CWD, place, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT) => rename(new, place),
        Err(Errno::INVAL | Errno::NOSYS) => {
            remove_folder(place)?;
            rename(new, place)
        }
        exchanged => exchanged.map_err(|errno| StoreError::io("rename", new)(errno.into())),
    }
}

/// Gives a file or folder another name, in place of what has that name.
///
/// # Errors
/// When the operating system refuses.
pub fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    relief::retry(|| fs::rename(from, to)).map_err(StoreError::io("rename", from))
}

/// Removes a folder with all in it; it is well when there is none.
///
/// # Errors
/// When the operating system refuses.
pub fn remove_folder(path: &Path) -> Result<(), StoreError> {
    gone(fs::remove_dir_all(path)).map_err(StoreError::io("remove", path))
}

/// Removes a file; it is well when there is none.
///
/// # Errors
/// When the operating system refuses.
pub fn remove_file(path: &Path) -> Result<(), StoreError> {
    gone(fs::remove_file(path)).map_err(StoreError::io("remove", path))
}

/// Removes a file whose content must not be found any more: it is overwritten where it lies and synced before it goes. What a file
/// system or a disk has kept elsewhere of it is not reached. It is well when there is none; after a kill it can be done again.
///
/// # Errors
/// When the operating system refuses.
pub fn shred(path: &Path) -> Result<(), StoreError> {
    let overwrite = || {
        let mut file = OpenOptions::new().write(true).open(path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(1 << 20);
        file.write_all(&vec![0; length])?;
        file.sync_all()?;
        failpoint::hit("shred", "overwritten")
    };
    gone(overwrite()).map_err(StoreError::io("overwrite", path))?;
    remove_file(path)?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Where something is made, whole, before it is renamed to `path`: beside it, under a name that tells [`sweep`] whose it
/// is.
pub fn unfinished(path: &Path) -> PathBuf {
    hidden(path, NEW)
}

const NEW: &str = ".new-";
const GONE: &str = ".gone-";

fn hidden(path: &Path, mark: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{mark}{name}.{}", std::process::id()))
}

/// Takes a folder away at once, by renaming it to a hidden name, and then removes it. What a kill leaves behind in
/// between is removed by [`sweep`].
///
/// # Errors
/// When the operating system refuses.
pub fn vanish(path: &Path) -> Result<(), StoreError> {
    let hidden = hidden(path, GONE);
    gone(relief::retry(|| fs::rename(path, &hidden))).map_err(StoreError::io("rename", path))?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))?;
    failpoint::hit("vanish", "hidden").map_err(StoreError::io("remove", path))?;
    remove_folder(&hidden)
}

/// What processes that are no more left unfinished in a folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn leftovers(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let is_left = |name: &str| {
        let owner = name.rsplit_once('.').and_then(|(_, pid)| pid.parse().ok());
        [NEW, GONE].iter().any(|mark| name.starts_with(mark)) && !owner.is_some_and(is_alive)
    };
    Ok(names(folder, is_left)?.into_iter().map(|name| folder.join(name)).collect())
}

/// Removes what is unfinished: a file, or a folder with all in it.
///
/// # Errors
/// When the operating system refuses.
pub fn remove_leftover(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() && !path.is_symlink() { remove_folder(path) } else { remove_file(path) }
}

/// Removes what processes that are no more left unfinished in a folder. Returns how many such things there were.
///
/// # Errors
/// When the operating system refuses.
pub fn sweep(folder: &Path) -> Result<usize, StoreError> {
    let left = leftovers(folder)?;
    left.iter().try_for_each(|path| remove_leftover(path))?;
    Ok(left.len())
}

/// Is there a process of that number? One that was given a dead one's number keeps that one's leftovers, for a while.
pub fn is_alive(pid: u32) -> bool {
    processes::birth(pid).is_some()
}

/// The sorted names in a folder that `wanted` accepts; none where the folder does not exist.
///
/// # Errors
/// When it cannot be read.
pub fn names(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StoreError::io("list", folder)(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", folder))?;
        if let Ok(name) = entry.file_name().into_string()
            && wanted(&name)
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A lock that is held until it is dropped or its process ends.
#[derive(Debug)]
pub struct Lock {
    /// Closing it lets go.
    _file: File,
    path: PathBuf,
}

/// With whom a lock may be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// With nobody.
    Exclusive,
    /// With others who only read.
    Shared,
}

impl Lock {
    /// Takes the lock in `path`, waiting at most `timeout`; `what` is what it guards, for the error text.
    ///
    /// # Errors
    /// [`StoreError::Locked`] names the holder.
    pub fn take(path: &Path, what: &str, sharing: Sharing, timeout: Duration) -> Result<Self, StoreError> {
        let start = Instant::now();
        // flock has no time limit of its own: ask again, at first soon, and less often the longer it takes.
        let mut pause = Duration::from_micros(200);
        loop {
            let file = open_lock(path)?;
            let tried = match sharing {
                Sharing::Exclusive => file.try_lock(),
                Sharing::Shared => file.try_lock_shared(),
            };
            match tried {
                // The holder before may have removed the file under the lock: then this is a lock on nothing.
                Ok(()) if is_same_file(&file, path) => {
                    return Ok(Self { _file: file, path: path.to_path_buf() });
                }
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", path)(source)),
            }
            let waited = start.elapsed();
            if waited >= timeout {
                return Err(StoreError::Locked { what: what.to_owned(), holder: holder(path), waited });
            }
            std::thread::sleep(pause.min(timeout - waited));
            // Most locks are held for less than a millisecond: who asks every 20 ms from the beginning waits for nothing.
            let longest = if waited < Duration::from_millis(500) { 2 } else { 20 };
            pause = (pause * 2).min(Duration::from_millis(longest));
        }
    }

    /// Takes the lock if it is free; `None` if somebody holds it.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn try_take(path: &Path) -> Result<Option<Self>, StoreError> {
        match Self::take(path, "", Sharing::Exclusive, Duration::ZERO) {
            Ok(lock) => Ok(Some(lock)),
            Err(StoreError::Locked { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the lock's file: what it guarded is gone. Whoever waits for it finds out and takes a new one.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn open_lock(path: &Path) -> Result<File, StoreError> {
    let open =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    match relief::retry(open) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                make_folder(folder)?;
            }
            relief::retry(open)
        }
        other => other,
    }
    .map_err(StoreError::io("open", path))
}

fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Who holds a lock, as the kernel tells. Nothing is written for that: a lock is taken far more often than somebody waits for
/// it in vain.
fn holder(path: &Path) -> String {
    // The kernel names files without symbolic links.
    let path = fs::canonicalize(path).unwrap_or_default();
    let inode = fs::metadata(&path).map_or(0, |meta| meta.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let has_it_open = |pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|one| fs::read_link(one.path()).is_ok_and(|file| file == path))
    };
    let pid = locks.lines().filter_map(|line| flock_on(line, inode)).find(has_it_open);
    let Some(pid) = pid else { return "another process".to_owned() };
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command.split(|&byte| byte == 0).take(4).map(String::from_utf8_lossy).collect();
    format!("pid {pid} ({})", printable(words.join(" ").trim(), 200))
}

/// The pid of a line of `/proc/locks` that is about this inode: `1: FLOCK  ADVISORY  WRITE 1234 08:01:131090 0 EOF`.
fn flock_on(line: &str, inode: u64) -> Option<u32> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None };
    let (_, is) = file.rsplit_once(':')?;
    pid.parse().ok().filter(|_| is.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    struct Thing {
        schema_version: Schema<1>,
        name: String,
    }

    fn thing() -> Thing {
        Thing { schema_version: Schema, name: "a".into() }
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thing.json");
        write(&path, &thing()).unwrap();
        assert_eq!(read::<Thing>(&path).unwrap(), thing());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path(), |_| true).unwrap(), ["thing.json"]);
    }

    #[test]
    fn missing_damaged_and_newer_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thing.json");
        assert!(matches!(read::<Thing>(&path), Err(StoreError::Missing { .. })));
        for damaged in ["", "{", "{\"name\":\"a\"}", "{\"schema_version\":0,\"name\":\"a\"}", "\0\0\0\0"] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(read::<Thing>(&path), Err(StoreError::Damaged { .. })), "{damaged:?}");
        }
        fs::write(&path, "{\"schema_version\":2,\"nom\":\"a\"}").unwrap();
        assert!(matches!(read::<Thing>(&path), Err(StoreError::Newer { found: 2, known: 1, .. })));
    }

    #[test]
    fn a_lock_that_is_held_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks/x");
        let held = Lock::take(&path, "x", Sharing::Exclusive, Duration::ZERO).unwrap();
        let error = Lock::take(&path, "tenant acme", Sharing::Shared, Duration::from_millis(1)).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("tenant acme is locked by pid {}", std::process::id())), "{text}");
        drop(held);
        assert!(Lock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn the_kernels_line_of_a_lock_is_read() {
        let line = "5: FLOCK  ADVISORY  WRITE 3451 fe:00:1310904 0 EOF";
        assert_eq!(flock_on(line, 1_310_904), Some(3451));
        assert_eq!(flock_on(line, 1_310_905), None);
        for other in [
            "",
            "5: POSIX  ADVISORY  WRITE 3451 fe:00:1310904 0 EOF",
            "5: -> FLOCK ADVISORY WRITE 1 0:0:1 0 EOF",
        ] {
            assert_eq!(flock_on(other, 1_310_904), None);
        }
    }

    #[test]
    fn readers_share_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let _one = Lock::take(&path, "x", Sharing::Shared, Duration::ZERO).unwrap();
        let _two = Lock::take(&path, "x", Sharing::Shared, Duration::ZERO).unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        Lock::take(&path, "x", Sharing::Exclusive, Duration::ZERO).unwrap().remove();
        assert!(!path.exists());
        let lock = Lock::take(&path, "x", Sharing::Exclusive, Duration::ZERO).unwrap();
        assert!(path.exists() && Lock::try_take(&path).unwrap().is_none());
        drop(lock);
    }

    #[test]
    fn a_vanished_folder_leaves_nothing_and_a_sweep_finds_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        vanish(&dir.path().join("a")).unwrap();
        vanish(&dir.path().join("a")).unwrap();
        assert!(names(dir.path(), |_| true).unwrap().is_empty());
        // No process has such a number.
        fs::create_dir(dir.path().join(".gone-b.4194305")).unwrap();
        fs::write(dir.path().join(".new-c.json.4194305"), "").unwrap();
        let own = unfinished(&dir.path().join("d"));
        fs::write(&own, "").unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 2);
        assert!(own.exists(), "who lives is still at it");
    }
}
