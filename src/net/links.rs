//! Bridges, TAPs and their ports, over rtnetlink and ioctl. What mvm did not make is never touched.
//!
//! Both are recognised by their alias, a bridge that was made half by its MAC. Flags and settings are read back by one
//! dump for all links, not from /sys, which shows the namespace in which it was mounted, nor from a file each.

use std::{fs, io, os::fd::AsRawFd};

use super::{
    error::NetError,
    netlink::{self, CREATE, DUMP, EXCLUSIVE, Message, REQUEST, Socket, link_header},
    routes,
};
use crate::{
    infra::shell,
    vm::naming::{Mac, NetId, Slot, Subnet},
};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_CARRIER: u16 = 33;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;

const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_BRIDGE: u8 = 7;

/// The alias by which mvm knows its own links.
pub const ALIAS: &str = "mvm";

/// A flag of a port.
#[derive(Debug, Clone, Copy)]
pub struct PortFlag {
    /// `IFLA_BRPORT_*`
    pub number: u16,
    /// What it must be.
    pub value: u8,
    /// Its name.
    pub name: &'static str,
    /// Why nothing rests on it alone, where nothing does.
    pub belt: Option<&'static str>,
}

const fn flag(number: u16, value: u8, name: &'static str, belt: Option<&'static str>) -> PortFlag {
    PortFlag { number, value, name, belt }
}

/// No flooding of unknown unicast and multicast, no learning, since the one address of a port is pinned; broadcast stays
/// on, for ARP, and is limited by the rules.
pub const PORT_FLAGS: [PortFlag; 7] = [
    flag(8, 0, "learning", None),
    flag(9, 0, "unicast flood", None),
    flag(
        27,
        0,
        "multicast flood",
        Some("no rule accepts a guest's multicast, and it does not hold for the host's"),
    ),
    flag(30, 1, "broadcast flood", None),
    flag(4, 0, "hairpin", None),
    flag(5, 1, "guard", Some("the spanning tree is off, and the rules drop its messages")),
    flag(6, 1, "root block", Some("the spanning tree is off, and the rules drop its messages")),
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
    /// Does it do without ARP?
    pub noarp: bool,
    /// Its flags as a port, by number.
    pub port_flags: Vec<(u16, u8)>,
    /// Its own attributes, where it is a bridge.
    pub bridge: Vec<(u16, u32)>,
    /// Its settings (`/proc/sys/net/ipv4/conf/…`), the first one's number being 1.
    pub ipv4: Vec<u32>,
    /// Its settings (`/proc/sys/net/ipv6/conf/…`), the first one's number being 0.
    pub ipv6: Vec<u32>,
}

impl Link {
    /// A setting as it is; `None` where the kernel has none.
    pub fn setting(&self, setting: &Setting) -> Option<u32> {
        match setting.family {
            "ipv6" => self.ipv6.get(setting.number).copied(),
            _ => self.ipv4.get(setting.number.checked_sub(1)?).copied(),
        }
    }
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let flags = netlink::number(payload.get(8..12)?)?;
    let mut link = Link {
        index: netlink::number(payload.get(4..8)?)?,
        up: flags & IFF_UP != 0,
        noarp: flags & IFF_NOARP != 0,
        ..Link::default()
    };
    let numbers = |bytes: &[u8]| bytes.chunks_exact(4).filter_map(netlink::number).collect();
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
                if let (Some(data), "bridge") =
                    (netlink::attribute(value, IFLA_INFO_DATA), link.kind.as_str())
                {
                    link.bridge = netlink::attributes(data)
                        .filter_map(|(kind, value)| Some((kind, netlink::number(value)?)))
                        .collect();
                }
            }
            IFLA_AF_SPEC => {
                // AF_INET { IFLA_INET_CONF }, AF_INET6 { IFLA_INET6_CONF }
                let conf =
                    |family: u8, kind| netlink::attribute(netlink::attribute(value, family.into())?, kind);
                link.ipv4 = conf(AF_INET, 1).map(numbers).unwrap_or_default();
                link.ipv6 = conf(AF_INET6, 2).map(numbers).unwrap_or_default();
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

/// A setting of an interface.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its number in what the kernel shows of a link (`IPV4_DEVCONF_*`, `DEVCONF_*`).
    pub number: usize,
    /// What it must be.
    pub value: u32,
    /// Why nothing rests on it alone, where nothing does.
    pub belt: Option<&'static str>,
}

const fn ipv4(name: &'static str, number: usize, value: u32, belt: Option<&'static str>) -> Setting {
    Setting { family: "ipv4", name, number, value, belt }
}

/// IPv6 is off on everything that mvm makes.
pub const NO_IPV6: Setting = Setting {
    family: "ipv6",
    name: "disable_ipv6",
    number: 26,
    value: 1,
    belt: Some("the rules let no guest's IPv6 in; the host's own would only talk to itself"),
};

/// Forwarding, of bridges and the uplink.
pub const FORWARDING: Setting = ipv4("forwarding", 1, 1, None);

/// The settings of a tenant's bridge.
pub const BRIDGE_SETTINGS: [Setting; 9] = [
    NO_IPV6,
    ipv4("arp_ignore", 19, 1, None),
    ipv4("arp_announce", 18, 2, None),
    ipv4("proxy_arp", 3, 0, None),
    ipv4("rp_filter", 8, 1, None),
    ipv4("send_redirects", 6, 0, Some("the host's own setting for all interfaces is added to it")),
    ipv4("accept_redirects", 4, 0, Some("no route over the bridge has a gateway that one could replace")),
    ipv4("drop_unicast_in_l2_multicast", 30, 1, Some("the rules drop what is not tracked, and this is not")),
    FORWARDING,
];

/// What a bridge itself must be: attribute, value and name.
pub const BRIDGE_ATTRIBUTES: [(u16, u32, &str); 2] =
    [(IFLA_BR_STP_STATE, 0, "spanning tree"), (IFLA_BR_MCAST_SNOOPING, 0, "multicast snooping")];

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
                    info.with_text(IFLA_INFO_KIND, "bridge").with_nested(IFLA_INFO_DATA, attributes)
                });
            socket.request(message).map_err(NetError::kernel("make bridge", &name))?;
            find(socket, &name)?.ok_or_else(|| {
                NetError::kernel("make bridge", &name)(io::Error::other("it vanished at once"))
            })?
        }
    };
    for setting in BRIDGE_SETTINGS {
        set(setting.family, &name, setting.name, &setting.value.to_string())?;
    }
    routes::give_address(socket, &link, subnet)?;
    let message = Message::new(SETLINK, REQUEST, &link_header(0, link.index, IFF_UP, IFF_UP))
        .with(IFLA_ADDRESS, &net_id.gateway_mac().octets())
        .with_text(IFLA_IFALIAS, ALIAS);
    socket.request(message).map_err(NetError::kernel("bring up", &name))?;
    if BRIDGE_ATTRIBUTES.iter().all(|(kind, value, _)| link.bridge.contains(&(*kind, *value))) {
        return Ok(());
    }
    let message = Message::new(NEWLINK, REQUEST, &link_header(0, link.index, 0, 0))
        .with_nested(IFLA_LINKINFO, |info| {
            info.with_text(IFLA_INFO_KIND, "bridge").with_nested(IFLA_INFO_DATA, attributes)
        });
    socket.request(message).map_err(NetError::kernel("set up", &name))
}

fn attributes(data: Message) -> Message {
    data.with(IFLA_BR_STP_STATE, &0_u32.to_ne_bytes()).with(IFLA_BR_MCAST_SNOOPING, &[0])
}

/// Did mvm make this bridge, for the tenant whose name it has?
pub fn is_our_bridge(link: &Link, net_id: NetId) -> bool {
    link.kind == "bridge" && (link.alias == ALIAS || link.mac == Some(net_id.gateway_mac()))
}

/// Is a tenant's bridge name free, or its bridge mvm's?
///
/// # Errors
/// [`NetError::Foreign`] where something else has it.
pub fn check_name(socket: &mut Socket, net_id: NetId) -> Result<(), NetError> {
    find(socket, &net_id.bridge())?.map_or(Ok(()), |link| check_bridge(&link, net_id))
}

fn check_bridge(link: &Link, net_id: NetId) -> Result<(), NetError> {
    if is_our_bridge(link, net_id) {
        return Ok(());
    }
    let kind = if link.kind.is_empty() { "link" } else { &link.kind };
    let mac = link.mac.map_or("none".to_owned(), |mac| mac.to_string());
    Err(NetError::Foreign { name: link.name.clone(), found: format!("it is a {kind} with the MAC {mac}") })
}

/// Removes a tenant's bridge; it is well when there is none, or only somebody else's of that name.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_bridge(socket: &mut Socket, net_id: NetId) -> Result<(), NetError> {
    let name = net_id.bridge();
    match find(socket, &name)? {
        Some(link) if is_our_bridge(&link, net_id) => remove(socket, &link),
        _ => Ok(()),
    }
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
    let opened = |error: io::Error| NetError::Kernel {
        action: if error.kind() == io::ErrorKind::NotFound { "open" } else { "make TAP" },
        name: if error.kind() == io::ErrorKind::NotFound { "/dev/net/tun".into() } else { name.clone() },
        source: error,
    };
    shell::with_nothing_starting(|| {
        let tap = open_tap(&name).map_err(opened)?;
        prepare_tap(socket, &name, mtu)?;
        // Last: a TAP that is not marked as mvm's yet goes with its maker.
        keep_tap(&tap, owner).map_err(opened)
    })
}

/// What a TAP must be before it joins its bridge: no IPv6, no ARP, and known as mvm's.
///
/// # Errors
/// When it is gone, or the kernel refuses.
pub fn prepare_tap(socket: &mut Socket, name: &str, mtu: u32) -> Result<(), NetError> {
    let index = find(socket, name)?.map_or(0, |link| link.index);
    set(NO_IPV6.family, name, NO_IPV6.name, "1")?;
    let message = Message::new(SETLINK, REQUEST, &link_header(0, index, IFF_NOARP, IFF_NOARP))
        .with(IFLA_MTU, &mtu.to_ne_bytes())
        .with_text(IFLA_IFALIAS, ALIAS);
    socket.request(message).map_err(NetError::kernel("set up TAP", name))
}

/// Did mvm make this TAP?
pub fn is_our_tap(link: &Link) -> bool {
    link.kind == "tun" && link.alias == ALIAS
}

/// Is a link of a TAP's name mvm's?
///
/// # Errors
/// [`NetError::Foreign`] where it is not.
pub fn check_tap(link: &Link) -> Result<(), NetError> {
    if is_our_tap(link) { Ok(()) } else { Err(foreign(link)) }
}

/// A link that is in the way.
pub fn foreign(link: &Link) -> NetError {
    let kind = if link.kind.is_empty() { "link" } else { &link.kind };
    NetError::Foreign {
        name: link.name.clone(),
        found: format!("it is a {kind} with the alias {:?}", link.alias),
    }
}

/// Opens a TAP; where there is none, makes one that is there until the descriptor is closed.
///
/// # Errors
/// What the kernel answered.
pub fn open_tap(name: &str) -> io::Result<fs::File> {
    let file = fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    tap_ioctl::attach(file.as_raw_fd(), name)?;
    Ok(file)
}

/// Lets a TAP stay when its descriptor is closed, with an owner that may open it: one without may be opened by anybody.
fn keep_tap(tap: &fs::File, owner: Option<u32>) -> io::Result<()> {
    let owner = owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    tap_ioctl::set_owner(tap.as_raw_fd(), owner)?;
    tap_ioctl::persist(tap.as_raw_fd())
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

fn missing(name: &str) -> NetError {
    NetError::kernel("find", name)(io::Error::from_raw_os_error(libc::ENODEV))
}

/// The bridge of a slot's tenant.
///
/// # Errors
/// When it is not there, or is somebody else's.
pub fn bridge_of(socket: &mut Socket, slot: Slot) -> Result<Link, NetError> {
    let name = slot.net_id.bridge();
    let bridge = find(socket, &name)?.ok_or_else(|| missing(&name))?;
    check_bridge(&bridge, slot.net_id)?;
    Ok(bridge)
}

/// Makes a slot's TAP a port of its tenant's bridge and brings it up.
///
/// # Errors
/// When one of the two is not there, or the kernel refuses.
pub fn join(socket: &mut Socket, slot: Slot) -> Result<(), NetError> {
    let name = slot.tap();
    let tap = find(socket, &name)?.ok_or_else(|| missing(&name))?;
    check_tap(&tap)?;
    let bridge = bridge_of(socket, slot)?;
    let refused = |action| NetError::kernel(action, &name);
    // A bridge forwards nothing for a port until the kernel has taken note of its carrier, which it does once a second, and at
    // once only where one is brought up that has sent nothing yet: so it is without one until it comes up.
    let message = Message::new(SETLINK, REQUEST, &link_header(0, tap.index, IFF_NOARP, IFF_UP | IFF_NOARP))
        .with(IFLA_CARRIER, &[0])
        .with(IFLA_MASTER, &bridge.index.to_ne_bytes());
    socket.request(message).map_err(refused("put on its bridge"))?;
    let message = Message::new(SETLINK, REQUEST, &link_header(AF_BRIDGE, tap.index, 0, 0))
        .with_nested(IFLA_PROTINFO, |info| {
            PORT_FLAGS.iter().fold(info, |info, flag| info.with(flag.number, &[flag.value]))
        });
    socket.request(message).map_err(refused("set the port flags of"))?;
    routes::pin_mac(socket, &tap, slot.mac())?;
    let message =
        Message::new(SETLINK, REQUEST, &link_header(0, tap.index, IFF_UP, IFF_UP)).with(IFLA_CARRIER, &[1]);
    socket.request(message).map_err(refused("bring up"))?;
    // Since Linux 6.8 the kernel takes note before it answers this.
    find(socket, &name).map(drop)
}

/// Removes a slot's TAP; it is well when there is none, or only somebody else's of that name.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_tap(socket: &mut Socket, slot: Slot) -> Result<(), NetError> {
    match find(socket, &slot.tap())? {
        Some(link) if is_our_tap(&link) => remove(socket, &link),
        _ => Ok(()),
    }
}

/// Opens an interface for forwarding.
///
/// # Errors
/// When it cannot be written.
pub fn open_forwarding(interface: &str) -> Result<(), NetError> {
    if setting("ipv4", interface, "forwarding").as_deref() == Some("1") {
        return Ok(());
    }
    set("ipv4", interface, "forwarding", "1")
}

/// Closes an interface for forwarding; one that is gone is well.
///
/// # Errors
/// When it cannot be written.
pub fn close_forwarding(interface: &str) -> Result<(), NetError> {
    match setting("ipv4", interface, "forwarding") {
        Some(_) => set("ipv4", interface, "forwarding", "0"),
        None => Ok(()),
    }
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
