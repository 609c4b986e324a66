//! From an instance to the requests that make its VMM what it should be. Pure: no I/O.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::config::Instance;
use crate::{
    security::metadata::{self, Metadata},
    vm::{
        naming::Mac,
        pool::{
            artifacts::Manifest,
            base,
            config::{AgentMode, Pool, Resources},
        },
        tenant::quota::Quotas,
    },
    vmm::wire::{
        BootSource, Call, Drive, DriveUpdate, MachineConfig, MemBackend, NetworkInterface, NetworkOverride,
        NetworkUpdate, RateLimiter, Serial, SnapshotLoad, TokenBucket, Vsock,
    },
};

/// Names of files in the VMM's directory: the same in each, so that one snapshot serves any clone.
pub mod files {
    /// The kernel.
    pub const KERNEL: &str = "vmlinux";
    /// The initial RAM disk.
    pub const INITRD: &str = "initrd";
    /// The root disk.
    pub const ROOT: &str = "rootfs.ext4";
    /// The data disk.
    pub const DATA: &str = "data.ext4";
    /// What the guest prints.
    pub const CONSOLE: &str = crate::vmm::process::CONSOLE;
    /// The folder of a base snapshot.
    pub const BASE: &str = "base";
    /// The seccomp filter that is mvm's, where it is that one.
    pub const FILTER: &str = "filter.seccomp";
    /// The vsock device's socket.
    pub const VSOCK: &str = "v.sock";
}

/// The guest's vsock address; each guest is alone with its host, so all have the same.
pub const GUEST_CID: u32 = 3;

/// The NIC's name in the API.
const NIC: &str = "eth0";
/// The root disk's.
const ROOT_DRIVE: &str = "rootfs";
/// The data disk's.
const DATA_DRIVE: &str = "data";

/// A guest that boots.
pub struct Boot<'a> {
    /// What it gets.
    pub resources: &'a Resources,
    /// What it runs.
    pub manifest: &'a Manifest,
    /// Whether it has an agent.
    pub agent: AgentMode,
    /// Its TAP.
    pub tap: &'a str,
    /// Its MAC, as its VMM announces it.
    pub mac: Mac,
    /// What stands on the kernel's command line.
    pub boot_args: String,
    /// The limits of its tenant.
    pub quotas: &'a Quotas,
    /// Whether it may ask its VMM about itself.
    pub metadata: bool,
}

impl<'a> Boot<'a> {
    /// The guest of an instance.
    pub fn of(instance: &'a Instance, pool: &Pool, manifest: &'a Manifest, quotas: &'a Quotas) -> Self {
        Self {
            resources: &instance.resources,
            manifest,
            agent: instance.agent,
            tap: &instance.net.tap_dev,
            mac: instance.net.mac,
            boot_args: command_line(instance, manifest),
            quotas,
            metadata: pool.metadata_enabled,
        }
    }
}

/// The requests that configure the VMM and start the guest, in order.
pub fn requests(boot: &Boot) -> Vec<Call> {
    let Boot { resources, manifest, agent, tap, mac, boot_args, quotas, metadata } = boot;
    let (drive_limit, net_limit) = limits(quotas);
    let mut calls = vec![
        Call::MachineConfig(MachineConfig {
            vcpu_count: resources.vcpus,
            mem_size_mib: resources.mem_mib,
            track_dirty_pages: true,
        }),
        Call::BootSource(BootSource {
            kernel_image_path: files::KERNEL.into(),
            initrd_path: manifest.initrd.as_ref().map(|_| files::INITRD.into()),
            boot_args: boot_args.clone(),
        }),
        serial(quotas),
    ];
    let drives = drives(resources, manifest, *agent).into_iter();
    calls.extend(drives.map(|drive| Call::Drive(Drive { rate_limiter: drive_limit.clone(), ..drive })));
    calls.push(Call::NetworkInterface(NetworkInterface {
        iface_id: NIC.into(),
        host_dev_name: (*tap).to_owned(),
        guest_mac: mac.to_string(),
        rx_rate_limiter: net_limit.clone(),
        tx_rate_limiter: net_limit,
    }));
    if *metadata {
        calls.push(metadata::service(NIC));
    }
    calls.push(Call::Vsock(Vsock { guest_cid: GUEST_CID, uds_path: files::VSOCK.into() }));
    calls.push(Call::Entropy);
    calls.push(Call::InstanceStart);
    calls
}

/// What the guest of an instance may read of itself; `None` where its pool has no metadata.
pub fn metadata(instance: &Instance, pool: &Pool) -> Option<Call> {
    let net = &instance.net;
    let of_it = Metadata {
        instance_id: instance.instance_id.as_ref(),
        local_hostname: instance.instance_id.as_ref(),
        local_ipv4: net.guest_ip,
        gateway: net.gateway_ip,
        mac: net.mac.to_string(),
        tenant: instance.tenant_id.as_ref(),
        pool: instance.pool_id.as_ref(),
        revision: instance.revision.as_ref().map(ToString::to_string).unwrap_or_default(),
        secrets_generation: instance.secrets.map(|generation| generation.to_string()),
        tags: BTreeMap::from([("instance", &pool.labels)]),
    };
    pool.metadata_enabled.then(|| of_it.call())
}

/// A tenant's limits of a disk, and of each way of an interface.
fn limits(quotas: &Quotas) -> (Option<RateLimiter>, Option<RateLimiter>) {
    (
        limiter(u64::from(quotas.disk_mbps) * 1_000_000, quotas.disk_iops),
        limiter(u64::from(quotas.net_mbps) * 1_000_000 / 8, quotas.net_pps),
    )
}

/// The load of a base snapshot for this instance, after which its vCPUs go on or stay paused.
pub fn load_base(instance: &Instance, resume_vm: bool) -> Call {
    let file = |name: &str| format!("{}/{name}", files::BASE);
    Call::SnapshotLoad(SnapshotLoad {
        snapshot_path: file(base::VMSTATE),
        mem_backend: MemBackend { backend_type: "File", backend_path: file(base::MEM) },
        track_dirty_pages: true,
        resume_vm,
        network_overrides: vec![NetworkOverride {
            iface_id: NIC.into(),
            host_dev_name: instance.net.tap_dev.clone(),
        }],
    })
}

/// What of a base snapshot is made this instance's own once it is loaded: the size of its data disk, where it is another one
/// than the base's, and the limits of its tenant.
pub fn own(instance: &Instance, base: &Resources, quotas: &Quotas) -> Vec<Call> {
    let (drive_limit, net_limit) = limits(quotas);
    let mib = instance.resources.data_disk_mib;
    let mut calls = Vec::new();
    if drive_limit.is_some() {
        calls.push(Call::DriveUpdate(DriveUpdate {
            drive_id: ROOT_DRIVE.into(),
            path_on_host: None,
            rate_limiter: drive_limit.clone(),
        }));
    }
    if mib > 0 && (drive_limit.is_some() || mib != base.data_disk_mib) {
        calls.push(Call::DriveUpdate(DriveUpdate {
            drive_id: DATA_DRIVE.into(),
            path_on_host: (mib != base.data_disk_mib).then(|| files::DATA.to_owned()),
            rate_limiter: drive_limit,
        }));
    }
    if net_limit.is_some() {
        calls.push(Call::NetworkUpdate(NetworkUpdate {
            iface_id: NIC.into(),
            rx_rate_limiter: net_limit.clone(),
            tx_rate_limiter: net_limit,
        }));
    }
    calls
}

/// The disks of a guest in the order in which it sees them, without limits.
fn drives(resources: &Resources, manifest: &Manifest, agent: AgentMode) -> Vec<Drive> {
    let drive = |id: &str, path: &str, root: bool| Drive {
        drive_id: id.to_owned(),
        path_on_host: path.to_owned(),
        is_root_device: root,
        // All guests of a revision that have an agent share one, each under a layer of its own.
        is_read_only: id == ROOT_DRIVE && agent == AgentMode::Required,
        cache_type: "Writeback",
        rate_limiter: None,
    };
    let data = (resources.data_disk_mib > 0).then(|| drive(DATA_DRIVE, files::DATA, false));
    [Some(drive(ROOT_DRIVE, files::ROOT, manifest.initrd.is_none())), data].into_iter().flatten().collect()
}

/// The devices of a guest, a line each, in the order in which it sees them: what of its VMM's configuration a snapshot
/// keeps for good. Names and limits of an instance are not among it: they are said anew when it is loaded.
pub fn devices(resources: &Resources, manifest: &Manifest, agent: AgentMode, metadata: bool) -> Vec<String> {
    let mut lines: Vec<String> = drives(resources, manifest, agent)
        .into_iter()
        .map(|Drive { drive_id, path_on_host, is_root_device, is_read_only, cache_type, rate_limiter: _ }| {
            let root = if is_root_device { "root" } else { "plain" };
            let access = if is_read_only { "ro" } else { "rw" };
            format!("drive {drive_id} {path_on_host} {root} {access} {cache_type}")
        })
        .collect();
    lines.push(format!("nic {NIC}"));
    lines.extend(metadata.then(|| format!("metadata V2 {NIC} {}", metadata::ADDRESS)));
    lines.extend([format!("vsock {GUEST_CID} {}", files::VSOCK), "entropy".to_owned()]);
    lines
}

/// Where the console goes, and how much of it. Not part of a snapshot: it is said again before a load.
pub fn serial(quotas: &Quotas) -> Call {
    Call::Serial(Serial { rate_limiter: console_limit(quotas.log_mib) })
}

/// A hash of requests, for the audit log: what exactly the VMM was told.
pub fn hash(calls: &[Call]) -> String {
    let mut hasher = Sha256::new();
    for (method, path, body) in calls.iter().filter_map(|call| call.request().ok()) {
        hasher.update(format!("{method} {path} "));
        hasher.update(body);
    }
    format!("sha256:{}", crate::infra::text::hex(&hasher.finalize()))
}

/// The revision's command line, and how a guest without an agent learns who it is.
fn command_line(instance: &Instance, manifest: &Manifest) -> String {
    if instance.agent == AgentMode::Required {
        return base_command_line(manifest);
    }
    let net = &instance.net;
    let identity = format!(
        "mvm.ip={}/{} mvm.gw={} mvm.mac={} mvm.host={}",
        net.guest_ip,
        net.cidr.net().prefix_len(),
        net.gateway_ip,
        net.mac,
        instance.instance_id
    );
    format!("{} {identity}", manifest.cmdline).trim_start().to_owned()
}

/// The revision's command line for a guest that learns from its agent who it is: the same for all.
pub fn base_command_line(manifest: &Manifest) -> String {
    format!("{} mvm.agent=1", manifest.cmdline).trim_start().to_owned()
}

/// A second's worth of both; `None` where neither is limited.
fn limiter(bytes_per_second: u64, ops_per_second: u32) -> Option<RateLimiter> {
    let bucket =
        |size: u64| (size > 0).then_some(TokenBucket { size, one_time_burst: None, refill_time: 1000 });
    let (bandwidth, ops) = (bucket(bytes_per_second), bucket(ops_per_second.into()));
    (bandwidth.is_some() || ops.is_some()).then_some(RateLimiter { bandwidth, ops })
}

/// The console's share of a tenant's `log_mib`: what was printed before is kept beside it, so it gets a half.
const CONSOLE_SHARE: u64 = 2;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A limit that keeps a day's console within half of `log_mib`, with nobody there to cut it: one half of that as a burst
/// for the boot, the rest spread over the day.
fn console_limit(log_mib: u32) -> TokenBucket {
    let day = (u64::from(log_mib.max(1)) << 20) / CONSOLE_SHARE;
    let burst = day / 2;
    // Not smaller than a thousandth, or the refill time would be too few ms to be exact.
    let size = (16 << 10).max(day / 1000);
    let refill_time = (u128::from(size) * u128::from(DAY_MS)).div_ceil(u128::from(day - burst - size)) as u64;
    TokenBucket { size, one_time_burst: Some(burst), refill_time }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_of_console_stays_within_its_share() {
        for log_mib in [0, 1, 16, 1024, u32::MAX] {
            let bucket = console_limit(log_mib);
            let day =
                bucket.one_time_burst.unwrap() + bucket.size + DAY_MS / bucket.refill_time * bucket.size;
            assert!(
                day <= (u64::from(log_mib.max(1)) << 20) / CONSOLE_SHARE + bucket.size,
                "{log_mib}: {day}"
            );
            assert!(bucket.refill_time > 0);
        }
    }

    #[test]
    fn no_limit_is_no_limiter() {
        assert_eq!(limiter(0, 0), None);
        let only_ops = limiter(0, 5).unwrap();
        assert!(only_ops.bandwidth.is_none() && only_ops.ops.unwrap().size == 5);
    }
}
