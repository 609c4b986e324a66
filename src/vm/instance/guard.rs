//! What keeps a VMM to itself: its jail and its limits, or that the pool takes it without.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{fc_config::files, lifecycle::LifecycleError};
use crate::{
    infra::{config::Roots, text::hex},
    security::{
        Lack,
        cgroups::{self, Cgroup, Limits, NoLimits},
        jailer::{self, NoJail},
        policy::SeccompPolicy,
        seccomp::{self, Strict},
    },
    store::{self, Durability, Lock, Sharing},
    vm::{
        naming::{Slot, UID_BASE},
        pool::config::{Pool, Resources, VmmKind},
        room::NodeConfig,
        tenant::config::Tenant,
    },
    vmm::{
        client::{VmmError, log_tail},
        process::{self, Jail, Program, Start, TASKS, Vmm},
    },
};

/// Something that protects others from a VMM is missing, and its pool does not take that, or its node is in production.
#[derive(Debug, thiserror::Error)]
pub enum Unprotected {
    /// It cannot be jailed.
    #[error("its VMM would run without a jail: {why}")]
    NoJail {
        /// What is missing for one.
        why: NoJail,
    },
    /// It cannot be limited.
    #[error("nothing would limit what its VMM uses: {why}")]
    NoLimits {
        /// What is missing for that.
        why: NoLimits,
    },
    /// It runs without, since its pool or its node took that when it was started.
    #[error("its VMM runs with {lack}, which is not taken any more")]
    Runs {
        /// What it lacks.
        lack: Lack,
    },
    /// It has Firecracker's own filter, and its pool wants the strict one.
    #[error("its VMM has its own seccomp filter, and not the strict one")]
    OtherFilter,
    /// It has no filter.
    #[error("its VMM has no seccomp filter: {why}")]
    NoFilter {
        /// What is known of it.
        why: String,
    },
}

/// A vCPU's thread takes its filter a moment after the load was answered; on a busy node that is a longer one.
const FILTER_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks.
const FILTER_PAUSE: Duration = Duration::from_millis(1);

/// What a VMM that is to be started gets.
#[derive(Debug)]
pub struct Guard {
    /// Is what is missing taken?
    is_lax: bool,
    jail: Option<Jail>,
    /// Where its cgroup is made.
    hierarchy: Option<PathBuf>,
    /// The filter that it has to have.
    policy: SeccompPolicy,
    node_id: String,
}

impl Guard {
    /// What there is for a VMM in this slot. What is missing is taken where the pool takes it and the node is not in production.
    ///
    /// # Errors
    /// [`Unprotected::NoJail`] and [`Unprotected::NoLimits`] where something is missing and needed.
    pub fn of(roots: &Roots, pool: &Pool, program: &Program, slot: Slot) -> Result<Self, LifecycleError> {
        let node = NodeConfig::load(roots)?;
        let is_lax = takes_all(pool, &node);
        let jail = match jailer::jail(roots, program, slot.uid()) {
            Ok(jail) => Some(jail),
            Err(_) if is_lax => None,
            Err(why) => return Err(Unprotected::NoJail { why }.into()),
        };
        let hierarchy = match cgroups::hierarchy() {
            Ok(hierarchy) => Some(hierarchy).filter(|_| pool.vmm != VmmKind::Sim),
            Err(_) if is_lax => None,
            Err(why) => return Err(Unprotected::NoLimits { why }.into()),
        };
        let policy = policy(pool);
        if policy == SeccompPolicy::Strict && !program.version.starts_with(seccomp::STRICT_FOR) {
            let why = format!(
                "the strict one is for Firecracker {}x, and this is {}",
                seccomp::STRICT_FOR,
                program.version
            );
            return Err(Unprotected::NoFilter { why }.into());
        }
        Ok(Self { is_lax, jail, hierarchy, policy, node_id: node.node_id })
    }

    /// The file with the filter of mvm's that the VMM is told to have; made where it is not there.
    ///
    /// # Errors
    /// [`Unprotected::NoFilter`] where there is no such filter here.
    pub fn filter_file(&self, roots: &Roots) -> Result<Option<PathBuf>, LifecycleError> {
        if self.policy == SeccompPolicy::Baseline {
            return Ok(None);
        }
        let file = Strict::get().and_then(Strict::file);
        let file = file.map_err(|why| Unprotected::NoFilter { why: why.to_string() })?;
        let name = format!("strict-{}.seccomp", &hex(&Sha256::digest(&file))[..12]);
        let folder = roots.root.join("run");
        let path = folder.join(name);
        let is_there = || fs::read(&path).is_ok_and(|there| there == file);
        if !is_there() {
            store::make_folder(&folder)?;
            let lock = roots.lock_file("filter");
            let _lock = Lock::take(&lock, "the seccomp filter", Sharing::Exclusive, roots.lock_timeout)?;
            if !is_there() {
                store::replace(&path, &file, Durability::Durable)?;
            }
        }
        Ok(Some(path))
    }

    /// Is what is missing taken?
    pub fn is_lax(&self) -> bool {
        self.is_lax
    }

    /// The user of a jailed VMM.
    pub fn uid(&self) -> Option<u32> {
        self.jail.as_ref().map(|jail| jail.uid)
    }

    fn cgroup(
        &self,
        tenant: &Tenant,
        resources: Resources,
        tap: &str,
    ) -> Result<Option<Cgroup>, LifecycleError> {
        let Some(hierarchy) = &self.hierarchy else { return Ok(None) };
        let quotas = &tenant.quotas;
        let vms = quotas.max_running.saturating_add(quotas.max_warm);
        let all = Limits::of_all(vms, quotas.max_vcpus, quotas.max_mem_mib, TASKS);
        let own = Limits::of_vmm(resources.vcpus, resources.mem_mib, TASKS);
        let names = [self.node_id.as_str(), tenant.tenant_id.as_ref(), tap];
        match cgroups::make(hierarchy, names, [all, own]) {
            // Where they are not mvm's to write, in a container for one: the record says that there are none.
            Err(_) if self.is_lax => Ok(None),
            made => Ok(Some(made?)),
        }
    }

    /// Starts a VMM that has these resources in its directory; `shared` is what it finds there beside.
    ///
    /// # Errors
    /// When it cannot be limited or run.
    pub fn spawn(
        &self,
        program: &Program,
        tenant: &Tenant,
        resources: Resources,
        directory: &Path,
        tap: &str,
        shared: &[(PathBuf, String)],
    ) -> Result<Vmm, LifecycleError> {
        let cgroup = self.cgroup(tenant, resources, tap)?;
        let fd = cgroup.as_ref().map(Cgroup::as_fd);
        let filter = (self.policy == SeccompPolicy::Strict).then_some(files::FILTER);
        let start = Start { directory, id: tap, jail: self.jail.as_ref(), shared, cgroup: fd, filter };
        let vmm = process::spawn(program, start)?;
        if let (Some(cgroup), None) = (&cgroup, &self.jail)
            && let Err(error) = cgroup.take_in(vmm.identity.pid)
        {
            vmm.kill()?;
            return Err(error.into());
        }
        Ok(vmm)
    }
}

/// Has a VMM that has booted or loaded its guest what its pool and its node want by now, whatever they took when it was started?
/// Asked before its guest gets anything.
///
/// # Errors
/// [`Unprotected::Runs`], [`Unprotected::OtherFilter`] and [`Unprotected::NoFilter`] where it has not, [`VmmError::Ended`] where it has ended.
pub fn check(roots: &Roots, pool: &Pool, vmm: &Vmm, slot: Slot) -> Result<(), LifecycleError> {
    let node = NodeConfig::load(roots)?;
    let (is_lax, policy, tap) = (takes_all(pool, &node), policy(pool), slot.tap());
    if is_lax && policy == SeccompPolicy::Baseline {
        return Ok(());
    }
    // The filter last: a thread may be a moment in taking it.
    let directory = roots.vmm_dir(&tap);
    match lacks(&node.node_id, &tap, vmm.identity.pid, &directory).into_iter().flatten().next() {
        Some(lack) if !is_lax => Err(Unprotected::Runs { lack }.into()),
        _ => await_filter(vmm, &directory, policy),
    }
}

/// Does a pool take what is missing? Who takes the simulated VMM takes it as it is.
fn takes_all(pool: &Pool, node: &NodeConfig) -> bool {
    (pool.insecure || pool.vmm == VmmKind::Sim) && !node.production
}

/// The filter that a pool wants.
fn policy(pool: &Pool) -> SeccompPolicy {
    if pool.vmm == VmmKind::Sim { SeccompPolicy::Baseline } else { pool.seccomp_policy }
}

fn await_filter(vmm: &Vmm, directory: &Path, policy: SeccompPolicy) -> Result<(), LifecycleError> {
    let deadline = Instant::now() + FILTER_LIMIT;
    loop {
        let why = match seccomp::in_force(vmm.identity.pid) {
            Ok(Some(filter)) if filter >= policy => return Ok(()),
            // Nothing of it can be looked at any more, which is no lack.
            _ if vmm.has_ended() => {
                let request = "the look at its filter".to_owned();
                return Err(VmmError::Ended { request, log: log_tail(directory) }.into());
            }
            // There is no event for it.
            _ if Instant::now() < deadline => {
                std::thread::sleep(FILTER_PAUSE);
                continue;
            }
            Ok(None) => "this build carries an empty one".to_owned(),
            Ok(Some(_)) => return Err(Unprotected::OtherFilter.into()),
            Err(error) => format!("it cannot be looked at: {error}"),
        };
        return Err(Unprotected::NoFilter { why }.into());
    }
}

/// The filter of a VMM that runs its guest, whatever it should be: while some of its threads have none yet, it is about to get it.
fn filter_of(vmm: &Vmm) -> Option<SeccompPolicy> {
    let deadline = Instant::now() + FILTER_LIMIT;
    loop {
        match seccomp::in_force(vmm.identity.pid) {
            Ok(Some(filter)) => return Some(filter),
            // There is no event for it.
            found
                if (found.is_err() || seccomp::is_coming(vmm.identity.pid)) && Instant::now() < deadline =>
            {
                if vmm.has_ended() {
                    return None;
                }
                std::thread::sleep(FILTER_PAUSE);
            }
            _ => return None,
        }
    }
}

/// What of a jail and of limits a VMM lacks whose directory this is.
fn lacks(node_id: &str, tap: &str, pid: i32, directory: &Path) -> [Option<Lack>; 2] {
    let place = |folder: &Path| fs::metadata(folder).ok().map(|meta| (meta.dev(), meta.ino()));
    let root = place(Path::new(&format!("/proc/{pid}/root")));
    let is_jailed = process::uid_of(pid).is_some_and(|uid| uid >= UID_BASE)
        && root.is_some_and(|root| Some(root) == place(directory));
    let is_limited = cgroups::holds(node_id, tap, pid);
    [(!is_jailed).then_some(Lack::Jail), (!is_limited).then_some(Lack::Limits)]
}

/// What a VMM that runs its guest lacks, its limits, and its filter: as the process and the kernel show it, whoever started it. `None`
/// as of [`held`].
pub fn seen(
    roots: &Roots,
    vmm: &Vmm,
    tap: &str,
) -> Option<(Vec<Lack>, Option<Limits>, Option<SeccompPolicy>)> {
    let filter = filter_of(vmm);
    let (mut lacks, limits) = held(roots, vmm, tap)?;
    lacks.extend(filter.is_none().then_some(Lack::Filter));
    Some((lacks, limits, filter))
}

/// Its jail and its limits alone, for which it does not have to stop: a filter stays what it was when it was read. `None` where it has
/// ended, or the node's record cannot be read: then nothing is known.
pub fn held(roots: &Roots, vmm: &Vmm, tap: &str) -> Option<(Vec<Lack>, Option<Limits>)> {
    let node = NodeConfig::load(roots).ok()?.node_id;
    let io = cgroups::device_of(&roots.root).and_then(|device| cgroups::io_rates(&node, tap, &device));
    let [jail, no_limits] = lacks(&node, tap, vmm.identity.pid, &roots.vmm_dir(tap));
    let limits = cgroups::limits(&node, tap).filter(|_| no_limits.is_none());
    let limits = limits.map(|limits| Limits { io, ..limits });
    let lacks = [jail, limits.is_none().then_some(Lack::Limits)].into_iter().flatten().collect();
    (!vmm.has_ended()).then_some((lacks, limits))
}
