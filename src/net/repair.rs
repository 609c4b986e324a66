//! Makes the kernel's network what it should be. Touches nothing that mvm did not make: where something else has a name
//! that mvm needs, everything else is repaired, and then that is said.

use std::net::Ipv4Addr;

use super::{
    Desired, Host, Net, NetError,
    chains::Comparison,
    conntrack, elements, links, load, routes, rules,
    verify::{self, Shown},
};

impl Net {
    /// Repairs whatever [`Net::verify`] finds, but for TAPs in which nothing runs: whether somebody is about to use one is
    /// known to who holds the instance's lock. Returns what was wrong, a line each.
    ///
    /// # Errors
    /// [`NetError::Foreign`] where something else is in the way; the rest is repaired then.
    pub fn repair(&mut self, desired: &Desired) -> Result<Vec<String>, NetError> {
        let (findings, comparison) = self.examine(desired)?;
        let wrong: Vec<String> = findings
            .into_iter()
            .filter(|finding| !finding.ok)
            .map(|f| format!("{}: {}", f.name, f.detail))
            .collect();
        if wrong.is_empty() {
            return Ok(Vec::new());
        }
        let shown = self.look()?;
        let host = self.host(&shown)?;
        self.repair_rules(desired, &host, &comparison.unwrap_or_default())?;
        let mut foreign = self.repair_links(desired, &shown)?;
        self.repair_ports(desired, &mut foreign)?;
        match foreign.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(wrong),
        }
    }

    fn repair_rules(
        &mut self,
        desired: &Desired,
        host: &Host,
        comparison: &Comparison,
    ) -> Result<(), NetError> {
        // One transaction, and no table is deleted: no packet passes in between. What denies by networks is filled in it.
        let base = rules::base() + &rules::extras(desired);
        let mut text = rules::tables(&self.owner) + &comparison.make_way(&base) + &base;
        text.extend(rules::intervals(desired, host).iter().map(rules::refill));
        load(&text)?;
        for ((family, set), wanted) in rules::elements(desired, host) {
            let there = elements::dump(&mut self.netfilter, family, &set)?.unwrap_or_default();
            let difference = verify::difference(&wanted, &there);
            elements::remove_raw(&mut self.netfilter, family, &set, &difference.surplus)?;
            // A wrong policy let flows out that the right one does not know of: they end with it.
            for key in difference.surplus.iter().filter(|_| set == "egress") {
                if let Some(ip) = key.last_chunk::<4>() {
                    conntrack::flush(&mut self.netfilter, Ipv4Addr::from(*ip))?;
                }
            }
            for chunk in difference.missing.chunks(500) {
                elements::add(&mut self.netfilter, chunk)?;
            }
        }
        let sweep = comparison.sweep();
        if sweep.is_empty() { Ok(()) } else { load(&sweep) }
    }

    /// Bridges, routes and the uplink. Returns what is in the way.
    fn repair_links(&mut self, desired: &Desired, shown: &Shown) -> Result<Vec<NetError>, NetError> {
        let mut foreign = Vec::new();
        let wanted: std::collections::HashSet<_> =
            desired.tenants.iter().map(|tenant| tenant.net_id).collect();
        for net_id in verify::our_bridges(&shown.links).into_keys() {
            if !wanted.contains(&net_id) {
                links::remove_bridge(&mut self.route, net_id)?;
            }
        }
        if desired.tenants.is_empty() {
            return Ok(foreign);
        }
        routes::ensure_unreachable(&mut self.route)?;
        let mtu = shown.uplink().map_or(1500, |link| link.mtu);
        for tenant in &desired.tenants {
            match links::ensure_bridge(&mut self.route, tenant.net_id, tenant.subnet, mtu) {
                Err(error) if error.is_foreign() => foreign.push(error),
                result => result?,
            }
        }
        if let Some(uplink) = shown.uplink() {
            links::open_forwarding(&uplink.name)?;
        }
        Ok(foreign)
    }

    /// Ports and what is pinned; bridges may have been made a moment ago.
    fn repair_ports(&mut self, desired: &Desired, foreign: &mut Vec<NetError>) -> Result<(), NetError> {
        let shown = self.look()?;
        let (missing, surplus) = verify::neighbours(desired, &shown);
        for (bridge, ip) in surplus {
            routes::unpin(&mut self.route, bridge, ip)?;
        }
        let missing: std::collections::HashSet<_> = missing.into_iter().collect();
        for lease in desired.leases.iter().filter(|lease| missing.contains(&lease.slot)) {
            routes::add_neighbour(&mut self.route, lease.slot, lease.ip)?;
        }
        let by_name: std::collections::HashMap<&str, &links::Link> =
            shown.links.iter().map(|link| (link.name.as_str(), link)).collect();
        for &slot in &desired.attached {
            // A TAP that is gone is its VMM's end: no other can be put in its place.
            let Some(tap) = by_name.get(slot.tap().as_str()) else { continue };
            let bridge = by_name.get(slot.net_id.bridge().as_str());
            if !links::is_our_tap(tap) {
                foreign.push(links::foreign(tap));
                continue;
            }
            let Some(bridge) = bridge.filter(|bridge| links::is_our_bridge(bridge, slot.net_id)) else {
                continue;
            };
            if verify::is_wrong(tap, bridge, slot, &shown.pinned) {
                let joined = links::prepare_tap(&mut self.route, &slot.tap(), bridge.mtu)
                    .and_then(|()| self.join(slot));
                match joined {
                    // It was stopped since the files were read: start and stop do not wait for this.
                    Err(error) if error.is_no_device() => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }
}
