//! Where a snapshot comes from: who wrote it, on what machine.

use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::{vm::pool::config::VmmKind, vmm::process};

/// Where a snapshot comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The VMM that wrote it.
    pub vmm: VmmKind,
    /// Its version, which is the one that reads it.
    pub vmm_version: String,
    /// The host's CPU: vCPUs on another one would not find what they know.
    pub cpu_model: String,
    /// The host's kernel.
    pub host_kernel: String,
    /// The host's boot.
    pub boot_id: String,
}

impl Origin {
    /// This machine, and this VMM.
    pub fn here(vmm: VmmKind, vmm_version: &str) -> Self {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Self {
            vmm,
            vmm_version: vmm_version.to_owned(),
            cpu_model: cpu_model(),
            host_kernel: kernel,
            boot_id: process::boot_id(),
        }
    }

    /// May it be loaded here?
    ///
    /// # Errors
    /// [`SnapshotError::OtherCpu`].
    pub fn check(&self) -> Result<(), SnapshotError> {
        let now = cpu_model();
        match now == self.cpu_model {
            true => Ok(()),
            false => Err(SnapshotError::OtherCpu { then: self.cpu_model.clone(), now }),
        }
    }
}

/// The CPU: its name, family, model and stepping. Asked of the CPU itself, since /proc/cpuinfo takes a machine of many
/// CPUs milliseconds.
#[cfg(target_arch = "x86_64")]
pub fn cpu_model() -> String {
    use std::arch::x86_64::__cpuid;
    let mut name = Vec::with_capacity(48);
    for leaf in 0x8000_0002..=0x8000_0004_u32 {
        let part = __cpuid(leaf);
        for register in [part.eax, part.ebx, part.ecx, part.edx] {
            name.extend_from_slice(&register.to_le_bytes());
        }
    }
    let name = String::from_utf8_lossy(&name).trim_matches(['\0', ' ']).to_owned();
    format!("{name} {:08x}", __cpuid(1).eax)
}

/// The CPU: its identification register.
#[cfg(not(target_arch = "x86_64"))]
pub fn cpu_model() -> String {
    std::fs::read_to_string("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_another_cpu_is_refused() {
        let here = Origin::here(VmmKind::Sim, "1.16.1");
        assert!(!here.cpu_model.trim().is_empty());
        here.check().unwrap();
        let there = Origin { cpu_model: "Z80".into(), ..here };
        assert!(matches!(there.check(), Err(SnapshotError::OtherCpu { then, .. }) if then == "Z80"));
    }
}
