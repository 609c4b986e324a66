//! Booting an instance.

use super::{
    LifecycleError, Operator, Outcome, denied, effective_state, intent, load_pool, lock_tenant,
    lookup::lock_instance, report, settle::settled,
};
use crate::{
    infra::failpoint,
    security::audit::Phase,
    store::Sharing,
    vm::{
        instance::{
            config::{Exit, Operation, Receipt, StepTime},
            launch::{self, Launch},
            runner::{self, Failed},
            state::{self, Event, Next, State},
        },
        naming::{InstancePath, PoolPath},
        pool::{self, artifacts::Artifacts, config::VmmKind},
        room::{self, NodeConfig},
        tenant::quota::Use,
    },
};

/// Boots an instance afresh.
///
/// # Errors
/// The instance is as before where it fails.
pub fn start(operator: &mut Operator, path: &InstancePath) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let (tenant, pool) = load_pool(&roots, &path.pool_path())?;
    let _lock = lock_instance(&roots, path)?;
    let mut instance = settled(operator, path)?;
    let artifacts = Artifacts::of(&roots, &pool.path());
    // Shared with other starts: a revision must not be collected between here and the record that names it.
    let pool_lock = pool::lifecycle::lock(&roots, &pool.path(), Sharing::Shared)?;
    let current = artifacts.current()?;
    let state = effective_state(&instance, current.is_some());
    match state::next(state, Event::Start) {
        Next::Already => {
            return Ok(Outcome { instance, changed: false });
        }
        Next::Denied if state == State::Created => {
            return Err(LifecycleError::NoRevision { pool: pool.path() });
        }
        Next::Denied => return Err(denied(path, state, Event::Start)),
        Next::To(_) => {}
    }
    let Some(revision) = current else {
        return Err(LifecycleError::NoRevision { pool: pool.path() });
    };
    let manifest = artifacts.manifest(&revision)?;
    let node = NodeConfig::load(&roots)?;
    if node.production && pool.vmm == VmmKind::Sim {
        return Err(LifecycleError::Production { why: "it does not run the simulated VMM" });
    }
    let program = launch::program(operator, &pool)?;
    if pool.vmm == VmmKind::Firecracker && pool.vmm_version.is_none() {
        fix_version(operator, &pool.path(), &program.version)?;
    }
    operator.net()?;
    let slot = instance.slot(&roots)?;
    let mut resources = pool.instance_resources;
    // A disk that was grown stays grown.
    resources.data_disk_mib = instance.resources.data_disk_mib;
    let wanted = Use {
        vms: 1,
        vcpus: resources.vcpus,
        mem_mib: resources.mem_mib,
        disk_mib: resources.data_disk_mib + manifest.rootfs.size_bytes.div_ceil(1 << 20),
    };
    room::reserve(&roots, tenant.tenant_id.as_ref(), &tenant.quotas, slot, wanted)?;
    instance.pending = Some(intent(&roots, Operation::Start));
    instance.resources = resources;
    instance.revision = Some(revision.clone());
    // From the reservation on, every failure goes the same way: back.
    let begun = (|| -> Result<(), LifecycleError> {
        failpoint::hit("start", "reserved")?;
        instance.save(&roots)?;
        operator.audit(&instance, "start", Phase::Intent, |entry| {
            entry.from = Some(state.to_string());
            entry.revision = Some(revision.to_string());
        })?;
        Ok(failpoint::hit("start", "intent")?)
    })();
    drop(pool_lock);
    let begin = std::time::Instant::now();
    let mut launch = Launch {
        operator,
        tenant,
        pool,
        instance: instance.clone(),
        slot,
        manifest,
        program,
        vmm: None,
        client: None,
    };
    let result = match begun {
        Ok(()) => runner::run("start", &launch::steps(), &mut launch),
        Err(error) => Err(Failed { step: "intent", error, left: Vec::new() }),
    };
    match result {
        Ok(steps) => {
            instance.vmm = launch::record(&launch);
            instance.pending = None;
            instance.status = State::Running;
            instance.entered_running_at = Some(roots.now());
            instance.last_receipt = Some(Receipt {
                operation: "start".into(),
                total_ms: round(begin.elapsed().as_secs_f64() * 1000.0),
                steps: steps
                    .into_iter()
                    .map(|(name, ms)| StepTime { name: name.to_owned(), ms: round(ms) })
                    .collect(),
                agent: "none".into(),
            });
            instance.save(&roots)?;
            failpoint::hit("start", "recorded")?;
            operator.audit(&instance, "start", Phase::Done, |entry| {
                entry.from = Some(state.to_string());
                entry.to = Some(State::Running.to_string());
                entry.revision = Some(revision.to_string());
                let vmm =
                    instance.vmm.as_ref().map(|vmm| format!("{} {} pid {}", vmm.kind, vmm.version, vmm.pid));
                entry.detail = vmm;
            })?;
            Ok(Outcome { instance, changed: true })
        }
        Err(failed) => {
            let undone = room::release(&roots, slot).map_err(LifecycleError::from).and_then(|()| {
                instance.pending = None;
                instance.last_exit =
                    Some(Exit { when: roots.now(), why: format!("start: {}", failed.error) });
                Ok(instance.save(&roots)?)
            });
            Err(report(operator, &instance, "start", failed, undone))
        }
    }
}

/// A pool whose first revision was imported before any Firecracker was installed gets its version by its first start.
fn fix_version(operator: &Operator, path: &PoolPath, version: &str) -> Result<(), LifecycleError> {
    let _lock = lock_tenant(&operator.roots, &path.tenant)?;
    let (_, mut pool) = load_pool(&operator.roots, path)?;
    pool.vmm_version.get_or_insert_with(|| version.to_owned());
    Ok(pool.save(&operator.roots)?)
}

fn round(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}
