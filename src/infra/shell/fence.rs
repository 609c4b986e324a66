//! Landlock around a program: what the kernel at hand can deny of it outside files, in every process that comes of it.
//!
//! Files are none of its business: a program in a root of its own has no others. But abstract sockets, TCP and signals know
//! no roots, only namespaces of the network and of processes. Numbers and layout: `linux/landlock.h`.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use rustix::io::Errno;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;
/// `LANDLOCK_ACCESS_NET_BIND_TCP` and `…_CONNECT_TCP`; from version 4 (Linux 6.7).
const TCP: u64 = 3;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `…_SIGNAL`; from version 6 (Linux 6.12).
const SCOPES: u64 = 3;

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Attributes {
    files: u64,
    net: u64,
    scoped: u64,
}

/// Denies TCP, and abstract sockets and signals to whoever is not inside; none where the kernel knows neither.
///
/// # Errors
/// When the kernel, which says that it can, does not.
pub fn fence() -> io::Result<Option<OwnedFd>> {
    let attributes = match version() {
        ..4 => return Ok(None),
        4 | 5 => Attributes { files: 0, net: TCP, scoped: 0 },
        _ => Attributes { files: 0, net: TCP, scoped: SCOPES },
    };
    // A kernel takes a longer form than it knows, where what it does not know is zero.
    let size = size_of::<Attributes>();
    // SAFETY: the attributes outlive the call, and the size is theirs.
    let made =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size, 0_u32) };
    match RawFd::try_from(made) {
        // SAFETY: the kernel has just made it, and nobody else has it.
        Ok(made @ 0..) => Ok(Some(unsafe { OwnedFd::from_raw_fd(made) })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Which version of Landlock the kernel has; negative where it has none.
pub fn version() -> libc::c_long {
    // SAFETY: no attributes are given, so none are read.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0_usize, ASK_VERSION) }
}

/// Puts the thread that calls inside, for good. Only a system call.
pub fn enter(fence: BorrowedFd) -> Result<(), Errno> {
    // SAFETY: a plain system call on a descriptor that is open.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fence.as_raw_fd(), 0_u32) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::PERM)),
    }
}
