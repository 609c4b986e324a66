//! What only an ioctl says or sets: the kernel's randomness, and the size and buffers of a disk. And the wall clock.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use mvm_proto::message::Entropy;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;
const BLKFLSBUF: u32 = 0x1261;
const BLKGETSIZE64: u32 = 0x8008_1272;

/// A clock that is right to that much is left alone: the way of a message takes as long.
const TOLERANCE: Duration = Duration::from_millis(10);

/// `struct rand_pool_info` with 32 bytes.
#[repr(C)]
struct Pool {
    bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; 32],
}

/// Mixes in the host's randomness, and makes the kernel's generator start from it: what it gives from now on is nobody
/// else's, also where the guest is a clone.
pub fn add_entropy(entropy: &Entropy) -> io::Result<()> {
    let file = File::options().write(true).open("/dev/urandom")?;
    let pool = Pool { bits: 256, size: 32, bytes: entropy.0 };
    // SAFETY: the pool lives as long as the call, and says its own size.
    unsafe { ioctl(&file, RNDADDENTROPY, (&raw const pool).cast_mut().cast()) }?;
    // SAFETY: this one takes nothing.
    unsafe { ioctl(&file, RNDRESEEDCRNG, std::ptr::null_mut()) }
}

/// Forgets what was read of a disk: it may be another one than before a snapshot.
pub fn forget_buffers(disk: &File) -> io::Result<()> {
    // SAFETY: this one takes nothing.
    unsafe { ioctl(disk, BLKFLSBUF, std::ptr::null_mut()) }
}

/// A disk's size, in bytes.
pub fn disk_size(disk: &File) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: the kernel writes a u64.
    unsafe { ioctl(disk, BLKGETSIZE64, (&raw mut size).cast()) }?;
    Ok(size)
}

/// # Safety
/// What the request takes and gives must fit what the argument points to.
unsafe fn ioctl(file: &File, request: u32, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: the file is open; the rest is the caller's promise.
    match unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sets the wall clock, where it is wrong. Returns what it says then.
pub fn set_clock(unix_ns: u64) -> io::Result<String> {
    const SECOND: u64 = 1_000_000_000;
    if clock().abs_diff(unix_ns) > TOLERANCE.as_nanos() as u64 {
        let time =
            Timespec { tv_sec: (unix_ns / SECOND).cast_signed(), tv_nsec: (unix_ns % SECOND).cast_signed() };
        clock_settime(ClockId::Realtime, time)?;
    }
    Ok(clock().to_string())
}

/// The wall clock, in ns since 1970.
pub fn clock() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Loads a module of the kernel; one that is there already is well.
pub fn load_module(module: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::system::finit_module(module, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
