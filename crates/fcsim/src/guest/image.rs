//! Guest memory, sparse: pages that were written, over the file that was loaded, over zeroes.
//!
//! The loaded file is only ever read, page by page and through a descriptor that is kept, so that it may be unlinked
//! and never changes: what MAP_PRIVATE is to Firecracker. Memory costs what was written, not what it is large.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use rustix::fs::SeekFrom;

use crate::{
    host::errno::OsError,
    snapshot::{CreateError, MemoryFileError},
    wire::snapshot::SnapshotType,
};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
const PAGE_U64: u64 = PAGE as u64;

/// One page.
pub(crate) type Page = [u8; PAGE];

/// The memory of one guest.
#[derive(Debug)]
pub(crate) struct Image {
    bytes: u64,
    /// Memory that can be added later: it has its place in a snapshot and is not used.
    pluggable: u64,
    base: Option<File>,
    written: BTreeMap<u64, Box<Page>>,
    /// Pages written since boot, load or the last snapshot; none where they are not tracked.
    dirty: Option<BTreeSet<u64>>,
}

impl Image {
    /// Fresh memory of so many MiB.
    pub(crate) fn new(mib: u64, track: bool) -> Self {
        let bytes = mib.saturating_mul(1 << 20);
        Self { bytes, pluggable: 0, base: None, written: BTreeMap::new(), dirty: track.then(BTreeSet::new) }
    }

    /// The same with so many MiB that can be added later.
    pub(crate) fn with_pluggable(self, mib: u64) -> Self {
        Self { pluggable: mib.saturating_mul(1 << 20), ..self }
    }

    /// Memory of this size from a file, which must be at least as long.
    pub(crate) fn load(self, path: &Path) -> Result<Self, MemoryFileError> {
        let file = File::open(path).map_err(|error| MemoryFileError::Open(error.into()))?;
        let length = file.metadata().map_err(|error| MemoryFileError::Open(error.into()))?.len();
        if self.length() > length {
            return Err(MemoryFileError::TooShort);
        }
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            return Err(MemoryFileError::Mmap(rustix::io::Errno::NODEV.into()));
        }
        Ok(Self { base: Some(file), ..self })
    }

    /// The length of its file.
    fn length(&self) -> u64 {
        self.bytes.saturating_add(self.pluggable)
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> u64 {
        self.bytes / PAGE_U64
    }

    /// Reads a page; one that lies outside is all zeroes.
    pub(crate) fn read(&self, page: u64) -> Page {
        let mut buffer = [0; PAGE];
        if let Some(written) = self.written.get(&page) {
            return **written;
        }
        if let (Some(base), Some(offset)) =
            (&self.base, page.checked_mul(PAGE_U64).filter(|&at| at < self.bytes))
        {
            // a loaded file that was cut short meanwhile reads as zeroes: the guest's own check will see it
            let _ = base.read_exact_at(&mut buffer, offset);
        }
        buffer
    }

    /// Writes a page; one that lies outside is lost.
    pub(crate) fn write(&mut self, page: u64, content: &Page) {
        if page >= self.pages() {
            return;
        }
        self.written.insert(page, Box::new(*content));
        if let Some(dirty) = &mut self.dirty {
            dirty.insert(page);
        }
    }

    /// Writes memory into a file: all of it, or what is dirty. A Diff goes into an existing file of the right size in
    /// place, and into a new one with holes.
    pub(crate) fn save(&mut self, path: &Path, kind: SnapshotType) -> Result<(), CreateError> {
        let file_error = |what| move |error: io::Error| CreateError::MemoryFile(what, OsError(error));
        let existed = path.exists();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(file_error("open"))?;
        let same = self.is_base(&file);
        if existed {
            let length = file.metadata().map_err(file_error("get_metadata"))?.len();
            // a Full one replaces everything; the file that this memory was loaded from already holds the rest
            if length != self.length() || (kind == SnapshotType::Full && !same) {
                file.set_len(0).map_err(file_error("truncate"))?;
            }
        }
        file.set_len(self.length()).map_err(file_error("set_length"))?;
        match (kind, &self.dirty) {
            (SnapshotType::Diff, Some(dirty)) => {
                for &page in dirty {
                    self.put(&file, page)?;
                }
            }
            _ => {
                if !same {
                    self.copy_base(&file)?;
                }
                for &page in self.written.keys() {
                    self.put(&file, page)?;
                }
            }
        }
        if let Some(dirty) = &mut self.dirty {
            dirty.clear();
        }
        file.sync_all().map_err(file_error("sync_all"))
    }

    fn put(&self, file: &File, page: u64) -> Result<(), CreateError> {
        if let Some(content) = self.written.get(&page) {
            file.write_all_at(&content[..], page * PAGE_U64)
                .map_err(|error| CreateError::Write(error.into()))?;
        }
        Ok(())
    }

    fn is_base(&self, file: &File) -> bool {
        let id = |file: &File| file.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        self.base.as_ref().is_some_and(|base| id(base) == id(file))
    }

    /// Copies the data of the loaded file, and leaves its holes holes.
    fn copy_base(&self, to: &File) -> Result<(), CreateError> {
        let Some(base) = &self.base else { return Ok(()) };
        let failed = |error: io::Error| CreateError::Write(OsError(error));
        let mut buffer = vec![0; 1 << 18];
        let mut at = 0;
        while at < self.bytes {
            // ENXIO: no data from here on
            let Ok(start) = rustix::fs::seek(base, SeekFrom::Data(at)) else {
                break;
            };
            let end = rustix::fs::seek(base, SeekFrom::Hole(start)).unwrap_or(self.bytes).min(self.bytes);
            at = start;
            while at < end {
                let length = buffer.len().min(usize::try_from(end - at).unwrap_or(buffer.len()));
                let read = base.read_at(&mut buffer[..length], at).map_err(failed)?;
                if read == 0 {
                    return Ok(());
                }
                to.write_all_at(&buffer[..read], at).map_err(failed)?;
                at += read as u64;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Page {
        [fill; PAGE]
    }

    #[test]
    fn a_diff_in_place_makes_a_complete_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mem");
        let mut image = Image::new(1, true);
        image.write(3, &page(3));
        image.save(&path, SnapshotType::Full).unwrap();
        image.write(200, &page(7));
        image.save(&path, SnapshotType::Diff).unwrap();
        let loaded = Image::new(1, false).load(&path).unwrap();
        assert_eq!((loaded.read(3), loaded.read(200), loaded.read(4)), (page(3), page(7), page(0)));
    }

    #[test]
    fn a_diff_into_a_new_file_holds_only_dirty_pages_and_empties_the_set() {
        let dir = tempfile::tempdir().unwrap();
        let mut image = Image::new(64, true);
        image.write(3, &page(3));
        image.save(&dir.path().join("full"), SnapshotType::Full).unwrap();
        image.write(9000, &page(9));
        let diff = dir.path().join("diff");
        image.save(&diff, SnapshotType::Diff).unwrap();
        let meta = diff.metadata().unwrap();
        assert_eq!((meta.len(), meta.blocks() * 512), (64 << 20, PAGE_U64));
        let empty = dir.path().join("empty");
        image.save(&empty, SnapshotType::Diff).unwrap();
        assert_eq!(empty.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn a_failed_diff_keeps_what_is_dirty() {
        let dir = tempfile::tempdir().unwrap();
        let mut image = Image::new(1, true);
        image.write(5, &page(5));
        assert!(image.save(&dir.path().join("none/mem"), SnapshotType::Diff).is_err());
        let path = dir.path().join("mem");
        image.save(&path, SnapshotType::Diff).unwrap();
        assert_eq!(Image::new(1, false).load(&path).unwrap().read(5), page(5));
    }

    #[test]
    fn the_loaded_file_never_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mem");
        let mut image = Image::new(1, false);
        image.write(1, &page(1));
        image.save(&path, SnapshotType::Full).unwrap();
        let before = std::fs::read(&path).unwrap();
        let mut loaded = Image::new(1, true).load(&path).unwrap();
        loaded.write(1, &page(2));
        loaded.write(2, &page(3));
        loaded.save(&dir.path().join("diff"), SnapshotType::Diff).unwrap();
        loaded.save(&dir.path().join("other"), SnapshotType::Full).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(loaded.read(1), page(2));
        assert_eq!(Image::new(1, false).load(&dir.path().join("other")).unwrap().read(2), page(3));
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mem");
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(matches!(Image::new(1, false).load(&path), Err(MemoryFileError::TooShort)));
    }
}
