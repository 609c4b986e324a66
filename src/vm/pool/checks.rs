//! Are files the kernel, the root file system and the initial RAM disk that they are said to be? Nothing but their heads is
//! read, and nothing is changed.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use mvm_proto::disk;

use super::artifacts::ArtifactError;
use crate::store::StoreError;

/// Are these a kernel and an initial RAM disk, and is the command line one that a kernel takes?
///
/// # Errors
/// [`ArtifactError`] says what they are instead.
pub fn check((kernel, initrd): (&Path, Option<&Path>), cmdline: &str) -> Result<(), ArtifactError> {
    check_kernel(kernel)?;
    if let Some(initrd) = initrd {
        check_initrd(initrd)?;
    }
    // Firecracker's limit on x86_64 is 2,048 bytes; each instance's identity takes some 120 of them.
    let length = cmdline.len();
    if length > 1900 {
        return Err(ArtifactError::CommandLine { length });
    }
    match cmdline.contains(char::is_control) {
        true => Err(ArtifactError::ControlCharacters),
        false => Ok(()),
    }
}

/// Opens what is a file: a pipe without a writer would be waited for.
fn open(path: &Path, what: &'static str) -> Result<File, ArtifactError> {
    let meta = fs::metadata(path).map_err(StoreError::io("read", path))?;
    if !meta.is_file() {
        let why = "it is no regular file".into();
        return Err(ArtifactError::Wrong { path: path.to_path_buf(), what, why });
    }
    Ok(File::open(path).map_err(StoreError::io("read", path))?)
}

fn head_of(path: &Path, what: &'static str) -> Result<Vec<u8>, ArtifactError> {
    let file = open(path, what)?;
    let meta = file.metadata().map_err(StoreError::io("read", path))?;
    let mut head = vec![0; usize::try_from(meta.len()).unwrap_or(usize::MAX).min(4096)];
    file.read_exact_at(&mut head, 0).map_err(StoreError::io("read", path))?;
    Ok(head)
}

/// Are the ELF's segments within the file, and does it begin inside one of them? A download that was cut off has the head
/// of a kernel too.
fn check_segments(path: &Path, head: &[u8]) -> Result<(), &'static str> {
    const LOAD: u64 = 1;
    // Firecracker loads a kernel at 1 MiB or above.
    const LOWEST_ENTRY: u64 = 1 << 20;
    let length = fs::metadata(path).map_or(0, |meta| meta.len());
    let number = |offset: u64, size: usize| -> Option<u64> {
        let offset = usize::try_from(offset).ok()?;
        let bytes = head.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let cut = "its head is not whole";
    let (entry, table) = (number(24, 8).ok_or(cut)?, number(32, 8).ok_or(cut)?);
    let (size, count) = (number(54, 2).ok_or(cut)?, number(56, 2).ok_or(cut)?);
    let mut begins = false;
    for index in 0..count {
        let at = table.saturating_add(index * size);
        let field =
            |offset: u64, size| number(at.saturating_add(offset), size).ok_or("its segments are not in it");
        if field(0, 4)? != LOAD {
            continue;
        }
        let (offset, physical) = (field(8, 8)?, field(24, 8)?);
        let (in_file, in_memory) = (field(32, 8)?, field(40, 8)?);
        if offset.saturating_add(in_file) > length {
            return Err("it was cut off: a segment reaches beyond its end");
        }
        begins |= (physical..physical.saturating_add(in_memory)).contains(&entry);
    }
    match begins && entry >= LOWEST_ENTRY {
        true => Ok(()),
        false => Err("it does not begin where a kernel does: it is some other program"),
    }
}

/// Is this a kernel that Firecracker boots on this machine's architecture?
///
/// # Errors
/// [`ArtifactError::Wrong`] says what it is instead.
pub fn check_kernel(path: &Path) -> Result<(), ArtifactError> {
    let (what, arch) = ("a kernel that Firecracker boots", std::env::consts::ARCH);
    let head = head_of(path, what)?;
    let wrong = |why: &str| Err(ArtifactError::Wrong { path: path.to_path_buf(), what, why: why.into() });
    let at = |offset: usize, bytes: &[u8]| head.get(offset..offset + bytes.len()) == Some(bytes);
    if at(0x202, b"HdrS") {
        return wrong("it is a bzImage; Firecracker takes the uncompressed ELF inside (vmlinux)");
    }
    if arch == "x86_64" && at(0, b"\x7fELF\x02\x01") && at(18, &[62, 0]) {
        return check_segments(path, &head).or_else(wrong);
    }
    match arch {
        // e_machine: 62 is x86-64
        "x86_64" if !at(0, b"\x7fELF") => wrong("it is no ELF file"),
        "x86_64" if !at(4, &[2, 1]) || !at(18, &[62, 0]) => wrong("it is an ELF file, but none for x86_64"),
        "aarch64" if !at(56, b"ARM\x64") => wrong("it is no arm64 Image"),
        _ => Ok(()),
    }
}

/// Is this a root file system that kernels mount?
///
/// # Errors
/// [`ArtifactError::Wrong`] says what it is instead.
pub fn check_file_system(path: &Path) -> Result<(), ArtifactError> {
    let what = "a root file system";
    let file = open(path, what)?;
    match disk::file_system(&file).map_err(StoreError::io("read", path))? {
        Some(_) => Ok(()),
        None => {
            let why = "it holds no ext4, xfs, squashfs or erofs".to_owned();
            Err(ArtifactError::Wrong { path: path.to_path_buf(), what, why })
        }
    }
}

fn check_initrd(path: &Path) -> Result<(), ArtifactError> {
    let what = "an initial RAM disk";
    let head = head_of(path, what)?;
    let magics: [&[u8]; 7] = [
        b"070701",
        b"070702",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ",
        b"\x02\x21\x4c\x18",
        b"\x04\x22\x4d\x18",
    ];
    if magics.iter().any(|magic| head.starts_with(magic)) {
        return Ok(());
    }
    let why = "it is no cpio archive, plain or compressed by gzip, zstd, xz or lz4".to_owned();
    Err(ArtifactError::Wrong { path: path.to_path_buf(), what, why })
}
