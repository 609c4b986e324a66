//! What a guest may read of itself at 169.254.169.254, from its VMM: nothing leaves the VMM for it, so nobody else's can be
//! reached. Version 2 of Firecracker's MMDS: no answer without a token, which only who can send a PUT gets.
//!
//! A snapshot keeps that there is such a service, and nothing of what it says: that is put before every load.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::Serialize;
use serde_json::json;

use crate::vmm::wire::{Call, MmdsConfig};

/// Where guests look for it, everywhere.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What Firecracker says of something that is put into a VM without the service (its `MmdsNotInitialized`).
pub const NO_SERVICE: &str = "MMDS data store is not initialized";

/// What is said, under the names that EC2 has for it where it has one; every value is a text, as that form wants it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Metadata<'a> {
    /// The instance.
    pub instance_id: &'a str,
    /// Its host name.
    pub local_hostname: &'a str,
    /// Its address.
    pub local_ipv4: Ipv4Addr,
    /// Its gateway's.
    pub gateway: Ipv4Addr,
    /// Its MAC.
    pub mac: String,
    /// Its tenant.
    pub tenant: &'a str,
    /// Its pool.
    pub pool: &'a str,
    /// The revision that it runs.
    pub revision: String,
    /// Which set of its tenant's secrets it has: another number, other secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets_generation: Option<String>,
    /// Its pool's labels.
    pub tags: BTreeMap<&'static str, &'a BTreeMap<String, String>>,
}

impl Metadata<'_> {
    /// The request that puts it in the place of what was said before.
    pub fn call(&self) -> Call {
        Call::Mmds(json!({ "latest": { "meta-data": self } }))
    }
}

/// The request that gives a VM the service, on this interface.
pub fn service(interface: &str) -> Call {
    Call::MmdsConfig(MmdsConfig {
        version: "V2",
        network_interfaces: vec![interface.to_owned()],
        ipv4_address: ADDRESS,
    })
}
