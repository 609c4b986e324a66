//! Elements of nftables' sets and maps over nfnetlink: one lease's in one transaction, and whole sets read back.
//!
//! An `nft` process costs 6 to 19 ms; this costs well under one. Layouts are those of
//! linux/netfilter/nf_tables.h: fields of a concatenated key are padded to 4 bytes each.

use std::{io, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{
    egress::Protocol,
    error::NetError,
    netlink::{self, CREATE, DUMP, Message, REQUEST, Socket},
};
use crate::vm::naming::Mac;

/// `NFPROTO_INET`
pub const INET: u8 = 1;
/// `NFPROTO_BRIDGE`
pub const BRIDGE: u8 = 7;

const SUBSYSTEM: u16 = 10 << 8;
const GETTABLE: u16 = SUBSYSTEM | 1;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
const DELSETELEM: u16 = SUBSYSTEM | 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const TABLE: &str = "mvm";

/// A field of a key or of data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// An interface's name.
    Name(String),
    /// A MAC.
    Mac(Mac),
    /// An address.
    Ip(Ipv4Addr),
    /// TCP or UDP.
    Protocol(Protocol),
    /// A port.
    Port(u16),
}

/// What a map's element leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A chain.
    Jump(String),
    /// Data.
    Data(Vec<Key>),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The table's family.
    pub family: u8,
    /// The set.
    pub set: String,
    /// Its key.
    pub key: Vec<Key>,
    /// What it leads to, in a map.
    pub value: Option<Value>,
}

impl Element {
    /// An element of the inet table.
    pub fn inet(set: impl Into<String>, key: Vec<Key>) -> Self {
        Self { family: INET, set: set.into(), key, value: None }
    }

    /// An element of the bridge table.
    pub fn bridge(set: impl Into<String>, key: Vec<Key>) -> Self {
        Self { family: BRIDGE, set: set.into(), key, value: None }
    }

    /// Leading to something.
    pub fn with(mut self, value: Value) -> Self {
        self.value = Some(value);
        self
    }

    /// Its key as the kernel holds it.
    pub fn key_bytes(&self) -> Vec<u8> {
        encode(&self.key)
    }

    /// What it leads to, as the kernel shows it: a verdict's chain, or data.
    pub fn value_bytes(&self) -> Vec<u8> {
        match &self.value {
            None => Vec::new(),
            Some(Value::Jump(chain)) => chain.as_bytes().to_vec(),
            Some(Value::Data(data)) => encode(data),
        }
    }

    fn put(&self, message: Message) -> Message {
        // NFTA_LIST_ELEM { NFTA_SET_ELEM_KEY { NFTA_DATA_VALUE }, NFTA_SET_ELEM_DATA { … } }
        message.with_nested(1, |element| {
            let element = element.with_nested(1, |key| key.with(1, &self.key_bytes()));
            let verdict = |element: Message, code: i32, chain: &str| {
                // NFTA_DATA_VERDICT { NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN }
                element.with_nested(2, |data| {
                    data.with_nested(2, |verdict| verdict.with(1, &code.to_be_bytes()).with_text(2, chain))
                })
            };
            match &self.value {
                None => element,
                Some(Value::Jump(chain)) => verdict(element, -3, chain),
                Some(Value::Data(data)) => element.with_nested(2, |value| value.with(1, &encode(data))),
            }
        })
    }
}

fn encode(fields: &[Key]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    for field in fields {
        match field {
            Key::Name(name) => {
                let start = bytes.len();
                bytes.extend_from_slice(name.as_bytes());
                bytes.resize(start + 16, 0);
            }
            Key::Mac(mac) => bytes.extend_from_slice(&mac.octets()),
            Key::Ip(ip) => bytes.extend_from_slice(&ip.octets()),
            Key::Protocol(Protocol::Tcp) => bytes.push(6),
            Key::Protocol(Protocol::Udp) => bytes.push(17),
            Key::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
        }
        // A key of one field is as long as the field; MACs stand only in keys of several.
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn generic(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// What to do with elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Add,
    Remove,
}

fn change(change: Change, elements: &[Element]) -> Vec<Message> {
    let (kind, flags) = match change {
        Change::Add => (NEWSETELEM, REQUEST | CREATE),
        Change::Remove => (DELSETELEM, REQUEST),
    };
    elements
        .iter()
        .map(|element| {
            Message::new(kind, flags, &generic(element.family))
                .with_text(1, TABLE)
                .with_text(2, &element.set)
                .with_nested(3, |list| element.put(list))
        })
        .collect()
}

/// Sends messages as one transaction: all of them take effect at once, or none.
fn transact(socket: &mut Socket, messages: Vec<Message>) -> io::Result<()> {
    // struct nfgenmsg with the subsystem as res_id, in network order.
    let edge = |kind| Message::new(kind, 1, &[0, 0, 0, 10]);
    socket.batch(edge(BATCH_BEGIN), messages, edge(BATCH_END))
}

/// Adds elements in one transaction; those that are there already stay, one that led elsewhere leads here now.
///
/// # Errors
/// When the kernel refuses; then none was added.
pub fn add(socket: &mut Socket, elements: &[Element]) -> Result<(), NetError> {
    match transact(socket, change(Change::Add, elements)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EBUSY)) => {
            let maps: Vec<Element> =
                elements.iter().filter(|element| element.value.is_some()).cloned().collect();
            for map in &maps {
                remove(socket, std::slice::from_ref(map))?;
            }
            transact(socket, change(Change::Add, elements))
        }
        result => result,
    }
    .map_err(NetError::kernel("add elements to", "the rules"))
}

/// Replaces elements of maps: the key stays, what it leads to changes, in one transaction.
///
/// # Errors
/// When the kernel refuses; then none was changed.
pub fn replace(socket: &mut Socket, elements: &[Element]) -> Result<(), NetError> {
    let mut messages = change(Change::Remove, elements);
    messages.extend(change(Change::Add, elements));
    match transact(socket, messages) {
        // One that is not there yet fails the transaction: then one by one.
        Err(error) if error.kind() == io::ErrorKind::NotFound && elements.len() > 1 => {
            elements.iter().try_for_each(|element| replace(socket, std::slice::from_ref(element)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => add(socket, elements),
        result => result.map_err(NetError::kernel("replace elements of", "the rules")),
    }
}

/// Removes elements in one transaction; those that are not there are well. They are asked for first: a transaction that
/// fails costs as much as one that does not, some 15 ms in which the kernel waits for every CPU.
///
/// # Errors
/// When the kernel refuses; then none was removed.
pub fn remove(socket: &mut Socket, elements: &[Element]) -> Result<(), NetError> {
    let mut there = Vec::with_capacity(elements.len());
    for element in elements {
        if is_there(socket, element)? {
            there.push(element.clone());
        }
    }
    transact(socket, change(Change::Remove, &there))
        .map_err(NetError::kernel("remove elements from", "the rules"))
}

fn is_there(socket: &mut Socket, element: &Element) -> Result<bool, NetError> {
    let key = element.key_bytes();
    let message = Message::new(GETSETELEM, REQUEST, &generic(element.family))
        .with_text(1, TABLE)
        .with_text(2, &element.set)
        .with_nested(3, |list| {
            list.with_nested(1, |element| element.with_nested(1, |field| field.with(1, &key)))
        });
    match socket.request(message) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(NetError::kernel("read the set", &element.set)(error)),
    }
}

/// Removes elements by the keys that the kernel showed.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_raw(socket: &mut Socket, family: u8, set: &str, keys: &[Vec<u8>]) -> Result<(), NetError> {
    for key in keys {
        let message = Message::new(DELSETELEM, REQUEST, &generic(family))
            .with_text(1, TABLE)
            .with_text(2, set)
            .with_nested(3, |list| {
                list.with_nested(1, |element| element.with_nested(1, |field| field.with(1, key)))
            });
        match transact(socket, vec![message]) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(NetError::kernel("remove an element from", set)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The elements of a set, as key and value bytes.
pub type Dump = Vec<(Vec<u8>, Vec<u8>)>;

/// All elements of a set; `None` where the set is not there.
///
/// # Errors
/// When the kernel refuses.
pub fn dump(socket: &mut Socket, family: u8, set: &str) -> Result<Option<Dump>, NetError> {
    let message =
        Message::new(GETSETELEM, REQUEST | DUMP, &generic(family)).with_text(1, TABLE).with_text(2, set);
    let mut all = Vec::new();
    let read = socket.exchange(message, |_, payload| {
        let Some(list) = payload.get(4..).and_then(|body| netlink::attribute(body, 3)) else {
            return;
        };
        all.extend(netlink::attributes(list).filter_map(|(_, element)| parse(element)));
    });
    match read {
        Ok(()) => Ok(Some(all)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NetError::kernel("read the set", set)(error)),
    }
}

/// The addresses that an interval set covers, as first and last of each run.
pub type Ranges = Vec<(u32, u32)>;

/// What an interval set of addresses covers; `None` where the set is not there.
///
/// # Errors
/// When the kernel refuses.
pub fn dump_ranges(socket: &mut Socket, set: &str) -> Result<Option<Ranges>, NetError> {
    let message =
        Message::new(GETSETELEM, REQUEST | DUMP, &generic(INET)).with_text(1, TABLE).with_text(2, set);
    let mut edges: Vec<(u32, bool)> = Vec::new();
    let read = socket.exchange(message, |_, payload| {
        let Some(list) = payload.get(4..).and_then(|body| netlink::attribute(body, 3)) else {
            return;
        };
        for (_, element) in netlink::attributes(list) {
            let Some((key, _)) = parse(element) else { continue };
            let Ok(key) = <[u8; 4]>::try_from(key.as_slice()) else { continue };
            // NFTA_SET_ELEM_FLAGS: NFT_SET_ELEM_INTERVAL_END, the first address that is no longer in it
            let end =
                netlink::attribute(element, 3).is_some_and(|flags| flags.last().is_some_and(|f| f & 1 != 0));
            edges.push((u32::from_be_bytes(key), !end));
        }
    });
    match read {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(NetError::kernel("read the set", set)(error)),
    }
    // Where one run ends and the next begins, the end comes first.
    edges.sort_unstable();
    let mut ranges = Vec::new();
    let mut open = None;
    for (key, begins) in edges {
        if begins {
            open.get_or_insert(key);
        } else if let Some(first) = open.take() {
            ranges.push((first, key.wrapping_sub(1)));
        }
    }
    ranges.extend(open.map(|first| (first, u32::MAX)));
    Ok(Some(joined(ranges)))
}

/// What networks cover.
pub fn ranges(nets: &[Ipv4Net]) -> Ranges {
    let mut ranges: Ranges = nets.iter().map(|net| (net.network().into(), net.broadcast().into())).collect();
    ranges.sort_unstable();
    joined(ranges)
}

/// Sorted runs, those that touch made one.
fn joined(ranges: Ranges) -> Ranges {
    let mut all: Ranges = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match all.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => all.push((first, last)),
        }
    }
    all
}

fn parse(element: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let key = netlink::attribute(netlink::attribute(element, 1)?, 1)?.to_vec();
    let value = netlink::attribute(element, 2).map_or(Vec::new(), |data| match netlink::attribute(data, 2) {
        Some(verdict) => {
            netlink::attribute(verdict, 2).map_or(Vec::new(), |chain| netlink::text(chain).into_bytes())
        }
        None => netlink::attribute(data, 1).unwrap_or_default().to_vec(),
    });
    Some((key, value))
}

/// The family's name, as `nft` has it.
pub fn family_name(family: u8) -> &'static str {
    match family {
        INET => "inet",
        BRIDGE => "bridge",
        3 => "arp",
        _ => "of another family",
    }
}

/// The tables named `mvm`, as family and comment.
///
/// # Errors
/// When the kernel refuses.
pub fn tables(socket: &mut Socket) -> Result<Vec<(u8, String)>, NetError> {
    let mut found = Vec::new();
    let message = Message::new(GETTABLE, REQUEST | DUMP, &generic(0));
    socket
        .exchange(message, |_, payload| {
            let Some(body) = payload.get(4..) else { return };
            if netlink::attribute(body, 1).map(netlink::text).as_deref() == Some(TABLE) {
                // NFTA_TABLE_USERDATA holds the comment, after its own type and length, with a zero at its end.
                let data = netlink::attribute(body, 6).unwrap_or_default();
                let comment = netlink::text(data.get(2..).unwrap_or_default());
                found.push((payload[0], comment));
            }
        })
        .map_err(NetError::kernel("list", "tables"))?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_padded_to_four_bytes() {
        let element = Element::bridge(
            "port_ip",
            vec![
                Key::Name("tn3i3".into()),
                Key::Mac(Mac::new([2, 0xfc, 0, 3, 0, 3])),
                Key::Ip([10, 240, 3, 3].into()),
            ],
        );
        let mut expected = b"tn3i3".to_vec();
        expected.resize(16, 0);
        expected.extend([2, 0xfc, 0, 3, 0, 3, 0, 0, 10, 240, 3, 3]);
        assert_eq!(element.key_bytes(), expected);
        let port = Element::inet("published", vec![Key::Protocol(Protocol::Tcp), Key::Port(8080)]);
        assert_eq!(port.key_bytes(), [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
    }

    #[test]
    fn runs_that_touch_are_one() {
        let nets = ["10.240.4.0/24", "10.240.3.0/24", "224.0.0.0/3"].map(|net| net.parse().unwrap());
        assert_eq!(ranges(&nets), [(0x0af0_0300, 0x0af0_04ff), (0xe000_0000, u32::MAX)]);
    }
}
