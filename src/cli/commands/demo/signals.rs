//! The signals that would end a command, held back until what it made is removed again.

use std::{
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, FromRawFd, OwnedFd},
};

use rustix::event::{PollFd, PollFlags, poll};

const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Those signals, held back from this thread and what it starts, for ever.
pub struct Signals(std::fs::File);

impl Signals {
    /// Holds them back, but for those that this process was told to ignore: nohup is to hold.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold() -> io::Result<Self> {
        let ending: Vec<libc::c_int> = ENDING.into_iter().filter(|&signal| !is_ignored(signal)).collect();
        let set = set_of(&ending);
        mask(libc::SIG_BLOCK, &set);
        // A story in the background of a terminal writes there all the same.
        mask(libc::SIG_BLOCK, &set_of(&[libc::SIGTTOU]));
        // SAFETY: the set is initialised; a new descriptor is nobody else's.
        let fd = unsafe {
            match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        Ok(Self(fd.into()))
    }

    /// Lets them through again, in a child of who holds them back.
    pub fn release() {
        mask(libc::SIG_UNBLOCK, &set_of(&ENDING));
    }

    /// One that came meanwhile.
    pub fn came(&self) -> Option<u8> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.0).read_exact(&mut info).ok()?;
        // Its first field is the number.
        let (number, _) = info.split_first_chunk()?;
        u32::from_ne_bytes(*number).try_into().ok()
    }

    /// Waits until the process behind a pidfd has ended, or one comes, which is returned.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&self, pidfd: impl AsFd) -> io::Result<Option<u8>> {
        loop {
            let mut both = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut both, None) {
                Ok(_) if both[1].revents().contains(PollFlags::IN) => return Ok(self.came()),
                Ok(_) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is set; what is asked for is written, or stays zero, which is a valid action.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set before anything is added and it is read.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

fn mask(how: libc::c_int, set: &libc::sigset_t) {
    // SAFETY: the set is initialised; only this thread's mask changes.
    unsafe {
        libc::pthread_sigmask(how, set, std::ptr::null_mut());
    }
}
