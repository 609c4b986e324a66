//! The requests of Firecracker's API (v1.16) that mvm makes, and the answers that it reads.
//!
//! Field names and limits are those of Firecracker's `firecracker.yaml`. All paths are relative to the VMM's directory.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// `PUT /machine-config`
    MachineConfig(MachineConfig),
    /// `PUT /boot-source`
    BootSource(BootSource),
    /// `PUT /drives/<id>`
    Drive(Drive),
    /// `PUT /network-interfaces/<id>`
    NetworkInterface(NetworkInterface),
    /// `PUT /vsock`
    Vsock(Vsock),
    /// `PATCH /drives/<id>`: another file, or other limits
    DriveUpdate(DriveUpdate),
    /// `PATCH /network-interfaces/<id>`: other limits
    NetworkUpdate(NetworkUpdate),
    /// `PUT /entropy`
    Entropy,
    /// `PUT /mmds/config`; a snapshot keeps it
    MmdsConfig(MmdsConfig),
    /// `PUT /mmds`: all of what the guest reads there. No snapshot keeps it
    Mmds(serde_json::Value),
    /// `PUT /serial`
    Serial(Serial),
    /// `PUT /actions`, InstanceStart
    InstanceStart,
    /// `PUT /actions`, SendCtrlAltDel
    SendCtrlAltDel,
    /// `PATCH /vm`: the vCPUs stop. Idempotent.
    Pause,
    /// `PATCH /vm`: the vCPUs go on. Idempotent.
    Resume,
    /// `PUT /snapshot/create`; the VM is paused
    SnapshotCreate(SnapshotCreate),
    /// `PUT /snapshot/load`, in place of everything that configures a VM; its vCPUs stay paused
    SnapshotLoad(SnapshotLoad),
}

impl Call {
    /// Method, path and body.
    ///
    /// # Errors
    /// Never in practice: every body is plain data.
    pub fn request(&self) -> serde_json::Result<(&'static str, String, Vec<u8>)> {
        #[derive(Serialize)]
        struct Action {
            action_type: &'static str,
        }
        #[derive(Serialize)]
        struct Vm {
            state: &'static str,
        }
        let vm = |state| Ok(("PATCH", "/vm".into(), serde_json::to_vec(&Vm { state })?));
        let (path, body) = match self {
            Call::MachineConfig(body) => ("/machine-config".into(), serde_json::to_vec(body)?),
            Call::BootSource(body) => ("/boot-source".into(), serde_json::to_vec(body)?),
            Call::Drive(body) => (format!("/drives/{}", body.drive_id), serde_json::to_vec(body)?),
            Call::NetworkInterface(body) => {
                (format!("/network-interfaces/{}", body.iface_id), serde_json::to_vec(body)?)
            }
            Call::Vsock(body) => ("/vsock".into(), serde_json::to_vec(body)?),
            Call::DriveUpdate(body) => {
                return Ok(("PATCH", format!("/drives/{}", body.drive_id), serde_json::to_vec(body)?));
            }
            Call::NetworkUpdate(body) => {
                let path = format!("/network-interfaces/{}", body.iface_id);
                return Ok(("PATCH", path, serde_json::to_vec(body)?));
            }
            Call::Entropy => ("/entropy".into(), b"{}".to_vec()),
            Call::MmdsConfig(body) => ("/mmds/config".into(), serde_json::to_vec(body)?),
            Call::Mmds(body) => ("/mmds".into(), serde_json::to_vec(body)?),
            Call::Serial(body) => ("/serial".into(), serde_json::to_vec(body)?),
            Call::InstanceStart => {
                ("/actions".into(), serde_json::to_vec(&Action { action_type: "InstanceStart" })?)
            }
            Call::SendCtrlAltDel => {
                ("/actions".into(), serde_json::to_vec(&Action { action_type: "SendCtrlAltDel" })?)
            }
            Call::Pause => return vm("Paused"),
            Call::Resume => return vm("Resumed"),
            Call::SnapshotCreate(body) => ("/snapshot/create".into(), serde_json::to_vec(body)?),
            Call::SnapshotLoad(body) => ("/snapshot/load".into(), serde_json::to_vec(body)?),
        };
        Ok(("PUT", path, body))
    }
}

/// vCPUs and memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MachineConfig {
    /// 1 to 32; odd numbers too, as long as SMT is off, which is the default.
    pub vcpu_count: u32,
    /// In MiB.
    pub mem_size_mib: u64,
    /// Needed at boot for any Diff snapshot later.
    pub track_dirty_pages: bool,
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BootSource {
    /// An uncompressed ELF (x86_64) or Image (aarch64).
    pub kernel_image_path: String,
    /// The initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// The kernel's command line.
    pub boot_args: String,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drive {
    /// Its name in the API.
    pub drive_id: String,
    /// The file.
    pub path_on_host: String,
    /// Whether the kernel's command line names it as root.
    pub is_root_device: bool,
    /// Whether the guest may write.
    pub is_read_only: bool,
    /// `Writeback`: what the guest flushes is synced. Firecracker's default drops flushes, and a power cut what they held.
    pub cache_type: &'static str,
    /// Its limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// The metadata service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MmdsConfig {
    /// `V2`: no answer without a token.
    pub version: &'static str,
    /// The interfaces on which it is reached.
    pub network_interfaces: Vec<String>,
    /// Its address.
    pub ipv4_address: Ipv4Addr,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkInterface {
    /// Its name in the API.
    pub iface_id: String,
    /// The TAP.
    pub host_dev_name: String,
    /// The guest's MAC.
    pub guest_mac: String,
    /// Limits of what the guest receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Vsock {
    /// The guest's address; each VMM has a host of its own, so all guests have the same.
    pub guest_cid: u32,
    /// The host's socket.
    pub uds_path: String,
}

/// The console. It is the VMM's stdin and stdout: with a `serial_out_path` Firecracker would not read any input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Serial {
    /// Bytes beyond it are dropped; the guest is never blocked.
    pub rate_limiter: TokenBucket,
}

/// A snapshot to be made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotCreate {
    /// What of the memory is written.
    pub snapshot_type: SnapshotType,
    /// The devices' and vCPUs' state; a file that is there is emptied first.
    pub snapshot_path: String,
    /// The memory; a file of the guest's size that is there is written into.
    pub mem_file_path: String,
}

/// What of a guest's memory is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum SnapshotType {
    /// All of it.
    Full,
    /// The pages that were written to since the boot, the load, or the last snapshot. Where it succeeds, it begins anew.
    Diff,
}

/// A snapshot to be loaded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotLoad {
    /// The devices' and vCPUs' state.
    pub snapshot_path: String,
    /// The memory.
    pub mem_backend: MemBackend,
    /// Needed for any Diff snapshot later.
    pub track_dirty_pages: bool,
    /// Whether the vCPUs go on at once.
    pub resume_vm: bool,
    /// Which TAPs are behind its interfaces, where they are others than in the snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
}

/// The TAP behind an interface of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkOverride {
    /// Its name in the API.
    pub iface_id: String,
    /// The TAP.
    pub host_dev_name: String,
}

/// What changes of a disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DriveUpdate {
    /// Its name in the API.
    pub drive_id: String,
    /// The file, whose size the guest sees at its next look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// Its limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// What changes of a network interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkUpdate {
    /// Its name in the API.
    pub iface_id: String,
    /// Limits of what comes in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what goes out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Where memory comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemBackend {
    /// `File`: it is mapped privately, and never written to.
    pub backend_type: &'static str,
    /// The file.
    pub backend_path: String,
}

/// Limits of bandwidth and operations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations or packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A bucket of `size` tokens that fills within `refill_time`, and a first burst beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenBucket {
    /// Tokens: bytes or operations.
    pub size: u64,
    /// Tokens that are there once, at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// In ms.
    pub refill_time: u64,
}

/// `GET /`
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct InstanceInfo {
    /// The id given by `--id`.
    pub id: String,
    /// `Not started`, `Running` or `Paused`.
    pub state: String,
    /// The version.
    pub vmm_version: String,
}

impl InstanceInfo {
    /// Are its vCPUs paused?
    pub fn is_paused(&self) -> bool {
        self.state == "Paused"
    }
}

/// The body of a 400.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    pub fault_message: String,
}
