//! The agent in a simulated guest: the real one's logic on a simulated Linux machine.
//!
//! ```text
//! vsock 52 ─> mvm_guest::Agent ─> Sim: System ─┬─ machine    what it knows, in guest memory
//!                                              ├─ programs   what can be executed
//!                                              └─ files      what can be copied
//!              hostile   what an agent says that means harm
//! ```
//! A guest has one where its kernel command line says `mvm.agent=1`.

mod files;
mod hostile;
mod machine;
mod programs;

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mvm_guest::{Agent, Fact, Process, Running, State, System, log::Log, ssh_key};
use mvm_proto::{
    Answer, Code, Frames, Hello, Kind, ProtoError,
    frame::MAX_MESSAGE,
    message::{Copied, DataDisk, Exec, Line, Refused, Stats, Worker, WorkloadStatus},
    secrets::Tell,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::machine::{Bytes, Full, Machine};
use super::{Shared, gate::Gate, lock, nic::Nic};
use crate::{fault::AgentFault, wire::devices::MacAddr};

/// The pid of the simulated workload.
pub(super) const WORKLOAD: u32 = 2;

/// The clocks of a guest, which stand still while it is no more than files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clocks {
    /// The wall clock, in ns since 1970.
    real: u64,
    /// Since it booted, in ns.
    uptime: u64,
}

impl Clocks {
    /// Those of a guest that boots now.
    fn now() -> Self {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { real: nanos(real), uptime: 0 }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A simulated Linux machine.
pub(super) struct Sim {
    shared: Weak<Shared>,
    gate: Arc<Gate>,
    machine: Mutex<Machine>,
    /// The clocks, as of this moment of the host.
    clocks: Mutex<(Clocks, Instant)>,
    log: Log,
}

/// The agent of a guest that boots.
pub(super) fn boot(shared: &Arc<Shared>, seed: u64) -> Arc<Agent<Sim>> {
    agent(shared, Machine::boot(seed), Clocks::now())
}

/// The agent of a guest that goes on, where its memory holds one.
pub(super) fn restore(shared: &Arc<Shared>, clocks: Option<Clocks>) -> Option<Arc<Agent<Sim>>> {
    let machine = Machine::load(&lock(&shared.memory).image)?;
    Some(agent(shared, machine, clocks.unwrap_or_else(Clocks::now)))
}

fn agent(shared: &Arc<Shared>, machine: Machine, clocks: Clocks) -> Arc<Agent<Sim>> {
    let state = machine.agent.clone();
    let sim = Sim {
        shared: Arc::downgrade(shared),
        gate: Arc::clone(&shared.gate),
        log: Log::of(machine.lines.clone()),
        machine: Mutex::new(machine),
        clocks: Mutex::new((clocks, Instant::now())),
    };
    // One that boots writes itself to memory.
    let _ = sim.change(|_| ());
    Arc::new(Agent::new(sim, concat!("fcsim ", env!("CARGO_PKG_VERSION")), state))
}

/// Serves a connection to port 52.
///
/// # Errors
/// Where it fails: that is the end of this connection, and of nothing else.
pub(super) fn serve(shared: &Shared, agent: &Agent<Sim>, stream: &UnixStream) -> io::Result<()> {
    let connection = File::from(OwnedFd::from(stream.try_clone()?));
    let mut frames = Frames::on(&connection);
    let served = match &shared.faults.agent {
        Some(AgentFault::Silent) => {
            io::copy(&mut &connection, &mut io::sink())?;
            Ok(())
        }
        Some(AgentFault::Garbage) => Ok((&connection).write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?),
        Some(AgentFault::Flood) => {
            let endless = [b' '; MAX_MESSAGE];
            loop {
                frames.data(Kind::Message, &endless).map_err(io::Error::other)?;
            }
        }
        Some(AgentFault::Versions(oldest, newest)) => frames
            .send(&Hello { oldest: *oldest, newest: *newest, ..Hello::of("another agent") })
            .and_then(|()| {
                let why = "it speaks other versions".to_owned();
                frames.send(&Answer::Refused(Refused { code: Code::Incompatible, why }))
            }),
        Some(AgentFault::Hostile { request, says, again }) => {
            hostile::serve(agent, &connection, request, says, again)
        }
        _ => agent.serve(&connection),
    };
    served.map_err(io::Error::other)
}

impl Sim {
    fn shared(&self) -> io::Result<Arc<Shared>> {
        self.shared.upgrade().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what it knows, in memory too. The caller holds the CPU.
    fn change<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> io::Result<T> {
        let shared = self.shared()?;
        let mut machine = self.machine();
        let mut new = machine.clone();
        let result = change(&mut new);
        let mut memory = lock(&shared.memory);
        new.save(&mut memory.image).map_err(|Full| io::Error::from(io::ErrorKind::StorageFull))?;
        *machine = new;
        Ok(result)
    }

    /// The clocks now.
    pub(super) fn clocks(&self) -> Clocks {
        let (clocks, since) = *lock(&self.clocks);
        let passed = nanos(since.elapsed());
        Clocks { real: clocks.real.saturating_add(passed), uptime: clocks.uptime.saturating_add(passed) }
    }

    fn nic(&self) -> io::Result<Arc<Nic>> {
        let nics = lock(&self.shared()?.nics).first().cloned();
        nics.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set_mac(&self, mac: &str) -> io::Result<String> {
        let nic = self.nic()?;
        let mut address = nic.address();
        address.mac = mac.parse::<MacAddr>().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?.0;
        nic.set_address(address);
        Ok(MacAddr(nic.address().mac).to_string())
    }

    /// Prints a line, as the workload does. The caller holds the CPU.
    fn print(&self, errors: bool, text: &str) -> io::Result<()> {
        let at_unix_ms = self.clocks().real / 1_000_000;
        self.log.push(Line { at_unix_ms, errors, text: text.to_owned() });
        let lines = self.log.lines();
        // Memory is bounded, and the newest matter.
        let newest = lines[lines.len().saturating_sub(100)..].to_vec();
        self.change(|machine| machine.lines = newest)
    }

    /// The data disk, checked as Linux would see it.
    fn mount(&self, data: &DataDisk) -> io::Result<String> {
        let shared = self.shared()?;
        let disk = lock(&shared.disks).iter().find(|disk| disk.id == "data").cloned();
        let disk = disk.ok_or_else(|| io::Error::other("there is no data disk"))?;
        let other = shared.faults.data_disk.as_ref().map(File::open).transpose()?;
        let file = other.as_ref().unwrap_or(&disk.file);
        let size = file.metadata()?.len();
        if size != data.size_bytes {
            return Err(io::Error::other(format!(
                "the data disk has {size} bytes in place of {}",
                data.size_bytes
            )));
        }
        let uuid = mvm_proto::disk::ext4_uuid(file)?
            .ok_or_else(|| io::Error::other("the data disk holds no ext4"))?;
        if uuid != data.uuid {
            return Err(io::Error::other(format!("the data disk is {uuid}")));
        }
        self.change(|machine| machine.data = Some((uuid.clone(), data.mount.clone())))?;
        Ok(uuid)
    }

    /// Says to the workload, where it runs, that its secrets have changed: it prints what it heard. A program it is not run, but for
    /// one that fails.
    fn tell(&self, tell: &Tell) -> io::Result<String> {
        let said = match tell {
            _ if self.machine().workload.is_none() => return Ok("nobody".to_owned()),
            Tell::Signal(number) => format!("signal {number}"),
            Tell::Exec(program) if program.ends_with("/false") => {
                return Err(io::Error::other(format!("{program} ended with code 1")));
            }
            Tell::Exec(program) => format!("{program} ended well"),
            Tell::Nobody | Tell::Unknown => return Err(io::ErrorKind::Unsupported.into()),
        };
        self.print(false, &format!("workload hears of other secrets: {said}"))?;
        Ok(said)
    }

    /// Starts it, where it has not been started.
    fn start_workload(&self) -> io::Result<String> {
        match self.machine().workload.clone() {
            Some(WorkloadStatus::Running { pid, .. }) => return Ok(pid.to_string()),
            None | Some(WorkloadStatus::Failed { .. }) => {}
            Some(_) => return Ok(String::new()),
        }
        let hostname = self.change(|machine| {
            machine.workload = Some(WorkloadStatus::Running { pid: WORKLOAD, restarts: 0 });
            machine.hostname.clone()
        })?;
        self.print(false, &format!("workload of {hostname} is up"))?;
        Ok(WORKLOAD.to_string())
    }
}

/// What a guest says that has done nothing.
fn claim(fact: &Fact<'_>) -> String {
    match fact {
        Fact::Clock(unix_ns) => unix_ns.to_string(),
        Fact::Mac(mac) => (*mac).to_owned(),
        Fact::Mtu(mtu) => mtu.to_string(),
        Fact::Address(ip, prefix) => format!("{ip}/{prefix}"),
        Fact::Gateway(gateway) => gateway.to_string(),
        Fact::Hostname(text) | Fact::MachineId(text) => (*text).to_owned(),
        Fact::Data(data) => data.uuid.clone(),
        Fact::Secrets(secrets) => secrets.confirm(&secrets.files),
        Fact::Entropy(_) | Fact::Dns(_) | Fact::HostKey | Fact::SshKeys(_) => String::new(),
        Fact::Told(_) | Fact::Workload => String::new(),
    }
}

impl System for Sim {
    fn running(&self) -> Running<'_> {
        Some(Box::new(self.gate.enter()))
    }

    fn apply(&self, fact: &Fact<'_>) -> io::Result<String> {
        match &self.shared()?.faults.agent {
            Some(AgentFault::Fail(name)) if name == fact.name() => {
                return Err(io::Error::other("it does not work"));
            }
            Some(AgentFault::Skip(name)) if name == fact.name() => return Ok(claim(fact)),
            Some(AgentFault::Lie(name, value)) if name == fact.name() => return Ok(value.clone()),
            _ => {}
        }
        Ok(match fact {
            Fact::Entropy(entropy) => {
                self.change(|machine| machine.mix(&entropy.0))?;
                String::new()
            }
            Fact::Clock(unix_ns) => {
                let mut clocks = lock(&self.clocks);
                *clocks = (
                    Clocks { real: *unix_ns, uptime: clocks.0.uptime + nanos(clocks.1.elapsed()) },
                    Instant::now(),
                );
                drop(clocks);
                self.clocks().real.to_string()
            }
            Fact::Mac(mac) => self.set_mac(mac)?,
            Fact::Mtu(mtu) => self.change(|machine| {
                machine.mtu = *mtu;
                machine.mtu.to_string()
            })?,
            Fact::Address(ip, prefix) => {
                let nic = self.nic()?;
                let mut address = nic.address();
                (address.ip, address.prefix) = (Some(*ip), *prefix);
                nic.set_address(address);
                let address = nic.address();
                format!("{}/{}", address.ip.unwrap_or(*ip), address.prefix)
            }
            Fact::Gateway(gateway) => {
                let nic = self.nic()?;
                let mut address = nic.address();
                address.gateway = Some(*gateway);
                nic.set_address(address);
                nic.address().gateway.map(|gateway| gateway.to_string()).unwrap_or_default()
            }
            Fact::Dns(dns) => {
                let dns = self.change(|machine| {
                    machine.dns = dns.to_vec();
                    machine.dns.clone()
                })?;
                dns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            Fact::Hostname(name) => self.change(|machine| {
                machine.hostname = (*name).to_owned();
                machine.hostname.clone()
            })?,
            Fact::MachineId(id) => self.change(|machine| {
                machine.machine_id = (*id).to_owned();
                machine.machine_id.clone()
            })?,
            // The same identity said twice keeps it.
            Fact::HostKey => self.change(|machine| match &machine.host_key {
                Some((_, public)) => public.clone(),
                None => {
                    let key = ssh_key::make(machine.bytes());
                    machine.host_key = Some((key.private, key.public.clone()));
                    key.public
                }
            })?,
            Fact::SshKeys(keys) => self.change(|machine| {
                machine.ssh_keys = keys.to_vec();
                machine.ssh_keys.len().to_string()
            })?,
            Fact::Data(data) => self.mount(data)?,
            Fact::Secrets(secrets) => {
                let bytes = |content: &Zeroizing<Vec<u8>>| content.to_vec().into();
                let files = &secrets.files;
                self.change(|machine| {
                    machine.secrets =
                        files.iter().map(|(name, content)| (name.clone(), bytes(content))).collect();
                })?;
                secrets.confirm(&self.secrets()?)
            }
            Fact::Told(tell) => self.tell(tell)?,
            Fact::Workload => self.start_workload()?,
        })
    }

    fn secrets(&self) -> io::Result<Vec<(String, Zeroizing<Vec<u8>>)>> {
        let copy =
            |(name, content): (&String, &Bytes)| (name.clone(), Zeroizing::new(content.as_slice().to_vec()));
        Ok(self.machine().secrets.iter().map(copy).collect())
    }

    fn remember(&self, state: &State) {
        // Where there is no room for it the guest is as full as it was before.
        let _ = self.change(|machine| machine.agent = state.clone());
    }

    fn boot_id(&self) -> String {
        self.machine().boot_id.clone()
    }

    fn uptime(&self) -> Duration {
        Duration::from_nanos(self.clocks().uptime)
    }

    fn worker(&self) -> Option<(Worker, Duration)> {
        let (word, said) = self.machine().worker?;
        Some((word, Duration::from_nanos(self.clocks().real.saturating_sub(said))))
    }

    fn workload(&self) -> (WorkloadStatus, u32) {
        let machine = self.machine();
        (machine.workload.clone().unwrap_or(WorkloadStatus::Waiting), machine.restarts)
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn stats(&self) -> Stats {
        let uptime_ms = u64::try_from(self.uptime().as_millis()).unwrap_or(u64::MAX);
        let memory_bytes = self.shared().map_or(0, |shared| shared.memory_mib << 20);
        Stats {
            uptime_ms,
            memory_bytes,
            memory_available_bytes: memory_bytes / 2,
            processes: 2,
            ..Stats::default()
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn spawn(&self, command: &Exec) -> Result<Process, Refused> {
        programs::spawn(self, command)
    }

    fn put(&self, connection: &File, path: &str, name: &str) -> Result<Copied, Refused> {
        files::put(self, connection, path, name)
    }

    fn get(&self, connection: &File, path: &str) -> Result<(), ProtoError> {
        files::get(self, connection, path)
    }

    fn shut_down(&self, _grace: Duration) {
        if let Ok(shared) = self.shared() {
            let _running = shared.gate.enter();
            if !shared.faults.ignore_ctrl_alt_del {
                shared.console.print("fcsim guest: asked to shut down");
                shared.exit.set(0);
            }
        }
    }
}
