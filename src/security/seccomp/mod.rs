//! The seccomp filters of a VMM, read back from its threads: that a build says it has one is no proof, some carry an empty one.
//!
//! The kernel shows a filter to who traces a thread that is stopped (ptrace(2), `PTRACE_SECCOMP_GET_FILTER`); each is stopped
//! for a tenth of a millisecond. Firecracker's threads have theirs from the boot or the load on, not before.

mod strict;

use std::{
    fs, io, ptr,
    time::{Duration, Instant},
};

pub use self::strict::{NoStrict, STRICT_FOR, Strict};
use super::policy::SeccompPolicy;
use crate::infra::processes;

/// `linux/ptrace.h`.
const GET_FILTER: libc::c_uint = 0x420c;
/// How long all threads of a process together may take to stop: microseconds, but on a busy node, or while one reads from a disk.
const LIMIT: Duration = Duration::from_secs(2);
/// A thread that has a filter (proc(5)).
const FILTERED: u32 = 2;
/// An empty policy is compiled to 7 instructions, Firecracker's own to 105 and more.
const SMALLEST: usize = 32;

/// The filter that every thread of a process has; `None` where one has none, or an empty one.
///
/// # Errors
/// When they cannot be looked at: without `CAP_SYS_PTRACE` and `CAP_SYS_ADMIN`, or where something else traces them.
pub fn in_force(pid: i32) -> io::Result<Option<SeccompPolicy>> {
    in_force_within(pid, LIMIT)
}

/// In a thread of its own: one that was asked to stop and did not is let go by nothing but the end of who asked, and until then
/// nobody else may trace it, nor is its process over when it is killed.
fn in_force_within(pid: i32, limit: Duration) -> io::Result<Option<SeccompPolicy>> {
    let looked = std::thread::scope(|scope| scope.spawn(|| look(pid, Instant::now() + limit)).join());
    looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn look(pid: i32, deadline: Instant) -> io::Result<Option<SeccompPolicy>> {
    let strict = Strict::get().ok();
    let mut weakest = None;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some(tid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match Traced::stop(tid, deadline) {
            Ok(thread) => {
                let filters = thread.filters()?;
                if filters.is_empty() && mode(pid, tid) == Some(FILTERED) {
                    let why = "the kernel does not show filters (CONFIG_CHECKPOINT_RESTORE)";
                    return Err(io::Error::new(io::ErrorKind::Unsupported, why));
                }
                let is_strict = |filter| strict.is_some_and(|strict| strict.has(filter));
                let own = match filters.iter().map(Vec::len).max() {
                    None | Some(..SMALLEST) => return Ok(None),
                    _ if filters.iter().any(|filter| is_strict(filter)) => SeccompPolicy::Strict,
                    _ => SeccompPolicy::Baseline,
                };
                weakest = Some(weakest.map_or(own, |other: SeccompPolicy| other.min(own)));
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) || is_over(pid, tid) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(weakest)
}

/// Have some threads of a process a filter, and others none yet?
pub fn is_coming(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let modes = threads.filter_map(|thread| mode(pid, thread.file_name().to_str()?.parse().ok()?));
    let (filtered, free): (Vec<u32>, _) = modes.partition(|mode| *mode == FILTERED);
    !filtered.is_empty() && !free.is_empty()
}

/// What holds a thread, as its `status` says (proc(5), `Seccomp`).
fn mode(pid: i32, tid: libc::pid_t) -> Option<u32> {
    let status = processes::proc_text(pid, &format!("task/{tid}/status"))?;
    status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim().parse().ok()
}

/// Has a thread ended? One that has not been reaped yet cannot be traced (ptrace(2), EPERM).
fn is_over(pid: i32, tid: libc::pid_t) -> bool {
    let stat = processes::proc_text(pid, &format!("task/{tid}/stat"));
    let state = stat.and_then(|stat| stat.rsplit_once(") ")?.1.chars().next());
    state.is_none_or(|state| ['Z', 'X', 'x'].contains(&state))
}

/// The system call for which a VMM ended, as it says at the end of its log: it made it, and its filter forbids it
/// (Firecracker's `signal_handler.rs`).
pub fn forbidden_call(log: &[u8]) -> Option<u32> {
    const SAID: &str = "intercepting a bad syscall (";
    let log = String::from_utf8_lossy(log);
    let (_, number) = log.rsplit_once(SAID)?;
    number.split_once(')')?.0.parse().ok()
}

/// A thread that is stopped until this is dropped.
struct Traced(libc::pid_t);

impl Traced {
    fn stop(tid: libc::pid_t, deadline: Instant) -> io::Result<Self> {
        request(libc::PTRACE_SEIZE, tid, 0)?;
        // From here on it goes on when this is dropped.
        let traced = Self(tid);
        request(libc::PTRACE_INTERRUPT, tid, 0)?;
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

    /// Its filters, an instruction a number.
    fn filters(&self) -> io::Result<Vec<Vec<u64>>> {
        let mut filters = Vec::new();
        for index in 0.. {
            match request(GET_FILTER, self.0, index) {
                Ok(length) => filters.push(self.filter(index, length)?),
                // No more of them, or none at all.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filters)
    }

    /// One that has so many instructions: a filter never changes.
    fn filter(&self, index: usize, length: usize) -> io::Result<Vec<u64>> {
        let mut program = vec![0_u64; length];
        // SAFETY: an instruction takes 8 bytes, and there is room for all of them.
        let read = unsafe { libc::ptrace(GET_FILTER, self.0, index, program.as_mut_ptr()) };
        match usize::try_from(read) {
            Ok(read) if read == length => Ok(program),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
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
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::infra::shell::{Streams, ended_within, spawn_detached};

    #[test]
    fn what_a_vmm_says_of_its_end_is_read() {
        let said = b"x [fc:main:ERROR] Shutting down VM after intercepting a bad syscall (425).\ny\n";
        assert_eq!(forbidden_call(said), Some(425));
        for other in [
            &b""[..],
            b"intercepting a bad syscall (",
            b"a bad syscall (1).",
            b"intercepting a bad syscall (x)",
        ] {
            assert_eq!(forbidden_call(other), None);
        }
    }

    fn start(program: &str, arguments: &[&str]) -> (i32, OwnedFd) {
        let null = || fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let streams = Streams { input: null(), output: null(), errors: null() };
        spawn_detached(program.as_ref(), arguments, "/".as_ref(), &streams, None).unwrap()
    }

    /// What is killed with all of its session when this goes.
    struct Session(i32);

    impl Drop for Session {
        fn drop(&mut self) {
            // SAFETY: the session of this test's child, which is that and its own one.
            unsafe { libc::kill(-self.0, libc::SIGKILL) };
        }
    }

    fn is_state(pid: i32, state: char) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(&format!(") {state} "))
    }

    /// What is started here is let go at once where it does not stop, and can be killed.
    #[test]
    fn a_thread_that_does_not_stop_is_not_held() {
        // By `CLONE_VFORK | CLONE_VM` it waits for its child, and for nothing but that and its end.
        let waits = "syscall($ARGV[0], 0x4111, 0, 0, 0, 0); sleep 1000";
        let (pid, pidfd) = start("/usr/bin/perl", &["-e", waits, &libc::SYS_clone.to_string()]);
        let session = Session(pid);
        let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        while children().is_empty() || !is_state(pid, 'D') {
            std::thread::yield_now();
        }
        for _ in 0..2 {
            let looked = in_force_within(pid, Duration::from_millis(20));
            assert_eq!(looked.unwrap_err().kind(), io::ErrorKind::TimedOut);
            // A thread is joined a moment before it is no more.
            let is_free = |_| {
                std::thread::yield_now();
                fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("TracerPid:\t0")
            };
            assert!((0..10_000).any(is_free));
        }
        drop(session);
        assert!(ended_within(&pidfd, Duration::from_secs(10)));
    }

    #[test]
    fn a_filter_is_coming_while_only_some_threads_have_it() {
        use std::sync::mpsc::channel;
        let own = std::process::id().cast_signed();
        if mode(own, own) == Some(FILTERED) {
            return crate::infra::tests::skip("this process has a filter already, in a container for one");
        }
        assert!(!is_coming(own));
        // It allows everything, and holds one thread, which ends here.
        let allow = [seccompiler::sock_filter { code: 6, jt: 0, jf: 0, k: 0x7fff_0000 }];
        std::thread::scope(|scope| {
            let ((took, has_taken), (end, ends)) = (channel(), channel::<()>());
            scope.spawn(move || {
                took.send(seccompiler::apply_filter(&allow).is_ok()).unwrap();
                let _ = ends.recv();
            });
            assert!(has_taken.recv().unwrap() && is_coming(own));
            drop(end);
        });
    }

    #[test]
    fn a_process_without_a_filter_has_none_and_goes_on() {
        let (pid, _) = start("/bin/sleep", &["1000"]);
        assert!(matches!(in_force(pid), Ok(None)));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("TracerPid:\t0") && !status.contains("State:\tT"), "{status}");
        // SAFETY: the child of this test.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // One that has ended and was not reaped has no thread that could be looked at.
        while !is_state(pid, 'Z') {
            std::thread::yield_now();
        }
        assert!(matches!(in_force(pid), Ok(None)));
        assert!(in_force(i32::MAX).is_err());
    }
}
