//! Addresses, neighbours, forwarding entries and routes, over rtnetlink: each kind written one by one and read all at once.

use std::{collections::HashSet, io, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{
    error::NetError,
    links::{self, Link},
    netlink::{self, CREATE, DUMP, Message, REPLACE, REQUEST, Socket},
};
use crate::vm::naming::{CLUSTER_CIDR, Mac, Slot, Subnet};

const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;

const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_MASTER: u8 = 0x04;

/// The metric of the route that keeps unknown cluster addresses in: any other is better.
const LAST_RESORT: u32 = 4_000_000;

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address and its network.
    pub net: Ipv4Net,
}

/// All IPv4 addresses.
///
/// # Errors
/// When the kernel refuses.
pub fn addresses(socket: &mut Socket) -> Result<Vec<Address>, NetError> {
    let mut found = Vec::new();
    // struct ifaddrmsg
    let message = Message::new(GETADDR, REQUEST | DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    socket
        .exchange(message, |_, payload| {
            let parse = || {
                let ip: [u8; 4] = netlink::attribute(payload.get(8..)?, 2)?.try_into().ok()?;
                let net = Ipv4Net::new(ip.into(), *payload.get(1)?).ok()?;
                Some(Address { index: netlink::number(payload.get(4..8)?)?, net })
            };
            found.extend(parse());
        })
        .map_err(NetError::kernel("list", "addresses"))?;
    Ok(found)
}

/// The public networks in which the host has an address, tenants' bridges apart: probes there would leave neighbour
/// entries, and what is there is not the internet.
pub fn on_link(addresses: &[Address], all: &[Link]) -> Vec<Ipv4Net> {
    let bridges: HashSet<u32> =
        all.iter().filter(|link| link.name.starts_with("br-tenant-")).map(|link| link.index).collect();
    let mut nets: Vec<Ipv4Net> = addresses
        .iter()
        .filter(|address| !bridges.contains(&address.index))
        .map(|address| address.net.trunc())
        .filter(|net| net.prefix_len() > 0 && net.prefix_len() < 32)
        .collect();
    nets.sort();
    nets.dedup();
    Ipv4Net::aggregate(&nets)
}

fn address(kind: u16, flags: u16, index: u32, net: Ipv4Net) -> Message {
    let mut fixed = vec![AF_INET, net.prefix_len(), 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    // IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST
    Message::new(kind, flags, &fixed)
        .with(1, &net.addr().octets())
        .with(2, &net.addr().octets())
        .with(4, &net.broadcast().octets())
}

/// The gateway's address with its network.
pub fn gateway(subnet: Subnet) -> Ipv4Net {
    Ipv4Net::new(subnet.gateway(), subnet.net().prefix_len()).unwrap_or(subnet.net())
}

/// Gives a tenant's bridge its address, and takes any other away.
///
/// # Errors
/// When the kernel refuses.
pub fn give_address(socket: &mut Socket, bridge: &Link, subnet: Subnet) -> Result<(), NetError> {
    let wanted = gateway(subnet);
    for other in addresses(socket)?.iter().filter(|other| other.index == bridge.index && other.net != wanted)
    {
        match socket.request(address(DELADDR, REQUEST, bridge.index, other.net)) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            result => result.map_err(NetError::kernel("take an address from", &bridge.name))?,
        }
    }
    let message = address(NEWADDR, REQUEST | CREATE | REPLACE, bridge.index, wanted);
    socket.request(message).map_err(NetError::kernel("give its address to", &bridge.name))
}

/// Entries that hold whatever a guest says.
#[derive(Debug, Default)]
pub struct Pinned {
    /// Addresses with their MACs, by the bridge's index.
    pub neighbours: HashSet<(u32, Ipv4Addr, Mac)>,
    /// MACs, by the port's index.
    pub macs: HashSet<(u32, Mac)>,
}

/// All permanent neighbours and static forwarding entries.
///
/// # Errors
/// When the kernel refuses.
pub fn pinned(socket: &mut Socket) -> Result<Pinned, NetError> {
    let mut pinned = Pinned::default();
    for family in [AF_INET, AF_BRIDGE] {
        let message = Message::new(GETNEIGH, REQUEST | DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        socket
            .exchange(message, |_, payload| {
                let mut parse = || {
                    let index = netlink::number(payload.get(4..8)?)?;
                    let state = netlink::number(payload.get(8..10)?)? as u16;
                    let body = payload.get(12..)?;
                    let mac = Mac::new(netlink::attribute(body, 2)?.try_into().ok()?);
                    if family == AF_INET && state & NUD_PERMANENT != 0 {
                        let ip: [u8; 4] = netlink::attribute(body, 1)?.try_into().ok()?;
                        pinned.neighbours.insert((index, ip.into(), mac));
                    } else if family == AF_BRIDGE && state & NUD_NOARP != 0 {
                        pinned.macs.insert((index, mac));
                    }
                    Some(())
                };
                let _ = parse();
            })
            .map_err(NetError::kernel("list", "neighbours"))?;
    }
    Ok(pinned)
}

/// Pins the one MAC of a port.
///
/// # Errors
/// When the kernel refuses.
pub fn pin_mac(socket: &mut Socket, tap: &Link, mac: Mac) -> Result<(), NetError> {
    // struct ndmsg: in the bridge's table
    let mut fixed = vec![AF_BRIDGE, 0, 0, 0];
    fixed.extend_from_slice(&tap.index.to_ne_bytes());
    fixed.extend_from_slice(&NUD_NOARP.to_ne_bytes());
    fixed.extend_from_slice(&[NTF_MASTER, 0]);
    let message = Message::new(NEWNEIGH, REQUEST | CREATE | REPLACE, &fixed).with(2, &mac.octets());
    socket.request(message).map_err(NetError::kernel("pin the MAC of", &tap.name))
}

fn neighbour(kind: u16, flags: u16, bridge: u32, ip: Ipv4Addr) -> Message {
    let mut fixed = vec![AF_INET, 0, 0, 0];
    fixed.extend_from_slice(&bridge.to_ne_bytes());
    fixed.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    // NDA_DST
    fixed.extend_from_slice(&[0, 0]);
    Message::new(kind, flags, &fixed).with(1, &ip.octets())
}

/// Pins a guest's address to its MAC on the bridge: the guest cannot fill the host's table, nor claim another's.
///
/// # Errors
/// When the kernel refuses.
pub fn add_neighbour(socket: &mut Socket, slot: Slot, ip: Ipv4Addr) -> Result<(), NetError> {
    let bridge = slot.net_id.bridge();
    let Some(link) = links::find(socket, &bridge)? else {
        return Ok(());
    };
    let message =
        neighbour(NEWNEIGH, REQUEST | CREATE | REPLACE, link.index, ip).with(2, &slot.mac().octets());
    socket.request(message).map_err(NetError::kernel("pin a neighbour on", &bridge))
}

/// Unpins a guest's address; it is well when it was not pinned.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_neighbour(socket: &mut Socket, slot: Slot, ip: Ipv4Addr) -> Result<(), NetError> {
    match links::find(socket, &slot.net_id.bridge())? {
        Some(bridge) => unpin(socket, bridge.index, ip),
        None => Ok(()),
    }
}

/// Unpins an address; it is well when it was not pinned.
///
/// # Errors
/// When the kernel refuses.
pub fn unpin(socket: &mut Socket, bridge: u32, ip: Ipv4Addr) -> Result<(), NetError> {
    match socket.request(neighbour(DELNEIGH, REQUEST, bridge, ip)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(NetError::kernel("unpin the neighbour", ip)),
    }
}

/// Cluster addresses that no bridge has never leave by the default route.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure_unreachable(socket: &mut Socket) -> Result<(), NetError> {
    // struct rtmsg: AF_INET, /12, main table, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNREACHABLE
    let fixed = [AF_INET, CLUSTER_CIDR.prefix_len(), 0, 0, 254, 4, 0, 7, 0, 0, 0, 0];
    // RTA_DST, RTA_PRIORITY
    let message = Message::new(NEWROUTE, REQUEST | CREATE | REPLACE, &fixed)
        .with(1, &CLUSTER_CIDR.network().octets())
        .with(6, &LAST_RESORT.to_ne_bytes());
    socket.request(message).map_err(NetError::kernel("route", CLUSTER_CIDR))
}

/// Removes the route that [`ensure_unreachable`] makes; it is well when there is none.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_unreachable(socket: &mut Socket) -> Result<(), NetError> {
    let fixed = [AF_INET, CLUSTER_CIDR.prefix_len(), 0, 0, 254, 4, 0, 7, 0, 0, 0, 0];
    let message = Message::new(DELROUTE, REQUEST, &fixed)
        .with(1, &CLUSTER_CIDR.network().octets())
        .with(6, &LAST_RESORT.to_ne_bytes());
    match socket.request(message) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.map_err(NetError::kernel("remove the route to", CLUSTER_CIDR)),
    }
}

/// Routes that matter to mvm.
#[derive(Debug, Default, Clone, Copy)]
pub struct Routes {
    /// The interface of the default route.
    pub uplink: Option<u32>,
    /// Is the route there that keeps unknown cluster addresses in?
    pub last_resort: bool,
}

/// Looks through the main table.
///
/// # Errors
/// When the kernel refuses.
pub fn routes(socket: &mut Socket) -> Result<Routes, NetError> {
    let mut routes = Routes::default();
    let message = Message::new(GETROUTE, REQUEST | DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    socket
        .exchange(message, |_, payload| {
            // struct rtmsg: the bits of the destination, the table, the type
            let (Some(&bits), Some(254), Some(&kind), Some(body)) =
                (payload.get(1), payload.get(4), payload.get(7), payload.get(12..))
            else {
                return;
            };
            if bits == 0 && kind == 1 {
                routes.uplink = routes.uplink.or(netlink::attribute(body, 4).and_then(netlink::number));
            }
            let network = CLUSTER_CIDR.network().octets();
            routes.last_resort |= bits == CLUSTER_CIDR.prefix_len()
                && kind == 7
                && netlink::attribute(body, 1) == Some(network.as_slice());
        })
        .map_err(NetError::kernel("list", "routes"))?;
    Ok(routes)
}
