//! Names and quantities as types: whatever comes from outside is parsed here once and trusted afterwards. Does no I/O.

mod ids;
mod slots;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

pub use self::{
    ids::{
        BaseKey, ImageName, InstanceId, InstancePath, InstancePrefix, InstanceRef, PoolId, PoolPath,
        RevisionHash, Scope, SecretName, TenantId,
    },
    slots::{Mac, NetId, Offset, Slot, Subnet, UID_BASE, UID_LAST},
};

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
    /// Not the name of a secret.
    #[error(
        "{text:?} is not the name of a secret: 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', not beginning with '.'"
    )]
    Secret {
        /// The text.
        text: String,
    },
    /// Not a revision hash.
    #[error("{text:?} is not a revision: 12 to 64 lower-case hex digits")]
    Revision {
        /// The text.
        text: String,
    },
    /// Not a base snapshot's key.
    #[error("{text:?} is not the key of a base snapshot: 64 lower-case hex digits")]
    BaseKey {
        /// The text.
        text: String,
    },
}

/// The cluster's network: every tenant's subnet lies inside it.
pub const CLUSTER_CIDR: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 240, 0, 0), 12);
