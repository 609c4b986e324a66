//! A node in a network namespace of its own: tenants and leases as mvm's own code makes them, and the test in the place of every
//! guest, of the uplink's whole outside, and of the host's services.
//!
//! The kernel handles a frame that is written to a TAP before the write returns. Nothing here relies on it: whoever looks
//! for what must not arrive first waits for an honest packet that was sent after it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mvm::{
    net::{Desired, Lease, Net, TenantNet, TenantRates, links},
    vm::naming::{NetId, Offset, Slot, Subnet},
};

use super::frames::{Arp, BROADCAST, Body, Mac, Marker, Packet, Seen};

/// A verdict on one row: `Err` says what was seen.
pub type Verdict = Result<(), String>;

/// Where frames come from and arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// A guest, by its letter.
    Guest(char),
    /// A port of acme's bridge that mvm did not make.
    Stray,
    /// The wire behind the uplink.
    Uplink,
    /// The wire of another network that the host is on.
    Dmz,
    /// A UDP socket of the host, on all its addresses.
    Host(u16),
}

pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const ROUTER_MAC: Mac = [0x02, 0xaa, 0, 0, 0, 1];
/// The host's own address on the uplink, in a public network.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Another machine on the uplink's network.
pub const LAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
pub const LAN_MAC: Mac = [0x02, 0xaa, 0, 0, 0, 77];
/// A machine in the host's other network.
pub const DMZ: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 5);
pub const DMZ_MAC: Mac = [0x02, 0xbb, 0, 0, 0, 5];
/// Somebody on the internet.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The uplink's MTU, from which MSS are clamped.
pub const MTU: u32 = 1400;
/// The host's services: one that nobody offers to guests, and one where DNS would be.
pub const UNOFFERED: u16 = 7777;
pub const DNS: u16 = 53;

/// A guest, played by the test.
#[derive(Debug, Clone)]
pub struct Guest {
    pub tenant: TenantNet,
    pub lease: Lease,
}

impl Guest {
    pub fn mac(&self) -> Mac {
        self.lease.slot.mac().octets()
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.lease.ip
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.tenant.subnet.gateway()
    }

    pub fn gateway_mac(&self) -> Mac {
        self.tenant.net_id.gateway_mac().octets()
    }

    /// An honest packet of this guest, by way of its gateway.
    pub fn packet(&self, to: Ipv4Addr, body: Body) -> Packet {
        Packet { to_mac: self.gateway_mac(), from_mac: self.mac(), from: self.ip(), to, body, tag: None }
    }

    /// Asks everybody for the MAC of an address.
    pub fn asks(&self, target: Ipv4Addr) -> Arp {
        Arp {
            to_mac: BROADCAST,
            from_mac: self.mac(),
            operation: 1,
            sender_mac: self.mac(),
            sender: self.ip(),
            target_mac: [0; 6],
            target,
        }
    }

    /// Tells a neighbour its own MAC.
    pub fn answers(&self, neighbour: &Guest) -> Arp {
        Arp {
            to_mac: neighbour.mac(),
            operation: 2,
            target_mac: neighbour.mac(),
            ..self.asks(neighbour.ip())
        }
    }

    /// An honest packet to a neighbour.
    pub fn to(&self, neighbour: &Guest, body: Body) -> Packet {
        self.packet(neighbour.ip(), body).to_mac(neighbour.mac())
    }
}

/// A ping.
pub fn ping() -> Body {
    thread_local!(static ID: Cell<u16> = const { Cell::new(1) });
    let id = ID.get();
    ID.set(id.wrapping_add(1));
    Body::Echo { kind: 8, id }
}

/// A UDP packet to a port, from a port that nobody else uses.
pub fn udp(to: u16) -> Body {
    thread_local!(static PORT: Cell<u16> = const { Cell::new(20_000) });
    let from = PORT.get();
    PORT.set(from + 1);
    Body::Udp { from, to }
}

/// What kind of host a node is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kind {
    /// `bridge-nf-call-iptables`: the host's IP hooks see what is bridged.
    pub bridge_nf: bool,
    /// `ip_forward`: somebody made a router of it before mvm came.
    pub router: bool,
}

impl Kind {
    /// All that this kernel allows.
    pub fn all() -> Vec<Self> {
        let (plain, router) = (Self::default(), Self { router: true, ..Self::default() });
        let seeing = Self { bridge_nf: true, ..plain };
        if has_br_netfilter() { vec![plain, seeing, router] } else { vec![plain, router] }
    }
}

/// A node.
pub struct World {
    pub kind: Kind,
    pub net: Net,
    pub guests: BTreeMap<char, Guest>,
    wires: BTreeMap<At, File>,
    services: BTreeMap<u16, UdpSocket>,
    seen: Vec<(At, Seen)>,
    next: u64,
    /// How long something that must arrive is waited for.
    pub patience: Duration,
    /// The MAC of the uplink's interface.
    pub uplink_mac: Mac,
}

/// Is br_netfilter there? Its switch belongs to each network namespace.
pub fn has_br_netfilter() -> bool {
    std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}

/// Moves this thread into an empty network namespace.
fn enter_empty_network() {
    // SAFETY: the thread belongs to this test alone.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("a namespace");
}

/// Gives a program its input, and fails where it fails.
pub fn feed(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{program}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
}

pub fn ip(lines: &str) {
    feed("ip", &["-batch", "-"], lines);
}

pub fn nft(text: &str) {
    feed("nft", &["-f", "-"], text);
}

pub fn set(setting: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap_or_else(|e| panic!("{setting}: {e}"));
}

fn tenant(net_id: u16, rates: TenantRates) -> TenantNet {
    let subnet: Subnet = format!("10.240.{net_id}.0/24").parse().expect("a subnet");
    TenantNet { net_id: NetId::try_from(net_id).expect("a net id"), subnet, rates }
}

pub fn guest_of(tenant: &TenantNet, offset: u16, egress: &str, published: &[&str]) -> Guest {
    let slot = Slot { net_id: tenant.net_id, offset: Offset::new(offset) };
    let lease = Lease {
        slot,
        ip: tenant.subnet.address(slot.offset),
        subnet: tenant.subnet,
        egress: egress.parse().expect("a policy"),
        published: published.iter().map(|port| port.parse().expect("a port")).collect(),
    };
    Guest { tenant: tenant.clone(), lease }
}

/// Connections that a guest of few may have open.
pub const FEW: u32 = 5;
/// New connections per second of a guest of brisk.
pub const SLOW: u32 = 5;

impl World {
    /// A node with four tenants: acme (3), globex (4), few with hardly any connections (5), brisk with hardly any new ones (6).
    pub fn new(kind: Kind) -> Self {
        enter_empty_network();
        let value = if kind.bridge_nf { "1" } else { "0" };
        if has_br_netfilter() {
            set("bridge/bridge-nf-call-iptables", value);
            set("bridge/bridge-nf-call-arptables", value);
        }
        set("ipv4/ip_forward", if kind.router { "1" } else { "0" });
        for setting in ["all/rp_filter", "default/rp_filter"] {
            set(&format!("ipv4/conf/{setting}"), "0");
        }
        // Nothing of what is counted comes from IPv6 on wires that are not mvm's.
        set("ipv6/conf/default/disable_ipv6", "0");
        // Each refusal is to be heard.
        set("ipv4/icmp_ratelimit", "0");
        let mut wires = BTreeMap::new();
        for (at, name) in [(At::Uplink, "up0"), (At::Dmz, "dmz0"), (At::Stray, "stray0")] {
            set("ipv6/conf/default/disable_ipv6", "1");
            wires.insert(at, links::open_tap(name).expect("a TAP"));
            set("ipv6/conf/default/disable_ipv6", "0");
        }
        ip(&format!(
            "link set lo up\n\
             link set up0 mtu {MTU} up\n\
             addr add {HOST}/24 dev up0\n\
             link set dmz0 up\n\
             addr add 192.168.77.1/24 dev dmz0\n\
             neigh add {ROUTER} lladdr {} dev up0 nud permanent\n\
             neigh add {LAN} lladdr {} dev up0 nud permanent\n\
             neigh add {DMZ} lladdr {} dev dmz0 nud permanent\n\
             route add default via {ROUTER}\n\
             route add 10.240.77.0/24 via {ROUTER}\n",
            text(ROUTER_MAC),
            text(LAN_MAC),
            text(DMZ_MAC)
        ));
        let mut net = Net::open().expect("netlink");
        let mut guests = BTreeMap::new();
        let plenty = TenantRates { max_conns: 1000, new_per_second: 500 };
        let acme = tenant(3, plenty);
        let globex = tenant(4, plenty);
        let few = tenant(5, TenantRates { max_conns: FEW, ..plenty });
        let brisk = tenant(6, TenantRates { new_per_second: SLOW, ..plenty });
        for (letter, guest) in [
            ('a', guest_of(&acme, 3, "internet", &[])),
            ('b', guest_of(&acme, 4, "internet", &["tcp:8080:80", "udp:8053:53"])),
            ('c', guest_of(&acme, 5, "open", &[])),
            ('d', guest_of(&acme, 6, "deny", &[])),
            ('e', guest_of(&acme, 7, "allow:198.51.100.0/24:443,203.0.113.7/32,10.0.0.0/8", &[])),
            ('f', guest_of(&acme, 8, "internet", &[])),
            ('g', guest_of(&globex, 3, "internet", &["udp:8054:53"])),
            ('h', guest_of(&few, 3, "internet", &[])),
            ('i', guest_of(&brisk, 3, "internet", &[])),
            ('j', guest_of(&brisk, 4, "internet", &[])),
            ('k', guest_of(&few, 4, "internet", &["udp:8055:53"])),
            ('l', guest_of(&acme, 9, "internet", &[])),
            ('m', guest_of(&acme, 10, "internet", &["udp:8056:53"])),
            ('n', guest_of(&acme, 11, "internet", &[])),
        ] {
            guests.insert(letter, guest);
        }
        for tenant in [&acme, &globex, &few, &brisk] {
            net.ensure_tenant(tenant).expect("a tenant");
        }
        let mut world = Self {
            kind,
            net,
            guests,
            wires,
            services: BTreeMap::new(),
            seen: Vec::new(),
            next: 1,
            patience: Duration::from_millis(500),
            uplink_mac: mac_of("up0"),
        };
        let letters: Vec<char> = world.guests.keys().copied().collect();
        for letter in letters {
            world.lease(letter);
            world.plug(letter);
        }
        ip("link set stray0 master br-tenant-3 up\n");
        for port in [UNOFFERED, DNS] {
            let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a socket");
            socket.set_nonblocking(true).expect("not blocking");
            world.services.insert(port, socket);
        }
        for wire in world.wires.values() {
            not_blocking(wire);
        }
        world
    }

    pub fn guest(&self, letter: char) -> Guest {
        self.guests[&letter].clone()
    }

    /// Makes a guest's lease.
    pub fn lease(&mut self, letter: char) {
        let guest = self.guest(letter);
        self.net.add_lease(&guest.lease).expect("a lease");
    }

    /// Makes a guest's TAP and puts it on the bridge, as a start does, and opens it, as its VMM does.
    pub fn plug(&mut self, letter: char) {
        let slot = self.guest(letter).lease.slot;
        self.net.create_tap(slot, None).expect("a TAP");
        let mut tap = links::open_tap(&slot.tap());
        // A program that another thread starts at this moment holds what was open until it runs.
        crate::support::wait_until("the TAP opens", || {
            if tap.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY)) {
                tap = links::open_tap(&slot.tap());
            }
            tap.as_ref().is_ok()
        });
        let tap = tap.expect("the TAP opens");
        not_blocking(&tap);
        self.net.join(slot).expect("it joins");
        self.wires.insert(At::Guest(letter), tap);
    }

    /// Removes a guest's TAP, as a stop does.
    pub fn unplug(&mut self, letter: char) {
        self.wires.remove(&At::Guest(letter));
        self.net.delete_tap(self.guest(letter).lease.slot).expect("it goes");
    }

    /// What mvm's files would say.
    pub fn desired(&self) -> Desired {
        let mut desired = Desired::default();
        for (letter, guest) in &self.guests {
            if !desired.tenants.contains(&guest.tenant) {
                desired.tenants.push(guest.tenant.clone());
            }
            desired.leases.push(guest.lease.clone());
            if self.wires.contains_key(&At::Guest(*letter)) {
                desired.attached.push(guest.lease.slot);
            }
        }
        desired
    }

    /// A marker that no other frame has.
    pub fn marker(&mut self) -> Marker {
        self.next += 1;
        let mut marker = *b"\xf0mv\x00\x00\x00\x00\x0f";
        marker[3..7].copy_from_slice(&(self.next as u32).to_be_bytes());
        marker
    }

    /// Puts a frame on a wire.
    pub fn put(&mut self, at: At, frame: &[u8]) {
        write(self.wires.get(&at).unwrap_or_else(|| panic!("no wire at {at:?}")), frame);
    }

    /// The same wire once more, for another thread.
    pub fn clone_of(&self, at: At) -> File {
        self.wires[&at].try_clone().expect("another descriptor")
    }

    /// Takes in what arrived, and keeps only what has one of these markers.
    pub fn collect_only(&mut self, markers: &[Marker]) {
        self.collect();
        self.seen.retain(|(_, frame)| markers.iter().any(|marker| frame.has(marker)));
    }

    /// Takes in whatever arrived anywhere.
    pub fn collect(&mut self) {
        let mut buffer = [0_u8; 4096];
        for (at, mut wire) in &self.wires {
            loop {
                match wire.read(&mut buffer) {
                    Ok(length) if length > 24 => self.seen.push((*at, Seen(buffer[10..length].to_vec()))),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("reading at {at:?}: {error}"),
                }
            }
        }
        for (port, socket) in &self.services {
            while let Ok(length) = socket.recv(&mut buffer) {
                // As a frame that came from nowhere, so that it can be searched like the others.
                let mut frame = vec![0; 42];
                frame.extend_from_slice(&buffer[..length]);
                self.seen.push((At::Host(*port), Seen(frame)));
            }
        }
    }

    /// Forgets what was seen.
    pub fn forget(&mut self) {
        self.collect();
        self.seen.clear();
    }

    /// What was seen, anywhere.
    pub fn seen(&mut self) -> &[(At, Seen)] {
        self.collect();
        &self.seen
    }

    /// What was seen with a marker.
    pub fn seen_with(&mut self, marker: &[u8]) -> Vec<(At, Seen)> {
        self.collect();
        self.seen.iter().filter(|(_, frame)| frame.has(marker)).cloned().collect()
    }

    /// Waits for a frame.
    pub fn wait(&mut self, what: &str, found: impl Fn(&(At, Seen)) -> bool) -> Result<Seen, String> {
        let deadline = Instant::now() + self.patience;
        loop {
            self.collect();
            if let Some((_, frame)) = self.seen.iter().find(|seen| found(seen)) {
                return Ok(frame.clone());
            }
            if Instant::now() > deadline {
                return Err(format!("{what}: nothing came"));
            }
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    /// A frame that must arrive at a place.
    pub fn arrives(&mut self, from: At, at: At, frame: impl Fn(Marker) -> Vec<u8>) -> Result<Seen, String> {
        let marker = self.marker();
        self.put(from, &frame(marker));
        self.wait(&format!("{from:?} to {at:?}"), |(place, frame)| *place == at && frame.has(&marker))
    }

    /// A packet that must arrive at a place.
    pub fn packet_arrives(&mut self, from: At, at: At, packet: &Packet) -> Result<Seen, String> {
        self.arrives(from, at, |marker| packet.frame(marker))
    }

    /// A ping that must be answered where it came from.
    pub fn answered(&mut self, from: At, packet: &Packet) -> Result<Seen, String> {
        let marker = self.marker();
        self.put(from, &packet.frame(marker));
        self.wait(&format!("{from:?} pings {}", packet.to), |(place, frame)| {
            *place == from && frame.has(&marker) && frame.icmp() == Some((0, 0))
        })
    }

    /// Waits until everything that was sent before has been handled: an honest packet after it arrives.
    pub fn settle(&mut self, from: At) -> Verdict {
        match from {
            At::Guest(letter) => {
                let guest = self.guest(letter);
                let echo = guest.packet(guest.gateway(), ping());
                self.answered(from, &echo).map(drop)
            }
            At::Stray | At::Uplink | At::Host(_) => {
                let echo = outside(LAN, self.uplink_mac, HOST, ping());
                self.answered(At::Uplink, &echo).map(drop)
            }
            At::Dmz => Ok(()),
        }
    }

    /// A frame that must arrive nowhere, and get no answer.
    pub fn nowhere(&mut self, from: At, frame: impl Fn(Marker) -> Vec<u8>) -> Verdict {
        let marker = self.marker();
        self.put(from, &frame(marker));
        self.settle(from)?;
        // What unknown ports of somebody else's are flooded with is not mvm's to say.
        match self.seen_with(&marker).iter().find(|(at, _)| *at != At::Stray) {
            None => Ok(()),
            Some((at, frame)) => Err(format!("a frame from {from:?} turned up at {at:?}: {:02x?}", frame.0)),
        }
    }

    /// A packet that must arrive nowhere, and get no answer.
    pub fn packet_nowhere(&mut self, from: At, packet: &Packet) -> Verdict {
        self.nowhere(from, |marker| packet.frame(marker))
    }

    /// A packet that must be refused: its sender hears so, and nobody else hears of it.
    pub fn refused(&mut self, from: At, packet: &Packet) -> Verdict {
        let marker = self.marker();
        self.put(from, &packet.frame(marker));
        self.settle(from)?;
        let seen = self.seen_with(&marker);
        let what = format!("{from:?} to {}", packet.to);
        if let Some((at, _)) = seen.iter().find(|(at, _)| *at != from) {
            return Err(format!("{what}: arrived at {at:?}"));
        }
        match seen.first().and_then(|(_, frame)| frame.icmp()) {
            Some((3, 13)) => Ok(()),
            other => Err(format!("{what}: the answer was {other:?}, not a refusal")),
        }
    }

    /// A packet that must not arrive at any guest; the host may answer it.
    pub fn never_at_a_guest(&mut self, from: At, packet: &Packet) -> Verdict {
        let marker = self.marker();
        self.put(from, &packet.frame(marker));
        self.settle(from)?;
        match self.seen_with(&marker).iter().find(|(at, _)| matches!(at, At::Guest(_))) {
            None => Ok(()),
            Some((at, _)) => Err(format!("{from:?} to {} arrived at {at:?}", packet.to)),
        }
    }

    /// A broadcast question that the neighbours hear, and nobody else.
    pub fn heard_by_neighbours_only(&mut self, letter: char, asks: Arp) -> Verdict {
        let net_id = self.guest(letter).tenant.net_id;
        let marker = self.marker();
        self.put(At::Guest(letter), &asks.frame(marker));
        self.settle(At::Guest(letter))?;
        let seen = self.seen_with(&marker);
        if seen.is_empty() {
            return Err("not even the neighbours heard it".into());
        }
        let neighbour = |at: &At| match at {
            At::Guest(other) => *other != letter && self.guests[other].tenant.net_id == net_id,
            At::Stray => true,
            _ => false,
        };
        match seen.iter().find(|(at, _)| !neighbour(at)) {
            None => Ok(()),
            Some((at, _)) => Err(format!("a question of {letter} was heard at {at:?}")),
        }
    }

    /// An address for which no MAC is given.
    pub fn gives_no_mac(&mut self, letter: char, address: Ipv4Addr) -> Verdict {
        self.forget();
        let guest = self.guest(letter);
        // Asked directly, a host that answers for others does so at once.
        for to_mac in [BROADCAST, guest.gateway_mac()] {
            self.put(At::Guest(letter), &Arp { to_mac, ..guest.asks(address) }.frame([0; 8]));
        }
        self.settle(At::Guest(letter))?;
        let answered = |(at, frame): &&(At, Seen)| {
            *at == At::Guest(letter) && frame.is_arp() && frame.0[21] == 2 && frame.ip(28) == address
        };
        match self.seen().iter().find(answered) {
            None => Ok(()),
            Some(_) => Err(format!("{address} was answered for")),
        }
    }

    /// Gives a guest another egress policy.
    pub fn change_egress(&mut self, guest: &mut Guest, policy: &str) {
        guest.lease.egress = policy.parse().expect("a policy");
        self.net.update_egress(&guest.lease).expect("another policy");
        let known = self.guests.values_mut().find(|other| other.lease.slot == guest.lease.slot);
        known.expect("it is there").lease = guest.lease.clone();
    }

    /// One of the host's services sends something.
    pub fn host_sends(&self, service: u16, to: (Ipv4Addr, u16), bytes: &[u8]) {
        // That it cannot be sent is for the caller to see.
        let _ = self.services[&service].send_to(bytes, to);
    }

    /// The tenants' bridges.
    pub fn bridges(&self) -> Vec<String> {
        self.desired().tenants.iter().map(|tenant| tenant.net_id.bridge()).collect()
    }

    /// The guests' TAPs.
    pub fn taps(&self) -> Vec<String> {
        self.desired().attached.iter().map(|slot| slot.tap()).collect()
    }

    /// The MAC of the guest behind a TAP.
    pub fn mac_behind(&self, tap: &str) -> String {
        Slot::from_tap(tap).expect("a TAP").mac().to_string()
    }

    /// The MAC of a TAP's host side.
    pub fn tap_mac(&self, letter: char) -> Mac {
        mac_of(&self.guest(letter).lease.slot.tap())
    }

    pub fn dmz_mac(&self) -> Mac {
        mac_of("dmz0")
    }

    /// How many of these packets arrive at a place.
    pub fn count(&mut self, from: At, at: At, frames: &[Vec<u8>], marker: Marker) -> Result<usize, String> {
        self.count_until(from, at, frames, marker, from)
    }

    /// How many of these packets arrive at a place, where their sender may have used up what it may send.
    pub fn count_beside(&mut self, from: At, at: At, frames: &[Vec<u8>], marker: Marker) -> Result<usize, String> {
        self.count_until(from, at, frames, marker, At::Guest('a'))
    }

    fn count_until(
        &mut self,
        from: At,
        at: At,
        frames: &[Vec<u8>],
        marker: Marker,
        last: At,
    ) -> Result<usize, String> {
        for chunk in frames.chunks(100) {
            for frame in chunk {
                self.put(from, frame);
            }
            // A TAP keeps a thousand frames, a socket fewer.
            self.collect();
        }
        self.settle(last)?;
        Ok(self.seen_with(&marker).iter().filter(|(place, _)| *place == at).count())
    }
}

/// The host's neighbour entries, on all interfaces.
pub fn neighbours() -> Vec<String> {
    let output = Command::new("ip").args(["-4", "neigh", "show", "nud", "all"]).output().expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = |line: &str| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    let mut entries: Vec<String> = text.lines().map(address).collect();
    entries.sort();
    entries
}

fn mac_of(name: &str) -> Mac {
    let mut socket = mvm::net::netlink::Socket::route().expect("netlink");
    let link = links::find(&mut socket, name).expect("links").expect("it is there");
    link.mac.expect("a MAC").octets()
}

/// Writes a frame to a TAP.
pub fn write(mut wire: &File, frame: &[u8]) {
    // A header of virtio-net without any offload, then the frame: what Firecracker writes.
    let mut bytes = vec![0; 10];
    bytes.extend_from_slice(frame);
    match wire.write(&bytes) {
        Ok(_) => {}
        // A port that is down takes nothing.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        Err(error) => panic!("a frame: {error}"),
    }
}

fn not_blocking(file: &File) {
    let flags = rustix::fs::fcntl_getfl(file).expect("flags");
    rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK).expect("flags");
}

fn text(mac: Mac) -> String {
    mvm::vm::naming::Mac::new(mac).to_string()
}

/// A packet from the outside, to the host's MAC.
pub fn outside(from: Ipv4Addr, to_mac: Mac, to: Ipv4Addr, body: Body) -> Packet {
    Packet { to_mac, from_mac: ROUTER_MAC, from, to, body, tag: None }
}
