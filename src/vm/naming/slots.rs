//! What follows from a tenant's net id, its subnet and an offset: bridge, TAP, MAC, uid, addresses.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{CLUSTER_CIDR, NameError};

/// The first uid of jailed VMMs (reference section 1).
pub const UID_BASE: u32 = 0x7000_0000;

/// The last one: that of the last net id's last offset.
pub const UID_LAST: u32 = UID_BASE + 0x0fff_ffff;

/// A tenant's number in the cluster, 0 to 4095: its bridge, TAPs, MACs and uids follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct NetId(u16);

impl NetId {
    /// The tenant's bridge: `br-tenant-<net id>`, at most 14 bytes.
    pub fn bridge(self) -> String {
        format!("br-tenant-{}", self.0)
    }

    /// The bridge's MAC. It is fixed, so that the ARP entry of a sleeping guest stays true.
    pub fn gateway_mac(self) -> Mac {
        Mac::of(self, 1)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for NetId {
    type Error = NameError;
    fn try_from(number: u16) -> Result<Self, NameError> {
        if number <= 4095 { Ok(Self(number)) } else { Err(NameError::NetId { text: number.to_string() }) }
    }
}

impl From<NetId> for u16 {
    fn from(id: NetId) -> u16 {
        id.0
    }
}

impl fmt::Display for NetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for NetId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        text.parse::<u16>()
            .ok()
            .and_then(|number| Self::try_from(number).ok())
            .ok_or_else(|| NameError::NetId { text: text.to_owned() })
    }
}

/// The place of an address in its tenant's subnet: 1 is the gateway, 2 the builder, instances begin at 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(u16);

impl Offset {
    /// The builder's.
    pub const BUILDER: Offset = Offset(2);
    /// The first offset that an instance may have.
    pub const FIRST_INSTANCE: Offset = Offset(3);

    /// The offset with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One address of one tenant on this node. The TAP, the MAC and the VMM's uid follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The tenant's net id.
    pub net_id: NetId,
    /// The offset in the tenant's subnet.
    pub offset: Offset,
}

impl Slot {
    /// The TAP's name, `tn<net id>i<offset>`: at most 11 bytes; also the name of the VMM's directory.
    pub fn tap(self) -> String {
        format!("tn{}i{}", self.net_id, self.offset)
    }

    /// The slot of a TAP name, if it is one that [`Slot::tap`] makes.
    pub fn from_tap(name: &str) -> Option<Self> {
        let (net_id, offset) = name.strip_prefix("tn")?.split_once('i')?;
        let slot = Self { net_id: net_id.parse().ok()?, offset: Offset(offset.parse().ok()?) };
        (slot.tap() == name).then_some(slot)
    }

    /// The guest's MAC: `02:fc`, net id, offset.
    pub fn mac(self) -> Mac {
        Mac::of(self.net_id, self.offset.0)
    }

    /// The uid and gid of the jailed VMM: reversible, and outside the usual ranges of /etc/subuid.
    pub fn uid(self) -> u32 {
        UID_BASE + (u32::from(self.net_id.0) << 16) + u32::from(self.offset.0)
    }
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    fn of(net_id: NetId, low: u16) -> Self {
        let [a, b] = net_id.0.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Self([0x02, 0xfc, a, b, c, d])
    }

    /// The address with these bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let parts: Vec<u8> = text.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
        match <[u8; 6]>::try_from(parts) {
            Ok(bytes) if text.len() == 17 => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is not a MAC address")),
        }
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

/// A tenant's IPv4 network: inside [`CLUSTER_CIDR`], /20 to /29, no host bits set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(Ipv4Net);

impl Subnet {
    /// The network.
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    /// The gateway: the first usable address.
    pub fn gateway(self) -> Ipv4Addr {
        self.address(Offset(1))
    }

    /// The address at an offset. The caller has it from a lease, so it lies inside.
    pub fn address(self, offset: Offset) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + u32::from(offset.0))
    }

    /// The last offset that an instance may have: broadcast − 1.
    pub fn last_offset(self) -> Offset {
        let size = 1u32 << (32 - self.0.prefix_len());
        Offset((size - 2) as u16)
    }

    /// Do the two share an address?
    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Subnet {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let net: Ipv4Net = text.parse().map_err(|_| NameError::Subnet { text: text.to_owned() })?;
        if net.trunc() != net {
            return Err(NameError::HostBits { text: text.to_owned(), network: net.trunc() });
        }
        if !CLUSTER_CIDR.contains(&net) {
            return Err(NameError::OutsideCluster { text: text.to_owned() });
        }
        if !(20..=29).contains(&net.prefix_len()) {
            return Err(NameError::Prefix { text: text.to_owned(), prefix: net.prefix_len() });
        }
        Ok(Self(net))
    }
}

impl TryFrom<String> for Subnet {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_slot_is_found_by_its_tap_and_no_two_share_mac_or_uid(
            (one, other) in ((0_u16..4096, 3_u16..4095), (0_u16..4096, 3_u16..4095))
        ) {
            let slot = |(net_id, offset): (u16, u16)| {
                Slot { net_id: net_id.to_string().parse().unwrap(), offset: Offset(offset) }
            };
            let (a, b) = (slot(one), slot(other));
            assert_eq!(Slot::from_tap(&a.tap()), Some(a));
            assert_eq!(a == b, a.mac() == b.mac());
            assert_eq!(a == b, a.uid() == b.uid());
        }

        #[test]
        fn subnets_overlap_as_their_addresses_do(a in 0_u32..1 << 20, b in 0_u32..1 << 20, p in 20_u8..30, q in 20_u8..30) {
            let subnet = |bits: u32, prefix: u8| {
                let net = Ipv4Net::new(Ipv4Addr::from(0x0af0_0000 | bits), prefix).unwrap().trunc();
                net.to_string().parse::<Subnet>().unwrap()
            };
            let (one, other) = (subnet(a, p), subnet(b, q));
            let range = |subnet: Subnet| (subnet.net().network(), subnet.net().broadcast());
            let ((low, high), (from, to)) = (range(one), range(other));
            assert_eq!(one.overlaps(other), low <= to && from <= high);
            assert!(high > one.address(one.last_offset()) && low < one.gateway());
        }
    }

    #[test]
    fn names_follow_from_net_id_and_offset() {
        let slot = Slot { net_id: "3".parse().unwrap(), offset: Offset(5) };
        assert_eq!(slot.tap(), "tn3i5");
        assert_eq!(slot.mac().to_string(), "02:fc:00:03:00:05");
        assert_eq!(slot.uid(), 0x7003_0005);
        assert_eq!(slot.net_id.bridge(), "br-tenant-3");
        assert_eq!(slot.net_id.gateway_mac().to_string(), "02:fc:00:03:00:01");
    }

    #[test]
    fn the_longest_interface_names_fit_the_kernel() {
        let slot = Slot { net_id: NetId(4095), offset: Offset(4094) };
        assert!(slot.tap().len() <= 11 && slot.net_id.bridge().len() <= 14);
        assert_eq!(Slot::from_tap(&slot.tap()), Some(slot));
    }

    #[test]
    fn a_tap_name_that_mvm_would_not_make_is_no_slot() {
        for name in ["tn3", "tn03i5", "tn3i05", "tn4096i3", "tap0", "tn3i5x", "tn+3i5"] {
            assert_eq!(Slot::from_tap(name), None, "{name}");
        }
    }

    #[test]
    fn subnets_lie_in_the_cluster_and_have_no_host_bits() {
        for good in ["10.240.3.0/24", "10.240.0.0/20", "10.255.255.248/29"] {
            assert!(good.parse::<Subnet>().is_ok(), "{good}");
        }
        let kind = |text: &str| text.parse::<Subnet>().unwrap_err();
        assert!(matches!(kind("10.240.3.1/24"), NameError::HostBits { .. }));
        assert!(matches!(kind("192.168.0.0/24"), NameError::OutsideCluster { .. }));
        assert!(matches!(kind("10.240.0.0/19"), NameError::Prefix { .. }));
        assert!(matches!(kind("10.240.0.0/30"), NameError::Prefix { .. }));
        assert!(matches!(kind("10.0.0.0/8"), NameError::OutsideCluster { .. }));
        assert!(matches!(kind("nonsense"), NameError::Subnet { .. }));
        let subnet: Subnet = "10.240.3.0/29".parse().unwrap();
        assert_eq!((subnet.gateway().to_string(), subnet.last_offset().get()), ("10.240.3.1".into(), 6));
    }
}
