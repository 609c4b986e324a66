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

use super::ended_within;

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
    let mut said = Said::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let readers = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        let mut fds: Vec<PollFd<'_>> =
            readers.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        fds.push(PollFd::new(&pidfd, PollFlags::IN));
        fds.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        let has_ended = ended_within(&pidfd, Duration::ZERO);
        // What it said before its end is in the pipes by then, and that is no more than they hold; what comes after it is another's.
        for _ in 0..if has_ended { TO_EMPTY } else { 1 } {
            take(&mut stdout, &mut said.out);
            take(&mut stderr, &mut said.err);
        }
        give(&mut stdin, &mut input);
        if has_ended {
            return Ok(Some(said));
        }
    }
}

/// Reads that empty a pipe: one takes what a pipe holds (pipe(7)), and may find less, where it is written to in between.
const TO_EMPTY: usize = 2;

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
