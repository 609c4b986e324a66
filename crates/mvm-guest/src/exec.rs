//! Carries a command's input and output between it and the connection, in one thread.
//!
//! Input that the command does not take yet is held. The host sends no more than a window of it, so that what comes behind, a
//! signal, is heard; of a host that sends more nothing is read until the command has taken some. Where the connection ends
//! before the command, the command is hung up on: nobody would ever hear of it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
};

use mvm_proto::{
    Answer, Frames, Input, Kind, ProtoError,
    message::{Exec, Exited},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};

use crate::system::{Process, System};

/// What is read from a command at once.
const PIECE: usize = 64 << 10;
/// So many pieces are in a pipe or terminal at most when a command ends: whoever goes on writing is not waited for.
const LAST_PIECES: usize = 16;
/// Bytes of input that are held at most, for a host that keeps to it.
const WINDOW: usize = 128 << 10;
/// The host hears of so many bytes at once that they are taken.
const TAKEN_AT_ONCE: u64 = WINDOW as u64 / 4;
/// The host has closed the connection. A vsock tells nothing else of it where no input is asked for.
#[cfg(target_os = "linux")]
const GONE: PollFlags = PollFlags::RDHUP;
#[cfg(not(target_os = "linux"))]
const GONE: PollFlags = PollFlags::empty();

/// Input on its way to a command.
struct Stdin {
    file: Option<File>,
    held: VecDeque<u8>,
    /// There is no more after what is held.
    ended: bool,
    /// What the command took, or never will, since the host last heard of it.
    taken: u64,
}

/// Runs a command for whoever is connected.
///
/// # Errors
/// Where the connection fails; the command is ended then.
pub(crate) fn run(system: &impl System, connection: &File, command: &Exec) -> Result<(), ProtoError> {
    let mut frames = Frames::on(connection);
    let started = {
        let _running = system.running();
        system.spawn(command)
    };
    let mut process = match started {
        Ok(process) => process,
        Err(refused) => return frames.send(&Answer::Refused(refused)),
    };
    let carried = carry(system, &mut frames, &mut process);
    match carried {
        Ok(exited) => {
            // What it left behind in its session ends with it, as on a terminal that is closed.
            process.control.hang_up();
            drop(system.running());
            frames.send(&Answer::Exited(exited))
        }
        Err(error) => {
            process.control.hang_up();
            Err(error)
        }
    }
}

fn carry(
    system: &impl System,
    frames: &mut Frames<&File>,
    process: &mut Process,
) -> Result<Exited, ProtoError> {
    frames.send(&Answer::Started { pid: process.pid, window: WINDOW as u64 })?;
    let mut stdin = Stdin { file: process.stdin.take(), held: VecDeque::new(), ended: false, taken: 0 };
    for file in [stdin.file.as_ref(), Some(&process.stdout), process.stderr.as_ref()].into_iter().flatten() {
        set_nonblocking(file)?;
    }
    let mut outputs =
        [Some((&process.stdout, Kind::Data)), process.stderr.as_ref().map(|stderr| (stderr, Kind::Errors))];
    loop {
        if stdin.taken >= TAKEN_AT_ONCE {
            frames.send(&Answer::Took { bytes: std::mem::take(&mut stdin.taken) })?;
        }
        let may_read = stdin.held.len() <= WINDOW;
        let mut fds = vec![
            watch(process.exited.as_fd(), PollFlags::IN),
            watch(frames.stream().as_fd(), if may_read { PollFlags::IN | GONE } else { GONE }),
        ];
        let input = stdin.file.as_ref().filter(|_| !stdin.held.is_empty());
        let takes = input.map(|file| {
            fds.push(watch(file.as_fd(), PollFlags::OUT));
            fds.len() - 1
        });
        let first = fds.len();
        fds.extend(outputs.iter().flatten().map(|(file, _)| watch(file.as_fd(), PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        // Not held: who is written to may take its time, and a pause must not wait for that.
        drop(system.running());
        let mut index = first;
        for output in &mut outputs {
            let Some((file, kind)) = *output else { continue };
            if !ready[index].is_empty() && !forward(frames, file, kind)? {
                *output = None;
            }
            index += 1;
        }
        if !ready[0].is_empty() {
            let exited = ended(&process.exited)?;
            // What it wrote is in the pipes: all of it is sent, and what others may still write is not waited for.
            for (file, kind) in outputs.into_iter().flatten() {
                for _ in 0..LAST_PIECES {
                    if !has_more(file) || !forward(frames, file, kind)? {
                        break;
                    }
                }
            }
            return Ok(exited);
        }
        if takes.is_some_and(|takes| !ready[takes].is_empty()) {
            stdin.write();
        }
        if ready[1].intersects(PollFlags::IN) && may_read {
            hear(frames, &mut stdin, process)?;
        } else if ready[1].intersects(PollFlags::HUP | PollFlags::ERR | GONE) {
            return Err(ProtoError::Closed);
        }
    }
}

/// One frame of the host's.
fn hear(frames: &mut Frames<&File>, stdin: &mut Stdin, process: &Process) -> Result<(), ProtoError> {
    match frames.advance()? {
        None => Err(ProtoError::Closed),
        Some(Kind::Data) => {
            match frames.content() {
                [] => stdin.ended = true,
                bytes => stdin.held.extend(bytes),
            }
            stdin.write();
            Ok(())
        }
        Some(Kind::Errors) => Err(ProtoError::Unexpected),
        Some(Kind::Message) => {
            match frames.parse()? {
                Input::Resize(size) => process.control.resize(size),
                Input::Signal { number } => process.control.signal(number),
                Input::Unknown => {}
            }
            Ok(())
        }
    }
}

impl Stdin {
    /// Writes what the command takes.
    fn write(&mut self) {
        while let (Some(file), false) = (&self.file, self.held.is_empty()) {
            match rustix::io::write(file, self.held.as_slices().0) {
                Ok(count) => {
                    self.held.drain(..count);
                    self.taken += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // It does not listen any more: what is on its way is nobody's.
                Err(_) => self.file = None,
            }
        }
        self.taken += self.held.len() as u64;
        // Many commands that were given much at once keep nothing of it.
        self.held = VecDeque::new();
        if self.ended {
            self.file = None;
        }
    }
}

/// Sends on what is there. False where there will be no more.
fn forward(frames: &mut Frames<&File>, file: &File, kind: Kind) -> Result<bool, ProtoError> {
    let mut ended = false;
    frames.data_from(kind, PIECE, |space| match (&mut &*file).read(space) {
        Ok(0) => {
            ended = true;
            Ok(0)
        }
        Ok(count) => Ok(count),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        // A terminal whose last program has closed it says EIO.
        Err(_) => {
            ended = true;
            Ok(0)
        }
    })?;
    Ok(!ended)
}

fn has_more(file: &File) -> bool {
    let mut fds = [watch(file.as_fd(), PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1..)) && fds[0].revents().intersects(PollFlags::IN)
}

fn ended(mut exited: &File) -> Result<Exited, ProtoError> {
    let mut bytes = [0; 8];
    match exited.read_exact(&mut bytes) {
        Ok(()) => Ok(Process::decode(bytes)),
        Err(error) => Err(error.into()),
    }
}

fn watch(file: BorrowedFd<'_>, flags: PollFlags) -> PollFd<'_> {
    PollFd::from_borrowed_fd(file, flags)
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    Ok(fcntl_setfl(file, fcntl_getfl(file)? | OFlags::NONBLOCK)?)
}
