//! Probes with real packets on a tenant's own bridge: two guests that are nobody's, for a moment.
//!
//! Each has a TAP, a lease's elements and an address that no instance holds, made by the code that makes an instance's. The
//! TAPs are not kept: they go when the descriptors close, however this process ends, and elements that a killed one
//! leaves are what `net verify` finds and `net repair` removes. Whatever must be dropped is addressed to the other probe,
//! to the host or to nobody, and claims only what the two own: so where a rule is missing, no guest is told lies.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Lease, Net, NetError, TenantNet,
    egress::Egress,
    links,
    packets::{self, BROADCAST, Body, Marker, Packet},
};
use crate::{
    infra::failpoint,
    vm::naming::{Mac, Slot},
};

/// How long an answer may take that must come.
const PATIENCE: Duration = Duration::from_millis(500);

/// Nobody's MAC, and not one that mvm gives.
const NOBODY: Mac = Mac::new([0x06, 0x6d, 0x76, 0x6d, 0, 1]);

/// An address in a network for benchmarks: no policy but `open` lets it out.
const NOT_INTERNET: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// What came of one probe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// What was tried.
    pub name: &'static str,
    /// Must it be answered? Else it must be dropped.
    pub must_answer: bool,
    /// Was it as it must be?
    pub ok: bool,
    /// How long the answer took.
    pub ms: Option<f64>,
}

/// One of the two guests.
struct Guest {
    lease: Lease,
    tap: File,
    /// What arrived.
    seen: Vec<Vec<u8>>,
}

impl Guest {
    fn mac(&self) -> Mac {
        self.lease.slot.mac()
    }

    fn packet(&self, to_mac: Mac, to: Ipv4Addr, body: Body) -> Packet {
        Packet { to_mac, from_mac: self.mac(), from: self.lease.ip, to, body }
    }

    fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        // A header of virtio-net without any offload comes first.
        self.tap.write_all(&[&[0; 10], frame].concat())
    }

    /// Reads what arrives until something is found; `None` where it does not come in time.
    fn wait<T>(&mut self, limit: Duration, found: impl Fn(&[u8]) -> Option<T>) -> std::io::Result<Option<T>> {
        let deadline = Instant::now() + limit;
        let mut buffer = [0_u8; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            if poll(&mut [PollFd::from_borrowed_fd(self.tap.as_fd(), PollFlags::IN)], Some(&left))? == 0 {
                return Ok(None);
            }
            let length = self.tap.read(&mut buffer)?;
            let frame = buffer.get(10..length).unwrap_or_default();
            self.seen.push(frame.to_vec());
            if let Some(found) = found(frame) {
                return Ok(Some(found));
            }
        }
    }

    fn has_seen(&self, marker: &Marker) -> bool {
        self.seen.iter().any(|frame| packets::holds(frame, marker))
    }
}

/// What is asked besides the tenant itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Others {
    /// Another tenant's gateway, where there is one.
    pub gateway: Option<Ipv4Addr>,
    /// Another address of the host, where it has one.
    pub host: Option<Ipv4Addr>,
    /// Is there a default route? Without one nothing is asked of a policy.
    pub uplink: bool,
}

impl Net {
    /// Sends probes from two free slots of a tenant. The caller sees to it that nobody takes them meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses what an instance would need too; nothing is left behind then.
    pub fn probe(
        &mut self,
        tenant: &TenantNet,
        slots: [Slot; 2],
        others: Others,
    ) -> Result<Vec<Probe>, NetError> {
        let lease = |slot: Slot| Lease {
            slot,
            ip: tenant.subnet.address(slot.offset),
            subnet: tenant.subnet,
            egress: Egress::Internet,
            published: Vec::new(),
        };
        let leases = slots.map(lease);
        let probed = self.plug_and_probe(tenant, &leases, others);
        let cleaned = leases.iter().try_for_each(|lease| self.remove_lease(tenant, lease));
        let probed = probed?;
        cleaned.map(|()| probed)
    }

    fn plug_and_probe(
        &mut self,
        tenant: &TenantNet,
        leases: &[Lease; 2],
        others: Others,
    ) -> Result<Vec<Probe>, NetError> {
        let mut plug = |lease: &Lease| -> Result<Guest, NetError> {
            let name = lease.slot.tap();
            self.delete_tap(lease.slot)?;
            if let Some(other) = links::find(&mut self.route, &name)? {
                return Err(links::foreign(&other));
            }
            let tap = links::open_tap(&name).map_err(NetError::kernel("make TAP", &name))?;
            let mtu = links::find(&mut self.route, &tenant.net_id.bridge())?.map_or(1500, |link| link.mtu);
            links::prepare_tap(&mut self.route, &name, mtu)?;
            self.join(lease.slot)?;
            Ok(Guest { lease: lease.clone(), tap, seen: Vec::new() })
        };
        let mut a = plug(&leases[0])?;
        let mut b = plug(&leases[1])?;
        let refused = NetError::kernel("probe", tenant.net_id.bridge());
        let marker = new_marker();
        let early = a.packet(b.mac(), b.lease.ip, Body::Udp { from: 9, to: 9 }).frame(&marker);
        let asked = packets::arp(BROADCAST, 1, (a.mac(), a.lease.ip), tenant.subnet.gateway(), &marker);
        let sent = a.send(&early).and_then(|()| a.send(&asked));
        if let Err(error) = sent {
            return Err(refused(error));
        }
        for lease in leases {
            self.add_lease(lease)?;
        }
        failpoint::hit("probe", "leased").map_err(NetError::kernel("probe", tenant.net_id.bridge()))?;
        run(tenant, &mut a, &mut b, others, &marker).map_err(refused)
    }
}

fn new_marker() -> Marker {
    let mut marker = *b"mvm:\0\0\0\0\0\0\0\0";
    marker[4..].copy_from_slice(&fastrand::u64(..).to_be_bytes());
    marker
}

fn run(
    tenant: &TenantNet,
    a: &mut Guest,
    b: &mut Guest,
    others: Others,
    early: &Marker,
) -> std::io::Result<Vec<Probe>> {
    let (gateway, gateway_mac) = (tenant.subnet.gateway(), tenant.net_id.gateway_mac());
    let udp = |to| Body::Udp { from: 6801, to };
    let host = UdpSocket::bind(("0.0.0.0", 0))?;
    host.set_nonblocking(true)?;
    let port = host.local_addr()?.port();

    // What must be dropped goes first: the honest packets after it show that it would have come.
    let mut dropped: Vec<(&'static str, Marker)> = vec![("before_its_lease", *early)];
    let mut deny = |from: &mut Guest, name, frame: &dyn Fn(&Marker) -> Vec<u8>| {
        let marker = new_marker();
        dropped.push((name, marker));
        from.send(&frame(&marker))
    };
    let to_b = a.packet(b.mac(), b.lease.ip, udp(9));
    let (a_mac, a_ip, b_mac, b_ip) = (a.mac(), a.lease.ip, b.mac(), b.lease.ip);
    let reserved = Mac::new([0x01, 0x80, 0xc2, 0, 0, 0x0e]);
    deny(a, "spoofed_ip", &|m| Packet { from: b_ip, ..to_b }.frame(m))?;
    deny(a, "spoofed_mac", &|m| Packet { from_mac: NOBODY, ..to_b }.frame(m))?;
    deny(a, "arp_claim", &|m| packets::arp(b_mac, 2, (a_mac, b_ip), b_ip, m))?;
    deny(a, "vlan_tag", &|m| packets::tagged(to_b.frame(m), 5))?;
    deny(a, "ipv6", &|m| packets::ipv6(b_mac, a_mac, m))?;
    deny(a, "dhcp_answer", &|m| Packet { body: Body::Udp { from: 67, to: 68 }, ..to_b }.frame(m))?;
    deny(a, "unknown_unicast", &|m| Packet { to_mac: NOBODY, ..to_b }.frame(m))?;
    // From the other one: what the kernel may think of it uses up the refusals that it has for an address.
    let back = b.packet(gateway_mac, a_ip, udp(9));
    deny(b, "routed_back", &|m| back.frame(m))?;
    let to_host = Packet { to_mac: gateway_mac, to: gateway, body: udp(port), ..to_b };
    deny(a, "unoffered_port", &|m| to_host.frame(m))?;
    deny(a, "reserved_mac", &|m| Packet { to_mac: reserved, ..to_host }.frame(m))?;
    let ping = Packet { body: Body::Ping, ..to_host };
    for (name, address) in [("other_gateway", others.gateway), ("other_host_address", others.host)] {
        if let Some(to) = address {
            deny(a, name, &|m| Packet { to, ..ping }.frame(m))?;
        }
    }

    let mut probes = Vec::new();
    let mut answered = |name, start: Instant, found: bool| {
        let ms = found.then(|| start.elapsed().as_secs_f64() * 1000.0);
        probes.push(Probe { name, must_answer: true, ok: found, ms });
    };
    let marker = new_marker();
    let start = Instant::now();
    a.send(&packets::arp(BROADCAST, 1, (a_mac, a_ip), gateway, &marker))?;
    let mac = a.wait(PATIENCE, |frame| packets::mac_of(frame, gateway))?;
    answered("gateway_arp", start, mac == Some(gateway_mac));

    let marker = new_marker();
    let start = Instant::now();
    a.send(&ping.frame(&marker))?;
    let echo =
        |frame: &[u8]| (packets::holds(frame, &marker) && packets::icmp(frame) == Some(0)).then_some(());
    answered("gateway_ping", start, a.wait(PATIENCE, echo)?.is_some());

    let marker = new_marker();
    let start = Instant::now();
    a.send(&to_b.frame(&marker))?;
    let arrived = |frame: &[u8]| packets::holds(frame, &marker).then_some(());
    answered("east_west", start, b.wait(PATIENCE, arrived)?.is_some());

    let marker = new_marker();
    let start = Instant::now();
    host.send_to(&marker, (a_ip, 9))?;
    let arrived = |frame: &[u8]| packets::holds(frame, &marker).then_some(());
    answered("host_to_guest", start, a.wait(PATIENCE, arrived)?.is_some());

    if others.uplink {
        let marker = new_marker();
        let start = Instant::now();
        a.send(&Packet { to_mac: gateway_mac, to: NOT_INTERNET, ..to_b }.frame(&marker))?;
        let refusal =
            |frame: &[u8]| (packets::holds(frame, &marker) && packets::icmp(frame) == Some(3)).then_some(());
        answered("egress_refusal", start, a.wait(PATIENCE, refusal)?.is_some());
    }

    let mut heard = Vec::new();
    let mut buffer = [0_u8; 256];
    while let Ok(length) = host.recv(&mut buffer) {
        heard.push(buffer[..length].to_vec());
    }
    for (name, marker) in dropped {
        let seen = a.has_seen(&marker)
            || b.has_seen(&marker)
            || heard.iter().any(|bytes| packets::holds(bytes, &marker));
        probes.push(Probe { name, must_answer: false, ok: !seen, ms: None });
    }
    Ok(probes)
}
