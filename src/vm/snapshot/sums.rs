//! A sum for each page of a memory file, kept beside it: made of the pages that were written, compared with all.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use twox_hash::XxHash3_64;

use super::{SnapshotError, ended};
use crate::{infra::sparse, store::StoreError};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a sum.
const SUM: u64 = 8;
/// Pages that are read at once.
const BATCH: u64 = 256;

/// The sums of a memory file's pages: 8 bytes each, 0 for a page of zeros, so that holes stay holes.
#[derive(Debug)]
pub struct Sums {
    path: PathBuf,
}

fn sum(page: &[u8]) -> u64 {
    if is_zeros(page) { 0 } else { XxHash3_64::oneshot(page).max(1) }
}

/// Does a page hold nothing but zeros?
pub fn is_zeros(page: &[u8]) -> bool {
    static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    page == ZEROS
}

impl Sums {
    /// Those in this file.
    pub fn in_file(path: &Path) -> Self {
        Self { path: path.to_path_buf() }
    }

    /// The length of the sums of a memory of `length` bytes.
    pub fn size(length: u64) -> u64 {
        length.div_ceil(PAGE) * SUM
    }

    /// Makes the sums of these pages of a memory of `length` bytes anew, and syncs them. A file that is not there yet is
    /// made.
    ///
    /// # Errors
    /// When the memory cannot be read, or the file not written.
    pub fn update(&self, memory: &File, length: u64, pages: &[Range<u64>]) -> Result<(), StoreError> {
        let written = (|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&self.path)?;
            let size = Self::size(length);
            file.set_len(size)?;
            let mut block = Block { file: &file, size, number: u64::MAX, bytes: Vec::new() };
            for range in pages {
                each_batch(memory, range.clone(), |first, batch| {
                    let mut pages = (first..).zip(batch.chunks(PAGE as usize));
                    pages.try_for_each(|(page, bytes)| block.set(page, sum(bytes)))
                })?;
            }
            block.write()?;
            file.sync_data()
        })();
        written.map_err(StoreError::io("write", &self.path))
    }

    /// Makes holes of the pages of zeros that a memory file holds, as its sums tell, and syncs it.
    ///
    /// # Errors
    /// When the sums cannot be read, or the memory not changed; what it reads as stays the same.
    pub fn punch_zeros(&self, mem: &Path) -> Result<(), StoreError> {
        let sums = fs::read(&self.path).map_err(StoreError::io("read", &self.path))?;
        let punched = (|| {
            let file = OpenOptions::new().write(true).open(mem)?;
            let sums = sums.as_chunks::<{ SUM as usize }>().0;
            let mut page = 0;
            for alike in sums.chunk_by(|one, next| (*one == [0; 8]) == (*next == [0; 8])) {
                let end = page + alike.len() as u64;
                if alike[0] == [0; 8] {
                    sparse::punch(&file, page * PAGE..end * PAGE)?;
                }
                page = end;
            }
            file.sync_data()
        })();
        punched.map_err(StoreError::io("make holes in", mem))
    }

    /// Compares every page of a memory file with its sum. Returns the pages that are something else.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] where there are not as many sums as pages.
    pub fn compare(&self, mem: &Path) -> Result<Vec<u64>, SnapshotError> {
        let memory = File::open(mem).map_err(StoreError::io("open", mem))?;
        let length = memory.metadata().map_err(StoreError::io("look at", mem))?.len();
        let damaged = |why: String| SnapshotError::Damaged { path: self.path.clone(), why };
        let sums = match File::open(&self.path) {
            Ok(sums) => sums,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("it is gone".into()));
            }
            Err(source) => return Err(StoreError::io("open", &self.path)(source).into()),
        };
        let pages = length.div_ceil(PAGE);
        let mut wrong = Vec::new();
        let compared = each_batch(&memory, 0..pages, |first, batch| {
            let is = sums_of(batch);
            let mut should = vec![0; is.len()];
            sums.read_exact_at(&mut should, first * SUM)?;
            let differ = |(is, should): &(&[u8], &[u8])| is != should;
            let pairs = is.chunks(SUM as usize).zip(should.chunks(SUM as usize));
            wrong.extend((first..).zip(pairs).filter(|(_, pair)| differ(pair)).map(|(page, _)| page));
            Ok(())
        });
        match compared {
            Ok(()) => Ok(wrong),
            Err(error) if ended(&error) => Err(damaged(format!("it has fewer sums than {pages} pages"))),
            Err(source) => Err(StoreError::io("compare", mem)(source).into()),
        }
    }
}

/// The part of the file that is being changed: pages that were written to are often near each other and seldom in a row.
struct Block<'a> {
    file: &'a File,
    size: u64,
    number: u64,
    bytes: Vec<u8>,
}

impl Block<'_> {
    /// Bytes of it.
    const SIZE: u64 = 4096;

    fn set(&mut self, page: u64, sum: u64) -> io::Result<()> {
        let (number, at) = (page * SUM / Self::SIZE, (page * SUM % Self::SIZE) as usize);
        if number != self.number {
            self.write()?;
            let start = number * Self::SIZE;
            self.number = number;
            self.bytes.resize(self.size.saturating_sub(start).min(Self::SIZE) as usize, 0);
            self.file.read_exact_at(&mut self.bytes, start)?;
        }
        self.bytes[at..at + SUM as usize].copy_from_slice(&sum.to_le_bytes());
        Ok(())
    }

    fn write(&self) -> io::Result<()> {
        match self.bytes.is_empty() {
            true => Ok(()),
            false => self.file.write_all_at(&self.bytes, self.number * Self::SIZE),
        }
    }
}

fn sums_of(batch: &[u8]) -> Vec<u8> {
    batch.chunks(PAGE as usize).flat_map(|page| sum(page).to_le_bytes()).collect()
}

/// Reads pages, several at once, and calls `work` with the first one's number and their bytes.
fn each_batch(
    memory: &File,
    pages: Range<u64>,
    mut work: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; ((pages.end - pages.start).min(BATCH) * PAGE) as usize];
    let mut first = pages.start;
    while first < pages.end {
        let count = (pages.end - first).min(BATCH);
        let bytes = &mut buffer[..(count * PAGE) as usize];
        memory.read_exact_at(bytes, first * PAGE)?;
        work(first, bytes)?;
        first += count;
    }
    Ok(())
}

/// The pages of a file that are not in a hole.
///
/// # Errors
/// When the file cannot be looked at.
pub fn data_pages(file: &File) -> io::Result<Vec<Range<u64>>> {
    let data = sparse::data(file)?;
    Ok(data.into_iter().map(|range| range.start / PAGE..range.end.div_ceil(PAGE)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(pages: u64) -> (tempfile::TempDir, PathBuf, Sums) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mem");
        let file = File::create(&path).unwrap();
        file.set_len(pages * PAGE).unwrap();
        for page in (0..pages).step_by(3) {
            file.write_all_at(&page.to_le_bytes(), page * PAGE + 8).unwrap();
        }
        let sums = Sums::in_file(&dir.path().join("sums"));
        sums.update(&File::open(&path).unwrap(), pages * PAGE, &data_pages(&file).unwrap()).unwrap();
        (dir, path, sums)
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_page() {
        let (_dir, path, sums) = memory(1000);
        assert_eq!(sums.compare(&path).unwrap(), [] as [u64; 0]);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for page in [0, 301, 999] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, page * PAGE + 77).unwrap();
            file.write_all_at(&[byte[0] ^ 4], page * PAGE + 77).unwrap();
        }
        assert_eq!(sums.compare(&path).unwrap(), [0, 301, 999]);
        sums.update(&file, 1000 * PAGE, &[0..1, 301..302, 999..1000]).unwrap();
        assert_eq!(sums.compare(&path).unwrap(), [] as [u64; 0]);
    }

    #[test]
    fn pages_of_zeros_become_holes() {
        let (_dir, path, sums) = memory(10);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        for page in 0..10 {
            file.write_all_at(&[0; 8], page * PAGE).unwrap();
        }
        sums.punch_zeros(&path).unwrap();
        assert_eq!(data_pages(&file).unwrap(), [3..4, 6..7, 9..10]);
        assert_eq!(sums.compare(&path).unwrap(), [] as [u64; 0]);
    }

    #[test]
    fn sums_that_are_cut_or_gone_are_damage() {
        let (_dir, path, sums) = memory(10);
        OpenOptions::new().write(true).open(&sums.path).unwrap().set_len(9 * SUM).unwrap();
        assert!(matches!(sums.compare(&path), Err(SnapshotError::Damaged { .. })));
        std::fs::remove_file(&sums.path).unwrap();
        assert!(matches!(sums.compare(&path), Err(SnapshotError::Damaged { .. })));
    }
}
