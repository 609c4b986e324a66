//! `instance.json`: what an instance is, and where its things lie.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state::State;
use crate::{
    infra::config::Roots,
    security::{Lack, cgroups::Limits, policy::SeccompPolicy},
    store::{self, Durability, Schema, StoreError},
    vm::{
        naming::{
            BaseKey, InstanceId, InstancePath, Mac, Offset, PoolId, PoolPath, RevisionHash, Slot, Subnet,
            TenantId,
        },
        pool::{
            self,
            config::{AgentMode, Pool, Resources, VmmKind},
        },
    },
    vmm::process::{self, Identity, Vmm},
};

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// Counts the writes of this file.
    pub generation: u64,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// Its pool.
    pub pool_id: PoolId,
    /// Its id.
    pub instance_id: InstanceId,
    /// Its state, as of the last operation that was finished.
    pub status: State,
    /// The operation that was begun and is not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Intent>,
    /// Its network identity: the same all its life.
    pub net: InstanceNet,
    /// What it gets; the pool's, as of its last start.
    pub resources: Resources,
    /// Whether its guest runs the agent; as of its last start.
    #[serde(default = "no_agent", skip_serializing_if = "is_without_agent")]
    pub agent: AgentMode,
    /// The public half of its guest's SSH host key, which is made anew at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Which set of its tenant's secrets its guest has; none where it was never given any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<u64>,
    /// The revision that it was last started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<RevisionHash>,
    /// The base snapshot that it was last started from; none where it was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_key: Option<BaseKey>,
    /// The VMM that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmRecord>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered_running_at: Option<Timestamp>,
    /// When its vCPUs were last paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered_warm_at: Option<Timestamp>,
    /// When it last went to sleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered_sleeping_at: Option<Timestamp>,
    /// When it last stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered_stopped_at: Option<Timestamp>,
    /// How the last start, sleep or wake went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_receipt: Option<Receipt>,
    /// Why it last ceased to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
}

/// The one durable intent of an operation: written before its first effect, removed by its last write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The operation.
    pub operation: Operation,
    /// When it was begun.
    pub since: Timestamp,
    /// The pid of who began it, for people.
    pub pid: u32,
}

/// Operations that leave an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Rolled back where it was cut off.
    Create,
    /// Rolled back where it was cut off.
    Start,
    /// Its VMM is asked where it was cut off.
    Warm,
    /// Its VMM is asked where it was cut off.
    Resume,
    /// Finished where it was committed, taken back before.
    Sleep,
    /// Finished where the snapshot was consumed, taken back before.
    Wake,
    /// Finished where it was committed, taken back before.
    Archive,
    /// Finished where it was cut off.
    Stop,
    /// Finished where it was cut off.
    Destroy {
        /// Also the data disk.
        wipe_volumes: bool,
    },
}

impl Operation {
    /// The name in the audit log, after `instance.`.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Start => "start",
            Operation::Warm => "warm",
            Operation::Resume => "resume",
            Operation::Sleep => "sleep",
            Operation::Wake => "wake",
            Operation::Archive => "archive",
            Operation::Stop => "stop",
            Operation::Destroy { .. } => "destroy",
        }
    }
}

/// An instance's network identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceNet {
    /// The offset that it leases.
    pub offset: Offset,
    /// Its TAP.
    pub tap_dev: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its address.
    pub guest_ip: Ipv4Addr,
    /// Its gateway's address.
    pub gateway_ip: Ipv4Addr,
    /// Its tenant's addresses.
    pub cidr: Subnet,
    /// What of it is reachable on the host's own addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<crate::net::egress::Port>,
}

/// The VMM that runs an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmRecord {
    /// Which one.
    pub kind: VmmKind,
    /// Its version.
    pub version: String,
    /// Its pid: a hint, believed only together with the next two.
    pub pid: i32,
    /// When it was started, in clock ticks since boot.
    pub start_time: u64,
    /// The boot of the host in which it runs.
    pub boot_id: String,
    /// The uid that it runs as.
    pub uid: u32,
    /// What it runs without that would protect others from it.
    pub lacks: Vec<Lack>,
    /// What it may use of the machine, as the kernel said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// The seccomp filter that its threads have, read back from the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<SeccompPolicy>,
    /// What its next snapshot builds on.
    #[serde(default)]
    pub parent: Parent,
    /// It woke, and nobody has greeted its guest: that is paused and not on the network until a resume has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ungreeted: bool,
}

impl VmmRecord {
    /// What it lacks, for people: `no jail, no limits`; none where it lacks nothing, and of the simulated one, which runs nobody's
    /// guest.
    pub fn unprotected(&self) -> Option<String> {
        let lacks: Vec<String> = self.lacks.iter().map(ToString::to_string).collect();
        (self.kind == VmmKind::Firecracker && !lacks.is_empty()).then(|| lacks.join(", "))
    }

    /// Which one it is, and what it lacks, as the audit log has it.
    pub fn in_words(&self) -> String {
        let lacks = self.unprotected().map(|lacks| format!(", {lacks}")).unwrap_or_default();
        format!("{} {} pid {}{lacks}", self.kind, self.version, self.pid)
    }
}

/// What the pages that a VMM knows as written to were written over: what a Diff has to be laid on to be complete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parent {
    /// Zeros: it was booted.
    Boot,
    /// The memory of the base snapshot that it was started from.
    Base,
    /// This memory file of its snapshot folder.
    File(String),
    /// Nobody knows: whether its last Diff was written is not known. Its next snapshot is Full.
    #[default]
    Unknown,
}

impl VmmRecord {
    pub(super) fn identity(&self) -> Identity {
        Identity { pid: self.pid, start_time: self.start_time }
    }
}

/// How a start, sleep or wake went, step by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// What it is the receipt of.
    pub operation: String,
    /// From the command's first step to its last, in ms.
    pub total_ms: f64,
    /// The steps, in order.
    pub steps: Vec<StepTime>,
    /// `none` where the guest has no agent, `confirmed` where it has confirmed everything, empty where it was not asked.
    pub agent: String,
    /// What the guest's agent confirmed, with its own ms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confirmed: Vec<Confirmed>,
}

/// One thing that a guest's agent confirmed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmed {
    /// What: a word of `mvm_proto::message::facts`.
    pub fact: String,
    /// What it reads back.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Milliseconds in the guest.
    pub ms: f64,
}

/// How long a step took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTime {
    /// The step.
    pub name: String,
    /// Milliseconds.
    pub ms: f64,
}

fn no_agent() -> AgentMode {
    AgentMode::None
}

fn is_without_agent(agent: &AgentMode) -> bool {
    *agent == AgentMode::None
}

/// Why an instance ceased to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// When that was found.
    pub when: Timestamp,
    /// Why.
    pub why: String,
}

impl Instance {
    /// One that was never started and is about to be made.
    pub fn new(path: &InstancePath, net: InstanceNet, pool: &Pool, now: Timestamp) -> Self {
        Self {
            schema_version: Schema,
            generation: 1,
            tenant_id: path.tenant.clone(),
            pool_id: path.pool.clone(),
            instance_id: path.instance.clone(),
            status: State::Created,
            pending: None,
            net,
            resources: pool.instance_resources,
            agent: pool.agent,
            host_key: None,
            secrets: None,
            revision: None,
            base_key: None,
            vmm: None,
            created_at: now,
            entered_running_at: None,
            entered_warm_at: None,
            entered_sleeping_at: None,
            entered_stopped_at: None,
            last_receipt: None,
            last_exit: None,
        }
    }

    /// Reads `instance.json`.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where there is no such instance.
    pub fn load(roots: &Roots, path: &InstancePath) -> Result<Self, StoreError> {
        store::read(&file(roots, path))
    }

    /// Reads `instance.json`; `None` where there is no such instance. Its folder appears and vanishes with the record in it:
    /// one without is damage, not absence.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] also where only the record is gone.
    pub fn load_if_there(roots: &Roots, path: &InstancePath) -> Result<Option<Self>, StoreError> {
        let file = file(roots, path);
        match store::read_if_there(&file)? {
            None if folder(roots, path).exists() && !file.exists() => {
                Err(StoreError::Damaged { path: file, why: "it is gone, and its folder is there".into() })
            }
            read => Ok(read),
        }
    }

    /// Writes `instance.json`, counting the generation up.
    ///
    /// # Errors
    /// The old content stays where it fails.
    pub fn save(&mut self, roots: &Roots) -> Result<(), StoreError> {
        self.generation += 1;
        store::write(&file(roots, &self.path()), self)
    }

    /// Writes `instance.json` without syncing its folder: for an intent whose effects a power cut ends anyway. Nothing of it is
    /// left then but what the commit points made durable, and these tell without it.
    ///
    /// # Errors
    /// The old content stays where it fails.
    pub fn save_unsynced(&mut self, roots: &Roots) -> Result<(), StoreError> {
        self.generation += 1;
        store::write_with(&file(roots, &self.path()), self, Durability::Atomic)
    }

    /// The base snapshot that it needs: its memory, running or asleep, was loaded from there. One that has no memory needs
    /// none, whatever it was started from; what an operation that was cut off left is not known, and counts.
    pub fn stands_on(&self) -> Option<&BaseKey> {
        let has_memory = match self.status {
            State::Running | State::Warm | State::Sleeping => true,
            State::Created | State::Ready | State::Stopped | State::Destroyed => false,
        };
        self.base_key.as_ref().filter(|_| has_memory || self.pending.is_some())
    }

    /// Its path.
    pub fn path(&self) -> InstancePath {
        InstancePath {
            tenant: self.tenant_id.clone(),
            pool: self.pool_id.clone(),
            instance: self.instance_id.clone(),
        }
    }

    /// Its slot. The TAP's name was made by [`Slot::tap`]; a file in which it was changed is as good as damaged.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] where the name is none of ours.
    pub fn slot(&self, roots: &Roots) -> Result<Slot, StoreError> {
        Slot::from_tap(&self.net.tap_dev).filter(|slot| slot.offset == self.net.offset).ok_or_else(|| {
            StoreError::Damaged {
                path: file(roots, &self.path()),
                why: format!("tap_dev {:?} does not belong to offset {}", self.net.tap_dev, self.net.offset),
            }
        })
    }

    /// The VMM of its record, if that one is still there: the same pid, start time and boot of the host.
    pub fn find_vmm(&self) -> Option<Vmm> {
        let vmm = self.vmm.as_ref().filter(|vmm| vmm.boot_id == process::boot_id())?;
        process::find(vmm.identity())
    }

    /// Did it wake without being greeted yet?
    pub fn is_ungreeted(&self) -> bool {
        self.status.has_vmm() && self.vmm.as_ref().is_some_and(|vmm| vmm.ungreeted)
    }

    /// Is its VMM there? Cheaper than [`Self::find_vmm`]; `boot_id` is this boot's.
    pub fn vmm_is_alive(&self, boot_id: &str) -> bool {
        self.vmm.as_ref().is_some_and(|vmm| vmm.boot_id == boot_id && process::is_alive(vmm.identity()))
    }
}

/// `tenants/<t>/pools/<p>/instances`.
pub fn instances_folder(roots: &Roots, pool: &PoolPath) -> PathBuf {
    pool::config::folder(roots, pool).join("instances")
}

/// `tenants/<t>/pools/<p>/instances/<i>`.
pub fn folder(roots: &Roots, path: &InstancePath) -> PathBuf {
    instances_folder(roots, &path.pool_path()).join(&path.instance)
}

/// `tenants/<t>/pools/<p>/instances/<i>/instance.json`.
pub fn file(roots: &Roots, path: &InstancePath) -> PathBuf {
    folder(roots, path).join("instance.json")
}

/// The instance that a file or a folder belongs to, by where it lies: what [`folder`] gives, the other way round.
pub fn owner_of(file: &Path) -> Option<InstancePath> {
    let parts: Option<Vec<&str>> = file.iter().map(|part| part.to_str()).collect();
    // The last ones: the root may lie anywhere.
    parts?.windows(6).rev().find_map(|parts| match *parts {
        ["tenants", tenant, "pools", pool, "instances", instance] => Some(InstancePath {
            tenant: tenant.parse().ok()?,
            pool: pool.parse().ok()?,
            instance: instance.parse().ok()?,
        }),
        _ => None,
    })
}

/// The paths of a pool's instances, sorted.
///
/// # Errors
/// When the folder cannot be read.
pub fn paths(roots: &Roots, pool: &PoolPath) -> Result<Vec<InstancePath>, StoreError> {
    let folder = instances_folder(roots, pool);
    // A link that leads nowhere is not a pool without instances.
    for link in [pool::config::folder(roots, pool), folder.clone()].iter().filter(|path| path.is_symlink()) {
        std::fs::metadata(link).map_err(StoreError::io("look for", link))?;
    }
    let names = store::names(&folder, |name| !name.starts_with('.'))?;
    Ok(names
        .into_iter()
        .filter_map(|name| {
            let instance = name.parse().ok()?;
            Some(InstancePath { tenant: pool.tenant.clone(), pool: pool.pool.clone(), instance })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::config::Environment;

    #[test]
    fn a_files_owner_is_told_by_its_place() {
        let roots = Roots::new(Path::new("/var/tenants/a/pools"), &Environment::default()).unwrap();
        let path: InstancePath = "acme/web/i-0f3a91c2".parse().unwrap();
        for file in [folder(&roots, &path), folder(&roots, &path).join("snapshots/delta/meta.json")] {
            assert_eq!(owner_of(&file), Some(path.clone()));
        }
        assert_eq!(owner_of(&pool::config::folder(&roots, &path.pool_path())), None);
    }
}
