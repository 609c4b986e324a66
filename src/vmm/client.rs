//! A blocking client of a VMM's API socket: one connection, one call at a time, every wait limited.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, inotify},
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use super::wire::{Call, Fault, InstanceInfo};
use crate::infra::{
    beneath,
    text::{last_lines, printable},
};

/// The API socket's name in the VMM's directory.
pub const API_SOCKET: &str = "api.sock";
/// The VMM's log in its directory.
pub const LOG: &str = "vmm.log";
/// How long one call may take: InstanceStart of a guest with much memory is the longest.
pub const CALL_LIMIT: Duration = Duration::from_secs(30);
/// A VMM that has nothing else to do answers within a millisecond.
const AT_ONCE: Duration = Duration::from_millis(500);
/// What [`VmmError::Io`] says where there was no connection.
const CONNECT: &str = "connect to";
/// An answer is longer than this only if it is not Firecracker's.
const MAX_ANSWER: usize = 1 << 20;

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// It answered that it would not.
    #[error("the VMM refused {request}: {message}")]
    Refused {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// Its `fault_message`.
        message: String,
    },
    /// It ended while it was asked.
    #[error("the VMM ended during {request}{log}")]
    Ended {
        /// What was asked.
        request: String,
        /// The last lines of its log, each on a line of its own.
        log: String,
    },
    /// It did not answer in time.
    #[error("the VMM did not answer {request} within {} s{log}", limit.as_secs())]
    TimedOut {
        /// What was asked.
        request: String,
        /// The limit.
        limit: Duration,
        /// The last lines of its log, each on a line of its own.
        log: String,
    },
    /// It answered something that is no answer.
    #[error("the VMM's answer to {request} makes no sense: {why}")]
    Nonsense {
        /// What was asked.
        request: String,
        /// What is wrong with it.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl VmmError {
    /// Is the VMM as it was before it was asked? After any other error that is not known.
    pub fn changed_nothing(&self) -> bool {
        match self {
            Self::Refused { .. } => true,
            Self::Io { action, .. } => *action == CONNECT,
            Self::Ended { .. } | Self::TimedOut { .. } | Self::Nonsense { .. } => false,
        }
    }
}

/// A connection to a VMM's API.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    directory: PathBuf,
    limit: Duration,
}

impl Client {
    /// Connects to the VMM in `directory`, waiting until its socket is there, it has ended, or `limit` has passed.
    ///
    /// # Errors
    /// [`VmmError::Ended`] carries the last lines of the VMM's log.
    pub fn connect(directory: &Path, pidfd: &OwnedFd, limit: Duration) -> Result<Self, VmmError> {
        let deadline = Instant::now() + limit;
        let request = || "the connection to its API".to_owned();
        let io_error = |action| {
            move |error: rustix::io::Errno| VmmError::Io {
                action,
                path: directory.to_path_buf(),
                source: error.into(),
            }
        };
        // The watch comes first: a socket made between the attempt and the watch would be missed.
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(io_error("watch"))?;
        inotify::add_watch(&watch, directory, inotify::WatchFlags::CREATE).map_err(io_error("watch"))?;
        loop {
            match connect_in(directory, API_SOCKET, CALL_LIMIT) {
                Ok(stream) => {
                    let client = Self::on(stream, directory)?;
                    // Closing a watch waits for a grace period of the kernel, 6 ms: not in the way of the guest.
                    std::thread::spawn(move || drop(watch));
                    return Ok(client);
                }
                // Bound but not listening yet: there is no event for that, and it takes microseconds.
                Err(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < deadline =>
                {
                    if has_ended(pidfd) {
                        return Err(VmmError::Ended { request: request(), log: log_tail(directory) });
                    }
                    std::thread::sleep(Duration::from_micros(50));
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(VmmError::Io { action: CONNECT, path: directory.join(API_SOCKET), source });
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            let mut fds = [PollFd::new(&watch, PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => {
                    return Err(VmmError::TimedOut { request: request(), limit, log: log_tail(directory) });
                }
                Ok(_) if !fds[1].revents().is_empty() => {
                    return Err(VmmError::Ended { request: request(), log: log_tail(directory) });
                }
                Ok(_) => drop(rustix::io::read(&watch, &mut [0; 1024][..])),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io_error("wait for")(error)),
            }
        }
    }

    /// Connects to a VMM that should be listening.
    ///
    /// # Errors
    /// When it is not.
    pub fn connect_now(directory: &Path) -> Result<Self, VmmError> {
        let stream = connect_in(directory, API_SOCKET, CALL_LIMIT).map_err(|source| VmmError::Io {
            action: CONNECT,
            path: directory.join(API_SOCKET),
            source,
        })?;
        Self::on(stream, directory)
    }

    /// Does the VMM in `directory` answer at once? For who has no time to wait for one that does not.
    pub fn answers(directory: &Path) -> bool {
        let ask = |stream| {
            let mut client = Self::on(stream, directory)?;
            client.set_limit(AT_ONCE)?;
            client.info()
        };
        connect_in(directory, API_SOCKET, AT_ONCE).is_ok_and(|stream| ask(stream).is_ok())
    }

    fn on(stream: UnixStream, directory: &Path) -> Result<Self, VmmError> {
        let mut client = Self { stream, directory: directory.to_path_buf(), limit: CALL_LIMIT };
        client.set_limit(CALL_LIMIT)?;
        Ok(client)
    }

    fn set_limit(&mut self, limit: Duration) -> Result<(), VmmError> {
        self.limit = limit;
        self.stream
            .set_read_timeout(Some(limit))
            .and_then(|()| self.stream.set_write_timeout(Some(limit)))
            .map_err(|source| VmmError::Io {
                action: "set a limit for",
                path: self.directory.clone(),
                source,
            })
    }

    /// Makes one call.
    ///
    /// # Errors
    /// [`VmmError::Refused`] carries the VMM's own words.
    pub fn call(&mut self, call: &Call) -> Result<(), VmmError> {
        let (method, path, body) = call
            .request()
            .map_err(|error| VmmError::Nonsense { request: format!("{call:?}"), why: error.to_string() })?;
        self.exchange(method, &path, &body).map(drop)
    }

    /// Makes one call that may take longer than others: one that writes or reads much.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_within(&mut self, call: &Call, limit: Duration) -> Result<(), VmmError> {
        self.set_limit(limit)?;
        let called = self.call(call);
        self.set_limit(CALL_LIMIT)?;
        called
    }

    /// Asks who the VMM is and what it does.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn info(&mut self) -> Result<InstanceInfo, VmmError> {
        let body = self.exchange("GET", "/", b"")?;
        serde_json::from_slice(&body)
            .map_err(|error| VmmError::Nonsense { request: "GET /".into(), why: error.to_string() })
    }

    fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, VmmError> {
        let request = format!("{method} {path}");
        let mut message = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        message.extend_from_slice(body);
        let mut timed = Timed { stream: &self.stream, deadline: Instant::now() + self.limit };
        let (status, answer) = (&self.stream)
            .write_all(&message)
            .and_then(|()| read_answer(&mut timed))
            .map_err(|error| self.explain(&request, error))?;
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let message = match serde_json::from_slice::<Fault>(&answer) {
            Ok(fault) => fault.fault_message,
            Err(_) => String::from_utf8_lossy(&answer).trim().to_owned(),
        };
        Err(VmmError::Refused { request, status, message: printable(&message, MAX_ANSWER) })
    }

    fn explain(&self, request: &str, error: io::Error) -> VmmError {
        let request = request.to_owned();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                VmmError::TimedOut { request, limit: self.limit, log: log_tail(&self.directory) }
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                VmmError::Ended { request, log: log_tail(&self.directory) }
            }
            io::ErrorKind::InvalidData => VmmError::Nonsense { request, why: error.to_string() },
            _ => VmmError::Io { action: "talk to", path: self.directory.join(API_SOCKET), source: error },
        }
    }
}

/// Connects to a socket in a folder whose path may be longer than the 107 bytes that a socket's address holds.
///
/// # Errors
/// When there is none, or nobody listens; [`io::ErrorKind::TimedOut`] where nobody takes it within the limit.
pub fn connect_in(directory: &Path, name: &str, limit: Duration) -> io::Result<UnixStream> {
    // The directory may be a jail's: a link would have somebody else spoken to.
    let there = beneath::open(directory, name, OFlags::PATH)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Where nobody takes connections any more, and as many as may wait do, this one waits too: unix(7), so long at most.
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    match connect(&socket, &SocketAddrUnix::new(format!("/proc/self/fd/{}", there.as_raw_fd()))?) {
        Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        connected => Ok(connected.map(|()| socket.into())?),
    }
}

/// Has the process behind a pidfd ended?
pub fn has_ended(pidfd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(ready) if ready > 0)
}

/// A stream whose reads have one limit together: a VMM that sends a byte now and then is as silent as one that sends none.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        (&mut self.stream).read(buffer)
    }
}

/// Reads one HTTP response: the status and the body.
fn read_answer(stream: &mut impl Read) -> io::Result<(u16, Vec<u8>)> {
    let nonsense = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut bytes = Vec::with_capacity(1024);
    let mut chunk = [0; 4096];
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(start) =
            response.parse(&bytes).map_err(|error| nonsense(&error.to_string()))?
        {
            let status = response.code.ok_or_else(|| nonsense("no status"))?;
            let length = match response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"))
            {
                Some(header) => str::from_utf8(header.value)
                    .ok()
                    .and_then(|text| text.trim().parse::<usize>().ok())
                    .filter(|&length| length <= MAX_ANSWER)
                    .ok_or_else(|| nonsense("no usable length"))?,
                None => 0,
            };
            while bytes.len() < start + length {
                match stream.read(&mut chunk)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => bytes.extend_from_slice(&chunk[..read]),
                }
            }
            return Ok((status, bytes[start..start + length].to_vec()));
        }
        if bytes.len() > MAX_ANSWER {
            return Err(nonsense("endless headers"));
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => bytes.extend_from_slice(&chunk[..read]),
        }
    }
}

/// The last lines of the log in a VMM's directory, each after a line break; empty where there are none. The guest may
/// have a say in them: they are escaped.
pub fn log_tail(directory: &Path) -> String {
    last_lines(&beneath::tail(directory, LOG, 2048))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        read_answer(&mut &*text)
    }

    #[test]
    fn answers_with_and_without_a_body() {
        assert_eq!(answer(b"HTTP/1.1 204 \r\nServer: Firecracker API\r\n\r\n").unwrap(), (204, vec![]));
        let (status, body) = answer(b"HTTP/1.1 400 \r\nContent-Length: 2\r\n\r\n{}").unwrap();
        assert_eq!((status, body.as_slice()), (400, b"{}".as_slice()));
    }

    #[test]
    fn a_byte_now_and_then_is_no_answer() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            // It never ends by itself: it ends when nobody listens any more.
            scope.spawn(move || while theirs.write_all(b"x").is_ok() {});
            let deadline = Instant::now() + Duration::from_millis(50);
            let mut timed = Timed { stream: &ours, deadline };
            let ended = loop {
                if let Err(error) = timed.read(&mut [0]) {
                    break error.kind();
                }
            };
            assert!(matches!(ended, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock));
            drop(ours);
        });
    }

    #[test]
    fn a_cut_answer_means_that_the_vmm_ended() {
        for cut in [&b""[..], b"HTTP/1.1 20", b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{}"] {
            assert_eq!(answer(cut).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn after_a_refusal_a_vmm_is_as_it_was_and_after_silence_nobody_knows() {
        let request = || "PATCH /vm".to_owned();
        let io = |action| VmmError::Io { action, path: "x".into(), source: io::ErrorKind::Other.into() };
        let refused = VmmError::Refused { request: request(), status: 400, message: String::new() };
        assert!(refused.changed_nothing() && io(CONNECT).changed_nothing());
        let silent = VmmError::TimedOut { request: request(), limit: CALL_LIMIT, log: String::new() };
        let ended = VmmError::Ended { request: request(), log: String::new() };
        let nonsense = VmmError::Nonsense { request: request(), why: String::new() };
        for error in [silent, ended, nonsense, io("talk to")] {
            assert!(!error.changed_nothing(), "{error}");
        }
    }

    #[test]
    fn nonsense_is_no_answer() {
        for junk in [&b"hello\r\n\r\n"[..], b"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n"] {
            assert_eq!(answer(junk).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
