//! Bodies about pausing, snapshots and their loading.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How much of memory a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum SnapshotType {
    Diff,
    #[default]
    Full,
}

/// `PUT /snapshot/create`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSnapshotParams {
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    pub snapshot_path: PathBuf,
    pub mem_file_path: PathBuf,
}

/// Where loaded memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum MemBackendType {
    File,
    Uffd,
}

/// The memory of a load.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemBackendConfig {
    pub backend_path: PathBuf,
    pub backend_type: MemBackendType,
}

/// Another TAP for an interface of the snapshot. Unknown fields are let through, as Firecracker does for this type.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct NetworkOverride {
    pub iface_id: String,
    pub host_dev_name: String,
}

/// Another socket for the snapshot's vsock. Unknown fields are let through, as Firecracker does for this type.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct VsockOverride {
    pub uds_path: String,
}

/// `PUT /snapshot/load`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadSnapshotConfig {
    pub snapshot_path: PathBuf,
    pub mem_file_path: Option<PathBuf>,
    pub mem_backend: Option<MemBackendConfig>,
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    #[serde(default)]
    pub track_dirty_pages: bool,
    #[serde(default)]
    pub resume_vm: bool,
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    pub vsock_override: Option<VsockOverride>,
    // taken and without effect: the simulated guest has no kvmclock that could jump
    #[serde(default, rename = "clock_realtime")]
    pub _clock_realtime: bool,
}

/// State asked of `PATCH /vm`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}

/// `PATCH /vm`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vm {
    pub state: VmState,
}
