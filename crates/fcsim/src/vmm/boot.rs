//! The start of a VM: everything that Firecracker would refuse is looked at before the guest begins.

use std::sync::Arc;

use super::{
    State, Vmm,
    drives::check_pmem,
    start_error::{
        AllocateError, DeviceManagerError, ElfError, MemoryError, StartError, TemplateError, VmError,
    },
};
use crate::{
    guest::{Console, Guest, Image, Parts},
    log::panic_as_firecracker,
    wire::machine::{HugePageConfig, StaticCpuTemplate},
};

/// More memory than this a host does not map.
const MAX_MEMORY_MIB: u64 = 1 << 26;
/// More memory than this KVM does not take as one slot.
const MAX_SLOT_MIB: u64 = 8 << 20;
/// The room above the devices' addresses, for memory that is added later.
const MAX_PLUGGABLE_MIB: u64 = 512 << 10;
const NO_MEMORY: &str = "Attempt to allocate guest memory of length 0";

impl Vmm {
    /// Starts the VM; where that fails it stays as it was.
    pub(super) fn start(&mut self) -> Result<(), StartError> {
        let resources = &self.resources;
        let files = resources.boot_files.as_ref().ok_or(StartError::MissingKernelConfig)?;
        let memory_mib = resources.machine.mem_size_mib as u64;
        if memory_mib.is_multiple_of(1 << 44) {
            // its bytes are none, which Firecracker does not expect
            panic_as_firecracker("src/vmm/src/arch/x86_64/mod.rs:112:5", NO_MEMORY);
        }
        if memory_mib > MAX_MEMORY_MIB {
            return Err(MemoryError::MmapRegionError(rustix::io::Errno::NOMEM.into()).into());
        }
        if let Some(template) = resources.machine.cpu_template {
            check_template(template)?;
        }
        if memory_mib > MAX_SLOT_MIB {
            return Err(VmError::SetUserMemoryRegion(rustix::io::Errno::INVAL.into()).into());
        }
        let pluggable_mib =
            resources.memory_hotplug.as_ref().map_or(0, |memory| memory.total_size_mib as u64);
        if pluggable_mib > 0 && pluggable_mib.is_multiple_of(1 << 44) {
            return Err(AllocateError::InvalidSize(0).into());
        } else if pluggable_mib > MAX_PLUGGABLE_MIB {
            return Err(AllocateError::ResourceNotAvailable.into());
        }
        let console = Console::open(&resources.serial).map_err(DeviceManagerError::EventFd)?;
        files.check(memory_mib)?;
        if resources.machine.huge_pages == HugePageConfig::Hugetlbfs2M && free_huge_pages() < memory_mib / 2 {
            // they are not reserved: it is the first write into them, that of the kernel, which fails
            return Err(ElfError::ReadKernelImage.into());
        }
        let cmdline = resources
            .command_line()
            .ok_or(StartError::KernelCmdline("Inserting string would make command line too long."))?;
        for pmem in &resources.pmem {
            check_pmem(pmem)?;
        }
        let parts = Parts {
            memory_mib,
            cmdline,
            image: Image::new(memory_mib, resources.machine.track_dirty_pages).with_pluggable(pluggable_mib),
            console,
            disks: resources.disks(),
            nics: resources.nics(),
            vsock: resources.vsock.as_ref().map(|vsock| Arc::clone(&vsock.listener)),
            exit: Arc::clone(&self.settings.exit),
            faults: Arc::clone(&self.settings.faults),
        };
        let seed = self.settings.faults.seed.unwrap_or_else(|| seed_of(&self.settings.id));
        let guest = Guest::boot(parts, seed).map_err(|error| DeviceManagerError::EventFd(error.into()))?;
        guest.resume();
        self.guest = Some(guest);
        self.state = State::Running;
        Ok(())
    }
}

/// The seed of a guest's memory follows from its id, so that a run can be repeated.
fn seed_of(id: &str) -> u64 {
    id.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn free_huge_pages() -> u64 {
    std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// The built-in templates are for certain CPUs only.
fn check_template(template: StaticCpuTemplate) -> Result<(), TemplateError> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        info.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| line.split(": ").nth(1))
            .unwrap_or_default()
    };
    let model = (field("cpu family"), field("model\t"), field("stepping"));
    let (vendor, models): (_, &[(&str, &str, &str)]) = match template {
        StaticCpuTemplate::None => return Ok(()),
        StaticCpuTemplate::T2A => ("AuthenticAMD", &[("25", "1", "1")]),
        StaticCpuTemplate::T2S => ("GenuineIntel", &[("6", "85", "4"), ("6", "85", "7")]),
        StaticCpuTemplate::T2CL => ("GenuineIntel", &[("6", "85", "7"), ("6", "106", "6")]),
        StaticCpuTemplate::C3 | StaticCpuTemplate::T2 => {
            ("GenuineIntel", &[("6", "85", "4"), ("6", "85", "7"), ("6", "106", "6")])
        }
    };
    if field("vendor_id") != vendor {
        Err(TemplateError::CpuVendorMismatched)
    } else if !models.contains(&model) {
        Err(TemplateError::InvalidCpuModel)
    } else {
        Ok(())
    }
}
