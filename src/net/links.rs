//! Bridges, TAPs and their ports, over rtnetlink and ioctl. What mvm did not make is never touched.
//!
//! A bridge is recognised by its MAC, a TAP by its alias. Port flags are read back by netlink, not from /sys, which
//! shows the namespace in which it was mounted.

use std::{fs, io, net::Ipv4Addr, os::fd::AsRawFd};

use super::{
    error::NetError,
    netlink::{self, CREATE, DUMP, EXCLUSIVE, Message, REPLACE, REQUEST, Socket, link_header},
};
use crate::vm::naming::{CLUSTER_CIDR, Mac, NetId, Slot, Subnet};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;

/// The alias by which mvm knows its own links.
pub const ALIAS: &str = "mvm";

/// Port flags (`IFLA_BRPORT_*`) and what each must be: no flooding of unknown unicast and multicast, no learning, since the
/// one address of a port is pinned; broadcast stays on, for ARP, and is limited by the rules.
pub const PORT_FLAGS: [(u16, u8, &str); 7] = [
    (8, 0, "learning"),
    (9, 0, "unicast flood"),
    (27, 0, "multicast flood"),
    (30, 1, "broadcast flood"),
    (4, 0, "hairpin"),
    (5, 1, "guard"),
    (6, 1, "root block"),
];

/// A link as the kernel shows it.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its alias.
    pub alias: String,
    /// `bridge`, `tun`, …
    pub kind: String,
    /// The number of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Its MTU.
    pub mtu: u32,
    /// Is it up?
    pub up: bool,
    /// Its flags as a port, by number.
    pub port_flags: Vec<(u16, u8)>,
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: netlink::number(payload.get(4..8)?)?,
        up: netlink::number(payload.get(8..12)?)? & IFF_UP != 0,
        ..Link::default()
    };
    for (kind, value) in netlink::attributes(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = netlink::text(value),
            IFLA_ADDRESS => link.mac = <[u8; 6]>::try_from(value).ok().map(Mac::new),
            IFLA_IFALIAS => link.alias = netlink::text(value),
            IFLA_MASTER => link.master = netlink::number(value),
            IFLA_MTU => link.mtu = netlink::number(value).unwrap_or_default(),
            IFLA_LINKINFO => {
                link.kind = netlink::attribute(value, IFLA_INFO_KIND).map(netlink::text).unwrap_or_default();
                if let Some(data) = netlink::attribute(value, IFLA_INFO_SLAVE_DATA) {
                    link.port_flags = netlink::attributes(data)
                        .filter_map(|(kind, value)| Some((kind, *value.first()?)))
                        .collect();
                }
            }
            _ => {}
        }
    }
    Some(link)
}

/// The link of a name; `None` where there is none.
///
/// # Errors
/// When the kernel refuses.
pub fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetError> {
    let mut found = None;
    let message = Message::new(GETLINK, REQUEST, &link_header(0, 0, 0, 0)).with_text(IFLA_IFNAME, name);
    match socket.exchange(message, |_, payload| found = parse_link(payload)) {
        Ok(()) => Ok(found),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(NetError::kernel("look up", name)(error)),
    }
}

/// All links.
///
/// # Errors
/// When the kernel refuses.
pub fn all(socket: &mut Socket) -> Result<Vec<Link>, NetError> {
    let mut links = Vec::new();
    let message = Message::new(GETLINK, REQUEST | DUMP, &link_header(0, 0, 0, 0));
    socket
        .exchange(message, |_, payload| links.extend(parse_link(payload)))
        .map_err(NetError::kernel("list", "links"))?;
    Ok(links)
}

/// Writes a setting of an interface; `family` is `ipv4` or `ipv6`.
fn set(family: &str, interface: &str, setting: &str, value: &str) -> Result<(), NetError> {
    let file = format!("/proc/sys/net/{family}/conf/{interface}/{setting}");
    match fs::write(&file, value) {
        // A kernel without IPv6, or without the setting, has nothing to switch off.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| NetError::Setting { setting: file, source }),
    }
}

/// Reads a setting of an interface.
pub fn setting(family: &str, interface: &str, setting: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{interface}/{setting}")).ok()?;
    Some(text.trim().to_owned())
}

/// The settings of a tenant's bridge: family, name, value.
pub const BRIDGE_SETTINGS: [(&str, &str, &str); 8] = [
    ("ipv6", "disable_ipv6", "1"),
    ("ipv4", "arp_ignore", "1"),
    ("ipv4", "arp_announce", "2"),
    ("ipv4", "rp_filter", "1"),
    ("ipv4", "send_redirects", "0"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "drop_unicast_in_l2_multicast", "1"),
    ("ipv4", "forwarding", "1"),
];

/// Makes a tenant's bridge with its gateway address, or what is missing of it.
///
/// # Errors
/// [`NetError::Foreign`] where something else has its name.
pub fn ensure_bridge(socket: &mut Socket, net_id: NetId, subnet: Subnet, mtu: u32) -> Result<(), NetError> {
    let name = net_id.bridge();
    let link = match find(socket, &name)? {
        Some(link) => {
            check_bridge(&link, net_id)?;
            link
        }
        None => {
            let message = Message::new(NEWLINK, REQUEST | CREATE | EXCLUSIVE, &link_header(0, 0, 0, 0))
                .with_text(IFLA_IFNAME, &name)
                .with(IFLA_ADDRESS, &net_id.gateway_mac().octets())
                .with(IFLA_MTU, &mtu.to_ne_bytes())
                .with_nested(IFLA_LINKINFO, |info| {
                    info.with_text(IFLA_INFO_KIND, "bridge").with_nested(IFLA_INFO_DATA, |data| {
                        data.with(IFLA_BR_STP_STATE, &0_u32.to_ne_bytes()).with(IFLA_BR_MCAST_SNOOPING, &[0])
                    })
                });
            socket.request(message).map_err(NetError::kernel("make bridge", &name))?;
            find(socket, &name)?.ok_or_else(|| {
                NetError::kernel("make bridge", &name)(io::Error::other("it vanished at once"))
            })?
        }
    };
    for (family, setting, value) in BRIDGE_SETTINGS {
        set(family, &name, setting, value)?;
    }
    let mut fixed = vec![AF_INET, subnet.net().prefix_len(), 0, 0];
    fixed.extend_from_slice(&link.index.to_ne_bytes());
    let gateway = subnet.gateway().octets();
    let broadcast = subnet.net().broadcast().octets();
    // IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST
    let message = Message::new(NEWADDR, REQUEST | CREATE | REPLACE, &fixed)
        .with(1, &gateway)
        .with(2, &gateway)
        .with(4, &broadcast);
    socket.request(message).map_err(NetError::kernel("give its address to", &name))?;
    let message = Message::new(SETLINK, REQUEST, &link_header(0, link.index, IFF_UP, IFF_UP))
        .with_text(IFLA_IFALIAS, ALIAS);
    socket.request(message).map_err(NetError::kernel("bring up", &name))
}

/// Is this bridge the one that mvm made for the tenant?
fn check_bridge(link: &Link, net_id: NetId) -> Result<(), NetError> {
    if link.kind == "bridge" && link.mac == Some(net_id.gateway_mac()) {
        return Ok(());
    }
    let kind = if link.kind.is_empty() { "link" } else { &link.kind };
    let mac = link.mac.map_or("none".to_owned(), |mac| mac.to_string());
    Err(NetError::Foreign { name: link.name.clone(), found: format!("it is a {kind} with the MAC {mac}") })
}

/// Removes a tenant's bridge; it is well when there is none.
///
/// # Errors
/// [`NetError::Foreign`] where something else has its name.
pub fn remove_bridge(socket: &mut Socket, net_id: NetId) -> Result<(), NetError> {
    let name = net_id.bridge();
    let Some(link) = find(socket, &name)? else {
        return Ok(());
    };
    check_bridge(&link, net_id)?;
    remove(socket, &link)
}

fn remove(socket: &mut Socket, link: &Link) -> Result<(), NetError> {
    match socket.request(Message::new(DELLINK, REQUEST, &link_header(0, link.index, 0, 0))) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result.map_err(NetError::kernel("remove", &link.name)),
    }
}

/// Makes a slot's TAP, persistent, owned by `owner`, down and off the bridge; one that is there is made like that.
///
/// # Errors
/// [`NetError::Foreign`] where something else has its name.
pub fn create_tap(socket: &mut Socket, slot: Slot, owner: Option<u32>, mtu: u32) -> Result<(), NetError> {
    let name = slot.tap();
    if let Some(link) = find(socket, &name)? {
        check_tap(&link)?;
        remove(socket, &link)?;
    }
    open_tap(&name, Some(owner)).map_err(|error| NetError::Kernel {
        action: if error.kind() == io::ErrorKind::NotFound { "open" } else { "make TAP" },
        name: if error.kind() == io::ErrorKind::NotFound { "/dev/net/tun".into() } else { name.clone() },
        source: error,
    })?;
    let index = find(socket, &name)?.map_or(0, |link| link.index);
    set("ipv6", &name, "disable_ipv6", "1")?;
    let message = Message::new(SETLINK, REQUEST, &link_header(0, index, IFF_NOARP, IFF_NOARP | IFF_UP))
        .with(IFLA_MTU, &mtu.to_ne_bytes())
        .with_text(IFLA_IFALIAS, ALIAS);
    socket.request(message).map_err(NetError::kernel("set up TAP", &name))
}

fn check_tap(link: &Link) -> Result<(), NetError> {
    if link.kind == "tun"
        && (link.alias == ALIAS || link.alias.is_empty() && !link.up && link.master.is_none())
    {
        return Ok(());
    }
    let kind = if link.kind.is_empty() { "link" } else { &link.kind };
    Err(NetError::Foreign {
        name: link.name.clone(),
        found: format!("it is a {kind} with the alias {:?}", link.alias),
    })
}

/// Opens a TAP, with `persist` making it first; that descriptor is its own to keep or drop.
///
/// # Errors
/// What the kernel answered.
pub fn open_tap(name: &str, persist: Option<Option<u32>>) -> io::Result<fs::File> {
    let file = fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    tap_ioctl::attach(file.as_raw_fd(), name)?;
    if let Some(owner) = persist {
        if let Some(owner) = owner {
            tap_ioctl::set_owner(file.as_raw_fd(), owner)?;
        }
        tap_ioctl::persist(file.as_raw_fd())?;
    }
    Ok(file)
}

/// The ioctls of /dev/net/tun (linux/if_tun.h).
mod tap_ioctl {
    use std::{io, os::fd::RawFd};

    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
    const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
    /// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`: what Firecracker asks for, and a TAP has one set of flags for all.
    const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;

    pub fn attach(fd: RawFd, name: &str) -> io::Result<()> {
        // struct ifreq: 16 bytes of name, then the flags; 40 bytes in all.
        let mut request = [0_u8; 40];
        if name.len() > 15 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes one struct ifreq, which is 40 bytes long.
        result(unsafe { libc::ioctl(fd, TUNSETIFF as _, request.as_mut_ptr()) })
    }

    pub fn persist(fd: RawFd) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes its argument by value.
        result(unsafe { libc::ioctl(fd, TUNSETPERSIST as _, 1_usize) })
    }

    pub fn set_owner(fd: RawFd, owner: u32) -> io::Result<()> {
        // SAFETY: TUNSETOWNER takes its argument by value.
        result(unsafe { libc::ioctl(fd, TUNSETOWNER as _, owner as usize) })
    }

    fn result(code: libc::c_int) -> io::Result<()> {
        if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Makes a slot's TAP a port of its tenant's bridge and brings it up.
///
/// # Errors
/// When one of the two is not there, or the kernel refuses.
pub fn join(socket: &mut Socket, slot: Slot) -> Result<(), NetError> {
    let name = slot.tap();
    let missing = |name: &str| NetError::kernel("find", name)(io::Error::from_raw_os_error(libc::ENODEV));
    let tap = find(socket, &name)?.ok_or_else(|| missing(&name))?;
    check_tap(&tap)?;
    let bridge = find(socket, &slot.net_id.bridge())?.ok_or_else(|| missing(&slot.net_id.bridge()))?;
    check_bridge(&bridge, slot.net_id)?;
    let refused = |action| NetError::kernel(action, &name);
    let message = Message::new(SETLINK, REQUEST, &link_header(0, tap.index, 0, IFF_UP))
        .with(IFLA_MASTER, &bridge.index.to_ne_bytes());
    socket.request(message).map_err(refused("put on its bridge"))?;
    let message = Message::new(SETLINK, REQUEST, &link_header(AF_BRIDGE, tap.index, 0, 0))
        .with_nested(IFLA_PROTINFO, |info| {
            PORT_FLAGS.iter().fold(info, |info, (kind, value, _)| info.with(*kind, &[*value]))
        });
    socket.request(message).map_err(refused("set the port flags of"))?;
    // struct ndmsg: static, in the bridge's table. NDA_LLADDR
    let mut fixed = vec![AF_BRIDGE, 0, 0, 0];
    fixed.extend_from_slice(&tap.index.to_ne_bytes());
    fixed.extend_from_slice(&[0x40, 0, 0x04, 0]);
    let message = Message::new(NEWNEIGH, REQUEST | CREATE | REPLACE, &fixed).with(2, &slot.mac().octets());
    socket.request(message).map_err(refused("pin the MAC of"))?;
    let message = Message::new(SETLINK, REQUEST, &link_header(0, tap.index, IFF_UP, IFF_UP));
    socket.request(message).map_err(refused("bring up"))
}

/// Removes a slot's TAP; it is well when there is none.
///
/// # Errors
/// [`NetError::Foreign`] where something else has its name.
pub fn delete_tap(socket: &mut Socket, slot: Slot) -> Result<(), NetError> {
    match find(socket, &slot.tap())? {
        None => Ok(()),
        Some(link) => {
            check_tap(&link)?;
            remove(socket, &link)
        }
    }
}

fn neighbour(kind: u16, flags: u16, bridge: u32, ip: Ipv4Addr) -> Message {
    let mut fixed = vec![AF_INET, 0, 0, 0];
    fixed.extend_from_slice(&bridge.to_ne_bytes());
    // NUD_PERMANENT; NDA_DST
    fixed.extend_from_slice(&[0x80, 0, 0, 0]);
    Message::new(kind, flags, &fixed).with(1, &ip.octets())
}

/// Pins a guest's address to its MAC on the bridge: the guest cannot fill the host's table, nor claim another's.
///
/// # Errors
/// When the kernel refuses.
pub fn add_neighbour(socket: &mut Socket, slot: Slot, ip: Ipv4Addr) -> Result<(), NetError> {
    let bridge = slot.net_id.bridge();
    let Some(link) = find(socket, &bridge)? else {
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
    let bridge = slot.net_id.bridge();
    let Some(link) = find(socket, &bridge)? else {
        return Ok(());
    };
    match socket.request(neighbour(DELNEIGH, REQUEST, link.index, ip)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(NetError::kernel("unpin a neighbour on", &bridge)),
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
        .with(6, &4_000_000_u32.to_ne_bytes());
    socket.request(message).map_err(NetError::kernel("route", CLUSTER_CIDR))
}

/// The interface of the default route; `None` where there is none.
///
/// # Errors
/// When the kernel refuses.
pub fn uplink(socket: &mut Socket) -> Result<Option<Link>, NetError> {
    let mut index = None;
    let message = Message::new(GETROUTE, REQUEST | DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    socket
        .exchange(message, |_, payload| {
            // A default route: no destination bits, unicast, in the main table.
            if payload.len() >= 12 && payload[1] == 0 && payload[7] == 1 && payload[4] == 254 {
                let oif = netlink::attribute(&payload[12..], 4).and_then(netlink::number);
                index = index.or(oif);
            }
        })
        .map_err(NetError::kernel("list", "routes"))?;
    match index {
        Some(index) => Ok(all(socket)?.into_iter().find(|link| link.index == index)),
        None => Ok(None),
    }
}

/// Opens an interface for forwarding. True where it was closed.
///
/// # Errors
/// When it cannot be written.
pub fn open_forwarding(interface: &str) -> Result<bool, NetError> {
    if setting("ipv4", interface, "forwarding").as_deref() == Some("1") {
        return Ok(false);
    }
    set("ipv4", interface, "forwarding", "1").map(|()| true)
}

/// Brings an interface up.
///
/// # Errors
/// When there is none of that name, or the kernel refuses.
pub fn bring_up(socket: &mut Socket, name: &str) -> Result<(), NetError> {
    let missing = || NetError::kernel("find", name)(io::Error::from_raw_os_error(libc::ENODEV));
    let link = find(socket, name)?.ok_or_else(missing)?;
    let message = Message::new(SETLINK, REQUEST, &link_header(0, link.index, IFF_UP, IFF_UP));
    socket.request(message).map_err(NetError::kernel("bring up", name))
}
