//! What keeps a VMM to itself: its jail and its limits, or that the pool takes it without.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::lifecycle::LifecycleError;
use crate::{
    infra::config::Roots,
    security::{
        Lack,
        cgroups::{self, Cgroup, Limits, NoLimits},
        jailer::{self, NoJail},
        seccomp,
    },
    vm::{
        naming::{Slot, UID_BASE},
        pool::config::{Pool, Resources, VmmKind},
        room::NodeConfig,
        tenant::config::Tenant,
    },
    vmm::process::{self, Jail, Program, Start, TASKS, Vmm},
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
    /// It has no filter.
    #[error("its VMM has no seccomp filter: {why}")]
    NoFilter {
        /// What is known of it.
        why: String,
    },
}

/// How often, and how far apart, it is looked whether all threads have their filters.
const FILTER_LOOKS: u32 = 10;
const FILTER_PAUSE: Duration = Duration::from_millis(1);

/// What a VMM that is to be started gets.
#[derive(Debug)]
pub struct Guard {
    /// Is what is missing taken?
    is_lax: bool,
    jail: Option<Jail>,
    /// Where its cgroup is made.
    hierarchy: Option<PathBuf>,
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
        Ok(Self { is_lax, jail, hierarchy, node_id: node.node_id })
    }

    /// The user of a jailed VMM.
    pub fn uid(&self) -> Option<u32> {
        self.jail.as_ref().map(|jail| jail.uid)
    }

    /// Is a VMM filtered that has booted or loaded its guest?
    ///
    /// # Errors
    /// [`Unprotected::NoFilter`] where it is not, and has to be.
    pub fn check_filter(&self, vmm: &Vmm) -> Result<(), Unprotected> {
        if self.is_lax { Ok(()) } else { check_filter(vmm) }
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
        let start = Start { directory, id: tap, jail: self.jail.as_ref(), shared, cgroup: fd };
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

/// May a VMM that was found run on in this pool?
///
/// # Errors
/// Where it has no filter, and has to have one.
pub fn check(roots: &Roots, pool: &Pool, vmm: &Vmm) -> Result<(), LifecycleError> {
    let is_lax = takes_all(pool, &NodeConfig::load(roots)?);
    if is_lax { Ok(()) } else { Ok(check_filter(vmm)?) }
}

/// Does a pool take what is missing? Who takes the simulated VMM takes it as it is.
fn takes_all(pool: &Pool, node: &NodeConfig) -> bool {
    (pool.insecure || pool.vmm == VmmKind::Sim) && !node.production
}

fn check_filter(vmm: &Vmm) -> Result<(), Unprotected> {
    let mut looks = 0;
    loop {
        let why = match seccomp::is_filtered(vmm.identity.pid) {
            Ok(true) => return Ok(()),
            // Its vCPUs' threads take theirs a moment after the load has answered.
            _ if looks < FILTER_LOOKS => {
                looks += 1;
                std::thread::sleep(FILTER_PAUSE);
                continue;
            }
            Ok(false) => "this build carries an empty one".to_owned(),
            Err(error) => format!("it cannot be looked at: {error}"),
        };
        return Err(Unprotected::NoFilter { why });
    }
}

/// What a VMM that runs its guest lacks, and its limits: as the process and the kernel show it, whoever started it.
pub fn seen(roots: &Roots, vmm: &Vmm, tap: &str) -> (Vec<Lack>, Option<Limits>) {
    let node = NodeConfig::load(roots).map(|node| node.node_id).unwrap_or_default();
    let is_filtered = seccomp::is_filtered(vmm.identity.pid).unwrap_or(false);
    let is_jailed = process::uid_of(vmm.identity.pid).is_some_and(|uid| uid >= UID_BASE);
    let limits = cgroups::limits(&node, tap).filter(|_| cgroups::holds(&node, tap, vmm.identity.pid));
    let lacks = [
        (!is_jailed).then_some(Lack::Jail),
        limits.is_none().then_some(Lack::Limits),
        (!is_filtered).then_some(Lack::Filter),
    ];
    (lacks.into_iter().flatten().collect(), limits)
}
