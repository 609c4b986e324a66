//! From an HTTP request to an action of the VMM and from its outcome to a response.

mod route;

use serde_json::{Value, json};

use crate::{
    http::Response,
    wire::{cpu::CustomCpuTemplate, devices::*, machine::*, snapshot::*},
};

pub(crate) use route::route;

/// What can be asked of the VMM.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    ConfigureBootSource(BootSourceConfig),
    ConfigureLogger(LoggerConfig),
    ConfigureMetrics(MetricsConfig),
    ConfigureSerial(SerialConfig),
    CreateSnapshot(CreateSnapshotParams),
    GetBalloon,
    GetBalloonStats,
    GetFullConfig,
    GetMmds,
    GetMachineConfig,
    GetInstanceInfo,
    GetVersion,
    FlushMetrics,
    InsertDrive(BlockDeviceConfig),
    InsertPmem(PmemConfig),
    UpdatePmem(PmemDeviceUpdateConfig),
    InsertNet(NetworkInterfaceConfig),
    LoadSnapshot(LoadSnapshotConfig),
    PatchMmds(Value),
    Pause,
    PutMmds(Value),
    PutCpuConfig(#[expect(dead_code, reason = "checked for shape; no CPU is behind it")] CustomCpuTemplate),
    Resume,
    SetBalloon(BalloonDeviceConfig),
    SetMmdsConfig(MmdsConfig),
    SetVsock(VsockDeviceConfig),
    SetEntropy(EntropyDeviceConfig),
    GetMemoryHotplug,
    SetMemoryHotplug(MemoryHotplugConfig),
    UpdateMemoryHotplug(MemoryHotplugSizeUpdate),
    Start,
    SendCtrlAltDel,
    UpdateBalloon(BalloonUpdateConfig),
    UpdateBalloonStats(BalloonUpdateStatsConfig),
    StartHinting(StartHintingCmd),
    GetHintingStatus,
    StopHinting,
    UpdateDrive(BlockDeviceUpdateConfig),
    UpdateNet(NetworkInterfaceUpdateConfig),
    UpdateMachineConfig(MachineConfigUpdate),
    Unplug(DeviceKind, String),
}

/// Devices that can be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Drive,
    Net,
    Pmem,
}

/// What an action gives back when it went well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Empty,
    Json(String),
}

impl Reply {
    /// A reply with this value.
    pub(crate) fn json(value: &impl serde::Serialize) -> Self {
        // the values are plain structures and JSON values with text keys, which always serialize
        Self::Json(serde_json::to_string(value).unwrap_or_default())
    }
}

/// The response with this fault.
pub(crate) fn fault(status: u16, message: &str) -> Response {
    Response::with_body(status, json!({ "fault_message": message }).to_string())
}
