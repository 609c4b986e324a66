//! Makes ext4 images that are the same for the same content. `mke2fs -d` takes over when each file was last changed on the
//! machine that made it, and no system call sets that: so every time in the image is given the same value afterwards.
//!
//! Only what mke2fs has just written is read here, and it is not mounted by anybody. Checksums are made anew.

use std::{ffi::OsStr, fs::File, io, os::unix::fs::FileExt, path::Path, time::Duration};

use super::ImageError;
use crate::{
    infra::shell::{self, Surroundings},
    store::StoreError,
};

/// Everything in an image is as old as that: a time has to be the same for the same content.
pub const TIME: u32 = 1_700_000_000;
/// The file system's own id.
pub const UUID: &str = "6d766d00-6465-4269-a16e-000000000001";
/// What the order of names in large folders depends on.
pub const HASH_SEED: &str = "6d766d00-6465-4269-a16e-000000000002";
/// The journal, where its size is not left to mke2fs.
pub const JOURNAL_MIB: u64 = 16;

const LIMIT: Duration = Duration::from_secs(15 * 60);

/// What an image is made like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Its virtual size; what is not used is a hole.
    pub size_mib: u64,
    /// What is known of what goes into it.
    pub content: Content,
}

/// What is known of the tree that an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Made on this machine: what is younger than [`TIME`] was written just now.
    Made,
    /// Unpacked and measured: its times are those that its maker gave it.
    Measured {
        /// How many files it may hold.
        inodes: u64,
    },
}

/// Makes an ext4 image of a folder, the same for the same content.
///
/// # Errors
/// When mke2fs fails, or the image cannot be written.
pub fn make(tree: &Path, image: &Path, form: &Form) -> Result<(), ImageError> {
    let time = TIME.to_string();
    // mke2fs before 1.47.1 knows the first one only. By the convention of the other one, files are no younger than that, and
    // the times of what was unpacked are not to be touched.
    let both = [("E2FSPROGS_FAKE_TIME", OsStr::new(&time)), ("SOURCE_DATE_EPOCH", OsStr::new(&time))];
    let environment = match form.content {
        Content::Made => &both[..],
        Content::Measured { .. } => &both[..1],
    };
    let surroundings = Surroundings { environment, dies_with_us: true, ..Surroundings::default() };
    let seed = format!("hash_seed={HASH_SEED},root_owner=0:0");
    let size = format!("{}M", form.size_mib);
    let arguments = ["-q", "-F", "-t", "ext4", "-U", UUID, "-E", &seed, "-L", "root"];
    let measured = match form.content {
        Content::Made => None,
        Content::Measured { inodes } => Some((inodes.to_string(), format!("size={JOURNAL_MIB}"))),
    };
    let measured = measured.iter().flat_map(|(inodes, journal)| {
        // Nothing is kept back for root: the room for more was counted in.
        ["-b", "4096", "-I", "256", "-m", "0", "-N", inodes, "-J", journal]
    });
    let arguments = arguments.into_iter().chain(measured).chain(["-d"]).map(OsStr::new);
    let arguments = arguments.chain([tree.as_os_str(), image.as_os_str(), OsStr::new(&size)]);
    shell::run_in(&surroundings, "mke2fs", arguments, b"", LIMIT)
        .map_err(ImageError::step("making the root disk"))?;
    let latest_change = if form.content == Content::Made { TIME } else { u32::MAX };
    fix_times(image, TIME, latest_change).map_err(StoreError::io("write", image))?;
    Ok(())
}

/// Where fields lie in the superblock, besides those by which everybody knows it.
mod superblock {
    pub use mvm_proto::disk::ext4::{AT, MAGIC, MAGIC_AT, UUID_AT};

    pub const SIZE: usize = 1024;
    pub const BLOCKS: usize = 0x4;
    pub const FIRST_BLOCK: usize = 0x14;
    pub const LOG_BLOCK_SIZE: usize = 0x18;
    pub const BLOCKS_PER_GROUP: usize = 0x20;
    pub const INODES_PER_GROUP: usize = 0x28;
    pub const INODE_SIZE: usize = 0x58;
    pub const INCOMPATIBLE: usize = 0x60;
    pub const READ_ONLY_COMPATIBLE: usize = 0x64;
    pub const DESCRIPTOR_SIZE: usize = 0xfe;
    pub const KBYTES_WRITTEN: usize = 0x178;
    pub const SEED: usize = 0x270;
    pub const CHECKSUM: usize = 0x3fc;
}

/// Where fields lie in an inode.
mod inode {
    pub const MODE: usize = 0;
    pub const ATIME: usize = 0x8;
    pub const CTIME: usize = 0xc;
    pub const MTIME: usize = 0x10;
    pub const GENERATION: usize = 0x64;
    pub const CHECKSUM: usize = 0x7c;
    pub const CHECKSUM_HIGH: usize = 0x82;
    /// Parts of a second, of ctime, mtime and atime.
    pub const EXTRA: [usize; 3] = [0x84, 0x88, 0x8c];
    pub const CRTIME: usize = 0x90;
    pub const CRTIME_EXTRA: usize = 0x94;
}

const BITS_64: u32 = 0x80;
const SEED_STORED: u32 = 0x2000;
const METADATA_CHECKSUMS: u32 = 0x400;

/// Sets the times of all inodes to `time`; when a file's content was last changed stays, but for what is later than
/// `latest_change`.
///
/// # Errors
/// When the image cannot be read or written, or has no inodes of the size that mke2fs gives them.
fn fix_times(path: &Path, time: u32, latest_change: u32) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut head = vec![0; superblock::SIZE];
    file.read_exact_at(&mut head, superblock::AT)?;
    let wrong = |what: &str| io::Error::other(format!("no ext4 as mke2fs makes it: {what}"));
    if head[superblock::MAGIC_AT..superblock::MAGIC_AT + 2] != superblock::MAGIC {
        return Err(wrong("no magic number"));
    }
    let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let inode_size = usize::from(short(superblock::INODE_SIZE));
    if inode_size < 256 {
        return Err(wrong("its inodes are small"));
    }
    let (incompatible, compatible) =
        (long(&head, superblock::INCOMPATIBLE), long(&head, superblock::READ_ONLY_COMPATIBLE));
    let block_size = 1024_u64.checked_shl(long(&head, superblock::LOG_BLOCK_SIZE)).unwrap_or(0);
    let seed = match incompatible & SEED_STORED {
        0 => crc32c(!0, &head[superblock::UUID_AT..superblock::UUID_AT + 16]),
        _ => long(&head, superblock::SEED),
    };
    let checksums = compatible & METADATA_CHECKSUMS != 0;
    let (first, blocks) = (long(&head, superblock::FIRST_BLOCK), long(&head, superblock::BLOCKS));
    let per_group = long(&head, superblock::BLOCKS_PER_GROUP);
    let inodes = long(&head, superblock::INODES_PER_GROUP);
    if per_group == 0 || block_size == 0 || blocks <= first {
        return Err(wrong("no groups"));
    }
    let descriptor_size = match incompatible & BITS_64 {
        0 => 32,
        _ => u64::from(short(superblock::DESCRIPTOR_SIZE)),
    };
    for group in 0..(blocks - first).div_ceil(per_group) {
        let at = u64::from(first + 1) * block_size + u64::from(group) * descriptor_size;
        let mut descriptor = [0; 12];
        file.read_exact_at(&mut descriptor, at)?;
        let table = u64::from(long(&descriptor, 8)) * block_size;
        let mut bytes = vec![0; inode_size * inodes as usize];
        file.read_exact_at(&mut bytes, table)?;
        let mut changed = false;
        for (index, inode) in bytes.chunks_exact_mut(inode_size).enumerate() {
            if inode[inode::MODE..inode::MODE + 2] == [0, 0] {
                continue;
            }
            set_times(inode, time, latest_change);
            if checksums {
                set_checksum(inode, seed, group * inodes + index as u32 + 1);
            }
            changed = true;
        }
        if changed {
            file.write_all_at(&bytes, table)?;
        }
    }
    // How much was ever written, journal and retries included.
    head[superblock::KBYTES_WRITTEN..superblock::KBYTES_WRITTEN + 8].fill(0);
    if checksums {
        let sum = crc32c(!0, &head[..superblock::CHECKSUM]);
        put(&mut head, superblock::CHECKSUM, sum);
    }
    file.write_all_at(&head, superblock::AT)
}

fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn set_times(inode: &mut [u8], time: u32, latest_change: u32) {
    let changed = long(inode, inode::MTIME).min(latest_change);
    put(inode, inode::MTIME, changed);
    for field in [inode::ATIME, inode::CTIME, inode::CRTIME] {
        put(inode, field, time);
    }
    for field in inode::EXTRA.into_iter().chain([inode::CRTIME_EXTRA]) {
        put(inode, field, 0);
    }
}

/// The checksum covers the file system, the inode's number and generation, and the inode with an empty checksum.
fn set_checksum(inode: &mut [u8], seed: u32, number: u32) {
    inode[inode::CHECKSUM..inode::CHECKSUM + 2].fill(0);
    inode[inode::CHECKSUM_HIGH..inode::CHECKSUM_HIGH + 2].fill(0);
    let mut sum = crc32c(seed, &number.to_le_bytes());
    sum = crc32c(sum, &inode[inode::GENERATION..inode::GENERATION + 4]);
    sum = crc32c(sum, inode);
    let [a, b, c, d] = sum.to_le_bytes();
    inode[inode::CHECKSUM..inode::CHECKSUM + 2].copy_from_slice(&[a, b]);
    inode[inode::CHECKSUM_HIGH..inode::CHECKSUM_HIGH + 2].copy_from_slice(&[c, d]);
}

/// CRC-32C as ext4 has it: not inverted at either end.
fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    bytes.iter().fold(start, |sum, &byte| TABLE[usize::from(sum as u8 ^ byte)] ^ sum >> 8)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn crc32c_is_the_known_one() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    /// The same files, made in another order at another time, give the same image; and it is whole.
    #[test]
    fn the_same_tree_gives_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = Vec::new();
        for (turn, names) in [["a", "b", "z"], ["z", "a", "b"]].iter().enumerate() {
            let tree = dir.path().join(format!("tree{turn}"));
            fs::create_dir_all(tree.join("folder")).unwrap();
            for name in names {
                fs::write(tree.join("folder").join(name), name.repeat(5000)).unwrap();
            }
            // Times of files count in seconds there.
            std::thread::sleep(Duration::from_millis(1100));
            let image = dir.path().join(format!("image{turn}"));
            make(&tree, &image, &Form { size_mib: 16, content: Content::Made }).unwrap();
            let checked =
                shell::run("e2fsck", ["-fn".as_ref(), image.as_os_str()], b"", Duration::from_secs(30));
            assert!(checked.is_ok(), "{checked:?}");
            images.push(fs::read(image).unwrap());
        }
        assert!(images[0] == images[1], "the images differ");
    }

    #[test]
    fn what_is_no_ext4_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, [0; 4096]).unwrap();
        assert!(fix_times(&path, 0, 0).is_err());
    }
}
