//! What the story needs of guests: something to boot, and a way to tell a simulated one what to do.

use std::{
    io::{self, BufRead, BufReader, Write},
    path::Path,
    time::Duration,
};

use serde_json::Value;

use crate::{
    vm::instance::fc_config::files,
    vmm::client::{CALL_LIMIT, connect_in},
};

/// The simulated guest's control port.
const CONTROL: u32 = 1024;

/// A kernel of a few dozen bytes, which prints a line on the serial port and halts.
pub fn tiny_kernel() -> Vec<u8> {
    const TEXT: &[u8] = b"tiny guest: up\n";
    let mut code = vec![
        0x66,
        0xba,
        0xf8,
        0x03, // mov dx, 0x3f8
        0x48,
        0x8d,
        0x35,
        0x0c,
        0,
        0,
        0, // lea rsi, [rip + 12]
        0xb9,
        TEXT.len() as u8,
        0,
        0,
        0,    // mov ecx, length
        0xac, // next: lodsb
        0xee, // out dx, al
        0xe2,
        0xfc, // loop next
        0xf4, // stop: hlt
        0xeb,
        0xfd, // jmp stop
    ];
    code.extend_from_slice(TEXT);
    kernel(&code)
}

/// A kernel that is this code: an ELF that is loaded at 16 MiB and entered at its first byte.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 16 << 20;
    let mut elf = Vec::with_capacity(0x1000 + code.len());
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend_from_slice(&2_u16.to_le_bytes()); // an executable
    elf.extend_from_slice(&62_u16.to_le_bytes()); // for x86-64
    elf.extend_from_slice(&1_u32.to_le_bytes());
    elf.extend_from_slice(&ENTRY.to_le_bytes());
    elf.extend_from_slice(&64_u64.to_le_bytes()); // the program header follows
    elf.extend_from_slice(&0_u64.to_le_bytes());
    elf.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1_u32.to_le_bytes()); // load
    elf.extend_from_slice(&7_u32.to_le_bytes()); // read, write, execute
    for word in [0x1000, ENTRY, ENTRY, code.len() as u64, code.len() as u64, 0x1000] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.resize(0x1000, 0);
    elf.extend_from_slice(code);
    elf
}

/// Tells a simulated guest what to do and returns what it answers.
///
/// # Errors
/// When it does not answer, or refuses.
pub fn tell(vmm_directory: &Path, command: &Value) -> io::Result<Value> {
    let mut stream = connect_in(vmm_directory, files::VSOCK, CALL_LIMIT)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("CONNECT {CONTROL}\n").as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.starts_with("OK ") {
        return Err(io::Error::other(format!("the guest answered {line:?}")));
    }
    stream.write_all(format!("{command}\n").as_bytes())?;
    line.clear();
    reader.read_line(&mut line)?;
    let answer: Value = serde_json::from_str(&line).map_err(io::Error::other)?;
    match answer.get("error") {
        Some(error) => Err(io::Error::other(format!("the guest refused: {error}"))),
        None => Ok(answer),
    }
}
