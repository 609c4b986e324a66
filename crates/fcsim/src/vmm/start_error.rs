//! Why a VM does not start. The texts are Firecracker's to the letter, and so are the names: it prints both.

use super::error::PmemError;
use crate::host::errno::OsError;

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("Cannot start microvm without kernel configuration.")]
    MissingKernelConfig,
    #[error("System configuration error: {0}")]
    ConfigureSystem(#[from] ConfigurationError),
    #[error("Error with initrd initialization: {0}.")]
    Initrd(#[from] InitrdError),
    #[error("Failed to get CPU template: {0}")]
    GetCpuTemplate(#[from] TemplateError),
    #[error("Invalid Memory Configuration: {0}")]
    GuestMemory(#[from] MemoryError),
    #[error("Error with the KvmVm object: {0}")]
    KvmVm(#[from] VmError),
    #[error("Failed to allocate guest resource: {0}")]
    AllocateResources(#[from] AllocateError),
    #[error("Invalid kernel command line: {0}")]
    KernelCmdline(&'static str),
    #[error("Failed to create device manager: {0}")]
    CreateDeviceManager(#[from] DeviceManagerError),
    #[error("Cannot create pmem device: {0}")]
    CreatePmemDevice(#[from] PmemError),
}

impl From<ElfError> for StartError {
    fn from(error: ElfError) -> Self {
        Self::ConfigureSystem(ConfigurationError::KernelLoader(LoaderError::Elf(error)))
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigurationError {
    #[error("Cannot load kernel due to invalid memory configuration or invalid kernel image: {0}")]
    KernelLoader(LoaderError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoaderError {
    #[error("Kernel Loader: failed to load ELF kernel image: {0}")]
    Elf(ElfError),
}

/// What is wrong with a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ElfError {
    #[error("Kernel Loader: Unable to read elf header")]
    ReadElfHeader,
    #[error("Kernel Loader: Invalid Elf magic number")]
    InvalidElfMagicNumber,
    #[error("Kernel Loader: Trying to load big-endian binary on little-endian machine")]
    BigEndianElfOnLittle,
    #[error("Kernel Loader: Invalid program header size")]
    InvalidProgramHeaderSize,
    #[error("Kernel Loader: Invalid program header offset")]
    InvalidProgramHeaderOffset,
    #[error("Kernel Loader: Invalid entry address")]
    InvalidEntryAddress,
    #[error("Kernel Loader: Unable to seek to program header")]
    SeekProgramHeader,
    #[error("Kernel Loader: Unable to read program header")]
    ReadProgramHeader,
    #[error("Kernel Loader: Unable to seek to kernel start")]
    SeekKernelStart,
    #[error("Kernel Loader: Unable to read kernel image")]
    ReadKernelImage,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitrdError {
    #[error("Failed to compute the initrd address.")]
    Address,
    #[error("Cannot load initrd due to an invalid memory configuration.")]
    Load,
    #[error("Cannot load initrd due to an invalid image: {0}")]
    Read(OsError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("CPU vendor mismatched between actual CPU and CPU template.")]
    CpuVendorMismatched,
    #[error("The current CPU model is not permitted to apply the CPU template.")]
    InvalidCpuModel,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("Cannot create mmap region: {0}")]
    MmapRegionError(OsError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    #[error("Cannot set the memory regions: {0}")]
    SetUserMemoryRegion(OsError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AllocateError {
    #[error("The specified size: {0} is not valid.")]
    InvalidSize(u64),
    #[error("The requested resource is not available.")]
    ResourceNotAvailable,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceManagerError {
    #[error("Error with EventFd: {0}")]
    EventFd(OsError),
}
