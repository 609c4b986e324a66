//! A program's pipes, until it has ended. Who holds them after it, a child of its own for one, is not waited for.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::fd::AsFd,
    process::Child,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// What a program said.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

/// Gives a program its input and takes what it says, until it has ended. `None` where it has not when `limit` passes.
///
/// # Errors
/// When the kernel does not let it be attended; it may run on.
pub(super) fn attend(child: &mut Child, mut input: &[u8], limit: Duration) -> io::Result<Option<Said>> {
    let deadline = Instant::now() + limit;
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    stdin.as_ref().map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
    stdout.as_ref().map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
    stderr.as_ref().map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
    let (mut said, mut has_ended) = (Said::default(), false);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // What it said before its end is in the pipes by then.
        let wait = if has_ended { Duration::ZERO } else { left };
        let readers = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        let mut fds: Vec<PollFd<'_>> =
            readers.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        if !has_ended {
            fds.push(PollFd::new(&pidfd, PollFlags::IN));
            fds.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        }
        let timeout = Timespec::try_from(wait).map_err(|_| Errno::INVAL)?;
        let ready = match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        if has_ended && (ready == 0 || left.is_zero()) {
            return Ok(Some(said));
        }
        if ready == 0 {
            return Ok(None);
        }
        has_ended = has_ended || ended(&pidfd);
        take(&mut stdout, &mut said.out);
        take(&mut stderr, &mut said.err);
        give(&mut stdin, &mut input);
    }
}

fn ended(pidfd: &impl AsFd) -> bool {
    super::ended_within(pidfd, Duration::ZERO)
}

/// Takes what is in a pipe; one that is at its end is closed.
fn take(pipe: &mut Option<impl Read>, said: &mut Vec<u8>) {
    let mut bytes = [0; 1 << 16];
    let Some(open) = pipe else { return };
    match open.read(&mut bytes) {
        Ok(0) => *pipe = None,
        Ok(length) => said.extend_from_slice(&bytes[..length]),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(_) => *pipe = None,
    }
}

/// Gives as much of the input as the pipe takes. A program that does not read it to the end closes the pipe: its exit status says
/// more than that.
fn give(pipe: &mut Option<impl Write>, input: &mut &[u8]) {
    let Some(open) = pipe else { return };
    match open.write(input) {
        Ok(length) => *input = &input[length..],
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(_) => *input = &[],
    }
    if input.is_empty() {
        *pipe = None;
    }
}
