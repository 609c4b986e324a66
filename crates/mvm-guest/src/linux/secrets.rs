//! `/run/secrets`: a tmpfs to be read and nothing else, whose content changes at once.
//!
//! ```text
//! NAME   -> ..data/NAME        what programs open
//! ..data -> ..a | ..b          one rename makes it lead to the other set: nobody who follows a name finds a mix
//! ```
//! The agent writes to the same file system through a mount that has no place any more, so that nobody else can. Who has a
//! file of the old set open keeps it; the set itself goes.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::Path,
    sync::{Mutex, PoisonError},
};

use mvm_proto::secrets::{FOLDER, MAX_SIZE, is_name};
use rustix::{
    fs::{
        AtFlags, Dir, Gid, Mode, OFlags, StatVfsMountFlags, Uid, fchown, mkdirat, openat, readlinkat,
        renameat, statvfs, symlinkat, unlinkat,
    },
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount},
};
use zeroize::Zeroizing;

/// What it is called in `/proc/mounts`.
const SOURCE: &str = "mvm-secrets";
/// Where it is mounted for a moment, before it has no place.
const STAGING: &str = "/run/.mvm-secrets";
/// Two sets are there for a moment.
const SIZE: &std::ffi::CStr = c"size=3m,nr_inodes=512,mode=0700";
const DATA: &str = "..data";
const NEXT: &str = "..next";
const SETS: [&str; 2] = ["..a", "..b"];

/// Secrets by name.
type Files = [(String, Zeroizing<Vec<u8>>)];

/// The agent's way in; none before there were any secrets.
#[derive(Default)]
pub struct Place(Mutex<Option<OwnedFd>>);

impl Place {
    /// Puts these in place of what is there, readable by this user and group.
    ///
    /// # Errors
    /// What was there is still there then.
    pub fn put(&self, files: &Files, owner: (u32, u32)) -> io::Result<()> {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |error: io::Error| io::Error::other(format!("{FOLDER}: {error}"));
        let root = match place.take() {
            Some(root) => root,
            None => mount_it().map_err(named)?,
        };
        let root = place.insert(root);
        replace(root, files, owner).map_err(named)?;
        check_mount().map_err(named)
    }
}

/// Makes the file system: at its place, where nobody writes, and here, where the agent does.
fn mount_it() -> io::Result<OwnedFd> {
    // An agent that was started again has lost its way in.
    while let Some(source) = mounted_at(FOLDER)? {
        if source != SOURCE {
            return Err(io::Error::other(format!("{source} is mounted there")));
        }
        unmount(FOLDER, UnmountFlags::DETACH)?;
    }
    for (folder, mode) in [(FOLDER, 0o755), (STAGING, 0o700)] {
        DirBuilder::new().recursive(true).mode(mode).create(folder)?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(SOURCE, STAGING, "tmpfs", flags, Some(SIZE))?;
    let root = shown(flags);
    unmount(STAGING, UnmountFlags::DETACH)?;
    let _ = fs::remove_dir(STAGING);
    root
}

fn shown(flags: MountFlags) -> io::Result<OwnedFd> {
    let root = File::open(STAGING)?;
    mount_bind(STAGING, FOLDER)?;
    let read_only = mount_remount(FOLDER, flags | MountFlags::RDONLY | MountFlags::BIND, "");
    if let Err(errno) = read_only {
        unmount(FOLDER, UnmountFlags::DETACH)?;
        return Err(errno.into());
    }
    Ok(root.into())
}

/// What is mounted at a place last.
fn mounted_at(place: &str) -> io::Result<Option<String>> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let source = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        (before.split(' ').nth(4) == Some(place))
            .then(|| after.split(' ').nth(1).unwrap_or_default().to_owned())
    };
    Ok(mounts.lines().filter_map(source).next_back())
}

fn check_mount() -> io::Result<()> {
    let wanted = StatVfsMountFlags::RDONLY
        | StatVfsMountFlags::NOEXEC
        | StatVfsMountFlags::NODEV
        | StatVfsMountFlags::NOSUID;
    match statvfs(FOLDER)?.f_flag.contains(wanted) {
        true => Ok(()),
        false => Err(io::Error::other("it is not mounted ro, noexec, nodev, nosuid")),
    }
}

fn replace(root: &OwnedFd, files: &Files, (uid, gid): (u32, u32)) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fchown(root, owner.0, owner.1)?;
    let current = current(root)?;
    let new = SETS.into_iter().find(|&set| current.as_deref() != Some(set)).unwrap_or(SETS[0]);
    // Left by one that failed.
    remove_set(root, new)?;
    let switched = (|| {
        mkdirat(root, new, Mode::from_raw_mode(0o700))?;
        let set = open_folder(root, new)?;
        fchown(&set, owner.0, owner.1)?;
        for (name, content) in files {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut file = File::from(openat(&set, name.as_str(), flags, Mode::from_raw_mode(0o400))?);
            file.write_all(content)?;
            fchown(&file, owner.0, owner.1)?;
            // Before the switch a new name leads nowhere.
            match symlinkat(format!("{DATA}/{name}"), root, name.as_str()) {
                Err(Errno::EXIST) => {}
                linked => linked?,
            }
        }
        let _ = unlinkat(root, NEXT, AtFlags::empty());
        symlinkat(new, root, NEXT)?;
        Ok::<_, io::Error>(renameat(root, NEXT, root, DATA)?)
    })();
    match (&switched, &current) {
        (Ok(()), Some(old)) => remove_set(root, old)?,
        (Ok(()), None) => {}
        (Err(_), _) => remove_set(root, new)?,
    }
    // Names that lead nowhere now.
    for name in names(root)?.iter().filter(|name| is_name(name)) {
        if matches!(rustix::fs::statat(root, name.as_str(), AtFlags::empty()), Err(Errno::NOENT)) {
            unlinkat(root, name.as_str(), AtFlags::empty())?;
        }
    }
    switched
}

/// The set that is read.
fn current(root: &OwnedFd) -> io::Result<Option<String>> {
    match readlinkat(root, DATA, Vec::new()) {
        Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn open_folder(root: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(root, name, flags, Mode::empty())?)
}

fn names(folder: impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn remove_set(root: &OwnedFd, set: &str) -> io::Result<()> {
    let folder = match open_folder(root, set) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        folder => folder?,
    };
    for name in names(&folder)?.iter().filter(|name| is_name(name)) {
        unlinkat(&folder, name.as_str(), AtFlags::empty())?;
    }
    Ok(unlinkat(root, set, AtFlags::REMOVEDIR)?)
}

/// What is there, as everybody sees it; nothing where there never was anything.
///
/// # Errors
/// Where it cannot be read.
pub fn read() -> io::Result<Vec<(String, Zeroizing<Vec<u8>>)>> {
    let folder = Path::new(FOLDER);
    let set = match File::open(folder.join(DATA)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        set => set?,
    };
    let mut secrets = Vec::new();
    for name in names(&set)?.into_iter().filter(|name| is_name(name)) {
        let mut file = File::open(folder.join(&name))?;
        let size = usize::try_from(file.metadata()?.size()).unwrap_or(usize::MAX);
        let mut content = Zeroizing::new(vec![0; size.min(MAX_SIZE)]);
        file.read_exact(&mut content)?;
        secrets.push((name, content));
    }
    Ok(secrets)
}
