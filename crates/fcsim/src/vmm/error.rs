//! What the VMM refuses and why. The texts are Firecracker's to the letter: they are what its callers match on.

pub(crate) use super::start_error::StartError;
use crate::{
    host::{errno::OsError, tap::TapError},
    log::LoggerUpdateError,
    metrics::MetricsError,
    snapshot::{CreateError, RestoreError},
};

/// Why an action was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActionError {
    #[error("Balloon config error: {0}")]
    BalloonConfig(#[from] BalloonConfigError),
    #[error("Balloon update error: {0}")]
    BalloonUpdate(DeviceError),
    #[error("Boot source error: {0}")]
    BootSource(#[from] BootSourceError),
    #[error("Create snapshot error: {0}")]
    CreateSnapshot(#[from] CreateError),
    #[error("Drive config error: {0}")]
    Drive(#[from] DriveError),
    #[error("Pmem config error: {0}")]
    Pmem(#[from] PmemConfigError),
    #[error("Memory hotplug config error: {0}")]
    MemoryHotplug(#[from] MemoryHotplugError),
    #[error("Memory hotplug update error: {0}")]
    MemoryHotplugUpdate(DeviceError),
    #[error("Internal VMM error: {0}")]
    Internal(#[from] DeviceError),
    #[error(
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
    )]
    LoadNotAllowed,
    #[error("Load snapshot error: Failed to restore from snapshot: {0}")]
    Load(#[from] RestoreError),
    #[error("Logger error: {0}")]
    Logger(#[from] LoggerUpdateError),
    #[error("Machine config error: {0}")]
    Machine(#[from] MachineConfigError),
    #[error("Metrics error: {0}")]
    Metrics(#[from] MetricsError),
    #[error("MMDS error: {0}")]
    Mmds(MmdsError),
    #[error("MMMDS config error: {0}")]
    MmdsConfig(#[from] MmdsConfigError),
    #[error("MMDS limit exceeded error: {0}")]
    MmdsLimit(MmdsError),
    #[error("Network config error: {0}")]
    Net(#[from] NetError),
    #[error("The requested operation is not supported after starting the microVM.")]
    PostBoot,
    #[error("The requested operation is not supported before starting the microVM.")]
    PreBoot,
    #[error("Start microvm error: {0}")]
    Start(#[from] StartError),
    #[error("Vsock config error: {0}")]
    Vsock(#[from] VsockError),
    #[error("Device ID in use")]
    DeviceIdInUse,
    #[error("Device not found")]
    DeviceNotFound,
    #[error("Cannot unplug root device")]
    CannotUnplugRoot,
    #[error("PCI is not enabled")]
    PciNotEnabled,
}

impl From<MmdsError> for ActionError {
    fn from(error: MmdsError) -> Self {
        match error {
            MmdsError::DataStoreLimitExceeded => Self::MmdsLimit(error),
            MmdsError::NotInitialized => Self::Mmds(error),
        }
    }
}

impl From<TapError> for NicError {
    fn from(error: TapError) -> Self {
        match error {
            TapError::SetSizeOfVnetHdr(_) => Self::TapSetVnetHdrSize(error),
            _ => Self::TapOpen(error),
        }
    }
}

impl ActionError {
    /// The status of the answer.
    pub(crate) fn status(&self) -> u16 {
        if matches!(self, Self::MmdsLimit(_)) { 413 } else { 400 }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BalloonConfigError {
    #[error("No balloon device found.")]
    DeviceNotFound,
    #[error("Amount of pages requested is too large.")]
    TooManyPagesRequested,
    #[error("Error creating the balloon device: {0}")]
    CreateFailure(BalloonError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BalloonError {
    #[error("Device not activated yet.")]
    DeviceNotActive,
    #[error("Attempting to use hinting when not enabled")]
    HintingNotEnabled,
    #[error("Received stats query when stats are disabled.")]
    StatisticsDisabled,
    #[error("Statistics cannot be enabled/disabled after activation.")]
    StatisticsStateChange,
    #[error("Requested memory should be less than {0}MiB")]
    TooMuchMemoryRequested(u32),
}

#[expect(clippy::enum_variant_names, reason = "the names are Firecracker's, which prints them")]
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootSourceError {
    #[error("The kernel file cannot be opened: {0}")]
    InvalidKernelPath(OsError),
    #[error("The initrd file cannot be opened due to invalid path or invalid permissions. {0}")]
    InvalidInitrdPath(OsError),
    #[error("The kernel command line is invalid: {0}")]
    InvalidKernelCommandLine(&'static str),
}

/// What can be wrong with a device of a running VM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("Failed perform action on device: Device not found")]
    NotFound,
    #[error("Block: {0}")]
    Block(#[from] BlockError),
    #[error("Balloon: {0}")]
    Balloon(#[from] BalloonError),
    #[error("Failed to create memory hotplug device: {0}")]
    Memory(#[from] VirtioMemError),
    #[error("I8042 error: i8042 internal buffer full.")]
    KeyboardFull,
    #[error("Metrics error: {0}")]
    Metrics(MetricsError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VirtioMemError {
    #[error("Device is not active")]
    NotActive,
    #[error("Size {0} is invalid: it must be a multiple of block size and less than the total size")]
    InvalidSize(u64),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockError {
    #[error("Invalid block config.")]
    InvalidBlockConfig,
    #[error("Running method expected different backend.")]
    InvalidBlockBackend,
    #[error("Virtio backend error: {0}")]
    VirtioBackend(#[from] BackingFileError),
    #[error("Vhost user backend error: Vhost-user error: Failed to connect to UDS Unix stream: {0}")]
    VhostUserBackend(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BackingFileError {
    #[error("Error manipulating the backing file: {0} {1}")]
    BackingFile(OsError, String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    #[error("Attempt to add block as a root device while the root device defined as a pmem device")]
    AddingSecondRootDevice,
    #[error("Unable to create the virtio block device: {0}")]
    CreateBlockDevice(#[from] BlockError),
    #[error("Unable to patch the block device: {0} Please verify the request arguments.")]
    DeviceUpdate(DeviceError),
    #[error("A root block device already exists!")]
    RootBlockDeviceAlreadyAdded,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PmemConfigError {
    #[error("Attempt to add pmem as a root device while the root device defined as a block device")]
    AddingSecondRootDevice,
    #[error("A root pmem device already exist")]
    RootPmemDeviceAlreadyExist,
    #[error("Unable to create the virtio-pmem device: {0}")]
    CreateDevice(#[from] PmemError),
    #[error("Unable to patch the pmem device: {0} Please verify the request arguments.")]
    DeviceUpdate(DeviceError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PmemError {
    #[error("Error accessing backing file: {0}")]
    BackingFile(OsError),
    #[error("Error backing file size is 0")]
    BackingFileZeroSize,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryHotplugError {
    #[error("Block size must not be lower than {0} MiB")]
    BlockSizeTooSmall(usize),
    #[error("Block size must be a power of 2")]
    BlockSizeNotPowerOfTwo,
    #[error("Slot size must not be lower than {0} MiB")]
    SlotSizeTooSmall(usize),
    #[error("Slot size must be a multiple of block size ({0} MiB)")]
    SlotSizeNotMultipleOfBlockSize(usize),
    #[error("Total size must not be lower than slot size ({0} MiB)")]
    TotalSizeTooSmall(usize),
    #[error("Total size must be a multiple of slot size ({0} MiB)")]
    TotalSizeNotMultipleOfSlotSize(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MachineConfigError {
    #[error("The memory size (MiB) is smaller than the previously set balloon device target size.")]
    IncompatibleBalloonSize,
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    InvalidMemorySize,
    #[error(
        "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."
    )]
    InvalidVcpuCount,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MmdsError {
    #[error("The MMDS patch request doesn't fit.")]
    DataStoreLimitExceeded,
    #[error("The MMDS data store is not initialized.")]
    NotInitialized,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MmdsConfigError {
    #[error("The list of network interface IDs that allow forwarding MMDS requests is empty.")]
    EmptyNetworkIfaceList,
    #[error("The MMDS IPv4 address is not link local.")]
    InvalidIpv4Addr,
    #[error(
        "The list of network interface IDs provided contains at least one ID that does not correspond to any existing \
         network interface."
    )]
    InvalidNetworkInterfaceId,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("Could not create the network device: {0}")]
    CreateNetworkDevice(#[from] NicError),
    #[error("Unable to update the net device: {0}")]
    DeviceUpdate(DeviceError),
    #[error("The MAC address is already in use: {0}")]
    GuestMacAddressInUse(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NicError {
    #[error("Open tap device failed: {0}")]
    TapOpen(TapError),
    #[error("Setting vnet header size failed: {0}")]
    TapSetVnetHdrSize(TapError),
    #[error("MTU {0} is out of range [68, 65535]")]
    InvalidMtu(u16),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VsockError {
    #[error("Cannot create backend for vsock device: {0}")]
    CreateVsockBackend(#[from] VsockBackendError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VsockBackendError {
    #[error("Error binding to the host-side Unix socket: {0}")]
    UnixBind(OsError),
}
