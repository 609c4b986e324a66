//! Putting an instance to sleep: its memory goes to disk, its VMM goes.
//!
//! ```text
//! prepare → parent → pause → snapshot → sums → commit   | teardown → record
//! ```
//! Up to the commit all of it is taken back where it fails, or where somebody wants the instance for something else; after it
//! all of it is finished, by whoever comes next.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{
    LifecycleError, Operator, Outcome, begun, denied, intent,
    lookup::{Decided, decide, is_wanted, locked, locked_cancelling_sleep},
    pause, receipt, unchanged,
};
use crate::{
    infra::{config::Roots, failpoint, relief},
    security::audit::Phase,
    store::{self, StoreError},
    vm::{
        instance::{
            config::{Instance, Operation, Parent, VmmRecord},
            delivery, disk, disk_rates,
            guest::Guest,
            launch::{self, Keep},
            runner::{self, Failed, Step},
            snapshot::{self, Delta},
            state::{Event, State},
            vmm_dir,
        },
        naming::{InstancePath, RevisionHash},
        pool::{
            base::{self, Bases},
            config::AgentMode,
        },
        snapshot::{Image, Origin, PAGE, SnapshotError, Sums, data_pages, written_pages},
    },
    vmm::{
        client::{CALL_LIMIT, Client, VmmError},
        process::Vmm,
        quirks,
        wire::{Call, SnapshotCreate, SnapshotType},
    },
};

/// How long a VMM may take to write memory, at this many MiB a second at least, besides what any call may take.
const SLOWEST_MIB_PER_SECOND: u64 = 20;

/// How often a sleep that waits for its guest looks whether somebody wants the instance.
const LOOK: Duration = Duration::from_millis(50);

/// How long a snapshot of so much memory may take.
pub(super) fn longest(mem_mib: u64) -> Duration {
    CALL_LIMIT + Duration::from_secs(mem_mib / SLOWEST_MIB_PER_SECOND)
}

/// A sleep on its way to its commit.
struct Sleeper<'a> {
    operator: &'a Operator,
    instance: &'a Instance,
    record: VmmRecord,
    revision: RevisionHash,
    /// How long the guest's agent may take to get ready; `None` where it is not asked.
    drain: Option<Duration>,
    /// The folder of the base snapshot that the guest was loaded from, where it has not slept since.
    base: Option<PathBuf>,
    /// The VMM's connection, once it is paused.
    client: Option<Client>,
    /// The memory file that is written.
    mem: String,
    kind: SnapshotType,
    /// What its next snapshot builds on, whatever becomes of this one.
    parent: Parent,
    /// The pages that were written.
    pages: Vec<Range<u64>>,
    /// Which set of secrets its guest has got, where it goes on.
    given: Option<u64>,
}

/// The steps up to the commit. Who is not asked, and what has a memory file of its own, needs not all of them.
fn steps<'a>(sleeper: &Sleeper<'a>) -> Vec<Step<Sleeper<'a>, LifecycleError>> {
    let prepare =
        Step { name: "prepare", run: prepare as fn(&mut _) -> _, undo: Some(take_new as fn(&mut _) -> _) };
    let parent = Step {
        name: "parent",
        run: copy_parent as fn(&mut _) -> _,
        undo: Some(drop_written as fn(&mut _) -> _),
    };
    [
        sleeper.drain.is_some().then_some(prepare),
        sleeper.base.is_some().then_some(parent),
        Some(Step { name: "pause", run: pause, undo: Some(go_on) }),
        Some(Step { name: "snapshot", run: write, undo: Some(drop_written) }),
        Some(Step { name: "sums", run: sums, undo: None }),
        Some(Step { name: "commit", run: commit, undo: Some(take_back) }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Puts an instance to sleep. A guest without an agent is not asked, nor is any with `force`: what it is doing is cut off then.
///
/// # Errors
/// [`LifecycleError::Cancelled`] where a wake, a stop or the like came before the commit, [`GuestError::Refused`](crate::vm::instance::guest::GuestError)
/// where the guest does not get ready in time. Where it fails before its commit, the instance runs on.
pub fn sleep(operator: &mut Operator, path: &InstancePath, force: bool) -> Result<Outcome, LifecycleError> {
    let roots = operator.roots.clone();
    let _relief = relief::allow(&roots.root);
    let (_lock, mut instance) = match force {
        // One that waits for its guest is waited for no longer.
        true => locked_cancelling_sleep(operator, path)?,
        false => locked(operator, path)?,
    };
    let Some(Decided { from: state, pool, .. }) = decide(&roots, &instance, Event::Sleep)? else {
        return Ok(unchanged(instance));
    };
    let vmm = instance.find_vmm();
    let (Some(record), Some(revision)) = (instance.vmm.clone(), instance.revision.clone()) else {
        return Err(denied(path, state, Event::Sleep));
    };
    operator.net()?;
    let clock = Instant::now();
    instance.pending = Some(intent(&roots, Operation::Sleep));
    instance.save_unsynced(&roots)?;
    failpoint::hit("sleep", "intent")?;
    let said = operator.audit(&instance, "sleep", Phase::Intent, |entry| {
        entry.from = Some(state.to_string());
        entry.revision = Some(revision.to_string());
    });
    begun(&roots, &mut instance, None, said)?;
    let mut sleeper = Sleeper::new(operator, &instance, record, revision);
    let asked = instance.agent == AgentMode::Required && !force;
    sleeper.drain = asked.then(|| Duration::from_secs(pool.runtime_policy.drain_timeout_seconds.into()));
    let run = failpoint::hit("sleep", "announced")
        .map_err(|error| Failed { step: "intent", error: Box::new(error.into()), left: None })
        .and_then(|()| runner::run("sleep", &steps(&sleeper), &mut sleeper));
    let (parent, given) = (sleeper.parent, sleeper.given);
    match run {
        Ok(mut steps) => {
            let teardown = Instant::now();
            end(operator, &instance, vmm.as_ref())?;
            steps.push(("teardown", teardown.elapsed().as_secs_f64() * 1000.0));
            instance.last_receipt = Some(receipt("sleep", clock, steps, (instance.agent, Vec::new())));
            finish(operator, &mut instance, Phase::Done)?;
            Ok(Outcome { instance, changed: true })
        }
        Err(failed) => Err(give_up(operator, &mut instance, (parent, given), failed)),
    }
}

/// The sleep did not come to its commit. What could not be taken back needs its intent: the next operation goes on with it.
fn give_up(
    operator: &Operator,
    instance: &mut Instance,
    (parent, given): (Parent, Option<u64>),
    failed: Failed<LifecycleError>,
) -> LifecycleError {
    let undone = match failed.left {
        Some(_) => Ok(()),
        None => {
            instance.pending = None;
            instance.secrets = given.or(instance.secrets);
            if let Some(vmm) = &mut instance.vmm {
                vmm.parent = parent;
            }
            instance.save(&operator.roots).map_err(Into::into)
        }
    };
    operator.failed(instance, "sleep", LifecycleError::step("sleep", failed, undone))
}

/// What follows the commit: everything of the VMM goes.
pub(super) fn end(
    operator: &mut Operator,
    instance: &Instance,
    vmm: Option<&Vmm>,
) -> Result<(), LifecycleError> {
    let roots = operator.roots.clone();
    let takes = launch::takes_of(&roots, instance)?;
    launch::teardown_of(operator, instance, vmm, Keep::Asleep(takes))?;
    // A VMM whose disks are throttled may have gone on with what the guest had asked of them, until it was killed.
    if let (Some(_), Some(mut delta)) = (vmm, Delta::load(&roots, &instance.path())?) {
        delta.take_disks(&roots, instance)?;
    }
    Ok(())
}

/// The new state. Its line comes first, as a start's does.
pub(super) fn finish(
    operator: &Operator,
    instance: &mut Instance,
    phase: Phase,
) -> Result<(), LifecycleError> {
    let roots = operator.roots.clone();
    let delta = Delta::load(&roots, &instance.path())?;
    if let Some(delta) = &delta {
        delta.drop_others(&roots)?;
    }
    operator.audit_end(instance, "sleep", phase, |entry| {
        entry.from = Some(instance.status.to_string());
        entry.to = Some(State::Sleeping.to_string());
        entry.detail = delta.map(|delta| format!("{} bytes of memory written", delta.written_bytes));
    })?;
    failpoint::hit("sleep", "audited")?;
    instance.pending = None;
    instance.status = State::Sleeping;
    instance.vmm = None;
    // What sleeps is complete: it has all that it was loaded from.
    instance.base_key = None;
    instance.entered_sleeping_at = Some(roots.now());
    instance.save(&roots)?;
    Ok(failpoint::hit("sleep", "recorded")?)
}

impl<'a> Sleeper<'a> {
    fn new(
        operator: &'a Operator,
        instance: &'a Instance,
        record: VmmRecord,
        revision: RevisionHash,
    ) -> Self {
        let folder = snapshot::folder(&operator.roots, &instance.path());
        let fresh = || format!("mem.{}", instance.generation);
        // A VMM empties a file of another size before it writes, and its guest's memory is mapped from there. Another file of
        // the same name holds other pages than those that were loaded.
        let loaded = snapshot::consumed(&operator.roots, &instance.path());
        let is_whole = |file: &str| {
            let (Ok(meta), Ok(loaded)) = (fs::metadata(folder.join(file)), &loaded) else { return false };
            let stamp = loaded.as_ref().map(|delta| &delta.image.mem).filter(|stamp| stamp.file == file);
            meta.len() == instance.resources.mem_mib << 20
                && stamp.is_none_or(|stamp| stamp.inode == meta.ino())
        };
        let place = |key| Bases::of(&operator.roots, &instance.path().pool_path()).place(key);
        // Without it a Full snapshot saves the guest: its VMM has the memory mapped.
        let has_memory = |base: &PathBuf| {
            fs::metadata(base.join(base::MEM)).is_ok_and(|mem| mem.len() == instance.resources.mem_mib << 20)
        };
        let base = match record.parent {
            Parent::Base => instance.base_key.as_ref().map(place).filter(has_memory),
            _ => None,
        };
        let (mem, kind) = match &record.parent {
            Parent::Boot => (fresh(), SnapshotType::Diff),
            Parent::Base if base.is_some() && quirks::writes_in_place(&record.version) => {
                (fresh(), SnapshotType::Diff)
            }
            Parent::File(file) if is_whole(file) && quirks::writes_in_place(&record.version) => {
                (file.clone(), SnapshotType::Diff)
            }
            Parent::Base | Parent::File(_) | Parent::Unknown => (fresh(), SnapshotType::Full),
        };
        let parent = record.parent.clone();
        let base = base.filter(|_| kind == SnapshotType::Diff);
        let (drain, client, pages) = (None, None, Vec::new());
        Self {
            operator,
            instance,
            record,
            revision,
            drain,
            base,
            client,
            mem,
            kind,
            parent,
            pages,
            given: None,
        }
    }

    fn roots(&self) -> &Roots {
        &self.operator.roots
    }

    /// Who waits for the lock to wake or to stop it wants the instance as it is.
    fn check_wanted(&self) -> Result<(), LifecycleError> {
        let path = self.instance.path();
        match is_wanted(self.roots(), &path)? {
            true => Err(LifecycleError::Cancelled { path }),
            false => Ok(()),
        }
    }

    fn directory(&self) -> PathBuf {
        self.roots().vmm_dir(&self.instance.net.tap_dev)
    }

    fn vmstate(&self) -> String {
        format!("vmstate.{}", self.instance.generation)
    }

    /// The pages that may have changed in this file: those that were written to since the guest was loaded from there, also
    /// what a sleep wrote that was cancelled.
    fn written(&self, mem: &Path) -> Option<Vec<Range<u64>>> {
        let sums = fs::metadata(mem.with_file_name(self.sums())).map(|meta| meta.len()).ok()?;
        // Sums that somebody removed or cut while the guest ran are made anew, all of them.
        let whole = Sums::size(self.instance.resources.mem_mib << 20);
        let mapped = match (&self.base, self.record.parent == Parent::File(self.mem.clone())) {
            _ if sums != whole => return None,
            (Some(base), _) => &base.join(base::MEM),
            (None, true) => mem,
            (None, false) => return None,
        };
        written_pages(self.record.pid, mapped).ok().flatten()
    }

    fn sums(&self) -> String {
        self.mem.replacen("mem", "sums", 1)
    }
}

/// Asks the guest to finish what it has begun and to take nothing new. One that is warm has to run for that.
fn prepare(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    let Some(drain) = sleeper.drain else { return Ok(()) };
    sleeper.check_wanted()?;
    let directory = sleeper.directory();
    if sleeper.instance.status == State::Warm {
        quirks::resume(&mut Client::connect_now(&directory)?, &sleeper.record.version)?;
    }
    let mut guest = Guest::of(sleeper.roots(), sleeper.instance)?;
    guest.prepare_sleep(drain)?;
    while !guest.has_answered(LOOK)? {
        sleeper.check_wanted()?;
    }
    Ok(guest.is_ready()?)
}

/// The guest takes new requests again. One that is warm hears that when it goes on.
fn take_new(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    let (roots, instance) = (sleeper.roots(), sleeper.instance);
    if sleeper.drain.is_none() {
        return Ok(());
    }
    if instance.status == State::Warm {
        let directory = roots.vmm_dir(&instance.net.tap_dev);
        return Ok(Client::connect_now(&directory)?.call(&Call::Pause)?);
    }
    if let Some(vmm) = instance.find_vmm() {
        // One that does not answer would not have answered before either: its VMM is as it was.
        sleeper.given = pause::heard(delivery::greet(roots, instance, &vmm))?;
    }
    Ok(())
}

/// A guest that was loaded from a base sleeps into a file of its own, which begins as a copy of that: while it runs on.
fn copy_parent(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    let Some(base) = &sleeper.base else { return Ok(()) };
    let folder = snapshot::folder(sleeper.roots(), &sleeper.instance.path());
    store::make_folder(&folder)?;
    for (from, to) in [(base::MEM, sleeper.mem.clone()), (base::SUMS, sleeper.sums())] {
        disk::copy(&base.join(from), &folder.join(to))?;
    }
    let (mem, uid) = (&sleeper.mem, sleeper.record.uid);
    Ok(vmm_dir::give(&sleeper.directory(), &folder.join(mem), &snapshot::name(mem), uid)?)
}

fn pause(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    sleeper.check_wanted()?;
    let directory = sleeper.directory();
    let mut client = Client::connect_now(&directory)?;
    client.call(&Call::Pause)?;
    disk_rates::free(sleeper.roots(), &sleeper.instance.net.tap_dev);
    sleeper.client = Some(client);
    Ok(())
}

/// The guest goes on, unless it was paused before.
fn go_on(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    let _ = disk_rates::bind(sleeper.roots(), sleeper.instance);
    if sleeper.instance.status == State::Running {
        // Not the connection of before: one on which a call took too long may answer that one yet.
        let directory = sleeper.directory();
        quirks::resume(&mut Client::connect_now(&directory)?, &sleeper.record.version)?;
    }
    Ok(())
}

fn write(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    let folder = snapshot::folder(sleeper.roots(), &sleeper.instance.path());
    store::make_folder(&folder)?;
    let create = Call::SnapshotCreate(SnapshotCreate {
        snapshot_type: sleeper.kind,
        snapshot_path: snapshot::name(&sleeper.vmstate()),
        mem_file_path: snapshot::name(&sleeper.mem),
    });
    let limit = longest(sleeper.instance.resources.mem_mib);
    // The VMM writes it in one go: what a small snapshot lacks is given back before.
    relief::make_room();
    let Some(client) = &mut sleeper.client else { return Ok(()) };
    let created = client.call_within(&create, limit);
    match &created {
        Ok(()) => sleeper.parent = Parent::File(sleeper.mem.clone()),
        Err(error) if forgets_nothing(error) => {}
        Err(_) => sleeper.parent = Parent::Unknown,
    }
    created?;
    for name in [sleeper.vmstate(), sleeper.mem.clone()] {
        vmm_dir::take(&sleeper.directory(), &snapshot::name(&name), sleeper.record.uid, &folder.join(name))?;
    }
    Ok(())
}

/// Files that no sleep will build on take no place: the disk may be full of them. What cannot be removed is swept by the next
/// sleep, and is no reason to leave the guest paused.
fn drop_written(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    let folder = snapshot::folder(sleeper.roots(), &sleeper.instance.path());
    let mem = Parent::File(sleeper.mem.clone());
    let is_parent = mem == sleeper.parent || mem == sleeper.record.parent;
    let memory = [sleeper.mem.clone(), sleeper.sums()].into_iter().filter(|_| !is_parent);
    for name in memory.chain([sleeper.vmstate()]) {
        let _ = vmm_dir::drop_written(&sleeper.directory(), &snapshot::name(&name));
        let _ = store::remove_file(&folder.join(name));
    }
    Ok(())
}

/// Does a VMM that could not write a snapshot for this reason know the pages still that were to be written? It does until
/// it has written them all; a failure to sync them comes too late (Firecracker's `snapshot_memory_to_file`).
fn forgets_nothing(error: &VmmError) -> bool {
    let VmmError::Refused { message, .. } = error else { return false };
    message.contains("Cannot write memory file")
        || message.contains("the microVM state")
        || message.contains("on the snapshot backing file")
        || ["open", "get_metadata", "truncate", "set_length"]
            .iter()
            .any(|action| message.contains(&format!("Cannot perform {action} on the memory backing file")))
}

/// Sums for the pages that may have changed in the memory file, read from there: only now, since a VMM writes to its guest's
/// memory also while it makes a snapshot. Meanwhile what the guest wrote to its disks gets there.
fn sums(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    sleeper.check_wanted()?;
    let folder = snapshot::folder(sleeper.roots(), &sleeper.instance.path());
    let mem = folder.join(&sleeper.mem);
    let length = sleeper.instance.resources.mem_mib << 20;
    let file = open_memory(&mem, length)?;
    let pages = match sleeper.written(&mem) {
        // A VMM that maps the file beyond its end tells nothing.
        Some(pages) if pages.iter().all(|range| range.end * PAGE <= length) => pages,
        // A new file, or one that the VMM does not map: all there is.
        _ => data_pages(&file).map_err(StoreError::io("look at", &mem))?,
    };
    // It is still the VMM's to write to.
    if pages.iter().any(|range| range.end * PAGE > length) {
        let why = "its VMM made it longer meanwhile".to_owned();
        return Err(SnapshotError::Damaged { path: mem, why }.into());
    }
    let sums = Sums::in_file(&folder.join(sleeper.sums()));
    let (summed, synced) = thread::scope(|scope| {
        let syncing =
            scope.spawn(|| snapshot::sync_beside(sleeper.roots(), sleeper.instance, &sleeper.revision));
        (sums.update(&file, length, &pages), syncing.join())
    });
    summed?;
    synced.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    if sleeper.kind == SnapshotType::Full {
        // It has its zeros written out.
        sums.punch_zeros(&mem)?;
    }
    sleeper.pages = pages;
    Ok(())
}

/// A VMM may have made anything of its memory file: what could not be loaded again is not committed.
fn open_memory(mem: &Path, length: u64) -> Result<File, LifecycleError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        openat(CWD, mem, flags, Mode::empty()).map_err(|errno| StoreError::io("open", mem)(errno.into()))?;
    let file = File::from(file);
    let meta = file.metadata().map_err(StoreError::io("look at", mem))?;
    let why = match meta.is_file() {
        true if meta.len() == length => return Ok(file),
        true => format!("its VMM wrote {} bytes for {length} of memory", meta.len()),
        false => "its VMM made something else of it than a file".to_owned(),
    };
    Err(SnapshotError::Damaged { path: mem.to_path_buf(), why }.into())
}

fn commit(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    let roots = sleeper.roots();
    let path = sleeper.instance.path();
    let folder = snapshot::folder(roots, &path);
    let pages: u64 = sleeper.pages.iter().map(|range| range.end - range.start).sum();
    let delta = Delta {
        schema_version: store::Schema,
        instance: path,
        taken_at: roots.now(),
        revision: sleeper.revision.clone(),
        origin: Origin::here(sleeper.record.kind, &sleeper.record.version),
        image: Image::of(&folder, &sleeper.vmstate(), &sleeper.mem, &sleeper.sums())?,
        disks: snapshot::disks(roots, sleeper.instance, &sleeper.revision)?,
        written_bytes: pages * PAGE,
        archive: None,
    };
    sleeper.check_wanted()?;
    Ok(delta.commit(roots)?)
}

/// The commit is taken back before any vCPU goes on.
fn take_back(sleeper: &mut Sleeper) -> Result<(), LifecycleError> {
    Ok(snapshot::forget(sleeper.roots(), &sleeper.instance.path())?)
}
