//! Which pages of its memory a guest has written to since it was loaded, as the kernel knows it.
//!
//! A loaded memory file is mapped privately: a page that is written to becomes an anonymous one of the VMM's, and stays
//! one. The kernel tells which in `/proc/<pid>/pagemap`. These are all the pages that a Diff may have changed in the file.

use std::{
    fs::{self, File, Metadata},
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use super::PAGE;

/// Bits of a `pagemap` entry (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// A part of a process's address space onto which a file is mapped.
struct Mapping {
    address: u64,
    pages: u64,
    /// The first page in the file.
    first: u64,
}

/// The pages of `mem` that the process has copies of its own of; `None` where it has not mapped the whole file.
///
/// # Errors
/// When the kernel does not tell.
pub fn written_pages(pid: i32, mem: &Path) -> io::Result<Option<Vec<Range<u64>>>> {
    let file = fs::metadata(mem)?;
    let mappings = mappings(pid, mem, &file)?;
    // A VMM may map it as often, and as far beyond its end, as it likes: no more is walked than there is.
    let pages = file.len().div_ceil(PAGE);
    if mappings.iter().fold(0_u64, |sum, mapping| sum.saturating_add(mapping.pages)) != pages {
        return Ok(None);
    }
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut written: Vec<Range<u64>> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    for mapping in mappings {
        let mut done = 0;
        while done < mapping.pages {
            let count = (mapping.pages - done).min(buffer.len() as u64 / 8);
            let bytes = &mut buffer[..count as usize * 8];
            pagemap.read_exact_at(bytes, (mapping.address / PAGE + done) * 8)?;
            for (index, entry) in (0..).zip(bytes.as_chunks::<8>().0) {
                let entry = u64::from_ne_bytes(*entry);
                if entry & (PRESENT | SWAPPED) == 0 || entry & OF_A_FILE != 0 {
                    continue;
                }
                let page = mapping.first + done + index;
                match written.last_mut() {
                    Some(last) if last.end == page => last.end += 1,
                    _ => written.push(page..page + 1),
                }
            }
            done += count;
        }
    }
    Ok(Some(written))
}

/// Where a process has mapped a file. Found by inode and name: the device in `maps` is not always the one that stat names
/// (btrfs).
fn mappings(pid: i32, path: &Path, file: &Metadata) -> io::Result<Vec<Mapping>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let parse = |line: &str| {
        // address perms offset dev inode path
        let mut fields = line.split_ascii_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        let inode: u64 = fields.nth(1)?.parse().ok()?;
        let is_it = inode == file.ino() && line.trim_end_matches(" (deleted)").ends_with(&name);
        is_it.then_some(Mapping { address: from, pages: (to - from) / PAGE, first: offset / PAGE })
    };
    let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(text.lines().filter_map(parse).collect())
}

#[cfg(test)]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    #[test]
    fn pages_that_were_written_to_are_told_from_those_that_were_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mem");
        fs::write(&path, vec![7; 64 * PAGE as usize]).unwrap();
        let file = File::open(&path).unwrap();
        let length = 64 * PAGE as usize;
        let pid = std::process::id().cast_signed();
        assert_eq!(written_pages(pid, &path).unwrap(), None, "it is not mapped");
        // SAFETY: a new mapping at a place that the kernel chooses, used within its length, and unmapped at the end.
        unsafe {
            let at = mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
                &file,
                0,
            )
            .unwrap();
            let bytes = at.cast::<u8>();
            assert_eq!(
                (0..length).step_by(PAGE as usize).map(|i| u64::from(*bytes.add(i))).sum::<u64>(),
                7 * 64
            );
            for page in [3, 4, 5, 63] {
                *bytes.add(page * PAGE as usize) = 1;
            }
            assert_eq!(written_pages(pid, &path).unwrap(), Some(vec![3..6, 63..64]));
            munmap(at, length).unwrap();
        }
    }
}
