//! Devices that come and go while the VM runs, which needs PCI.

use super::{
    Vmm,
    drives::{Drive, check_pmem},
    error::{ActionError, DriveError, PmemConfigError},
    preview,
};
use crate::{
    api::DeviceKind,
    wire::devices::{BlockDeviceConfig, NetworkInterfaceConfig, PmemConfig},
};

impl Vmm {
    fn check_hotplug(&self, in_use: bool) -> Result<(), ActionError> {
        preview("PCI device hotplug");
        if !self.resources.pci {
            Err(ActionError::PciNotEnabled)
        } else if in_use {
            Err(ActionError::DeviceIdInUse)
        } else {
            Ok(())
        }
    }

    /// Adds a drive.
    pub(super) fn hotplug_drive(&mut self, config: BlockDeviceConfig) -> Result<(), ActionError> {
        self.check_hotplug(
            self.resources.drives.iter().any(|drive| drive.config.drive_id == config.drive_id),
        )?;
        if config.is_root_device {
            return Err(DriveError::RootBlockDeviceAlreadyAdded.into());
        }
        self.resources.drives.push(Drive::open(config).map_err(DriveError::from)?);
        self.hand_over_disks();
        Ok(())
    }

    /// Adds a pmem device.
    pub(super) fn hotplug_pmem(&mut self, config: PmemConfig) -> Result<(), ActionError> {
        self.check_hotplug(self.resources.pmem.iter().any(|pmem| pmem.id == config.id))?;
        if config.root_device {
            return Err(PmemConfigError::AddingSecondRootDevice.into());
        }
        check_pmem(&config).map_err(PmemConfigError::from)?;
        self.resources.pmem.push(config);
        Ok(())
    }

    /// Adds a network interface.
    pub(super) fn hotplug_net(&mut self, config: NetworkInterfaceConfig) -> Result<(), ActionError> {
        self.check_hotplug(self.resources.nets.iter().any(|net| net.config.iface_id == config.iface_id))?;
        self.resources.hotplug_net(config)?;
        self.hand_over_nics();
        Ok(())
    }

    /// Takes a device away.
    pub(super) fn unplug(&mut self, kind: DeviceKind, id: &str) -> Result<(), ActionError> {
        preview("PCI device hot-unplug");
        if !self.resources.pci {
            return Err(ActionError::PciNotEnabled);
        }
        let resources = &mut self.resources;
        match kind {
            DeviceKind::Drive => {
                let at = resources.drives.iter().position(|drive| drive.config.drive_id == id);
                let at = at.ok_or(ActionError::DeviceNotFound)?;
                if resources.drives[at].config.is_root_device {
                    return Err(ActionError::CannotUnplugRoot);
                }
                resources.drives.remove(at);
                self.hand_over_disks();
            }
            DeviceKind::Pmem => {
                let at = resources
                    .pmem
                    .iter()
                    .position(|pmem| pmem.id == id)
                    .ok_or(ActionError::DeviceNotFound)?;
                if resources.pmem[at].root_device {
                    return Err(ActionError::CannotUnplugRoot);
                }
                resources.pmem.remove(at);
            }
            DeviceKind::Net => {
                let at = resources.nets.iter().position(|net| net.config.iface_id == id);
                resources.nets.remove(at.ok_or(ActionError::DeviceNotFound)?);
                self.hand_over_nics();
            }
        }
        Ok(())
    }
}
