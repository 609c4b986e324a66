//! The node's room: its limits in `node.json`, and reservations of it by VMMs that run or are about to.
//!
//! A reservation is an empty file whose name says what it takes (`tn3i5.2c.1024m.2048d`; a warm one's begins with `w`, as
//! `tn3i5.w2c.…`, a sleeper's is `tn3i5.0c.0m.2048d`): counting is one listing of a folder, whatever the number of
//! instances, and there is no window between check and use under the node's lock.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    naming::{NetId, Slot},
    pool::{self, artifacts::Artifacts, base::Bases},
    tenant::{
        self,
        config::Tenant,
        quota::{Exceeded, MAX_DISK, Use, within},
    },
};
use crate::{
    infra::{config::Roots, relief},
    store::{self, Lock, Schema, Sharing, StoreError},
};

/// Memory that one VMM needs besides its guest's, in MiB (Firecracker promises at most 5).
pub const EXPECTED_VMM_MIB: u64 = 5;

/// `node.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// The node's id: made once, never changed.
    pub node_id: String,
    /// Memory for guests and their VMMs, in MiB; what the machine has less `mem_floor_mib`, where nothing is set.
    #[serde(default)]
    pub mem_limit_mib: Option<u64>,
    /// Memory that stays with the host, in MiB.
    pub mem_floor_mib: u64,
    /// VMMs at one time.
    pub max_vms: u32,
    /// Free space below which nothing new is made or started, in MiB.
    pub disk_floor_mib: u64,
    /// Labels, for the coordinator.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Refuses what is only for trying out: the simulated VMM, unjailed VMMs.
    #[serde(default)]
    pub production: bool,
    /// Somebody has said that production goes without encrypted storage here.
    #[serde(default)]
    pub plain_storage_waiver: bool,
    /// The log of changes to this file has begun: where it is gone, it was there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_logged: bool,
}

impl NodeConfig {
    /// Reads `node.json`, or makes it with what a node is by default.
    ///
    /// # Errors
    /// As [`Self::load_if_there`], or when it cannot be written.
    pub fn load(roots: &Roots) -> Result<Self, StoreError> {
        if let Some(node) = Self::load_if_there(roots)? {
            return Ok(node);
        }
        store::make_folder(&roots.root)?;
        let _lock = lock(roots)?;
        if let Some(node) = Self::load_if_there(roots)? {
            return Ok(node);
        }
        let node = Self {
            schema_version: Schema,
            node_id: format!("node-{:08x}{:08x}", roots.id_bits(0), roots.id_bits(1)),
            mem_limit_mib: None,
            mem_floor_mib: 512,
            max_vms: 4000,
            disk_floor_mib: 256,
            labels: std::collections::BTreeMap::new(),
            production: false,
            plain_storage_waiver: false,
            is_logged: false,
        };
        store::write(&roots.node_file(), &node)?;
        Ok(node)
    }

    /// Reads `node.json`; `None` where nothing was made in the root yet. One that is gone is not made anew: its production flag, its
    /// limits and the id that the kernel's network carries would be others, and nobody would have said so.
    ///
    /// # Errors
    /// When it cannot be read, or [`StoreError::Damaged`] where it is gone.
    pub fn load_if_there(roots: &Roots) -> Result<Option<Self>, StoreError> {
        let path = roots.node_file();
        if let Some(node) = store::read_if_there(&path)? {
            return Ok(Some(node));
        }
        // What is made only after it; another command may have made both since.
        if !roots.node_log().exists() && tenant::config::ids(roots)?.is_empty() {
            return Ok(None);
        }
        let why = "it is gone, and what it was made for is there".to_owned();
        store::read_if_there(&path)?.map(Some).ok_or(StoreError::Damaged { path, why })
    }

    /// Memory for guests and their VMMs, in MiB.
    pub fn memory_mib(&self, machine_mib: u64) -> u64 {
        self.mem_limit_mib.unwrap_or(machine_mib.saturating_sub(self.mem_floor_mib))
    }
}

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The tenant's quota is used up.
    #[error("the quota of tenant {tenant} does not allow it: {exceeded}")]
    Quota {
        /// The tenant.
        tenant: String,
        /// Which limit.
        exceeded: Exceeded,
    },
    /// The node is full.
    #[error("this node has no room: {exceeded}")]
    Node {
        /// Which limit.
        exceeded: Exceeded,
    },
    /// The disk is nearly full.
    #[error(
        "{free_mib} MiB are free under {root}; this needs {needed_mib}, and the node keeps {floor_mib} MiB free"
    )]
    Disk {
        /// Free space, in MiB.
        free_mib: u64,
        /// What was to be written, in MiB.
        needed_mib: u64,
        /// The floor, in MiB.
        floor_mib: u64,
        /// Where.
        root: String,
    },
    /// The disk is full.
    #[error("the disk is full: what a stop or a destroy must be able to write cannot be set aside in {root}")]
    Relief {
        /// Where.
        root: String,
    },
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The node's lock. Held while counting, and for nothing longer.
///
/// # Errors
/// When somebody else holds it for too long.
pub fn lock(roots: &Roots) -> Result<Lock, StoreError> {
    Lock::take(&roots.lock_file("node"), "the node", Sharing::Exclusive, roots.lock_timeout)
}

fn file_name(slot: Slot, wanted: Use) -> String {
    let warm = if wanted.warm > 0 { "w" } else { "" };
    format!("{}.{warm}{}c.{}m.{}d", slot.tap(), wanted.vcpus, wanted.mem_mib, wanted.disk_mib)
}

fn parse(name: &str) -> Option<(Slot, Use)> {
    let mut parts = name.split('.');
    let slot = Slot::from_tap(parts.next()?)?;
    let vcpus = parts.next()?.strip_suffix('c')?;
    let (is_warm, vcpus) = match vcpus.strip_prefix('w') {
        Some(vcpus) => (true, vcpus.parse().ok()?),
        None => (false, vcpus.parse().ok()?),
    };
    let mem_mib = parts.next()?.strip_suffix('m')?.parse().ok()?;
    let disk_mib = parts.next()?.strip_suffix('d')?.parse().ok()?;
    // A VM has at least one vCPU.
    let running = u32::from(vcpus > 0);
    let taken = Use { running, warm: 0, vcpus, mem_mib, disk_mib };
    Some((slot, if is_warm { taken.paused() } else { taken }))
}

/// All reservations.
///
/// # Errors
/// When the folder cannot be read.
pub fn reserved(roots: &Roots) -> Result<Vec<(Slot, Use)>, StoreError> {
    let names = store::names(&roots.reservations(), |_| true)?;
    Ok(names.iter().filter_map(|name| parse(name)).collect())
}

/// What a tenant uses of the reservations.
pub fn used_by(reserved: &[(Slot, Use)], net_id: NetId) -> Use {
    reserved
        .iter()
        .filter(|(slot, _)| slot.net_id == net_id)
        .fold(Use::default(), |sum, (_, one)| sum.plus(*one))
}

/// Reserves what one VMM takes, if the tenant's quota and the node have it. A reservation that the slot has already is
/// replaced.
///
/// # Errors
/// [`RoomError`] says what is lacking; what the slot had it has still.
pub fn reserve(roots: &Roots, tenant: &Tenant, slot: Slot, wanted: Use) -> Result<(), RoomError> {
    let (node, stored) = (NodeConfig::load(roots)?, stored(roots, tenant)?);
    let _lock = lock(roots)?;
    admit(roots, (&node, tenant), stored, slot, wanted)?;
    Ok(write(roots, slot, wanted)?)
}

/// Would a slot get that at this moment?
///
/// # Errors
/// As [`reserve`].
pub fn check(roots: &Roots, tenant: &Tenant, slot: Slot, wanted: Use) -> Result<(), RoomError> {
    admit(roots, (&NodeConfig::load(roots)?, tenant), stored(roots, tenant)?, slot, wanted)
}

fn admit(
    roots: &Roots,
    (node, tenant): (&NodeConfig, &Tenant),
    stored: Use,
    slot: Slot,
    wanted: Use,
) -> Result<(), RoomError> {
    let machine = memory_total_mib();
    let others: Vec<_> = reserved(roots)?.into_iter().filter(|(other, _)| *other != slot).collect();
    let used = used_by(&others, slot.net_id).plus(stored);
    tenant
        .quotas
        .admit(used, wanted)
        .map_err(|exceeded| RoomError::Quota { tenant: tenant.tenant_id.to_string(), exceeded })?;
    let all = others.iter().fold(Use::default(), |sum, (_, one)| sum.plus(*one));
    let overhead = |u: Use| u.mem_mib.saturating_add(u64::from(u.vms()) * EXPECTED_VMM_MIB);
    within("VMs", all.vms().into(), wanted.vms().into(), node.max_vms.into())
        .and_then(|()| within("memory in MiB", overhead(all), overhead(wanted), node.memory_mib(machine)))
        .map_err(|exceeded| RoomError::Node { exceeded })
}

/// Writes a slot's reservation in place of any that it has. The node is locked.
fn write(roots: &Roots, slot: Slot, taken: Use) -> Result<(), StoreError> {
    let folder = roots.reservations();
    store::make_folder(&folder)?;
    let file = folder.join(file_name(slot, taken));
    // Not synced: after a power cut no VMM runs, and `node recover` drops what is left over, and makes what is missing.
    let prefix = format!("{}.", slot.tap());
    match store::names(&folder, |name| name.starts_with(&prefix))?.as_slice() {
        [] => relief::retry(|| std::fs::write(&file, b"")).map_err(StoreError::io("create", &file)),
        [one, rest @ ..] => {
            for name in rest {
                store::remove_file(&folder.join(name))?;
            }
            store::rename(&folder.join(one), &file)
        }
    }
}

/// What a slot has reserved, if it has.
///
/// # Errors
/// When the folder cannot be read.
pub fn of_slot(roots: &Roots, slot: Slot) -> Result<Option<Use>, StoreError> {
    Ok(reserved(roots)?.into_iter().find(|(other, _)| *other == slot).map(|(_, taken)| taken))
}

/// Writes down what a slot takes, in place of what it had: less than before, or what it takes already. Nobody has to be asked
/// for that.
///
/// # Errors
/// When the folder cannot be read or written.
pub fn note(roots: &Roots, slot: Slot, to: Use) -> Result<(), StoreError> {
    let _lock = lock(roots)?;
    write(roots, slot, to)
}

/// Lets a slot's reservation, where it has one, take more disk.
///
/// # Errors
/// [`RoomError`] says what is lacking.
pub fn enlarge(roots: &Roots, tenant: &Tenant, slot: Slot, more_mib: u64) -> Result<(), RoomError> {
    match of_slot(roots, slot)? {
        Some(mut wanted) => {
            wanted.disk_mib = wanted.disk_mib.saturating_add(more_mib);
            reserve(roots, tenant, slot, wanted)
        }
        None => Ok(()),
    }
}

/// What the revisions and base snapshots of a tenant's pools take of its disk quota.
///
/// # Errors
/// When a manifest or a folder cannot be read.
pub fn stored(roots: &Roots, tenant: &Tenant) -> Result<Use, StoreError> {
    let mut bytes = 0_u64;
    for pool in pool::config::paths(roots, &tenant.tenant_id)? {
        let artifacts = Artifacts::of(roots, &pool);
        for revision in artifacts.all()? {
            // One that is collected at this moment takes nothing any more.
            match artifacts.manifest(&revision) {
                Ok(manifest) => bytes = bytes.saturating_add(manifest.size_bytes()),
                Err(StoreError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        bytes = bytes.saturating_add(Bases::of(roots, &pool).size_bytes()?);
    }
    Ok(Use { disk_mib: bytes.div_ceil(1 << 20), ..Use::default() })
}

/// Gives a slot's reservation back; it is well when there is none.
///
/// # Errors
/// When the folder cannot be read or written.
pub fn release(roots: &Roots, slot: Slot) -> Result<(), StoreError> {
    let _lock = lock(roots)?;
    let folder = roots.reservations();
    let prefix = format!("{}.", slot.tap());
    for name in store::names(&folder, |name| name.starts_with(&prefix))? {
        store::remove_file(&folder.join(name))?;
    }
    Ok(())
}

/// Does the tenant's quota have room for so much more that lies on the disk?
///
/// # Errors
/// [`RoomError::Quota`] where it has not.
pub fn check_quota(roots: &Roots, tenant: &Tenant, needed_mib: u64) -> Result<(), RoomError> {
    let (used, limit) = (stored(roots, tenant)?, tenant.quotas.max_disk_mib());
    within(MAX_DISK, used.disk_mib, needed_mib, limit)
        .map_err(|exceeded| RoomError::Quota { tenant: tenant.tenant_id.to_string(), exceeded })
}

/// Is there more free space than the node's floor, after `needed_mib` were written? Whoever makes something asks that first;
/// then what a stop and a destroy need on a full disk is set aside, too.
///
/// # Errors
/// [`RoomError::Disk`] and [`RoomError::Relief`] where there is not.
pub fn check_disk(roots: &Roots, node: &NodeConfig, needed_mib: u64) -> Result<(), RoomError> {
    check_free(roots, node, needed_mib)?;
    relief::set_aside(&roots.root).map_err(|error| match relief::is_full(&error) {
        true => RoomError::Relief { root: roots.root.display().to_string() },
        false => StoreError::io("set space aside in", &relief::folder(&roots.root))(error).into(),
    })
}

/// The same for who makes nothing.
///
/// # Errors
/// [`RoomError::Disk`] where there is not.
pub fn check_free(roots: &Roots, node: &NodeConfig, needed_mib: u64) -> Result<(), RoomError> {
    let free_mib = free_mib(&roots.root)?;
    // Nothing is begun on a disk without a page, whatever the floor.
    let floor_mib = node.disk_floor_mib.max(1);
    match free_mib < floor_mib.saturating_add(needed_mib) {
        true => {
            let root = roots.root.display().to_string();
            Err(RoomError::Disk { free_mib, needed_mib, floor_mib, root })
        }
        false => Ok(()),
    }
}

/// Free space where a path lies, in MiB.
///
/// # Errors
/// When the file system cannot be asked.
pub fn free_mib(path: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| StoreError::io("look at", path)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
}

/// The machine's memory, in MiB.
pub fn memory_total_mib() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into()) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_is_what_its_name_says() {
        let slot = Slot::from_tap("tn3i5").unwrap();
        let running = Use { running: 1, warm: 0, vcpus: 2, mem_mib: 1024, disk_mib: 2048 };
        let all = [
            (running, "tn3i5.2c.1024m.2048d"),
            (running.paused(), "tn3i5.w2c.1024m.2048d"),
            (running.asleep(), "tn3i5.0c.0m.2048d"),
        ];
        for (taken, name) in all {
            assert_eq!(file_name(slot, taken), name);
            assert_eq!(parse(name), Some((slot, taken)));
        }
        for junk in ["", "tn3i5", "tn3i5.2c.1024m", "x.2c.1m.1d", "tn3i5.c.1m.1d"] {
            assert_eq!(parse(junk), None, "{junk}");
        }
    }
}
