//! Every operation that changes an instance, for whoever asks: the only writer of `instance.json`.
//!
//! ```text
//! lock → load → settle what was cut off → decide (state, quota, room) → intent → steps → record → audit
//! ```
//! An operation that is killed leaves its intent. The next one on the same instance, or `node recover`, settles it by
//! looking at the world: create and start are rolled back, stop and destroy are finished.

use std::{fs, time::Duration};

use super::{
    config::{self, Exit, Instance, Intent, Operation, Receipt},
    disk::{self, DiskError},
    fc_config::files,
    launch::{self, Launch},
    net::{self as wiring},
    runner::{self, Failed, Step},
    state::{self, Denial, Event, Next, State},
};
use crate::{
    infra::{config::Roots, failpoint, shell::ShellError},
    net::{Net, NetError, egress::Port},
    security::audit::{self, AuditError, Entry, Phase},
    store::{self, Lock, Schema, Sharing, StoreError},
    vm::{
        naming::{InstanceId, InstancePath, InstanceRef, PoolPath, Slot, TenantId},
        pool::{
            self,
            artifacts::Artifacts,
            config::{Pool, VmmKind},
        },
        room::{self, NodeConfig, RoomError},
        tenant::{
            self,
            config::Tenant,
            leases,
            quota::{Exceeded, Use, within},
        },
    },
    vmm::{
        client::{Client, VmmError},
        install::InstallError,
        process::{self, Vmm},
        wire::Call,
    },
};

/// Why an operation on an instance did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// There is no such thing.
    #[error("{what}")]
    NotFound {
        /// What is not there, and what is.
        what: String,
    },
    /// More than one instance begins like that.
    #[error("{prefix} is ambiguous: {candidates}")]
    Ambiguous {
        /// What was typed.
        prefix: String,
        /// The instances that begin like that.
        candidates: String,
    },
    /// The state does not allow it.
    #[error("{path} cannot {event}: {denial}", event = denial.event)]
    Denied {
        /// The instance.
        path: InstancePath,
        /// Why.
        denial: Denial,
    },
    /// The pool has nothing to run yet.
    #[error("{pool} has no revision to run yet")]
    NoRevision {
        /// The pool.
        pool: PoolPath,
    },
    /// The pool has as many instances as its tenant's quota allows.
    #[error("the quota of tenant {tenant} does not allow it: {exceeded}")]
    TooMany {
        /// The tenant.
        tenant: TenantId,
        /// Which limit.
        exceeded: Exceeded,
    },
    /// All addresses are leased.
    #[error("tenant {tenant} has no free address: all {count} of {subnet} on this node are leased")]
    NoAddress {
        /// The tenant.
        tenant: TenantId,
        /// How many it has.
        count: u32,
        /// Its subnet.
        subnet: String,
    },
    /// Another instance publishes that port.
    #[error("{port} of the host is published by {by} already")]
    PortTaken {
        /// The port.
        port: String,
        /// Who publishes it.
        by: InstancePath,
    },
    /// A production node refuses what is for trying out.
    #[error("this node is in production: {why}")]
    Production {
        /// What it refuses.
        why: &'static str,
    },
    /// A step failed; what was done before was undone.
    #[error("{operation} failed at its step {step}: {error}{left}", left = left_over(left))]
    Step {
        /// The operation.
        operation: &'static str,
        /// The step.
        step: &'static str,
        /// Why.
        error: Box<LifecycleError>,
        /// What could not be undone.
        left: Vec<String>,
    },
    /// No room.
    #[error(transparent)]
    Room(#[from] RoomError),
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel's network refused.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The VMM refused or ended.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// No VMM.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A program could not be run.
    #[error(transparent)]
    Shell(#[from] ShellError),
    /// A disk could not be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A failpoint.
    #[error(transparent)]
    Failpoint(#[from] std::io::Error),
}

fn left_over(left: &[String]) -> String {
    if left.is_empty() {
        String::new()
    } else {
        format!("; not undone: {}", left.join(", "))
    }
}

/// Carries operations out: the roots, and the sockets to the kernel's network once they are needed.
pub struct Operator {
    /// Where everything is.
    pub roots: Roots,
    net: Option<Net>,
}

/// What an operation did.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The instance as it is now.
    pub instance: Instance,
    /// False where it was like that already.
    pub changed: bool,
}

impl Operator {
    /// An operator on these roots.
    pub fn new(roots: Roots) -> Self {
        Self { roots, net: None }
    }

    /// The kernel's network, made from the files where this boot has not seen it yet. The first call must not be made
    /// under the network's lock.
    ///
    /// # Errors
    /// When there is no permission, or the kernel refuses.
    pub fn net(&mut self) -> Result<&mut Net, LifecycleError> {
        if self.net.is_none() {
            let mut net = Net::open()?;
            wiring::ensure::<LifecycleError>(&self.roots, &mut net)?;
            self.net = Some(net);
        }
        match &mut self.net {
            Some(net) => Ok(net),
            None => unreachable!("it was put there three lines above"),
        }
    }

    fn audit(
        &self,
        instance: &Instance,
        operation: &str,
        phase: Phase,
        more: impl FnOnce(&mut Entry),
    ) -> Result<(), AuditError> {
        let mut entry = Entry::new(format!("instance.{operation}"), instance.path(), phase);
        more(&mut entry);
        let folder = tenant::config::folder(&self.roots, &instance.tenant_id);
        audit::append(&self.roots, instance.tenant_id.as_ref(), &folder, entry)
    }
}

/// The lock of a tenant: held while its pools, instances and leases are counted or change in number.
///
/// # Errors
/// When somebody else holds it for too long.
pub fn lock_tenant(roots: &Roots, tenant: &TenantId) -> Result<Lock, StoreError> {
    let name = format!("tenant.{tenant}");
    Lock::take(
        &roots.lock_file(&name),
        &format!("tenant {tenant}"),
        Sharing::Exclusive,
        roots.lock_timeout,
    )
}

fn lock_path(roots: &Roots, path: &InstancePath) -> std::path::PathBuf {
    roots.lock_file(&format!(
        "instance.{}.{}.{}",
        path.tenant, path.pool, path.instance
    ))
}

/// The lock of an instance, if nobody holds it.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn try_lock(roots: &Roots, path: &InstancePath) -> Result<Option<Lock>, StoreError> {
    Lock::try_take(&lock_path(roots, path))
}

fn lock_instance(roots: &Roots, path: &InstancePath) -> Result<Lock, StoreError> {
    Lock::take(
        &lock_path(roots, path),
        &path.to_string(),
        Sharing::Exclusive,
        roots.lock_timeout,
    )
}

/// The tenant, or [`LifecycleError::NotFound`].
///
/// # Errors
/// When it cannot be read.
pub fn load_tenant(roots: &Roots, id: &TenantId) -> Result<Tenant, LifecycleError> {
    Tenant::load(roots, id).map_err(|error| match error {
        StoreError::Missing { .. } => {
            let there = tenant::config::ids(roots).unwrap_or_default();
            LifecycleError::NotFound {
                what: format!("there is no tenant {id}; {}", these("there is", &there)),
            }
        }
        other => other.into(),
    })
}

/// The pool, or [`LifecycleError::NotFound`].
///
/// # Errors
/// When it cannot be read.
pub fn load_pool(roots: &Roots, path: &PoolPath) -> Result<(Tenant, Pool), LifecycleError> {
    let tenant = load_tenant(roots, &path.tenant)?;
    let pool = Pool::load(roots, path).map_err(|error| match error {
        StoreError::Missing { .. } => {
            let there = pool::config::paths(roots, &path.tenant).unwrap_or_default();
            let what = format!(
                "there is no pool {path}; {}",
                these(&format!("{} has", path.tenant), &there)
            );
            LifecycleError::NotFound { what }
        }
        other => other.into(),
    })?;
    Ok((tenant, pool))
}

fn these<T: ToString>(there_is: &str, all: &[T]) -> String {
    match all {
        [] => format!("{there_is} none"),
        _ if all.len() > 10 => format!("{there_is} {}", all.len()),
        _ => format!(
            "{there_is} {}",
            all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The one instance that a person means.
///
/// # Errors
/// [`LifecycleError::NotFound`] and [`LifecycleError::Ambiguous`] name those that there are.
pub fn resolve(roots: &Roots, typed: &InstanceRef) -> Result<InstancePath, LifecycleError> {
    load_pool(roots, &typed.pool)?;
    let all = config::paths(roots, &typed.pool)?;
    let matching: Vec<&InstancePath> = all
        .iter()
        .filter(|path| typed.prefix.matches(&path.instance))
        .collect();
    let ids = |paths: &[&InstancePath]| {
        paths
            .iter()
            .map(|path| path.instance.clone())
            .collect::<Vec<InstanceId>>()
    };
    match matching[..] {
        [one] => Ok(one.clone()),
        [] => {
            let there = these("it has", &ids(&all.iter().collect::<Vec<_>>()));
            let what = format!(
                "no instance of {} starts with {}; {there}",
                typed.pool, typed.prefix
            );
            Err(LifecycleError::NotFound { what })
        }
        _ => Err(LifecycleError::Ambiguous {
            prefix: typed.to_string(),
            candidates: ids(&matching)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// The state as it is: an instance that was made before its pool's first revision is Ready once there is one.
pub fn effective_state(instance: &Instance, pool_has_revision: bool) -> State {
    match instance.status {
        State::Created if pool_has_revision => State::Ready,
        state => state,
    }
}

/// What an instance is made with.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Ports of the guest that are reachable on the host's own addresses.
    pub published: Vec<Port>,
}

struct Creation<'a> {
    operator: &'a mut Operator,
    tenant: Tenant,
    pool: Pool,
    instance: Instance,
}

/// Makes an instance: a name, an address, a data disk, and the rules that go with the address.
///
/// # Errors
/// Nothing of it is left where it fails.
pub fn create(
    operator: &mut Operator,
    pool: &PoolPath,
    options: CreateOptions,
) -> Result<Instance, LifecycleError> {
    // The environment first: without the network there is no instance, and nothing shall be half made.
    operator.net()?;
    room::check_disk(&operator.roots, &NodeConfig::load(&operator.roots)?)?;
    let roots = operator.roots.clone();
    let tenant_lock = lock_tenant(&roots, &pool.tenant)?;
    let (tenant, pool) = load_pool(&roots, pool)?;
    let path = pool.path();
    let instances = config::instances_folder(&roots, &path);
    store::make_folder(&instances)?;
    store::sweep(&instances)?;
    let there = config::paths(&roots, &path)?.len() as u64;
    within(
        "max_instances_per_pool",
        there,
        1,
        tenant.quotas.max_instances_per_pool.into(),
    )
    .map_err(|exceeded| LifecycleError::TooMany {
        tenant: tenant.tenant_id.clone(),
        exceeded,
    })?;
    check_published(&roots, &options.published)?;
    let (first, last) = tenant.offsets();
    let offset = leases::choose(&roots, &tenant)?.ok_or_else(|| LifecycleError::NoAddress {
        tenant: tenant.tenant_id.clone(),
        count: u32::from(last.get()).saturating_sub(first.get().into()) + 1,
        subnet: tenant.network.ipv4_subnet.to_string(),
    })?;
    let id = (0..)
        .map(|attempt| InstanceId::from_bits(roots.id_bits(attempt)))
        .find(|id| !instances.join(id).exists())
        .unwrap_or(InstanceId::from_bits(0));
    let mut instance = Instance {
        schema_version: Schema,
        generation: 1,
        tenant_id: tenant.tenant_id.clone(),
        pool_id: pool.pool_id.clone(),
        instance_id: id.clone(),
        status: State::Created,
        pending: Some(intent(&roots, Operation::Create)),
        net: wiring::identity(&tenant, offset, options.published),
        resources: pool.instance_resources,
        revision: None,
        vmm: None,
        created_at: roots.now(),
        entered_running_at: None,
        entered_stopped_at: None,
        last_receipt: None,
        last_exit: None,
    };
    let _lock = lock_instance(&roots, &instance.path())?;
    operator.audit(&instance, "create", Phase::Intent, |_| ())?;
    // The folder appears with its record in it, or not at all.
    let new = instances.join(format!(".new-{id}"));
    store::make_folder(&new)?;
    store::write(&new.join("instance.json"), &instance)?;
    fs::rename(&new, instances.join(&id)).map_err(StoreError::io("rename", &new))?;
    store::sync_folder(&instances)?;
    failpoint::hit("create", "intent")?;
    leases::hold(&roots, &instance.path(), offset)?;
    drop(tenant_lock);

    let steps: [Step<Creation, LifecycleError>; 2] = [
        Step {
            name: "disk",
            run: |creation| {
                let volumes =
                    config::folder(&creation.operator.roots, &creation.instance.path()).join("volumes");
                store::make_folder(&volumes)?;
                match creation.instance.resources.data_disk_mib {
                    0 => Ok(()),
                    size => Ok(disk::make_data_disk(&volumes.join(files::DATA), size)?),
                }
            },
            undo: None,
        },
        Step {
            name: "network",
            run: |creation| {
                let lease = wiring::lease(&creation.tenant, &creation.pool, &creation.instance);
                let tenant = wiring::tenant_net(&creation.tenant);
                let net = creation.operator.net()?;
                net.ensure_tenant(&tenant)?;
                let _lock = wiring::lock(&creation.operator.roots, Sharing::Shared)?;
                Ok(creation.operator.net()?.add_lease(&tenant, &lease)?)
            },
            undo: None,
        },
    ];
    let mut creation = Creation {
        operator,
        tenant,
        pool,
        instance: instance.clone(),
    };
    let result = runner::run("create", &steps, &mut creation);
    match result {
        Ok(_) => {
            instance.pending = None;
            instance.save(&roots)?;
            failpoint::hit("create", "recorded")?;
            operator.audit(&instance, "create", Phase::Done, |entry| {
                entry.to = Some(instance.status.to_string());
                entry.detail = Some(format!(
                    "address {} mac {}",
                    instance.net.guest_ip, instance.net.mac
                ));
            })?;
            Ok(instance)
        }
        Err(failed) => {
            let undone = discard(operator, &instance, Volumes::Wipe);
            Err(report(operator, &instance, "create", failed, undone))
        }
    }
}

fn check_published(roots: &Roots, wanted: &[Port]) -> Result<(), LifecycleError> {
    if wanted.is_empty() {
        return Ok(());
    }
    for tenant in tenant::config::ids(roots)? {
        for pool in pool::config::paths(roots, &tenant)? {
            for path in config::paths(roots, &pool)? {
                let Some(instance) = store::read_if_there::<Instance>(&config::file(roots, &path))? else {
                    continue;
                };
                let same = |port: &&Port| {
                    wanted
                        .iter()
                        .any(|w| (w.protocol, w.host_port) == (port.protocol, port.host_port))
                };
                if let Some(port) = instance.net.published.iter().find(same) {
                    return Err(LifecycleError::PortTaken {
                        port: port.to_string(),
                        by: path,
                    });
                }
            }
        }
    }
    Ok(())
}

fn intent(roots: &Roots, operation: Operation) -> Intent {
    Intent {
        operation,
        since: roots.now(),
        pid: std::process::id(),
    }
}

/// Writes the outcome of a failed operation to the audit log and makes one error of it all.
fn report(
    operator: &Operator,
    instance: &Instance,
    operation: &'static str,
    failed: Failed<LifecycleError>,
    undone: Result<(), LifecycleError>,
) -> LifecycleError {
    let mut left: Vec<String> = failed
        .left
        .into_iter()
        .map(|(step, error)| format!("{step}: {error}"))
        .collect();
    left.extend(undone.err().map(|error| error.to_string()));
    let error = LifecycleError::Step {
        operation,
        step: failed.step,
        error: Box::new(failed.error),
        left,
    };
    let detail = error.to_string();
    // The error that is being reported matters more than one of the log.
    let _ = operator.audit(instance, operation, Phase::Failed, |entry| {
        entry.detail = Some(detail)
    });
    error
}

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
            return Ok(Outcome {
                instance,
                changed: false,
            });
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
        return Err(LifecycleError::Production {
            why: "it does not run the simulated VMM",
        });
    }
    let program = launch::program(operator, &pool)?;
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
        Err(error) => Err(Failed {
            step: "intent",
            error,
            left: Vec::new(),
        }),
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
                steps: steps.into_iter().map(|(name, ms)| (name, round(ms))).collect(),
                agent: "none".into(),
            });
            instance.save(&roots)?;
            failpoint::hit("start", "recorded")?;
            operator.audit(&instance, "start", Phase::Done, |entry| {
                entry.from = Some(state.to_string());
                entry.to = Some(State::Running.to_string());
                entry.revision = Some(revision.to_string());
                let vmm = instance
                    .vmm
                    .as_ref()
                    .map(|vmm| format!("{} {} pid {}", vmm.kind, vmm.version, vmm.pid));
                entry.detail = vmm;
            })?;
            Ok(Outcome {
                instance,
                changed: true,
            })
        }
        Err(failed) => {
            let undone = room::release(&roots, slot)
                .map_err(LifecycleError::from)
                .and_then(|()| {
                    instance.pending = None;
                    instance.last_exit = Some(Exit {
                        when: roots.now(),
                        why: format!("start: {}", failed.error),
                    });
                    Ok(instance.save(&roots)?)
                });
            Err(report(operator, &instance, "start", failed, undone))
        }
    }
}

fn round(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

fn denied(path: &InstancePath, state: State, event: Event) -> LifecycleError {
    LifecycleError::Denied {
        path: path.clone(),
        denial: Denial { state, event },
    }
}

/// Ends an instance's VMM: asks the guest to shut down, waits as long as the pool says, then kills. `force` kills at once.
///
/// # Errors
/// Where it fails half-way, the next operation goes on with it.
pub fn stop(operator: &mut Operator, path: &InstancePath, force: bool) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let (_, pool) = load_pool(&roots, &path.pool_path())?;
    let _lock = lock_instance(&roots, path)?;
    let mut instance = settled(operator, path)?;
    let has_revision = Artifacts::of(&roots, &pool.path()).current()?.is_some();
    let state = effective_state(&instance, has_revision);
    match state::next(state, Event::Stop) {
        Next::Already => {
            return Ok(Outcome {
                instance,
                changed: false,
            });
        }
        Next::Denied => return Err(denied(path, state, Event::Stop)),
        Next::To(_) => {}
    }
    operator.net()?;
    let slot = instance.slot(&roots)?;
    instance.pending = Some(intent(&roots, Operation::Stop));
    instance.save(&roots)?;
    operator.audit(&instance, "stop", Phase::Intent, |entry| {
        entry.from = Some(state.to_string())
    })?;
    failpoint::hit("stop", "intent")?;
    let vmm = instance
        .vmm
        .as_ref()
        .and_then(|vmm| process::find(vmm.identity()));
    let mut why = format!("stopped by uid {}", roots.actor.uid);
    if let (Some(vmm), false) = (&vmm, force)
        && !shut_down(&roots, slot, vmm, pool.runtime_policy.graceful_shutdown_seconds)
    {
        why.push_str("; the guest did not shut down and was killed");
    }
    failpoint::hit("stop", "shutdown")?;
    launch::teardown(operator, slot, vmm.as_ref())?;
    finish_stop(operator, &mut instance, why)?;
    failpoint::hit("stop", "recorded")?;
    operator.audit(&instance, "stop", Phase::Done, |entry| {
        entry.from = Some(state.to_string());
        entry.to = Some(instance.status.to_string());
    })?;
    Ok(Outcome {
        instance,
        changed: true,
    })
}

/// Presses Ctrl-Alt-Del and waits. True where the VMM ended by that.
fn shut_down(roots: &Roots, slot: Slot, vmm: &Vmm, seconds: u32) -> bool {
    let directory = roots.vmm_dir(&slot.tap());
    // A VMM that does not answer is killed, as one whose guest does not.
    let asked = Client::connect_now(&directory).and_then(|mut client| client.call(&Call::SendCtrlAltDel));
    asked.is_ok() && vmm.ended_within(Duration::from_secs(seconds.into()))
}

fn finish_stop(operator: &Operator, instance: &mut Instance, why: String) -> Result<(), StoreError> {
    let now = operator.roots.now();
    instance.pending = None;
    instance.status = State::Stopped;
    instance.vmm = None;
    instance.entered_stopped_at = Some(now);
    instance.last_exit = Some(Exit { when: now, why });
    instance.save(&operator.roots)
}

/// What becomes of a data disk when its instance goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Volumes {
    /// It is kept in the pool's `kept/`.
    Keep,
    /// It is removed.
    Wipe,
}

/// Removes an instance from any state. Its data disk is kept in the pool's `kept/`, unless `wipe_volumes`.
///
/// # Errors
/// Where it fails half-way, the next operation goes on with it.
pub fn destroy(
    operator: &mut Operator,
    path: &InstancePath,
    wipe_volumes: bool,
) -> Result<(), LifecycleError> {
    operator.net()?;
    let roots = operator.roots.clone();
    let lock = lock_instance(&roots, path)?;
    let Some(mut instance) = store::read_if_there::<Instance>(&config::file(&roots, path))? else {
        lock.remove();
        return Err(gone(path));
    };
    let from = instance.status;
    instance.pending = Some(intent(&roots, Operation::Destroy { wipe_volumes }));
    instance.save(&roots)?;
    operator.audit(&instance, "destroy", Phase::Intent, |entry| {
        entry.from = Some(from.to_string())
    })?;
    failpoint::hit("destroy", "intent")?;
    discard(
        operator,
        &instance,
        if wipe_volumes {
            Volumes::Wipe
        } else {
            Volumes::Keep
        },
    )?;
    operator.audit(&instance, "destroy", Phase::Done, |entry| {
        entry.from = Some(from.to_string());
        entry.to = Some(State::Destroyed.to_string());
    })?;
    lock.remove();
    Ok(())
}

fn gone(path: &InstancePath) -> LifecycleError {
    LifecycleError::NotFound {
        what: format!("there is no instance {path}"),
    }
}

/// Takes everything of an instance away. Its lease is given back last but one: as long as it is held, nobody else has
/// the slot, and once it is free, nothing of the slot is touched again.
fn discard(operator: &mut Operator, instance: &Instance, volumes: Volumes) -> Result<(), LifecycleError> {
    let roots = operator.roots.clone();
    let path = instance.path();
    let slot = instance.slot(&roots)?;
    if leases::is_held_by(&roots, &path, instance.net.offset)? {
        let vmm = instance
            .vmm
            .as_ref()
            .and_then(|vmm| process::find(vmm.identity()));
        launch::teardown(operator, slot, vmm.as_ref())?;
        let (tenant, pool) = load_pool(&roots, &path.pool_path())?;
        let lease = wiring::lease(&tenant, &pool, instance);
        operator.net()?;
        let _tenant_lock = lock_tenant(&roots, &path.tenant)?;
        let _net_lock = wiring::lock(&roots, Sharing::Shared)?;
        operator
            .net()?
            .remove_lease(&wiring::tenant_net(&tenant), &lease)?;
        failpoint::hit("discard", "network")?;
        leases::free(&roots, &path, instance.net.offset)?;
    }
    failpoint::hit("discard", "lease")?;
    if volumes == Volumes::Keep {
        keep_volume(&roots, &path)?;
    }
    failpoint::hit("discard", "volumes")?;
    Ok(store::vanish(&config::folder(&roots, &path))?)
}

/// Where the data disks of destroyed instances are kept.
pub fn kept_folder(roots: &Roots, pool: &PoolPath) -> std::path::PathBuf {
    pool::config::folder(roots, pool).join("kept")
}

fn keep_volume(roots: &Roots, path: &InstancePath) -> Result<(), StoreError> {
    let from = config::folder(roots, path).join("volumes").join(files::DATA);
    if !from.exists() {
        return Ok(());
    }
    let kept = kept_folder(roots, &path.pool_path());
    store::make_folder(&kept)?;
    fs::rename(&from, kept.join(format!("{}.data.ext4", path.instance)))
        .map_err(StoreError::io("keep", &from))?;
    store::sync_folder(&kept)
}

/// Grows the data disk; a running guest sees the new size at its next start.
///
/// # Errors
/// When there is none, it would shrink, or the tenant has no room.
pub fn grow_disk(
    operator: &mut Operator,
    path: &InstancePath,
    size_mib: u64,
) -> Result<Instance, LifecycleError> {
    let roots = operator.roots.clone();
    let _lock = lock_instance(&roots, path)?;
    let mut instance = settled(operator, path)?;
    room::check_disk(&roots, &NodeConfig::load(&roots)?)?;
    disk::grow(
        &config::folder(&roots, path).join("volumes").join(files::DATA),
        size_mib,
    )?;
    instance.resources.data_disk_mib = size_mib;
    instance.save(&roots)?;
    operator.audit(&instance, "disk-grow", Phase::Done, |entry| {
        entry.detail = Some(format!("{size_mib} MiB"))
    })?;
    Ok(instance)
}

/// Loads an instance and settles what was cut off. The caller holds its lock.
fn settled(operator: &mut Operator, path: &InstancePath) -> Result<Instance, LifecycleError> {
    match store::read_if_there::<Instance>(&config::file(&operator.roots, path))? {
        Some(instance) => settle_locked(operator, instance)?.ok_or_else(|| gone(path)),
        None => Err(gone(path)),
    }
}

/// Settles what an instance's last operation left, if nobody works on it: an operation that was cut off, a VMM that ended
/// by itself, a host that rebooted. `None` where the instance is gone by that.
///
/// # Errors
/// When it cannot be settled; the intent stays.
pub fn settle(operator: &mut Operator, instance: Instance) -> Result<Option<Instance>, LifecycleError> {
    if !needs_settling(&instance, &process::boot_id()) {
        return Ok(Some(instance));
    }
    let path = instance.path();
    match try_lock(&operator.roots, &path)? {
        // Somebody works on it: what they left is theirs to finish.
        None => Ok(Some(instance)),
        Some(lock) => match store::read_if_there(&config::file(&operator.roots, &path))? {
            Some(fresh) => {
                let settled = settle_locked(operator, fresh)?;
                if settled.is_none() {
                    lock.remove();
                }
                Ok(settled)
            }
            None => Ok(None),
        },
    }
}

/// Was an operation cut off, or has a VMM ended that should be there?
pub fn needs_settling(instance: &Instance, boot_id: &str) -> bool {
    instance.pending.is_some() || (instance.status.has_vmm() && !instance.vmm_is_alive(boot_id))
}

fn settle_locked(
    operator: &mut Operator,
    mut instance: Instance,
) -> Result<Option<Instance>, LifecycleError> {
    let boot_id = process::boot_id();
    if !needs_settling(&instance, &boot_id) {
        return Ok(Some(instance));
    }
    operator.net()?;
    let roots = operator.roots.clone();
    let slot = instance.slot(&roots)?;
    let vmm = instance
        .vmm
        .as_ref()
        .and_then(|vmm| process::find(vmm.identity()));
    let (operation, phase) = match instance.pending.as_ref().map(|intent| intent.operation) {
        Some(Operation::Create) => {
            discard(operator, &instance, Volumes::Wipe)?;
            operator.audit(&instance, "create", Phase::Recovered, |entry| {
                entry.detail = Some("it was cut off and rolled back".into());
            })?;
            return Ok(None);
        }
        Some(Operation::Destroy { wipe_volumes }) => {
            discard(
                operator,
                &instance,
                if wipe_volumes {
                    Volumes::Wipe
                } else {
                    Volumes::Keep
                },
            )?;
            operator.audit(&instance, "destroy", Phase::Recovered, |entry| {
                entry.detail = Some("it was cut off and finished".into());
            })?;
            return Ok(None);
        }
        Some(Operation::Start) => {
            launch::teardown(operator, slot, vmm.as_ref())?;
            instance.pending = None;
            instance.last_exit = Some(Exit {
                when: roots.now(),
                why: "a start was cut off and rolled back".into(),
            });
            instance.save(&roots)?;
            ("start", Phase::Recovered)
        }
        Some(Operation::Stop) => {
            launch::teardown(operator, slot, vmm.as_ref())?;
            finish_stop(operator, &mut instance, "a stop was cut off and finished".into())?;
            ("stop", Phase::Recovered)
        }
        None => {
            let rebooted = instance.vmm.as_ref().is_some_and(|vmm| vmm.boot_id != boot_id);
            let why = if rebooted {
                "the host rebooted"
            } else {
                "the VMM ended by itself"
            };
            launch::teardown(operator, slot, None)?;
            finish_stop(operator, &mut instance, why.into())?;
            ("died", Phase::Observed)
        }
    };
    operator.audit(&instance, operation, phase, |entry| {
        entry.to = Some(instance.status.to_string());
        entry.detail = instance.last_exit.as_ref().map(|exit| exit.why.clone());
    })?;
    Ok(Some(instance))
}
