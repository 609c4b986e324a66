//! Route netlink, as much of it as one interface needs: requests, their answers, and attributes.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
    sendto, socket_with,
};

/// `NLM_F_REQUEST | NLM_F_ACK`
pub const REQUEST: u16 = 0x5;
/// `NLM_F_DUMP`
pub const DUMP: u16 = 0x300;
/// `NLM_F_CREATE | NLM_F_REPLACE`
pub const PUT: u16 = 0x500;

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Begins a message: its type, flags, and the fixed part of its family.
pub fn message(kind: u16, flags: u16, fixed: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(fixed);
    bytes
}

/// Adds an attribute.
pub fn add(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    // Addresses and numbers: a few bytes.
    bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
}

/// The value of an attribute.
pub fn get(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        if kind & 0x3fff == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// A number of 32 bits.
pub fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// A socket.
pub struct Socket(OwnedFd);

impl Socket {
    /// A new one.
    ///
    /// # Errors
    /// Where the kernel has none.
    pub fn open() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends a request, and gives the content of each answer to `each`, until the kernel has acknowledged it.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn ask(&self, mut message: Vec<u8>, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        sendto(&self.0, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        // What the kernel puts into one piece at most: netlink(7).
        let mut buffer = vec![0_u8; 8 << 10];
        loop {
            let (count, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..count];
            while let (Some(size), Some(kind)) = (number(rest), rest.get(4..6)) {
                let size = size as usize;
                let Some(content) = rest.get(HEADER..size) else { break };
                match u16::from_ne_bytes([kind[0], kind[1]]) {
                    DONE => return Ok(()),
                    ERROR => match number(content).unwrap_or(0).cast_signed() {
                        0 => return Ok(()),
                        code => return Err(io::Error::from_raw_os_error(-code)),
                    },
                    _ => each(content),
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    /// Sends a request that has no other answer than that it was done.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn tell(&self, message: Vec<u8>) -> io::Result<()> {
        self.ask(message, |_| {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_cut_ones_end_the_search() {
        let mut bytes = message(16, REQUEST, &[0; 16]);
        add(&mut bytes, 3, b"eth0\0");
        add(&mut bytes, 4, &1500_u32.to_ne_bytes());
        let attributes = &bytes[32..];
        assert_eq!(get(attributes, 3), Some(&b"eth0\0"[..]));
        assert_eq!(get(attributes, 4).and_then(number), Some(1500));
        assert_eq!(get(attributes, 5), None);
        for junk in [&[][..], &[1], &[200, 0, 1, 0], &[0, 0, 0, 0]] {
            assert_eq!(get(junk, 1), None);
        }
    }
}
