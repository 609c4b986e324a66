//! The table: each denial beside what must pass in the same set-up.
//!
//! A row fails where a denied frame turns up anywhere, where its positive twin does not arrive, and where the honest packet
//! after the denied one does not: so no row passes because nothing works.

mod changes;
mod host;
mod identity;
mod limits;
mod outside;
mod segment;

use super::world::{Verdict, World};

/// One row.
pub struct Row {
    /// What it proves; docs/networking.md names it.
    pub name: &'static str,
    pub run: fn(&mut World) -> Verdict,
}

/// Makes rows of functions, each named like its function.
macro_rules! rows {
    ($($module:ident: $($row:ident),+;)+) => {
        &[$($(Row { name: stringify!($row), run: $module::$row }),+),+]
    };
}

pub const ROWS: &[Row] = rows![
    segment: east_west, unknown_unicast, multicast, own_broadcast, stray_port_to_guests, stray_port_to_outside,
        routed_back, routed_back_through_the_tap, dead_addresses, untracked_neighbours, untouched_neighbours;
    identity: spoofed_ip, spoofed_mac, arp_claims, arp_oddities, vlan_tags, ipv6, dhcp_answers, reserved_macs,
        reserved_macs_and_neighbours, reserved_macs_and_learning, before_its_lease;
    host: other_tenants_guests, other_gateways, own_gateway, unoffered_ports, other_host_addresses,
        link_local, host_to_guest, host_asks_as_gateway, through_the_taps_mac, reflection, cluster_addresses,
        invalid_packets, users_of_vmms;
    outside: egress_internet, egress_open, egress_deny, egress_allow_list, masquerade, answers_from_outside,
        lan_to_guests, lan_to_gateways, lan_as_a_guest, lan_through_the_host, published_ports, mss;
    limits: arp_rate, broadcast_rate, new_connections, new_connections_to_host, open_connections,
        open_connections_from_outside, changed_limits;
    changes: policy_changes, destroyed, tap_made_again;
];
