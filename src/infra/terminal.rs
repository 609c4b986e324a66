//! The terminal as a guest's console: every key goes through, and what was set before comes back whatever happens.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
};

use mvm_proto::message::Size;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};

/// The terminal on stdin, raw until this is dropped.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal raw: no echo, no lines, no signals from keys.
    ///
    /// # Errors
    /// When stdin is no terminal.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of the terminal on stdout, or on stdin; `None` where neither is one.
pub fn size() -> Option<Size> {
    use rustix::termios::tcgetwinsize;
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Signals that are for somebody else: a program that runs elsewhere in this one's name.
pub struct Signals {
    caught: OwnedFd,
}

impl Signals {
    /// Catches those that a person sends, and changes of the terminal's size. Call it before there are threads.
    ///
    /// # Errors
    /// When the kernel has no more descriptors.
    pub fn catch() -> io::Result<Self> {
        let numbers = [
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
            libc::SIGWINCH,
            libc::SIGUSR1,
            libc::SIGUSR2,
        ];
        catch(&numbers, 0).map(|caught| Self { caught })
    }

    /// Waits for the next one; its number.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn wait(&self) -> io::Result<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        loop {
            match rustix::io::read(&self.caught, &mut info[..]) {
                // signalfd(2): the number comes first.
                Ok(read) if read == info.len() => {
                    return Ok(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]));
                }
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// From now on signals that would end this process at once make this descriptor readable instead.
///
/// # Errors
/// When the kernel has no more descriptors.
pub fn catch_deadly_signals() -> io::Result<OwnedFd> {
    catch(&[libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT], libc::SFD_NONBLOCK)
}

fn catch(numbers: &[i32], flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before anything reads it, and all pointers are to locals.
    let caught = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &number in numbers {
            libc::sigaddset(&mut set, number);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC | flags)
    };
    match caught {
        ..0 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel has just made it, and nobody else has it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Can something be read there at this moment, be it the end?
pub fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
}

/// Does somebody feed stdin: a pipe, a socket or a file? A terminal or /dev/null is none of them.
pub fn is_fed(stdin: BorrowedFd) -> bool {
    use rustix::fs::{FileType, fstat};
    let kind = fstat(stdin).map(|stat| FileType::from_raw_mode(stat.st_mode));
    matches!(kind, Ok(FileType::Fifo | FileType::Socket | FileType::RegularFile))
}
