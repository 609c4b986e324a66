//! Kernels and disks: what the VMs of the cases are made of.

use std::{fs, path::Path};

/// Where a kernel is loaded and entered.
const ENTRY: u64 = 16 << 20;

/// Puts into a folder what most cases need: `kernel`, `disk.img`, `junk`, `empty`.
pub fn write(dir: &Path) {
    let put = |name: &str, content: &[u8]| fs::write(dir.join(name), content).expect("it can be written");
    put("kernel", &tiny_kernel());
    put("junk", &[b'j'; 256]);
    put("empty", b"");
    let disk = fs::File::create(dir.join("disk.img")).expect("it can be made");
    disk.set_len(1 << 20).expect("it can be sized");
}

/// A guest that prints one line and halts.
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
    elf(&code)
}

/// A guest that goes on for ever: writes a count into one page after another, and prints a dot for each.
pub fn endless_kernel() -> Vec<u8> {
    elf(&[
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0x31, 0xdb, // xor ebx, ebx
        0xff, 0xc3, // next: inc ebx
        0x89, 0xd9, // mov ecx, ebx
        0x83, 0xe1, 0x3f, // and ecx, 63
        0xc1, 0xe1, 0x0c, // shl ecx, 12
        0x89, 0x99, 0x00, 0x00, 0x10, 0x01, // mov [rcx + 17 MiB], ebx
        0xb0, 0x2e, // mov al, '.'
        0xee, // out dx, al
        0xeb, 0xeb, // jmp next
    ])
}

/// An ELF of one segment.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend(2_u16.to_le_bytes()); // an executable
    elf.extend(62_u16.to_le_bytes()); // for x86-64
    elf.extend(1_u32.to_le_bytes());
    elf.extend(ENTRY.to_le_bytes());
    elf.extend(64_u64.to_le_bytes()); // the program header follows
    elf.extend([0; 12]);
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes()); // load
    elf.extend(7_u32.to_le_bytes()); // read, write, execute
    for word in [0x1000, ENTRY, ENTRY, code.len() as u64, code.len() as u64, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.resize(0x1000, 0);
    elf.extend(code);
    elf
}
