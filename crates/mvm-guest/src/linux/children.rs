//! Who was started, and who has ended. Every child is started and reaped here, so that no status goes to the wrong one:
//! starting and registering are one step under a lock, and who reaps takes that lock.
//!
//! PID 1 also gets the orphans of all others. They are reaped, and nobody is told.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    process::Command,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use mvm_guest::Process;
use mvm_proto::message::Exited;
use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid},
};

/// The children that are known by name.
#[derive(Default)]
pub struct Children {
    table: Mutex<Table>,
    born: Condvar,
}

#[derive(Default)]
struct Table {
    /// Those that have not been reaped, and where it is said how they ended.
    ends: BTreeMap<i32, OwnedFd>,
    /// Nobody is started any more.
    closed: bool,
}

/// A child that was started.
pub struct Child {
    pub pid: i32,
    /// Becomes readable when it has ended, as [`Process::encode`] writes it.
    pub exited: OwnedFd,
}

impl Children {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child.
    ///
    /// # Errors
    /// Where it cannot be started, or the machine is being switched off.
    pub fn start(&self, command: &mut Command) -> io::Result<Child> {
        let (exited, end) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut table = self.table();
        if table.closed {
            return Err(io::Error::other("the machine is being switched off"));
        }
        // Where the program cannot be executed, the child is reaped in here: the lock keeps others from doing it.
        let child = command.spawn()?;
        let pid = child.id().cast_signed();
        table.ends.insert(pid, end);
        self.born.notify_all();
        Ok(Child { pid, exited })
    }

    /// Starts nobody any more.
    pub fn close(&self) {
        self.table().closed = true;
    }

    /// Is nobody started any more?
    pub fn is_closed(&self) -> bool {
        self.table().closed
    }

    /// Sends a signal to a child and its process group, unless it has ended.
    pub fn signal(&self, pid: i32, number: i32) {
        let table = self.table();
        // One that is not reaped yet has its number still for itself.
        if table.ends.contains_key(&pid) {
            send(-pid, number);
        }
    }

    /// Is there no child at all, not even an orphan of somebody else?
    pub fn none_left() -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        matches!(waitid(WaitId::All, options), Err(Errno::CHILD))
    }

    /// Reaps, for ever.
    pub fn reap(&self) {
        loop {
            match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) => self.bury(),
                // Without a child there are no orphans either: nothing comes before somebody is started.
                Err(Errno::CHILD) => {
                    let table = self.table();
                    if table.ends.is_empty() {
                        drop(self.born.wait(table));
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn bury(&self) {
        let mut table = self.table();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let (Some(end), Some(exited)) =
                (table.ends.remove(&pid.as_raw_nonzero().get()), exited(status))
            {
                // An empty pipe takes eight bytes; who does not listen any more does not matter.
                let _ = rustix::io::write(&end, &Process::encode(exited));
            }
        }
    }
}

fn exited(status: WaitStatus) -> Option<Exited> {
    let code = status.exit_status().map(Exited::Code);
    code.or_else(|| status.terminating_signal().map(Exited::Signal))
}

/// Sends a signal, as kill(2): to a process, to a group where the number is negative, to all where it is -1.
pub fn send(target: i32, number: i32) {
    // SAFETY: a plain system call. Numbers that are no signals are refused by the kernel.
    unsafe { libc::kill(target, number) };
}
