//! Size of the machine, its boot source, its hot-pluggable memory.

use super::{
    Resources,
    error::{BootSourceError, DeviceError, MachineConfigError, MemoryHotplugError, VirtioMemError},
    kernel::{BootFiles, DEFAULT_COMMAND_LINE, MAX_COMMAND_LINE},
};
use crate::wire::{
    devices::{MemoryHotplugConfig, MemoryHotplugStatus},
    machine::{BootSourceConfig, HugePageConfig, MachineConfig, MachineConfigUpdate, StaticCpuTemplate},
};

const MAX_VCPUS: u8 = 32;
const MIN_BLOCK_MIB: usize = 2;
const MIN_SLOT_MIB: usize = 128;

impl Resources {
    /// Updates the size of the machine.
    pub(super) fn update_machine(&mut self, update: &MachineConfigUpdate) -> Result<(), MachineConfigError> {
        let machine = &self.machine;
        let vcpu_count = update.vcpu_count.unwrap_or(machine.vcpu_count);
        let smt = update.smt.unwrap_or(machine.smt);
        if vcpu_count == 0 || vcpu_count > MAX_VCPUS || (smt && vcpu_count > 1 && vcpu_count % 2 == 1) {
            return Err(MachineConfigError::InvalidVcpuCount);
        }
        let mem_size_mib = update.mem_size_mib.unwrap_or(machine.mem_size_mib);
        let huge_pages = update.huge_pages.unwrap_or(machine.huge_pages);
        if mem_size_mib == 0 || (huge_pages == HugePageConfig::Hugetlbfs2M && !mem_size_mib.is_multiple_of(2))
        {
            return Err(MachineConfigError::InvalidMemorySize);
        }
        if self.balloon.as_ref().is_some_and(|balloon| mem_size_mib < balloon.config.amount_mib as usize) {
            return Err(MachineConfigError::IncompatibleBalloonSize);
        }
        self.machine = MachineConfig {
            vcpu_count,
            mem_size_mib,
            smt,
            cpu_template: match update.cpu_template {
                None => machine.cpu_template,
                Some(StaticCpuTemplate::None) => None,
                other => other,
            },
            track_dirty_pages: update.track_dirty_pages.unwrap_or(machine.track_dirty_pages),
            huge_pages,
        };
        Ok(())
    }

    /// Sets kernel, initrd and command line; the files are opened now and read at the start.
    pub(super) fn set_boot_source(&mut self, config: BootSourceConfig) -> Result<(), BootSourceError> {
        let files = BootFiles::open(&config)?;
        let line = config.boot_args.as_deref().unwrap_or(DEFAULT_COMMAND_LINE);
        let (boot, init) = split_command_line(line);
        let separator = if init.is_empty() { 0 } else { 4 };
        if boot.len() + 1 + separator + init.len() > MAX_COMMAND_LINE {
            return Err(BootSourceError::InvalidKernelCommandLine("Invalid cmdline capacity provided."));
        }
        self.boot_source = config;
        self.boot_files = Some(files);
        Ok(())
    }

    /// The kernel's command line: as configured, and what the VMM adds to it.
    pub(super) fn command_line(&self) -> Option<String> {
        let (boot, init) =
            split_command_line(self.boot_source.boot_args.as_deref().unwrap_or(DEFAULT_COMMAND_LINE));
        let mut line = boot.to_owned();
        let mut add = |word: &str| {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        };
        if !self.pci {
            add("pci=off");
        }
        if let Some(root) = self.drives.first().filter(|drive| drive.config.is_root_device) {
            match &root.config.partuuid {
                Some(uuid) => add(&format!("root=PARTUUID={uuid}")),
                None => add("root=/dev/vda"),
            }
            add(if root.config.is_read_only == Some(true) { "ro" } else { "rw" });
        } else if let Some(root) = self.pmem.iter().position(|pmem| pmem.root_device) {
            add(&format!("root=/dev/pmem{root}"));
            add(if self.pmem[root].read_only { "ro" } else { "rw" });
        }
        if !init.is_empty() {
            line.push_str(" -- ");
            line.push_str(init);
        }
        (line.len() < MAX_COMMAND_LINE).then_some(line)
    }

    /// Sets the memory that can be added later.
    pub(super) fn set_memory_hotplug(
        &mut self,
        config: MemoryHotplugConfig,
    ) -> Result<(), MemoryHotplugError> {
        let MemoryHotplugConfig { total_size_mib: total, block_size_mib: block, slot_size_mib: slot } =
            config;
        if block < MIN_BLOCK_MIB {
            return Err(MemoryHotplugError::BlockSizeTooSmall(MIN_BLOCK_MIB));
        }
        if !block.is_power_of_two() {
            return Err(MemoryHotplugError::BlockSizeNotPowerOfTwo);
        }
        if slot < MIN_SLOT_MIB {
            return Err(MemoryHotplugError::SlotSizeTooSmall(MIN_SLOT_MIB));
        }
        if !slot.is_multiple_of(block) {
            return Err(MemoryHotplugError::SlotSizeNotMultipleOfBlockSize(block));
        }
        if total < slot {
            return Err(MemoryHotplugError::TotalSizeTooSmall(slot));
        }
        if !total.is_multiple_of(slot) {
            return Err(MemoryHotplugError::TotalSizeNotMultipleOfSlotSize(slot));
        }
        self.memory_hotplug = Some(config);
        Ok(())
    }

    /// The state of that memory.
    pub(super) fn memory_hotplug_status(&self) -> Result<MemoryHotplugStatus, DeviceError> {
        let config = self.memory_hotplug.as_ref().ok_or(DeviceError::NotFound)?;
        Ok(MemoryHotplugStatus {
            block_size_mib: config.block_size_mib,
            total_size_mib: config.total_size_mib,
            slot_size_mib: config.slot_size_mib,
            plugged_size_mib: self.requested_hotplug_mib,
            requested_size_mib: self.requested_hotplug_mib,
        })
    }

    /// Asks the guest to plug so much of it.
    pub(super) fn update_memory_hotplug(&mut self, mib: usize, driver: bool) -> Result<(), DeviceError> {
        let config = self.memory_hotplug.as_ref().ok_or(DeviceError::NotFound)?;
        if !driver {
            return Err(VirtioMemError::NotActive.into());
        }
        if !mib.is_multiple_of(config.block_size_mib) || mib > config.total_size_mib {
            return Err(VirtioMemError::InvalidSize((mib as u64).wrapping_shl(20)).into());
        }
        self.requested_hotplug_mib = mib;
        Ok(())
    }
}

/// What is for the kernel and what is for init: the two are parted by the first ` -- ` outside of quotes.
fn split_command_line(line: &str) -> (&str, &str) {
    let outside_quotes = |at: usize| line[..at].matches('"').count().is_multiple_of(2);
    match line.match_indices(" -- ").find(|(at, _)| outside_quotes(*at)) {
        Some((at, separator)) => (line[..at].trim(), line[at + separator.len()..].trim()),
        None => (line.trim(), ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_gets_what_follows_two_dashes() {
        assert_eq!(split_command_line(" quiet -- --debug "), ("quiet", "--debug"));
        assert_eq!(split_command_line("a=\" -- \" b"), ("a=\" -- \" b", ""));
    }
}
