//! What must arrive and what must not. Whoever looks for what must not arrive first waits for an honest packet after it.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{
    frames::{Arp, BROADCAST, Marker, Packet, Seen},
    guest::{At, HOST, LAN, outside, ping},
    world::{Verdict, World},
};

impl World {
    /// Waits for a frame.
    pub fn wait(&mut self, what: &str, found: impl Fn(&(At, Seen)) -> bool) -> Result<Seen, String> {
        let deadline = Instant::now() + self.patience;
        loop {
            self.collect();
            if let Some((_, frame)) = self.seen.iter().find(|seen| found(seen)) {
                return Ok(frame.clone());
            }
            if Instant::now() > deadline {
                return Err(format!("{what}: nothing came"));
            }
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    /// A frame that must arrive at a place.
    pub fn arrives(&mut self, from: At, at: At, frame: impl Fn(Marker) -> Vec<u8>) -> Result<Seen, String> {
        let marker = self.marker();
        self.put(from, &frame(marker));
        self.wait(&format!("{from:?} to {at:?}"), |(place, frame)| *place == at && frame.has(&marker))
    }

    /// A packet that must arrive at a place.
    pub fn packet_arrives(&mut self, from: At, at: At, packet: &Packet) -> Result<Seen, String> {
        self.arrives(from, at, |marker| packet.frame(marker))
    }

    /// A ping that must be answered where it came from.
    pub fn answered(&mut self, from: At, packet: &Packet) -> Result<Seen, String> {
        let marker = self.marker();
        self.put(from, &packet.frame(marker));
        self.wait(&format!("{from:?} pings {}", packet.to), |(place, frame)| {
            *place == from && frame.has(&marker) && frame.icmp() == Some((0, 0))
        })
    }

    /// Waits until everything that was sent before has been handled: an honest packet after it arrives.
    pub fn settle(&mut self, from: At) -> Verdict {
        match from {
            At::Guest(letter) => {
                let guest = self.guest(letter);
                let echo = guest.packet(guest.gateway(), ping());
                self.answered(from, &echo).map(drop)
            }
            At::Stray | At::Uplink | At::Host(_) => {
                let echo = outside(LAN, self.uplink_mac, HOST, ping());
                self.answered(At::Uplink, &echo).map(drop)
            }
            At::Dmz => Ok(()),
        }
    }

    /// A frame that must arrive nowhere, and get no answer.
    pub fn nowhere(&mut self, from: At, frame: impl Fn(Marker) -> Vec<u8>) -> Verdict {
        let marker = self.marker();
        self.put(from, &frame(marker));
        self.settle(from)?;
        // What unknown ports of somebody else's are flooded with is not mvm's to say.
        match self.seen_with(&marker).iter().find(|(at, _)| *at != At::Stray) {
            None => Ok(()),
            Some((at, frame)) => Err(format!("a frame from {from:?} turned up at {at:?}: {:02x?}", frame.0)),
        }
    }

    /// A packet that must arrive nowhere, and get no answer.
    pub fn packet_nowhere(&mut self, from: At, packet: &Packet) -> Verdict {
        self.nowhere(from, |marker| packet.frame(marker))
    }

    /// A packet that must be refused: its sender hears so, and nobody else hears of it.
    pub fn refused(&mut self, from: At, packet: &Packet) -> Verdict {
        let marker = self.marker();
        self.put(from, &packet.frame(marker));
        self.settle(from)?;
        let seen = self.seen_with(&marker);
        let what = format!("{from:?} to {}", packet.to);
        if let Some((at, _)) = seen.iter().find(|(at, _)| *at != from) {
            return Err(format!("{what}: arrived at {at:?}"));
        }
        match seen.first().and_then(|(_, frame)| frame.icmp()) {
            Some((3, 13)) => Ok(()),
            other => Err(format!("{what}: the answer was {other:?}, not a refusal")),
        }
    }

    /// A packet that must not arrive at any guest; the host may answer it.
    pub fn never_at_a_guest(&mut self, from: At, packet: &Packet) -> Verdict {
        let marker = self.marker();
        self.put(from, &packet.frame(marker));
        self.settle(from)?;
        match self.seen_with(&marker).iter().find(|(at, _)| matches!(at, At::Guest(_))) {
            None => Ok(()),
            Some((at, _)) => Err(format!("{from:?} to {} arrived at {at:?}", packet.to)),
        }
    }

    /// A broadcast question that the neighbours hear, and nobody else.
    pub fn heard_by_neighbours_only(&mut self, letter: char, asks: Arp) -> Verdict {
        let net_id = self.guest(letter).tenant.net_id;
        let marker = self.marker();
        self.put(At::Guest(letter), &asks.frame(marker));
        self.settle(At::Guest(letter))?;
        let seen = self.seen_with(&marker);
        if seen.is_empty() {
            return Err("not even the neighbours heard it".into());
        }
        let neighbour = |at: &At| match at {
            At::Guest(other) => *other != letter && self.guests[other].tenant.net_id == net_id,
            At::Stray => true,
            _ => false,
        };
        match seen.iter().find(|(at, _)| !neighbour(at)) {
            None => Ok(()),
            Some((at, _)) => Err(format!("a question of {letter} was heard at {at:?}")),
        }
    }

    /// An address for which no MAC is given.
    pub fn gives_no_mac(&mut self, letter: char, address: Ipv4Addr) -> Verdict {
        self.forget();
        let guest = self.guest(letter);
        // Asked directly, a host that answers for others does so at once.
        for to_mac in [BROADCAST, guest.gateway_mac()] {
            self.put(At::Guest(letter), &Arp { to_mac, ..guest.asks(address) }.frame([0; 8]));
        }
        self.settle(At::Guest(letter))?;
        let answered = |(at, frame): &&(At, Seen)| {
            *at == At::Guest(letter) && frame.is_arp() && frame.0[21] == 2 && frame.ip(28) == address
        };
        match self.seen().iter().find(answered) {
            None => Ok(()),
            Some(_) => Err(format!("{address} was answered for")),
        }
    }

    /// How many of these packets arrive at a place.
    pub fn count(&mut self, from: At, at: At, frames: &[Vec<u8>], marker: Marker) -> Result<usize, String> {
        self.count_until(from, at, frames, marker, from)
    }

    /// How many of these packets arrive at a place, where their sender may have used up what it may send.
    pub fn count_beside(
        &mut self,
        from: At,
        at: At,
        frames: &[Vec<u8>],
        marker: Marker,
    ) -> Result<usize, String> {
        self.count_until(from, at, frames, marker, At::Guest('a'))
    }

    fn count_until(
        &mut self,
        from: At,
        at: At,
        frames: &[Vec<u8>],
        marker: Marker,
        last: At,
    ) -> Result<usize, String> {
        for chunk in frames.chunks(100) {
            for frame in chunk {
                self.put(from, frame);
            }
            // A TAP keeps a thousand frames, a socket fewer.
            self.collect();
        }
        self.settle(last)?;
        Ok(self.seen_with(&marker).iter().filter(|(place, _)| *place == at).count())
    }
}
