//! Connections to a guest through its VMM's vsock socket: the handshake, and limits on every wait.
//!
//! Source: Firecracker's `docs/vsock.md`. `CONNECT <port>\n` is answered `OK <port>\n` once the guest has taken the connection.
//! Where nobody listens it is closed; where the guest's driver is not up yet, or the guest is paused, nothing is said.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::connect_in;

/// How long one attempt may take where more are to come: a guest whose driver was not up when it was asked never answers.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// A connection to a port of a guest.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    limit: Limit,
}

/// How long the other side may take.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// For ever.
    None,
    /// Until then, with everything.
    Until(Instant),
    /// So long, each time.
    Silence(Duration),
}

impl Connection {
    /// Connects to a guest's port through the socket `name` in its VMM's directory, once.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] where nobody answers before the deadline, [`io::ErrorKind::ConnectionRefused`] where nobody
    /// listens.
    pub fn open(directory: &Path, name: &str, port: u32, deadline: Instant) -> io::Result<Self> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let stream = connect_in(directory, name, left)?;
        let mut connection = Self { stream, limit: Limit::Until(deadline) };
        connection.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut line = Vec::new();
        // What follows belongs to whoever listens: not a byte more is read.
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            match connection.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::ConnectionRefused.into()),
                Ok(_) => line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Err(error) => return Err(error),
            }
            if line.len() > 32 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        match line.starts_with(b"OK ") {
            true => Ok(connection),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The same, again and again until somebody listens: for a guest that boots or has just been loaded. `is_there` says
    /// whether that can still come to be.
    ///
    /// # Errors
    /// As [`Connection::open`], at the deadline or once it cannot come to be.
    pub fn await_open(
        directory: &Path,
        name: &str,
        port: u32,
        deadline: Instant,
        is_there: impl Fn() -> bool,
    ) -> io::Result<Self> {
        loop {
            let attempt = deadline.min(Instant::now() + ATTEMPT);
            match Self::open(directory, name, port, attempt) {
                Ok(connection) => return Ok(connection),
                Err(error) if Instant::now() + PAUSE >= deadline || !is_there() => return Err(error),
                // There is no event for a guest's listener.
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Until when everything has to be said; `None`: for ever.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.limit = deadline.map_or(Limit::None, Limit::Until);
    }

    /// How long the other side may be silent, or not listen, each time.
    pub fn set_silence(&mut self, limit: Duration) {
        self.limit = Limit::Silence(limit);
    }

    /// Whether there is something to read, waited for so long.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] at the connection's own limit.
    pub fn is_readable(&self, limit: Duration) -> io::Result<bool> {
        let limit = self.left()?.map_or(limit, |left| left.min(limit));
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Another handle on the same connection, with a limit of its own.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, limit: self.limit })
    }

    /// Ends it, for all handles.
    pub fn close(&self) {
        // One that the guest has closed is closed.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.limit {
            Limit::None => Ok(None),
            Limit::Silence(limit) => Ok(Some(limit)),
            Limit::Until(deadline) => match deadline.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
                left => Ok(Some(left)),
            },
        }
    }
}

/// The kernel says so where a limit of a socket has passed.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // The limit is for all of it: who sends a byte now and then is as silent as who sends none.
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
