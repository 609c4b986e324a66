//! Ends flows: what was allowed once is asked again.

use std::net::Ipv4Addr;

use super::{
    egress::{Port, Protocol},
    error::NetError,
    netlink::{self, DUMP, Message, REQUEST, Socket},
};

/// `NFNL_SUBSYS_CTNETLINK`, get and delete.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const AF_INET: u8 = 2;

/// Removes every entry from, to, or answered by `ip`.
///
/// # Errors
/// When the kernel refuses.
pub fn flush(socket: &mut Socket, ip: Ipv4Addr) -> Result<(), NetError> {
    flush_where(socket, |original, reply| {
        [original, reply].into_iter().any(|tuple| addresses(tuple).any(|address| address == ip.octets()))
    })
    .map_err(NetError::kernel("end the flows of", ip))
}

/// Removes every entry that was opened to a port of the host.
///
/// # Errors
/// When the kernel refuses.
pub fn flush_port(socket: &mut Socket, port: Port) -> Result<(), NetError> {
    let number: u8 = match port.protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    flush_where(socket, |original, _| {
        // CTA_TUPLE_PROTO { CTA_PROTO_NUM, CTA_PROTO_DST_PORT }
        netlink::attribute(original, 2).is_some_and(|protocol| {
            netlink::attribute(protocol, 1) == Some(&[number])
                && netlink::attribute(protocol, 3) == Some(&port.host_port.to_be_bytes())
        })
    })
    .map_err(NetError::kernel("end the flows to", port))
}

/// Removes the entries whose tuples, the original and the reply's, are chosen.
fn flush_where(socket: &mut Socket, chosen: impl Fn(&[u8], &[u8]) -> bool) -> std::io::Result<()> {
    let mut tuples = Vec::new();
    let message = Message::new(GET, REQUEST | DUMP, &[AF_INET, 0, 0, 0]);
    let listed = socket.exchange(message, |_, payload| {
        let Some(body) = payload.get(4..) else { return };
        // CTA_TUPLE_ORIG and CTA_TUPLE_REPLY
        if let (Some(original), Some(reply)) = (netlink::attribute(body, 1), netlink::attribute(body, 2))
            && chosen(original, reply)
        {
            tuples.push(original.to_vec());
        }
    });
    match listed {
        // No conntrack in this kernel or namespace: no flows.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)) =>
        {
            return Ok(());
        }
        result => result?,
    }
    for tuple in tuples {
        match socket.request(Message::new(DELETE, REQUEST, &[AF_INET, 0, 0, 0]).with(1 | 0x8000, &tuple)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn addresses(tuple: &[u8]) -> impl Iterator<Item = &[u8]> {
    // CTA_TUPLE_IP { CTA_IP_V4_SRC, CTA_IP_V4_DST }
    let addresses = netlink::attribute(tuple, 1).unwrap_or_default();
    netlink::attributes(addresses).filter(|(kind, _)| matches!(kind, 1 | 2)).map(|(_, value)| value)
}
