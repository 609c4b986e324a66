//! A node in a network namespace of its own: tenants and leases as mvm's own code makes them, and the test in the place of every
//! guest, of the uplink's whole outside, and of the host's services.
//!
//! The kernel handles a frame that is written to a TAP before the write returns. Nothing here relies on it: whoever looks
//! for what must not arrive first waits for an honest packet that was sent after it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use mvm::{
    net::{Desired, Net, TenantRates, links},
    vm::naming::Slot,
};

use super::{
    frames::{Mac, Marker, Seen},
    guest::{
        At, DMZ, DMZ_MAC, DNS, FEW, Guest, HOST, LAN, LAN_MAC, MTU, ROUTER, ROUTER_MAC, SLOW, UNOFFERED,
        guest_of, tenant_of,
    },
    tools::{has_br_netfilter, ip, mac_of, set, text},
};

/// A verdict on one row: `Err` says what was seen.
pub type Verdict = Result<(), String>;

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
    pub wires: BTreeMap<At, File>,
    services: BTreeMap<u16, UdpSocket>,
    pub seen: Vec<(At, Seen)>,
    next: u64,
    /// How long something that must arrive is waited for.
    pub patience: Duration,
    /// The MAC of the uplink's interface.
    pub uplink_mac: Mac,
}

/// Moves this thread into an empty network namespace.
fn enter_empty_network() {
    // SAFETY: the thread belongs to this test alone.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("a namespace");
}

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
        let mut net = Net::open("test").expect("netlink");
        let mut guests = BTreeMap::new();
        // More than all rows send together, however fast: none meets a limit that another one reached.
        let plenty = TenantRates { max_conns: 100_000, new_per_second: 50_000 };
        let acme = tenant_of(3, plenty);
        let globex = tenant_of(4, plenty);
        let few = tenant_of(5, TenantRates { max_conns: FEW, ..plenty });
        let brisk = tenant_of(6, TenantRates { new_per_second: SLOW, ..plenty });
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

    /// Gives a guest another egress policy.
    pub fn change_egress(&mut self, guest: &mut Guest, policy: &str) {
        guest.lease.egress = policy.parse().expect("a policy");
        self.net.update_egress(std::slice::from_ref(&guest.lease)).expect("another policy");
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
