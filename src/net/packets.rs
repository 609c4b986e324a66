//! Frames for probes: a few kinds of Ethernet frames, and what is read back of them. Pure.

use std::net::Ipv4Addr;

use crate::vm::naming::Mac;

/// Bytes by which a probe's frame is recognised, wherever it or an answer that quotes it turns up.
pub type Marker = [u8; 12];

/// Everybody.
pub const BROADCAST: Mac = Mac::new([0xff; 6]);

/// What an IPv4 packet carries.
#[derive(Debug, Clone, Copy)]
pub enum Body {
    /// An ICMP echo request.
    Ping,
    /// A UDP packet, with its ports.
    Udp {
        /// From.
        from: u16,
        /// To.
        to: u16,
    },
}

/// An IPv4 packet in its frame.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// The frame's destination.
    pub to_mac: Mac,
    /// The frame's source.
    pub from_mac: Mac,
    /// The packet's source.
    pub from: Ipv4Addr,
    /// The packet's destination.
    pub to: Ipv4Addr,
    /// What it carries.
    pub body: Body,
}

impl Packet {
    /// Its bytes, with the marker at the end.
    pub fn frame(&self, marker: &Marker) -> Vec<u8> {
        let (protocol, mut segment) = match self.body {
            Body::Ping => (1, vec![8, 0, 0, 0, 0x6d, 0x76, 0, 1]),
            Body::Udp { from, to } => {
                let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
                // Without a checksum: IPv4 allows it.
                (17, vec![a, b, c, d, 0, 8 + marker.len() as u8, 0, 0])
            }
        };
        segment.extend_from_slice(marker);
        if protocol == 1 {
            let sum = checksum(&segment);
            segment[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let length = (20 + segment.len()) as u16;
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip.extend_from_slice(&self.from.octets());
        ip.extend_from_slice(&self.to.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = ethernet(self.to_mac, self.from_mac, 0x0800);
        frame.extend_from_slice(&ip);
        frame.extend_from_slice(&segment);
        frame
    }
}

/// The head of a frame.
pub fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.octets()[..], &from.octets()[..], &kind.to_be_bytes()[..]].concat()
}

/// The same frame with a VLAN tag.
pub fn tagged(mut frame: Vec<u8>, id: u8) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0, 0, id]);
    frame
}

/// An ARP message (1 asks, 2 answers) of a sender, to a target.
pub fn arp(to: Mac, operation: u8, sender: (Mac, Ipv4Addr), target: Ipv4Addr, marker: &Marker) -> Vec<u8> {
    let mut frame = ethernet(to, sender.0, 0x0806);
    frame.extend_from_slice(&[0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend_from_slice(&sender.0.octets());
    frame.extend_from_slice(&sender.1.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&target.octets());
    frame.extend_from_slice(marker);
    frame
}

/// An IPv6 packet without anything in it but the marker, between addresses made of MACs.
pub fn ipv6(to: Mac, from: Mac, marker: &Marker) -> Vec<u8> {
    let mut frame = ethernet(to, from, 0x86dd);
    // No next header.
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, marker.len() as u8, 59, 64]);
    for mac in [from, to] {
        frame.extend_from_slice(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&mac.octets());
    }
    frame.extend_from_slice(marker);
    frame
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Does a frame hold the marker?
pub fn holds(frame: &[u8], marker: &Marker) -> bool {
    frame.windows(marker.len()).any(|window| window == marker)
}

/// The type of an ICMP message.
pub fn icmp(frame: &[u8]) -> Option<u8> {
    (frame.get(12..14)? == [0x08, 0] && *frame.get(23)? == 1).then_some(*frame.get(34)?)
}

/// The MAC that an ARP answer gives for an address.
pub fn mac_of(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let is_answer = frame.get(12..14)? == [0x08, 0x06] && frame.get(20..22)? == [0, 2];
    let sender: [u8; 6] = frame.get(22..28)?.try_into().ok()?;
    (is_answer && frame.get(28..32)? == address.octets()).then_some(Mac::new(sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac::new([2, 0xfc, 0, 3, 0, 3]);

    #[test]
    fn a_packet_sums_up_to_nothing() {
        let marker = *b"twelve bytes";
        let ip = Ipv4Addr::new(10, 240, 3, 3);
        let ping =
            Packet { to_mac: BROADCAST, from_mac: MAC, from: ip, to: ip, body: Body::Ping }.frame(&marker);
        assert_eq!((checksum(&ping[14..34]), checksum(&ping[34..])), (0, 0));
        assert_eq!((icmp(&ping), holds(&ping, &marker)), (Some(8), true));
        assert_eq!(icmp(&tagged(ping, 5)), None);
    }

    #[test]
    fn an_answer_gives_its_senders_mac() {
        let ip = Ipv4Addr::new(10, 240, 3, 1);
        let answer = arp(BROADCAST, 2, (MAC, ip), ip, &[0; 12]);
        assert_eq!(mac_of(&answer, ip), Some(MAC));
        assert_eq!(mac_of(&answer, Ipv4Addr::new(10, 240, 3, 2)), None);
        assert_eq!(mac_of(&arp(BROADCAST, 1, (MAC, ip), ip, &[0; 12]), ip), None);
        assert_eq!(mac_of(&[1, 2, 3], ip), None);
    }
}
