//! Compares the kernel's network with what it should be. Only looks, and looks once at each kind of thing: nothing here
//! costs a process or a question for each tenant or lease.

use std::collections::{HashMap, HashSet};

use super::{
    Desired, Finding, Host, Net, NetError,
    chains::{self, Comparison},
    elements::{self, Element},
    links::{self, Link},
    routes::{self, Address, Pinned, Routes},
    rules,
};
use crate::vm::naming::{NetId, Slot};

const REPAIR: &str = "mvm net repair";

/// What a set has too little and too much of.
#[derive(Debug, Default)]
pub struct Difference {
    /// To be added.
    pub missing: Vec<Element>,
    /// Keys to be removed.
    pub surplus: Vec<Vec<u8>>,
}

/// Compares a set's elements. One whose key is right and whose value is not is both: it is removed and added again.
pub fn difference(wanted: &[Element], there: &[(Vec<u8>, Vec<u8>)]) -> Difference {
    let there_by_key: HashMap<&[u8], &[u8]> =
        there.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
    let mut keys = HashSet::new();
    let mut difference = Difference::default();
    for element in wanted {
        let (key, value) = (element.key_bytes(), element.value_bytes());
        match there_by_key.get(key.as_slice()) {
            Some(&is) if is == value.as_slice() => {}
            Some(_) => {
                difference.surplus.push(key.clone());
                difference.missing.push(element.clone());
            }
            None => difference.missing.push(element.clone()),
        }
        keys.insert(key);
    }
    difference
        .surplus
        .extend(there.iter().filter(|(key, _)| !keys.contains(key)).map(|(key, _)| key.clone()));
    difference
}

/// The bridges that mvm made, by the tenant whose name they have.
pub fn our_bridges(all: &[Link]) -> HashMap<NetId, &Link> {
    let net_id = |link: &Link| -> Option<NetId> {
        let net_id: NetId = link.name.strip_prefix("br-tenant-")?.parse().ok()?;
        (net_id.bridge() == link.name && links::is_our_bridge(link, net_id)).then_some(net_id)
    };
    all.iter().filter_map(|link| Some((net_id(link)?, link))).collect()
}

/// What the kernel shows of links and what belongs to them.
#[derive(Debug)]
pub struct Shown {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// What is pinned.
    pub pinned: Pinned,
    /// The routes.
    pub routes: Routes,
}

impl Shown {
    /// The interface of the default route.
    pub fn uplink(&self) -> Option<&Link> {
        self.links.iter().find(|link| Some(link.index) == self.routes.uplink)
    }

    fn by_name(&self) -> HashMap<&str, &Link> {
        self.links.iter().map(|link| (link.name.as_str(), link)).collect()
    }
}

fn finding(name: impl Into<String>, wrong: Vec<String>, fine: impl Into<String>) -> Finding {
    let ok = wrong.is_empty();
    let count = wrong.len();
    let mut detail = if ok { fine.into() } else { wrong.into_iter().take(5).collect::<Vec<_>>().join("; ") };
    if count > 5 {
        detail.push_str(&format!("; and {} more", count - 5));
    }
    Finding { name: name.into(), ok, detail, ms: None, repair: (!ok).then(|| REPAIR.to_owned()) }
}

impl Net {
    /// Looks at everything: tables, chains and sets, elements against leases both ways, bridges, addresses and settings, TAPs
    /// and their port flags, what is pinned, routes, orphans.
    ///
    /// # Errors
    /// When the kernel refuses to show it.
    pub fn verify(&mut self, desired: &Desired) -> Result<Vec<Finding>, NetError> {
        Ok(self.examine(desired)?.0)
    }

    /// Looks at everything; what was seen of chains and sets too, where all tables are there.
    pub(super) fn examine(
        &mut self,
        desired: &Desired,
    ) -> Result<(Vec<Finding>, Option<Comparison>), NetError> {
        let (rules, comparison) = self.verify_tables(desired)?;
        let mut findings = vec![rules];
        let shown = self.look()?;
        let host = self.host(&shown)?;
        findings.push(self.verify_elements(desired, &host)?);
        findings.push(verify_bridges(desired, &shown));
        findings.push(verify_uplink(desired, &shown));
        findings.push(verify_taps(desired, &shown));
        findings.push(verify_neighbours(desired, &shown));
        Ok((findings, comparison))
    }

    /// Looks at links and what belongs to them.
    pub(super) fn look(&mut self) -> Result<Shown, NetError> {
        Ok(Shown {
            links: links::all(&mut self.route)?,
            addresses: routes::addresses(&mut self.route)?,
            pinned: routes::pinned(&mut self.route)?,
            routes: routes::routes(&mut self.route)?,
        })
    }

    /// What the rules need to know of the host.
    pub(super) fn host(&mut self, shown: &Shown) -> Result<Host, NetError> {
        let router = links::setting("ipv4", "all", "forwarding").as_deref() == Some("1");
        Ok(Host {
            on_link: routes::on_link(&shown.addresses, &shown.links),
            opened: shown.uplink().filter(|_| !router).map(|link| link.name.clone()),
        })
    }

    fn verify_tables(&mut self, desired: &Desired) -> Result<(Finding, Option<Comparison>), NetError> {
        let there = self.check_tables()?;
        if there == 0 && desired.tenants.is_empty() {
            return Ok((finding("rules", Vec::new(), "none are needed yet"), None));
        }
        if there < rules::TABLES.len() {
            let wrong = format!("{there} of {} tables are there", rules::TABLES.len());
            return Ok((finding("rules", vec![wrong], ""), None));
        }
        let comparison = chains::compare(desired)?;
        let fine = "every chain and set as it should be";
        Ok((finding("rules", comparison.describe(), fine), Some(comparison)))
    }

    fn verify_elements(&mut self, desired: &Desired, host: &Host) -> Result<Finding, NetError> {
        let mut wrong = Vec::new();
        let mut count = 0;
        let tables = self.check_tables()?;
        if tables < rules::TABLES.len() && desired.tenants.is_empty() {
            return Ok(finding("elements", wrong, "none are needed yet"));
        }
        for ((family, set), wanted) in rules::elements(desired, host) {
            count += wanted.len();
            let Some(there) = elements::dump(&mut self.netfilter, family, &set)? else {
                wrong.push(format!("the set {set} is not there"));
                continue;
            };
            let difference = difference(&wanted, &there);
            if !difference.missing.is_empty() {
                wrong.push(format!("{} elements are missing in {set}", difference.missing.len()));
            }
            if !difference.surplus.is_empty() {
                wrong.push(format!("{} elements too many in {set}", difference.surplus.len()));
            }
        }
        for (set, nets) in rules::intervals(desired, host) {
            count += nets.len();
            match elements::dump_ranges(&mut self.netfilter, set)? {
                Some(there) if there == elements::ranges(&nets) => {}
                Some(_) => wrong.push(format!("{set} covers other networks than it should")),
                None => wrong.push(format!("the set {set} is not there")),
            }
        }
        Ok(finding("elements", wrong, format!("{count} elements for {} leases", desired.leases.len())))
    }
}

fn verify_bridges(desired: &Desired, shown: &Shown) -> Finding {
    let by_name = shown.by_name();
    let mut addresses: HashMap<u32, Vec<ipnet::Ipv4Net>> = HashMap::new();
    for address in &shown.addresses {
        addresses.entry(address.index).or_default().push(address.net);
    }
    let mut wrong = Vec::new();
    for tenant in &desired.tenants {
        let name = tenant.net_id.bridge();
        let Some(link) = by_name.get(name.as_str()) else {
            wrong.push(format!("{name} is not there"));
            continue;
        };
        if !links::is_our_bridge(link, tenant.net_id) {
            wrong.push(format!("{name} is not mvm's: another {} has the name", link.kind));
            continue;
        }
        if !link.up {
            wrong.push(format!("{name} is down"));
        }
        if link.mac != Some(tenant.net_id.gateway_mac()) {
            wrong.push(format!(
                "{name} has the MAC {}",
                link.mac.map_or("none".into(), |mac| mac.to_string())
            ));
        }
        let has = addresses.get(&link.index).map_or(&[][..], Vec::as_slice);
        if has != [routes::gateway(tenant.subnet)] {
            let has: Vec<String> = has.iter().map(ToString::to_string).collect();
            let has = if has.is_empty() { "no address".into() } else { has.join(", ") };
            wrong.push(format!("{name} has {has}, not {}", routes::gateway(tenant.subnet)));
        }
        for setting in links::BRIDGE_SETTINGS {
            if let Some(is) = link.setting(&setting).filter(|is| *is != setting.value) {
                wrong.push(format!("{name}: {} is {is}", setting.name));
            }
        }
        for (kind, value, attribute) in links::BRIDGE_ATTRIBUTES {
            if let Some((_, is)) =
                link.bridge.iter().find(|(is, _)| *is == kind).filter(|(_, is)| *is != value)
            {
                wrong.push(format!("{name}: {attribute} is {is}"));
            }
        }
    }
    let wanted: HashSet<NetId> = desired.tenants.iter().map(|tenant| tenant.net_id).collect();
    for net_id in our_bridges(&shown.links).keys().filter(|net_id| !wanted.contains(net_id)) {
        wrong.push(format!("{} belongs to no tenant", net_id.bridge()));
    }
    finding("bridges", wrong, format!("{} bridges as they should be", desired.tenants.len()))
}

fn verify_uplink(desired: &Desired, shown: &Shown) -> Finding {
    let mut wrong = Vec::new();
    if desired.tenants.is_empty() {
        return finding("uplink", wrong, "none is needed yet");
    }
    if !shown.routes.last_resort {
        wrong.push("the route that keeps unknown cluster addresses in is not there".into());
    }
    let Some(uplink) = shown.uplink() else {
        return finding("uplink", wrong, "there is no default route: guests reach no outside");
    };
    if uplink.setting(&links::FORWARDING) != Some(1) {
        wrong.push(format!("forwarding is off on {}", uplink.name));
    }
    finding("uplink", wrong, format!("{} forwards", uplink.name))
}

fn verify_taps(desired: &Desired, shown: &Shown) -> Finding {
    let by_name = shown.by_name();
    let mut wrong = Vec::new();
    for slot in &desired.attached {
        let name = slot.tap();
        let bridge = by_name.get(slot.net_id.bridge().as_str()).map(|link| link.index);
        let Some(link) = by_name.get(name.as_str()) else {
            wrong.push(format!("{name} is not there, and its instance runs"));
            continue;
        };
        if !links::is_our_tap(link) {
            wrong.push(format!("{name} is not mvm's: another {} has the name", link.kind));
            continue;
        }
        wrong.extend(
            wrong_with_port(link, bridge, *slot, &shown.pinned)
                .into_iter()
                .map(|what| format!("{name}{what}")),
        );
    }
    for slot in orphans(desired, &shown.links) {
        wrong.push(format!("{} belongs to nothing that runs", slot.tap()));
    }
    let mut made = finding("TAPs", wrong, format!("{} TAPs on their bridges", desired.attached.len()));
    if made.detail.contains("and its instance runs") {
        // Its VMM holds the end of a TAP that is gone: another one would be nobody's.
        made.repair = Some(format!("{REPAIR}; and for a TAP that is gone, mvm instance stop and start"));
    }
    made
}

/// What is wrong with a port.
fn wrong_with_port(link: &Link, bridge: Option<u32>, slot: Slot, pinned: &Pinned) -> Vec<String> {
    let mut wrong = Vec::new();
    if bridge.is_none() || link.master != bridge {
        wrong.push(format!(" is not on {}", slot.net_id.bridge()));
    }
    if !link.up {
        wrong.push(" is down".into());
    }
    if !link.noarp {
        wrong.push(" does ARP".into());
    }
    if link.setting(&links::NO_IPV6) == Some(0) {
        wrong.push(" does IPv6".into());
    }
    for flag in links::PORT_FLAGS {
        if let Some((_, is)) = link.port_flags.iter().find(|(kind, _)| *kind == flag.number)
            && *is != flag.value
        {
            wrong.push(format!(": {} is {is}", flag.name));
        }
    }
    if link.master.is_some() && !pinned.macs.contains(&(link.index, slot.mac())) {
        wrong.push(": its MAC is not pinned".into());
    }
    wrong
}

/// Is anything wrong with a port?
pub(super) fn is_wrong(tap: &Link, bridge: &Link, slot: Slot, pinned: &Pinned) -> bool {
    !wrong_with_port(tap, Some(bridge.index), slot, pinned).is_empty()
}

/// The slots of TAPs of mvm's in which nothing runs and on which nobody works.
pub fn orphans(desired: &Desired, all: &[Link]) -> Vec<Slot> {
    let wanted: HashSet<Slot> = desired.attached.iter().copied().collect();
    all.iter()
        .filter(|link| links::is_our_tap(link))
        .filter_map(|link| Slot::from_tap(&link.name))
        .filter(|slot| !wanted.contains(slot) && !desired.busy.contains(slot))
        .collect()
}

/// Neighbours that leases should have and have not, and those that nobody should have: bridge and address.
pub(super) fn neighbours(desired: &Desired, shown: &Shown) -> (Vec<Slot>, Vec<(u32, std::net::Ipv4Addr)>) {
    let bridges = our_bridges(&shown.links);
    let mut wanted = HashSet::new();
    let mut missing = Vec::new();
    for lease in &desired.leases {
        let Some(bridge) = bridges.get(&lease.slot.net_id) else { continue };
        let entry = (bridge.index, lease.ip, lease.slot.mac());
        if !shown.pinned.neighbours.contains(&entry) {
            missing.push(lease.slot);
        }
        wanted.insert((bridge.index, lease.ip));
    }
    let ours: HashSet<u32> = bridges.values().map(|link| link.index).collect();
    let surplus = shown
        .pinned
        .neighbours
        .iter()
        .map(|(bridge, ip, _)| (*bridge, *ip))
        .filter(|entry| ours.contains(&entry.0) && !wanted.contains(entry))
        .collect();
    (missing, surplus)
}

fn verify_neighbours(desired: &Desired, shown: &Shown) -> Finding {
    let (missing, surplus) = neighbours(desired, shown);
    let mut wrong: Vec<String> = missing
        .iter()
        .map(|slot| format!("the address of {} is not pinned to its MAC", slot.tap()))
        .collect();
    wrong.extend(surplus.iter().map(|(_, ip)| format!("{ip} is pinned and belongs to no lease")));
    finding("neighbours", wrong, format!("{} addresses pinned to their MACs", desired.leases.len()))
}
