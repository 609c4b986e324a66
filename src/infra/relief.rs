//! Space on the disk that is set aside for what has to be written when there is none left: the records of a stop, a sleep and
//! a destroy, which are what makes room again.
//!
//! It lies in pieces under `MVM_ROOT/relief/`. Whoever makes something new [sets it aside](set_aside) first and is refused
//! where that cannot be; who relieves the disk [may take](allow) of it, a piece for each write that meets a full disk. Guests
//! and VMMs write to the same file system: a piece at a time leaves them little to snatch.

use std::{
    cell::RefCell,
    fs,
    io::{self, Write},
    marker::PhantomData,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::{fs::FallocateFlags, io::Errno};

/// Pieces that there are.
const PIECES: u64 = 32;

/// The size of one, in bytes.
const PIECE: u64 = 64 << 10;

/// What [`make_room`] may take of them: the rest is for the records.
const FOR_OTHERS: u64 = 24;

thread_local! {
    static FOLDER: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// As long as it lives, writes of this thread may take of what is set aside.
#[must_use]
pub struct Allowed {
    before: Option<PathBuf>,
    /// It belongs to its thread.
    _thread: PhantomData<*const ()>,
}

impl Drop for Allowed {
    fn drop(&mut self) {
        FOLDER.set(self.before.take());
    }
}

/// `MVM_ROOT/relief`.
pub fn folder(root: &Path) -> PathBuf {
    root.join("relief")
}

/// What follows on this thread relieves the disk, and may take of what is set aside under `root`.
pub fn allow(root: &Path) -> Allowed {
    Allowed { before: FOLDER.replace(Some(folder(root))), _thread: PhantomData }
}

/// Carries out a write; where the disk is full and this thread is [allowed](allow) to, a piece is given back and the write is
/// carried out again. It must leave nothing behind where it fails.
///
/// # Errors
/// Those of the write.
pub fn retry<T>(mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match write() {
            Err(error) if is_full(&error) && give_back() => {}
            other => return other,
        }
    }
}

/// Gives back what is missing for somebody else's write, a VMM's, that cannot be carried out twice. Not all of it: the records
/// of what follows need some.
pub fn make_room() {
    let missing = FOLDER.with_borrow(|folder| {
        let free = rustix::fs::statvfs(folder.as_ref()?).ok().map(|stat| stat.f_bavail * stat.f_frsize)?;
        Some((FOR_OTHERS * PIECE).saturating_sub(free))
    });
    for _ in 0..missing.unwrap_or(0).div_ceil(PIECE) {
        if !give_back() {
            return;
        }
    }
}

/// Is it for want of space?
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Gives a piece back, if there is one. Of several who take the same, one has it.
fn give_back() -> bool {
    let Some(folder) = FOLDER.with_borrow(Clone::clone) else { return false };
    let pieces = fs::read_dir(folder).into_iter().flatten().flatten();
    pieces.map(|piece| fs::remove_file(piece.path())).any(|removed| removed.is_ok())
}

/// Sets aside what is missing of it.
///
/// # Errors
/// When the disk is too full, or the folder cannot be written.
pub fn set_aside(root: &Path) -> io::Result<()> {
    let folder = folder(root);
    let is_there = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|meta| meta.len() == PIECE);
    let there = fs::read_dir(&folder).map_or(0, |pieces| pieces.flatten().filter(is_there).count() as u64);
    if there >= PIECES {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    for number in 0..PIECES {
        make_piece(&folder.join(number.to_string()))?;
    }
    Ok(())
}

/// One that was cut off is shorter, and made whole by the next one who asks for it.
fn make_piece(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() == PIECE) {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let made = match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, PIECE) {
        // A file system that cannot: its blocks are taken by what is written.
        Err(Errno::OPNOTSUPP) => file.write_all(&[0; PIECE as usize]),
        made => made.map_err(Into::into),
    };
    made.inspect_err(|_| {
        // What was not had in whole is not kept from others.
        let _ = fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn pieces(root: &Path) -> usize {
        fs::read_dir(folder(root)).map_or(0, Iterator::count)
    }

    fn full() -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    #[test]
    fn a_full_disk_costs_a_piece_for_each_try_of_who_may_take_one() {
        let dir = tempfile::tempdir().unwrap();
        set_aside(dir.path()).unwrap();
        assert_eq!(pieces(dir.path()), 32);
        let mut tries = 0;
        let mut third = || {
            tries += 1;
            if tries % 3 == 0 { Ok(()) } else { full() }
        };
        assert!(retry(&mut third).is_err(), "nobody allowed it");
        assert_eq!(pieces(dir.path()), 32);
        let allowed = allow(dir.path());
        retry(&mut third).unwrap();
        assert_eq!(pieces(dir.path()), 31);
        assert!(retry(|| Err::<(), _>(io::Error::other("something else"))).is_err());
        assert_eq!(pieces(dir.path()), 31);
        drop(allowed);
        assert!(retry(full).is_err());
        assert_eq!(pieces(dir.path()), 31);
        set_aside(dir.path()).unwrap();
        assert_eq!(pieces(dir.path()), 32);
        let _allowed = allow(dir.path());
        assert!(retry(full).is_err(), "it ends with the last piece");
        assert_eq!(pieces(dir.path()), 0);
    }

    #[test]
    fn a_piece_has_its_place_on_the_disk_and_half_a_one_is_made_whole() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(folder(dir.path())).unwrap();
        fs::write(folder(dir.path()).join("7"), "").unwrap();
        set_aside(dir.path()).unwrap();
        for piece in fs::read_dir(folder(dir.path())).unwrap() {
            let meta = piece.unwrap().metadata().unwrap();
            assert!(meta.len() == PIECE && meta.blocks() * 512 >= PIECE);
        }
    }
}
