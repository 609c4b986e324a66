//! What the workload says of itself: by the newest of the files `/run/mvm/worker-{ready,idle,busy}`, or in a datagram to
//! `/run/mvm/worker.sock`. Whatever is newer counts.

use std::{
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mvm_proto::message::Worker as Word;
use rustix::{
    fs::{AtFlags, CWD, Timespec, Timestamps, utimensat},
    time::{ClockId, clock_gettime},
};

use super::spawn;

/// Where a workload says how it is.
pub const FOLDER: &str = "/run/mvm";
const WORDS: [(&str, Word); 3] = [("ready", Word::Ready), ("idle", Word::Idle), ("busy", Word::Busy)];

/// Seconds and nanoseconds, as files have them.
type Time = (i64, i64);

/// What was said.
pub struct Worker {
    folder: PathBuf,
    /// The last word on the socket.
    heard: Mutex<Option<(Time, Word)>>,
}

impl Worker {
    /// Listens in a folder, which is made.
    ///
    /// # Errors
    /// Where there can be no socket: files count all the same, in what comes beside the error.
    pub fn listen(folder: &Path) -> (Arc<Self>, io::Result<()>) {
        let worker = Arc::new(Self { folder: folder.to_owned(), heard: Mutex::new(None) });
        let listening = worker.open().and_then(|socket| {
            let copy = worker.clone();
            spawn("worker", move || copy.hear(&socket))
        });
        (worker, listening)
    }

    fn open(&self) -> io::Result<UnixDatagram> {
        fs::create_dir_all(&self.folder)?;
        // Whoever the workload is may say something; nobody takes another one's file away.
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o1777))?;
        let path = self.folder.join("worker.sock");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(socket)
    }

    fn hear(&self, socket: &UnixDatagram) {
        let mut buffer = [0; 64];
        loop {
            let Ok(count) = socket.recv(&mut buffer) else {
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            };
            let said = buffer[..count].trim_ascii();
            if let Some((_, word)) = WORDS.iter().find(|(name, _)| name.as_bytes() == said) {
                // The clock that files are stamped by.
                let now = clock_gettime(ClockId::RealtimeCoarse);
                let heard = Some(((now.tv_sec, now.tv_nsec), *word));
                *self.heard() = heard;
            }
        }
    }

    /// The newest word, and how long ago it was said: no time at all where that lies ahead.
    pub fn said(&self) -> Option<(Word, Duration)> {
        let heard = *self.heard();
        let files = self.files().into_iter().map(|(_, time, word)| (time, word));
        let ((seconds, nanos), word) = heard.into_iter().chain(files).max_by_key(|(time, _)| *time)?;
        let now = clock_gettime(ClockId::Realtime);
        let since = |time: i64, part: i64| i128::from(time) * 1_000_000_000 + i128::from(part);
        let ago = since(now.tv_sec, now.tv_nsec) - since(seconds, nanos);
        Some((word, Duration::from_nanos(u64::try_from(ago.max(0)).unwrap_or(u64::MAX))))
    }

    fn heard(&self) -> MutexGuard<'_, Option<(Time, Word)>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that are there: links and folders of that name say nothing.
    fn files(&self) -> Vec<(PathBuf, Time, Word)> {
        let file = |(name, word): &(&str, Word)| {
            let path = self.folder.join(format!("worker-{name}"));
            let meta = fs::symlink_metadata(&path).ok()?;
            meta.is_file().then(|| (path, (meta.mtime(), meta.mtime_nsec()), *word))
        };
        WORDS.iter().filter_map(file).collect()
    }

    /// The clock was set back: what was said before it counts as older than what is said from now on.
    pub fn clock_was_set(&self) {
        let now = clock_gettime(ClockId::Realtime);
        let mut heard = self.heard();
        let mut files = self.files();
        files.sort_by_key(|(_, time, _)| *time);
        let said: Vec<Time> =
            heard.iter().map(|(time, _)| *time).chain(files.iter().map(|file| file.1)).collect();
        if said.iter().all(|time| *time <= (now.tv_sec, now.tv_nsec)) {
            return;
        }
        // In the order in which it was said, in the last seconds.
        let rank = |time: &Time| said.iter().filter(|other| *other > time).count() as i64 + 1;
        if let Some((time, _)) = heard.as_mut() {
            *time = (now.tv_sec - rank(time), 0);
        }
        for (path, time, _) in &files {
            let before = Timespec { tv_sec: now.tv_sec - rank(time), tv_nsec: 0 };
            let times = Timestamps { last_access: before, last_modification: before };
            // One that has gone meanwhile says nothing.
            let _ = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    impl Worker {
        fn word(&self) -> Option<Word> {
            self.said().map(|(word, _)| word)
        }
    }

    fn touch(folder: &Path, name: &str, seconds: i64) {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_err() {
            fs::write(&path, "").unwrap();
        }
        let time = Timespec { tv_sec: seconds, tv_nsec: 1 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    #[test]
    fn the_newest_file_counts_and_links_and_folders_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let worker = Worker { folder: dir.path().to_owned(), heard: Mutex::new(None) };
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
        std::os::unix::fs::symlink("/nowhere", dir.path().join("worker-busy")).unwrap();
        touch(dir.path(), "worker-busy", 40);
        assert_eq!(worker.word(), Some(Word::Ready));
        fs::remove_file(dir.path().join("worker-busy")).unwrap();
        fs::create_dir(dir.path().join("worker-busy")).unwrap();
        assert_eq!(worker.word(), Some(Word::Ready));
    }

    #[test]
    fn a_clock_that_is_set_back_changes_no_order() {
        let dir = tempfile::tempdir().unwrap();
        let worker = Worker { folder: dir.path().to_owned(), heard: Mutex::new(None) };
        let future = i64::from(u32::MAX);
        touch(dir.path(), "worker-ready", future);
        touch(dir.path(), "worker-busy", future + 10);
        *worker.heard() = Some(((future + 5, 0), Word::Idle));
        worker.clock_was_set();
        assert_eq!(worker.word(), Some(Word::Busy));
        fs::remove_file(dir.path().join("worker-busy")).unwrap();
        assert_eq!(worker.word(), Some(Word::Idle));
        // What is said now is the newest.
        fs::write(dir.path().join("worker-ready"), "again").unwrap();
        assert_eq!(worker.word(), Some(Word::Ready));
        let before = fs::metadata(dir.path().join("worker-ready")).unwrap().mtime_nsec();
        worker.clock_was_set();
        assert_eq!(fs::metadata(dir.path().join("worker-ready")).unwrap().mtime_nsec(), before);
    }

    #[test]
    fn a_word_on_the_socket_counts_until_a_file_is_newer() {
        let dir = tempfile::tempdir().unwrap();
        let (worker, listening) = Worker::listen(dir.path());
        listening.unwrap();
        touch(dir.path(), "worker-ready", 10);
        let sender = UnixDatagram::unbound().unwrap();
        let path = dir.path().join("worker.sock");
        for text in ["nonsense", "busy\n"] {
            sender.send_to(text.as_bytes(), &path).unwrap();
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while worker.word() != Some(Word::Busy) {
            assert!(std::time::Instant::now() < deadline, "it was not heard");
            std::thread::yield_now();
        }
        touch(dir.path(), "worker-idle", i64::from(u32::MAX));
        assert_eq!(worker.word(), Some(Word::Idle));
    }
}
