//! What the workload says of itself: by touching one of the files `/run/mvm/worker-{ready,idle,busy}`, or in a datagram to
//! `/run/mvm/worker.sock`. Whatever was said last counts.
//!
//! What came last is what the kernel tells last, not what has the newest time: two files that are touched within a tick of
//! the clock have the same, and a clock may be set back.

use std::{
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mvm_proto::message::Worker as Word;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    time::{ClockId, clock_gettime},
};

use super::spawn;

/// Where a workload says how it is.
pub const FOLDER: &str = "/run/mvm";
const WORDS: [(&str, Word); 3] = [("ready", Word::Ready), ("idle", Word::Idle), ("busy", Word::Busy)];

/// So much is heard at once: who says more without end keeps nobody from asking.
const AT_ONCE: usize = 256;

/// Seconds and nanoseconds, as files have them.
type Time = (i64, i64);

/// What was said.
pub struct Worker {
    folder: PathBuf,
    socket: Option<UnixDatagram>,
    /// On the folder with this device and inode: there may be another one in its place.
    watch: Option<(OwnedFd, (u64, u64))>,
    words: Mutex<Words>,
}

#[derive(Default)]
struct Words {
    /// The last one.
    last: Option<(Time, Word)>,
    /// The last one on the socket: it counts again where a file that came after it is removed.
    heard: Option<(Time, Word)>,
}

impl Worker {
    /// Listens in a folder, which is made.
    ///
    /// # Errors
    /// Where it is not told what happens there: the newest files count all the same, in what comes beside the error.
    pub fn listen(folder: &Path) -> (Arc<Self>, io::Result<()>) {
        let (socket, watch) = (open(folder), watch(folder));
        let error = socket.as_ref().err().or(watch.as_ref().err()).map(|error| error.kind());
        let words = Mutex::new(Words::default());
        let worker = Self { folder: folder.to_owned(), socket: socket.ok(), watch: watch.ok(), words };
        // What was said before there was anybody to hear it.
        worker.words().last = worker.newest_file();
        let worker = Arc::new(worker);
        let copy = worker.clone();
        let listening = spawn("worker", move || copy.hear());
        (worker, listening.and(error.map_or(Ok(()), |kind| Err(kind.into()))))
    }

    /// Takes what is said as it is said, so that nothing piles up.
    fn hear(&self) {
        loop {
            let (socket, watch) =
                (self.socket.as_ref().map(AsFd::as_fd), self.watch.as_ref().map(|(watch, _)| watch.as_fd()));
            let mut fds: Vec<PollFd<'_>> = [socket, watch]
                .into_iter()
                .flatten()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            if fds.is_empty() {
                return;
            }
            let _ = poll(&mut fds, None);
            drop(self.told());
        }
    }

    /// The last word, and how long ago it was said: no time at all where that lies ahead.
    pub fn said(&self) -> Option<(Word, Duration)> {
        let ((seconds, nanos), word) = self.told().last?;
        let now = clock_gettime(ClockId::Realtime);
        let since = |time: i64, part: i64| i128::from(time) * 1_000_000_000 + i128::from(part);
        let ago = since(now.tv_sec, now.tv_nsec) - since(seconds, nanos);
        Some((word, Duration::from_nanos(u64::try_from(ago.max(0)).unwrap_or(u64::MAX))))
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said up to now.
    fn told(&self) -> MutexGuard<'_, Words> {
        let mut words = self.words();
        match &self.watch {
            Some((watch, folder)) if identity(&self.folder).is_ok_and(|now| now == *folder) => {
                self.read_events(watch, &mut words);
            }
            _ => words.last = self.newest_file().max(words.heard),
        }
        let mut buffer = [0; 64];
        for _ in 0..AT_ONCE {
            // Nothing is waited for: neither of them blocks.
            let Some(Ok(count)) = self.socket.as_ref().map(|socket| socket.recv(&mut buffer)) else { break };
            let said = buffer[..count].trim_ascii();
            if let Some((_, word)) = WORDS.iter().find(|(name, _)| name.as_bytes() == said) {
                // The clock that files are stamped by.
                let now = clock_gettime(ClockId::RealtimeCoarse);
                words.heard = Some(((now.tv_sec, now.tv_nsec), *word));
                words.last = words.heard;
            }
        }
        words
    }

    fn read_events(&self, watch: &OwnedFd, words: &mut Words) {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(watch, &mut buffer);
        for _ in 0..AT_ONCE {
            let Ok(event) = events.next() else { break };
            let name = event.file_name().and_then(|name| name.to_str().ok()).unwrap_or_default();
            let named = WORDS.into_iter().find(|(word, _)| name.strip_prefix("worker-") == Some(*word));
            let is_there = named.and_then(|named| self.file(&named));
            words.last = match (named, is_there) {
                (_, Some(said)) => Some(said),
                // One that goes says nothing any more; of what is left the newest counts.
                (Some((_, word)), None) if words.last.is_some_and(|(_, last)| last == word) => {
                    self.newest_file().max(words.heard)
                }
                // So much happened that not all of it is known.
                (None, _) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    self.newest_file().max(words.heard)
                }
                _ => words.last,
            };
        }
    }

    /// A file that says this: links and folders of that name say nothing.
    fn file(&self, (name, word): &(&str, Word)) -> Option<(Time, Word)> {
        let meta = fs::symlink_metadata(self.folder.join(format!("worker-{name}"))).ok()?;
        meta.is_file().then(|| ((meta.mtime(), meta.mtime_nsec()), *word))
    }

    fn newest_file(&self) -> Option<(Time, Word)> {
        WORDS.iter().filter_map(|one| self.file(one)).max()
    }
}

fn open(folder: &Path) -> io::Result<UnixDatagram> {
    fs::create_dir_all(folder)?;
    // Whoever the workload is may say something; nobody takes another one's file away.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o1777))?;
    let path = folder.join("worker.sock");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}

fn watch(folder: &Path) -> io::Result<(OwnedFd, (u64, u64))> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let appears = WatchFlags::CREATE | WatchFlags::MOVED_TO;
    // Not when it is closed: somebody may have held it open for long, and said nothing.
    let is_touched = WatchFlags::ATTRIB | WatchFlags::MODIFY;
    let goes = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
    inotify::add_watch(&watch, folder, appears | is_touched | goes)?;
    Ok((watch, identity(folder)?))
}

/// Which folder it is, whatever it is called.
fn identity(folder: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(folder)?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

    use super::*;

    impl Worker {
        fn word(&self) -> Option<Word> {
            self.said().map(|(word, _)| word)
        }
    }

    /// Touches a file, which has this time afterwards.
    fn touch(folder: &Path, name: &str, seconds: i64) {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_err() {
            fs::write(&path, "").unwrap();
        }
        let time = Timespec { tv_sec: seconds, tv_nsec: 1 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    fn worker() -> (tempfile::TempDir, Arc<Worker>) {
        let dir = tempfile::tempdir().unwrap();
        let (worker, listening) = Worker::listen(dir.path());
        listening.unwrap();
        (dir, worker)
    }

    #[test]
    fn the_last_file_counts_and_links_and_folders_do_not() {
        let (dir, worker) = worker();
        assert_eq!(worker.word(), None);
        touch(dir.path(), "worker-ready", 10);
        touch(dir.path(), "worker-idle", 20);
        assert_eq!(worker.word(), Some(Word::Idle));
        touch(dir.path(), "worker-ready", 30);
        assert_eq!(worker.word(), Some(Word::Ready));
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap() - Duration::from_secs(30);
        let (_, ago) = worker.said().unwrap();
        assert!(ago >= since && ago < since + Duration::from_secs(60), "{ago:?} {since:?}");
        touch(dir.path(), "worker-idle", i64::from(u32::MAX));
        assert_eq!(worker.said(), Some((Word::Idle, Duration::ZERO)));
        fs::remove_file(dir.path().join("worker-idle")).unwrap();
        assert_eq!(worker.word(), Some(Word::Ready));
        std::os::unix::fs::symlink("/nowhere", dir.path().join("worker-busy")).unwrap();
        touch(dir.path(), "worker-busy", 40);
        assert_eq!(worker.word(), Some(Word::Ready));
        fs::remove_file(dir.path().join("worker-busy")).unwrap();
        fs::create_dir(dir.path().join("worker-busy")).unwrap();
        assert_eq!(worker.word(), Some(Word::Ready));
    }

    /// A job may be shorter than a tick of the clock, and a clock is set back now and then.
    #[test]
    fn the_last_one_counts_whatever_the_clock_says() {
        let (dir, worker) = worker();
        for second in [10, 10, 9] {
            for (name, word) in [("busy", Word::Busy), ("idle", Word::Idle), ("ready", Word::Ready)] {
                touch(dir.path(), &format!("worker-{name}"), second);
                assert_eq!(worker.word(), Some(word), "{second}");
            }
        }
        // Also where nobody looks meanwhile.
        for name in ["worker-idle", "worker-busy", "worker-idle"] {
            touch(dir.path(), name, 10);
        }
        assert_eq!(worker.word(), Some(Word::Idle));
        fs::rename(dir.path().join("worker-idle"), dir.path().join("worker-busy")).unwrap();
        assert_eq!(worker.word(), Some(Word::Busy));
    }

    #[test]
    fn what_was_said_before_counts_and_so_does_the_newest_where_not_all_is_known() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), "worker-ready", 10);
        touch(dir.path(), "worker-busy", 9);
        assert_eq!(Worker::listen(dir.path()).0.word(), Some(Word::Ready));
        let deaf = Worker {
            folder: dir.path().to_owned(),
            socket: None,
            watch: None,
            words: Mutex::new(Words::default()),
        };
        assert_eq!(deaf.word(), Some(Word::Ready));
        touch(dir.path(), "worker-idle", 11);
        assert_eq!(deaf.word(), Some(Word::Idle));
    }

    #[test]
    fn a_word_on_the_socket_counts_until_a_file_is_touched() {
        let (dir, worker) = worker();
        touch(dir.path(), "worker-ready", 10);
        let sender = UnixDatagram::unbound().unwrap();
        let path = dir.path().join("worker.sock");
        for text in ["nonsense", "busy\n"] {
            sender.send_to(text.as_bytes(), &path).unwrap();
        }
        // It is there when it was sent.
        assert_eq!(worker.word(), Some(Word::Busy));
        touch(dir.path(), "worker-idle", 20);
        assert_eq!(worker.word(), Some(Word::Idle));
        fs::remove_file(dir.path().join("worker-idle")).unwrap();
        assert_eq!(worker.word(), Some(Word::Busy));
        // The same word on both ways: what was said on the socket holds on.
        touch(dir.path(), "worker-busy", 30);
        fs::remove_file(dir.path().join("worker-busy")).unwrap();
        assert_eq!(worker.word(), Some(Word::Busy));
    }

    #[test]
    fn files_of_another_folder_in_its_place_count() {
        let (dir, worker) = worker();
        touch(dir.path(), "worker-ready", 10);
        assert_eq!(worker.word(), Some(Word::Ready));
        fs::remove_dir_all(dir.path()).unwrap();
        fs::create_dir(dir.path()).unwrap();
        assert_eq!(worker.word(), None);
        touch(dir.path(), "worker-idle", 20);
        assert_eq!(worker.word(), Some(Word::Idle));
    }
}
