//! The node as a whole: what runs on it, settling what was cut off, and dropping what nobody needs.

mod collect;
mod recover;
mod settings;
mod slots;

use std::path::PathBuf;

use serde::Serialize;

pub use self::{
    collect::{Collected, Damage, Versions, collect, collect_vmms},
    recover::{Recovered, recover},
    settings::{Settings, found, settings},
    slots::reclaim,
};
use crate::{
    infra::{config::Roots, failpoint},
    net::NetError,
    security::{
        audit::{self, AuditError, Entry, NODE, Phase},
        storage::{self, Storage},
    },
    store::{self, Lock, StoreError},
    vm::{
        fleet,
        instance::{config::Instance, lifecycle::LifecycleError},
        naming::InstancePath,
        pool::{config::VmmKind, lifecycle::PoolError},
        room::{self, NodeConfig},
        snapshot::SnapshotError,
        tenant::{self, quota::Use},
    },
    vmm::process,
};

/// Why something could not be done for the node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Guests' memory would lie on a disk in the clear.
    #[error("production needs encrypted storage: {root} lies on {on}, which is not known to be", root = root.display())]
    PlainStorage {
        /// `MVM_ROOT`.
        root: PathBuf,
        /// What it lies on.
        on: String,
        /// Production is on already: the waiver is what was to go.
        in_production: bool,
    },
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The kernel's network refused.
    #[error(transparent)]
    Net(#[from] NetError),
    /// An instance could not be settled.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// A pool could not be cleaned.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

impl From<SnapshotError> for NodeError {
    fn from(error: SnapshotError) -> Self {
        LifecycleError::from(error).into()
    }
}

/// What there is on the node, and what is in use.
#[derive(Debug, Clone, Serialize)]
pub struct Stats {
    /// The node's id.
    pub node_id: String,
    /// Tenants.
    pub tenants: usize,
    /// Pools.
    pub pools: usize,
    /// Instances, in any state.
    pub instances: usize,
    /// VMMs that run or are about to.
    pub vms: u32,
    /// Their limit.
    pub max_vms: u32,
    /// Memory reserved, VMMs' overhead included, in MiB.
    pub mem_used_mib: u64,
    /// Memory for guests and their VMMs, in MiB.
    pub mem_limit_mib: u64,
    /// vCPUs reserved.
    pub vcpus_used: u32,
    /// CPUs of the machine.
    pub cpus: usize,
    /// Free space under the root, in MiB.
    pub disk_free_mib: u64,
    /// Free space below which nothing new is made, in MiB.
    pub disk_floor_mib: u64,
}

/// Counts what there is.
///
/// # Errors
/// When the state cannot be read.
pub fn stats(roots: &Roots) -> Result<Stats, StoreError> {
    let node = NodeConfig::load(roots)?;
    let used = room::reserved(roots)?.iter().fold(Use::default(), |sum, (_, one)| sum.plus(*one));
    Ok(Stats {
        tenants: tenant::config::ids(roots)?.len(),
        pools: fleet::pools(roots, None)?.len(),
        instances: fleet::instances(roots)?.len(),
        vms: used.vms(),
        max_vms: node.max_vms,
        mem_used_mib: used.mem_mib + u64::from(used.vms()) * room::EXPECTED_VMM_MIB,
        mem_limit_mib: node.memory_mib(room::memory_total_mib()),
        vcpus_used: used.vcpus,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        disk_free_mib: room::free_mib(&roots.root)?,
        disk_floor_mib: node.disk_floor_mib,
        node_id: node.node_id,
    })
}

/// What runs, or is warm, with what a node in production does not take: the simulated VMM, or one without jail, limits or filter.
///
/// # Errors
/// When the state cannot be read.
pub fn outside_production(roots: &Roots) -> Result<Vec<(InstancePath, String)>, StoreError> {
    let boot = process::boot_id();
    let mut outside = Vec::new();
    for path in fleet::instances(roots)? {
        // One that is damaged is said by what lists them.
        let Ok(Some(instance)) = Instance::load_if_there(roots, &path) else { continue };
        let Some(vmm) = instance.vmm.as_ref().filter(|_| instance.vmm_is_alive(&boot)) else { continue };
        match (vmm.kind, vmm.unprotected()) {
            (VmmKind::Sim, _) => outside.push((path, "the simulated VMM".to_owned())),
            (VmmKind::Firecracker, Some(lacks)) => outside.push((path, lacks)),
            (VmmKind::Firecracker, None) => {}
        }
    }
    Ok(outside)
}

fn needs_encryption(node: &NodeConfig) -> bool {
    node.production && !node.plain_storage_waiver
}

/// Changes the node's configuration under its lock.
///
/// # Errors
/// When it cannot be read or written, or production would begin on storage that is not encrypted and nobody said that it may.
pub fn update(roots: &Roots, change: impl FnOnce(&mut NodeConfig)) -> Result<NodeConfig, NodeError> {
    NodeConfig::load(roots)?;
    let _lock: Lock = room::lock(roots)?;
    let mut before: NodeConfig = store::read(&roots.node_file())?;
    let mut node = before.clone();
    change(&mut node);
    if needs_encryption(&node)
        && !needs_encryption(&before)
        && let Storage::Plain(on) = storage::look(&roots.root)
    {
        return Err(NodeError::PlainStorage {
            root: roots.root.clone(),
            on,
            in_production: before.production,
        });
    }
    let Some(changes) = audit::changes(&before, &node) else { return Ok(node) };
    let mut entry = Entry::new("node.update", &node.node_id, Phase::Intent);
    entry.detail = Some(changes);
    announce(roots, &mut before, entry.clone())?;
    node.is_logged = true;
    let passed = |step| failpoint::hit("node-set", step).map_err(StoreError::io("write", &roots.node_file()));
    passed("announced")?;
    audit::replace_announced(roots, (NODE, &roots.node_log()), entry, [&before, &node], |node| {
        store::write(&roots.node_file(), node)?;
        Ok::<_, NodeError>(passed("saved")?)
    })?;
    Ok(node)
}

/// Writes an intent into the node's log, which begins with the first one; from then on the node's record knows of it. The node is
/// locked, and the record as it is stored.
fn announce(roots: &Roots, node: &mut NodeConfig, entry: Entry) -> Result<(), NodeError> {
    let folder = roots.node_log();
    match audit::append(roots, NODE, &folder, entry.clone()) {
        Err(AuditError::Gone { .. }) if !node.is_logged => {
            let new = store::unfinished(&folder);
            store::make_folder(&new)?;
            audit::begin(roots, NODE, &new, entry)?;
            store::rename(&new, &folder)?;
            store::sync_folder(&roots.root)?;
        }
        appended => appended?,
    }
    if !node.is_logged {
        node.is_logged = true;
        store::write(&roots.node_file(), node)?;
    }
    Ok(())
}

/// Does something between its lines in the node's log.
fn announced<T>(
    roots: &Roots,
    entry: Entry,
    work: impl FnOnce() -> Result<T, NodeError>,
) -> Result<T, NodeError> {
    {
        let _lock = room::lock(roots)?;
        announce(roots, &mut store::read(&roots.node_file())?, entry.clone())?;
    }
    audit::outcome(roots, (NODE, &roots.node_log()), entry, work())
}
