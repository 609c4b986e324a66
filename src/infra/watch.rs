//! Waiting for changes in folders and of files, by inotify, and for other descriptors at the same time.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};

/// A watch on folders.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// A watch on a folder, which need not exist.
    ///
    /// # Errors
    /// When the kernel has no more of them.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let watch = Self(inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?);
        watch.add(folder);
        Ok(watch)
    }

    /// Also this folder or file. What is written to a file under another name is seen by a watch on the file alone.
    pub fn add(&self, place: &Path) {
        use inotify::WatchFlags;
        let events = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVE_SELF
            | WatchFlags::DELETE_SELF;
        // Nothing there, no watch: who waits for it looks whether it is there anyway.
        let _ = inotify::add_watch(&self.0, place, events);
    }

    /// Waits for a change, or for one of `others` to become readable; false when `limit` passes first.
    pub fn wait(&self, others: &[BorrowedFd], limit: Option<Duration>) -> bool {
        let timeout = limit.map(|limit| Timespec::try_from(limit).unwrap_or_default());
        let mut fds = vec![PollFd::new(&self.0, PollFlags::IN)];
        fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let ready = poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&self.0, &mut [0; 4096][..]);
        // A signal came: whoever waits looks again.
        !matches!(ready, Ok(0))
    }
}
