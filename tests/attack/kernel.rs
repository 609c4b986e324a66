//! A kernel that attacks the VMM around it: what no driver does, at random from a seed, so that a bad end can be seen again.

use std::arch::global_asm;

/// What it attacks.
#[derive(Debug, Clone, Copy)]
pub enum Attack {
    /// Registers of virtio devices, and what lies between them: any offset, width and value.
    Registers,
    /// Virtqueues of devices that were set up as a driver does: descriptors that point anywhere, of any length, in circles; headers
    /// of disks, frames and vsock packets that lie.
    Queues,
    /// I/O ports: any port, any value.
    Ports,
    /// Model-specific registers, but for those of the interrupt controller, by which it would put itself to sleep.
    Processor,
    /// As [`Attack::Queues`], with more in a queue than it has room for.
    Overfull,
}

/// A kernel that does so many rounds of it from this seed on, between [`BEGUN`] and [`DONE`]; that over and over.
pub fn kernel(attack: Attack, seed: u64, rounds: u64) -> Vec<u8> {
    let begin = &raw const attack_begin;
    let length = (&raw const attack_end).addr() - begin.addr();
    // SAFETY: that much code lies there, and nobody writes to it.
    let mut code = unsafe { std::slice::from_raw_parts(begin.cast::<u8>(), length).to_vec() };
    // Zero is the one state that the generator does not leave.
    for word in [attack as u64, seed | 1 << 63, rounds] {
        code.extend(word.to_le_bytes());
    }
    mvm::cli::kernel(&code)
}

/// What it prints when it begins.
pub const BEGUN: &str = "begun";
/// What it prints when it is through.
pub const DONE: &str = "through";

unsafe extern "C" {
    /// As long as the code is, which the assembler knows.
    static attack_begin: [u8; 0];
    static attack_end: [u8; 0];
}

// Entered in 64-bit mode at 16 MiB, with a code segment at 8 and the first GiB mapped, in a guest of 128 MiB. Stack below 18 MiB,
// tables of pages at 18 MiB, of interrupts at 20 MiB. Queues lie from 32 MiB on, what they point at follows.
//
// r15: the generator. r14: rounds left. r13: which attack. rdi: a device. r12: where its queues lie.
global_asm!(
    r#"
    .pushsection .rodata.attack, "a"
    .balign 16
    .globl attack_begin
    .hidden attack_begin
    .globl attack_end
    .hidden attack_end
attack_begin:
    mov esp, 0x1180000

    // Pages of 2 MiB for the first 5 GiB: devices lie below 4.
    mov edi, 0x1200000
    lea rax, [rdi + 0x1003]
    mov [rdi], rax
    lea rax, [rdi + 0x2003]
    xor ecx, ecx
2:  mov [rdi + rcx * 8 + 0x1000], rax
    add rax, 0x1000
    inc ecx
    cmp ecx, 5
    jb 2b
    mov eax, 0x83
    xor ecx, ecx
3:  mov [rdi + rcx * 8 + 0x2000], rax
    add rax, 0x200000
    inc ecx
    cmp ecx, 5 * 512
    jb 3b
    mov cr3, rdi

    // An instruction that is refused is skipped.
    mov edi, 0x1400000
    xor ecx, ecx
4:  lea rax, [rip + 90f]
    cmp ecx, 13
    jne 5f
    lea rax, [rip + 91f]
5:  mov [rdi], ax
    mov word ptr [rdi + 2], 8
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov [rdi + 6], ax
    mov qword ptr [rdi + 8], 0
    add edi, 16
    inc ecx
    cmp ecx, 256
    jb 4b
    mov word ptr [rdi], 4095
    mov qword ptr [rdi + 2], 0x1400000
    lidt [rdi]

    lea rsi, [rip + 96f]
    mov ecx, 7
    mov dx, 0x3f8
    rep outsb

    mov r13, [rip + attack_end]
    mov r15, [rip + attack_end + 8]
    mov r14, [rip + attack_end + 16]

7:  cmp r13d, 0
    je 70f
    cmp r13d, 1
    je 20f
    cmp r13d, 2
    je 30f
    cmp r13d, 3
    je 40f
    jmp 20f
8:  dec r14
    jnz 7b

    // It is through.
9:  lea rsi, [rip + 94f]
    mov ecx, 9
    mov dx, 0x3f8
    rep outsb
    mov ecx, 1000000
99: pause
    dec ecx
    jnz 99b
    jmp 9b

    // The next number: xorshift.
89: mov rax, r15
    shl rax, 13
    xor r15, rax
    mov rax, r15
    shr rax, 7
    xor r15, rax
    mov rax, r15
    shl rax, 17
    xor r15, rax
    mov rax, r15
    ret

    // Registers: in half of the cases one that a device has.
70: call 89b
    mov ebx, eax
    and ebx, 0xffff
    bt rax, 40
    jc 71f
    and ebx, 0xf1fc
71: mov edi, 0xc0000000
    add rdi, rbx
    bt rax, 41
    jc 73f
    mov rbx, rax
    call 89b
    bt rbx, 42
    jc 72f
    and eax, 0xff
72: mov [rdi], eax
    bt rbx, 43
    jc 8b
    mov [rdi], ax
    mov [rdi], al
    mov [rdi], rax
    jmp 8b
73: mov eax, [rdi]
    mov ax, [rdi]
    mov rax, [rdi]
    jmp 8b

    // Queues: a device is reset, and taken as a driver takes it, with some of its features.
20: call 89b
    and eax, 7
    mov edi, eax
    shl edi, 12
    add edi, 0xc0001000
    // Two MiB for each: one that stays active has its own queues still.
    mov r12d, eax
    shl r12d, 21
    add r12d, 0x2000000
    mov dword ptr [rdi + 0x70], 0
    mov r11d, [rdi + 0x70]
    mov dword ptr [rdi + 0x70], 1
    mov dword ptr [rdi + 0x70], 3
    mov dword ptr [rdi + 0x14], 1
    mov ebx, [rdi + 0x10]
    mov dword ptr [rdi + 0x24], 1
    mov [rdi + 0x20], ebx
    mov dword ptr [rdi + 0x14], 0
    mov ebx, [rdi + 0x10]
    call 89b
    bt rax, 33
    jc 21f
    and ebx, eax
21: mov dword ptr [rdi + 0x24], 0
    mov [rdi + 0x20], ebx
    mov dword ptr [rdi + 0x70], 0xb

    // Each of three queues, 64 KiB apart: its descriptors, the ring of what is there, the ring of what was used.
    xor ebp, ebp
22: mov [rdi + 0x30], ebp
    call 89b
    mov ecx, eax
    and ecx, 3
    mov ebx, 64
    shl ebx, cl
    mov [rdi + 0x38], ebx
    mov ebx, ebp
    shl ebx, 16
    add ebx, r12d
    // One that could be reset begins with nothing in it; the other goes on where it was.
    test r11d, r11d
    jnz 95f
    mov dword ptr [rbx + 0x4000], 0
95:
    mov esi, 0x80
23: call 89b
    xor ecx, ecx
    bt rax, 50
    jnc 24f
    bt rax, 51
    jnc 24f
    bt rax, 52
    jnc 24f
    mov rcx, rax
24: mov edx, ebx
    add rdx, rcx
    mov [rdi + rsi], edx
    shr rdx, 32
    mov [rdi + rsi + 4], edx
    add ebx, 0x4000
    add esi, 0x10
    cmp esi, 0xb0
    jb 23b
    mov dword ptr [rdi + 0x44], 1
    inc ebp
    cmp ebp, 3
    jb 22b
    mov dword ptr [rdi + 0x70], 0xf

    // Four times: what is in them is made anew, and the device hears of it.
    mov ebp, 4
25: xor r8d, r8d
26: mov r9d, r8d
    shl r9d, 16
    add r9, r12
    mov r10, r9
    xor ecx, ecx
27: call 89b
    mov r11, rax
    // Where: mostly in the MiB behind, or else a device, the end of memory, or anywhere.
    mov edx, eax
    and edx, 0xffff0
    lea rdx, [r12 + rdx + 0x40000]
    shr rax, 56
    cmp al, 16
    ja 60f
    mov edx, 0xc0001000
    cmp al, 4
    jb 60f
    mov edx, 0x7fffff8
    cmp al, 8
    jb 60f
    mov rdx, r11
60: mov [r10], rdx
    // How long: 16, less than a page, or anything.
    call 89b
    mov edx, 16
    bt rax, 60
    jc 61f
    mov edx, eax
    and edx, 0xfff
    bt rax, 61
    jc 61f
    bt rax, 62
    jc 61f
    mov edx, eax
61: mov [r10 + 8], edx
    shr rax, 32
    and eax, 0xff0007
    mov [r10 + 12], eax
    add r10, 16
    inc ecx
    cmp ecx, 256
    jb 27b
    // What is there: some more than before; and where the attack is that, more than there can be.
    call 89b
    mov ecx, 15
    cmp r13d, 4
    jne 69f
    mov ecx, 0x3ff
69: and eax, ecx
    add [r9 + 0x4002], ax
    mov word ptr [r9 + 0x4000], 0
    xor ecx, ecx
62: call 89b
    and eax, 0x1ff
    mov [r9 + rcx * 2 + 0x4004], ax
    inc ecx
    cmp ecx, 256
    jb 62b
    inc r8d
    cmp r8d, 3
    jb 26b

    // What they point at, 64 bytes at a time: a vsock packet, a disk's request, or anything.
    mov edx, 512
63: call 89b
    mov ecx, eax
    and ecx, 0xfffc0
    lea r10, [r12 + rcx + 0x40000]
    mov r11, rax
    shr rax, 60
    cmp al, 6
    jb 64f
    cmp al, 12
    jb 65f
    mov [r10], r11
    mov [r10 + 8], r11
    jmp 66f
64: mov qword ptr [r10], 3
    mov qword ptr [r10 + 8], 2
    call 89b
    and eax, 0x1f
    mov [r10 + 16], eax
    call 89b
    and eax, 0x1f
    mov [r10 + 20], eax
    call 89b
    mov ecx, eax
    bt rax, 50
    jc 67f
    and ecx, 0xfff
67: mov [r10 + 24], ecx
    shr rax, 40
    and eax, 0x70001
    or eax, 1
    mov [r10 + 28], eax
    call 89b
    mov [r10 + 32], rax
    mov [r10 + 40], eax
    jmp 66f
65: mov eax, r11d
    shr eax, 20
    and eax, 0xf
    mov [r10], eax
    mov dword ptr [r10 + 4], 0
    call 89b
    bt rax, 50
    jc 68f
    and eax, 0x1fff
68: mov [r10 + 8], rax
66: dec edx
    jnz 63b

    mov dword ptr [rdi + 0x50], 0
    mov dword ptr [rdi + 0x50], 1
    mov dword ptr [rdi + 0x50], 2
    mov eax, [rdi + 0x60]
    mov [rdi + 0x64], eax
    dec ebp
    jnz 25b
    jmp 8b

    // Ports: not those by which it says that it is through, nor the one that resets it.
30: call 89b
    mov edx, eax
    and edx, 0xffff
    bt rax, 40
    jc 31f
    and edx, 0x3ff
31: mov ecx, edx
    and ecx, 0xfff8
    cmp ecx, 0x3f8
    je 8b
    cmp edx, 0x64
    je 8b
    mov rbx, rax
    shr rax, 32
    out dx, al
    bt rbx, 41
    jc 32f
    out dx, ax
    out dx, eax
32: in al, dx
    in ax, dx
    in eax, dx
    jmp 8b

    // Registers of the processor, also where hypervisors have their own.
40: call 89b
    mov rbx, rax
    mov ecx, eax
    and ecx, 0x1fff
    shr rax, 60
    cmp al, 6
    jb 41f
    mov ecx, ebx
    and ecx, 0xff
    or ecx, 0x4b564d00
    cmp al, 9
    jb 41f
    mov ecx, ebx
    and ecx, 0x1ff
    or ecx, 0x40000000
    cmp al, 12
    jb 41f
    mov ecx, ebx
    and ecx, 0x11fff
    or ecx, 0xc0010000
41: cmp ecx, 0x1b
    je 8b
    mov eax, ecx
    and eax, 0xffffff00
    cmp eax, 0x800
    je 8b
    rdmsr
    call 89b
    mov rdx, rax
    shr rdx, 32
    wrmsr
    mov eax, ebx
    cpuid
    jmp 8b

    // Faults: what is refused has two bytes; after any other nothing can go on.
91: add rsp, 8
    add qword ptr [rsp], 2
    iretq
90: mov dx, 0x3f8
    mov al, 0x58
    out dx, al
93: hlt
    jmp 93b

94: .ascii "through\r\n"
96: .ascii "begun\r\n"
    .balign 8
attack_end:
    .popsection
"#
);
