//! What was allowed ends when it is no longer allowed, also where it had begun.

use crate::network::{
    frames::Body,
    guest::{
        At::{Guest, Uplink},
        HOST, INTERNET, LAN, outside, ping, udp,
    },
    world::{Verdict, World},
};

pub fn policy_changes(world: &mut World) -> Verdict {
    let mut l = world.guest('l');
    let flow = l.packet(INTERNET, udp(443));
    let seen = world.packet_arrives(Guest('l'), Uplink, &flow)?;
    let (from, to) = seen.ports();
    let answer = outside(INTERNET, world.uplink_mac, HOST, Body::Udp { from: to, to: from });
    world.packet_arrives(Uplink, Guest('l'), &answer)?;
    world.change_egress(&mut l, "deny");
    world.refused(Guest('l'), &flow)?;
    world.never_at_a_guest(Uplink, &answer)?;
    world.change_egress(&mut l, "allow:198.51.100.0/24");
    world.packet_arrives(Guest('l'), Uplink, &flow)?;
    world.change_egress(&mut l, "allow:203.0.113.0/24");
    world.refused(Guest('l'), &flow)?;
    world.change_egress(&mut l, "internet");
    world.packet_arrives(Guest('l'), Uplink, &flow).map(drop)
}

/// A destroyed instance's flows end, and its published port with it.
pub fn destroyed(world: &mut World) -> Verdict {
    let m = world.guest('m');
    let asked = outside(LAN, world.uplink_mac, HOST, Body::Udp { from: 7001, to: 8056 });
    let answer = m.packet(LAN, Body::Udp { from: 53, to: 7001 });
    world.packet_arrives(Uplink, Guest('m'), &asked)?;
    world.packet_arrives(Guest('m'), Uplink, &answer)?;
    let flow = m.packet(INTERNET, udp(443));
    let seen = world.packet_arrives(Guest('m'), Uplink, &flow)?;
    let back = outside(INTERNET, world.uplink_mac, HOST, Body::Udp { from: 443, to: seen.ports().0 });
    world.packet_arrives(Uplink, Guest('m'), &back)?;
    world.net.remove_lease(&m.tenant, &m.lease).map_err(|error| error.to_string())?;
    world.never_at_a_guest(Uplink, &asked)?;
    world.never_at_a_guest(Uplink, &back)?;
    for packet in [answer, flow, m.to(&world.guest('a'), udp(9))] {
        let marker = world.marker();
        world.put(Guest('m'), &packet.frame(marker));
        world.settle(Guest('a'))?;
        if let Some((at, _)) = world.seen_with(&marker).first() {
            return Err(format!("a destroyed instance's frame turned up at {at:?}"));
        }
    }
    world.lease('m');
    world.answered(Guest('m'), &m.packet(m.gateway(), ping()))?;
    world.packet_arrives(Uplink, Guest('m'), &asked).map(drop)
}

/// Elements are found by the TAP's name: made again, it is as before from its first frame on.
pub fn tap_made_again(world: &mut World) -> Verdict {
    let (a, n) = (world.guest('a'), world.guest('n'));
    for _ in 0..2 {
        world.unplug('n');
        world.plug('n');
        world.packet_nowhere(Guest('n'), &n.to(&a, udp(9)).claiming([10, 240, 3, 99].into()))?;
        world.packet_nowhere(Guest('n'), &n.packet(INTERNET, udp(443)).by(a.mac()))?;
        world.packet_arrives(Guest('n'), Guest('a'), &n.to(&a, udp(9)))?;
        world.packet_arrives(Guest('a'), Guest('n'), &a.to(&n, udp(9)))?;
    }
    Ok(())
}
