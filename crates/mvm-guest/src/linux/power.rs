//! The end: signals, and switching the machine off in an orderly way.
//!
//! ```text
//! workload asked, and killed when its time is over → all others asked, then killed → disks written → reboot
//! ```
//! A VMM ends when its guest reboots, so that is how it is switched off.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount_remount, unmount},
    system::{RebootCommand, reboot},
};

use super::{
    Parts,
    children::{Children, send},
    spawn,
};

/// What a workload gets where nobody says how much.
pub const GRACE: Duration = Duration::from_secs(8);
/// What all others get between being asked and being killed.
const OTHERS: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// Those that end PID 1, by which program ever they are sent.
const ENDING: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGPWR, libc::SIGUSR1, libc::SIGUSR2];

/// Signals that are waited for, in place of what they would do.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them, for this thread and all that it starts.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn block() -> io::Result<Self> {
        // SAFETY: the set lives as long as the calls, and is initialised by the first of them.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in ENDING {
                libc::sigaddset(&raw mut set, signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(Self(set)),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }

    /// Waits for one of them.
    pub fn wait(&self) {
        let mut signal = 0;
        // SAFETY: the set was initialised; the number is written to.
        while unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } != 0 {}
    }
}

/// Begins to switch the machine off; it is done once.
pub fn switch_off(parts: &Arc<Parts>, grace: Duration) {
    if parts.ending.swap(true, Ordering::AcqRel) {
        return;
    }
    let own = parts.clone();
    if spawn("power", move || end(&own, grace)).is_err() {
        end(parts, Duration::ZERO);
    }
}

fn end(parts: &Parts, grace: Duration) {
    parts.workload.stop(grace);
    if !parts.is_first {
        rustix::fs::sync();
        // Whatever the guest's init is, this is Ctrl-Alt-Del to it.
        send(1, libc::SIGINT);
        return;
    }
    parts.launcher.children.close();
    // A shell on a terminal ignores the first one and ends on the second; one that is stopped hears neither.
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGCONT] {
        send(-1, signal);
    }
    if !alone_within(OTHERS) {
        send(-1, libc::SIGKILL);
        alone_within(OTHERS);
    }
    rustix::fs::sync();
    if let Some(place) = parts.data().as_deref() {
        // Without processes nothing is in its way; what cannot go is at least written.
        if unmount(place, UnmountFlags::NOFOLLOW).is_err() {
            let _ = mount_remount(place, MountFlags::RDONLY, "");
        }
    }
    if parts.owns_root {
        let _ = mount_remount("/", MountFlags::RDONLY, "");
    }
    rustix::fs::sync();
    let _ = reboot(RebootCommand::Restart);
    // A container has no power: it ends with its first program.
    std::process::exit(0);
}

fn alone_within(limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !Children::none_left() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK);
    }
    true
}
