//! A VMM's process: its start, its API, its end.

use std::{
    cell::RefCell,
    fs::{self, File},
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde_json::Value;

use super::{Answer, Client};

/// The longest that anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A process under test. It is killed when it goes out of scope.
pub struct Vmm {
    dir: PathBuf,
    child: RefCell<Child>,
    pidfd: OwnedFd,
    /// Becomes readable when something changes in the folder.
    changes: OwnedFd,
    client: RefCell<Option<Client>>,
}

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// What it wrote, with `T` in place of each time and `${DIR}` in place of the folder.
    pub stdout: String,
    pub stderr: String,
}

impl Vmm {
    /// Starts it with its output in files of the folder.
    #[track_caller]
    pub(super) fn spawn(dir: &Path, mut command: Command) -> Self {
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
        let changes = changes.expect("inotify");
        let wanted = inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE;
        inotify::add_watch(&changes, dir, wanted).expect("a watch");
        let file = |name: &str| File::create(dir.join(name)).expect("an output file");
        let child = command.stdout(file("stdout")).stderr(file("stderr")).spawn();
        let child = child.expect("the VMM starts");
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
        let child = RefCell::new(child);
        Self { dir: dir.to_owned(), child, pidfd, changes, client: RefCell::new(None) }
    }

    /// Waits until something is so; looks again at each change in the folder, and fails when the VMM ends.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            let mut fds =
                [PollFd::new(&self.changes, PollFlags::IN), PollFd::new(&self.pidfd, PollFlags::IN)];
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("seconds");
            if poll(&mut fds, Some(&left)) == Ok(0) {
                panic!("not within {PATIENCE:?}: {what}");
            }
            let ended = !fds[1].revents().is_empty();
            drain(&self.changes);
            assert!(!ended || is_so(), "the VMM ended before: {what}");
        }
    }

    /// Waits for the API socket to be there and to listen.
    #[track_caller]
    pub fn wait_for_api(&self, socket: &str) {
        // the log line comes after the socket listens, so there is a change in the folder to wake up for
        let path = self.dir.join(socket);
        self.wait_until("the API answers", || match Client::connect(&path) {
            Ok(client) => self.client.replace(Some(client)).is_none(),
            Err(_) => false,
        });
    }

    /// Waits for a file to have at least so many bytes.
    #[track_caller]
    pub fn wait_for_bytes(&self, name: &str, bytes: u64) {
        let path = self.dir.join(name);
        self.wait_until(&format!("{name} has {bytes} bytes"), || {
            fs::metadata(&path).is_ok_and(|meta| meta.len() >= bytes)
        });
    }

    /// Another connection to the API.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(&self.dir.join("api.sock")).expect("the API takes a connection")
    }

    /// Sends a request with a body, or none, and returns the answer.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        let mut client = self.client.borrow_mut();
        client.as_mut().expect("a VMM with an API").request(method, path, body)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    #[track_caller]
    pub fn put(&self, path: &str, body: Value) -> Answer {
        self.send("PUT", path, Some(&body.to_string()))
    }

    #[track_caller]
    pub fn patch(&self, path: &str, body: Value) -> Answer {
        self.send("PATCH", path, Some(&body.to_string()))
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None)
    }

    /// Sends a body as text.
    #[track_caller]
    pub fn put_text(&self, path: &str, body: &str) -> Answer {
        self.send("PUT", path, Some(body))
    }

    /// Sends a body as text.
    #[track_caller]
    pub fn patch_text(&self, path: &str, body: &str) -> Answer {
        self.send("PATCH", path, Some(body))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.pidfd, signal).expect("a signal");
    }

    /// Kills it as a crash would.
    pub fn kill(&self) -> Ended {
        self.signal(Signal::KILL);
        self.end()
    }

    /// Does something with it, then kills it.
    pub fn kill_after(self, what: impl FnOnce(&Self)) {
        what(&self);
        self.kill();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(&self) -> Ended {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("seconds");
        assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "the VMM does not end");
        let status = self.child.borrow_mut().wait().expect("an ended process");
        Ended {
            code: status.code(),
            signal: status.signal(),
            stdout: self.output("stdout"),
            stderr: self.output("stderr"),
        }
    }

    /// What it wrote so far, with `T` in place of each time and `${DIR}` in place of the folder.
    pub fn output(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).replace(&self.dir.display().to_string(), "${DIR}");
        text.split_inclusive('\n').map(without_time).collect()
    }
}

/// A log line without the moment in front.
fn without_time(line: &str) -> String {
    match line.split_once(' ') {
        Some((time, rest)) if time.len() == 29 && time.as_bytes()[10] == b'T' => format!("T {rest}"),
        _ => line.to_owned(),
    }
}

fn drain(changes: &OwnedFd) {
    let mut buffer = [0; 4096];
    while rustix::io::read(changes, &mut buffer).is_ok_and(|count| count > 0) {}
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        // it may have ended already
        let _ = child.kill();
        let _ = child.wait();
        if std::thread::panicking() {
            println!("stdout of the VMM:\n{}", self.output("stdout"));
            println!("stderr of the VMM:\n{}", self.output("stderr"));
        }
    }
}
