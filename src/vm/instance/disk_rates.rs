//! How fast an instance's VMM uses the disk on which its files lie: `io.max` of its cgroup.

use super::config::Instance;
use crate::{
    infra::config::Roots,
    security::cgroups::{self, IoRates},
    store::StoreError,
    vm::{room::NodeConfig, tenant::config::Tenant},
};

/// Limits how fast an instance's VMM uses the disk, as fast as all of its disks together may: also one that was taken over.
/// Where there is no such limit, no `io` controller or no single disk, its own rate limiters are all there is.
///
/// # Errors
/// When the kernel does not take what it could.
pub fn bind(roots: &Roots, instance: &Instance) -> Result<(), StoreError> {
    let Tenant { quotas, .. } = Tenant::load(roots, &instance.tenant_id)?;
    let disks = if instance.resources.data_disk_mib > 0 { 2 } else { 1 };
    let rates = IoRates {
        bytes_per_s: u64::from(quotas.disk_mbps) * 1_000_000 * disks,
        ops_per_s: u64::from(quotas.disk_iops) * disks,
    };
    set(roots, &instance.net.tap_dev, rates)
}

/// Lets the VMM of a TAP write as fast as the disk is: while its guest is paused and it writes for mvm, and where it is about to be
/// killed, and ends no sooner than what it has written.
pub fn free(roots: &Roots, tap: &str) {
    // It ends, only later.
    let _ = set(roots, tap, IoRates::default());
}

fn set(roots: &Roots, tap: &str, rates: IoRates) -> Result<(), StoreError> {
    let (Some(device), node) = (cgroups::device_of(&roots.root), NodeConfig::load(roots)?) else {
        return Ok(());
    };
    // The kernel keeps no line for what is not limited.
    if rates.is_none() && cgroups::io_rates(&node.node_id, tap, &device).is_none() {
        return Ok(());
    }
    cgroups::set_io(&node.node_id, tap, &device, rates)
}
