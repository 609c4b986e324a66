//! Names and quantities as types: whatever comes from outside is parsed here once and trusted afterwards.
//!
//! Owns identifiers (tenant, pool, instance), what follows from a tenant's net id and an instance's offset
//! (bridge, TAP, MAC, uid), subnets, and sizes. Does no I/O.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Why a text is not the name or quantity it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a DNS label.
    #[error(
        "{text:?} is not a {what} id: 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
    )]
    Label {
        /// What the text should have been.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// Not `i-` and 8 hex digits.
    #[error(
        "{text:?} is not an instance id: i- and 8 lower-case hex digits (a beginning of it is enough where it is unambiguous)"
    )]
    Instance {
        /// The text.
        text: String,
    },
    /// A path of the wrong form.
    #[error("{text:?} is not a path to {what}: expected {form}")]
    Path {
        /// What the path should lead to.
        what: &'static str,
        /// The expected form.
        form: &'static str,
        /// The text.
        text: String,
    },
    /// A net id that is no number of 12 bits.
    #[error("{text:?} is not a net id: a number from 0 to 4095")]
    NetId {
        /// The text.
        text: String,
    },
    /// Not an IPv4 network in CIDR form.
    #[error("{text:?} is not a subnet: expected ADDRESS/PREFIX, as in 10.240.3.0/24")]
    Subnet {
        /// The text.
        text: String,
    },
    /// Host bits are set in a network address.
    #[error("{text} has host bits set: the network is {network}")]
    HostBits {
        /// The text.
        text: String,
        /// The network that was probably meant.
        network: Ipv4Net,
    },
    /// A prefix length that a tenant's subnet cannot have.
    #[error("{text} has a /{prefix}: a tenant's subnet is a /20 to /29")]
    Prefix {
        /// The text.
        text: String,
        /// Its prefix length.
        prefix: u8,
    },
    /// Outside the cluster's CIDR.
    #[error("{text} lies outside the cluster's network {CLUSTER_CIDR}")]
    OutsideCluster {
        /// The text.
        text: String,
    },
    /// Not a revision hash.
    #[error("{text:?} is not a revision: 12 to 64 lower-case hex digits")]
    Revision {
        /// The text.
        text: String,
    },
}

/// The cluster's network: every tenant's subnet lies inside it.
pub const CLUSTER_CIDR: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 12);

/// The first uid of jailed VMMs (reference section 1).
const UID_BASE: u32 = 0x7000_0000;

/// Implements what a newtype over text needs to be used by serde and clap alike: one parser for both.
macro_rules! text_type {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.0.as_ref()
            }
        }
    };
}

macro_rules! label_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if is_label(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError::Label { what: $what, text: text.to_owned() })
                }
            }
        }
        text_type!($name);
    };
}

label_type!(
    /// A tenant's id: a DNS label.
    TenantId,
    "tenant"
);
label_type!(
    /// A pool's id: a DNS label, unique within its tenant.
    PoolId,
    "pool"
);

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&b| inner(b) || b == b'-')
        && inner(bytes[0])
        && inner(bytes[bytes.len() - 1])
}

/// An instance's id: `i-` and 8 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);

impl InstanceId {
    /// The id with these 32 bits.
    pub fn from_bits(bits: u32) -> Self {
        Self(format!("i-{bits:08x}"))
    }
}

impl FromStr for InstanceId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let prefix = text.parse::<InstancePrefix>()?;
        if prefix.0.len() == 10 {
            Ok(Self(prefix.0))
        } else {
            Err(NameError::Instance {
                text: text.to_owned(),
            })
        }
    }
}
text_type!(InstanceId);

/// The beginning of an instance id, as a person types it: `i-` and up to 8 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePrefix(String);

impl InstancePrefix {
    /// Does this id begin like that?
    pub fn matches(&self, id: &InstanceId) -> bool {
        id.0.starts_with(&self.0)
    }

    /// The id, where all of it was given.
    pub fn full(&self) -> Option<InstanceId> {
        self.0.parse().ok()
    }
}

impl fmt::Display for InstancePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstancePrefix {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Instance {
            text: text.to_owned(),
        };
        let hex = text.strip_prefix("i-").ok_or_else(wrong)?;
        if hex.len() <= 8
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(wrong())
        }
    }
}

/// `tenant/pool`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolPath {
    /// The tenant.
    pub tenant: TenantId,
    /// The pool.
    pub pool: PoolId,
}

impl fmt::Display for PoolPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.pool)
    }
}

impl FromStr for PoolPath {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [tenant, pool] => Ok(Self {
                tenant: tenant.parse()?,
                pool: pool.parse()?,
            }),
            _ => Err(NameError::Path {
                what: "a pool",
                form: "tenant/pool",
                text: text.to_owned(),
            }),
        }
    }
}

/// `tenant/pool/instance`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstancePath {
    /// The tenant.
    pub tenant: TenantId,
    /// The pool.
    pub pool: PoolId,
    /// The instance.
    pub instance: InstanceId,
}

impl InstancePath {
    /// The path of the instance's pool.
    pub fn pool_path(&self) -> PoolPath {
        PoolPath {
            tenant: self.tenant.clone(),
            pool: self.pool.clone(),
        }
    }
}

impl fmt::Display for InstancePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.pool, self.instance)
    }
}

impl FromStr for InstancePath {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let InstanceRef { pool, prefix } = text.parse()?;
        let instance = prefix.0.parse()?;
        Ok(Self {
            tenant: pool.tenant,
            pool: pool.pool,
            instance,
        })
    }
}

impl TryFrom<String> for InstancePath {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<InstancePath> for String {
    fn from(path: InstancePath) -> String {
        path.to_string()
    }
}

/// `tenant/pool/instance` as a person types it: the id may be a beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRef {
    /// The pool.
    pub pool: PoolPath,
    /// The beginning of the instance's id.
    pub prefix: InstancePrefix,
}

impl fmt::Display for InstanceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.prefix)
    }
}

impl FromStr for InstanceRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [tenant, pool, instance] => Ok(Self {
                pool: PoolPath {
                    tenant: tenant.parse()?,
                    pool: pool.parse()?,
                },
                prefix: instance.parse()?,
            }),
            _ => Err(NameError::Path {
                what: "an instance",
                form: "tenant/pool/instance",
                text: text.to_owned(),
            }),
        }
    }
}

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
        if number <= 4095 {
            Ok(Self(number))
        } else {
            Err(NameError::NetId {
                text: number.to_string(),
            })
        }
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
            .ok_or_else(|| NameError::NetId {
                text: text.to_owned(),
            })
    }
}

/// The place of an address in its tenant's subnet: 1 is the gateway, 2 the builder, instances begin at 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(u16);

impl Offset {
    /// The first offset that an instance may have.
    pub const FIRST_INSTANCE: Offset = Offset(3);
    /// The builder microVM's offset.
    pub const BUILDER: Offset = Offset(2);

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
        let slot = Self {
            net_id: net_id.parse().ok()?,
            offset: Offset(offset.parse().ok()?),
        };
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
        let parts: Vec<u8> = text
            .split(':')
            .filter_map(|part| u8::from_str_radix(part, 16).ok())
            .collect();
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
        let net: Ipv4Net = text.parse().map_err(|_| NameError::Subnet {
            text: text.to_owned(),
        })?;
        if net.trunc() != net {
            return Err(NameError::HostBits {
                text: text.to_owned(),
                network: net.trunc(),
            });
        }
        if !CLUSTER_CIDR.contains(&net) {
            return Err(NameError::OutsideCluster {
                text: text.to_owned(),
            });
        }
        if !(20..=29).contains(&net.prefix_len()) {
            return Err(NameError::Prefix {
                text: text.to_owned(),
                prefix: net.prefix_len(),
            });
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

/// A revision's name: the content hash of its artifacts, 64 hex digits, or the first 12 or more where a person types it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RevisionHash(String);

impl RevisionHash {
    /// Does it begin with these digits?
    pub fn starts_with(&self, beginning: &RevisionHash) -> bool {
        self.0.starts_with(&beginning.0)
    }

    /// The first 12 digits, for tables.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for RevisionHash {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if (12..=64).contains(&text.len()) && text.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Revision {
                text: text.to_owned(),
            })
        }
    }
}
text_type!(RevisionHash);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_net_id_and_offset() {
        let slot = Slot {
            net_id: "3".parse().unwrap(),
            offset: Offset(5),
        };
        assert_eq!(slot.tap(), "tn3i5");
        assert_eq!(slot.mac().to_string(), "02:fc:00:03:00:05");
        assert_eq!(slot.uid(), 0x7003_0005);
        assert_eq!(slot.net_id.bridge(), "br-tenant-3");
        assert_eq!(slot.net_id.gateway_mac().to_string(), "02:fc:00:03:00:01");
    }

    #[test]
    fn the_longest_interface_names_fit_the_kernel() {
        let slot = Slot {
            net_id: NetId(4095),
            offset: Offset(4094),
        };
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
    fn labels() {
        let long = "a".repeat(63);
        for good in ["a", "0", "a-b", long.as_str(), "a--b"] {
            assert!(good.parse::<TenantId>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "-",
            "a-",
            "-a",
            "A",
            "a_b",
            "a/b",
            "a.b",
            "ä",
            " a",
            too_long.as_str(),
            "..",
        ] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths() {
        assert!("acme/workers".parse::<PoolPath>().is_ok());
        for bad in ["acme", "acme/", "/workers", "a/b/c", ""] {
            assert!(bad.parse::<PoolPath>().is_err(), "{bad}");
        }
        assert!("acme/workers/i-0f3a91c2".parse::<InstancePath>().is_ok());
        assert!("acme/workers/i-0f".parse::<InstancePath>().is_err());
        assert!("acme/workers/i-0f".parse::<InstanceRef>().is_ok());
        for bad in [
            "acme/workers/0f",
            "acme/workers/i-0G",
            "acme/workers/i-0f3a91c2a",
            "acme/workers",
        ] {
            assert!(bad.parse::<InstanceRef>().is_err(), "{bad}");
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
        assert_eq!(
            (subnet.gateway().to_string(), subnet.last_offset().get()),
            ("10.240.3.1".into(), 6)
        );
    }
}
