//! The guest's one interface: its MAC, MTU, address and gateway, each read back from the kernel.

use std::{fs, io, net::Ipv4Addr};

use rustix::io::Errno;

use super::netlink::{DUMP, PUT, REQUEST, Socket, add, get, message, number};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

/// `IFLA_ADDRESS`, `IFLA_MTU`
const LINK_ADDRESS: u16 = 1;
const LINK_MTU: u16 = 4;
/// `IFA_LOCAL`, `IFA_BROADCAST`
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
/// `RTA_OIF`, `RTA_GATEWAY`
const ROUTE_DEVICE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;

const INET: u8 = libc::AF_INET as u8;
/// `ARPHRD_ETHER`
const ETHERNET: u16 = 1;
const UP: u32 = 1;
const LOOPBACK_INDEX: u32 = 1;
/// `RT_TABLE_MAIN`, `RTPROT_STATIC`, `RTN_UNICAST`, `RTNH_F_ONLINK`
const MAIN: u8 = 254;
const STATIC: u8 = 4;
const UNICAST: u8 = 1;
const ON_LINK: u32 = 4;

/// An interface.
struct Link {
    index: u32,
    flags: u32,
    mac: Vec<u8>,
    mtu: u32,
}

/// The one interface.
pub struct Interface {
    socket: Socket,
    index: u32,
}

impl Interface {
    /// Finds it: the first Ethernet that there is.
    ///
    /// # Errors
    /// Where there is none.
    pub fn find() -> io::Result<Self> {
        let socket = Socket::open()?;
        let first = links(&socket)?.into_iter().map(|link| link.index).min();
        match first {
            Some(index) => Ok(Self { socket, index }),
            None => Err(io::Error::other("the guest has no network interface")),
        }
    }

    fn link(&self) -> io::Result<Link> {
        let link = links(&self.socket)?.into_iter().find(|link| link.index == self.index);
        link.ok_or_else(|| io::Error::other("the network interface is gone"))
    }

    /// Sets its MAC.
    pub fn set_mac(&self, mac: &str) -> io::Result<String> {
        let bytes = parse_mac(mac).ok_or_else(|| io::Error::other(format!("{mac:?} is no MAC")))?;
        let link = self.link()?;
        if link.mac != bytes {
            let mut set = link_message(self.index, 0, 0);
            add(&mut set, LINK_ADDRESS, &bytes);
            let is_up = link.flags & UP != 0;
            match self.socket.tell(set.clone()) {
                // Some drivers take another one only while they are down.
                Err(error) if is_up && Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                    self.socket.tell(link_message(self.index, 0, UP))?;
                    self.socket.tell(set)?;
                    self.socket.tell(link_message(self.index, UP, UP))?;
                }
                told => told?,
            }
        }
        let mac: Vec<String> = self.link()?.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(mac.join(":"))
    }

    /// Sets how long its packets may be.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<String> {
        let mut set = link_message(self.index, 0, 0);
        add(&mut set, LINK_MTU, &mtu.to_ne_bytes());
        self.socket.tell(set)?;
        Ok(self.link()?.mtu.to_string())
    }

    /// Gives it this address, and no other, and brings it up.
    pub fn set_address(&self, ip: Ipv4Addr, prefix: u8) -> io::Result<String> {
        if prefix > 32 {
            return Err(io::Error::other(format!("{prefix} is no length of a prefix")));
        }
        let mut there = false;
        for (old, length) in self.addresses()? {
            if (old, length) == (ip, prefix) {
                there = true;
                continue;
            }
            let mut remove = self.address_message(DELETE_ADDRESS, REQUEST, length);
            add(&mut remove, LOCAL, &old.octets());
            match self.socket.tell(remove) {
                // It went with the one that it was second to.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => {}
                told => told?,
            }
        }
        self.socket.tell(link_message(self.index, UP, UP))?;
        if !there || !self.addresses()?.contains(&(ip, prefix)) {
            let mut set = self.address_message(NEW_ADDRESS, REQUEST | PUT, prefix);
            add(&mut set, LOCAL, &ip.octets());
            if prefix < 31 {
                let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                add(&mut set, BROADCAST, &(u32::from(ip) | hosts).to_be_bytes());
            }
            self.socket.tell(set)?;
        }
        let up = self.link()?.flags & UP != 0;
        match self.addresses()?.as_slice() {
            [(ip, prefix)] if up => Ok(format!("{ip}/{prefix}")),
            other => Err(io::Error::other(format!("its addresses are {other:?}, and it is up: {up}"))),
        }
    }

    /// Its addresses.
    fn addresses(&self) -> io::Result<Vec<(Ipv4Addr, u8)>> {
        let mut found = Vec::new();
        self.socket.ask(message(GET_ADDRESS, REQUEST | DUMP, &[INET, 0, 0, 0, 0, 0, 0, 0]), |content| {
            let Some((fixed, attributes)) = content.split_at_checked(8) else { return };
            if fixed[0] == INET && number(&fixed[4..]) == Some(self.index) {
                found.extend(get(attributes, LOCAL).and_then(address).map(|ip| (ip, fixed[1])));
            }
        })?;
        Ok(found)
    }

    fn address_message(&self, kind: u16, flags: u16, prefix: u8) -> Vec<u8> {
        let [a, b, c, d] = self.index.to_ne_bytes();
        message(kind, flags, &[INET, prefix, 0, 0, a, b, c, d])
    }

    /// Sends everything that is for nobody here to this gateway.
    pub fn set_gateway(&self, gateway: Ipv4Addr) -> io::Result<String> {
        let there = self.gateways()?;
        for old in there.iter().filter(|old| **old != gateway) {
            self.socket.tell(self.route_message(DELETE_ROUTE, REQUEST, *old, 0))?;
        }
        if !there.contains(&gateway) {
            let set = |flags| self.route_message(NEW_ROUTE, REQUEST | PUT, gateway, flags);
            match self.socket.tell(set(0)) {
                // One outside of the guest's own network is reached all the same.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NETUNREACH) => {
                    self.socket.tell(set(ON_LINK))?;
                }
                told => told?,
            }
        }
        match self.gateways()?.as_slice() {
            [gateway] => Ok(gateway.to_string()),
            other => Err(io::Error::other(format!("its gateways are {other:?}"))),
        }
    }

    /// The gateways of all default routes through it.
    fn gateways(&self) -> io::Result<Vec<Ipv4Addr>> {
        let mut found = Vec::new();
        let fixed = [INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.socket.ask(message(GET_ROUTE, REQUEST | DUMP, &fixed), |content| {
            let Some((fixed, attributes)) = content.split_at_checked(12) else { return };
            let is_default = fixed[0] == INET && fixed[1] == 0 && fixed[4] == MAIN && fixed[7] == UNICAST;
            if is_default && get(attributes, ROUTE_DEVICE).and_then(number) == Some(self.index) {
                found.extend(get(attributes, ROUTE_GATEWAY).and_then(address));
            }
        })?;
        Ok(found)
    }

    fn route_message(&self, kind: u16, flags: u16, gateway: Ipv4Addr, route_flags: u32) -> Vec<u8> {
        let [a, b, c, d] = route_flags.to_ne_bytes();
        let mut bytes = message(kind, flags, &[INET, 0, 0, 0, MAIN, STATIC, 0, UNICAST, a, b, c, d]);
        add(&mut bytes, ROUTE_DEVICE, &self.index.to_ne_bytes());
        add(&mut bytes, ROUTE_GATEWAY, &gateway.octets());
        bytes
    }
}

/// Brings up the interface with which the guest talks to itself, and switches IPv6 off: mvm gives guests none.
///
/// # Errors
/// Where the interface does not come up. A kernel without IPv6 is well.
pub fn prepare() -> io::Result<()> {
    for setting in ["all", "default"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{setting}/disable_ipv6"), "1");
    }
    Socket::open()?.tell(link_message(LOOPBACK_INDEX, UP, UP))?;
    // Opening the device takes its time; without an address it says nothing.
    if let Ok(Interface { socket, index }) = Interface::find() {
        let _ = socket.tell(link_message(index, UP, UP));
    }
    Ok(())
}

fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    socket.ask(message(GET_LINK, REQUEST | DUMP, &[0; 16]), |content| {
        let Some((fixed, attributes)) = content.split_at_checked(16) else { return };
        let kind = u16::from_ne_bytes([fixed[2], fixed[3]]);
        if let (ETHERNET, Some(index), Some(flags)) = (kind, number(&fixed[4..]), number(&fixed[8..])) {
            let mac = get(attributes, LINK_ADDRESS).unwrap_or_default().to_vec();
            let mtu = get(attributes, LINK_MTU).and_then(number).unwrap_or(0);
            found.push(Link { index, flags, mac, mtu });
        }
    })?;
    Ok(found)
}

/// A message that sets those flags of a link that `change` names.
fn link_message(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let fixed = [[0; 4], index.to_ne_bytes(), flags.to_ne_bytes(), change.to_ne_bytes()].concat();
    message(NEW_LINK, REQUEST, &fixed)
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn parse_mac(text: &str) -> Option<Vec<u8>> {
    let byte = |part: &str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes.filter(|bytes| bytes.len() == 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_has_six_bytes() {
        assert_eq!(parse_mac("02:fc:00:03:00:05"), Some(vec![2, 0xfc, 0, 3, 0, 5]));
        for wrong in ["", "02:fc:00:03:00", "02:fc:00:03:00:0g", "2:fc:00:03:00:05", "02:fc:00:03:00:05:06"] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
