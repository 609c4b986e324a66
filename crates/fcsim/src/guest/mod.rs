//! The simulated guest: memory, console, network, vsock services, and one thread that is its CPU.
//!
//! ```text
//! boot ──> banner ──┐
//!                   ├──> serves frames and connections <──> paused ──> Ctrl-Alt-Del, exit, wrong memory: the end
//! load ──> check ───┘
//! ```
//!
//! Nothing here knows the API; the VMM hands over open devices and asks for pause, resume and memory.

mod agent;
mod console;
mod control;
mod frames;
mod gate;
mod heap;
mod image;
mod nic;
mod vsock;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use mvm_guest::Agent;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde::{Deserialize, Serialize};

pub(crate) use console::Console;
use gate::Gate;
pub(crate) use heap::Heap;
pub(crate) use image::Image;
pub(crate) use nic::{Address, Nic};

use crate::fault::Faults;

/// How the process ends: the first code that is given counts.
#[derive(Debug)]
pub(crate) struct Exit {
    event: OwnedFd,
    code: Mutex<Option<i32>>,
}

impl Exit {
    /// No end yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { event: eventfd(0, EventfdFlags::CLOEXEC)?, code: Mutex::new(None) })
    }

    /// Becomes readable at the end.
    pub(crate) fn event(&self) -> io::Result<OwnedFd> {
        self.event.try_clone()
    }

    /// Ends the process with a code.
    pub(crate) fn set(&self, code: i32) {
        self.code.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(code);
        // the counter is far from full: a write cannot fail
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// The code, where the end has come.
    pub(crate) fn code(&self) -> Option<i32> {
        *self.code.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A drive as the guest sees it.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub id: String,
    pub file: Arc<File>,
    pub read_only: bool,
}

/// Memory and what is in it.
#[derive(Debug)]
pub(crate) struct Memory {
    pub image: Image,
    pub heap: Heap,
}

/// What of a guest a snapshot keeps beside its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestState {
    heap: Heap,
    addresses: Vec<(String, Address)>,
    cmdline: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clocks: Option<agent::Clocks>,
}

/// What a guest is made of.
pub(crate) struct Parts {
    pub memory_mib: u64,
    pub cmdline: String,
    pub image: Image,
    pub console: Console,
    pub disks: Vec<Disk>,
    pub nics: Vec<Arc<Nic>>,
    pub vsock: Option<Arc<UnixListener>>,
    pub exit: Arc<Exit>,
    pub faults: Arc<Faults>,
}

struct Shared {
    gate: Arc<Gate>,
    /// Where the guest has one.
    agent: OnceLock<Arc<Agent<agent::Sim>>>,
    memory: Mutex<Memory>,
    memory_mib: u64,
    cmdline: String,
    console: Console,
    disks: Mutex<Vec<Disk>>,
    nics: Mutex<Vec<Arc<Nic>>>,
    vsock: Option<Arc<UnixListener>>,
    connections: vsock::Connections,
    vsock_dead: AtomicBool,
    ctrl_alt_del: AtomicU32,
    exit: Arc<Exit>,
    faults: Arc<Faults>,
    wake: OwnedFd,
}

/// A running or paused guest.
pub(crate) struct Guest {
    shared: Arc<Shared>,
    /// A snapshot was asked for since the last resume: connections are reset then.
    reset: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    /// A guest that boots as soon as it is resumed.
    pub(crate) fn boot(mut parts: Parts, seed: u64) -> io::Result<Self> {
        let heap = Heap::create(seed, &mut parts.image);
        let settings = Settings::of(&parts.cmdline);
        if let Some(nic) = parts.nics.first() {
            let own = nic.address();
            nic.set_address(Address {
                mac: settings.mac.unwrap_or(own.mac),
                ip: settings.ip,
                prefix: settings.prefix,
                gateway: settings.gateway,
            });
        }
        let has_agent = settings.agent;
        let guest = Self::start(parts, heap, false)?;
        if has_agent {
            let _ = guest.shared.agent.set(agent::boot(&guest.shared, seed));
        }
        Ok(guest)
    }

    /// A guest that goes on where a snapshot left off, as soon as it is resumed.
    pub(crate) fn restore(mut parts: Parts, state: GuestState) -> io::Result<Self> {
        for (id, address) in &state.addresses {
            if let Some(nic) = parts.nics.iter().find(|nic| nic.id == *id) {
                nic.set_address(*address);
            }
        }
        parts.cmdline = state.cmdline;
        if parts.faults.corrupt_memory_on_load {
            state.heap.corrupt(&mut parts.image);
        }
        let guest = Self::start(parts, state.heap, true)?;
        if let Some(agent) = agent::restore(&guest.shared, state.clocks) {
            let _ = guest.shared.agent.set(agent);
        }
        Ok(guest)
    }

    fn start(parts: Parts, heap: Heap, restored: bool) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            gate: Arc::default(),
            agent: OnceLock::new(),
            memory: Mutex::new(Memory { image: parts.image, heap }),
            memory_mib: parts.memory_mib,
            cmdline: parts.cmdline,
            console: parts.console,
            disks: Mutex::new(parts.disks),
            nics: Mutex::new(parts.nics),
            vsock: parts.vsock,
            connections: vsock::Connections::default(),
            vsock_dead: AtomicBool::new(false),
            ctrl_alt_del: AtomicU32::new(0),
            exit: parts.exit,
            faults: parts.faults,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let of_thread = Arc::clone(&shared);
        spawn("fc_vcpu 0", move || run(&of_thread, restored))?;
        Ok(Self { shared, reset: AtomicBool::new(false) })
    }

    /// Lets it run.
    pub(crate) fn resume(&self) {
        if self.reset.swap(false, Ordering::Relaxed) {
            self.shared.connections.close_all();
        }
        self.shared.gate.open();
    }

    /// Stops it; when this returns, nothing in it moves.
    pub(crate) fn pause(&self) {
        if self.shared.faults.vsock_dies_after_pause {
            self.shared.vsock_dead.store(true, Ordering::Relaxed);
            self.shared.wake();
        }
        self.shared.gate.close();
    }

    /// Resets the vsock connections at the next resume, as a snapshot does (even one that then fails).
    pub(crate) fn reset_vsock(&self) {
        self.reset.store(true, Ordering::Relaxed);
        self.shared.vsock_dead.store(false, Ordering::Relaxed);
        // it may be waiting without an eye on the listener
        self.shared.wake();
    }

    /// Presses the keys. False where the keyboard's buffer is full.
    pub(crate) fn ctrl_alt_del(&self) -> bool {
        let pressed = self.shared.ctrl_alt_del.fetch_add(1, Ordering::Relaxed);
        self.shared.wake();
        if pressed >= 4 {
            self.shared.ctrl_alt_del.store(4, Ordering::Relaxed);
        }
        pressed < 4
    }

    /// Its memory, to be written into a snapshot. Only while it is paused.
    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.shared.memory)
    }

    /// What a snapshot keeps beside memory. Only while it is paused.
    pub(crate) fn state(&self) -> GuestState {
        GuestState {
            heap: self.memory().heap,
            addresses: lock(&self.shared.nics).iter().map(|nic| (nic.id.clone(), nic.address())).collect(),
            cmdline: self.shared.cmdline.clone(),
            clocks: self.shared.agent.get().map(|agent| agent.system().clocks()),
        }
    }

    /// Gives it other drives.
    pub(crate) fn set_disks(&self, disks: Vec<Disk>) {
        *lock(&self.shared.disks) = disks;
    }

    /// Gives it other network interfaces.
    pub(crate) fn set_nics(&self, nics: Vec<Arc<Nic>>) {
        *lock(&self.shared.nics) = nics;
        self.shared.wake();
    }
}

impl Shared {
    /// Makes the guest's thread look again.
    fn wake(&self) {
        // the counter is far from full: a write cannot fail
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn describe(&self) -> String {
        format!("{} MiB, cmdline {}", self.memory_mib, self.cmdline)
    }
}

/// Starts a thread with a small stack: a machine may carry thousands of these.
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(256 << 10).spawn(body).map(|_| ())
}

/// The guest's life.
fn run(shared: &Arc<Shared>, restored: bool) {
    if shared.faults.boot_never {
        return;
    }
    drop(shared.gate.enter());
    std::thread::sleep(Duration::from_millis(shared.faults.boot_delay_ms));
    {
        let _running = shared.gate.enter();
        if restored {
            let mut memory = lock(&shared.memory);
            let Memory { image, heap } = &mut *memory;
            if let Err(corruption) = heap.check(image) {
                shared.console.print(&format!("fcsim guest: panic: memory is not what it was: {corruption}"));
                return shared.exit.set(1);
            }
            heap.wake(image);
            drop(memory);
            shared.console.print(&format!("fcsim guest: restored, {}", shared.describe()));
        } else {
            shared.console.print(&format!("fcsim guest: boot, {}", shared.describe()));
        }
    }
    loop {
        match turn(shared) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                shared.console.print(&format!("fcsim guest: panic: {error}"));
                return shared.exit.set(1);
            }
        }
    }
}

/// Waits for something to do and does it; false at the end.
fn turn(shared: &Arc<Shared>) -> io::Result<bool> {
    let nics = lock(&shared.nics).clone();
    let listener = shared.vsock.as_ref().filter(|_| !shared.vsock_dead.load(Ordering::Relaxed));
    let mut fds = vec![PollFd::from_borrowed_fd(shared.wake.as_fd(), PollFlags::IN)];
    fds.extend(nics.iter().map(|nic| PollFd::from_borrowed_fd(nic.tap().file.as_fd(), PollFlags::IN)));
    let input = shared.console.input();
    fds.extend(listener.map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)));
    fds.extend(input.iter().map(|input| PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    let _running = shared.gate.enter();
    if ready[0] {
        let _ = rustix::io::read(&shared.wake, &mut [0_u8; 8]);
        if shared.ctrl_alt_del.load(Ordering::Relaxed) > 0 && !shared.faults.ignore_ctrl_alt_del {
            shared.console.print("fcsim guest: Ctrl-Alt-Del, shutting down");
            shared.exit.set(0);
            return Ok(false);
        }
    }
    for (nic, _) in nics.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
        if !nic.receive() {
            // its TAP was deleted: there is nothing to hear on it any more
            lock(&shared.nics).retain(|other| !Arc::ptr_eq(nic, other));
        }
    }
    // It may have died while this thread waited: who connects after that is not heard, however late this thread is.
    let is_dead = shared.vsock_dead.load(Ordering::Relaxed);
    if let (Some(listener), Some(true), false) = (listener, ready.get(1 + nics.len()), is_dead) {
        vsock::accept(shared, listener)?;
    }
    if let (Some(_), Some(true)) = (&input, ready.last()) {
        shared.console.echo();
    }
    Ok(true)
}

/// What the kernel command line says to the guest: `mvm.ip`, `mvm.gw`, `mvm.mac`, `mvm.agent`.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    ip: Option<std::net::Ipv4Addr>,
    prefix: u8,
    gateway: Option<std::net::Ipv4Addr>,
    mac: Option<frames::Mac>,
    /// `mvm.agent=1`
    agent: bool,
}

impl Settings {
    fn of(cmdline: &str) -> Self {
        let value = |key: &str| cmdline.split_whitespace().find_map(|word| word.strip_prefix(key));
        let (ip, prefix) = match value("mvm.ip=").map(|text| text.split_once('/').unwrap_or((text, "24"))) {
            Some((ip, prefix)) => (ip.parse().ok(), prefix.parse().ok().filter(|prefix| *prefix <= 32)),
            None => (None, None),
        };
        Self {
            ip,
            prefix: prefix.unwrap_or(24),
            gateway: value("mvm.gw=").and_then(|text| text.parse().ok()),
            mac: value("mvm.mac=")
                .and_then(|text| text.parse::<crate::wire::devices::MacAddr>().ok())
                .map(|mac| mac.0),
            agent: value("mvm.agent=") == Some("1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_gives_the_address() {
        let settings =
            Settings::of("console=ttyS0 mvm.ip=10.240.3.3/20 mvm.gw=10.240.0.1 mvm.mac=02:fc:00:03:00:03");
        assert_eq!(settings.ip, Some(std::net::Ipv4Addr::new(10, 240, 3, 3)));
        assert_eq!((settings.prefix, settings.mac), (20, Some([2, 0xfc, 0, 3, 0, 3])));
        let none = Settings::of("quiet mvm.ip=nonsense");
        assert_eq!((none.ip, none.prefix, none.gateway), (None, 24, None));
    }
}
