//! What a command started, and its end: whatever it left behind ends with it.
//!
//! With a cgroup that is all of it. Without one, a process that has made itself a session of its own is not found again.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use mvm_guest::Control;
use mvm_proto::message::Size;

use super::{
    cgroup::Cgroup,
    children::{Children, send},
    launch, spawn,
};

/// How long those that were hung up on may take to end.
const MOMENT: Duration = Duration::from_secs(1);
/// How long it is looked whether those that were killed are dead: nothing but the kernel keeps them.
const DEATH: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// A command, and all that it started.
pub struct Session {
    leader: i32,
    cgroup: Option<Cgroup>,
    children: Arc<Children>,
}

impl Session {
    pub fn new(leader: i32, cgroup: Option<Cgroup>, children: Arc<Children>) -> Self {
        Self { leader, cgroup, children }
    }

    /// Sends the command and its process group a signal.
    pub fn signal(&self, number: i32) {
        self.children.signal(self.leader, number);
    }

    /// Ends all of it: they are hung up on, and killed a moment later. Does not wait for it.
    pub fn end(self: Arc<Self>) {
        let left = self.members();
        if left.is_empty() {
            return;
        }
        for signal in [libc::SIGHUP, libc::SIGCONT] {
            left.iter().for_each(|&pid| send(pid, signal));
        }
        let copy = self.clone();
        let wait = move || {
            if !copy.gone_within(MOMENT) {
                copy.kill();
            }
        };
        if spawn("hang-up", wait).is_err() {
            self.kill();
        }
    }

    /// Kills all of it, and waits until they are dead.
    pub fn kill(&self) {
        let deadline = Instant::now() + DEATH;
        while Instant::now() < deadline {
            match &self.cgroup {
                Some(cgroup) => cgroup.kill(),
                None => self.members().into_iter().for_each(|pid| send(pid, libc::SIGKILL)),
            }
            if self.gone_within(LOOK) {
                return;
            }
        }
    }

    fn gone_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if self.members().is_empty() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::park_timeout(LOOK);
        }
    }

    /// Who is alive of it.
    fn members(&self) -> Vec<i32> {
        match &self.cgroup {
            Some(cgroup) => cgroup.members(),
            None => processes().filter(|stat| stat.session == self.leader).map(|stat| stat.pid).collect(),
        }
    }
}

/// What `/proc/<pid>/stat` says of a process.
pub struct Stat {
    pub pid: i32,
    pub parent: i32,
    pub session: i32,
}

/// All processes that are not dead yet.
pub fn processes() -> impl Iterator<Item = Stat> {
    let folder = fs::read_dir("/proc").into_iter().flatten().flatten();
    folder.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        parse(pid, &fs::read_to_string(entry.path().join("stat")).ok()?)
    })
}

/// The name, in brackets, may hold anything.
fn parse(pid: i32, stat: &str) -> Option<Stat> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').take(4).collect();
    let [state, parent, _, session] = fields[..] else { return None };
    let dead = matches!(state, "Z" | "X");
    (!dead).then_some(Stat { pid, parent: parent.parse().ok()?, session: session.parse().ok()? })
}

/// What the agent's library does with a command that runs.
pub struct Handle {
    pub session: Arc<Session>,
    /// Its terminal, where it has one.
    pub terminal: Option<fs::File>,
}

impl Control for Handle {
    fn signal(&self, number: i32) {
        self.session.signal(number);
    }

    fn resize(&self, size: Size) {
        // Where there is none, nothing is resized.
        let _ = self.terminal.as_ref().map(|terminal| launch::resize(terminal, size));
    }

    fn hang_up(&self) {
        self.session.clone().end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = parse(7, "7 (a) S 1 2 (b) R 3 4 5 0 -1").unwrap();
        assert_eq!((stat.parent, stat.session), (3, 5));
        assert!(parse(7, "7 (gone) Z 3 4 5 0 -1").is_none());
        assert!(parse(7, "7 (cut").is_none());
    }
}
