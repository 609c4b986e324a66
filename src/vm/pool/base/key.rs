//! What a base snapshot depends on, and the key that follows from it. Does no I/O.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::vm::{
    instance::fc_config,
    naming::BaseKey,
    pool::{
        artifacts::Manifest,
        config::{AgentMode, Pool, Resources, VmmKind},
    },
};

/// Everything that a base snapshot depends on. Where one of them is another one, so is the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingredients {
    /// The sha256 of the kernel.
    pub kernel: String,
    /// That of the initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// That of the root file system.
    pub rootfs: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// The guest's devices, disks and NIC among them, in order.
    pub devices: Vec<String>,
    /// What the guest has.
    pub resources: Resources,
    /// The VMM.
    pub vmm: VmmKind,
    /// Its version.
    pub vmm_version: String,
    /// The version of the protocol that the guest's agent speaks; 0 where there is no agent.
    pub guest_protocol: u32,
    /// The host's CPU.
    pub cpu_model: String,
}

impl Ingredients {
    /// Those of a guest of this pool that gets these resources and runs this revision, on this VMM and this CPU.
    pub fn of(
        pool: &Pool,
        resources: Resources,
        manifest: &Manifest,
        vmm_version: &str,
        cpu_model: &str,
    ) -> Self {
        Self {
            kernel: manifest.kernel.sha256.clone(),
            initrd: manifest.initrd.as_ref().map(|initrd| initrd.sha256.clone()),
            rootfs: manifest.rootfs.sha256.clone(),
            cmdline: manifest.cmdline.clone(),
            devices: fc_config::devices(&resources, manifest, pool.agent, pool.metadata_enabled),
            resources,
            vmm: pool.vmm,
            vmm_version: vmm_version.to_owned(),
            guest_protocol: guest_protocol(pool.agent),
            cpu_model: cpu_model.to_owned(),
        }
    }

    /// The key: the sha256 of a line for each of them, in the order below, of the form
    ///
    /// ```text
    /// NAME LENGTH VALUE
    /// ```
    /// with the value's length in bytes, so that no value can look like two. The first line, `base 1 1`, counts the forms
    /// of this text; a list has a line for each of its members, and what is not there has none.
    pub fn key(&self) -> BaseKey {
        let Self {
            kernel,
            initrd,
            rootfs,
            cmdline,
            devices,
            resources: Resources { vcpus, mem_mib, data_disk_mib },
            vmm,
            vmm_version,
            guest_protocol,
            cpu_model,
        } = self;
        let mut hasher = Sha256::new();
        let mut line = |name: &str, value: &str| hasher.update(format!("{name} {} {value}\n", value.len()));
        line("base", "1");
        line("kernel", kernel);
        initrd.iter().for_each(|initrd| line("initrd", initrd));
        line("rootfs", rootfs);
        line("cmdline", cmdline);
        devices.iter().for_each(|device| line("device", device));
        line("vcpus", &vcpus.to_string());
        line("mem_mib", &mem_mib.to_string());
        line("data_disk_mib", &data_disk_mib.to_string());
        line("vmm", &vmm.to_string());
        line("vmm_version", vmm_version);
        line("guest_protocol", &guest_protocol.to_string());
        line("cpu_model", cpu_model);
        BaseKey::from_sha256(hasher.finalize().into())
    }
}

fn guest_protocol(agent: AgentMode) -> u32 {
    match agent {
        AgentMode::None => 0,
        AgentMode::Required => mvm_proto::hello::VERSION,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Some, of a guest with this much memory.
    pub fn ingredients(mem_mib: u64) -> Ingredients {
        Ingredients {
            kernel: "aa".repeat(32),
            initrd: None,
            rootfs: "bb".repeat(32),
            cmdline: "quiet".into(),
            devices: vec!["drive rootfs rootfs.ext4 root rw Writeback".into(), "nic eth0".into()],
            resources: Resources { vcpus: 1, mem_mib, data_disk_mib: 8 },
            vmm: VmmKind::Sim,
            vmm_version: "1.16.1".into(),
            guest_protocol: 0,
            cpu_model: crate::vm::snapshot::cpu_model(),
        }
    }

    fn pinned() -> Ingredients {
        Ingredients { cpu_model: "Z80 00000001".into(), ..ingredients(128) }
    }

    /// Bases, and records that name them, outlive this program. The value is not its own: it was made with
    /// `printf 'base 1 1\nkernel 64 aa…\n…' | sha256sum`.
    #[test]
    fn the_key_of_the_same_ingredients_stays_the_same() {
        assert_eq!(
            pinned().key().to_string(),
            "24e3110bd3d5c602d59a70ea747c9b89b70ff7fd8c6614a4c2f6e2d571c15b9a"
        );
    }

    #[test]
    fn each_ingredient_makes_another_key() {
        type Change = fn(&mut Ingredients);
        let changes: [(&str, Change); 16] = [
            ("none", |_| ()),
            ("kernel", |i| i.kernel = "cc".repeat(32)),
            ("initrd", |i| i.initrd = Some("cc".repeat(32))),
            ("rootfs", |i| i.rootfs = "cc".repeat(32)),
            ("cmdline", |i| i.cmdline.push(' ')),
            ("another line in cmdline", |i| i.cmdline = "quiet\ndevice 8 nic eth0".into()),
            ("a device more", |i| i.devices.push("entropy".into())),
            ("other order", |i| i.devices.reverse()),
            ("other device", |i| i.devices[0] = i.devices[0].replace("rw", "ro")),
            ("vcpus", |i| i.resources.vcpus = 2),
            ("mem_mib", |i| i.resources.mem_mib = 129),
            ("data_disk_mib", |i| i.resources.data_disk_mib = 9),
            ("vmm", |i| i.vmm = VmmKind::Firecracker),
            ("vmm_version", |i| i.vmm_version = "1.16.2".into()),
            ("guest_protocol", |i| i.guest_protocol = 1),
            ("cpu_model", |i| i.cpu_model = "Z80 00000002".into()),
        ];
        let mut seen = std::collections::BTreeMap::new();
        for (what, change) in changes {
            let mut changed = pinned();
            change(&mut changed);
            let other = seen.insert(changed.key(), what);
            assert_eq!(other, None, "{what}");
        }
    }
}
