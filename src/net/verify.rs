//! Compares the kernel's network with what it should be. Only looks.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{
    Desired, Finding, Net, NetError,
    elements::{self, Element},
    links::{self, Link},
    rules,
};
use crate::{
    infra::shell,
    vm::naming::{NetId, Slot},
};

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

/// The net ids of the bridges that mvm made.
pub fn our_bridges(all: &[Link]) -> Vec<NetId> {
    let net_id = |link: &Link| {
        let net_id: NetId = link.name.strip_prefix("br-tenant-")?.parse().ok()?;
        (link.kind == "bridge" && link.mac == Some(net_id.gateway_mac()) && net_id.bridge() == link.name)
            .then_some(net_id)
    };
    all.iter().filter_map(net_id).collect()
}

fn finding(name: impl Into<String>, wrong: Vec<String>, fine: impl Into<String>) -> Finding {
    let ok = wrong.is_empty();
    let count = wrong.len();
    let mut detail = if ok { fine.into() } else { wrong.into_iter().take(5).collect::<Vec<_>>().join("; ") };
    if count > 5 {
        detail.push_str(&format!("; and {} more", count - 5));
    }
    Finding { name: name.into(), ok, detail, repair: (!ok).then(|| REPAIR.to_owned()) }
}

impl Net {
    /// Looks at everything: tables and chains, elements against leases both ways, bridges and their settings, TAPs and their
    /// port flags, orphans.
    ///
    /// # Errors
    /// When the kernel refuses to show it.
    pub fn verify(&mut self, desired: &Desired) -> Result<Vec<Finding>, NetError> {
        let mut findings = vec![self.verify_tables(desired)?];
        findings.push(self.verify_elements(desired)?);
        let all = links::all(&mut self.route)?;
        findings.push(verify_bridges(desired, &all));
        findings.push(self.verify_forwarding(desired)?);
        findings.push(verify_taps(desired, &all));
        Ok(findings)
    }

    fn verify_tables(&mut self, desired: &Desired) -> Result<Finding, NetError> {
        let there = self.check_tables()?;
        if there == 0 && desired.tenants.is_empty() {
            return Ok(finding("rules", Vec::new(), "none are needed yet"));
        }
        if there < rules::TABLES.len() {
            let wrong = format!("{there} of {} tables are there", rules::TABLES.len());
            return Ok(finding("rules", vec![wrong], ""));
        }
        let (is, should) = (listing()?, expected(desired)?);
        let wrong = compare_chains(&is, &should);
        Ok(finding("rules", wrong, format!("{} chains as they should be", should.len())))
    }

    fn verify_elements(&mut self, desired: &Desired) -> Result<Finding, NetError> {
        let mut wrong = Vec::new();
        let mut count = 0;
        for ((family, set), wanted) in rules::elements(desired) {
            count += wanted.len();
            let Some(there) = elements::dump(&mut self.netfilter, family, &set)? else {
                if !wanted.is_empty() {
                    wrong.push(format!("the set {set} is not there"));
                }
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
        Ok(finding("elements", wrong, format!("{count} elements for {} leases", desired.leases.len())))
    }

    fn verify_forwarding(&mut self, desired: &Desired) -> Result<Finding, NetError> {
        let mut wrong = Vec::new();
        let Some(uplink) = links::uplink(&mut self.route)? else {
            return Ok(finding("uplink", wrong, "there is no default route: guests reach no outside"));
        };
        if !desired.tenants.is_empty()
            && links::setting("ipv4", &uplink.name, "forwarding").as_deref() != Some("1")
        {
            wrong.push(format!("forwarding is off on {}", uplink.name));
        }
        Ok(finding("uplink", wrong, format!("{} forwards", uplink.name)))
    }
}

fn verify_bridges(desired: &Desired, all: &[Link]) -> Finding {
    let by_name: HashMap<&str, &Link> = all.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut wrong = Vec::new();
    for tenant in &desired.tenants {
        let name = tenant.net_id.bridge();
        match by_name.get(name.as_str()) {
            None => wrong.push(format!("{name} is not there")),
            Some(link) if link.mac != Some(tenant.net_id.gateway_mac()) || link.kind != "bridge" => {
                wrong.push(format!("{name} is not mvm's"));
            }
            Some(link) if !link.up => wrong.push(format!("{name} is down")),
            Some(_) => {
                for (family, setting, value) in links::BRIDGE_SETTINGS {
                    let is = links::setting(family, &name, setting);
                    if is.as_deref().is_some_and(|is| is != value) {
                        wrong.push(format!("{name}: {setting} is {}", is.unwrap_or_default()));
                    }
                }
            }
        }
    }
    let wanted: HashSet<NetId> = desired.tenants.iter().map(|tenant| tenant.net_id).collect();
    for net_id in our_bridges(all).into_iter().filter(|net_id| !wanted.contains(net_id)) {
        wrong.push(format!("{} belongs to no tenant", net_id.bridge()));
    }
    finding("bridges", wrong, format!("{} bridges as they should be", desired.tenants.len()))
}

fn verify_taps(desired: &Desired, all: &[Link]) -> Finding {
    let by_name: HashMap<&str, &Link> = all.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut wrong = Vec::new();
    for slot in &desired.attached {
        let name = slot.tap();
        let bridge = by_name.get(slot.net_id.bridge().as_str()).map(|link| link.index);
        let Some(link) = by_name.get(name.as_str()) else {
            wrong.push(format!("{name} is not there, and its instance runs"));
            continue;
        };
        if bridge.is_none() || link.master != bridge {
            wrong.push(format!("{name} is not on {}", slot.net_id.bridge()));
        }
        if !link.up {
            wrong.push(format!("{name} is down"));
        }
        for (flag, value, flag_name) in links::PORT_FLAGS {
            if let Some((_, is)) = link.port_flags.iter().find(|(kind, _)| *kind == flag)
                && *is != value
            {
                wrong.push(format!("{name}: {flag_name} is {is}"));
            }
        }
    }
    let wanted: HashSet<Slot> = desired.attached.iter().copied().collect();
    for link in all.iter().filter(|link| link.kind == "tun" && link.alias == links::ALIAS) {
        if Slot::from_tap(&link.name).is_some_and(|slot| !wanted.contains(&slot)) {
            wrong.push(format!("{} belongs to nothing that runs", link.name));
        }
    }
    let mut made = finding("TAPs", wrong, format!("{} TAPs on their bridges", desired.attached.len()));
    if !made.ok && made.detail.contains("belongs to nothing") {
        made.repair = Some("mvm node recover".into());
    }
    made
}

/// The chains of mvm's tables, as `nft` lists them: table and chain, and the lines between.
type Chains = HashMap<String, Vec<String>>;

/// The chains as they are.
fn listing() -> Result<Chains, NetError> {
    let mut chains = Chains::new();
    for (family, table) in rules::TABLES {
        let text = shell::run("nft", ["-t", "list", "table", family, table], b"", Duration::from_secs(30))
            .map_err(|source| NetError::Rules { source })?;
        chains.extend(parse_chains(family, &String::from_utf8_lossy(&text)));
    }
    Ok(chains)
}

/// The chains as they should be: loaded into a network namespace of their own, and listed by the same program.
fn expected(desired: &Desired) -> Result<Chains, NetError> {
    let text = rules::base() + &rules::extras(desired);
    let scratch = || -> Result<Chains, NetError> {
        // SAFETY: only the network namespace of this thread changes, and the thread ends with this closure.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .map_err(|error| NetError::kernel("make", "a network namespace")(error.into()))?;
        super::load(&text)?;
        listing()
    };
    std::thread::scope(|scope| {
        scope.spawn(scratch).join().unwrap_or_else(|_| {
            Err(NetError::kernel("list", "rules")(std::io::Error::other("the thread that did it panicked")))
        })
    })
}

fn parse_chains(family: &str, text: &str) -> Chains {
    let mut chains = Chains::new();
    let mut current: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            current = Some(format!("{family} {name}"));
            chains.insert(format!("{family} {name}"), Vec::new());
        } else if line == "}" {
            current = None;
        } else if let Some(chain) = current.as_ref().and_then(|name| chains.get_mut(name)) {
            chain.push(line.to_owned());
        }
    }
    chains
}

fn compare_chains(is: &Chains, should: &Chains) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut names: Vec<&String> = should.keys().collect();
    names.sort();
    for name in names {
        match is.get(name) {
            None => wrong.push(format!("chain {name} is not there")),
            Some(lines) if Some(lines) != should.get(name) => wrong.push(format!("chain {name} was changed")),
            Some(_) => {}
        }
    }
    // A chain for rates or a list of networks that nobody has any more does no harm; any other is not ours.
    let mut strangers: Vec<&String> = is.keys().filter(|name| !should.contains_key(*name)).collect();
    strangers.retain(|name| !name.starts_with("inet egress_") && !name.starts_with("inet rates_"));
    strangers.sort();
    wrong.extend(strangers.into_iter().map(|name| format!("chain {name} is not mvm's")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_compared_line_by_line() {
        let text = "table inet mvm {\n\tset a {\n\t\ttype ifname\n\t}\n\n\tchain raw {\n\t\ttype filter\n\t\tdrop\n\t}\n}\n";
        let should = parse_chains("inet", text);
        assert_eq!(should["inet raw"], ["type filter", "drop"]);
        assert!(compare_chains(&should, &should).is_empty());
        let changed = parse_chains("inet", &text.replace("drop", "accept"));
        assert_eq!(compare_chains(&changed, &should), ["chain inet raw was changed"]);
        assert_eq!(compare_chains(&Chains::new(), &should), ["chain inet raw is not there"]);
    }
}
