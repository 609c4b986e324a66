//! Making the base snapshot from which a pool's guests start.
//!
//! ```text
//! reserve → directory → tap → spawn → boot → barrier → snapshot | teardown | put
//! ```
//! A guest is booted in its tenant's builder slot and goes no further than its agent: it has no address, no name, no mounted
//! data disk and no workload, and its TAP never joins a bridge. Whatever happens, everything of it goes away again. Who is
//! killed meanwhile leaves the slot to whoever comes next, or to `node recover`.

use std::{os::unix::fs::lchown, path::PathBuf, time::Duration};

use super::{LifecycleError, Operator};
use crate::{
    infra::{beneath, config::Roots, failpoint, text::last_lines},
    security::audit::{self, Entry, Phase},
    store::{Lock, Sharing, StoreError},
    vm::{
        instance::{
            fc_config::{self, Boot, files},
            guard::{self, Guard},
            guest::{Guest, GuestError},
            launch::{self, API_LIMIT, Keep},
            runner::{self, Step},
            vmm_dir::{self, VmmDir},
        },
        naming::{Offset, PoolPath, Slot, TenantId},
        pool::{
            self,
            artifacts::{Artifacts, Manifest},
            base::{self, Base, Bases, Draft, Ingredients},
            config::{AgentMode, Pool, Resources},
        },
        room,
        snapshot::cpu_model,
        tenant::{self, config::Tenant, quota::Use},
    },
    vmm::{
        client::{Client, LOG},
        process::{Program, Vmm},
        wire::{Call, SnapshotCreate, SnapshotType},
    },
};

/// How long somebody else may take who makes a base of the same tenant.
const OTHERS_LIMIT: Duration = Duration::from_secs(300);
/// How often a base that was there and is gone is looked for again.
const TRIES: usize = 3;

fn lock_file(roots: &Roots, tenant: &TenantId) -> std::path::PathBuf {
    roots.lock_file(&format!("base.{tenant}"))
}

/// Does nobody make a base of this tenant? As long as the lock lives, nobody does.
///
/// # Errors
/// When the lock cannot be opened.
pub fn try_lock(roots: &Roots, tenant: &TenantId) -> Result<Option<Lock>, StoreError> {
    Lock::try_take(&lock_file(roots, tenant))
}

/// Does somebody make a base of this tenant at this moment?
///
/// # Errors
/// When the lock cannot be opened.
pub fn is_being_made(roots: &Roots, tenant: &TenantId) -> Result<bool, StoreError> {
    Ok(lock_file(roots, tenant).exists() && try_lock(roots, tenant)?.is_none())
}

/// The slot in which a tenant's bases are made.
pub fn slot(tenant: &Tenant) -> Slot {
    tenant.slot(Offset::BUILDER)
}

/// What a base is made of.
pub struct Recipe<'a> {
    /// The tenant.
    pub tenant: &'a Tenant,
    /// The pool.
    pub pool: &'a Pool,
    /// What its guests get.
    pub resources: Resources,
    /// What they run.
    pub manifest: &'a Manifest,
    /// The program that runs them.
    pub program: &'a Program,
}

/// The base for guests like that, and the pool's lock, shared, under which it stays. It is made where there is none yet.
///
/// # Errors
/// When it cannot be made; nothing of it is left then.
pub fn ensure(operator: &mut Operator, recipe: &Recipe) -> Result<(Base, Lock), LifecycleError> {
    let roots = operator.roots.clone();
    let Recipe { pool, resources, manifest, program, .. } = recipe;
    let ingredients = Ingredients::of(pool, *resources, manifest, &program.version, &cpu_model());
    let key = ingredients.key();
    let bases = Bases::of(&roots, &pool.path());
    for _ in 0..TRIES {
        let lock = pool::lifecycle::lock(&roots, &pool.path(), Sharing::Shared)?;
        // One that is damaged is made anew, unless somebody stands on it.
        if let Ok(Some(base)) = bases.get(&key) {
            return Ok((base, lock));
        }
        drop(lock);
        let what = format!("a base snapshot of tenant {}", pool.tenant_id);
        let _making =
            Lock::take(&lock_file(&roots, &pool.tenant_id), &what, Sharing::Exclusive, OTHERS_LIMIT)?;
        if !matches!(bases.get(&key), Ok(Some(_))) {
            make(operator, recipe, ingredients.clone())?;
        }
    }
    Err(LifecycleError::BaseGone { pool: pool.path() })
}

struct Build<'a> {
    operator: &'a mut Operator,
    recipe: &'a Recipe<'a>,
    slot: Slot,
    draft: &'a Draft,
    guard: Guard,
    mounts: Vec<(PathBuf, String)>,
    vmm: Option<Vmm>,
    client: Option<Client>,
}

fn make(operator: &mut Operator, recipe: &Recipe, ingredients: Ingredients) -> Result<(), LifecycleError> {
    let roots = operator.roots.clone();
    let slot = slot(recipe.tenant);
    let guard = Guard::of(&roots, recipe.pool, recipe.program, slot)?;
    // What somebody left who was killed.
    launch::teardown(operator, slot, None, Keep::Nothing)?;
    let draft = base::begin(&roots, &recipe.pool.path(), ingredients)?;
    let (mounts, vmm, client) = (Vec::new(), None, None);
    let mut build = Build { operator, recipe, slot, draft: &draft, guard, mounts, vmm, client };
    let made = runner::run("base", &steps(), &mut build);
    let vmm = build.vmm.take();
    // It is killed whatever came of it: what it held is in the snapshot.
    let gone = launch::teardown(operator, slot, vmm.as_ref(), Keep::Nothing);
    made.map_err(|failed| LifecycleError::step("base", failed, Ok(())))?;
    gone?;
    let (base, _) = draft.put(&roots)?;
    let mut entry = Entry::new("pool.base", recipe.pool.path(), Phase::Done);
    entry.revision = Some(recipe.manifest.revision.to_string());
    entry.detail = Some(format!("base snapshot {}", base.key));
    let folder = tenant::config::folder(&roots, &recipe.tenant.tenant_id);
    Ok(audit::append(&roots, recipe.tenant.tenant_id.as_ref(), &folder, entry)?)
}

fn steps<'a>() -> [Step<Build<'a>, LifecycleError>; 7] {
    let step = |name, run| Step { name, run, undo: None };
    [
        step("reserve", reserve),
        step("directory", directory),
        step("tap", |build| {
            let owner = build.guard.uid();
            Ok(build.operator.net()?.create_tap(build.slot, owner)?)
        }),
        step("spawn", spawn),
        step("boot", boot),
        step("barrier", barrier),
        step("snapshot", snapshot),
    ]
}

fn reserve(build: &mut Build) -> Result<(), LifecycleError> {
    let Recipe { tenant, resources, .. } = build.recipe;
    let takes = Use {
        running: 1,
        warm: 0,
        vcpus: resources.vcpus,
        mem_mib: resources.mem_mib,
        disk_mib: resources.mem_mib,
    };
    Ok(room::reserve(&build.operator.roots, tenant, build.slot, takes)?)
}

/// The same names as in every instance's directory; the data disk is one that holds nothing.
fn directory(build: &mut Build) -> Result<(), LifecycleError> {
    let roots = &build.operator.roots;
    let Recipe { pool, manifest, resources, .. } = build.recipe;
    let directory = roots.vmm_dir(&build.slot.tap());
    let mut dir = VmmDir::make(&directory, build.guard.uid())?;
    let revision = Artifacts::of(roots, &pool.path()).revision(&manifest.revision);
    let initrd = manifest.initrd.as_ref().map(|_| files::INITRD);
    for name in [Some(files::KERNEL), Some(files::ROOT), initrd].into_iter().flatten() {
        dir.share(&revision.join(name), name)?;
    }
    if let Some(filter) = build.guard.filter_file(roots)? {
        dir.share(&filter, files::FILTER)?;
    }
    dir.folder(files::BASE)?;
    for name in [files::CONSOLE, LOG] {
        dir.file(name)?;
    }
    if resources.data_disk_mib > 0 {
        let data = dir.file(files::DATA)?;
        let size = resources.data_disk_mib << 20;
        data.set_len(size).map_err(StoreError::io("size", &directory.join(files::DATA)))?;
    }
    build.mounts = dir.into_mounts();
    Ok(())
}

fn spawn(build: &mut Build) -> Result<(), LifecycleError> {
    let tap = build.slot.tap();
    let directory = build.operator.roots.vmm_dir(&tap);
    let shared = std::mem::take(&mut build.mounts);
    let Recipe { program, tenant, resources, .. } = build.recipe;
    build.vmm = Some(build.guard.spawn(program, tenant, *resources, &directory, &tap, &shared)?);
    Ok(())
}

fn boot(build: &mut Build) -> Result<(), LifecycleError> {
    let Some(vmm) = &build.vmm else { return Ok(()) };
    let Recipe { tenant, pool, manifest, resources, .. } = build.recipe;
    let directory = build.operator.roots.vmm_dir(&build.slot.tap());
    let mut client = Client::connect(&directory, &vmm.pidfd, API_LIMIT)?;
    let guest = Boot {
        resources,
        manifest,
        agent: AgentMode::Required,
        tap: &build.slot.tap(),
        mac: build.slot.mac(),
        boot_args: fc_config::base_command_line(manifest),
        // Limits are each instance's own; a boot is slow enough.
        quotas: &tenant.quotas.without_rates(),
        metadata: pool.metadata_enabled,
    };
    for call in fc_config::requests(&guest) {
        client.call(&call)?;
    }
    build.client = Some(client);
    Ok(())
}

/// Waits until the agent listens, and is nobody yet.
fn barrier(build: &mut Build) -> Result<(), LifecycleError> {
    let Some(vmm) = &build.vmm else { return Ok(()) };
    let directory = build.operator.roots.vmm_dir(&build.slot.tap());
    let roots = &build.operator.roots;
    let reached = Guest::await_booted(roots, &build.slot.tap(), vmm).and_then(Guest::status);
    match reached {
        Ok(status) if status.instance_id.is_none() => guard::check(roots, build.recipe.pool, vmm, build.slot),
        Ok(_) => {
            let why = "it says that it is an instance already".to_owned();
            Err(GuestError::Nonsense { request: "Status", why }.into())
        }
        Err(error) => Err(LifecycleError::NoBarrier {
            error,
            console: last_lines(&beneath::tail(&directory, files::CONSOLE, 4096)),
        }),
    }
}

fn snapshot(build: &mut Build) -> Result<(), LifecycleError> {
    let limit = super::sleep::longest(build.recipe.resources.mem_mib);
    let Some(client) = &mut build.client else { return Ok(()) };
    client.call(&Call::Pause)?;
    let file = |name: &str| format!("{}/{name}", files::BASE);
    // Since the boot every page is tracked: what was never touched is a hole.
    let create = Call::SnapshotCreate(SnapshotCreate {
        snapshot_type: SnapshotType::Diff,
        snapshot_path: file(base::VMSTATE),
        mem_file_path: file(base::MEM),
    });
    client.call_within(&create, limit)?;
    let directory = build.operator.roots.vmm_dir(&build.slot.tap());
    for name in [base::VMSTATE, base::MEM] {
        let own = rustix::process::getuid().as_raw();
        let uid = build.guard.uid().unwrap_or(own);
        let taken = build.draft.folder().join(name);
        vmm_dir::take(&directory, &file(name), uid, &taken)?;
        // Nobody's but mvm's from here on.
        lchown(&taken, Some(own), None).map_err(StoreError::io("change the owner of", &taken))?;
    }
    Ok(())
}

/// The resources of a base from which an instance of this pool with a data disk of so many MiB can start: whether there is a
/// data disk is the base's, how large it is the instance's.
pub fn resources(pool: &Pool, data_disk_mib: u64) -> Resources {
    let resources = pool.instance_resources;
    match (resources.data_disk_mib, data_disk_mib) {
        (0, _) | (_, 0) => Resources { data_disk_mib, ..resources },
        _ => resources,
    }
}

/// Makes the base from which the pool's next instance starts, where its guests have an agent and it has something to run.
/// Returns its folder's size in bytes, or `None` where there is nothing to make.
///
/// # Errors
/// When it cannot be made.
pub fn prepare(operator: &mut Operator, path: &PoolPath) -> Result<Option<Base>, LifecycleError> {
    let roots = operator.roots.clone();
    let (tenant, pool) = super::load_pool(&roots, path)?;
    let artifacts = Artifacts::of(&roots, path);
    let Some(revision) = artifacts.current()?.filter(|_| pool.agent == AgentMode::Required) else {
        return Ok(None);
    };
    let manifest = artifacts.manifest(&revision)?;
    let program = launch::program(operator, pool.vmm, pool.vmm_version.as_deref())?;
    operator.net()?;
    let resources = pool.instance_resources;
    let recipe = Recipe { tenant: &tenant, pool: &pool, resources, manifest: &manifest, program: &program };
    let (base, _lock) = ensure(operator, &recipe)?;
    failpoint::hit("base", "prepared")?;
    Ok(Some(base))
}
