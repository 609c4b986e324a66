//! On one tenant's bridge: what neighbours may send each other, and what they may not.

use crate::network::{
    frames::{Body, SYN, raw},
    guest::{
        At::{Guest, Stray, Uplink},
        INTERNET, ping, udp,
    },
    tools::neighbours,
    world::{Verdict, World},
};

/// Everything at layer 3, and ARP.
pub fn east_west(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, ping()))?;
    world.packet_arrives(Guest('b'), Guest('a'), &b.to(&a, ping()))?;
    let tcp = Body::Tcp { from: 999, to: 25, flags: SYN, mss: None };
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, tcp))?;
    let asks = a.asks(b.ip());
    world.arrives(Guest('a'), Guest('b'), |marker| asks.frame(marker))?;
    let answers = b.answers(&a);
    world.arrives(Guest('b'), Guest('a'), |marker| answers.frame(marker)).map(drop)
}

pub fn unknown_unicast(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    world.packet_nowhere(Guest('a'), &a.to(&b, udp(9)).via([0x02, 0xfc, 0, 3, 0, 200]))?;
    world.packet_nowhere(Guest('a'), &a.to(&b, udp(9)).via([0x06, 1, 2, 3, 4, 5]))
}

pub fn multicast(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(5353)))?;
    let group = a.packet("224.0.0.251".parse().expect("a group"), udp(5353));
    world.packet_nowhere(Guest('a'), &group.clone().via([0x01, 0, 0x5e, 0, 0, 0xfb]))?;
    let all = a.packet("224.0.0.1".parse().expect("a group"), udp(crate::network::guest::UNOFFERED));
    world.packet_nowhere(Guest('a'), &all.via([0x01, 0, 0x5e, 0, 0, 1]))?;
    world.packet_nowhere(Guest('a'), &group)
}

/// A broadcast reaches the neighbours and never its sender.
pub fn own_broadcast(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let marker = world.marker();
    world.put(Guest('a'), &a.asks(b.ip()).frame(marker));
    world.wait("the neighbour hears", |(at, frame)| *at == Guest('b') && frame.has(&marker))?;
    world.settle(Guest('a'))?;
    match world.seen_with(&marker).iter().find(|(at, _)| *at == Guest('a')) {
        None => Ok(()),
        Some(_) => Err("the broadcast came back to its sender".into()),
    }
}

/// A port that somebody else put on the bridge reaches no guest.
pub fn stray_port_to_guests(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.packet_arrives(Guest('b'), Guest('a'), &b.to(&a, udp(9)))?;
    let stray = a.packet(a.ip(), udp(9)).by([0x06, 0, 0, 0, 0, 9]).claiming([10, 240, 3, 200].into());
    world.packet_nowhere(Stray, &stray.clone().via(a.mac()))?;
    world.packet_nowhere(Stray, &stray.via([0xff; 6]))
}

/// Nor the outside: it holds no lease.
pub fn stray_port_to_outside(world: &mut World) -> Verdict {
    let a = world.guest('a');
    world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, udp(443)))?;
    let stray = a.packet(INTERNET, udp(443)).by([0x06, 0, 0, 0, 0, 9]).claiming([10, 240, 3, 200].into());
    world.packet_nowhere(Stray, &stray)
}

/// The gateway sends nothing back into the subnet that it came from, nor a hint to go there directly.
pub fn routed_back(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    world.packet_nowhere(Guest('a'), &a.packet(b.ip(), udp(9)))?;
    world.packet_nowhere(Guest('a'), &a.packet(a.ip(), udp(9)))
}

/// Every port's own MAC leads into the host as well as the bridge's.
pub fn routed_back_through_the_tap(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    for port in ['a', 'b'] {
        let mac = world.tap_mac(port);
        world.packet_nowhere(Guest('a'), &a.packet(b.ip(), udp(9)).via(mac))?;
        world.packet_nowhere(Guest('a'), &a.packet([10, 240, 3, 77].into(), udp(9)).via(mac))?;
    }
    Ok(())
}

/// However many addresses are tried that nobody has: the host's neighbour table stays as it is.
pub fn dead_addresses(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let before = neighbours();
    for last in 100..200 {
        let marker = world.marker();
        for dead in [[10, 240, 3, last], [192, 0, 2, last], [192, 168, 77, last], [10, 240, 99, last]] {
            world.put(Guest('a'), &a.packet(dead.into(), udp(9)).frame(marker));
        }
    }
    world.settle(Guest('a'))?;
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    let after = neighbours();
    if before == after {
        return Ok(());
    }
    let new: Vec<&String> = after.iter().filter(|entry| !before.contains(entry)).take(3).collect();
    Err(format!("{} neighbour entries became {}: {new:?}", before.len(), after.len()))
}

fn tracked() -> usize {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// What neighbours send each other leaves nothing in the host's table of flows; what goes outside does.
pub fn untracked_neighbours(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let before = tracked();
    world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, udp(443)))?;
    let one = tracked();
    for _ in 0..20 {
        world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    }
    match (one > before, tracked() <= one) {
        (true, true) => Ok(()),
        (false, _) => Err("a flow to the outside is not in the table".into()),
        (_, false) => Err(format!("{} flows between neighbours are in the table", tracked() - one)),
    }
}

/// Neighbours' packets are not changed on their way.
pub fn untouched_neighbours(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let Body::Udp { from, .. } = udp(0) else { unreachable!("it is UDP") };
    let tcp = Body::Tcp { from, to: 80, flags: SYN, mss: Some(8000) };
    let seen = world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, tcp))?;
    if seen.mss() != Some(8000) {
        return Err(format!("the neighbour's MSS became {:?}", seen.mss()));
    }
    // A type that is neither IP nor ARP has nobody's address: it does not pass.
    let (to, from) = (b.mac(), a.mac());
    world.nowhere(Guest('a'), |marker| raw(to, from, 0x88b5, &[0; 46], marker))
}
