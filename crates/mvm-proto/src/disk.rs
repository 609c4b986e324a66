//! What is on a disk, as its first bytes say: the host tells a guest's disks by it, and the guest tells them the same way.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Where ext4 has its superblock, and what is where in it.
pub mod ext4 {
    /// Where it begins on the disk.
    pub const AT: u64 = 1024;
    /// Its magic number, from there.
    pub const MAGIC_AT: usize = 0x38;
    /// What that is.
    pub const MAGIC: [u8; 2] = [0x53, 0xef];
    /// The file system's UUID, from there.
    pub const UUID_AT: usize = 0x68;
}

/// The file systems that a guest's root may be, by the kernel's names, with what they have where.
const KNOWN: [(&str, usize, &[u8]); 4] = [
    ("ext4", ext4::AT as usize + ext4::MAGIC_AT, &ext4::MAGIC),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("xfs", 0, b"XFSB"),
];

/// As many bytes as all of that needs.
const HEAD: usize = 2048;

/// Which file system is on a disk, by the kernel's name; `None` where it is none that is known.
///
/// # Errors
/// When the disk cannot be read.
pub fn file_system(disk: &File) -> io::Result<Option<&'static str>> {
    let head = head(disk)?;
    let is = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    Ok(KNOWN.iter().find(|(_, at, magic)| is(*at, magic)).map(|(name, ..)| *name))
}

/// The UUID of the ext4 on a disk; `None` where there is none.
///
/// # Errors
/// When the disk cannot be read.
pub fn ext4_uuid(disk: &File) -> io::Result<Option<String>> {
    let head = head(disk)?;
    let at = ext4::AT as usize;
    let part = |from: usize, length: usize| head.get(at + from..at + from + length);
    let (Some(magic), Some(uuid)) = (part(ext4::MAGIC_AT, 2), part(ext4::UUID_AT, 16)) else {
        return Ok(None);
    };
    if magic != ext4::MAGIC {
        return Ok(None);
    }
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")))
}

/// A disk's first bytes: fewer where it has no more.
fn head(disk: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let mut length = 0;
    while length < HEAD {
        match disk.read_at(&mut head[length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(length);
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(writes: &[(u64, &[u8])], length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).unwrap();
        }
        file.set_len(length).unwrap();
        file
    }

    #[test]
    fn a_file_system_is_known_by_its_superblock() {
        for (at, magic, name) in [
            (1080, &b"\x53\xef"[..], Some("ext4")),
            (0, b"hsqs", Some("squashfs")),
            (1024, b"\xe2\xe1\xf5\xe0", Some("erofs")),
            (0, b"XFSB", Some("xfs")),
            (1, b"XFSB", None),
        ] {
            assert_eq!(file_system(&disk(&[(at, magic)], 1 << 20)).unwrap(), name);
        }
        for length in [0, 1, 1081] {
            assert_eq!(file_system(&disk(&[(1080, b"\x53\xef")], length)).unwrap(), None);
        }
    }

    #[test]
    fn an_ext4_has_a_uuid() {
        let uuid: Vec<u8> = (0xf0..=0xff).collect();
        let writes = [(1024 + 0x38, &b"\x53\xef"[..]), (1024 + 0x68, &uuid[..])];
        let found = |writes: &[(u64, &[u8])], length| ext4_uuid(&disk(writes, length)).unwrap();
        assert_eq!(found(&writes, 8192).unwrap(), "f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff");
        assert_eq!(found(&writes, 1024 + 0x70), None, "cut");
        assert_eq!(found(&writes[1..], 8192), None);
    }
}
