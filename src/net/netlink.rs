//! Netlink messages and a blocking socket: just what links, addresses, neighbours, routes, nftables' elements and
//! conntrack need, with one small coder for all of them.

use std::{io, mem::size_of, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
};

/// `NLM_F_REQUEST | NLM_F_ACK`
pub const REQUEST: u16 = 0x5;
/// `NLM_F_CREATE`
pub const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_REPLACE`
pub const REPLACE: u16 = 0x100;
/// `NLM_F_DUMP`
pub const DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A message in the making.
#[derive(Debug, Clone)]
pub struct Message(Vec<u8>);

impl Message {
    /// A message of a type, with flags and the fixed part of its family.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Self(bytes);
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// With an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        // An attribute's length has 16 bits; what mvm sends is far shorter.
        let length = (4 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    /// With an attribute that holds a text and its final zero.
    pub fn with_text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.with(kind, &bytes)
    }

    /// With an attribute that holds others.
    pub fn with_nested(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        let mut message = inside(self);
        let length = (message.0.len() - start) as u16;
        message.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// The attributes in some bytes, as type and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of one attribute.
pub fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A number in the machine's order.
pub fn number(bytes: &[u8]) -> Option<u32> {
    match bytes.len() {
        1 => Some(bytes[0].into()),
        2 => Some(u16::from_ne_bytes(bytes.try_into().ok()?).into()),
        4 => Some(u32::from_ne_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// A text up to its final zero.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket for links, addresses, neighbours and routes.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn route() -> io::Result<Self> {
        Self::open(None)
    }

    /// A socket for nftables and conntrack. Closing it waits for a grace period of the kernel: keep it.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// The protocol of links is number 0, which is none.
    fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        // Large batches and dumps must fit; the limit of the system counts where this is refused.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&fd, 4 << 20);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&fd, 4 << 20);
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one request and waits for its acknowledgement.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message, |_, _| ())
    }

    /// Sends one request and gives each answer's type and payload to `each`.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn exchange(&mut self, message: Message, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(&message.finish(sequence))?;
        self.receive(|seen, kind, payload| {
            if seen != sequence {
                return Ok(false);
            }
            match kind {
                DONE => Ok(true),
                ERROR => match payload.get(..4).and_then(number).unwrap_or(0).cast_signed() {
                    0 => Ok(true),
                    code => Err(io::Error::from_raw_os_error(-code)),
                },
                _ => {
                    each(kind, payload);
                    Ok(false)
                }
            }
        })
    }

    /// Sends messages between a beginning and an end, as one transaction, and waits for every acknowledgement.
    ///
    /// # Errors
    /// The first that the kernel answered; then none of the messages took effect.
    pub fn batch(&mut self, begin: Message, messages: Vec<Message>, end: Message) -> io::Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let first = self.sequence + 1;
        let mut bytes = begin.finish(first);
        let mut waiting = messages.len();
        self.sequence = first + waiting as u32 + 1;
        for (number, message) in messages.into_iter().enumerate() {
            bytes.extend(message.finish(first + 1 + number as u32));
        }
        let last = self.sequence;
        bytes.extend(end.finish(last));
        self.send(&bytes)?;
        let mut failed = None;
        self.receive(|sequence, kind, payload| {
            if !(first..=last).contains(&sequence) || kind != ERROR {
                return Ok(false);
            }
            let code = payload.get(..4).and_then(number).unwrap_or(0).cast_signed();
            if code != 0 {
                failed.get_or_insert(io::Error::from_raw_os_error(-code));
            }
            if sequence == first {
                // The beginning is answered only where the whole is refused.
                return Ok(true);
            }
            waiting -= 1;
            Ok(waiting == 0)
        })?;
        failed.map_or(Ok(()), Err)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// Reads messages until `each` says that it has the last one. Every exchange ends with an acknowledgement, or the end
    /// of a dump: the kernel answers at once.
    fn receive(&self, mut each: impl FnMut(u32, u16, &[u8]) -> io::Result<bool>) -> io::Result<()> {
        let mut buffer = vec![0_u8; 256 << 10];
        loop {
            let (length, _) = rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while rest.len() >= 16 {
                let field = |at: usize| number(&rest[at..at + 4]).unwrap_or(0);
                let size = field(0) as usize;
                let kind = number(&rest[4..6]).unwrap_or(0) as u16;
                let Some(payload) = rest.get(16..size) else { break };
                if each(field(8), kind, payload)? {
                    return Ok(());
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// The fixed part of link messages.
pub fn link_header(family: u8, index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut bytes = vec![family, 0, 0, 0];
    bytes.extend_from_slice(&index.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&change.to_ne_bytes());
    debug_assert_eq!(bytes.len(), size_of::<u32>() * 4);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let message = Message::new(16, REQUEST, &link_header(0, 0, 0, 0))
            .with_text(3, "br-tenant-3")
            .with_nested(18, |inner| inner.with_text(1, "bridge").with(2, &7_u32.to_ne_bytes()));
        let bytes = message.finish(1);
        let body = &bytes[32..];
        assert_eq!(text(attribute(body, 3).unwrap()), "br-tenant-3");
        let inner = attribute(body, 18).unwrap();
        assert_eq!(
            (text(attribute(inner, 1).unwrap()), number(attribute(inner, 2).unwrap())),
            ("bridge".into(), Some(7))
        );
        assert_eq!(number(&bytes[..4]), Some(bytes.len() as u32));
    }

    #[test]
    fn cut_attributes_end_the_list() {
        for junk in [&[][..], &[1], &[200, 0, 1, 0], &[0, 0, 0, 0]] {
            assert_eq!(attributes(junk).count(), 0);
        }
    }
}
