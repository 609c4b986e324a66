//! Starting an instance: a guest without an agent boots, one with an agent is loaded from its base and told who it is.

use std::fs;

use super::{
    LifecycleError, Operator, Outcome, base, denied, effective_state, intent, joined, load_pool, lock_tenant,
    lookup::locked, receipt, refusal, secrets,
};
use crate::{
    infra::{config::Roots, failpoint},
    security::audit::{Limits, Network, Phase},
    store::{self, Sharing, StoreError},
    vm::{
        instance::{
            config::{self, Exit, Instance, Operation},
            delivery, disk,
            fc_config::{self, Boot, files},
            guest::{Guest, identity},
            launch::{self, API_LIMIT, Launch, LaunchStep},
            runner::{self, Failed, Step},
            snapshot,
            state::{self, Event, Next, State},
        },
        naming::{InstancePath, PoolPath},
        pool::{
            self,
            artifacts::Artifacts,
            config::{AgentMode, Pool, Resources, VmmKind},
        },
        room::{self, NodeConfig},
    },
    vmm::{client::Client, wire::Call},
};

/// Starts an instance afresh.
///
/// # Errors
/// The instance is as before where it fails.
pub fn start(operator: &mut Operator, path: &InstancePath) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let (_lock, before) = locked(operator, path)?;
    let (tenant, pool) = load_pool(&roots, &path.pool_path())?;
    let artifacts = Artifacts::of(&roots, &pool.path());
    // Shared with other starts: a revision must not be collected between here and the record that names it.
    let pool_lock = pool::lifecycle::lock(&roots, &pool.path(), Sharing::Shared)?;
    let current = artifacts.current()?;
    let state = effective_state(&before, current.is_some());
    let revision = match (state::next(state, Event::Start), current) {
        (Next::Already, _) => return Ok(Outcome { instance: before, changed: false }),
        (Next::To(_), Some(revision)) => revision,
        (Next::Denied, Some(_)) => return Err(denied(path, state, Event::Start)),
        (_, None) => return Err(LifecycleError::NoRevision { pool: pool.path() }),
    };
    room::check_disk(&roots, &NodeConfig::load(&roots)?, 0)?;
    let vmm = (pool.vmm, pool.vmm_version.as_deref());
    let program = refusal::program(operator, &path.tenant, vmm, pool.agent)?;
    if pool.vmm == VmmKind::Firecracker && pool.vmm_version.is_none() {
        fix_version(operator, &pool.path(), &program.version)?;
    }
    operator.net()?;
    let mut instance = before.clone();
    instance.pending = Some(intent(&roots, Operation::Start));
    instance.revision = Some(revision.clone());
    instance.agent = pool.agent;
    // What boots stands on no base, whatever it was started from before.
    (instance.base_key, instance.host_key, instance.secrets) = (None, None, None);
    instance.resources = resources(&roots, &before, &pool);
    let manifest = artifacts.manifest(&revision)?;
    artifacts.check(&manifest)?;
    let (base, pool_lock) = match pool.agent {
        AgentMode::None => (None, pool_lock),
        AgentMode::Required => {
            // Who makes one takes the lock alone.
            drop(pool_lock);
            let resources = base::resources(&pool, instance.resources.data_disk_mib);
            let recipe = base::Recipe {
                tenant: &tenant,
                pool: &pool,
                resources,
                manifest: &manifest,
                program: &program,
            };
            let (base, pool_lock) = base::ensure(operator, &recipe)?;
            (Some(base), pool_lock)
        }
    };
    instance.base_key = base.as_ref().map(|base| base.key.clone());
    let mut launch = Launch::new(operator, (tenant, pool), instance.clone(), manifest, program)?;
    launch.base = base;
    // Where not even the intent can be written, nothing was begun.
    instance.save_unsynced(&roots)?;
    // One that boots has no other memory: what a power cut brought back of an earlier sleep must not be taken for its own.
    let begun = failpoint::hit("start", "intent")
        .map_err(LifecycleError::from)
        .and_then(|()| Ok(snapshot::discard(&roots, path)?));
    drop(pool_lock);
    let clock = std::time::Instant::now();
    let steps = steps(instance.agent);
    let result = match begun {
        Ok(()) => runner::run("start", &steps, &mut launch).and_then(|times| {
            let confirmed = std::mem::take(&mut launch.confirmed);
            instance.host_key = identity::host_key(&confirmed);
            instance.secrets = launch.secrets;
            instance.last_receipt = Some(receipt("start", clock, times, (instance.agent, confirmed)));
            record(&launch, &mut instance, state).map_err(|error| Failed {
                step: "record",
                error: error.into(),
                left: runner::undo(&steps, &mut launch),
            })
        }),
        Err(error) => Err(Failed { step: "intent", error: error.into(), left: None }),
    };
    match result {
        Ok(()) => {
            // What cannot be dropped now is dropped by the next start: the instance runs.
            let _ = launch::drop_old_root_disks(operator, &instance);
            Ok(Outcome { instance, changed: true })
        }
        Err(failed) => {
            // What could not be undone needs its intent: the next operation goes on with it.
            let undone = match failed.left {
                Some(_) => Ok(()),
                None => put_back(operator, before, &mut instance, &failed.error),
            };
            Err(operator.failed(&instance, "start", LifecycleError::step("start", failed, undone)))
        }
    }
}

/// What a start gives. A disk that was grown stays grown, also where the record did not hear of it.
pub(super) fn resources(roots: &Roots, before: &Instance, pool: &Pool) -> Resources {
    let data = config::folder(roots, &before.path()).join("volumes").join(files::DATA);
    let grown = disk::size_mib(&data).unwrap_or(0);
    let data_disk_mib = before.resources.data_disk_mib.max(grown);
    Resources { data_disk_mib, ..pool.instance_resources }
}

/// The steps of a start: a guest without an agent boots, one with an agent is loaded from its base and told who it is.
fn steps<'a>(agent: AgentMode) -> Vec<LaunchStep<'a>> {
    let reserve = Step {
        name: "reserve",
        run: launch::reserve,
        undo: Some(|launch: &mut Launch| Ok(room::release(&launch.operator.roots, launch.slot)?)),
    };
    let guest = match agent {
        AgentMode::None => vec![
            Step { name: "configure", run: configure as fn(&mut _) -> _, undo: None },
            Step { name: "boot", run: boot, undo: None },
        ],
        AgentMode::Required => vec![
            Step { name: "load", run: load, undo: None },
            Step { name: "resume", run: launch::resume, undo: None },
            Step { name: "identify", run: identify, undo: None },
        ],
    };
    [reserve, Step { name: "disks", run: disks, undo: None }]
        .into_iter()
        .chain(launch::steps(announce))
        .chain(guest)
        .chain([Step { name: "join", run: launch::join, undo: None }])
        .collect()
}

/// The root disk: the instance's own copy of the revision's, kept from start to start while the revision is the same. A guest
/// with an agent has none of its own.
fn disks(launch: &mut Launch) -> Result<(), LifecycleError> {
    let roots = &launch.operator.roots;
    let path = launch.instance.path();
    let volumes = config::folder(roots, &path).join("volumes");
    store::make_folder(&volumes)?;
    let revision = &launch.manifest.revision;
    let name = launch::root_disk(revision.short());
    if launch.instance.agent == AgentMode::None && !volumes.join(&name).exists() {
        store::sweep(&volumes)?;
        let from = Artifacts::of(roots, &launch.pool.path()).revision(revision).join(files::ROOT);
        // Whole or not there: a copy that was cut off has another name.
        let new = store::unfinished(&volumes.join(&name));
        disk::copy(&from, &new)?;
        fs::rename(&new, volumes.join(&name)).map_err(StoreError::io("rename", &new))?;
        store::sync_folder(&volumes)?;
    }
    launch::check_data_disk(roots, &launch.instance)
}

/// What is announced lasts: a power cut that took the intent would leave lines in the log that nobody ends.
fn announce(launch: &mut Launch) -> Result<(), LifecycleError> {
    let (instance, agent) = (&launch.instance, launch.instance.agent);
    let requests = match agent {
        AgentMode::None => {
            fc_config::requests(&Boot::of(instance, &launch.pool, &launch.manifest, &launch.tenant.quotas))
        }
        // Whether it goes on at once says nothing of what it is.
        AgentMode::Required => vec![fc_config::load_base(instance, false)],
    };
    store::sync_folder(&config::folder(&launch.operator.roots, &instance.path()))?;
    Ok(launch.operator.audit(instance, "start", Phase::Intent, |entry| {
        entry.from = Some(effective_state(instance, true).to_string());
        entry.revision = instance.revision.as_ref().map(ToString::to_string);
        entry.limits = Some(Limits::from(instance.resources));
        entry.network = Some(Network::from(&instance.net));
        entry.config_hash = Some(fc_config::hash(&requests));
    })?)
}

fn configure(launch: &mut Launch) -> Result<(), LifecycleError> {
    let directory = launch.operator.roots.vmm_dir(&launch.slot.tap());
    let Some(vmm) = &launch.vmm else { return Ok(()) };
    let mut client = Client::connect(&directory, &vmm.pidfd, API_LIMIT)?;
    let guest = Boot::of(&launch.instance, &launch.pool, &launch.manifest, &launch.tenant.quotas);
    for call in fc_config::requests(&guest) {
        if call != Call::InstanceStart {
            client.call(&call)?;
        }
    }
    delivery::put_metadata(&mut client, &launch.instance, &launch.pool)?;
    launch.client = Some(client);
    Ok(())
}

fn boot(launch: &mut Launch) -> Result<(), LifecycleError> {
    if let Some(client) = &mut launch.client {
        client.call(&Call::InstanceStart)?;
    }
    launch::check(launch)
}

/// Loads the base. Where nothing is to be changed before its vCPUs go on, they go on at once: to ask for that takes the VMM
/// longer than it should, up to 27 ms.
fn load(launch: &mut Launch) -> Result<(), LifecycleError> {
    let directory = launch.operator.roots.vmm_dir(&launch.slot.tap());
    let (Some(vmm), Some(base)) = (&launch.vmm, &launch.base) else { return Ok(()) };
    let mut client = Client::connect(&directory, &vmm.pidfd, API_LIMIT)?;
    client.call(&fc_config::serial(&launch.tenant.quotas))?;
    delivery::put_metadata(&mut client, &launch.instance, &launch.pool)?;
    let own = fc_config::own(&launch.instance, &base.ingredients.resources, &launch.tenant.quotas);
    client.call(&fc_config::load_base(&launch.instance, own.is_empty()))?;
    for call in &own {
        client.call(call)?;
    }
    launch.client = (!own.is_empty()).then_some(client);
    launch::check(launch)
}

/// The guest becomes who it shall be. It has no network before it has confirmed all of that. Its secrets come first: its workload is
/// started by its becoming somebody.
fn identify(launch: &mut Launch) -> Result<(), LifecycleError> {
    let Some(vmm) = &launch.vmm else { return Ok(()) };
    let mtu = launch.operator.net()?.mtu(launch.slot)?;
    let (roots, instance) = (&launch.operator.roots, &launch.instance);
    let given = delivery::give(roots, instance, vmm, || Guest::await_loaded(roots, instance, vmm))?;
    let guest = Guest::await_loaded(roots, instance, vmm)?;
    let identity = identity::of(roots, instance, mtu)?;
    launch.secrets = given.generation;
    launch.confirmed = [given.confirmed, identity::identify(guest, identity)?].concat();
    Ok(())
}

/// The new state. Its line comes first: one that is there too early is followed by that of the recovery.
fn record(launch: &Launch, instance: &mut Instance, from: State) -> Result<(), LifecycleError> {
    let roots = &launch.operator.roots;
    instance.vmm = launch::record(launch);
    instance.pending = None;
    instance.status = State::Running;
    instance.entered_running_at = Some(roots.now());
    launch.operator.audit(instance, "start", Phase::Done, |entry| {
        entry.from = Some(from.to_string());
        entry.to = Some(State::Running.to_string());
        entry.revision = instance.revision.as_ref().map(ToString::to_string);
        let vmm = instance.vmm.as_ref().map(|vmm| vmm.in_words());
        entry.detail = joined([vmm, secrets::detail(instance)]);
    })?;
    failpoint::hit("start", "audited")?;
    instance.save(roots)?;
    Ok(failpoint::hit("start", "recorded")?)
}

/// Writes the record as it was before, and why it did not become another one.
fn put_back(
    operator: &Operator,
    before: Instance,
    instance: &mut Instance,
    error: &LifecycleError,
) -> Result<(), LifecycleError> {
    let generation = instance.generation;
    *instance = before;
    instance.generation = generation;
    if !matches!(error, LifecycleError::Room(_)) {
        let why = format!("start: {error}");
        instance.last_exit = Some(Exit { when: operator.roots.now(), why });
    }
    Ok(instance.save(&operator.roots)?)
}

/// A pool's version is fixed by its first revision, or, where no Firecracker was installed then, by its first start.
pub fn fix_version(operator: &Operator, path: &PoolPath, version: &str) -> Result<(), LifecycleError> {
    let _lock = lock_tenant(&operator.roots, &path.tenant)?;
    let (_, mut pool) = load_pool(&operator.roots, path)?;
    if pool.vmm_version.is_none() {
        pool.vmm_version = Some(version.to_owned());
        pool.save(&operator.roots)?;
    }
    Ok(())
}
