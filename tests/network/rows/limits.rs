//! What a guest may do only so often.

use crate::network::{
    frames::{Body, Packet},
    guest::{
        At::{Guest, Uplink},
        FEW, HOST, INTERNET, LAN, SLOW, outside, ping, udp,
    },
    world::{Verdict, World},
};

/// Of so many, between one and so many must arrive.
fn limited(what: &str, arrived: usize, sent: usize, most: usize) -> Verdict {
    match arrived {
        0 => Err(format!("{what}: none of {sent} arrived")),
        n if n > most => Err(format!("{what}: {n} of {sent} arrived")),
        _ => Ok(()),
    }
}

/// A burst of 100, then 50 a second.
pub fn arp_rate(world: &mut World) -> Verdict {
    let (b, f) = (world.guest('b'), world.guest('f'));
    let marker = world.marker();
    let frames = vec![f.asks(b.ip()).frame(marker); 600];
    let arrived = world.count(Guest('f'), Guest('b'), &frames, marker)?;
    limited("ARP", arrived, frames.len(), 300)?;
    if arrived < 100 { Err(format!("ARP: only {arrived} arrived")) } else { Ok(()) }
}

/// A burst of 40, then 20 a second; what is addressed to one is not counted.
pub fn broadcast_rate(world: &mut World) -> Verdict {
    let (b, f) = (world.guest('b'), world.guest('f'));
    let marker = world.marker();
    let broadcast = f.packet([10, 240, 3, 255].into(), udp(9)).via([0xff; 6]);
    let frames = vec![broadcast.frame(marker); 400];
    let arrived = world.count(Guest('f'), Guest('b'), &frames, marker)?;
    limited("broadcast", arrived, frames.len(), 200)?;
    if arrived < 40 {
        return Err(format!("broadcast: only {arrived} arrived"));
    }
    let marker = world.marker();
    let frames = vec![f.to(&b, udp(9)).frame(marker); 400];
    match world.count(Guest('f'), Guest('b'), &frames, marker)? {
        400 => Ok(()),
        other => Err(format!("to one: {other} of 400 arrived")),
    }
}

fn many(count: usize, packet: impl Fn() -> Packet, marker: [u8; 8]) -> Vec<Vec<u8>> {
    (0..count).map(|_| packet().frame(marker)).collect()
}

pub fn new_connections(world: &mut World) -> Verdict {
    let (a, i) = (world.guest('a'), world.guest('i'));
    let marker = world.marker();
    let frames = many(100, || a.packet(INTERNET, udp(443)), marker);
    let free = world.count(Guest('a'), Uplink, &frames, marker)?;
    if free != 100 {
        return Err(format!("of a guest that may: {free} of 100"));
    }
    let marker = world.marker();
    let frames = many(100, || i.packet(INTERNET, udp(443)), marker);
    let arrived = world.count_beside(Guest('i'), Uplink, &frames, marker)?;
    limited("new connections", arrived, 100, 6 * SLOW as usize)
}

pub fn new_connections_to_host(world: &mut World) -> Verdict {
    let j = world.guest('j');
    let marker = world.marker();
    let frames = many(100, || j.packet(j.gateway(), ping()), marker);
    let arrived = world.count_beside(Guest('j'), Guest('j'), &frames, marker)?;
    limited("pings", arrived, 100, 6 * SLOW as usize)
}

pub fn open_connections(world: &mut World) -> Verdict {
    let h = world.guest('h');
    let marker = world.marker();
    let frames = many(40, || h.packet(INTERNET, udp(443)), marker);
    let arrived = world.count_beside(Guest('h'), Uplink, &frames, marker)?;
    if arrived != FEW as usize {
        return Err(format!("{arrived} of 40 flows, and {FEW} may be open"));
    }
    // One that is open goes on.
    let seen = world.seen_with(&marker);
    let (_, first) = seen.iter().find(|(at, _)| *at == Uplink).ok_or("none was seen")?;
    let Body::Udp { .. } = udp(0) else { unreachable!("it is UDP") };
    let (from, to) = first.ports();
    let answer = outside(INTERNET, world.uplink_mac, HOST, Body::Udp { from: to, to: from });
    world.packet_arrives(Uplink, Guest('h'), &answer).map(drop)
}

pub fn open_connections_from_outside(world: &mut World) -> Verdict {
    let marker = world.marker();
    let mac = world.uplink_mac;
    let frames = many(40, || outside(LAN, mac, HOST, udp(8055)), marker);
    let arrived = world.count_beside(Uplink, Guest('k'), &frames, marker)?;
    if arrived == FEW as usize {
        Ok(())
    } else {
        Err(format!("{arrived} of 40 flows, and {FEW} may be open"))
    }
}

/// Limits that change hold for the leases that were there before.
pub fn changed_limits(world: &mut World) -> Verdict {
    let h = world.guest('h');
    let mut tenant = h.tenant.clone();
    tenant.rates.max_conns = 2;
    world.net.ensure_tenant(&tenant).map_err(|error| error.to_string())?;
    let marker = world.marker();
    let frames = many(40, || h.packet(INTERNET, udp(443)), marker);
    let arrived = world.count_beside(Guest('h'), Uplink, &frames, marker)?;
    if arrived == 2 { Ok(()) } else { Err(format!("{arrived} of 40 flows, and 2 may be open")) }
}
