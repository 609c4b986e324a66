//! The one path on which a VMM comes up, as steps with their undo, and the one on which everything of it goes away. A start and a wake
//! take the same steps up to the VMM's first call, and their own after it ([`super::lifecycle`]).
//!
//! ```text
//! directory → spawn → announce → tap                       (launch)
//! vmm, tap ← directory ← reservation                       (teardown: kill before unlink)
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use mvm_proto::message::Confirmed;

use super::{
    config::{self, Instance, Parent, VmmRecord},
    disk, disk_rates,
    fc_config::files,
    guard::{self, Guard},
    lifecycle::{LifecycleError, Operator, lease},
    logs,
    runner::Step,
    snapshot::{self, Delta},
    vmm_dir::{self, VmmDir},
};
use crate::{
    infra::{config::Roots, failpoint},
    security::{Lack, cgroups},
    store::{self, StoreError},
    vm::{
        naming::Slot,
        pool::{
            artifacts::{Artifacts, Manifest},
            base::{self, Base, Bases},
            config::{AgentMode, Pool, VmmKind},
        },
        room::{self, NodeConfig},
        tenant::{config::Tenant, quota::Use},
    },
    vmm::{
        client::{Client, LOG},
        process::{self, Program, Vmm},
        spares,
        wire::Call,
    },
};

/// How long a VMM may take until its API is up; it takes milliseconds.
pub const API_LIMIT: Duration = Duration::from_secs(10);

/// What a launch works on; each step fills in what it made.
pub struct Launch<'a> {
    /// The node.
    pub operator: &'a mut Operator,
    /// The tenant.
    pub tenant: Tenant,
    /// The pool.
    pub pool: Pool,
    /// The instance, its intent and what it shall run in it; its record is written by the lifecycle alone.
    pub instance: Instance,
    /// Its slot.
    pub slot: Slot,
    /// What it runs.
    pub manifest: Manifest,
    /// The program that runs it.
    pub program: Program,
    /// What keeps it to itself.
    pub guard: Guard,
    /// What is mounted there.
    pub mounts: Vec<(PathBuf, String)>,
    /// The VMM, once it is there.
    pub vmm: Option<Vmm>,
    /// The connection to it.
    pub client: Option<Client>,
    /// What a guest with an agent is started from.
    pub base: Option<Base>,
    /// What the guest's agent confirmed.
    pub confirmed: Vec<Confirmed>,
    /// Which set of its tenant's secrets it has.
    pub secrets: Option<u64>,
    /// What a wake loads.
    pub delta: Option<Delta>,
    /// Whether a wake takes disks whose time alone has changed.
    pub force: bool,
}

/// One step of a launch.
pub type LaunchStep<'a> = Step<Launch<'a>, LifecycleError>;

/// The steps on which a VMM comes up. It knows nothing yet, and is a while in coming up: meanwhile its launch is announced, and its
/// TAP made. What is done before that is announced is its room, its own files and this VMM; no guest and no network see it.
pub fn steps<'a>(announce: fn(&mut Launch<'a>) -> Result<(), LifecycleError>) -> [LaunchStep<'a>; 4] {
    [
        Step {
            name: "directory",
            run: directory,
            undo: Some(|launch| remove_directory(launch.operator, launch.slot)),
        },
        Step { name: "spawn", run: spawn, undo: Some(end_vmm) },
        Step { name: "announce", run: announce, undo: None },
        Step {
            name: "tap",
            run: tap,
            // Nothing goes that a VMM may still use.
            undo: Some(|launch| {
                end_vmm(launch)?;
                remove_tap(launch.operator, launch.slot)
            }),
        },
    ]
}

impl<'a> Launch<'a> {
    /// The launch of an instance afresh, nothing of it done yet.
    ///
    /// # Errors
    /// When the instance's slot makes no sense or is not its own, or there can be no jail where one is needed.
    pub fn new(
        operator: &'a mut Operator,
        (tenant, pool): (Tenant, Pool),
        instance: Instance,
        manifest: Manifest,
        program: Program,
    ) -> Result<Self, LifecycleError> {
        let slot = instance.slot(&operator.roots)?;
        lease::restore(&operator.roots, &instance)?;
        let guard = Guard::of(&operator.roots, &pool, &program, slot)?;
        Ok(Self {
            operator,
            tenant,
            pool,
            instance,
            slot,
            manifest,
            program,
            guard,
            mounts: Vec::new(),
            vmm: None,
            client: None,
            base: None,
            confirmed: Vec::new(),
            secrets: None,
            delta: None,
            force: false,
        })
    }

    /// The user that its VMM runs as.
    pub fn uid(&self) -> u32 {
        self.guard.uid().unwrap_or_else(|| rustix::process::getuid().as_raw())
    }

    /// What the VM takes of its tenant's quota and the node's room.
    pub fn takes(&self) -> Use {
        takes(&self.instance, &self.manifest)
    }
}

/// What an instance takes that runs this revision. Asleep, its memory takes as much disk: the place for that is reserved
/// from the beginning, so that it can always go to sleep.
pub fn takes(instance: &Instance, manifest: &Manifest) -> Use {
    let resources = instance.resources;
    // A guest with an agent shares its root disk with all others of its revision.
    let root_mib = match instance.agent {
        AgentMode::None => manifest.rootfs.size_bytes.div_ceil(1 << 20),
        AgentMode::Required => 0,
    };
    Use {
        running: 1,
        warm: 0,
        vcpus: resources.vcpus,
        mem_mib: resources.mem_mib,
        disk_mib: resources.data_disk_mib + root_mib + resources.mem_mib,
    }
}

/// The tenant's quota and the node's room: counted and taken under one lock.
pub fn reserve(launch: &mut Launch) -> Result<(), LifecycleError> {
    Ok(room::reserve(&launch.operator.roots, &launch.tenant, launch.slot, launch.takes())?)
}

/// What an instance takes that runs the revision of its record.
///
/// # Errors
/// When its revision cannot be read.
pub fn takes_of(roots: &Roots, instance: &Instance) -> Result<Use, StoreError> {
    let Some(revision) = &instance.revision else { return Ok(Use::default()) };
    let manifest = Artifacts::of(roots, &instance.path().pool_path()).manifest(revision)?;
    Ok(takes(instance, &manifest))
}

/// Is the data disk there, where it has one?
///
/// # Errors
/// [`disk::DiskError::Lost`] where it is not.
pub fn check_data_disk(roots: &Roots, instance: &Instance) -> Result<(), LifecycleError> {
    let path = config::folder(roots, &instance.path()).join("volumes").join(files::DATA);
    let is_there = disk::size_mib(&path).is_ok_and(|mib| mib > 0);
    match instance.resources.data_disk_mib > 0 && !is_there {
        true => Err(disk::DiskError::Lost { path }.into()),
        false => Ok(()),
    }
}

/// Removes the root disks of revisions that the instance does not run any more: not before it runs another one, so that
/// a revision that does not boot costs nothing.
///
/// # Errors
/// When one cannot be removed.
pub fn drop_old_root_disks(operator: &Operator, instance: &Instance) -> Result<(), LifecycleError> {
    let volumes = config::folder(&operator.roots, &instance.path()).join("volumes");
    let current = instance.revision.as_ref().map(|revision| root_disk(revision.short()));
    let old = |name: &str| name.starts_with("root-") && current.as_deref() != Some(name);
    for name in store::names(&volumes, old)? {
        store::remove_file(&volumes.join(name))?;
    }
    Ok(())
}

/// The name of an instance's own copy of a revision's root disk.
pub fn root_disk(revision: &str) -> String {
    format!("root-{revision}.ext4")
}

/// The VMM's directory: everything that it opens, under names that are the same for every instance.
fn directory(launch: &mut Launch) -> Result<(), LifecycleError> {
    let roots = &launch.operator.roots;
    let directory = roots.vmm_dir(&launch.slot.tap());
    // Nothing that a VMM may still use goes before the VMM.
    kill(roots, launch.slot, None)?;
    let mut dir = VmmDir::make(&directory, launch.guard.uid())?;
    let path = launch.instance.path();
    match launch.delta {
        // It is the same run that goes on: so does its console.
        Some(_) => {
            logs::ensure(roots, &path)?;
            logs::cut(roots, &path, launch.tenant.quotas.log_mib)?;
        }
        None => logs::rotate(roots, &path, launch.tenant.quotas.log_mib)?,
    }
    let revision = Artifacts::of(roots, &launch.pool.path()).revision(&launch.manifest.revision);
    let volumes = config::folder(roots, &path).join("volumes");
    dir.share(&revision.join(files::KERNEL), files::KERNEL)?;
    if launch.manifest.initrd.is_some() {
        dir.share(&revision.join(files::INITRD), files::INITRD)?;
    }
    match launch.instance.agent {
        AgentMode::None => {
            dir.give(&volumes.join(root_disk(launch.manifest.revision.short())), files::ROOT)?
        }
        AgentMode::Required => dir.share(&revision.join(files::ROOT), files::ROOT)?,
    }
    if let Some(base) = &launch.base {
        dir.folder(files::BASE)?;
        let place = Bases::of(roots, &base.pool).place(&base.key);
        for name in [base::VMSTATE, base::MEM] {
            dir.share(&place.join(name), &format!("{}/{name}", files::BASE))?;
        }
    }
    if launch.instance.resources.data_disk_mib > 0 {
        dir.give(&volumes.join(files::DATA), files::DATA)?;
    }
    if let Some(filter) = launch.guard.filter_file(roots)? {
        dir.share(&filter, files::FILTER)?;
    }
    dir.folder(snapshot::FOLDER)?;
    dir.give(&logs::console(roots, &path), files::CONSOLE)?;
    dir.give(&logs::vmm_log(roots, &path), LOG)?;
    launch.mounts = dir.into_mounts();
    Ok(())
}

/// Makes the TAP, off the bridge.
fn tap(launch: &mut Launch) -> Result<(), LifecycleError> {
    if !launch.guard.is_lax() {
        // Where it can still be refused; up to when it has loaded its guest it may be as fast as the disk.
        disk_rates::bind(&launch.operator.roots, &launch.instance)?;
        disk_rates::free(&launch.operator.roots, &launch.slot.tap());
    }
    let net = launch.operator.net()?;
    net.check_bridge(launch.slot)?;
    net.create_tap(launch.slot, launch.guard.uid())?;
    Ok(())
}

fn spawn(launch: &mut Launch) -> Result<(), LifecycleError> {
    let tap = launch.slot.tap();
    let directory = launch.operator.roots.vmm_dir(&tap);
    let shared = std::mem::take(&mut launch.mounts);
    let (guard, resources) = (&launch.guard, launch.instance.resources);
    launch.vmm = Some(guard.spawn(&launch.program, &launch.tenant, resources, &directory, &tap, &shared)?);
    Ok(())
}

/// Lets the vCPUs go on, where they do not yet.
///
/// # Errors
/// When the VMM refuses.
pub fn resume(launch: &mut Launch) -> Result<(), LifecycleError> {
    if let Some(client) = &mut launch.client {
        client.call(&Call::Resume)?;
    }
    Ok(())
}

/// The guest joins the network: one without an agent as soon as its VMM runs, since there is nobody to ask whether it is ready,
/// one with an agent once its receipt is whole.
///
/// # Errors
/// When the kernel refuses.
pub fn join(launch: &mut Launch) -> Result<(), LifecycleError> {
    // Not before it has answered: the memory of one that was loaded is read from the disk as it is touched.
    let _ = disk_rates::bind(&launch.operator.roots, &launch.instance);
    launch.operator.net()?.join(launch.slot)?;
    Ok(())
}

fn end_vmm(launch: &mut Launch) -> Result<(), LifecycleError> {
    kill(&launch.operator.roots, launch.slot, launch.vmm.as_ref())
}

/// Has the VMM what its pool wants? Before its guest gets anything.
///
/// # Errors
/// As [`guard::check`].
pub fn check(launch: &Launch) -> Result<(), LifecycleError> {
    match &launch.vmm {
        Some(vmm) => guard::check(&launch.operator.roots, &launch.pool, vmm, launch.slot),
        None => Ok(()),
    }
}

/// What the instance's record says of the VMM that a launch brought up.
pub fn record(launch: &Launch) -> Option<VmmRecord> {
    let parent = match (&launch.delta, &launch.base) {
        (Some(delta), _) => Parent::File(delta.image.mem.file.clone()),
        (None, Some(_)) => Parent::Base,
        (None, None) => Parent::Boot,
    };
    let (vmm, tap) = (launch.vmm.as_ref()?, &launch.instance.net.tap_dev);
    let roots = &launch.operator.roots;
    Some(record_of(roots, vmm, tap, (launch.pool.vmm, &launch.program.version), parent))
}

/// What an instance's record says of this VMM.
pub fn record_of(
    roots: &Roots,
    vmm: &Vmm,
    tap: &str,
    (kind, version): (VmmKind, &str),
    parent: Parent,
) -> VmmRecord {
    // One that has ended meanwhile has nothing.
    let none = || (vec![Lack::Jail, Lack::Limits, Lack::Filter], None, None);
    let (lacks, limits, filter) = guard::seen(roots, vmm, tap).unwrap_or_else(none);
    VmmRecord {
        kind,
        version: version.to_owned(),
        pid: vmm.identity.pid,
        start_time: vmm.identity.start_time,
        boot_id: process::boot_id(),
        uid: process::uid_of(vmm.identity.pid).unwrap_or_else(|| rustix::process::getuid().as_raw()),
        lacks,
        limits,
        filter,
        parent,
        ungreeted: false,
    }
}

/// The program for a VMM: this version, or the one that is installed by default.
///
/// # Errors
/// When it is not installed, or cannot run here.
pub fn program(operator: &Operator, kind: VmmKind, version: Option<&str>) -> Result<Program, LifecycleError> {
    Ok(match kind {
        VmmKind::Firecracker => {
            let kvm = Path::new("/dev/kvm");
            fs::File::options()
                .read(true)
                .write(true)
                .open(kvm)
                .map_err(|source| LifecycleError::Kvm { source })?;
            crate::vmm::install::firecracker(&operator.roots, version)?
        }
        VmmKind::Sim => crate::vmm::install::sim(version)?,
    })
}

/// Ends the VMM of a slot: the one that is known, beside which there is no other, since a launch ends all that there are before it
/// starts one, or whatever is found among all processes.
///
/// # Errors
/// When one cannot be killed.
pub fn kill(roots: &Roots, slot: Slot, known: Option<&Vmm>) -> Result<(), LifecycleError> {
    match known {
        Some(vmm) => Ok(vmm.kill()?),
        None => vmms_in(roots, slot)?.iter().try_for_each(|vmm| Ok(vmm.kill()?)),
    }
}

/// The VMMs of a slot, whoever started them: there should be one at most.
///
/// # Errors
/// When its directory cannot be looked at.
pub fn vmms_in(roots: &Roots, slot: Slot) -> Result<Vec<Vmm>, StoreError> {
    let directory = roots.vmm_dir(&slot.tap());
    match fs::canonicalize(&directory) {
        // The kernel gives working directories without symbolic links.
        Ok(directory) => Ok(process::find_in(&directory)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(StoreError::io("look at", &directory)(source)),
    }
}

/// Removes a slot's TAP, if mvm made it. One that somebody else made is left alone, and in nobody's way: an instance can
/// always be stopped and destroyed.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_tap(operator: &mut Operator, slot: Slot) -> Result<(), LifecycleError> {
    match operator.net()?.delete_tap(slot) {
        Err(error) if error.is_foreign() => Ok(()),
        deleted => Ok(deleted?),
    }
}

/// Removes a VMM's directory. The VMM is dead by then.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_directory(operator: &mut Operator, slot: Slot) -> Result<(), LifecycleError> {
    let root = operator.roots.vmm_dir(&slot.tap());
    cgroups::remove(&NodeConfig::load(&operator.roots)?.node_id, &slot.tap())?;
    Ok(vmm_dir::remove(root.parent().unwrap_or(&root))?)
}

/// What an instance keeps of its reservation when its VMM goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// What it takes asleep, of this.
    Asleep(Use),
}

/// The same of an instance. Where its slot is another one's, nothing there is touched, and its own VMM alone is ended.
///
/// # Errors
/// What could not be removed; calling it again goes on from there.
pub fn teardown_of(
    operator: &mut Operator,
    instance: &Instance,
    known: Option<&Vmm>,
    keep: Keep,
) -> Result<(), LifecycleError> {
    match lease::is_its(&operator.roots, instance) {
        true => teardown(operator, instance.slot(&operator.roots)?, known, keep),
        false => Ok(known.map_or(Ok(()), Vmm::kill)?),
    }
}

/// Everything of a VMM goes away: the process, its TAP, its directory, its reservation but for what is kept. Goes on where
/// one part fails, and returns the first failure.
///
/// # Errors
/// What could not be removed; calling it again goes on from there.
pub fn teardown(
    operator: &mut Operator,
    slot: Slot,
    known: Option<&Vmm>,
    keep: Keep,
) -> Result<(), LifecycleError> {
    let roots = operator.roots.clone();
    let found = if known.is_some() { Vec::new() } else { vmms_in(&roots, slot)? };
    let vmms: Vec<&Vmm> = known.into_iter().chain(&found).collect();
    for vmm in &vmms {
        vmm.send_kill()?;
    }
    // It has no network before it is asked for: not under two threads. A guest is dead also where there is none.
    operator.net()?;
    disk_rates::free(&roots, &slot.tap());
    // What was jailed had a copy of its program. On a disk that is nearly full there is no place for what a later start may want.
    let copy = fs::symlink_metadata(roots.vmm_dir(&slot.tap()).join("firecracker")).map(|meta| meta.len());
    let has_room = || NodeConfig::load(&roots).is_ok_and(|node| room::check_free(&roots, &node, 16).is_ok());
    let spent = copy.ok().filter(|_| has_room());
    // The TAP goes while the VMM ends, which is killed by then: the kernel lets both wait, and together they wait once. Nothing
    // else that the VMM uses goes before it.
    let (killed, tap) = std::thread::scope(|scope| {
        scope.spawn(|| spent.map(|length| spares::refill(&roots, length)));
        let killing = scope.spawn(|| {
            vmms.iter().try_for_each(|vmm| vmm.kill())?;
            Ok::<_, LifecycleError>(failpoint::hit("teardown", "killed")?)
        });
        let tap = remove_tap(operator, slot).and_then(|()| Ok(failpoint::hit("teardown", "tap")?));
        (killing.join(), tap)
    });
    killed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let directory = remove_directory(operator, slot);
    failpoint::hit("teardown", "directory")?;
    let reservation = match keep {
        Keep::Nothing => room::release(&roots, slot).map_err(LifecycleError::from),
        Keep::Asleep(takes) => room::note(&roots, slot, takes.asleep()).map_err(LifecycleError::from),
    };
    failpoint::hit("teardown", "reservation")?;
    tap.and(directory).and(reservation)
}
