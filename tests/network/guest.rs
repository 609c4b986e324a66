//! Who is there: guests, what they send when they are honest, and the addresses of everybody else.

use std::{cell::Cell, net::Ipv4Addr};

use mvm::{
    net::{Lease, TenantNet, TenantRates},
    vm::naming::{NetId, Offset, Slot, Subnet},
};

use super::frames::{Arp, BROADCAST, Body, Mac, Packet};

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
        self.packet(neighbour.ip(), body).via(neighbour.mac())
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

/// Connections that a guest of few may have open.
pub const FEW: u32 = 5;
/// New connections per second of a guest of brisk.
pub const SLOW: u32 = 5;

pub fn tenant_of(net_id: u16, rates: TenantRates) -> TenantNet {
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

/// A packet from the outside, to the host's MAC.
pub fn outside(from: Ipv4Addr, to_mac: Mac, to: Ipv4Addr, body: Body) -> Packet {
    Packet { to_mac, from_mac: ROUTER_MAC, from, to, body, tag: None }
}
