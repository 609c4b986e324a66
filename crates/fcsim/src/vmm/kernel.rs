//! Kernel and initrd: opened when they are configured, checked as Firecracker's loader does when the VM starts.

use std::{fs::File, os::unix::fs::FileExt};

use super::{
    error::BootSourceError,
    start_error::{ElfError, InitrdError, StartError},
};
use crate::wire::machine::BootSourceConfig;

/// The command line where none was given.
pub(super) const DEFAULT_COMMAND_LINE: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";
/// The longest command line, with its end.
pub(super) const MAX_COMMAND_LINE: usize = 2048;

/// A kernel enters here at the earliest.
const HIGH_MEMORY: u64 = 1 << 20;
/// The last GiB below 4 GiB belongs to devices.
const DEVICE_HOLE: u64 = 0xc000_0000;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;

/// Open files of a boot source.
#[derive(Debug)]
pub(super) struct BootFiles {
    kernel: File,
    initrd: Option<File>,
}

impl BootFiles {
    /// Opens them.
    pub(super) fn open(config: &BootSourceConfig) -> Result<Self, BootSourceError> {
        let kernel = File::open(&config.kernel_image_path)
            .map_err(|error| BootSourceError::InvalidKernelPath(error.into()))?;
        let initrd = config.initrd_path.as_deref().map(File::open).transpose();
        Ok(Self { kernel, initrd: initrd.map_err(|error| BootSourceError::InvalidInitrdPath(error.into()))? })
    }

    /// Would Firecracker load them into so much memory?
    pub(super) fn check(&self, memory_mib: u64) -> Result<(), StartError> {
        check_kernel(&self.kernel, memory_mib << 20)?;
        if let Some(initrd) = &self.initrd {
            let size = initrd.metadata().map_or(0, |meta| meta.len());
            let low_memory = (memory_mib << 20).min(DEVICE_HOLE);
            if size > low_memory {
                return Err(InitrdError::Address.into());
            }
            if size == 0 {
                return Err(InitrdError::Load.into());
            }
            // a folder can be opened and not read
            if let Err(error) = initrd.read_at(&mut [0], 0) {
                return Err(InitrdError::Read(error.into()).into());
            }
        }
        Ok(())
    }
}

fn check_kernel(kernel: &File, memory: u64) -> Result<(), ElfError> {
    let mut header = [0; HEADER];
    kernel.read_exact_at(&mut header, 0).map_err(|_| ElfError::ReadElfHeader)?;
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u64_at = |bytes: &[u8], at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    if header[..4] != *b"\x7fELF" {
        return Err(ElfError::InvalidElfMagicNumber);
    }
    if header[5] != 1 {
        return Err(ElfError::BigEndianElfOnLittle);
    }
    if usize::from(u16_at(54)) != PROGRAM_HEADER {
        return Err(ElfError::InvalidProgramHeaderSize);
    }
    let (entry, offset, count) = (u64_at(&header, 24), u64_at(&header, 32), u64::from(u16_at(56)));
    if offset < HEADER as u64 {
        return Err(ElfError::InvalidProgramHeaderOffset);
    }
    if entry < HIGH_MEMORY {
        return Err(ElfError::InvalidEntryAddress);
    }
    if i64::try_from(offset).is_err() {
        return Err(ElfError::SeekProgramHeader);
    }
    let length = kernel.metadata().map_or(0, |meta| meta.len());
    for index in 0..count {
        let mut program = [0; PROGRAM_HEADER];
        let at = offset.saturating_add(index * PROGRAM_HEADER as u64);
        kernel.read_exact_at(&mut program, at).map_err(|_| ElfError::ReadProgramHeader)?;
        let kind = u32::from_le_bytes([program[0], program[1], program[2], program[3]]);
        let (from, to, size) = (u64_at(&program, 8), u64_at(&program, 24), u64_at(&program, 32));
        if kind != PT_LOAD || size == 0 {
            continue;
        }
        if i64::try_from(from).is_err() {
            return Err(ElfError::SeekKernelStart);
        }
        let fits_memory = to.checked_add(size).is_some_and(|end| end <= memory.min(DEVICE_HOLE));
        let fits_file = from.checked_add(size).is_some_and(|end| end <= length);
        if !fits_memory || !fits_file {
            return Err(ElfError::ReadKernelImage);
        }
    }
    Ok(())
}
