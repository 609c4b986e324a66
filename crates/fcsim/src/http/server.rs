//! The server: one thread, one poll loop, requests served one after another in the order in which they came.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use rustix::event::{PollFd, PollFlags, poll};

use super::{Parser, Request, Response, parser::Event};

/// Connections that may be open at once.
const MAX_CONNECTIONS: usize = 10;

const FULL: &[u8] =
    b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
{ \"error\": \"Too many open connections\" }";

/// What to do once a request was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Serve,
    /// The answer is still delivered; then the server ends.
    Stop,
    /// The answer is still delivered; then the process dies.
    Die,
}

/// A bound API socket.
pub(crate) struct Server {
    listener: UnixListener,
    /// Becomes readable where the server is to end for another reason than a request.
    stop: OwnedFd,
    limit: usize,
    connections: Vec<Connection>,
}

/// What happened.
struct Ready {
    stop: bool,
    listener: bool,
    /// Connections, by index, with their flags.
    connections: Vec<(usize, PollFlags)>,
}

struct Connection {
    stream: UnixStream,
    parser: Parser,
    out: Vec<u8>,
    closed: bool,
}

impl Server {
    /// Binds the socket.
    pub(crate) fn bind(path: &Path, limit: usize, stop: OwnedFd) -> io::Result<Self> {
        Ok(Self { listener: UnixListener::bind(path)?, stop, limit, connections: Vec::new() })
    }

    /// Serves until a request or the stop descriptor ends it.
    pub(crate) fn run(&mut self, mut serve: impl FnMut(Request) -> (Response, Next)) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.stop {
                self.flush();
                return Ok(());
            }
            if ready.listener {
                self.accept()?;
            }
            for (index, flags) in ready.connections {
                match self.handle(index, flags, &mut serve) {
                    Next::Serve => {}
                    Next::Stop => {
                        self.flush();
                        return Ok(());
                    }
                    Next::Die => {
                        self.flush();
                        crate::host::signals::kill_self();
                    }
                }
            }
            self.connections.retain(|connection| !connection.closed);
        }
    }

    /// Waits for something to happen.
    fn wait(&self) -> io::Result<Ready> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        fds.extend(self.connections.iter().map(|connection| {
            let wanted = if connection.out.is_empty() { PollFlags::IN } else { PollFlags::OUT };
            PollFd::from_borrowed_fd(connection.stream.as_fd(), wanted | PollFlags::RDHUP)
        }));
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let ready =
            fds[2..].iter().map(PollFd::revents).enumerate().filter(|(_, flags)| !flags.is_empty()).collect();
        Ok(Ready {
            stop: !fds[0].revents().is_empty(),
            listener: !fds[1].revents().is_empty(),
            connections: ready,
        })
    }

    fn accept(&mut self) -> io::Result<()> {
        let (mut stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        if self.connections.len() >= MAX_CONNECTIONS {
            // whether the client is told is its own affair: it is closed either way
            let _ = stream.write(FULL);
            return Ok(());
        }
        let parser = Parser::new(self.limit);
        self.connections.push(Connection { stream, parser, out: Vec::new(), closed: false });
        Ok(())
    }

    fn handle(
        &mut self,
        index: usize,
        flags: PollFlags,
        serve: &mut impl FnMut(Request) -> (Response, Next),
    ) -> Next {
        let connection = &mut self.connections[index];
        if flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::RDHUP) {
            connection.closed = true;
        } else if flags.contains(PollFlags::IN) {
            connection.read();
            while let Some(event) = connection.parser.pop() {
                match event {
                    Event::Continue => connection.out.extend(Response::empty(100).to_bytes()),
                    Event::Request(request) => {
                        let (response, next) = serve(request);
                        connection.out.extend(response.to_bytes());
                        if next != Next::Serve {
                            return next;
                        }
                    }
                }
            }
            // most answers fit into the socket at once: no second round through poll for them
            if !connection.out.is_empty() {
                connection.write();
            }
        } else if flags.contains(PollFlags::OUT) {
            connection.write();
        }
        Next::Serve
    }

    /// Writes what is still to be written, as far as the clients take it.
    fn flush(&mut self) {
        for connection in &mut self.connections {
            while !connection.out.is_empty() && !connection.closed {
                let before = connection.out.len();
                connection.write();
                if connection.out.len() == before {
                    break;
                }
            }
        }
    }
}

impl Connection {
    fn read(&mut self) {
        let mut buffer = [0; 1024];
        let room = self.parser.room();
        let outcome = if room == 0 {
            self.parser.feed(&[])
        } else {
            match self.stream.read(&mut buffer[..room]) {
                Ok(0) => {
                    self.closed = true;
                    return;
                }
                Ok(count) => self.parser.feed(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    return;
                }
                Err(error) => {
                    self.out.extend(Response::with_body(500, error.to_string()).to_bytes());
                    return;
                }
            }
        };
        if let Err(error) = outcome {
            self.parser.discard_requests();
            let body =
                format!("{{ \"error\": \"{error}\nAll previous unanswered requests will be dropped.\" }}");
            self.out.extend(Response::with_body(400, body).to_bytes());
        }
    }

    fn write(&mut self) {
        match self.stream.write(&self.out) {
            Ok(0) => self.closed = true,
            Ok(count) => {
                self.out.drain(..count);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.closed = true,
        }
    }
}
