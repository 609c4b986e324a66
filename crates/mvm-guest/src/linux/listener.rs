//! Takes connections: a thread each, so many at most. Nothing that a connection does ends the listener, and no snapshot: those
//! who were connected are gone after it, and the listener is not.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use mvm_guest::Agent;
use rustix::{io::Errno, net::SocketFlags};

use super::{Linux, spawn};

/// Connections at once at most.
const MOST: usize = 64;
/// Connections at most that were refused and are still open.
const REFUSED: usize = 16;
const BACKLOG: libc::c_int = 128;
/// How long nothing is accepted where the machine has no descriptors or memory left.
const PAUSE: Duration = Duration::from_millis(50);

/// Where connections come in.
pub enum Place {
    /// The agent's vsock port.
    Vsock,
    /// A Unix socket.
    Unix(PathBuf),
}

impl Place {
    /// Begins to listen.
    ///
    /// # Errors
    /// Where that is not possible, for want of a driver for example.
    pub fn listen(&self) -> io::Result<OwnedFd> {
        match self {
            Place::Vsock => listen_on_vsock(mvm_proto::PORT),
            Place::Unix(path) => {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
                Ok(listener.into())
            }
        }
    }

    /// Takes the next connection; none where it is not the host that has connected.
    fn accept(&self, listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        match self {
            Place::Vsock => accept_on_vsock(listener),
            Place::Unix(_) => Ok(Some(rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?)),
        }
    }
}

/// Serves whoever connects, for ever.
pub fn run(agent: &Arc<Agent<Linux>>, place: &Place, mut listener: OwnedFd) {
    let under_way = Arc::new(AtomicUsize::new(0));
    let mut refused = VecDeque::new();
    loop {
        match place.accept(&listener) {
            Ok(Some(connection)) => match serve(agent, &under_way, File::from(connection)) {
                // It is closed a little later: who is still asking would not hear the answer.
                Some(connection) => {
                    refused.push_back(connection);
                    if refused.len() > REFUSED {
                        refused.pop_front();
                    }
                }
                None => refused.clear(),
            },
            Ok(None) => {}
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR | Errno::CONNABORTED) => {}
                // It listens no more: another one does.
                Some(Errno::INVAL | Errno::BADF | Errno::NOTSOCK | Errno::NODEV) => {
                    thread::sleep(PAUSE);
                    if let Ok(again) = place.listen() {
                        listener = again;
                    }
                }
                _ => thread::sleep(PAUSE),
            },
        }
    }
}

/// A connection that is counted until this is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves a connection in a thread of its own, and gives it back where there are too many.
fn serve(agent: &Arc<Agent<Linux>>, under_way: &Arc<AtomicUsize>, connection: File) -> Option<File> {
    let before = under_way.fetch_add(1, Ordering::AcqRel);
    let counted = Counted(under_way.clone());
    if before >= MOST {
        agent.refuse(&connection);
        return Some(connection);
    }
    let agent = agent.clone();
    // Where no thread can be started, the connection is closed, and the host tries again.
    let _ = spawn("connection", move || {
        let _counted = counted;
        // Whatever was wrong with it, it is over; there is nobody here to tell.
        let _ = agent.serve(&connection);
    });
    None
}

fn listen_on_vsock(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain system calls; the address lives as long as the call, and its size is its own.
    unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) != 0
            || libc::listen(socket.as_raw_fd(), BACKLOG) != 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

fn accept_on_vsock(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: the address lives as long as the call, and its size is its own; the descriptor belongs to nobody else.
    let (connection, address) = unsafe {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        let mut size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        let accepted =
            libc::accept4(listener.as_raw_fd(), (&raw mut address).cast(), &raw mut size, libc::SOCK_CLOEXEC);
        if accepted < 0 {
            return Err(io::Error::last_os_error());
        }
        (OwnedFd::from_raw_fd(accepted), address)
    };
    Ok(is_host(address.svm_cid).then_some(connection))
}

/// A program in the guest may not ask root of the guest.
fn is_host(cid: u32) -> bool {
    cid == libc::VMADDR_CID_HOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_the_host_is_the_host() {
        // The guest itself has a number of its own, and reaches itself by that of the local one as well.
        for cid in [libc::VMADDR_CID_HYPERVISOR, libc::VMADDR_CID_LOCAL, 3, 4096, libc::VMADDR_CID_ANY] {
            assert!(!is_host(cid), "{cid}");
        }
        assert!(is_host(libc::VMADDR_CID_HOST));
    }

    /// A connection from this machine to itself is what a program in a guest would make.
    #[test]
    fn a_program_on_the_same_machine_is_not_taken() {
        const PORT: u32 = 52_052;
        let listener = match listen_on_vsock(PORT) {
            Ok(listener) => listener,
            Err(error) => return super::super::skip(&format!("no vsock here: {error}")),
        };
        // SAFETY: plain system calls; the address lives as long as the call, and its size is its own.
        let (_stream, connected) = unsafe {
            let stream = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            assert!(stream >= 0);
            let stream = OwnedFd::from_raw_fd(stream);
            let mut address: libc::sockaddr_vm = std::mem::zeroed();
            address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
            (address.svm_port, address.svm_cid) = (PORT, libc::VMADDR_CID_LOCAL);
            let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
            let connected = libc::connect(stream.as_raw_fd(), (&raw const address).cast(), size);
            let connected = if connected == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
            (stream, connected)
        };
        if connected.is_err() {
            return super::super::skip("no vsock to this machine itself");
        }
        assert!(accept_on_vsock(&listener).unwrap().is_none());
    }
}
