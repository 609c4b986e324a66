//! The kernel's network: bridges and TAPs over netlink, rules in tables of mvm's own, probes with real packets.
//!
//! Knows of tenants and instances only what [`Desired`] says. Nothing that mvm did not make is touched.

pub mod egress;
pub mod elements;
pub mod error;
pub mod links;
pub mod netlink;
pub mod rules;
pub mod verify;

use std::{collections::HashSet, net::Ipv4Addr, time::Duration};

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
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Is it as it should be?
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What puts it right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair: Option<String>,
}

/// The sockets to the kernel's network. Kept until the process ends: closing the second one waits for the kernel.
#[derive(Debug)]
pub struct Net {
    route: Socket,
    netfilter: std::mem::ManuallyDrop<Socket>,
}

/// How long `nft` may take to load everything.
const NFT_LIMIT: Duration = Duration::from_secs(60);

impl Net {
    /// Opens the sockets of the network namespace that this thread is in.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn open() -> Result<Self, NetError> {
        let open = |socket: std::io::Result<Socket>| socket.map_err(NetError::kernel("open", "netlink"));
        // Not closed with the value: the kernel closes it at the end of the process, when nobody waits for it any more.
        let netfilter = std::mem::ManuallyDrop::new(open(Socket::netfilter())?);
        Ok(Self { route: open(Socket::route())?, netfilter })
    }

    /// Makes the tables where they are not there yet.
    fn ensure_base(&mut self) -> Result<(), NetError> {
        let tables = self.check_tables()?;
        if tables < rules::TABLES.len() {
            load(&rules::base())?;
            links::ensure_unreachable(&mut self.route)?;
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
        match tables.iter().find(|(_, ours)| !ours) {
            Some((family, _)) => Err(NetError::Foreign {
                name: format!("the nftables table mvm of family {family}"),
                found: "it does not carry mvm's comment".into(),
            }),
            None => Ok(tables.len()),
        }
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
        let complete = there.contains(&(wanted.key_bytes(), wanted.value_bytes()))
            && links::find(&mut self.route, &tenant.net_id.bridge())?.is_some_and(|link| link.up);
        if complete {
            return Ok(());
        }
        let uplink = links::uplink(&mut self.route)?;
        let mtu = uplink.as_ref().map_or(1500, |link| link.mtu);
        links::ensure_bridge(&mut self.route, tenant.net_id, tenant.subnet, mtu)?;
        let mut text = rules::rates(tenant);
        text.push_str(&format!("add element inet mvm subnets {{ {} }}\n", tenant.subnet));
        text.push_str(&self.open_uplink()?);
        load(&text)?;
        elements::replace(&mut self.netfilter, &set)
    }

    /// Opens the uplink for forwarding, and closes it to its neighbours again by rule.
    fn open_uplink(&mut self) -> Result<String, NetError> {
        let Some(uplink) = links::uplink(&mut self.route)? else {
            return Ok(String::new());
        };
        // Whoever opened it before mvm wanted a router: then it stays one.
        let opened = links::open_forwarding(&uplink.name)?;
        Ok(if opened {
            format!("add element inet mvm opened {{ \"{}\" }}\n", uplink.name)
        } else {
            String::new()
        })
    }

    /// Removes a tenant's bridge and elements; it is well when there are none.
    ///
    /// # Errors
    /// [`NetError::Foreign`] where something else has the bridge's name.
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

    /// Adds a lease's elements and its neighbour entry. The tenant is there.
    ///
    /// # Errors
    /// When the kernel refuses; then it has none of them.
    pub fn add_lease(&mut self, tenant: &TenantNet, lease: &Lease) -> Result<(), NetError> {
        let chain = rules::egress(&lease.egress);
        if !chain.is_empty() {
            load(&chain)?;
        }
        elements::add(&mut self.netfilter, &rules::lease_elements(tenant, lease))?;
        links::add_neighbour(&mut self.route, lease.slot, lease.ip)
    }

    /// Removes a lease's elements, its neighbour entry and its open flows; what is not there is well.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_lease(&mut self, tenant: &TenantNet, lease: &Lease) -> Result<(), NetError> {
        if self.check_tables()? == rules::TABLES.len() {
            elements::remove(&mut self.netfilter, &rules::lease_elements(tenant, lease))?;
        }
        links::remove_neighbour(&mut self.route, lease.slot, lease.ip)?;
        conntrack::flush(&mut self.netfilter, lease.ip)
    }

    /// Gives leases their egress policy where they have another one, and ends the flows that the old one let out.
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
            elements::replace(&mut self.netfilter, &[element])?;
            conntrack::flush(&mut self.netfilter, lease.ip)?;
        }
        Ok(())
    }

    /// Makes a slot's TAP, down and off the bridge.
    ///
    /// # Errors
    /// [`NetError::Foreign`] where something else has its name.
    pub fn create_tap(&mut self, slot: Slot, owner: Option<u32>) -> Result<(), NetError> {
        let mtu = links::find(&mut self.route, &slot.net_id.bridge())?.map_or(1500, |link| link.mtu);
        links::create_tap(&mut self.route, slot, owner, mtu)
    }

    /// Puts a slot's TAP on its bridge.
    ///
    /// # Errors
    /// When one of the two is not there.
    pub fn join(&mut self, slot: Slot) -> Result<(), NetError> {
        links::join(&mut self.route, slot)
    }

    /// Removes a slot's TAP; it is well when there is none.
    ///
    /// # Errors
    /// [`NetError::Foreign`] where something else has its name.
    pub fn delete_tap(&mut self, slot: Slot) -> Result<(), NetError> {
        links::delete_tap(&mut self.route, slot)
    }

    /// The slots whose TAPs are there and mvm's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn list_taps(&mut self) -> Result<Vec<Slot>, NetError> {
        let ours = |link: &links::Link| link.kind == "tun" && link.alias == links::ALIAS;
        Ok(links::all(&mut self.route)?
            .iter()
            .filter(|link| ours(link))
            .filter_map(|link| Slot::from_tap(&link.name))
            .collect())
    }

    /// Makes the kernel's network what it should be; returns what was done, a line each.
    ///
    /// # Errors
    /// [`NetError::Foreign`] where something else is in the way.
    pub fn repair(&mut self, desired: &Desired) -> Result<Vec<String>, NetError> {
        let wrong: Vec<String> = self
            .verify(desired)?
            .into_iter()
            .filter(|finding| !finding.ok)
            .map(|f| format!("{}: {}", f.name, f.detail))
            .collect();
        if wrong.is_empty() {
            return Ok(Vec::new());
        }
        self.check_tables()?;
        let mut text = rules::base();
        text.push_str(&rules::extras(desired));
        text.push_str(&rules::intervals(desired, &[]));
        if !desired.tenants.is_empty() {
            text.push_str(&self.open_uplink()?);
        }
        load(&text)?;
        links::ensure_unreachable(&mut self.route)?;
        self.repair_bridges(desired)?;
        self.repair_elements(desired)?;
        for lease in &desired.leases {
            links::add_neighbour(&mut self.route, lease.slot, lease.ip)?;
        }
        for &slot in &desired.attached {
            match self.join(slot) {
                // It was stopped since the files were read: start and stop do not wait for this.
                Err(error) if error.is_no_device() => {}
                joined => joined?,
            }
        }
        Ok(wrong)
    }

    fn repair_bridges(&mut self, desired: &Desired) -> Result<(), NetError> {
        let uplink = links::uplink(&mut self.route)?;
        let mtu = uplink.as_ref().map_or(1500, |link| link.mtu);
        for tenant in &desired.tenants {
            links::ensure_bridge(&mut self.route, tenant.net_id, tenant.subnet, mtu)?;
        }
        let wanted: HashSet<NetId> = desired.tenants.iter().map(|tenant| tenant.net_id).collect();
        for net_id in verify::our_bridges(&links::all(&mut self.route)?) {
            if !wanted.contains(&net_id) {
                links::remove_bridge(&mut self.route, net_id)?;
            }
        }
        Ok(())
    }

    /// Adds what is missing and removes what is too much, set by set.
    fn repair_elements(&mut self, desired: &Desired) -> Result<(), NetError> {
        for ((family, set), wanted) in rules::elements(desired) {
            let there = elements::dump(&mut self.netfilter, family, &set)?.unwrap_or_default();
            let difference = verify::difference(&wanted, &there);
            elements::remove_raw(&mut self.netfilter, family, &set, &difference.surplus)?;
            for chunk in difference.missing.chunks(500) {
                elements::add(&mut self.netfilter, chunk)?;
            }
        }
        Ok(())
    }
}

/// Loads rules as one transaction.
fn load(text: &str) -> Result<(), NetError> {
    shell::run("nft", ["-f", "-"], text.as_bytes(), NFT_LIMIT)
        .map(drop)
        .map_err(|source| NetError::Rules { source })
}

mod conntrack {
    //! Ends the flows of an address.

    use std::net::Ipv4Addr;

    use super::{
        error::NetError,
        netlink::{self, DUMP, Message, REQUEST, Socket},
    };

    /// `NFNL_SUBSYS_CTNETLINK`, get and delete.
    const GET: u16 = 1 << 8 | 1;
    const DELETE: u16 = 1 << 8 | 2;
    const AF_INET: u8 = 2;

    /// Removes every entry from, to, or answered by `ip`.
    pub fn flush(socket: &mut Socket, ip: Ipv4Addr) -> Result<(), NetError> {
        let refused = || NetError::kernel("end the flows of", ip);
        let mut tuples = Vec::new();
        let message = Message::new(GET, REQUEST | DUMP, &[AF_INET, 0, 0, 0]);
        let listed = socket.exchange(message, |_, payload| {
            let Some(body) = payload.get(4..) else { return };
            // CTA_TUPLE_ORIG and CTA_TUPLE_REPLY
            let (original, reply) = (netlink::attribute(body, 1), netlink::attribute(body, 2));
            if [original, reply].into_iter().flatten().any(|tuple| involves(tuple, ip))
                && let Some(original) = original
            {
                tuples.push(original.to_vec());
            }
        });
        match listed {
            Ok(()) => {}
            // No conntrack in this kernel or namespace: no flows.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) =>
            {
                return Ok(());
            }
            Err(error) => return Err(refused()(error)),
        }
        for tuple in tuples {
            match socket.request(Message::new(DELETE, REQUEST, &[AF_INET, 0, 0, 0]).with(1 | 0x8000, &tuple))
            {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(refused()(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn involves(tuple: &[u8], ip: Ipv4Addr) -> bool {
        // CTA_TUPLE_IP { CTA_IP_V4_SRC, CTA_IP_V4_DST }
        netlink::attribute(tuple, 1).is_some_and(|addresses| {
            netlink::attributes(addresses).any(|(kind, value)| matches!(kind, 1 | 2) && value == ip.octets())
        })
    }
}
