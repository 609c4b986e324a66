//! A VM from one JSON file (`--config-file`): configured and started before the API is served.

use super::{
    Vmm,
    error::{
        BalloonConfigError, BootSourceError, DriveError, MachineConfigError, MemoryHotplugError,
        MmdsConfigError, MmdsError, NetError, PmemConfigError, StartError, VsockError,
    },
};
use crate::{
    host::errno::OsError,
    log::{self, LoggerUpdateError, log, panic_as_firecracker},
    metrics::{self, MetricsError},
    wire::{
        cpu::{CustomCpuTemplate, CustomCpuTemplateOrPath},
        machine::VmmConfig,
    },
};

/// Why a VM did not come from its file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigFileError {
    #[error("Configuration for VMM from one single json failed: {0}")]
    ParseFromJson(#[from] ResourcesError),
    #[error("Could not Start MicroVM from one single json: {0}")]
    StartMicroVM(#[from] StartError),
}

/// What in the file is wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResourcesError {
    #[error("Balloon device error: {0}")]
    BalloonDevice(#[from] BalloonConfigError),
    #[error("Block device error: {0}")]
    BlockDevice(#[from] DriveError),
    #[error("Boot source error: {0}")]
    BootSource(#[from] BootSourceError),
    #[error("File operation error: {0}")]
    File(OsError),
    #[error("Invalid JSON: {0}")]
    InvalidJson(#[from] serde_json::Error),
    #[error("Logger error: {0}")]
    Logger(#[from] LoggerUpdateError),
    #[error("Metrics error: {0}")]
    Metrics(#[from] MetricsError),
    #[error("MMDS error: {0}")]
    Mmds(#[from] MmdsError),
    #[error("MMDS config error: {0}")]
    MmdsConfig(#[from] MmdsConfigError),
    #[error("Network device error: {0}")]
    NetDevice(#[from] NetError),
    #[error("VM config error: {0}")]
    MachineConfig(#[from] MachineConfigError),
    #[error("Vsock device error: {0}")]
    VsockDevice(#[from] VsockError),
    #[error("Pmem device error: {0}")]
    PmemConfig(#[from] PmemConfigError),
    #[error("Memory hotplug config error: {0}")]
    MemoryHotplugConfig(#[from] MemoryHotplugError),
}

impl Vmm {
    /// Configures and starts a VM.
    pub(crate) fn start_from_json(
        &mut self,
        json: &str,
        metadata: Option<&str>,
    ) -> Result<(), ConfigFileError> {
        self.configure(json, metadata)?;
        self.boot_path = true;
        self.start()?;
        log!(Info, "Successfully started microvm that was configured from one single json");
        Ok(())
    }

    /// Puts what `--metadata` named into the store; what is no JSON makes Firecracker panic at this place.
    pub(crate) fn put_metadata(&mut self, metadata: Option<&str>, place: &str) -> Result<(), MmdsError> {
        let Some(text) = metadata else { return Ok(()) };
        let value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => panic_as_firecracker(
                place,
                &format!("MMDS error: metadata provided not valid json: {error:?}"),
            ),
        };
        self.resources.mmds_or_default(self.settings.mmds_limit).put(value)?;
        log!(Info, "Successfully added metadata to mmds from file");
        Ok(())
    }

    fn configure(&mut self, json: &str, metadata: Option<&str>) -> Result<(), ResourcesError> {
        let config: VmmConfig = serde_json::from_str(json)?;
        if let Some(logger) = config.logger {
            log::update(logger)?;
        }
        if let Some(config) = config.metrics {
            metrics::init(&config)?;
        }
        let resources = &mut self.resources;
        if let Some(machine) = config.machine_config {
            resources.update_machine(&machine.into())?;
        }
        match config.cpu_config {
            Some(CustomCpuTemplateOrPath::Path(path)) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| ResourcesError::File(error.into()))?;
                serde_json::from_str::<CustomCpuTemplate>(&text)?;
            }
            Some(CustomCpuTemplateOrPath::Template(_)) | None => {}
        }
        resources.set_boot_source(config.boot_source)?;
        for drive in config.drives {
            resources.insert_drive(drive)?;
        }
        for net in config.network_interfaces {
            resources.insert_net(net)?;
        }
        if let Some(vsock) = config.vsock {
            resources.set_vsock(vsock)?;
        }
        if let Some(balloon) = config.balloon {
            resources.set_balloon(balloon)?;
        }
        self.put_metadata(metadata, "src/vmm/src/resources.rs:216:44")?;
        let resources = &mut self.resources;
        if let Some(mmds) = config.mmds_config {
            resources.set_mmds_config(&mmds, self.settings.mmds_limit)?;
        }
        if let Some(entropy) = config.entropy {
            resources.set_entropy(entropy);
        }
        for pmem in config.pmem_devices {
            resources.insert_pmem(pmem)?;
        }
        if let Some(memory) = config.memory_hotplug {
            resources.set_memory_hotplug(memory)?;
        }
        Ok(())
    }
}
