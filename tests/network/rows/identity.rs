//! As itself only: another's MAC, address or claim, a tag, another protocol, reserved addresses, no lease yet.

use crate::network::{
    frames::{Arp, BROADCAST, Body, Mac, Packet, ipv6_echo, raw},
    guest::{
        At::{self, Guest, Uplink},
        HOST, INTERNET, LAN, UNOFFERED, guest_of, outside, ping, udp,
    },
    tools::neighbours,
    world::{Verdict, World},
};

pub fn spoofed_ip(world: &mut World) -> Verdict {
    let (a, b, c) = (world.guest('a'), world.guest('b'), world.guest('c'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, udp(443)))?;
    let unspecified = [0, 0, 0, 0].into();
    for source in
        [c.ip(), a.gateway(), [10, 240, 3, 99].into(), [10, 240, 4, 3].into(), INTERNET, LAN, unspecified]
    {
        world.packet_nowhere(Guest('a'), &a.to(&b, udp(9)).claiming(source))?;
        world.packet_nowhere(Guest('a'), &a.packet(INTERNET, udp(443)).claiming(source))?;
        world.packet_nowhere(Guest('a'), &a.packet(a.gateway(), ping()).claiming(source))?;
        world.packet_nowhere(Guest('a'), &a.to(&b, udp(9)).claiming(source).via(BROADCAST))?;
    }
    Ok(())
}

pub fn spoofed_mac(world: &mut World) -> Verdict {
    let (a, b, c) = (world.guest('a'), world.guest('b'), world.guest('c'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    for source in [c.mac(), a.gateway_mac(), [0x06, 1, 2, 3, 4, 5], BROADCAST, [0; 6]] {
        world.packet_nowhere(Guest('a'), &a.to(&b, udp(9)).by(source))?;
        world.packet_nowhere(Guest('a'), &a.packet(INTERNET, udp(443)).by(source))?;
        world.packet_nowhere(Guest('a'), &a.packet(a.gateway(), ping()).by(source))?;
    }
    // Nobody's frames went elsewhere because of it.
    world.packet_arrives(Guest('b'), Guest('c'), &b.to(&c, udp(9))).map(drop)
}

pub fn arp_claims(world: &mut World) -> Verdict {
    let (a, b, c) = (world.guest('a'), world.guest('b'), world.guest('c'));
    let honest = a.answers(&b);
    world.arrives(Guest('a'), Guest('b'), |marker| honest.frame(marker))?;
    let honest = a.asks(b.ip());
    world.arrives(Guest('a'), Guest('b'), |marker| honest.frame(marker))?;
    for to_mac in [b.mac(), BROADCAST, a.gateway_mac()] {
        for operation in [1, 2] {
            let own = Arp { to_mac, operation, ..a.answers(&b) };
            let claims = [
                // another's address: a neighbour's, the gateway's, nobody's
                Arp { sender: c.ip(), ..own },
                Arp { sender: a.gateway(), ..own },
                Arp { sender: [10, 240, 3, 99].into(), ..own },
                // gratuitous
                Arp { sender: c.ip(), target: c.ip(), ..own },
                Arp { sender: a.gateway(), target: a.gateway(), ..own },
                // another's MAC, in the message or on the frame
                Arp { sender_mac: c.mac(), ..own },
                Arp { from_mac: c.mac(), ..own },
                Arp { from_mac: c.mac(), sender_mac: c.mac(), sender: c.ip(), ..own },
                // a probe without an address
                Arp { sender: [0, 0, 0, 0].into(), ..own },
            ];
            for claim in claims {
                world.nowhere(Guest('a'), |marker| claim.frame(marker))?;
            }
        }
    }
    Ok(())
}

/// ARP that is no plain question or answer.
pub fn arp_oddities(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let own = a.asks(b.ip());
    world.arrives(Guest('a'), Guest('b'), |marker| own.frame(marker))?;
    for operation in [0, 3, 4, 8, 9] {
        let odd = Arp { operation, ..own };
        world.nowhere(Guest('a'), |marker| odd.frame(marker))?;
    }
    // Hardware type, protocol type, their lengths.
    for (at, value) in [(15, 6), (16, 0x86), (18, 8), (19, 16)] {
        world.nowhere(Guest('a'), |marker| {
            let mut frame = own.frame(marker);
            frame[at] = value;
            frame
        })?;
    }
    Ok(())
}

pub fn vlan_tags(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    let claim = Arp { sender: b.gateway(), ..a.answers(&b) };
    // 802.1Q, 802.1ad, and both with a priority only.
    for (protocol, id) in [(0x8100, 5), (0x8100, 0), (0x88a8, 5), (0x88a8, 0), (0x8100, 0xe000), (0x9100, 5)]
    {
        world.packet_nowhere(Guest('a'), &a.to(&b, udp(9)).tagged(protocol, id))?;
        world.packet_nowhere(
            Guest('a'),
            &a.to(&b, udp(9)).claiming([10, 240, 3, 99].into()).tagged(protocol, id),
        )?;
        world.packet_nowhere(Guest('a'), &a.packet(a.gateway(), ping()).tagged(protocol, id))?;
        world.nowhere(Guest('a'), |marker| {
            let mut frame = claim.frame(marker);
            frame.splice(12..12, [(protocol >> 8) as u8, protocol as u8, (id >> 8) as u8, id as u8]);
            frame
        })?;
        // One tag in another.
        world.nowhere(Guest('a'), |marker| {
            let mut frame = a.to(&b, udp(9)).tagged(protocol, id).frame(marker);
            frame.splice(12..12, [0x81, 0, 0, 5]);
            frame
        })?;
    }
    Ok(())
}

pub fn ipv6(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, ping()))?;
    let link_local = |mac: Mac| {
        let [m0, m1, m2, m3, m4, m5] = mac;
        let bytes = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, m0 ^ 2, m1, m2, 0xff, 0xfe, m3, m4, m5];
        std::net::Ipv6Addr::from(bytes)
    };
    let own = link_local(a.mac());
    let all = "ff02::1".parse().expect("a group");
    for (to, target) in [
        (b.mac(), link_local(b.mac())),
        (a.gateway_mac(), link_local(a.gateway_mac())),
        ([0x33, 0x33, 0, 0, 0, 1], all),
        (BROADCAST, all),
        (a.gateway_mac(), "2001:db8::1".parse().expect("an address")),
    ] {
        world.nowhere(Guest('a'), |marker| ipv6_echo(to, a.mac(), own, target, marker))?;
    }
    Ok(())
}

pub fn dhcp_answers(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let from_port = |from: u16| Body::Udp { from, to: 68 };
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, from_port(66)))?;
    world.packet_nowhere(Guest('a'), &a.to(&b, from_port(67)))?;
    world.packet_nowhere(Guest('a'), &a.to(&b, from_port(67)).via(BROADCAST))?;
    let limited = a.packet([255, 255, 255, 255].into(), from_port(67)).via(BROADCAST);
    world.packet_nowhere(Guest('a'), &limited)
}

fn reserved(low: u8) -> Mac {
    [0x01, 0x80, 0xc2, 0, 0, low]
}

/// They pass by the bridge's first hook, some by all of them, and would reach every service of the host.
pub fn reserved_macs(world: &mut World) -> Verdict {
    let a = world.guest('a');
    let honest = outside(LAN, world.uplink_mac, HOST, udp(UNOFFERED));
    world.packet_arrives(Uplink, At::Host(UNOFFERED), &honest)?;
    for low in 0..=0x0f {
        for to in [HOST, a.gateway(), [255, 255, 255, 255].into(), [224, 0, 0, 1].into()] {
            for source in [a.ip(), [10, 240, 3, 99].into(), INTERNET] {
                let packet = a.packet(to, udp(UNOFFERED)).claiming(source);
                world.packet_nowhere(Guest('a'), &packet.clone().via(reserved(low)))?;
            }
        }
        // And be a mirror towards the outside.
        let packet = a.packet(INTERNET, udp(443)).via(reserved(low)).by([0x06, 0, 0, 0, 0, 9]);
        world.packet_nowhere(Guest('a'), &packet)?;
    }
    Ok(())
}

pub fn reserved_macs_and_neighbours(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    world.arrives(Guest('a'), Guest('b'), |marker| a.asks(b.ip()).frame(marker))?;
    let before = neighbours();
    for low in 0..=0x0f {
        for last in 210..214 {
            let claim = Arp {
                to_mac: reserved(low),
                sender: [10, 240, 3, last].into(),
                target: a.gateway(),
                ..a.asks(a.gateway())
            };
            world.nowhere(Guest('a'), |marker| claim.frame(marker))?;
            let claim = Arp { sender: [192, 0, 2, last].into(), target: HOST, operation: 2, ..claim };
            world.nowhere(Guest('a'), |marker| claim.frame(marker))?;
        }
    }
    if neighbours() == before { Ok(()) } else { Err("neighbour entries were made".into()) }
}

/// A bridge learns from reserved frames what no hook has seen.
pub fn reserved_macs_and_learning(world: &mut World) -> Verdict {
    let (a, b, c) = (world.guest('a'), world.guest('b'), world.guest('c'));
    for low in 0..=0x0f {
        let (to, from) = (reserved(low), c.mac());
        world.nowhere(Guest('a'), |marker| raw(to, from, 0x88cc, &[0; 46], marker))?;
        let packet = a.packet(HOST, udp(UNOFFERED)).via(to).by(from);
        world.packet_nowhere(Guest('a'), &packet)?;
    }
    world.packet_arrives(Guest('b'), Guest('c'), &b.to(&c, udp(9)))?;
    let honest: Packet = c.packet(c.gateway(), ping());
    world.answered(Guest('c'), &honest).map(drop)
}

/// A TAP on its bridge without a lease says nothing to anybody.
pub fn before_its_lease(world: &mut World) -> Verdict {
    let (a, b) = (world.guest('a'), world.guest('b'));
    let z = guest_of(&a.tenant, 20, "internet", &[]);
    world.guests.insert('z', z.clone());
    world.plug('z');
    let frames = [z.to(&b, udp(9)), z.packet(INTERNET, udp(443)), z.packet(z.gateway(), ping())];
    let mut markers = Vec::new();
    for packet in &frames {
        let marker = world.marker();
        world.put(Guest('z'), &packet.frame(marker));
        markers.push(marker);
    }
    let marker = world.marker();
    world.put(Guest('z'), &z.asks(b.ip()).frame(marker));
    markers.push(marker);
    world.settle(Guest('a'))?;
    for marker in markers {
        if let Some((at, _)) = world.seen_with(&marker).first() {
            return Err(format!("a frame without a lease turned up at {at:?}"));
        }
    }
    world.lease('z');
    world.packet_arrives(Guest('z'), Guest('b'), &z.to(&b, udp(9)))?;
    world.answered(Guest('z'), &z.packet(z.gateway(), ping())).map(drop)
}
