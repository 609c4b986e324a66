//! To the outside and from it: egress policies, published ports, and nothing else.

use std::net::Ipv4Addr;

use crate::network::{
    frames::{ACK, Body, SYN},
    guest::{
        At::{self, Dmz, Guest, Uplink},
        DMZ, DNS, HOST, INTERNET, LAN, MTU, UNOFFERED, outside, ping, udp,
    },
    tools::neighbours,
    world::{Verdict, World},
};

const CLUSTER: Ipv4Addr = Ipv4Addr::new(10, 240, 77, 9);

fn tcp(to: u16) -> Body {
    let Body::Udp { from, .. } = udp(0) else { unreachable!("it is UDP") };
    Body::Tcp { from, to, flags: SYN, mss: None }
}

pub fn egress_internet(world: &mut World) -> Verdict {
    let a = world.guest('a');
    for body in [udp(443), tcp(443), tcp(26), ping()] {
        world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, body))?;
    }
    let before = neighbours();
    for refused in [
        [10, 9, 9, 9],
        [100, 64, 0, 9],
        [169, 254, 9, 9],
        [172, 16, 9, 9],
        [172, 31, 255, 9],
        [192, 0, 0, 9],
        // machines on the networks that the host is on, private and public
        [192, 168, 77, 5],
        [192, 168, 9, 9],
        [192, 0, 2, 77],
        [192, 0, 2, 1],
        [192, 0, 2, 200],
        [198, 18, 0, 9],
        [240, 0, 0, 9],
        // another node's tenant
        [10, 240, 77, 9],
    ] {
        world.refused(Guest('a'), &a.packet(refused.into(), udp(443)))?;
    }
    // These are not even routed.
    for nowhere in [[0, 0, 0, 9], [127, 0, 0, 9], [224, 0, 0, 9], [239, 1, 2, 3], [10, 240, 99, 9]] {
        let marker = world.marker();
        world.put(Guest('a'), &a.packet(nowhere.into(), udp(443)).frame(marker));
        world.settle(Guest('a'))?;
        if let Some((at, _)) = world.seen_with(&marker).iter().find(|(at, _)| *at != Guest('a')) {
            return Err(format!("{nowhere:?} arrived at {at:?}"));
        }
    }
    world.refused(Guest('a'), &a.packet(INTERNET, tcp(25)))?;
    if neighbours() == before { Ok(()) } else { Err("neighbour entries were made".into()) }
}

pub fn egress_open(world: &mut World) -> Verdict {
    let c = world.guest('c');
    for (to, body) in [
        (INTERNET, udp(443)),
        (INTERNET, tcp(25)),
        ([10, 9, 9, 9].into(), udp(9)),
        ([100, 64, 0, 9].into(), tcp(80)),
        (LAN, ping()),
    ] {
        world.packet_arrives(Guest('c'), Uplink, &c.packet(to, body))?;
    }
    world.packet_arrives(Guest('c'), Dmz, &c.packet(DMZ, udp(9)))?;
    world.refused(Guest('c'), &c.packet(CLUSTER, udp(9)))?;
    world.packet_nowhere(Guest('c'), &c.packet(HOST, udp(UNOFFERED)))
}

pub fn egress_deny(world: &mut World) -> Verdict {
    let (a, d) = (world.guest('a'), world.guest('d'));
    world.packet_arrives(Guest('d'), Guest('a'), &d.to(&a, udp(9)))?;
    world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, udp(443)))?;
    for to in [INTERNET, LAN, DMZ, CLUSTER] {
        world.refused(Guest('d'), &d.packet(to, udp(443)))?;
    }
    world.refused(Guest('d'), &d.packet(INTERNET, tcp(443)))
}

pub fn egress_allow_list(world: &mut World) -> Verdict {
    let e = world.guest('e');
    let other: Ipv4Addr = [203, 0, 113, 7].into();
    for (to, body) in [
        (INTERNET, tcp(443)),
        (INTERNET, udp(443)),
        (other, tcp(80)),
        (other, ping()),
        ([10, 9, 9, 9].into(), tcp(80)),
    ] {
        world.packet_arrives(Guest('e'), Uplink, &e.packet(to, body))?;
    }
    for (to, body) in [
        (INTERNET, tcp(80)),
        (INTERNET, ping()),
        ([203, 0, 113, 8].into(), tcp(443)),
        (LAN, tcp(443)),
        (DMZ, tcp(443)),
        // inside a network of the list, and still the cluster's
        (CLUSTER, tcp(443)),
    ] {
        world.refused(Guest('e'), &e.packet(to, body))?;
    }
    Ok(())
}

/// Outside nobody sees a guest's address.
pub fn masquerade(world: &mut World) -> Verdict {
    let (a, c) = (world.guest('a'), world.guest('c'));
    let seen = world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, udp(443)))?;
    if seen.source() != HOST {
        return Err(format!("the source was {}", seen.source()));
    }
    let seen = world.packet_arrives(Guest('c'), Dmz, &c.packet(DMZ, udp(443)))?;
    match seen.source() == Ipv4Addr::from([192, 168, 77, 1]) {
        true => Ok(()),
        false => Err(format!("the source was {}", seen.source())),
    }
}

/// Answers to what a guest asked come in; the same from somebody else does not.
pub fn answers_from_outside(world: &mut World) -> Verdict {
    let a = world.guest('a');
    let seen = world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, udp(443)))?;
    let (from, to) = seen.ports();
    let answer = outside(INTERNET, world.uplink_mac, HOST, Body::Udp { from: to, to: from });
    let heard = world.packet_arrives(Uplink, Guest('a'), &answer)?;
    if (heard.source(), heard.target()) != (INTERNET, a.ip()) {
        return Err(format!("it came from {} to {}", heard.source(), heard.target()));
    }
    // And the guest goes on.
    let more = a.packet(INTERNET, Body::Udp { from: heard.ports().1, to: 443 });
    world.packet_arrives(Guest('a'), Uplink, &more)?;
    world.never_at_a_guest(Uplink, &answer.clone().claiming([198, 51, 100, 11].into()))?;
    world.never_at_a_guest(Uplink, &answer.body(Body::Udp { from: 444, to: from }))
}

pub fn lan_to_guests(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let mac = world.uplink_mac;
    let published = outside(LAN, mac, HOST, udp(8053));
    world.packet_arrives(Uplink, Guest('b'), &published)?;
    for to in [a.ip(), b.ip(), world.guest('g').ip()] {
        // The published port too: it is the host's, not the guest's.
        for body in [ping(), udp(9), udp(53), tcp(80), Body::Tcp { from: 9, to: 9, flags: ACK, mss: None }] {
            world.packet_nowhere(Uplink, &outside(LAN, mac, to, body))?;
        }
        let dmz = outside(DMZ, world.dmz_mac(), to, udp(9));
        world.packet_nowhere(Dmz, &dmz)?;
    }
    Ok(())
}

pub fn lan_to_gateways(world: &mut World) -> Verdict {
    let a = world.guest('a');
    let mac = world.uplink_mac;
    world.packet_arrives(Uplink, At::Host(DNS), &outside(LAN, mac, HOST, udp(DNS)))?;
    world.answered(Uplink, &outside(LAN, mac, HOST, ping()))?;
    for body in [udp(DNS), udp(UNOFFERED), ping(), tcp(DNS)] {
        world.packet_nowhere(Uplink, &outside(LAN, mac, a.gateway(), body))?;
        world.packet_nowhere(Dmz, &outside(DMZ, world.dmz_mac(), a.gateway(), body))?;
        // The broadcast address of a subnet is the host's as well.
        world.packet_nowhere(Uplink, &outside(LAN, mac, [10, 240, 3, 255].into(), body))?;
    }
    Ok(())
}

/// With a guest's source the host's answer would go to the guest.
pub fn lan_as_a_guest(world: &mut World) -> Verdict {
    let (a, g) = (world.guest('a'), world.guest('g'));
    let mac = world.uplink_mac;
    world.packet_arrives(Uplink, At::Host(DNS), &outside(LAN, mac, HOST, udp(DNS)))?;
    world.packet_arrives(Uplink, Guest('b'), &outside(LAN, mac, HOST, udp(8053)))?;
    for source in [a.ip(), g.ip(), a.gateway(), [10, 240, 3, 200].into()] {
        for to in [HOST, a.gateway(), a.ip()] {
            for body in [udp(DNS), ping(), udp(8053)] {
                world.packet_nowhere(Uplink, &outside(source, mac, to, body))?;
                world.packet_nowhere(Dmz, &outside(source, world.dmz_mac(), to, body))?;
            }
        }
    }
    Ok(())
}

/// Forwarding was switched on for guests; it makes no router of the host for its neighbours.
pub fn lan_through_the_host(world: &mut World) -> Verdict {
    let c = world.guest('c');
    world.packet_arrives(Guest('c'), Dmz, &c.packet(DMZ, udp(9)))?;
    let through = outside(LAN, world.uplink_mac, DMZ, udp(9));
    if world.kind.router {
        // Whoever made a router of the host keeps it.
        return world.packet_arrives(Uplink, Dmz, &through).map(drop);
    }
    world.packet_nowhere(Uplink, &through)?;
    world.packet_nowhere(Uplink, &outside(LAN, world.uplink_mac, INTERNET, udp(9)))
}

pub fn published_ports(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let mac = world.uplink_mac;
    let syn = Body::Tcp { from: 6001, to: 8080, flags: SYN, mss: None };
    let seen = world.packet_arrives(Uplink, Guest('b'), &outside(LAN, mac, HOST, syn))?;
    if (seen.target(), seen.ports(), seen.source()) != (b.ip(), (6001, 80), LAN) {
        return Err(format!("it came to {} {:?} from {}", seen.target(), seen.ports(), seen.source()));
    }
    let answer = b.packet(LAN, Body::Tcp { from: 80, to: 6001, flags: SYN | ACK, mss: None });
    let seen = world.packet_arrives(Guest('b'), Uplink, &answer)?;
    if (seen.source(), seen.ports()) != (HOST, (8080, 6001)) {
        return Err(format!("the answer came from {} {:?}", seen.source(), seen.ports()));
    }
    world.packet_arrives(Uplink, Guest('b'), &outside(LAN, mac, HOST, udp(8053)))?;
    // The other protocol, its neighbour, the guest's own number.
    for body in [tcp(8053), udp(8080), udp(8052), tcp(8081), tcp(80), udp(8999)] {
        world.never_at_a_guest(Uplink, &outside(LAN, mac, HOST, body))?;
    }
    // Guests are not outside.
    for letter in ['a', 'c', 'g'] {
        let guest = world.guest(letter);
        world.packet_nowhere(Guest(letter), &guest.packet(HOST, udp(8053)))?;
        world.packet_nowhere(Guest(letter), &guest.packet(a.gateway(), udp(8053)))?;
    }
    Ok(())
}

/// A guest's segments fit the uplink, in both directions.
pub fn mss(world: &mut World) -> Verdict {
    let a = world.guest('a');
    let fits = Some((MTU - 40) as u16);
    let syn = |to| {
        let Body::Udp { from, .. } = udp(0) else { unreachable!("it is UDP") };
        Body::Tcp { from, to, flags: SYN, mss: Some(1460) }
    };
    let out = world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, syn(443)))?;
    let into = world.packet_arrives(Uplink, Guest('b'), &outside(LAN, world.uplink_mac, HOST, syn(8080)))?;
    match (out.mss(), into.mss()) {
        (out, into) if out == fits && into == fits => Ok(()),
        (out, into) => Err(format!("out {out:?}, in {into:?}")),
    }
}
