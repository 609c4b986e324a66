//! What a VMM may use of the machine: a cgroup of its own, `mvm.<node>/<tenant>/<tap>`, below one of its tenant's. The node's
//! id is in it since there may be several roots on one machine, each with a network of its own in which TAPs have the same names.
//!
//! Version 2 only: version 1 cannot be joined at birth and has no limit of memory that holds for all of it. The VMM is in its
//! cgroup before it runs anything where it is jailed, and put there at once where it is not. What was written is read back: the kernel rounds, and
//! somebody else may write there.

mod io;

use std::{
    fs,
    io::ErrorKind,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use serde::{Deserialize, Serialize};

pub use self::io::{IoRates, device_of};
use crate::{
    infra::mounts::{self, Mount},
    store::StoreError,
};

/// The cgroup of all VMMs of a node.
fn of_node(hierarchy: &Path, node: &str) -> PathBuf {
    hierarchy.join(format!("mvm.{node}"))
}

/// What limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Memory of a VMM beside its guest's, in MiB: its own, the kernel's tables for the guest, and pages of its disks under way.
const BESIDE_GUEST_MIB: u64 = 64;
/// One page of such tables is needed for so many of the guest's.
const TABLES: u64 = 64;
/// The most that a quota counts for: VMMs, and memory in MiB.
const MOST_VMS: u32 = 4096;
const MOST_MIB: u64 = 1 << 32;
/// The time of a CPU is given out anew after so many µs.
const PERIOD_US: u64 = 100_000;
/// What a VMM's own threads get beside its guest's vCPUs, in µs of each period.
const OWN_US: u64 = 25_000;
/// How often a cgroup is made again that somebody removes at the same moment, since it was empty.
const TRIES: usize = 10;

/// How often, and how far apart, it is looked whether a cgroup is empty whose processes were killed.
const LOOKS: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// Why there can be no limits here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoLimits {
    /// There is no version 2.
    #[error("cgroups of version 2 are not mounted")]
    NotMounted,
    /// It may not be written: a container's, or a unit's of systemd's with `ProtectControlGroups=`.
    #[error("cgroups are mounted read-only at {path}", path = path.display())]
    ReadOnly {
        /// Where.
        path: PathBuf,
    },
    /// It is a container's, whose processes are in it.
    #[error("the cgroup {path} holds processes itself: nothing below it can be limited", path = path.display())]
    Processes {
        /// Where it is mounted.
        path: PathBuf,
    },
    /// It has not what is needed.
    #[error("the cgroup {path} has no controller for {missing}", path = path.display())]
    Controllers {
        /// The cgroup.
        path: PathBuf,
        /// What there is none for.
        missing: String,
    },
}

/// Limits of one VMM, or of all of a tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory in bytes, all of it: the guest's, the VMM's, and the pages of its files.
    pub memory_max: u64,
    /// Time of CPUs in µs, of each [`Limits::cpu_period_us`].
    pub cpu_max_us: u64,
    /// In µs.
    pub cpu_period_us: u64,
    /// Processes and threads.
    pub pids_max: u64,
    /// Its use of the disk; none where nothing limits it, or only its own rate limiters do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoRates>,
}

impl Limits {
    /// Those of a VMM with such a guest.
    pub fn of_vmm(vcpus: u32, mem_mib: u64, tasks: u64) -> Self {
        Self {
            memory_max: (mem_mib + BESIDE_GUEST_MIB + mem_mib / TABLES) << 20,
            cpu_max_us: u64::from(vcpus) * PERIOD_US + OWN_US,
            cpu_period_us: PERIOD_US,
            pids_max: tasks,
            io: None,
        }
    }

    /// Those of so many VMMs together, with so many vCPUs and so much memory of guests.
    pub fn of_all(vms: u32, vcpus: u32, mem_mib: u64, tasks: u64) -> Self {
        // More are no more on one machine, whatever a quota says; nor is there more memory.
        let vms = u64::from(vms.clamp(1, MOST_VMS));
        let mem_mib = mem_mib.min(MOST_MIB);
        Self {
            memory_max: (mem_mib + vms * BESIDE_GUEST_MIB + mem_mib / TABLES) << 20,
            cpu_max_us: u64::from(vcpus.max(1)) * PERIOD_US + vms * OWN_US,
            cpu_period_us: PERIOD_US,
            pids_max: vms * tasks,
            io: None,
        }
    }
}

/// What became of a VMM for its limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Events {
    /// How often its own limit of memory left it none.
    pub oom: u64,
    /// Processes of it that the kernel killed for want of memory, its own or the machine's.
    pub oom_kills: u64,
}

/// A VMM's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    fd: OwnedFd,
    /// Its limits, as they were read back.
    pub limits: Limits,
    folder: PathBuf,
}

/// Where version 2 is mounted with what limits need.
///
/// # Errors
/// [`NoLimits`] says what is missing.
pub fn hierarchy() -> Result<PathBuf, NoLimits> {
    let root = mounted().ok_or(NoLimits::NotMounted)?;
    let is_read_only = is_read_only(&root);
    usable(root, is_read_only)
}

/// Where it is mounted, whatever can be made there.
fn mounted() -> Option<PathBuf> {
    of_mounts(mounts::all())
}

fn usable(root: PathBuf, is_read_only: bool) -> Result<PathBuf, NoLimits> {
    let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let there: Vec<&str> = there.split_whitespace().collect();
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|one| !there.contains(one)).collect();
    match missing[..] {
        [] if is_read_only => Err(NoLimits::ReadOnly { path: root }),
        [] if is_occupied(&root) => Err(NoLimits::Processes { path: root }),
        [] => Ok(root),
        _ => Err(NoLimits::Controllers { path: root, missing: missing.join(", ") }),
    }
}

fn is_read_only(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|there| there.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Does a cgroup hold processes, and so give its controllers to none below it? The machine's own may do both, and has no type
/// (the kernel's `cgroup-v2.rst`, "No Internal Process Constraint").
fn is_occupied(folder: &Path) -> bool {
    let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let passed = text("cgroup.subtree_control");
    let passes_all = CONTROLLERS.into_iter().all(|one| passed.split_whitespace().any(|passed| passed == one));
    folder.join("cgroup.type").exists() && !passes_all && !text("cgroup.procs").trim().is_empty()
}

/// Can the disk on which a folder lies be limited there?
pub fn limits_disk(hierarchy: &Path, folder: &Path) -> bool {
    let there = fs::read_to_string(hierarchy.join("cgroup.controllers")).unwrap_or_default();
    there.split_whitespace().any(|one| one == io::CONTROLLER) && device_of(folder).is_some()
}

fn of_mounts(mounts: Vec<Mount>) -> Option<PathBuf> {
    mounts.into_iter().find(|mount| mount.kind == "cgroup2").map(|mount| mount.place)
}

/// Makes a VMM's cgroup, empty and limited, and its tenant's where there is none.
///
/// # Errors
/// When the kernel refuses, or what it says afterwards is not what it was told.
pub fn make(
    hierarchy: &Path,
    [node, tenant, tap]: [&str; 3],
    [of_tenant, of_vmm]: [Limits; 2],
) -> Result<Cgroup, StoreError> {
    let all = of_node(hierarchy, node);
    let folder = all.join(tenant).join(tap);
    for attempt in 1.. {
        match try_make(hierarchy, [&all, &all.join(tenant), &folder], of_tenant) {
            Ok(()) => break,
            // The last VMM of the tenant went at the same moment, or another start wrote limits of another time.
            Err(StoreError::Io { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV) | None)
                    && attempt < TRIES => {}
            Err(error) => return Err(error),
        }
    }
    let limits = limit(&folder, of_vmm)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(&folder, flags, Mode::empty())
        .map_err(|errno| StoreError::io("open", &folder)(errno.into()))?;
    Ok(Cgroup { fd, limits, folder })
}

fn try_make(hierarchy: &Path, [all, tenant, vmm]: [&Path; 3], of_tenant: Limits) -> Result<(), StoreError> {
    pass_on(hierarchy)?;
    for folder in [all, tenant] {
        make_folder(folder)?;
        pass_on(folder)?;
    }
    limit(tenant, of_tenant)?;
    make_folder(vmm)
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(StoreError::io("create", folder)),
    }
}

/// Lets the cgroups below have limits of their own.
fn pass_on(folder: &Path) -> Result<(), StoreError> {
    let passed = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    let passed: Vec<&str> = passed.split_whitespace().collect();
    for controller in CONTROLLERS.into_iter().filter(|one| !passed.contains(one)) {
        write(folder, "cgroup.subtree_control", &format!("+{controller}"))?;
    }
    // What no guest needs to be held may be missing: its own rate limiters are there.
    if !passed.contains(&io::CONTROLLER) {
        let _ = write(folder, "cgroup.subtree_control", &format!("+{}", io::CONTROLLER));
    }
    Ok(())
}

/// Writes limits and reads them back. Returns them as they were read.
fn limit(folder: &Path, limits: Limits) -> Result<Limits, StoreError> {
    write(folder, "memory.max", &limits.memory_max.to_string())?;
    // A kernel without swap has no such file.
    if folder.join("memory.swap.max").exists() {
        write(folder, "memory.swap.max", "0")?;
    }
    write(folder, "cpu.max", &format!("{} {}", limits.cpu_max_us, limits.cpu_period_us))?;
    write(folder, "pids.max", &limits.pids_max.to_string())?;
    let there = read(folder)?;
    let page = rustix::param::page_size() as u64;
    // Memory is counted in pages.
    if there != (Limits { memory_max: limits.memory_max & !(page - 1), ..limits }) {
        let why = std::io::Error::other(format!("it says {there:?} after {limits:?} was written"));
        return Err(StoreError::io("limit", folder)(why));
    }
    Ok(there)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), StoreError> {
    let file = folder.join(name);
    fs::write(&file, text).map_err(StoreError::io("write", &file))
}

/// A cgroup's limits, as the kernel says them; what has none has the highest number.
fn read(folder: &Path) -> Result<Limits, StoreError> {
    let text = |name: &str| {
        let file = folder.join(name);
        fs::read_to_string(&file).map_err(StoreError::io("read", &file))
    };
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).unwrap_or(u64::MAX);
    let cpu = text("cpu.max")?;
    let mut cpu = cpu.split_whitespace();
    Ok(Limits {
        memory_max: number(Some(text("memory.max")?.trim())),
        cpu_max_us: number(cpu.next()),
        cpu_period_us: number(cpu.next()),
        pids_max: number(Some(text("pids.max")?.trim())),
        io: None,
    })
}

impl Cgroup {
    /// The cgroup, to be joined.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Puts a process there that runs already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_in(&self, pid: i32) -> Result<(), StoreError> {
        write(&self.folder, "cgroup.procs", &pid.to_string())
    }
}

/// The cgroups of a TAP's VMM: one at most, whoever's it is.
fn of_tap(node: &str, tap: &str) -> Vec<PathBuf> {
    let Some(hierarchy) = mounted() else { return Vec::new() };
    let tenants = fs::read_dir(of_node(&hierarchy, node)).into_iter().flatten().flatten();
    tenants.map(|tenant| tenant.path().join(tap)).filter(|folder| folder.is_dir()).collect()
}

/// The limits of a TAP's VMM, as they are; none where it has none.
pub fn limits(node: &str, tap: &str) -> Option<Limits> {
    of_tap(node, tap).first().and_then(|folder| read(folder).ok())
}

/// Is this process in the cgroup of a TAP's VMM?
pub fn holds(node: &str, tap: &str, pid: i32) -> bool {
    let of_it = |folder: &PathBuf| fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    of_tap(node, tap).first().map(of_it).is_some_and(|pids| pids.lines().any(|line| line == pid.to_string()))
}

/// Sets how fast a TAP's VMM may read and write this disk, where it has a cgroup, and that such a limit.
///
/// # Errors
/// When the kernel refuses, or what it says afterwards is not what it was told.
pub fn set_io(node: &str, tap: &str, device: &str, rates: IoRates) -> Result<(), StoreError> {
    match of_tap(node, tap).first() {
        Some(folder) if io::is_there(folder) => io::limit(folder, device, rates),
        _ => Ok(()),
    }
}

/// How fast a TAP's VMM may read and write this disk; none where nothing limits that.
pub fn io_rates(node: &str, tap: &str, device: &str) -> Option<IoRates> {
    io::read(of_tap(node, tap).first()?, device).filter(|rates| !rates.is_none())
}

/// What became of a TAP's VMM for its limits; none where it has none.
pub fn events(node: &str, tap: &str) -> Option<Events> {
    let text = fs::read_to_string(of_tap(node, tap).first()?.join("memory.events")).ok()?;
    Some(parse_events(&text))
}

fn parse_events(text: &str) -> Events {
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Events { oom: of("oom"), oom_kills: of("oom_kill") }
}

/// Removes a TAP's cgroup, and its tenant's if that was the last one. Whatever is left in it is killed.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(node: &str, tap: &str) -> Result<(), StoreError> {
    for folder in of_tap(node, tap) {
        let _ = fs::write(folder.join("cgroup.kill"), "1");
        let mut looks = 0;
        loop {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                // What was killed is a moment in going; there is no event for the last of it.
                Err(error) if error.kind() == ErrorKind::ResourceBusy && looks < LOOKS => sleep(PAUSE),
                removed => break removed.map_err(StoreError::io("remove", &folder))?,
            }
            looks += 1;
        }
        // Others may have something there.
        let _ = folder.ancestors().skip(1).take(2).try_for_each(fs::remove_dir);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_hold_no_limits_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (root, write) = (dir.path().to_path_buf(), |name, text| fs::write(dir.path().join(name), text));
        let missing = |said| NoLimits::Controllers { path: root.clone(), missing: String::from(said) };
        assert_eq!(usable(root.clone(), false), Err(missing("cpu, memory, pids")));
        write("cgroup.controllers", "cpuset cpu io\n").unwrap();
        assert_eq!(usable(root.clone(), false), Err(missing("memory, pids")));
        write("cgroup.controllers", "cpuset cpu io memory pids\n").unwrap();
        write("cgroup.procs", "1\n").unwrap();
        assert_eq!(usable(root.clone(), false), Ok(root.clone()), "the machine's own has no type");
        write("cgroup.type", "domain\n").unwrap();
        assert_eq!(usable(root.clone(), false), Err(NoLimits::Processes { path: root.clone() }));
        assert_eq!(usable(root.clone(), true), Err(NoLimits::ReadOnly { path: root.clone() }));
        write("cgroup.subtree_control", "cpu memory pids\n").unwrap();
        assert_eq!(usable(root.clone(), false), Ok(root.clone()));
    }

    #[test]
    fn only_version_two_counts() {
        let v1 = "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = |table: &str| of_mounts(mounts::parse(table.as_bytes()));
        assert_eq!(found(v1), None);
        let both = format!("{v1}40 24 0:30 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 none rw\n");
        assert_eq!(found(&both), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn a_vmm_gets_its_guests_memory_and_some_more() {
        let limits = Limits::of_vmm(2, 1024, 64);
        assert_eq!(limits.memory_max, (1024 + 64 + 16) << 20);
        assert_eq!((limits.cpu_max_us, limits.cpu_period_us, limits.pids_max), (225_000, 100_000, 64));
        // All that a tenant may run fits below it at one time.
        let all = Limits::of_all(3, 6, 3 * 1024, 64);
        assert!(all.memory_max >= 3 * limits.memory_max && all.cpu_max_us >= 3 * limits.cpu_max_us);
        // Any quota is one that the kernel takes.
        assert!(Limits::of_all(u32::MAX, u32::MAX, u64::MAX, 64).pids_max < 1 << 22);
    }

    #[test]
    fn kills_are_counted() {
        let text = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n";
        assert_eq!(parse_events(text), Events { oom: 1, oom_kills: 3 });
        assert_eq!(parse_events(""), Events::default());
    }
}
