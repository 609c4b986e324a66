//! The seccomp filters of a VMM, read back from its threads: that a build says it has one is no proof, some carry an empty one.
//!
//! The kernel shows a filter to who traces a thread that is stopped (ptrace(2), `PTRACE_SECCOMP_GET_FILTER`); each is stopped
//! for a tenth of a millisecond. Firecracker's threads have theirs from the boot or the load on, not before.

use std::{
    fs, io, ptr,
    time::{Duration, Instant},
};

/// `linux/ptrace.h`.
const GET_FILTER: libc::c_uint = 0x420c;
/// A thread stops within microseconds.
const STOP_LIMIT: Duration = Duration::from_millis(200);
/// An empty policy is compiled to 7 instructions, Firecracker's own to 105 and more.
const SMALLEST: usize = 32;

/// Has every thread of a process a filter that is more than an empty one?
///
/// # Errors
/// When they cannot be looked at: without `CAP_SYS_PTRACE` and `CAP_SYS_ADMIN`, or where something else traces them.
pub fn is_filtered(pid: i32) -> io::Result<bool> {
    let mut threads = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some(tid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match Traced::stop(tid) {
            Ok(thread) if thread.longest_filter()? < SMALLEST => return Ok(false),
            Ok(_) => threads += 1,
            // It has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(threads > 0)
}

/// A thread that is stopped until this is dropped.
struct Traced(libc::pid_t);

impl Traced {
    fn stop(tid: libc::pid_t) -> io::Result<Self> {
        request(libc::PTRACE_SEIZE, tid, 0)?;
        // From here on it goes on when this is dropped.
        let traced = Self(tid);
        request(libc::PTRACE_INTERRUPT, tid, 0)?;
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            let mut status = 0;
            // SAFETY: the status outlives the call.
            let waited = unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) };
            match waited {
                // A thread that cannot be stopped keeps nobody; there is no event for a stop that has a limit.
                0 if Instant::now() < deadline => std::thread::sleep(Duration::from_micros(20)),
                0 => return Err(io::ErrorKind::TimedOut.into()),
                _ if waited == tid && libc::WIFSTOPPED(status) => return Ok(traced),
                _ if waited == tid => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Instructions of its longest filter; 0 where it has none.
    fn longest_filter(&self) -> io::Result<usize> {
        let mut longest = 0;
        for index in 0.. {
            match request(GET_FILTER, self.0, index) {
                Ok(instructions) => longest = longest.max(instructions),
                // No more of them, or none at all.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(longest)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // One that has ended is let go.
        let _ = request(libc::PTRACE_DETACH, self.0, 0);
    }
}

fn request(what: libc::c_uint, tid: libc::pid_t, argument: usize) -> io::Result<usize> {
    let nothing: *mut libc::c_void = ptr::null_mut();
    // SAFETY: none of these requests writes anything where no place is given.
    let answer = unsafe { libc::ptrace(what, tid, argument, nothing) };
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::shell::{Streams, spawn_detached};

    #[test]
    fn a_process_without_a_filter_has_none_and_goes_on() {
        let null = || fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let streams = Streams { input: null(), output: null(), errors: null() };
        let pid = spawn_detached("/bin/sleep".as_ref(), ["1000"], "/".as_ref(), streams).unwrap();
        assert!(matches!(is_filtered(pid), Ok(false)));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("TracerPid:\t0") && !status.contains("State:\tT"), "{status}");
        // SAFETY: the child of this test.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        assert!(is_filtered(i32::MAX).is_err());
    }
}
