//! The folder beside a target in which a copy is until it is whole.
//!
//! ```text
//! .<name>.mvm-cp-<pid>-<start time>-<number>
//! ```
//! It goes with its maker, or, where that one was killed, with the next copy to the same place. One that is in use is locked: its
//! maker may be somebody who is not seen from here, in a container or on another machine; or the same process in another life, for
//! the first process of a guest has the same number and the same start in each.

use std::{
    ffi::{CStr, OsStr},
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, openat, unlinkat},
    io::Errno,
    process::geteuid,
};

use super::MAX_DEPTH;

const MARK: &str = ".mvm-cp-";
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Held while one is made or swept: no other thread sees one that is not locked yet.
static MAKING: Mutex<()> = Mutex::new(());

/// A folder that is removed when this is dropped.
pub(super) struct Work<'a> {
    parent: &'a OwnedFd,
    name: String,
    folder: OwnedFd,
}

impl<'a> Work<'a> {
    /// Makes one, for what shall have this name in `parent`.
    pub(super) fn make(parent: &'a OwnedFd, target: &OsStr) -> Result<Self, Errno> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        let start = start_time(pid).ok().flatten().unwrap_or(0);
        let name = loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}{pid}-{start}-{number}", prefix(target));
            match mkdirat(parent, &name, Mode::RWXU) {
                // Of another life, and not to be swept.
                Err(Errno::EXIST) => {}
                made => break made.map(|()| name)?,
            }
        };
        match openat(parent, &name, FLAGS, Mode::empty()) {
            Ok(folder) => {
                // Where a file system has no locks, nobody takes it away who sees that its maker lives.
                let _ = flock(&folder, FlockOperation::NonBlockingLockExclusive);
                Ok(Self { parent, name, folder })
            }
            Err(errno) => {
                remove(parent, OsStr::new(&name), 0);
                Err(errno)
            }
        }
    }

    /// The folder.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        remove(self.parent, OsStr::new(&self.name), 0);
    }
}

fn prefix(target: &OsStr) -> String {
    let short: String = target.to_string_lossy().chars().take(32).collect();
    format!(".{short}{MARK}")
}

/// Removes what copies to the same place left that were killed.
pub(super) fn sweep(parent: &OwnedFd, target: &OsStr) {
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let prefix = prefix(target);
    // What cannot be looked at is left alone.
    let Ok(again) = openat(parent, ".", FLAGS, Mode::empty()) else { return };
    let members = Dir::new(again).into_iter().flatten().flatten();
    let names: Vec<_> = members.map(|member| member.file_name().to_owned()).collect();
    for name in names.iter().filter(|name| is_left(name, &prefix)) {
        let Ok(folder) = openat(parent, name.as_c_str(), FLAGS, Mode::empty()) else { continue };
        let is_own = fstat(&folder).is_ok_and(|stat| stat.st_uid == geteuid().as_raw());
        if is_own && flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(parent, OsStr::from_bytes(name.to_bytes()), 0);
        }
    }
}

/// Is it the name of one whose maker is gone, or was this process, whose own ones are locked?
fn is_left(name: &CStr, prefix: &str) -> bool {
    let maker = name.to_str().ok().and_then(|name| name.strip_prefix(prefix)).and_then(|rest| {
        let mut parts = rest.split('-');
        let (pid, start) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u64>().ok()?);
        let number = parts.next()?.parse::<u32>();
        (number.is_ok() && parts.next().is_none()).then_some((pid, start))
    });
    match maker {
        // It could not be said.
        None | Some((_, 0)) => false,
        Some((pid, start)) => {
            start_time(pid).is_ok_and(|now| now != Some(start) || pid == std::process::id())
        }
    }
}

/// When a process began, in the kernel's ticks since boot; none where there is no such process.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // Without /proc nobody is seen.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::exists("/proc/self/stat")? => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The name stands in brackets and may be anything; it is followed by the state, the third field, and this is the 22nd.
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest);
    let start = rest.and_then(|rest| rest.split_whitespace().nth(19)).and_then(|text| text.parse().ok());
    start.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Removes what came, as far as it can be removed.
fn remove(at: &OwnedFd, name: &OsStr, depth: usize) {
    if depth > MAX_DEPTH + 2 || unlinkat(at, name, AtFlags::empty()).is_ok() {
        return;
    }
    // A folder without permissions has got them at the end, from its sender.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(folder) = openat(at, name, flags, Mode::empty()) {
        let members: Vec<_> = Dir::read_from(&folder).into_iter().flatten().flatten().collect();
        for member in members {
            let name = member.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                remove(&folder, OsStr::from_bytes(name.to_bytes()), depth + 1);
            }
        }
    }
    let _ = unlinkat(at, name, AtFlags::REMOVEDIR);
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn one_whose_maker_is_gone_is_left() {
        let own = std::process::id();
        let start = start_time(own).unwrap().unwrap();
        assert_eq!(start_time(0).unwrap(), None);
        let is_left =
            |rest: &str| is_left(&CString::new(format!(".x{MARK}{rest}")).unwrap(), &prefix(OsStr::new("x")));
        // That of its own that is in use is locked.
        assert!(is_left(&format!("{own}-{start}-0")));
        let other = rustix::process::getppid().unwrap().as_raw_nonzero().get().cast_unsigned();
        let start = start_time(other).unwrap().unwrap();
        assert!(!is_left(&format!("{other}-{start}-0")));
        // Another process has its number now.
        assert!(is_left(&format!("{other}-{}-0", start + 1)));
        assert!(is_left("0-1-3"));
        for other in ["0-0-1", "0-1", "0-1-1-1", "0-1-", "x-1-1", "-1-1-1", "", "0-1-1 "] {
            assert!(!is_left(other), "{other:?}");
        }
        assert!(!super::is_left(c".y.mvm-cp-0-1-3", &prefix(OsStr::new("x"))));
    }
}
