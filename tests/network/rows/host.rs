//! Other tenants, and the host: what is offered on the own gateway, and nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use mvm::vm::naming::{UID_BASE, UID_LAST};
use rustix::process::Uid;

use crate::network::{
    frames::{Arp, Body},
    guest::{
        At::{self, Guest, Stray, Uplink},
        DNS, HOST, INTERNET, LAN, UNOFFERED, outside, ping, udp,
    },
    world::{Verdict, World},
};

pub fn other_tenants_guests(world: &mut World) -> Verdict {
    let (a, b, g) = (world.guest('a'), world.guest('b'), world.guest('g'));
    world.packet_arrives(Guest('a'), Guest('b'), &a.to(&b, udp(9)))?;
    world.answered(Guest('g'), &g.packet(g.gateway(), ping()))?;
    // Not even a refusal: it would tell which tenants are there. Published or not, whatever the policy.
    for (letter, from) in [('a', &a), ('c', &world.guest('c')), ('e', &world.guest('e'))] {
        for body in [ping(), udp(9), udp(53)] {
            world.packet_nowhere(Guest(letter), &from.packet(g.ip(), body))?;
            world.packet_nowhere(Guest(letter), &from.packet(g.ip(), body).via(g.mac()))?;
        }
    }
    let asks = a.asks(g.ip());
    world.heard_by_neighbours_only('a', asks)
}

pub fn other_gateways(world: &mut World) -> Verdict {
    let (a, c, g) = (world.guest('a'), world.guest('c'), world.guest('g'));
    world.answered(Guest('a'), &a.packet(a.gateway(), ping()))?;
    for (letter, from) in [('a', &a), ('c', &c)] {
        for body in [ping(), udp(DNS), udp(UNOFFERED)] {
            world.packet_nowhere(Guest(letter), &from.packet(g.gateway(), body))?;
            world.packet_nowhere(Guest(letter), &from.packet(g.gateway(), body).via(g.gateway_mac()))?;
        }
    }
    // The host answers ARP on a bridge for that bridge's address only.
    for address in [g.gateway(), HOST, LAN, INTERNET, [10, 240, 3, 99].into()] {
        let asks = a.asks(address);
        world.heard_by_neighbours_only('a', asks)?;
        world.gives_no_mac('a', address)?;
    }
    Ok(())
}

pub fn own_gateway(world: &mut World) -> Verdict {
    for letter in ['a', 'g', 'd'] {
        let guest = world.guest(letter);
        world.answered(Guest(letter), &guest.packet(guest.gateway(), ping()))?;
        world.put(Guest(letter), &guest.asks(guest.gateway()).frame([0; 8]));
        let (gateway, mac) = (guest.gateway(), guest.gateway_mac());
        let answer = world.wait("ARP of the gateway", |(at, frame)| {
            *at == Guest(letter) && frame.is_arp() && frame.0[21] == 2 && frame.ip(28) == gateway
        })?;
        if answer.0[22..28] != mac {
            return Err(format!("the gateway's MAC is {:02x?}", &answer.0[22..28]));
        }
    }
    Ok(())
}

pub fn unoffered_ports(world: &mut World) -> Verdict {
    let a = world.guest('a');
    world.answered(Guest('a'), &a.packet(a.gateway(), ping()))?;
    for port in [UNOFFERED, DNS] {
        let lan = outside(LAN, world.uplink_mac, HOST, udp(port));
        world.packet_arrives(Uplink, At::Host(port), &lan)?;
        world.packet_nowhere(Guest('a'), &a.packet(a.gateway(), udp(port)))?;
        let tcp = Body::Tcp { from: 999, to: port, flags: crate::network::frames::SYN, mss: None };
        world.packet_nowhere(Guest('a'), &a.packet(a.gateway(), tcp))?;
        // A broadcast is the neighbours' business, not the host's.
        for to in [[255, 255, 255, 255], [10, 240, 3, 255]] {
            let marker = world.marker();
            world.put(Guest('a'), &a.packet(to.into(), udp(port)).via([0xff; 6]).frame(marker));
            world.settle(Guest('a'))?;
            if world.seen_with(&marker).iter().any(|(at, _)| *at == At::Host(port)) {
                return Err(format!("a broadcast reached the host's port {port}"));
            }
        }
    }
    // Only echo requests are answered.
    for kind in [13, 15, 17] {
        world.packet_nowhere(Guest('a'), &a.packet(a.gateway(), Body::Echo { kind, id: 7 }))?;
    }
    Ok(())
}

pub fn other_host_addresses(world: &mut World) -> Verdict {
    let a = world.guest('a');
    world.answered(Guest('a'), &a.packet(a.gateway(), ping()))?;
    world.answered(Uplink, &outside(LAN, world.uplink_mac, HOST, ping()))?;
    let loopback: Ipv4Addr = [127, 0, 0, 1].into();
    for letter in ['a', 'c'] {
        let guest = world.guest(letter);
        for address in [HOST, [192, 168, 77, 1].into(), loopback] {
            for body in [ping(), udp(UNOFFERED), udp(8053), udp(8054)] {
                world.packet_nowhere(Guest(letter), &guest.packet(address, body))?;
            }
        }
    }
    Ok(())
}

pub fn link_local(world: &mut World) -> Verdict {
    let (a, c) = (world.guest('a'), world.guest('c'));
    world.answered(Guest('a'), &a.packet(a.gateway(), ping()))?;
    let metadata: Ipv4Addr = [169, 254, 169, 254].into();
    world.refused(Guest('a'), &a.packet(metadata, udp(80)))?;
    let asks = Arp { target: metadata, ..a.asks(metadata) };
    world.heard_by_neighbours_only('a', asks)?;
    world.packet_arrives(Guest('c'), Uplink, &c.packet(INTERNET, udp(80))).map(drop)
}

/// The host reaches a guest at once, without asking for its MAC, and hears what it answers.
pub fn host_to_guest(world: &mut World) -> Verdict {
    let a = world.guest('a');
    world.forget();
    let marker = world.marker();
    world.host_sends(UNOFFERED, (a.ip(), 9), &marker);
    let seen = world.wait("the host's packet", |(at, frame)| *at == Guest('a') && frame.has(&marker))?;
    let asked = world.seen().iter().any(|(at, frame)| *at == Guest('a') && frame.is_arp());
    if asked {
        return Err("the host asked for the guest's MAC".into());
    }
    if seen.source() != a.gateway() {
        return Err(format!("the host spoke as {}", seen.source()));
    }
    let answer = a.packet(a.gateway(), Body::Udp { from: 9, to: UNOFFERED });
    world.packet_arrives(Guest('a'), At::Host(UNOFFERED), &answer)?;
    // The same, of nobody's asking.
    let other = a.packet(a.gateway(), Body::Udp { from: 10, to: UNOFFERED });
    world.packet_nowhere(Guest('a'), &other)
}

/// Whatever address the host speaks from: on the bridge it asks as the gateway.
pub fn host_asks_as_gateway(world: &mut World) -> Verdict {
    let a = world.guest('a');
    world.forget();
    let socket = UdpSocket::bind((HOST, 0)).map_err(|error| error.to_string())?;
    let dead: Ipv4Addr = [10, 240, 3, 250].into();
    socket.send_to(b"hello", (dead, 9)).map_err(|error| error.to_string())?;
    let asked = world.wait("the host's question", |(at, frame)| {
        *at == Guest('a') && frame.is_arp() && frame.ip(38) == dead
    })?;
    let gateway = a.gateway();
    if asked.ip(28) == gateway { Ok(()) } else { Err(format!("the host asked as {}", asked.ip(28))) }
}

/// A port's own MAC is the host's too: what goes to it is not tracked, and gets no answer.
pub fn through_the_taps_mac(world: &mut World) -> Verdict {
    let a = world.guest('a');
    world.answered(Guest('a'), &a.packet(a.gateway(), ping()))?;
    world.packet_arrives(Guest('a'), Uplink, &a.packet(INTERNET, udp(443)))?;
    for port in ['a', 'b'] {
        let mac = world.tap_mac(port);
        world.packet_nowhere(Guest('a'), &a.packet(a.gateway(), ping()).via(mac))?;
        world.packet_nowhere(Guest('a'), &a.packet(INTERNET, udp(443)).via(mac))?;
    }
    // Nor what goes to everybody.
    world.packet_nowhere(Guest('a'), &a.packet(a.gateway(), ping()).via([0x01, 0, 0x5e, 0, 0, 1]))?;
    let marker = world.marker();
    world.put(Guest('a'), &a.packet(a.gateway(), ping()).via([0xff; 6]).frame(marker));
    world.settle(Guest('a'))?;
    match world.seen_with(&marker).iter().find(|(at, _)| *at == Guest('a')) {
        None => Ok(()),
        Some(_) => Err("a ping to everybody was answered".into()),
    }
}

/// A port that is nobody's cannot make the host answer to somewhere else.
pub fn reflection(world: &mut World) -> Verdict {
    let a = world.guest('a');
    world.answered(Guest('a'), &a.packet(a.gateway(), ping()))?;
    let stray = a.packet(a.gateway(), ping()).by([0x06, 0, 0, 0, 0, 9]).claiming(INTERNET);
    world.packet_nowhere(Stray, &stray)
}

/// Addresses of the cluster that nobody here has do not leave by the default route.
pub fn cluster_addresses(world: &mut World) -> Verdict {
    let marker = world.marker();
    world.host_sends(UNOFFERED, (INTERNET, 9), &marker);
    world.wait("the host's packet", |(at, frame)| *at == Uplink && frame.has(&marker))?;
    let marker = world.marker();
    world.host_sends(UNOFFERED, ([10, 240, 99, 99].into(), 9), &marker);
    world.settle(Uplink)?;
    match world.seen_with(&marker).is_empty() {
        true => Ok(()),
        false => Err("it left".into()),
    }
}

/// What belongs to no flow and begins none would leave without the host's address in it.
pub fn invalid_packets(world: &mut World) -> Verdict {
    let c = world.guest('c');
    let tcp = |from, flags| Body::Tcp { from, to: 443, flags, mss: None };
    world.packet_arrives(Guest('c'), Uplink, &c.packet(INTERNET, tcp(4001, 0x02)))?;
    for (from, flags) in [(4002, 0), (4003, 0x03), (4004, 0x06), (4005, 0x29)] {
        world.packet_nowhere(Guest('c'), &c.packet(INTERNET, tcp(from, flags)))?;
    }
    Ok(())
}

/// Who has left a VMM's jail by a hole in it is in the host's network namespace, and that VMM's user: it reaches nothing.
pub fn users_of_vmms(_: &mut World) -> Verdict {
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let host = UdpSocket::bind((address, 0)).map_err(|error| error.to_string())?;
        let to = host.local_addr().map_err(|error| error.to_string())?;
        for (uid, may_send) in [
            (UID_BASE - 1, true),
            (UID_BASE, false),
            (UID_BASE + 0x0003_0005, false),
            (UID_LAST, false),
            (UID_LAST + 1, true),
        ] {
            if sends_as(uid, to) != may_send {
                return Err(format!("user {uid:#x} to {to}: may send is not {may_send}"));
            }
        }
    }
    Ok(())
}

/// Does a packet of this user leave its socket?
fn sends_as(uid: u32, to: SocketAddr) -> bool {
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let user = Uid::from_raw(uid);
            // Only this thread is somebody else, and it ends here.
            rustix::thread::set_thread_res_uid(user, user, user).expect("root may");
            let socket = UdpSocket::bind((to.ip(), 0)).expect("a socket");
            socket.send_to(b"let me out", to).is_ok()
        });
        sent.join().expect("it ends")
    })
}
