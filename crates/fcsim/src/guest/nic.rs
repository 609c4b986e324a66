//! A network interface of the guest: answers ARP for its address and ICMP echo, and keeps what comes in for whoever
//! asks. Can send what a hostile guest would.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, Read, Write},
    net::Ipv4Addr,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::frames::{self, ACK, Mac, Packet, RST, SYN};
use crate::host::tap::{Tap, VNET_HEADER};

/// Frames that are kept.
const BACKLOG: usize = 512;

/// The guest's idea of its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Address {
    pub mac: Mac,
    pub ip: Option<Ipv4Addr>,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
}

impl Address {
    fn on_link(&self, other: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.clamp(1, 32))).unwrap_or(u32::MAX);
        self.ip.is_some_and(|ip| u32::from(ip) & mask == u32::from(other) & mask)
    }

    /// Whom to ask for: the host itself or the gateway.
    pub(crate) fn next_hop(&self, to: Ipv4Addr) -> Ipv4Addr {
        if self.on_link(to) { to } else { self.gateway.unwrap_or(to) }
    }
}

#[derive(Debug)]
struct State {
    address: Address,
    /// Addresses that are also answered for, while a spoofed packet is out.
    also: Vec<(Mac, Ipv4Addr)>,
    /// Ports that accept a connection.
    listening: BTreeSet<u16>,
    /// Frames that came in and were not taken, each with its number.
    frames: VecDeque<(u64, Vec<u8>)>,
    /// The number of the next one.
    next: u64,
}

/// A network interface.
#[derive(Debug)]
pub(crate) struct Nic {
    /// Its id.
    pub(crate) id: String,
    tap: Tap,
    state: Mutex<State>,
    arrived: Condvar,
}

impl Nic {
    /// An interface on an open TAP.
    pub(crate) fn new(id: String, tap: Tap, address: Address) -> Self {
        let state =
            State { address, also: Vec::new(), listening: BTreeSet::new(), frames: VecDeque::new(), next: 0 };
        Self { id, tap, state: Mutex::new(state), arrived: Condvar::new() }
    }

    /// The TAP behind it.
    pub(crate) fn tap(&self) -> &Tap {
        &self.tap
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its address.
    pub(crate) fn address(&self) -> Address {
        self.state().address
    }

    /// Gives it another address.
    pub(crate) fn set_address(&self, address: Address) {
        self.state().address = address;
    }

    /// Accepts TCP connections to a port from now on (and says nothing more on them).
    pub(crate) fn listen(&self, port: u16) {
        self.state().listening.insert(port);
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut packet = vec![0; VNET_HEADER];
        packet.extend_from_slice(frame);
        (&self.tap.file).write(&packet).map(|_| ())
    }

    /// Takes in what has come; false where the TAP is gone.
    pub(crate) fn receive(&self) -> bool {
        let mut buffer = vec![0; 65_562];
        loop {
            match (&self.tap.file).read(&mut buffer) {
                Ok(length) if length > VNET_HEADER => self.handle(&buffer[VNET_HEADER..length]),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    fn handle(&self, frame: &[u8]) {
        let mut state = self.state();
        let own = state.address;
        let reply = frames::parse(frame).and_then(|packet| match packet {
            Packet::ArpRequest { sender_mac, sender, target } => {
                let is = if own.ip == Some(target) {
                    Some((own.mac, target))
                } else {
                    state.also.iter().copied().find(|(_, ip)| *ip == target)
                };
                is.map(|is| frames::arp_reply(is, (sender_mac, sender)))
            }
            Packet::EchoRequest { from_mac, from, to, rest } if own.ip == Some(to) => {
                Some(frames::echo_reply((own.mac, to), (from_mac, from), &rest))
            }
            Packet::Tcp { from_mac, from, to, source_port, port, seq, flags }
                if own.ip == Some(to) && flags & (SYN | ACK) == SYN && state.listening.contains(&port) =>
            {
                let numbers = (1, seq.wrapping_add(1));
                Some(frames::tcp((own.mac, to), (from_mac, from), (port, source_port), numbers, SYN | ACK))
            }
            _ => None,
        });
        if state.frames.len() == BACKLOG {
            state.frames.pop_front();
        }
        let number = state.next;
        state.next += 1;
        state.frames.push_back((number, frame.to_vec()));
        drop(state);
        self.arrived.notify_all();
        if let Some(reply) = reply {
            // a reply that cannot be sent is lost, as on a wire
            let _ = self.send(&reply);
        }
    }

    /// The number that the next frame will have.
    fn next(&self) -> u64 {
        self.state().next
    }

    /// Waits for a frame from number `from` on that `wanted` makes something of.
    fn wait<T>(&self, from: u64, until: Instant, wanted: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let mut state = self.state();
        let mut next = from;
        loop {
            let new = state.frames.iter().filter(|(number, _)| *number >= next);
            if let Some(found) = new.into_iter().find_map(|(_, frame)| wanted(frame)) {
                return Some(found);
            }
            next = state.next;
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the oldest kept frame that matches, or waits for one.
    pub(crate) fn take(&self, until: Instant, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut state = self.state();
        loop {
            if let Some(at) = state.frames.iter().position(|(_, frame)| wanted(frame)) {
                return state.frames.remove(at).map(|(_, frame)| frame);
            }
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks who has an address.
    fn resolve(&self, target: Ipv4Addr, until: Instant) -> Option<Mac> {
        let address = self.address();
        let from = self.next();
        self.send(&frames::arp_request((address.mac, address.ip.unwrap_or(Ipv4Addr::UNSPECIFIED)), target))
            .ok()?;
        self.wait(from, until, |frame| match frames::parse(frame) {
            Some(Packet::ArpReply { sender_mac, sender }) if sender == target => Some(sender_mac),
            _ => None,
        })
    }

    /// Sends an echo request and waits for its answer: how long that took.
    pub(crate) fn ping(
        &self,
        to: Ipv4Addr,
        spoofed: Spoofed,
        timeout: Duration,
    ) -> Result<Duration, Silence> {
        let until = Instant::now() + timeout;
        let own = self.address();
        let hop = self.resolve(own.next_hop(to), until).ok_or(Silence::Arp)?;
        let source = (spoofed.mac.unwrap_or(own.mac), spoofed.ip.or(own.ip).unwrap_or(Ipv4Addr::UNSPECIFIED));
        let (from, start) = (self.next(), Instant::now());
        let id = (super::heap::mix(from ^ u64::from(u32::from(to))) & 0xffff) as u16;
        let _also = self.answer_also(source);
        self.send(&frames::echo_request(source, (hop, to), id, 1)).map_err(|_| Silence::Send)?;
        self.wait(from, until, |frame| {
            let wanted = Packet::EchoReply { from: to, id, seq: 1 };
            (frames::parse(frame)? == wanted).then_some(())
        })
        .ok_or(Silence::Reply)?;
        Ok(start.elapsed())
    }

    /// Sends a SYN and says what came back.
    pub(crate) fn connect(
        &self,
        to: Ipv4Addr,
        port: u16,
        spoofed: Spoofed,
        timeout: Duration,
    ) -> Result<TcpAnswer, Silence> {
        let until = Instant::now() + timeout;
        let own = self.address();
        let hop = self.resolve(own.next_hop(to), until).ok_or(Silence::Arp)?;
        let source = (spoofed.mac.unwrap_or(own.mac), spoofed.ip.or(own.ip).unwrap_or(Ipv4Addr::UNSPECIFIED));
        let from = self.next();
        let number = super::heap::mix(from ^ u64::from(port) ^ u64::from(std::process::id()));
        let (own_port, seq) = (32_768 + (number & 0x3fff) as u16, (number >> 32) as u32);
        let _also = self.answer_also(source);
        self.send(&frames::tcp(source, (hop, to), (own_port, port), (seq, 0), SYN))
            .map_err(|_| Silence::Send)?;
        let (answer, ack) = self
            .wait(from, until, |frame| match frames::parse(frame)? {
                Packet::Tcp { from, source_port, port: to_port, flags, seq, .. }
                    if (from, source_port, to_port) == (to, port, own_port) =>
                {
                    if flags & RST != 0 {
                        Some((TcpAnswer::Refused, 0))
                    } else {
                        (flags & (SYN | ACK) == SYN | ACK).then_some((TcpAnswer::Open, seq))
                    }
                }
                Packet::Unreachable { to: about, source_port, port: to_port, .. }
                    if (about, source_port, to_port) == (to, own_port, port) =>
                {
                    Some((TcpAnswer::Rejected, 0))
                }
                _ => None,
            })
            .ok_or(Silence::Reply)?;
        if answer == TcpAnswer::Open {
            let numbers = (seq.wrapping_add(1), ack.wrapping_add(1));
            let _ = self.send(&frames::tcp(source, (hop, to), (own_port, port), numbers, RST | ACK));
        }
        Ok(answer)
    }

    /// Answers ARP for an address until the guard is dropped.
    fn answer_also(&self, address: (Mac, Ipv4Addr)) -> impl Drop + '_ {
        self.state().also.push(address);
        AlsoGuard { nic: self, address }
    }
}

struct AlsoGuard<'a> {
    nic: &'a Nic,
    address: (Mac, Ipv4Addr),
}

impl Drop for AlsoGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.nic.state();
        if let Some(at) = state.also.iter().position(|other| *other == self.address) {
            state.also.swap_remove(at);
        }
    }
}

/// A source that is not the guest's own.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spoofed {
    pub mac: Option<Mac>,
    pub ip: Option<Ipv4Addr>,
}

/// What came back for a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TcpAnswer {
    Open,
    Refused,
    Rejected,
}

/// Why nothing came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Nobody said who has the address.
    Arp,
    /// The TAP took no frame.
    Send,
    /// No answer in time.
    Reply,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_link_goes_to_the_gateway() {
        let gateway = Ipv4Addr::new(10, 240, 3, 1);
        let address = Address {
            mac: [0; 6],
            ip: Some(Ipv4Addr::new(10, 240, 3, 3)),
            prefix: 24,
            gateway: Some(gateway),
        };
        assert_eq!(address.next_hop(Ipv4Addr::new(10, 240, 3, 200)), Ipv4Addr::new(10, 240, 3, 200));
        assert_eq!(address.next_hop(Ipv4Addr::new(10, 240, 4, 3)), gateway);
        assert_eq!(address.next_hop(Ipv4Addr::new(8, 8, 8, 8)), gateway);
    }
}
