//! Ethernet frames, built byte by byte: what a guest may send, and everything that it may not.

use std::net::Ipv4Addr;

pub type Mac = [u8; 6];

pub const BROADCAST: Mac = [0xff; 6];

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// Bytes by which a frame is recognised wherever it, or an answer that quotes it, turns up.
pub type Marker = [u8; 8];

/// What an IPv4 packet carries.
#[derive(Debug, Clone, Copy)]
pub enum Body {
    Echo { kind: u8, id: u16 },
    Udp { from: u16, to: u16 },
    Tcp { from: u16, to: u16, flags: u8, mss: Option<u16> },
}

/// A VLAN tag.
#[derive(Debug, Clone, Copy)]
pub struct Tag {
    pub protocol: u16,
    pub id: u16,
}

/// An IPv4 packet in its frame.
#[derive(Debug, Clone)]
pub struct Packet {
    pub to_mac: Mac,
    pub from_mac: Mac,
    pub from: Ipv4Addr,
    pub to: Ipv4Addr,
    pub body: Body,
    pub tag: Option<Tag>,
}

impl Packet {
    pub fn via(mut self, mac: Mac) -> Self {
        self.to_mac = mac;
        self
    }

    pub fn by(mut self, mac: Mac) -> Self {
        self.from_mac = mac;
        self
    }

    pub fn claiming(mut self, ip: Ipv4Addr) -> Self {
        self.from = ip;
        self
    }

    pub fn tagged(mut self, protocol: u16, id: u16) -> Self {
        self.tag = Some(Tag { protocol, id });
        self
    }

    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// The frame, with the marker as the last bytes of the packet.
    pub fn frame(&self, marker: Marker) -> Vec<u8> {
        let (protocol, segment) = self.segment(marker);
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        ip[2..4].copy_from_slice(&((20 + segment.len()) as u16).to_be_bytes());
        ip.extend(self.from.octets());
        ip.extend(self.to.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(segment);
        let mut frame = Vec::with_capacity(18 + ip.len());
        frame.extend(self.to_mac);
        frame.extend(self.from_mac);
        if let Some(Tag { protocol, id }) = self.tag {
            frame.extend(protocol.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend([0x08, 0x00]);
        frame.extend(ip);
        frame
    }

    fn segment(&self, marker: Marker) -> (u8, Vec<u8>) {
        match self.body {
            Body::Echo { kind, id } => {
                let mut bytes = vec![kind, 0, 0, 0];
                bytes.extend(id.to_be_bytes());
                bytes.extend([0, 1]);
                bytes.extend(marker);
                let sum = checksum(&bytes);
                bytes[2..4].copy_from_slice(&sum.to_be_bytes());
                (1, bytes)
            }
            Body::Udp { from, to } => {
                let mut bytes = Vec::new();
                bytes.extend(from.to_be_bytes());
                bytes.extend(to.to_be_bytes());
                bytes.extend((8 + marker.len() as u16).to_be_bytes());
                // No checksum: allowed in IPv4.
                bytes.extend([0, 0]);
                bytes.extend(marker);
                (17, bytes)
            }
            Body::Tcp { from, to, flags, mss } => {
                let mut bytes = Vec::new();
                bytes.extend(from.to_be_bytes());
                bytes.extend(to.to_be_bytes());
                bytes.extend(1000_u32.to_be_bytes());
                bytes.extend(if flags & ACK != 0 { 1009_u32 } else { 0 }.to_be_bytes());
                bytes.push(if mss.is_some() { 0x60 } else { 0x50 });
                bytes.push(flags);
                bytes.extend([0xff, 0xff, 0, 0, 0, 0]);
                if let Some(mss) = mss {
                    bytes.extend([2, 4]);
                    bytes.extend(mss.to_be_bytes());
                }
                bytes.extend(marker);
                let mut pseudo = Vec::new();
                pseudo.extend(self.from.octets());
                pseudo.extend(self.to.octets());
                pseudo.extend([0, 6]);
                pseudo.extend((bytes.len() as u16).to_be_bytes());
                pseudo.extend(&bytes);
                let sum = checksum(&pseudo);
                bytes[16..18].copy_from_slice(&sum.to_be_bytes());
                (6, bytes)
            }
        }
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An ARP message in its frame.
#[derive(Debug, Clone, Copy)]
pub struct Arp {
    pub to_mac: Mac,
    pub from_mac: Mac,
    /// 1 asks, 2 answers.
    pub operation: u16,
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target_mac: Mac,
    pub target: Ipv4Addr,
}

impl Arp {
    /// The frame, with the marker in its padding.
    pub fn frame(&self, marker: Marker) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.to_mac);
        frame.extend(self.from_mac);
        frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
        frame.extend(self.operation.to_be_bytes());
        frame.extend(self.sender_mac);
        frame.extend(self.sender.octets());
        frame.extend(self.target_mac);
        frame.extend(self.target.octets());
        frame.extend(marker);
        frame
    }
}

/// A frame of any type.
pub fn raw(to: Mac, from: Mac, ethertype: u16, payload: &[u8], marker: Marker) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(from);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame.extend(marker);
    frame
}

/// An ICMPv6 echo request.
pub fn ipv6_echo(
    to: Mac,
    from: Mac,
    source: std::net::Ipv6Addr,
    target: std::net::Ipv6Addr,
    marker: Marker,
) -> Vec<u8> {
    let mut icmp = vec![128, 0, 0, 0, 0, 1, 0, 1];
    icmp.extend(marker);
    let mut pseudo = Vec::new();
    pseudo.extend(source.octets());
    pseudo.extend(target.octets());
    pseudo.extend((icmp.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(&icmp);
    let sum = checksum(&pseudo);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((icmp.len() as u16).to_be_bytes());
    packet.extend([58, 64]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend(icmp);
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(from);
    frame.extend([0x86, 0xdd]);
    frame.extend(packet);
    frame
}

/// What a frame that was seen says.
#[derive(Debug, Clone)]
pub struct Seen(pub Vec<u8>);

impl Seen {
    pub fn has(&self, marker: &[u8]) -> bool {
        self.0.windows(marker.len()).any(|window| window == marker)
    }

    pub fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.0[12], self.0[13]])
    }

    pub fn is_ip(&self) -> bool {
        self.ethertype() == 0x0800
    }

    pub fn is_arp(&self) -> bool {
        self.ethertype() == 0x0806
    }

    pub fn ip(&self, at: usize) -> Ipv4Addr {
        let bytes: [u8; 4] = self.0[at..at + 4].try_into().expect("four bytes");
        bytes.into()
    }

    pub fn source(&self) -> Ipv4Addr {
        self.ip(26)
    }

    pub fn target(&self) -> Ipv4Addr {
        self.ip(30)
    }

    /// Type and code of an ICMP message.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        (self.is_ip() && self.0[23] == 1).then(|| (self.0[34], self.0[35]))
    }

    /// The ports of a UDP or TCP packet, from and to.
    pub fn ports(&self) -> (u16, u16) {
        let port = |at: usize| u16::from_be_bytes([self.0[at], self.0[at + 1]]);
        (port(34), port(36))
    }

    /// The maximum segment size of a SYN.
    pub fn mss(&self) -> Option<u16> {
        let tcp = self.0.get(34..).filter(|_| self.is_ip() && self.0[23] == 6)?;
        (tcp[12] >> 4 >= 6 && tcp[20] == 2).then(|| u16::from_be_bytes([tcp[22], tcp[23]]))
    }
}
