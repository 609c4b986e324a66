//! A tenant's quotas on this node: what they are, and the decision whether one more fits. Pure.

use serde::{Deserialize, Serialize};

/// What a tenant may use on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// vCPUs of running and warm instances.
    pub max_vcpus: u32,
    /// Memory of running and warm instances, in MiB.
    pub max_mem_mib: u64,
    /// Instances that run.
    pub max_running: u32,
    /// Instances that are warm.
    pub max_warm: u32,
    /// Pools.
    pub max_pools: u32,
    /// Instances of one pool, in any state.
    pub max_instances_per_pool: u32,
    /// Virtual size of the disks of running, warm and sleeping instances, of what their memory takes asleep, and of the
    /// revisions and base snapshots, in GiB.
    pub max_disk_gib: u64,
    /// Console and VMM logs of one instance, in MiB.
    pub log_mib: u32,
    /// Open connections of one instance to the outside or the host.
    pub max_conns: u32,
    /// New connections of one instance, per second.
    pub conns_per_second: u32,
    /// Bandwidth of one instance, each way, in Mbit/s; 0: not limited.
    pub net_mbps: u32,
    /// Packets of one instance, each way, per second; 0: not limited.
    pub net_pps: u32,
    /// Operations of each disk, per second; 0: not limited.
    pub disk_iops: u32,
    /// Bandwidth of each disk, in MB/s; 0: not limited.
    pub disk_mbps: u32,
}

impl Quotas {
    /// The same without limits of what a guest's devices do.
    pub fn without_rates(&self) -> Self {
        Self { net_mbps: 0, net_pps: 0, disk_iops: 0, disk_mbps: 0, ..self.clone() }
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            max_vcpus: 64,
            max_mem_mib: 64 * 1024,
            max_running: 100,
            max_warm: 100,
            max_pools: 16,
            max_instances_per_pool: 256,
            max_disk_gib: 500,
            log_mib: 16,
            max_conns: 2000,
            conns_per_second: 200,
            net_mbps: 0,
            net_pps: 0,
            disk_iops: 0,
            disk_mbps: 0,
        }
    }
}

/// A Linux bridge takes 1,023 ports: what one tenant may run on one node, whatever its quota says.
pub const MAX_VMS_OF_TENANT: u32 = 1000;

/// The first field in which two differ: its name, what it is, what the other one's is.
pub fn difference(is: &Quotas, other: &Quotas) -> Option<(&'static str, String, String)> {
    let fields = |quotas: &Quotas| serde_json::to_value(quotas).unwrap_or_default();
    let (is, other) = (fields(is), fields(other));
    let name = FIELDS.into_iter().find(|name| is[*name] != other[*name])?;
    Some((name, is[name].to_string(), other[name].to_string()))
}

/// The names of all quotas.
pub const FIELDS: [&str; 14] = [
    "max_vcpus",
    "max_mem_mib",
    "max_running",
    "max_warm",
    "max_pools",
    "max_instances_per_pool",
    "max_disk_gib",
    "log_mib",
    "max_conns",
    "conns_per_second",
    "net_mbps",
    "net_pps",
    "disk_iops",
    "disk_mbps",
];

/// What one VMM takes, or what several take together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// VMs whose vCPUs run.
    pub running: u32,
    /// VMs whose vCPUs are paused.
    pub warm: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// Guest memory, in MiB.
    pub mem_mib: u64,
    /// Virtual size of the disks, and of the memory where it is or will be asleep, in MiB.
    pub disk_mib: u64,
}

impl Use {
    /// VMMs.
    pub fn vms(self) -> u32 {
        self.running.saturating_add(self.warm)
    }

    /// The same with its vCPUs paused.
    pub fn paused(self) -> Self {
        Self { running: 0, warm: self.vms(), ..self }
    }

    /// The same with its vCPUs running.
    pub fn resumed(self) -> Self {
        Self { running: self.vms(), warm: 0, ..self }
    }

    /// What is left of it asleep: the disk.
    pub fn asleep(self) -> Self {
        Self { disk_mib: self.disk_mib, ..Self::default() }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            running: self.running.saturating_add(other.running),
            warm: self.warm.saturating_add(other.warm),
            vcpus: self.vcpus.saturating_add(other.vcpus),
            mem_mib: self.mem_mib.saturating_add(other.mem_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
        }
    }
}

/// A limit that one more would exceed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {used}, and this needs {wanted}", used = in_use(*used, *limit), wanted = more(*used, *wanted))]
pub struct Exceeded {
    /// The limit's name, as in the file.
    pub what: &'static str,
    /// What is in use.
    pub used: u64,
    /// What was asked for.
    pub wanted: u64,
    /// The limit.
    pub limit: u64,
}

fn in_use(used: u64, limit: u64) -> String {
    if used == 0 { format!("{limit} are allowed") } else { format!("{used} of {limit} are in use") }
}

fn more(used: u64, wanted: u64) -> String {
    if used == 0 { wanted.to_string() } else { format!("{wanted} more") }
}

impl Exceeded {
    /// The option of `tenant update` that raises the limit.
    pub fn option(&self) -> String {
        let name = self.what.split(',').next().unwrap_or_default();
        format!("--{}", name.replace('_', "-"))
    }
}

/// What a limit of the disk is called: it is set in GiB and compared in MiB.
pub const MAX_DISK: &str = "max_disk_gib, in MiB";

/// Would `used` and `wanted` together stay within `limit`?
///
/// # Errors
/// [`Exceeded`] says by how much not.
pub fn within(what: &'static str, used: u64, wanted: u64, limit: u64) -> Result<(), Exceeded> {
    if used.saturating_add(wanted) <= limit { Ok(()) } else { Err(Exceeded { what, used, wanted, limit }) }
}

impl Quotas {
    /// May a tenant that uses `used` run one more that takes `wanted`?
    ///
    /// # Errors
    /// The first limit that would be exceeded.
    pub fn admit(&self, used: Use, wanted: Use) -> Result<(), Exceeded> {
        within("max_running", used.running.into(), wanted.running.into(), self.max_running.into())?;
        within("max_warm", used.warm.into(), wanted.warm.into(), self.max_warm.into())?;
        let (vms, more) = (used.vms().into(), wanted.vms().into());
        within("VMs of a tenant on one node", vms, more, MAX_VMS_OF_TENANT.into())?;
        within("max_vcpus", used.vcpus.into(), wanted.vcpus.into(), self.max_vcpus.into())?;
        within("max_mem_mib", used.mem_mib, wanted.mem_mib, self.max_mem_mib)?;
        within(MAX_DISK, used.disk_mib, wanted.disk_mib, self.max_disk_mib())
    }

    /// What lies on the disk may take so much.
    pub fn max_disk_mib(&self) -> u64 {
        self.max_disk_gib.saturating_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quota_is_known_by_name() {
        let all = serde_json::to_value(Quotas::default()).unwrap();
        assert_eq!(all.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>(), {
            let mut sorted = FIELDS;
            sorted.sort_unstable();
            sorted
        });
    }

    #[test]
    fn each_limit_is_reached_and_not_passed() {
        let quotas =
            Quotas { max_vcpus: 4, max_mem_mib: 400, max_running: 4, max_disk_gib: 4, ..Quotas::default() };
        let one = Use { running: 1, warm: 0, vcpus: 1, mem_mib: 100, disk_mib: 1024 };
        let three = one.plus(one).plus(one);
        assert_eq!(quotas.admit(three, one), Ok(()));
        let cases = [
            (Use { running: 2, ..one }, "max_running"),
            (Use { warm: 101, ..one }, "max_warm"),
            (Use { vcpus: 2, ..one }, "max_vcpus"),
            (Use { mem_mib: 101, ..one }, "max_mem_mib"),
            (Use { disk_mib: 1025, ..one }, "max_disk_gib, in MiB"),
        ];
        for (wanted, what) in cases {
            assert_eq!(quotas.admit(three, wanted).unwrap_err().what, what);
        }
    }

    proptest::proptest! {
        /// Whatever is asked for in whatever order: what was admitted, taken together, is within every limit.
        #[test]
        fn what_is_admitted_stays_within(
            asked in proptest::collection::vec((0_u32..9, 0_u64..4000, 0_u64..9000), 0..60),
            limits in (0_u32..40, 0_u64..20_000, 0_u64..40, 0_u32..20),
        ) {
            let (max_vcpus, max_mem_mib, max_disk_gib, max_running) = limits;
            let quotas = Quotas { max_vcpus, max_mem_mib, max_disk_gib, max_running, ..Quotas::default() };
            let mut used = Use::default();
            for (vcpus, mem_mib, disk_mib) in asked {
                let wanted = Use { running: 1, warm: 0, vcpus, mem_mib, disk_mib };
                if quotas.admit(used, wanted).is_ok() {
                    used = used.plus(wanted);
                }
            }
            assert!(used.running <= max_running && used.vcpus <= max_vcpus);
            assert!(used.mem_mib <= max_mem_mib && used.disk_mib <= max_disk_gib * 1024);
        }
    }

    #[test]
    fn no_quota_lets_a_tenant_pass_what_a_bridge_takes() {
        let quotas =
            Quotas { max_running: u32::MAX, max_vcpus: u32::MAX, max_mem_mib: u64::MAX, ..Quotas::default() };
        let used = Use { running: MAX_VMS_OF_TENANT, ..Use::default() };
        assert!(quotas.admit(used, Use { running: 1, ..Use::default() }).is_err());
    }
}
