//! What an instance uses at this moment, read from /proc: cheap enough to ask for thousands.

use std::collections::HashMap;

use serde::Serialize;

use super::{config::Instance, fc_config::files, snapshot, state::State};
use crate::{
    infra::config::Roots,
    store,
    vm::{instance::config, naming::InstancePath, snapshot::taken_bytes},
    vmm::process,
};

/// What one instance uses.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// The instance.
    pub path: InstancePath,
    /// Its state.
    pub status: State,
    /// CPU time of its VMM since it started, in ms.
    pub cpu_ms: u64,
    /// Memory of its VMM that is in RAM, in bytes, guest memory included.
    pub rss_bytes: u64,
    /// Bytes that the guest received.
    pub net_rx_bytes: u64,
    /// Bytes that the guest sent.
    pub net_tx_bytes: u64,
    /// Space that its disks take, and its memory where it is asleep or was loaded from a file, in bytes; their virtual
    /// size is larger.
    pub disk_bytes: u64,
}

/// Counters of all network interfaces: bytes in and out, as the host sees them.
#[derive(Debug, Default)]
pub struct Interfaces(HashMap<String, (u64, u64)>);

impl Interfaces {
    /// Reads them, in one go, for the network namespace of this process.
    pub fn read() -> Self {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        Self(text.lines().filter_map(interface).collect())
    }
}

fn interface(line: &str) -> Option<(String, (u64, u64))> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<&str> = counters.split_whitespace().collect();
    Some((name.trim().to_owned(), (counters.first()?.parse().ok()?, counters.get(8)?.parse().ok()?)))
}

/// What an instance uses.
pub fn usage(roots: &Roots, instance: &Instance, interfaces: &Interfaces) -> Usage {
    let path = instance.path();
    let (cpu_ms, rss_bytes) =
        instance.vmm.as_ref().and_then(|vmm| process::usage(vmm.identity())).unwrap_or_default();
    // What the host receives on a TAP is what the guest sent.
    let (host_rx, host_tx) = interfaces.0.get(&instance.net.tap_dev).copied().unwrap_or_default();
    let volumes = config::folder(roots, &path).join("volumes");
    let mut disk_bytes = 0;
    let root = instance.revision.as_ref().map(|revision| super::launch::root_disk(revision.short()));
    for name in [Some(files::DATA.to_owned()), root].into_iter().flatten() {
        disk_bytes += taken_bytes(&volumes.join(name));
    }
    // Whatever lies there takes space, also where its meta.json is damaged or used up.
    let delta = snapshot::folder(roots, &path);
    let parts = store::names(&delta, |_| true).unwrap_or_default();
    disk_bytes += parts.iter().map(|name| taken_bytes(&delta.join(name))).sum::<u64>();
    Usage {
        path,
        status: instance.status,
        cpu_ms,
        rss_bytes,
        net_rx_bytes: host_tx,
        net_tx_bytes: host_rx,
        disk_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_dev() {
        let line = "tn3i5: 1200 10 0 0 0 0 0 0 3400 20 0 0 0 0 0 0";
        assert_eq!(interface(line), Some(("tn3i5".into(), (1200, 3400))));
        assert_eq!(interface("Inter-|   Receive"), None);
    }
}
