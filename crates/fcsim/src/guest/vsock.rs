//! Connections of the host to the guest over vsock: the handshake on the Unix socket, and the guest's services.
//!
//! Port 52 is the agent's, or echoes in a guest without one; port 1024 is the simulator's own control channel; nobody
//! listens on the others.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::event::{PollFd, PollFlags, poll};

use super::{Shared, agent, control, lock, spawn};

/// The agent, or the echo.
const AGENT: u32 = mvm_proto::PORT;
/// The control channel.
const CONTROL: u32 = 1024;
/// Longest line of the control channel.
const MAX_LINE: u64 = 256 << 10;
/// Connections at most, as in Firecracker.
const MAX_CONNECTIONS: usize = 1023;

/// Connections that are open.
#[derive(Debug)]
pub(super) struct Connections {
    open: Mutex<Vec<Arc<UnixStream>>>,
    port: AtomicU32,
}

impl Default for Connections {
    fn default() -> Self {
        Self { open: Mutex::default(), port: AtomicU32::new(1 << 30) }
    }
}

impl Connections {
    /// Closes all of them, as a reset of the transport does.
    pub(super) fn close_all(&self) {
        for stream in lock(&self.open).drain(..) {
            // one that the host has closed already is closed
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Accepts a connection and serves it in a thread of its own.
pub(super) fn accept(shared: &Arc<Shared>, listener: &UnixListener) -> io::Result<()> {
    let Ok((stream, _)) = listener.accept() else {
        return Ok(());
    };
    let stream = Arc::new(stream);
    let mut open = lock(&shared.connections.open);
    if open.len() >= MAX_CONNECTIONS {
        return Ok(());
    }
    open.push(Arc::clone(&stream));
    drop(open);
    let shared = Arc::clone(shared);
    spawn("vsock", move || {
        // an error is the end of this connection and of nothing else
        let _ = serve(&shared, &stream);
        lock(&shared.connections.open).retain(|other| !Arc::ptr_eq(&stream, other));
        let _ = stream.shutdown(std::net::Shutdown::Both);
    })
}

fn serve(shared: &Arc<Shared>, mut stream: &UnixStream) -> io::Result<()> {
    wait_readable(stream)?;
    let port = {
        let _running = shared.gate.enter();
        handshake(stream)?
    };
    if port != AGENT && port != CONTROL {
        return Ok(());
    }
    let own = shared.connections.port.fetch_add(1, Ordering::Relaxed);
    stream.write_all(format!("OK {own}\n").as_bytes())?;
    match shared.agent.get() {
        _ if port == CONTROL => control_channel(shared, stream),
        Some(agent) => agent::serve(shared, agent, stream),
        None => echo(shared, stream),
    }
}

fn wait_readable(stream: &UnixStream) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
    while let Err(error) = poll(&mut fds, None) {
        if error != rustix::io::Errno::INTR {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Reads `CONNECT <port>\n`, which must be there at once and in whole.
fn handshake(mut stream: &UnixStream) -> io::Result<u32> {
    let mut line = vec![0; 10];
    stream.set_nonblocking(true)?;
    stream.read_exact(&mut line)?;
    while line.last() != Some(&b'\n') && line.len() < 32 {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    stream.set_nonblocking(false)?;
    let text = String::from_utf8_lossy(&line);
    let mut words = text.split_whitespace();
    match (words.next(), words.next().and_then(|port| port.parse().ok())) {
        (Some(word), Some(port)) if word.eq_ignore_ascii_case("connect") => Ok(port),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn echo(shared: &Shared, mut stream: &UnixStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let _running = shared.gate.enter();
        stream.write_all(&buffer[..count])?;
    }
}

fn control_channel(shared: &Arc<Shared>, mut stream: &UnixStream) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(4096, stream);
    loop {
        let mut line = Vec::new();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            return Ok(());
        }
        let answer = control::answer(shared, &line);
        let _running = shared.gate.enter();
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
}
