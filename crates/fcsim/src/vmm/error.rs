//! What the VMM refuses and why. The texts are Firecracker's to the letter: they are what its callers match on.

use crate::{
    host::{errno::OsError, tap::TapError},
    log::LogFileError,
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
    Logger(#[from] LogFileError),
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

impl ActionError {
    /// The status of the answer.
    pub(crate) fn status(&self) -> u16 {
        if matches!(self, Self::MmdsLimit(_)) { 413 } else { 400 }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BalloonConfigError {
    #[error("No balloon device found.")]
    NotFound,
    #[error("Amount of pages requested is too large.")]
    TooManyPages,
    #[error("Error creating the balloon device: {0}")]
    Create(BalloonError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BalloonError {
    #[error("Device not activated yet.")]
    NotActive,
    #[error("Attempting to use hinting when not enabled")]
    HintingNotEnabled,
    #[error("Received stats query when stats are disabled.")]
    StatisticsDisabled,
    #[error("Statistics cannot be enabled/disabled after activation.")]
    StatisticsStateChange,
    #[error("Requested memory should be less than {0}MiB")]
    TooMuchMemory(u32),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootSourceError {
    #[error("The kernel file cannot be opened: {0}")]
    Kernel(OsError),
    #[error("The initrd file cannot be opened due to invalid path or invalid permissions. {0}")]
    Initrd(OsError),
    #[error("The kernel command line is invalid: Invalid cmdline capacity provided.")]
    CommandLine,
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
    InvalidConfig,
    #[error("Running method expected different backend.")]
    InvalidBackend,
    #[error("Virtio backend error: Error manipulating the backing file: {0} {1}")]
    File(OsError, String),
    #[error("Vhost user backend error: Vhost-user error: Failed to connect to UDS Unix stream: {0}")]
    VhostUser(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    #[error("Attempt to add block as a root device while the root device defined as a pmem device")]
    SecondRoot,
    #[error("Unable to create the virtio block device: {0}")]
    Create(#[from] BlockError),
    #[error("Unable to patch the block device: {0} Please verify the request arguments.")]
    Update(DeviceError),
    #[error("A root block device already exists!")]
    RootExists,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PmemConfigError {
    #[error("Attempt to add pmem as a root device while the root device defined as a block device")]
    SecondRoot,
    #[error("A root pmem device already exist")]
    RootExists,
    #[error("Unable to create the virtio-pmem device: {0}")]
    Create(#[from] PmemError),
    #[error("Unable to patch the pmem device: {0} Please verify the request arguments.")]
    Update(DeviceError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PmemError {
    #[error("Error accessing backing file: {0}")]
    File(OsError),
    #[error("Error backing file size is 0")]
    Empty,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryHotplugError {
    #[error("Block size must not be lower than {0} MiB")]
    BlockTooSmall(usize),
    #[error("Block size must be a power of 2")]
    BlockNotPowerOfTwo,
    #[error("Slot size must not be lower than {0} MiB")]
    SlotTooSmall(usize),
    #[error("Slot size must be a multiple of block size ({0} MiB)")]
    SlotNotMultiple(usize),
    #[error("Total size must not be lower than slot size ({0} MiB)")]
    TotalTooSmall(usize),
    #[error("Total size must be a multiple of slot size ({0} MiB)")]
    TotalNotMultiple(usize),
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
    LimitExceeded,
    #[error("The MMDS data store is not initialized.")]
    NotInitialized,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MmdsConfigError {
    #[error("The list of network interface IDs that allow forwarding MMDS requests is empty.")]
    NoInterfaces,
    #[error("The MMDS IPv4 address is not link local.")]
    Address,
    #[error(
        "The list of network interface IDs provided contains at least one ID that does not correspond to any existing \
         network interface."
    )]
    UnknownInterface,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("Could not create the network device: {0}")]
    Create(#[from] NicError),
    #[error("Unable to update the net device: {0}")]
    Update(DeviceError),
    #[error("The MAC address is already in use: {0}")]
    MacInUse(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum NicError {
    #[error("{0}")]
    Tap(#[from] TapError),
    #[error("MTU {0} is out of range [68, 65535]")]
    Mtu(u16),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VsockError {
    #[error("Cannot create backend for vsock device: Error binding to the host-side Unix socket: {0}")]
    Bind(OsError),
}

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("Cannot start microvm without kernel configuration.")]
    NoKernel,
    #[error(
        "System configuration error: Cannot load kernel due to invalid memory configuration or invalid kernel image: {0}"
    )]
    Kernel(#[from] KernelError),
    #[error("Error with initrd initialization: {0}.")]
    Initrd(#[from] InitrdError),
    #[error("Failed to get CPU template: {0}")]
    Template(#[from] TemplateError),
    #[error("Invalid Memory Configuration: {0}")]
    Memory(#[from] MemoryError),
    #[error("Invalid kernel command line: Inserting string would make command line too long.")]
    CommandLine,
    #[error("Failed to create device manager: Error with EventFd: {0}")]
    Serial(OsError),
    #[error("Cannot create pmem device: {0}")]
    Pmem(#[from] PmemError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("CPU vendor mismatched between actual CPU and CPU template.")]
    Vendor,
    #[error("The current CPU model is not permitted to apply the CPU template.")]
    Model,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("Cannot create mmap region: {0}")]
    Mmap(OsError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InitrdError {
    #[error("Failed to compute the initrd address")]
    Address,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Kernel Loader: failed to load ELF kernel image: Kernel Loader: {0}")]
pub(crate) struct KernelError(pub &'static str);
