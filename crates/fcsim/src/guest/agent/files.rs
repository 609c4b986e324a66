//! The simulated guest's files: a small tmpfs in its memory, and the copies to and from it.
//!
//! What is copied to `/dev/null` is dropped, and `/dev/zero/<bytes>` is so many zeros: for who measures the way.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Component, Path},
};

use mvm_guest::System;
use mvm_proto::{
    Code, Frames, Kind, ProtoError,
    copy::{self, Item},
    frame::MAX_DATA,
    message::{Copied, Refused},
};

use super::{
    Sim,
    machine::{Machine, Node},
};

/// Bytes of content that are taken at most.
const MAX_BYTES: u64 = 1 << 20;
const NULL: &str = "/dev/null";
const ZERO: &str = "/dev/zero/";

fn refused(code: Code, why: impl Into<String>) -> Refused {
    Refused { code, why: why.into() }
}

/// A path without anything that leads back.
pub(super) fn clean(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::ParentDir => drop(parts.pop()),
            Component::Prefix(_) => return None,
        }
    }
    path.starts_with('/').then(|| format!("/{}", parts.join("/")))
}

fn is_folder(machine: &Machine, path: &str) -> bool {
    matches!(path, "/" | "/root" | "/tmp" | "/etc" | "/data")
        || matches!(machine.files.get(path), Some(Node::Folder { .. }))
}

/// Takes what comes.
pub(super) fn put(sim: &Sim, connection: &File, path: &str, name: &str) -> Result<Copied, Refused> {
    let not_absolute = || refused(Code::Failed, format!("{path:?} is no absolute path"));
    let mut target = clean(path).ok_or_else(not_absolute)?;
    if is_folder(&sim.machine(), &target) {
        target = clean(&format!("{target}/{name}")).ok_or_else(not_absolute)?;
    }
    let parent =
        target.rsplit_once('/').map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent });
    {
        let machine = sim.machine();
        if target != NULL && !is_folder(&machine, parent) {
            return Err(refused(Code::NotFound, format!("{parent}: no such folder")));
        }
    }
    let mut frames = Frames::on(connection);
    let broken = |error: ProtoError| refused(Code::Failed, error.to_string());
    let (mut copied, mut files) = (Copied::default(), BTreeMap::new());
    loop {
        let entry = match frames.message().map_err(broken)? {
            Item::Entry(entry) => entry,
            Item::End { skipped } => {
                copied.skipped = skipped;
                break;
            }
            Item::Failed { why } => return Err(refused(Code::Failed, why)),
        };
        copied.entries += 1;
        let place = if entry.path.is_empty() { target.clone() } else { format!("{target}/{}", entry.path) };
        let node = match entry.node {
            copy::Node::Folder => Node::Folder { mode: entry.mode & 0o777, modified: entry.modified },
            copy::Node::Link(target) => Node::Link(target),
            copy::Node::File => {
                let mut content = Vec::new();
                loop {
                    match frames.advance().map_err(broken)? {
                        Some(Kind::Data) if frames.content().is_empty() => break,
                        Some(Kind::Data) => {}
                        _ => {
                            return Err(match frames.parse() {
                                Ok(Item::Failed { why }) => refused(Code::Failed, why),
                                _ => broken(ProtoError::Unexpected),
                            });
                        }
                    }
                    copied.bytes += frames.content().len() as u64;
                    if target == NULL {
                        continue;
                    }
                    if copied.bytes > MAX_BYTES {
                        return Err(refused(Code::Failed, "the guest's memory is full"));
                    }
                    content.extend_from_slice(frames.content());
                }
                Node::File { mode: entry.mode & 0o777, modified: entry.modified, content: content.into() }
            }
        };
        files.insert(place, node);
    }
    if target == NULL {
        return Ok(copied);
    }
    let _running = sim.running();
    let is_there = sim.machine().files.get(&target).is_some_and(|there| {
        !matches!((there, files.get(&target)), (Node::File { .. }, Some(Node::File { .. })))
    });
    if is_there || is_folder(&sim.machine(), &target) {
        return Err(refused(Code::Failed, format!("{target} is there already")));
    }
    sim.change(|machine| machine.files.extend(files))
        .map_err(|error| refused(Code::Failed, error.to_string()))?;
    Ok(copied)
}

/// Sends what is there.
pub(super) fn get(sim: &Sim, connection: &File, path: &str) -> Result<(), ProtoError> {
    let mut sender = Sender { sim, frames: Frames::on(connection) };
    let Some(top) = clean(path) else {
        return sender.say(&Item::Failed { why: format!("{path:?} is no absolute path") });
    };
    if let Some(size) = top.strip_prefix(ZERO).and_then(|size| size.parse::<u64>().ok()) {
        sender.say(&entry("", copy::Node::File, 0o644, 0))?;
        sender.zeros(size)?;
        return sender.say(&Item::End { skipped: 0 });
    }
    let machine = {
        let _running = sim.running();
        sim.machine().clone()
    };
    if !machine.files.contains_key(&top) {
        let content = {
            let _running = sim.running();
            read(&machine, sim, &top)
        };
        let Some(content) = content else {
            let why = format!("{top}: No such file or directory (os error 2)");
            return sender.say(&Item::Failed { why });
        };
        sender.say(&entry("", copy::Node::File, 0o644, 0))?;
        sender.content(&content)?;
        return sender.say(&Item::End { skipped: 0 });
    }
    let below = format!("{top}/");
    for (place, node) in machine.files.iter().filter(|(place, _)| **place == top || place.starts_with(&below))
    {
        let path = place.strip_prefix(&below).unwrap_or("");
        match node {
            Node::Folder { mode, modified } => {
                sender.say(&entry(path, copy::Node::Folder, *mode, *modified))?;
            }
            Node::Link(target) => sender.say(&entry(path, copy::Node::Link(target.clone()), 0o777, 0))?,
            Node::File { mode, modified, content } => {
                sender.say(&entry(path, copy::Node::File, *mode, *modified))?;
                sender.content(content.as_slice())?;
            }
        }
    }
    sender.say(&Item::End { skipped: 0 })
}

fn entry(path: &str, node: copy::Node, mode: u32, modified: i64) -> Item {
    Item::Entry(copy::Entry { path: path.to_owned(), node, mode, modified })
}

/// What goes to the host, a frame at a time: a guest that stands still sends none, and the CPU is not held while the host takes
/// its time.
struct Sender<'a> {
    sim: &'a Sim,
    frames: Frames<&'a File>,
}

impl Sender<'_> {
    fn say(&mut self, item: &Item) -> Result<(), ProtoError> {
        drop(self.sim.running());
        self.frames.send(item)
    }

    fn data(&mut self, piece: &[u8]) -> Result<(), ProtoError> {
        drop(self.sim.running());
        self.frames.data(Kind::Data, piece)
    }

    fn content(&mut self, content: &[u8]) -> Result<(), ProtoError> {
        content.chunks(MAX_DATA).try_for_each(|piece| self.data(piece))?;
        self.data(b"")
    }

    fn zeros(&mut self, size: u64) -> Result<(), ProtoError> {
        let piece = vec![0; MAX_DATA];
        let mut left = size;
        while left > 0 {
            let now = left.min(MAX_DATA as u64);
            self.data(&piece[..now as usize])?;
            left -= now;
        }
        self.data(b"")
    }
}

/// What a file holds: one that was written, or one of the system's.
pub(super) fn read(machine: &Machine, sim: &Sim, path: &str) -> Option<Vec<u8>> {
    if let Some(Node::File { content, .. }) = machine.files.get(path) {
        return Some(content.as_slice().to_vec());
    }
    if let Some(name) = path.strip_prefix("/run/secrets/") {
        return machine.secrets.get(name).map(|content| content.as_slice().to_vec());
    }
    let line = |text: &str| Some(format!("{text}\n").into_bytes());
    match path {
        "/etc/hostname" | "/proc/sys/kernel/hostname" => line(&machine.hostname),
        "/etc/machine-id" => line(&machine.machine_id),
        "/etc/ssh/ssh_host_ed25519_key" => machine.host_key.as_ref().map(|key| key.0.clone().into_bytes()),
        "/etc/ssh/ssh_host_ed25519_key.pub" => machine.host_key.as_ref().and_then(|key| line(&key.1)),
        "/root/.ssh/authorized_keys" => line(&machine.ssh_keys.join("\n")),
        "/etc/resolv.conf" => {
            line(&machine.dns.iter().map(|dns| format!("nameserver {dns}")).collect::<Vec<_>>().join("\n"))
        }
        "/proc/sys/kernel/random/boot_id" => line(&machine.boot_id),
        "/proc/sys/kernel/random/uuid" => sim.change(Machine::uuid).ok().and_then(|uuid| line(&uuid)),
        "/proc/uptime" => line(&format!("{:.2}", sim.uptime().as_secs_f64())),
        "/proc/mounts" => {
            machine.data.as_ref().and_then(|(uuid, mount)| line(&format!("{uuid} {mount} ext4")))
        }
        "/sys/class/net/eth0/mtu" => line(&machine.mtu.to_string()),
        _ => None,
    }
}
