//! The kernel's network: bridges and TAPs over netlink, rules in tables of mvm's own, probes with real packets.
//!
//! Knows of tenants and instances only what [`Desired`] says. Nothing that mvm did not make is touched.

mod chains;
mod conntrack;
pub mod egress;
pub mod elements;
pub mod error;
pub mod links;
pub mod netlink;
mod packets;
pub mod probe;
pub mod repair;
pub mod routes;
pub mod rules;
pub mod verify;

use std::{collections::HashSet, net::Ipv4Addr, time::Duration};

use ipnet::Ipv4Net;

pub use self::error::NetError;
use self::{
    egress::{Egress, Port},
    netlink::Socket,
};
use crate::{
    infra::shell,
    vm::naming::{NetId, Slot, Subnet},
};

/// What one instance may do per second, and have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantRates {
    /// Open connections to the outside or the host.
    pub max_conns: u32,
    /// New connections per second.
    pub new_per_second: u32,
}

impl TenantRates {
    /// New connections at once, after a pause.
    pub fn burst(self) -> u32 {
        self.new_per_second.saturating_mul(2).max(5)
    }
}

impl Default for TenantRates {
    fn default() -> Self {
        Self { max_conns: 2000, new_per_second: 200 }
    }
}

/// A tenant, as the kernel's network sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantNet {
    /// Its number.
    pub net_id: NetId,
    /// Its addresses.
    pub subnet: Subnet,
    /// Its instances' limits.
    pub rates: TenantRates,
}

/// A lease, as the kernel's network sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its slot.
    pub slot: Slot,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its tenant's addresses.
    pub subnet: Subnet,
    /// Where it may connect to.
    pub egress: Egress,
    /// What of it is reachable from outside.
    pub published: Vec<Port>,
}

/// What the kernel's network should be.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// The tenants.
    pub tenants: Vec<TenantNet>,
    /// The leases.
    pub leases: Vec<Lease>,
    /// The slots whose TAPs must be on their bridges.
    pub attached: Vec<Slot>,
    /// The slots on which somebody works at this moment: their TAPs may be there or not.
    pub busy: HashSet<Slot>,
}

/// What the rules need to know of the host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// The networks that it is on, tenants' own apart.
    pub on_link: Vec<Ipv4Net>,
    /// The uplink, where only guests may be forwarded: on a host that forwards in general somebody wanted a router.
    pub opened: Option<String>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Is it as it should be?
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// How long a packet took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<f64>,
    /// What puts it right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<String>,
}

/// The sockets to the kernel's network. Kept until the process ends: closing the second one waits for the kernel.
#[derive(Debug)]
pub struct Net {
    /// The node that the tables are made for.
    owner: String,
    route: Socket,
    netfilter: std::mem::ManuallyDrop<Socket>,
}

/// How long `nft` may take to load everything.
const NFT_LIMIT: Duration = Duration::from_secs(60);

impl Net {
    /// Opens the sockets of the network namespace that this thread is in. `owner` is the node whose network it is: the tables
    /// carry it, and those of another node are as foreign as anybody's.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn open(owner: &str) -> Result<Self, NetError> {
        let open = |socket: std::io::Result<Socket>| socket.map_err(NetError::kernel("open", "netlink"));
        // Not closed with the value: the kernel closes it at the end of the process, when nobody waits for it any more.
        let netfilter = std::mem::ManuallyDrop::new(open(Socket::netfilter())?);
        Ok(Self { owner: owner.to_owned(), route: open(Socket::route())?, netfilter })
    }

    /// Makes the tables where they are not there yet.
    fn ensure_base(&mut self) -> Result<(), NetError> {
        let tables = self.check_tables()?;
        if tables < rules::TABLES.len() {
            load(&(rules::tables(&self.owner) + &rules::base()))?;
            routes::ensure_unreachable(&mut self.route)?;
        }
        Ok(())
    }

    /// Are all of mvm's tables there?
    ///
    /// # Errors
    /// [`NetError::Foreign`] where a table of that name is somebody else's.
    pub fn has_tables(&mut self) -> Result<bool, NetError> {
        Ok(self.check_tables()? == rules::TABLES.len())
    }

    /// How many of the tables are there. A table of that name that somebody else made is an error.
    fn check_tables(&mut self) -> Result<usize, NetError> {
        let tables = elements::tables(&mut self.netfilter)?;
        for (family, comment) in &tables {
            let found = match comment.strip_prefix(rules::MARK) {
                Some(owner) if owner.trim() == self.owner => continue,
                Some(owner) => format!("it is that of the node {}, another root's", owner.trim()),
                None => "it does not carry mvm's comment".into(),
            };
            return Err(NetError::Foreign {
                name: format!("the nftables table {} mvm", elements::family_name(*family)),
                found,
            });
        }
        Ok(tables.len())
    }

    /// Makes a tenant's bridge, and its elements; what is there already stays.
    ///
    /// # Errors
    /// [`NetError::Foreign`] where something else has the bridge's name.
    pub fn ensure_tenant(&mut self, tenant: &TenantNet) -> Result<(), NetError> {
        self.ensure_base()?;
        let set = rules::tenant_elements(tenant);
        let there = elements::dump(&mut self.netfilter, elements::INET, "rates")?.unwrap_or_default();
        let wanted = &set[2];
        let has_rates = there.contains(&(wanted.key_bytes(), wanted.value_bytes()));
        let has_bridge = links::find(&mut self.route, &tenant.net_id.bridge())?.is_some_and(|link| link.up);
        if has_rates && has_bridge {
            return Ok(());
        }
        links::check_name(&mut self.route, tenant.net_id)?;
        let shown = self.look()?;
        let host = self.host(&shown)?;
        // What denies comes before what is to be protected.
        let mut text = rules::rates(tenant);
        text.push_str(&format!("add element inet mvm subnets {{ {} }}\n", tenant.subnet));
        text.push_str(&rules::denied(&host));
        load(&text)?;
        elements::add(
            &mut self.netfilter,
            &host.opened.iter().map(|name| rules::opened(name)).collect::<Vec<_>>(),
        )?;
        let mtu = shown.uplink().map_or(1500, |link| link.mtu);
        // One that stands is not set up again: that would end its neighbours' entries.
        if !has_bridge {
            links::ensure_bridge(&mut self.route, tenant.net_id, tenant.subnet, mtu)?;
        }
        elements::replace(&mut self.netfilter, &set)?;
        shown.uplink().map_or(Ok(()), |uplink| links::open_forwarding(&uplink.name))
    }

    /// Removes a tenant's bridge and elements; it is well when there are none, or only somebody else's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_tenant(&mut self, tenant: &TenantNet) -> Result<(), NetError> {
        links::remove_bridge(&mut self.route, tenant.net_id)?;
        if self.check_tables()? == rules::TABLES.len() {
            elements::remove(&mut self.netfilter, &rules::tenant_elements(tenant))?;
            // An element that is not there is no error to its removal after an addition, in one transaction.
            let subnet = tenant.subnet;
            load(&format!(
                "add element inet mvm subnets {{ {subnet} }}\ndelete element inet mvm subnets {{ {subnet} }}\n"
            ))?;
        }
        Ok(())
    }

    /// Leaves the host as it was before the first tenant: closes what was opened for forwarding, and removes tables and route.
    /// There is no tenant any more, and the caller holds the network alone.
    ///
    /// # Errors
    /// When the kernel refuses; calling it again goes on.
    pub fn leave(&mut self) -> Result<(), NetError> {
        if !self.has_tables()? {
            return Ok(());
        }
        for (name, _) in elements::dump(&mut self.netfilter, elements::INET, "opened")?.unwrap_or_default() {
            links::close_forwarding(&netlink::text(&name))?;
        }
        routes::remove_unreachable(&mut self.route)?;
        let delete = |(family, name)| format!("delete table {family} {name}\n");
        load(&rules::TABLES.into_iter().map(delete).collect::<String>())
    }

    /// Adds a lease's elements and its neighbour entry. The tenant is there.
    ///
    /// # Errors
    /// When the kernel refuses; then it has none of them.
    pub fn add_lease(&mut self, lease: &Lease) -> Result<(), NetError> {
        let chain = rules::egress(&lease.egress);
        if !chain.is_empty() {
            load(&chain)?;
        }
        elements::add(&mut self.netfilter, &rules::lease_elements(lease))?;
        routes::add_neighbour(&mut self.route, lease.slot, lease.ip)?;
        // A client outside that went on asking for the port while nobody had it is not kept from it.
        for port in &lease.published {
            conntrack::flush_port(&mut self.netfilter, *port)?;
        }
        Ok(())
    }

    /// Removes a lease's elements, its neighbour entry and its open flows; what is not there is well.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_lease(&mut self, tenant: &TenantNet, lease: &Lease) -> Result<(), NetError> {
        if self.check_tables()? == rules::TABLES.len() {
            let mut all = rules::lease_elements(lease);
            all.extend(rules::limited(tenant, lease.ip));
            elements::remove(&mut self.netfilter, &all)?;
            self.unpublish(lease.ip)?;
        }
        routes::remove_neighbour(&mut self.route, lease.slot, lease.ip)?;
        conntrack::flush(&mut self.netfilter, lease.ip)
    }

    /// Removes every published port that leads to an address, also those that no record knows of any more: the next holder
    /// of the address must not inherit them.
    fn unpublish(&mut self, ip: Ipv4Addr) -> Result<(), NetError> {
        let mut remove = |set: &str, leads_here: fn(&[u8], &[u8]) -> Option<[u8; 4]>| {
            let all = elements::dump(&mut self.netfilter, elements::INET, set)?.unwrap_or_default();
            let here = |(key, value): &(Vec<u8>, Vec<u8>)| leads_here(key, value) == Some(ip.octets());
            let keys: Vec<Vec<u8>> = all.into_iter().filter(here).map(|(key, _)| key).collect();
            elements::remove_raw(&mut self.netfilter, elements::INET, set, &keys)
        };
        remove("published", |_, value| value.first_chunk().copied())?;
        remove("published_to", |key, _| key.first_chunk().copied())
    }

    /// Gives leases their egress policy where they have another one, and ends the flows that the old one let out. The new
    /// policy comes last: what was cut off before it is seen, and done again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn update_egress(&mut self, leases: &[Lease]) -> Result<(), NetError> {
        let there = elements::dump(&mut self.netfilter, elements::INET, "egress")?.unwrap_or_default();
        let there: HashSet<_> = there.into_iter().collect();
        for lease in leases {
            let element = rules::egress_element(lease);
            if there.contains(&(element.key_bytes(), element.value_bytes())) {
                continue;
            }
            let chain = rules::egress(&lease.egress);
            if !chain.is_empty() {
                load(&chain)?;
            }
            let element = [element];
            elements::remove(&mut self.netfilter, &element)?;
            conntrack::flush(&mut self.netfilter, lease.ip)?;
            elements::add(&mut self.netfilter, &element)?;
        }
        Ok(())
    }

    /// Makes a slot's TAP, down and off the bridge.
    ///
    /// # Errors
    /// [`NetError::Foreign`] where something else has its name.
    pub fn create_tap(&mut self, slot: Slot, owner: Option<u32>) -> Result<(), NetError> {
        let mtu = self.mtu(slot)?;
        links::create_tap(&mut self.route, slot, owner, mtu)
    }

    /// Bytes of a packet at most, on a slot's bridge.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn mtu(&mut self, slot: Slot) -> Result<u32, NetError> {
        Ok(links::find(&mut self.route, &slot.net_id.bridge())?.map_or(1500, |link| link.mtu))
    }

    /// Is a slot's bridge there, and mvm's? Asked before there is no way back.
    ///
    /// # Errors
    /// [`NetError::Foreign`] where it is somebody else's.
    pub fn check_bridge(&mut self, slot: Slot) -> Result<(), NetError> {
        links::bridge_of(&mut self.route, slot).map(drop)
    }

    /// Is the name of a slot's TAP free, or mvm's?
    ///
    /// # Errors
    /// [`NetError::Foreign`] where it is somebody else's.
    pub fn check_tap(&mut self, slot: Slot) -> Result<(), NetError> {
        links::find(&mut self.route, &slot.tap())?.map_or(Ok(()), |link| links::check_tap(&link))
    }

    /// Puts a slot's TAP on its bridge.
    ///
    /// # Errors
    /// When one of the two is not there.
    pub fn join(&mut self, slot: Slot) -> Result<(), NetError> {
        links::join(&mut self.route, slot)
    }

    /// Removes a slot's TAP; it is well when there is none, or only somebody else's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_tap(&mut self, slot: Slot) -> Result<(), NetError> {
        links::delete_tap(&mut self.route, slot)
    }

    /// What a probe of a tenant may ask besides: another tenant's gateway, another address of the host.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn others(&mut self, tenants: &[TenantNet], tenant: &TenantNet) -> Result<probe::Others, NetError> {
        let gateway = tenants.iter().find(|other| other.net_id != tenant.net_id);
        let own: HashSet<Ipv4Addr> = tenants.iter().map(|tenant| tenant.subnet.gateway()).collect();
        let addresses = routes::addresses(&mut self.route)?;
        let mut host = addresses.iter().map(|address| address.net.addr());
        Ok(probe::Others {
            gateway: gateway.map(|other| other.subnet.gateway()),
            uplink: routes::routes(&mut self.route)?.uplink.is_some(),
            host: host.find(|ip| !ip.is_loopback() && !own.contains(ip)),
        })
    }

    /// The slots whose TAPs are there and mvm's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn list_taps(&mut self) -> Result<Vec<Slot>, NetError> {
        Ok(links::all(&mut self.route)?
            .iter()
            .filter(|link| links::is_our_tap(link))
            .filter_map(|link| Slot::from_tap(&link.name))
            .collect())
    }
}

/// Loads rules as one transaction.
fn load(text: &str) -> Result<(), NetError> {
    shell::run("nft", ["-f", "-"], text.as_bytes(), NFT_LIMIT)
        .map(drop)
        .map_err(|source| NetError::Rules { source })
}
