//! Snapshots: what is kept of a VM beside its memory, and what can go wrong in making and loading one.

pub(crate) mod state_file;

use serde::{Deserialize, Serialize};

use crate::{
    guest::GuestState,
    host::errno::OsError,
    vmm::error::{BlockError, MachineConfigError, NicError, PmemError, VsockBackendError},
    wire::{devices::*, machine::*},
};

/// The state file's content.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VmState {
    pub machine: MachineConfig,
    pub boot_source: BootSourceConfig,
    pub drives: Vec<BlockDeviceConfig>,
    pub nets: Vec<NetworkInterfaceConfig>,
    pub pmem: Vec<PmemConfig>,
    pub vsock: Option<VsockDeviceConfig>,
    pub balloon: Option<BalloonDeviceConfig>,
    pub entropy: Option<EntropyDeviceConfig>,
    pub memory_hotplug: Option<MemoryHotplugConfig>,
    pub requested_hotplug_mib: usize,
    pub mmds: Option<MmdsConfig>,
    pub pci: bool,
    pub guest: GuestState,
}

/// Why a snapshot was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("Cannot write memory file: Cannot dump memory: {0}")]
    Write(OsError),
    #[error("Cannot perform {0} on the memory backing file: {1}")]
    MemoryFile(&'static str, OsError),
    #[error("Cannot perform {0} on the snapshot backing file: {1}")]
    StateFile(&'static str, OsError),
    #[error("Cannot serialize the microVM state: {0}")]
    Serialize(#[from] StateFileError),
    #[error("Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")]
    Running,
}

/// Why a state file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateFileError {
    #[error("CRC64 validation failed")]
    Crc64,
    #[error("Invalid data version: {0}")]
    InvalidFormatVersion(String),
    #[error("An error occurred during bitcode serialization: {0}")]
    Bitcode(BitcodeError),
    #[error("IO Error: {0}")]
    Io(OsError),
    #[error("Snapshot size exceeds limit of {0} bytes")]
    SizeLimitExceeded(usize),
}

/// Content that cannot be understood: in Firecracker's official builds this error names no reason.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bitcode error")]
pub(crate) struct BitcodeError;

impl std::fmt::Debug for BitcodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Error(\"bitcode error\")")
    }
}

/// Why a snapshot was not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("Failed to get snapshot state from file: Failed to open snapshot file: {0}")]
    Open(OsError),
    #[error("Failed to get snapshot state from file: Failed to load snapshot state from file: {0}")]
    State(#[from] StateFileError),
    #[error("Failed to get snapshot state from file: Unknown Network Device.")]
    UnknownNet,
    #[error("Failed to get snapshot state from file: Unknown Vsock Device.")]
    UnknownVsock,
    #[error("Failed to load guest memory: Error creating guest memory from file: {0}")]
    Memory(#[from] MemoryFileError),
    #[error("Failed to load guest memory: Error creating guest memory from uffd: {0}")]
    Uffd(#[from] UffdError),
    #[error("Failed to build microVM from snapshot: Failed to update microVM configuration: {0}")]
    Machine(#[from] MachineConfigError),
    #[error("Failed to build microVM from snapshot: Failed to restore devices: {0}")]
    Device(#[from] RestoreDeviceError),
}

/// Why a device of a snapshot cannot be had again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreDeviceError {
    #[error("Error restoring {0} devices: Block: {1}")]
    Block(&'static str, BlockError),
    #[error("Error restoring {0} devices: Net: Failed to create a network device: {1}")]
    Net(&'static str, NicError),
    #[error("Error restoring {0} devices: VsockUnixBackend: {1}")]
    Vsock(&'static str, VsockBackendError),
    #[error("Error restoring {0} devices: Pmem: Error creating Pmem devie: {1}")]
    Pmem(&'static str, PmemError),
    #[error("Error creating DeviceManager: Error with EventFd: {0}")]
    Serial(OsError),
}

/// Why a memory file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryFileError {
    #[error("Failed to load guest memory: {0}")]
    Open(OsError),
    #[error(
        "Failed to restore guest memory: Total sum of memory regions exceeds largest possible file offset"
    )]
    TooShort,
    #[error("Failed to restore guest memory: Cannot create mmap region: {0}")]
    Mmap(OsError),
    #[error("Cannot restore hugetlbfs backed snapshot by mapping the memory file. Please use uffd.")]
    HugePages,
}

/// Why memory cannot be had from a page fault handler.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UffdError {
    #[error("Failed to connect to UDS Unix stream: {0}")]
    Connect(OsError),
    #[error("Failed to UFFD object: {0}")]
    Unsupported(&'static str),
}
