//! The rules, as a pure function of what there should be. No I/O.
//!
//! Three tables of mvm's own. What does not change with tenants and leases is text for `nft -f`; what follows them are
//! elements of named sets and maps, each lease's added and removed in one transaction ([`super::elements`]). Start, stop,
//! sleep and wake touch no rule. A table is never deleted and made again: denied frames would pass in between.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use ipnet::Ipv4Net;

use super::{
    Desired, Host, Lease, TenantNet,
    egress::{Egress, EgressRule},
    elements::{Element, Key, Value},
};
use crate::vm::naming::{UID_BASE, UID_LAST};

/// The tables, as family and name.
pub const TABLES: [(&str, &str); 3] = [("bridge", "mvm"), ("arp", "mvm"), ("inet", "mvm")];

/// How the comments of mvm's tables begin; the node's id follows.
pub const MARK: &str = "made by mvm on";

/// Marks a rule that nothing rests on alone, before the reason: a test leaves every other one out and sees a denial fail.
pub const BELT: &str = "# belt: ";

/// Addresses that are not the internet.
const NOT_INTERNET: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
                            192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

/// The tables, with whose they are in their comments.
pub fn tables(owner: &str) -> String {
    let table = |(family, name)| format!("add table {family} {name} {{ comment \"{MARK} {owner}\"; }}\n");
    TABLES.into_iter().map(table).collect()
}

/// The sets, maps and chains that are there whatever the tenants are. Loaded as one transaction; loading it again changes
/// nothing but puts chains right that somebody changed. Chains are jumped to: what one of them does not accept, the drop
/// at the end of its caller ends. What a guest sends has no user on the host; what a VMM sends has its own, and no VMM has
/// anything to send.
pub fn base() -> String {
    format!(
        r#"
add set bridge mvm port_ip {{ type ifname . ether_addr . ipv4_addr; }}
add set bridge mvm port_arp {{ type ifname . ether_addr . ether_addr . ipv4_addr; }}
add set bridge mvm arp_over {{ type ifname; limit rate over 50/second burst 100 packets; }}
add set bridge mvm bcast_over {{ type ifname; limit rate over 20/second burst 40 packets; }}
add chain bridge mvm from_port_arp
add chain bridge mvm from_port_ip
add chain bridge mvm from_port
add chain bridge mvm prerouting {{ type filter hook prerouting priority -300; policy accept; }}
add chain bridge mvm input {{ type filter hook input priority -300; policy accept; }}
add chain bridge mvm forward {{ type filter hook forward priority -300; policy accept; }}
flush chain bridge mvm from_port_arp
flush chain bridge mvm from_port_ip
flush chain bridge mvm from_port
flush chain bridge mvm prerouting
flush chain bridge mvm input
flush chain bridge mvm forward
add rule bridge mvm from_port_arp arp operation != {{ request, reply }} drop
add rule bridge mvm from_port_arp iifname @arp_over drop
add rule bridge mvm from_port_arp accept
add rule bridge mvm from_port_ip udp sport 67 drop
add rule bridge mvm from_port_ip ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 accept
add rule bridge mvm from_port_ip iifname @bcast_over drop
add rule bridge mvm from_port_ip ether daddr ff:ff:ff:ff:ff:ff accept
add rule bridge mvm from_port ether type ip iifname . ether saddr . ip saddr @port_ip jump from_port_ip
add rule bridge mvm from_port ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ether . arp saddr ip @port_arp jump from_port_arp
add rule bridge mvm from_port drop
add rule bridge mvm prerouting iifname "tn*" jump from_port
add rule bridge mvm input iifname "tn*" ether daddr ff:ff:ff:ff:ff:ff accept
add rule bridge mvm input iifname "tn*" ether daddr & ff:ff:00:00:ff:ff != 02:fc:00:00:00:01 drop
add rule bridge mvm forward oifname "tn*" iifname != "tn*" drop
add chain arp mvm input {{ type filter hook input priority 0; policy accept; }}
flush chain arp mvm input
add rule arp mvm input iifname "tn*" drop # belt: the TAP is NOARP
add set inet mvm same_bridge {{ type ifname . ifname; }}
add set inet mvm gateways {{ type ifname . ipv4_addr; }}
add set inet mvm opened {{ type ifname; }}
add set inet mvm subnets {{ type ipv4_addr; flags interval; }}
add set inet mvm not_internet {{ type ipv4_addr; flags interval; }}
add element inet mvm not_internet {{ {NOT_INTERNET} }}
add chain inet mvm egress_internet
add chain inet mvm egress_open
add chain inet mvm egress_deny
add map inet mvm egress {{ type ifname . ipv4_addr : verdict; }}
add map inet mvm rates {{ type ifname : verdict; }}
add map inet mvm rates_in {{ type ifname : verdict; }}
add map inet mvm published {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add set inet mvm published_to {{ type ipv4_addr . inet_proto . inet_service; }}
add chain inet mvm same
add chain inet mvm from_tenant
add chain inet mvm into_published
add chain inet mvm into_tenant
add chain inet mvm to_host
add chain inet mvm raw {{ type filter hook prerouting priority raw; policy accept; }}
add chain inet mvm mss {{ type filter hook forward priority mangle; policy accept; }}
add chain inet mvm forward {{ type filter hook forward priority filter; policy accept; }}
add chain inet mvm input {{ type filter hook input priority filter; policy accept; }}
add chain inet mvm dstnat {{ type nat hook prerouting priority dstnat; policy accept; }}
add chain inet mvm srcnat {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain inet mvm output {{ type filter hook output priority raw; policy accept; }}
flush chain inet mvm egress_internet
flush chain inet mvm egress_open
flush chain inet mvm egress_deny
flush chain inet mvm same
flush chain inet mvm from_tenant
flush chain inet mvm into_published
flush chain inet mvm into_tenant
flush chain inet mvm to_host
flush chain inet mvm raw
flush chain inet mvm mss
flush chain inet mvm forward
flush chain inet mvm input
flush chain inet mvm dstnat
flush chain inet mvm srcnat
flush chain inet mvm output
add rule inet mvm egress_internet tcp dport 25 reject with icmp admin-prohibited
add rule inet mvm egress_internet ip daddr @not_internet reject with icmp admin-prohibited
add rule inet mvm egress_internet accept
add rule inet mvm egress_open ip daddr 10.240.0.0/12 reject with icmp admin-prohibited
add rule inet mvm egress_open accept
add rule inet mvm egress_deny reject with icmp admin-prohibited
add rule inet mvm raw iifname "tn*" drop
add rule inet mvm raw iifname "br-tenant-*" ether daddr & ff:ff:00:00:ff:ff != 02:fc:00:00:00:01 notrack
add rule inet mvm raw iifname "br-tenant-*" accept
add rule inet mvm raw iifname != "lo" ip saddr @subnets drop
add rule inet mvm mss iifname . oifname @same_bridge accept
add rule inet mvm mss iifname "br-tenant-*" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
add rule inet mvm mss oifname "br-tenant-*" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
add rule inet mvm forward iifname "br-tenant-*" jump from_tenant
add rule inet mvm forward oifname "br-tenant-*" jump into_tenant
add rule inet mvm forward iifname @opened drop
add rule inet mvm same ether daddr & ff:ff:00:00:ff:ff == 02:fc:00:00:00:01 drop
add rule inet mvm same accept
add rule inet mvm from_tenant iifname . oifname @same_bridge jump same
add rule inet mvm from_tenant oifname "br-tenant-*" drop
add rule inet mvm from_tenant ct state established,related accept
add rule inet mvm from_tenant ct state != new drop
add rule inet mvm from_tenant iifname vmap @rates
add rule inet mvm from_tenant iifname . ip saddr vmap @egress
add rule inet mvm from_tenant drop
add rule inet mvm into_tenant ct state established,related accept
add rule inet mvm into_tenant ct state new ct status dnat ip daddr . meta l4proto . th dport @published_to jump into_published
add rule inet mvm into_tenant drop
add rule inet mvm into_published oifname vmap @rates_in
add rule inet mvm into_published accept
add rule inet mvm input iifname "br-tenant-*" jump to_host
add rule inet mvm input iifname != "lo" ip daddr @subnets drop
add rule inet mvm to_host ct state established,related accept
add rule inet mvm to_host ct state != new drop # belt: a broadcast to one address is dropped by the bridge's setting
add rule inet mvm to_host iifname vmap @rates
add rule inet mvm to_host iifname . ip daddr @gateways icmp type echo-request accept
add rule inet mvm to_host drop
add rule inet mvm dstnat iifname != "br-tenant-*" fib daddr type local dnat ip to meta l4proto . th dport map @published
add rule inet mvm srcnat iifname "br-tenant-*" oifname != "br-tenant-*" masquerade
add rule inet mvm output meta skuid {UID_BASE}-{UID_LAST} drop
"#
    )
}

/// What a tenant's rates need besides the base: its limiting sets and the chains that ask them, one of each for each
/// distinct rate.
///
/// The sets are filled by packets, one element for each address, and not with the lease: an element with `ct count` that
/// is added by itself gives back a hold on conntrack that it never took (seen on Linux 6.18), and with the last hold all
/// tracking ends. So these limits also follow a tenant whose rates change.
pub fn rates(tenant: &TenantNet) -> String {
    let (max, new, burst) = (tenant.rates.max_conns, tenant.rates.new_per_second, tenant.rates.burst());
    let (chain, chain_in) = (rates_chain(tenant), rates_in_chain(tenant));
    let sets = limiting_sets(tenant);
    let [new_over, conns_over, conns_in_over] = &sets;
    let made: String = sets
        .iter()
        .map(|set| {
            format!("add set inet mvm {set} {{ type ipv4_addr; size {MAX_LIMITED}; flags dynamic; }}\n")
        })
        .collect();
    format!(
        "{made}add chain inet mvm {chain}\n\
         add chain inet mvm {chain_in}\n\
         flush chain inet mvm {chain}\n\
         flush chain inet mvm {chain_in}\n\
         add rule inet mvm {chain} add @{new_over} {{ ip saddr limit rate over {new}/second burst {burst} packets }} drop\n\
         add rule inet mvm {chain} add @{conns_over} {{ ip saddr ct count over {max} }} drop\n\
         add rule inet mvm {chain_in} add @{conns_in_over} {{ ip daddr ct count over {max} }} drop\n"
    )
}

/// More addresses than one node has leases; the kernel wants a bound.
const MAX_LIMITED: u32 = 1 << 18;

/// The sets in which a tenant's addresses are limited: new connections, open ones, open ones from outside.
pub fn limiting_sets(tenant: &TenantNet) -> [String; 3] {
    let (new, max) = (tenant.rates.new_per_second, tenant.rates.max_conns);
    [format!("new_over_{new}"), format!("conns_over_{max}"), format!("conns_in_over_{max}")]
}

fn rates_chain(tenant: &TenantNet) -> String {
    format!("rates_{}_{}", tenant.rates.new_per_second, tenant.rates.max_conns)
}

fn rates_in_chain(tenant: &TenantNet) -> String {
    format!("rates_in_{}", tenant.rates.max_conns)
}

/// The chain of an egress policy.
pub fn egress_chain(egress: &Egress) -> String {
    match egress {
        Egress::Internet => "egress_internet".into(),
        Egress::Open => "egress_open".into(),
        Egress::Deny => "egress_deny".into(),
        Egress::Allow(_) => {
            let digest = Sha256::digest(egress.to_string());
            format!(
                "egress_{:02x}{:02x}{:02x}{:02x}{:02x}{:02x}",
                digest[0], digest[1], digest[2], digest[3], digest[4], digest[5]
            )
        }
    }
}

/// What an egress policy needs besides the base: the chain of its own, where it is a list. The host and the cluster are
/// denied before it is asked.
pub fn egress(egress: &Egress) -> String {
    let Egress::Allow(rules) = egress else {
        return String::new();
    };
    let chain = egress_chain(egress);
    let mut text = format!(
        "add chain inet mvm {chain}\nflush chain inet mvm {chain}\n\
         add rule inet mvm {chain} ip daddr 10.240.0.0/12 reject with icmp admin-prohibited\n"
    );
    for EgressRule { net, port } in rules {
        let port = port.map_or(String::new(), |port| format!("meta l4proto {{ tcp, udp }} th dport {port} "));
        text.push_str(&format!("add rule inet mvm {chain} ip daddr {net} {port}accept\n"));
    }
    text.push_str(&format!("add rule inet mvm {chain} reject with icmp admin-prohibited\n"));
    text
}

/// The chains besides the base that these tenants and leases need, as one text.
pub fn extras(desired: &Desired) -> String {
    let rates: BTreeSet<String> = desired.tenants.iter().map(rates).collect();
    let policies: BTreeSet<String> = desired.leases.iter().map(|lease| egress(&lease.egress)).collect();
    rates.into_iter().chain(policies).collect()
}

/// The elements of a tenant, but for its subnet: an interval set is loaded as text.
pub fn tenant_elements(tenant: &TenantNet) -> Vec<Element> {
    let bridge = tenant.net_id.bridge();
    let name = || Key::Name(bridge.clone());
    vec![
        Element::inet("same_bridge", vec![name(), name()]),
        Element::inet("gateways", vec![name(), Key::Ip(tenant.subnet.gateway())]),
        Element::inet("rates", vec![name()]).with(Value::Jump(rates_chain(tenant))),
        Element::inet("rates_in", vec![name()]).with(Value::Jump(rates_in_chain(tenant))),
    ]
}

/// The elements of a lease.
pub fn lease_elements(lease: &Lease) -> Vec<Element> {
    let tap = || Key::Name(lease.slot.tap());
    let mac = || Key::Mac(lease.slot.mac());
    let ip = || Key::Ip(lease.ip);
    let mut elements = vec![
        Element::bridge("port_ip", vec![tap(), mac(), ip()]),
        Element::bridge("port_arp", vec![tap(), mac(), mac(), ip()]),
        Element::bridge("arp_over", vec![tap()]),
        Element::bridge("bcast_over", vec![tap()]),
        egress_element(lease),
    ];
    for port in &lease.published {
        let protocol = || Key::Protocol(port.protocol);
        elements.push(
            Element::inet("published", vec![protocol(), Key::Port(port.host_port)])
                .with(Value::Data(vec![ip(), Key::Port(port.guest_port)])),
        );
        elements.push(Element::inet("published_to", vec![ip(), protocol(), Key::Port(port.guest_port)]));
    }
    elements
}

/// What a lease's packets have left in its tenant's limiting sets.
pub fn limited(tenant: &TenantNet, ip: std::net::Ipv4Addr) -> Vec<Element> {
    limiting_sets(tenant).into_iter().map(|set| Element::inet(set, vec![Key::Ip(ip)])).collect()
}

/// The element that gives a lease its egress policy.
pub fn egress_element(lease: &Lease) -> Element {
    let bridge = Key::Name(lease.slot.net_id.bridge());
    Element::inet("egress", vec![bridge, Key::Ip(lease.ip)]).with(Value::Jump(egress_chain(&lease.egress)))
}

/// Every element that there should be, by family and set. Sets that may be empty are there too; those that packets fill
/// are not.
pub fn elements(desired: &Desired, host: &Host) -> BTreeMap<(u8, String), Vec<Element>> {
    let mut all: BTreeMap<(u8, String), Vec<Element>> = BTreeMap::new();
    let fixed =
        ["opened", "same_bridge", "gateways", "rates", "rates_in", "egress", "published", "published_to"];
    for set in fixed {
        all.entry((super::elements::INET, set.into())).or_default();
    }
    for set in ["port_ip", "port_arp", "arp_over", "bcast_over"] {
        all.entry((super::elements::BRIDGE, set.into())).or_default();
    }
    let mut put =
        |element: Element| all.entry((element.family, element.set.clone())).or_default().push(element);
    host.opened.iter().map(|name| opened(name)).for_each(&mut put);
    for tenant in &desired.tenants {
        tenant_elements(tenant).into_iter().for_each(&mut put);
    }
    for lease in &desired.leases {
        lease_elements(lease).into_iter().for_each(&mut put);
    }
    all
}

/// The element that closes an uplink to its neighbours.
pub fn opened(interface: &str) -> Element {
    Element::inet("opened", vec![Key::Name(interface.into())])
}

/// The interval sets, with what each covers.
pub fn intervals(desired: &Desired, host: &Host) -> [(&'static str, Vec<Ipv4Net>); 2] {
    let subnets = desired.tenants.iter().map(|tenant| tenant.subnet.net()).collect();
    [("subnets", subnets), ("not_internet", not_internet(host))]
}

/// What is not the internet: the well-known networks, and those that the host is on.
fn not_internet(host: &Host) -> Vec<Ipv4Net> {
    let mut nets: Vec<Ipv4Net> = NOT_INTERNET.split(", ").filter_map(|text| text.parse().ok()).collect();
    let also: Vec<Ipv4Net> =
        host.on_link.iter().filter(|net| !nets.iter().any(|known| known.contains(*net))).copied().collect();
    nets.extend(also);
    Ipv4Net::aggregate(&nets)
}

/// An interval set with what it should cover, as text that replaces it in one transaction.
pub fn refill((set, nets): &(&str, Vec<Ipv4Net>)) -> String {
    let mut text = format!("flush set inet mvm {set}\n");
    for net in nets {
        text.push_str(&format!("add element inet mvm {set} {{ {net} }}\n"));
    }
    text
}

/// What a host's own addresses deny, as text that replaces it in one transaction.
pub fn denied(host: &Host) -> String {
    refill(&("not_internet", not_internet(host)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rule_text_deletes_a_table_or_uses_a_reserved_name() {
        let text = base();
        assert!(!text.contains("delete table") && !text.contains("chain inet mvm fwd"));
        for line in text.lines().filter(|line| line.starts_with("add chain")) {
            let name: Vec<&str> = line.split(' ').take(5).collect();
            let flush = format!("flush {}", &name[1..].join(" "));
            assert!(text.contains(&flush), "{line} is not flushed");
        }
    }

    #[test]
    fn a_list_of_networks_has_a_chain_of_its_own() {
        let policy: Egress = "allow:1.2.3.0/24:443,9.9.9.9/32".parse().unwrap();
        let text = egress(&policy);
        assert!(text.contains("ip daddr 1.2.3.0/24 meta l4proto { tcp, udp } th dport 443 accept"), "{text}");
        assert!(text.contains("ip daddr 9.9.9.9/32 accept"), "{text}");
        assert!(egress_chain(&policy).len() == 19);
        assert_eq!(egress(&Egress::Open), "");
    }
}
