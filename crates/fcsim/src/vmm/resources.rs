//! All that is configured, before and after the start, and how it is shown again.

use std::sync::Arc;

use super::{balloon::Balloon, drives::Drive, kernel::BootFiles, mmds::Mmds, nets::Net, vsock::Vsock};
use crate::{
    guest::{Disk, GuestState, Nic},
    snapshot::VmState,
    wire::{devices::*, machine::*},
};

/// Configuration and the open files behind it.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    pub machine: MachineConfig,
    pub boot_source: BootSourceConfig,
    pub(super) boot_files: Option<BootFiles>,
    /// The root drive first.
    pub(super) drives: Vec<Drive>,
    pub(super) nets: Vec<Net>,
    pub(super) pmem: Vec<PmemConfig>,
    pub(super) vsock: Option<Vsock>,
    pub(super) balloon: Option<Balloon>,
    pub entropy: Option<EntropyDeviceConfig>,
    pub memory_hotplug: Option<MemoryHotplugConfig>,
    pub(super) requested_hotplug_mib: usize,
    pub(super) mmds: Option<Mmds>,
    pub serial: SerialConfig,
    pub pci: bool,
}

impl Resources {
    /// What `GET /vm/config` shows. A running VM's devices are in the order of their ids.
    pub(super) fn full_config(&self, running: bool) -> VmmConfig {
        let mut drives: Vec<_> = self.drives.iter().map(|drive| drive.config.clone()).collect();
        let mut network_interfaces: Vec<_> = self.nets.iter().map(|net| net.config.clone()).collect();
        let mut pmem_devices = self.pmem.clone();
        if running {
            drives.sort_by(|a, b| a.drive_id.cmp(&b.drive_id));
            network_interfaces.sort_by(|a, b| a.iface_id.cmp(&b.iface_id));
            pmem_devices.sort_by(|a, b| a.id.cmp(&b.id));
        }
        VmmConfig {
            balloon: self.balloon.as_ref().map(|balloon| balloon.config.clone()),
            drives,
            boot_source: self.boot_source.clone(),
            cpu_config: None,
            logger: None,
            machine_config: Some(self.machine.clone()),
            metrics: None,
            mmds_config: self.mmds_config(),
            network_interfaces,
            vsock: self.vsock.as_ref().map(|vsock| vsock.config.clone()),
            entropy: self.entropy.clone(),
            pmem_devices,
            memory_hotplug: self.memory_hotplug.clone(),
        }
    }

    /// What a snapshot keeps.
    pub(super) fn to_state(&self, guest: GuestState) -> VmState {
        VmState {
            machine: self.machine.clone(),
            boot_source: self.boot_source.clone(),
            drives: self.drives.iter().map(|drive| drive.config.clone()).collect(),
            nets: self.nets.iter().map(|net| net.config.clone()).collect(),
            pmem: self.pmem.clone(),
            vsock: self.vsock.as_ref().map(|vsock| vsock.config.clone()),
            balloon: self.balloon.as_ref().map(|balloon| balloon.config.clone()),
            entropy: self.entropy.clone(),
            memory_hotplug: self.memory_hotplug.clone(),
            requested_hotplug_mib: self.requested_hotplug_mib,
            mmds: self.mmds_config(),
            pci: self.pci,
            guest,
        }
    }

    /// The drives, for the guest.
    pub(super) fn disks(&self) -> Vec<Disk> {
        self.drives.iter().filter_map(Drive::disk).collect()
    }

    /// The network interfaces, for the guest.
    pub(super) fn nics(&self) -> Vec<Arc<Nic>> {
        self.nets.iter().map(|net| Arc::clone(&net.nic)).collect()
    }

    /// Sets the entropy device.
    pub(super) fn set_entropy(&mut self, config: EntropyDeviceConfig) {
        self.entropy = Some(EntropyDeviceConfig {
            rate_limiter: crate::wire::RateLimiterConfig::effective(config.rate_limiter),
        });
    }
}
