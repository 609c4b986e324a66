//! The simulator's control channel: one JSON request a line, one JSON answer a line; the README lists them.

use std::{
    net::Ipv4Addr,
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Memory, Shared, frames, lock,
    nic::{Nic, Silence, Spoofed, TcpAnswer},
    spawn,
};
use crate::wire::devices::MacAddr;

/// Bytes of a drive that one command reads or writes at most.
const MAX_BLOCK: usize = 64 << 10;
/// Pages that one command writes at most: more than there are.
const MAX_DIRTY: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    Ping {
        to: Ipv4Addr,
        #[serde(default = "second")]
        timeout_ms: u64,
        as_ip: Option<Ipv4Addr>,
        as_mac: Option<MacAddr>,
        iface: Option<String>,
    },
    Tcp {
        to: Ipv4Addr,
        port: u16,
        #[serde(default = "second")]
        timeout_ms: u64,
        as_ip: Option<Ipv4Addr>,
        as_mac: Option<MacAddr>,
        iface: Option<String>,
    },
    Send {
        frame: String,
        iface: Option<String>,
    },
    Recv {
        #[serde(default = "second")]
        timeout_ms: u64,
        ethertype: Option<u16>,
        contains: Option<String>,
        iface: Option<String>,
    },
    Listen {
        port: u16,
        iface: Option<String>,
    },
    Address {
        ip: Option<Ipv4Addr>,
        prefix: Option<u8>,
        gw: Option<Ipv4Addr>,
        mac: Option<MacAddr>,
        iface: Option<String>,
    },
    Print {
        text: String,
    },
    PrintForever {
        #[serde(default = "millisecond")]
        every_us: u64,
    },
    Dirty {
        pages: u64,
    },
    Checksum {},
    Info {},
    Exit {
        code: i32,
    },
    DiskWrite {
        drive: String,
        offset: u64,
        hex: String,
    },
    DiskRead {
        drive: String,
        offset: u64,
        len: usize,
    },
}

fn second() -> u64 {
    1000
}

fn millisecond() -> u64 {
    1000
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no such command: {0}")]
    Json(#[from] serde_json::Error),
    #[error("no network interface")]
    NoInterface,
    #[error("no such drive")]
    NoDrive,
    #[error("the drive is read-only")]
    ReadOnly,
    #[error("not pairs of hex digits")]
    Hex,
    #[error("at most {MAX_BLOCK} bytes")]
    TooMuch,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Corruption(#[from] super::heap::Corruption),
}

/// The answer to a line.
pub(super) fn answer(shared: &Arc<Shared>, line: &[u8]) -> Value {
    match serde_json::from_slice(line).map_err(Refusal::from).and_then(|command| perform(shared, command)) {
        Ok(answer) => answer,
        Err(refusal) => json!({ "error": refusal.to_string() }),
    }
}

fn until(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms.min(600_000))
}

fn perform(shared: &Arc<Shared>, command: Command) -> Result<Value, Refusal> {
    Ok(match command {
        Command::Ping { to, timeout_ms, as_ip, as_mac, iface } => {
            let spoofed = Spoofed { mac: as_mac.map(|mac| mac.0), ip: as_ip };
            match nic(shared, iface.as_deref())?.ping(to, spoofed, until(timeout_ms)) {
                Ok(time) => json!({ "answered": true, "ms": time.as_secs_f64() * 1000.0 }),
                Err(silence) => json!({ "answered": false, "arp": silence != Silence::Arp }),
            }
        }
        Command::Tcp { to, port, timeout_ms, as_ip, as_mac, iface } => {
            let spoofed = Spoofed { mac: as_mac.map(|mac| mac.0), ip: as_ip };
            match nic(shared, iface.as_deref())?.connect(to, port, spoofed, until(timeout_ms)) {
                Ok(TcpAnswer::Open) => json!({ "result": "open" }),
                Ok(TcpAnswer::Refused) => json!({ "result": "refused" }),
                Ok(TcpAnswer::Rejected) => json!({ "result": "rejected" }),
                Err(silence) => json!({ "result": "silent", "arp": silence != Silence::Arp }),
            }
        }
        Command::Send { frame, iface } => {
            let frame = from_hex(&frame)?;
            nic(shared, iface.as_deref())?.send(&frame)?;
            json!({ "sent": frame.len() })
        }
        Command::Recv { timeout_ms, ethertype, contains, iface } => {
            let contains = from_hex(&contains.unwrap_or_default())?;
            let wanted = |frame: &[u8]| {
                ethertype.is_none_or(|kind| frames::ethertype(frame) == Some(kind))
                    && (contains.is_empty() || frame.windows(contains.len()).any(|part| part == contains))
            };
            let frame = nic(shared, iface.as_deref())?.take(Instant::now() + until(timeout_ms), wanted);
            json!({ "frame": frame.map(|frame| to_hex(&frame)) })
        }
        Command::Listen { port, iface } => {
            nic(shared, iface.as_deref())?.listen(port);
            json!({ "listening": port })
        }
        Command::Address { ip, prefix, gw, mac, iface } => {
            let nic = nic(shared, iface.as_deref())?;
            let mut address = nic.address();
            address.ip = ip.or(address.ip);
            address.prefix = prefix.filter(|prefix| *prefix <= 32).unwrap_or(address.prefix);
            address.gateway = gw.or(address.gateway);
            address.mac = mac.map_or(address.mac, |mac| mac.0);
            nic.set_address(address);
            json!({ "ip": address.ip, "prefix": address.prefix, "gw": address.gateway,
                    "mac": MacAddr(address.mac).to_string() })
        }
        Command::Print { text } => {
            let _running = shared.gate.enter();
            shared.console.print(&text);
            json!({ "printed": text.len() + 1 })
        }
        Command::PrintForever { every_us } => {
            let shared = Arc::clone(shared);
            spawn("chatty", move || print_forever(&shared, Duration::from_micros(every_us)))?;
            json!({ "printing": true })
        }
        Command::Dirty { pages } => {
            let _running = shared.gate.enter();
            let mut memory = lock(&shared.memory);
            let Memory { image, heap } = &mut *memory;
            heap.dirty(image, pages.min(MAX_DIRTY));
            json!({ "dirtied": pages.min(MAX_DIRTY), "writes": heap.count() })
        }
        Command::Checksum {} => {
            let _running = shared.gate.enter();
            let memory = lock(&shared.memory);
            let sum = memory.heap.check(&memory.image)?;
            json!({ "sum": format!("{sum:016x}"), "writes": memory.heap.count() })
        }
        Command::Info {} => json!({
            "memory_mib": shared.memory_mib,
            "cmdline": shared.cmdline,
            "drives": lock(&shared.disks).iter().map(|disk| disk.id.clone()).collect::<Vec<_>>(),
            "interfaces": lock(&shared.nics).iter().map(|nic| nic.id.clone()).collect::<Vec<_>>(),
        }),
        Command::Exit { code } => {
            shared.exit.set(code);
            json!({ "exiting": code })
        }
        Command::DiskWrite { drive, offset, hex } => {
            let bytes = from_hex(&hex)?;
            if bytes.len() > MAX_BLOCK {
                return Err(Refusal::TooMuch);
            }
            let _running = shared.gate.enter();
            let disk = disk(shared, &drive)?;
            if disk.read_only {
                return Err(Refusal::ReadOnly);
            }
            let length = disk.file.metadata()?.len();
            if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > length) {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            disk.file.write_all_at(&bytes, offset)?;
            json!({ "written": bytes.len() })
        }
        Command::DiskRead { drive, offset, len } => {
            if len > MAX_BLOCK {
                return Err(Refusal::TooMuch);
            }
            let _running = shared.gate.enter();
            let mut bytes = vec![0; len];
            disk(shared, &drive)?.file.read_exact_at(&mut bytes, offset)?;
            json!({ "hex": to_hex(&bytes) })
        }
    })
}

fn print_forever(shared: &Shared, every: Duration) {
    for number in 0_u64.. {
        {
            let _running = shared.gate.enter();
            shared.console.print(&format!("fcsim guest: line {number} of a guest that never stops printing"));
        }
        std::thread::sleep(every);
    }
}

fn nic(shared: &Shared, id: Option<&str>) -> Result<Arc<Nic>, Refusal> {
    let nics = lock(&shared.nics);
    nics.iter().find(|nic| id.is_none_or(|id| nic.id == id)).cloned().ok_or(Refusal::NoInterface)
}

fn disk(shared: &Shared, id: &str) -> Result<super::Disk, Refusal> {
    lock(&shared.disks).iter().find(|disk| disk.id == id).cloned().ok_or(Refusal::NoDrive)
}

fn from_hex(text: &str) -> Result<Vec<u8>, Refusal> {
    let digit = |byte: u8| (byte as char).to_digit(16).ok_or(Refusal::Hex);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Refusal::Hex);
    }
    // two digits make at most 255
    pairs.iter().map(|[high, low]| Ok((digit(*high)? * 16 + digit(*low)?) as u8)).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(from_hex("00ffA1").unwrap(), [0, 255, 0xa1]);
        assert_eq!(to_hex(&[0, 255, 0xa1]), "00ffa1");
        assert!(from_hex("0").is_err() && from_hex("zz").is_err());
    }

    #[test]
    fn a_command_with_an_unknown_field_is_none() {
        assert!(serde_json::from_str::<Command>(r#"{"cmd":"dirty","pages":1,"more":2}"#).is_err());
        assert!(serde_json::from_str::<Command>(r#"{"cmd":"ping","to":"10.0.0.1"}"#).is_ok());
    }
}
