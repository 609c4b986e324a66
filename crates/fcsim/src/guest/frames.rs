//! Ethernet frames by hand: ARP, ICMP echo, a TCP segment without data. Parsing takes anything.

use std::net::Ipv4Addr;

/// A MAC address in bytes.
pub(crate) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const ICMP: u8 = 1;
const TCP: u8 = 6;
/// TCP flags.
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// What a frame is, as far as the guest cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    ArpRequest {
        sender_mac: Mac,
        sender: Ipv4Addr,
        target: Ipv4Addr,
    },
    ArpReply {
        sender_mac: Mac,
        sender: Ipv4Addr,
    },
    EchoRequest {
        from_mac: Mac,
        from: Ipv4Addr,
        to: Ipv4Addr,
        rest: Vec<u8>,
    },
    EchoReply {
        from: Ipv4Addr,
        id: u16,
        seq: u16,
    },
    /// Destination unreachable, with the ports of the TCP segment that it is about (or zeroes).
    Unreachable {
        code: u8,
        to: Ipv4Addr,
        source_port: u16,
        port: u16,
    },
    Tcp {
        from_mac: Mac,
        from: Ipv4Addr,
        to: Ipv4Addr,
        source_port: u16,
        port: u16,
        seq: u32,
        flags: u8,
    },
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn ip_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?))
}

fn mac_at(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..at + 6)?.try_into().ok()
}

/// The frame's type.
pub(crate) fn ethertype(frame: &[u8]) -> Option<u16> {
    u16_at(frame, 12)
}

/// Understands a frame, or does not.
pub(crate) fn parse(frame: &[u8]) -> Option<Packet> {
    let payload = frame.get(14..)?;
    match ethertype(frame)? {
        ARP => parse_arp(payload),
        IPV4 => parse_ip(mac_at(frame, 6)?, payload),
        _ => None,
    }
}

fn parse_arp(arp: &[u8]) -> Option<Packet> {
    if arp.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let (sender_mac, sender, target) = (mac_at(arp, 8)?, ip_at(arp, 14)?, ip_at(arp, 24)?);
    match u16_at(arp, 6)? {
        1 => Some(Packet::ArpRequest { sender_mac, sender, target }),
        2 => Some(Packet::ArpReply { sender_mac, sender }),
        _ => None,
    }
}

/// Header of an IPv4 packet: protocol, addresses, payload without padding.
fn ip_parts(ip: &[u8]) -> Option<(u8, Ipv4Addr, Ipv4Addr, &[u8])> {
    let first = *ip.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    let total = usize::from(u16_at(ip, 2)?).min(ip.len());
    Some((*ip.get(9)?, ip_at(ip, 12)?, ip_at(ip, 16)?, ip.get(header..total)?))
}

fn parse_ip(from_mac: Mac, ip: &[u8]) -> Option<Packet> {
    let (protocol, from, to, payload) = ip_parts(ip)?;
    match (protocol, *payload.first()?) {
        (ICMP, 8) => Some(Packet::EchoRequest { from_mac, from, to, rest: payload.get(4..)?.to_vec() }),
        (ICMP, 0) => Some(Packet::EchoReply { from, id: u16_at(payload, 4)?, seq: u16_at(payload, 6)? }),
        (ICMP, 3) => {
            // the quote may be cut after the first 8 bytes of the segment
            let quote = payload.get(8..)?;
            let header = usize::from(quote.first()? & 0x0f) * 4;
            let ports = |at| u16_at(quote, header + at).unwrap_or(0);
            Some(Packet::Unreachable {
                code: *payload.get(1)?,
                to: ip_at(quote, 16)?,
                source_port: ports(0),
                port: ports(2),
            })
        }
        (TCP, _) => Some(Packet::Tcp {
            from_mac,
            from,
            to,
            source_port: u16_at(payload, 0)?,
            port: u16_at(payload, 2)?,
            seq: u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?),
            flags: *payload.get(13)?,
        }),
        _ => None,
    }
}

fn ethernet(from: Mac, to: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

fn arp(operation: u16, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), ethernet_to: Mac) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4];
    payload.extend(operation.to_be_bytes());
    payload.extend(from.0);
    payload.extend(from.1.octets());
    payload.extend(to.0);
    payload.extend(to.1.octets());
    ethernet(from.0, ethernet_to, ARP, &payload)
}

/// "Who has `target`?"
pub(crate) fn arp_request(from: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    arp(1, from, ([0; 6], target), BROADCAST)
}

/// "`from.1` is at `from.0`."
pub(crate) fn arp_reply(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    arp(2, from, to, to.0)
}

/// The Internet checksum.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn ipv4(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    // payloads are an echo of what fitted in one frame, or 20 bytes
    let total = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from.1.octets());
    header.extend(to.1.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    ethernet(from.0, to.0, IPV4, &header)
}

fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(rest);
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An echo request.
pub(crate) fn echo_request(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), id: u16, seq: u16) -> Vec<u8> {
    let mut rest = [id.to_be_bytes(), seq.to_be_bytes()].concat();
    rest.extend(b"fcsim echo request, 32 bytes....");
    ipv4(from, to, ICMP, &icmp(8, &rest))
}

/// The answer to an echo request, with what it carried.
pub(crate) fn echo_reply(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), rest: &[u8]) -> Vec<u8> {
    ipv4(from, to, ICMP, &icmp(0, rest))
}

/// A TCP segment without data.
pub(crate) fn tcp(
    from: (Mac, Ipv4Addr),
    to: (Mac, Ipv4Addr),
    ports: (u16, u16),
    (seq, ack): (u32, u32),
    flags: u8,
) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&from.1.octets()[..], &to.1.octets(), &[0, TCP, 0, 20]].concat();
    let sum = checksum(&[&pseudo, &segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(from, to, TCP, &segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: (Mac, Ipv4Addr) = ([2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 240, 3, 3));
    const B: (Mac, Ipv4Addr) = ([2, 0, 0, 0, 0, 2], Ipv4Addr::new(10, 240, 3, 4));

    #[test]
    fn what_is_built_is_understood() {
        assert_eq!(
            parse(&arp_request(A, B.1)),
            Some(Packet::ArpRequest { sender_mac: A.0, sender: A.1, target: B.1 })
        );
        assert_eq!(parse(&arp_reply(A, B)), Some(Packet::ArpReply { sender_mac: A.0, sender: A.1 }));
        assert_eq!(
            parse(&echo_reply(A, B, &[0, 1, 0, 2])),
            Some(Packet::EchoReply { from: A.1, id: 1, seq: 2 })
        );
        let syn = Packet::Tcp {
            from_mac: A.0,
            from: A.1,
            to: B.1,
            source_port: 4000,
            port: 80,
            seq: 9,
            flags: SYN,
        };
        assert_eq!(parse(&tcp(A, B, (4000, 80), (9, 0), SYN)), Some(syn));
    }

    #[test]
    fn checksums_add_up_to_nothing() {
        let frame = echo_request(A, B, 7, 1);
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        assert_eq!(checksum(&[&frame[34..]]), 0);
    }

    #[test]
    fn a_cut_frame_is_no_packet() {
        for frame in [echo_request(A, B, 7, 1), arp_request(A, B.1), tcp(A, B, (1, 2), (3, 4), ACK)] {
            for length in 0..33 {
                assert_eq!(parse(&frame[..length]), None);
            }
        }
    }
}
