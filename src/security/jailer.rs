//! The jail of a VMM: whether there can be one here, and what it is.
//!
//! A jailed VMM has a user and a group of its own, its directory as its root, namespaces of its own of processes and of mounts,
//! and no core dumps. What it shares with others is mounted there, read-only, where nobody else sees it. Firecracker's own
//! jailer does the first two ([`Jail`]), mvm the rest before it becomes the jailer ([`crate::infra::shell::spawn_detached`]).

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::users::{self, Given};
use crate::{
    infra::config::Roots,
    vmm::process::{Jail, Program},
};

/// Why a VMM cannot be jailed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoJail {
    /// It is the simulated one.
    #[error("the simulated VMM has none")]
    Simulated,
    /// There is no jailer.
    #[error("no jailer is installed beside Firecracker {version}")]
    NoJailer {
        /// The version.
        version: String,
    },
    /// mvm must be root for it.
    #[error("it takes root, with all users of the machine")]
    NotRoot,
    /// Its user is somebody else's, too.
    #[error("its user, {uid}, is somebody's: {given}")]
    User {
        /// The user.
        uid: u32,
        /// Who says so.
        given: Given,
    },
    /// A program needs libraries that are not in the jail.
    #[error("{path} is linked dynamically", path = path.display())]
    Dynamic {
        /// The program.
        path: PathBuf,
    },
    /// Where the jails are, there can be no devices, or nothing can be executed.
    #[error("{path} is mounted {option}", path = path.display())]
    Mounted {
        /// Where they are.
        path: PathBuf,
        /// The option.
        option: &'static str,
    },
    /// A program cannot be looked at.
    #[error("cannot read {path}: {why}", path = path.display())]
    Unreadable {
        /// The program.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// The jail for a VMM that runs as this user.
///
/// # Errors
/// [`NoJail`] says what is missing for one.
pub fn jail(roots: &Roots, program: &Program, uid: u32) -> Result<Jail, NoJail> {
    if !program.first_arguments.is_empty() {
        return Err(NoJail::Simulated);
    }
    let Some(jailer) = &program.jailer else {
        return Err(NoJail::NoJailer { version: program.version.clone() });
    };
    // Root of a user namespace has no such users to give.
    let users = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let all_users = ["0", "0", "4294967295"];
    if !rustix::process::geteuid().is_root() || users.split_whitespace().ne(all_users) {
        return Err(NoJail::NotRoot);
    }
    if let Some(given) = users::given(uid..=uid) {
        return Err(NoJail::User { uid, given });
    }
    for path in [&program.path, jailer] {
        check_static(path)?;
    }
    check_mount(&roots.root)?;
    // The jailer makes `firecracker/<id>/root` of it.
    let base = roots.vmm_dirs().parent().map(Path::to_path_buf).unwrap_or_default();
    Ok(Jail { jailer: jailer.clone(), uid, base })
}

/// Does a program run in a jail, where there are no libraries?
///
/// # Errors
/// [`NoJail::Dynamic`] where it does not, [`NoJail::Unreadable`] where that cannot be told.
pub fn check_static(path: &Path) -> Result<(), NoJail> {
    let path = path.to_path_buf();
    match is_dynamic(&path) {
        Ok(false) => Ok(()),
        Ok(true) => Err(NoJail::Dynamic { path }),
        Err(error) => Err(NoJail::Unreadable { path, why: error.to_string() }),
    }
}

/// Can there be devices and programs?
fn check_mount(path: &Path) -> Result<(), NoJail> {
    let flags = statvfs(path).map_or(StatVfsMountFlags::empty(), |stat| stat.f_flag);
    let options = [(StatVfsMountFlags::NODEV, "nodev"), (StatVfsMountFlags::NOEXEC, "noexec")];
    match options.into_iter().find(|(flag, _)| flags.contains(*flag)) {
        Some((_, option)) => Err(NoJail::Mounted { path: path.to_path_buf(), option }),
        None => Ok(()),
    }
}

/// Does a program ask for a dynamic linker? ELF's `PT_INTERP` (elf(5)); what is no 64-bit ELF does not run here.
fn is_dynamic(path: &Path) -> io::Result<bool> {
    const INTERP: u32 = 3;
    let file = File::open(path)?;
    let mut header = [0; 64];
    (&file).read_exact(&mut header)?;
    if !header.starts_with(b"\x7fELF\x02") {
        return Err(io::Error::other("it is no 64-bit ELF program"));
    }
    let number = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let table = u64::from_le_bytes(header[32..40].try_into().unwrap_or_default());
    let (size, count) = (number(54), number(56));
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, table + u64::from(index) * u64::from(size))?;
        if u32::from_le_bytes(kind) == INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_a_linker_is_told_from_one_that_does_not() {
        // This test is one or the other; so is what the kernel says of it.
        let this = Path::new("/proc/self/exe");
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert_eq!(is_dynamic(this).unwrap(), maps.contains("/ld-"));
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n".repeat(20)).unwrap();
        assert!(is_dynamic(&script).is_err());
    }
}
