//! Sparse files: where their data lies, and holes for what they do not need.

use std::{fs::File, io, ops::Range};

use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate, seek},
    io::Errno,
};

/// The parts of a file that are not in a hole, in bytes.
///
/// # Errors
/// When the file cannot be looked at.
pub fn data(file: &File) -> io::Result<Vec<Range<u64>>> {
    let length = file.metadata()?.len();
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data until the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        ranges.push(start..at);
    }
    Ok(ranges)
}

/// Gives a part of a file back to the file system: it reads as zeros from now on. Where the file system has no holes, it stays
/// as it is.
///
/// # Errors
/// When it cannot be done for another reason.
pub fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, how, range.start, range.end - range.start) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn what_is_punched_takes_no_place_and_is_no_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 12).unwrap();
        file.write_all_at(&[7; 8 << 12], 4 << 12).unwrap();
        assert_eq!(data(&file).unwrap(), vec![4 << 12..12 << 12]);
        punch(&file, 6 << 12..8 << 12).unwrap();
        assert_eq!(data(&file).unwrap(), [4 << 12..6 << 12, 8 << 12..12 << 12]);
        assert_eq!(file.metadata().unwrap().len(), 64 << 12);
        assert!(file.metadata().unwrap().blocks() * 512 <= 7 << 12);
    }
}
