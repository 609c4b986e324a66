//! Real Firecracker with a guest that keeps patterns all over its memory, checks them itself, and says so.
//!
//! In round r the guest looks at every place i: it must hold what was written there in the last round before r whose number
//! is i modulo 4. Where r is i modulo 4 it writes that anew. Then it counts the round, in memory, and prints its letter; a
//! place that holds something else makes it print an X and halt.

use std::{fs, os::unix::fs::FileExt, path::PathBuf};

use serde_json::json;

use crate::support::{self, Sandbox, own_mounts, wait_until};

/// x86-64 code that is entered at 16 MiB. Tables of 2 MiB pages for the first 5 GiB lie at 18 MiB, the round's number at
/// 17 MiB, places from 32 MiB on. What lies between 3 and 4 GiB is no memory.
const CODE: &str = "
    bf 00 00 20 01                 ; mov edi,0x1200000
    48 8d 87 03 10 00 00           ; lea rax,[rdi+0x1003]
    48 89 07                       ; mov [rdi],rax
    48 8d 87 03 20 00 00           ; lea rax,[rdi+0x2003]
    31 c9                          ; xor ecx,ecx
    48 89 84 cf 00 10 00 00        ; tables: mov [rdi+rcx*8+0x1000],rax
    48 05 00 10 00 00              ; add rax,0x1000
    ff c1                          ; inc ecx
    83 f9 05                       ; cmp ecx,0x5
    72 eb                          ; jb tables
    b8 83 00 00 00                 ; mov eax,0x83
    31 c9                          ; xor ecx,ecx
    48 89 84 cf 00 20 00 00        ; entries: mov [rdi+rcx*8+0x2000],rax
    48 05 00 00 20 00              ; add rax,0x200000
    ff c1                          ; inc ecx
    81 f9 00 0a 00 00              ; cmp ecx,0xa00
    72 e8                          ; jb entries
    0f 22 df                       ; mov cr3,rdi
    41 bd 00 00 00 c0              ; mov r13d,0xc0000000
    49 be 00 00 00 00 01 00 00 00  ; movabs r14,0x100000000
    41 bf 00 00 10 01              ; mov r15d,0x1100000
    49 8b 07                       ; round: mov rax,[r15]
    31 c9                          ; xor ecx,ecx
    bf 00 00 00 02                 ; mov edi,0x2000000
    4c 39 ef                       ; page: cmp rdi,r13
    72 05                          ; jb there
    4c 39 f7                       ; cmp rdi,r14
    72 35                          ; jb next
    48 89 c2                       ; there: mov rdx,rax
    48 29 ca                       ; sub rdx,rcx
    83 e2 03                       ; and edx,0x3
    48 89 c6                       ; mov rsi,rax
    48 29 d6                       ; sub rsi,rdx
    48 69 d9 79 56 34 12           ; imul rbx,rcx,0x12345679
    85 d2                          ; test edx,edx
    75 04                          ; jne older
    48 83 ee 04                    ; sub rsi,0x4
    48 85 f6                       ; older: test rsi,rsi
    78 08                          ; js unwritten
    48 01 de                       ; add rsi,rbx
    48 39 37                       ; cmp [rdi],rsi
    75 2c                          ; jne wrong
    85 d2                          ; unwritten: test edx,edx
    75 06                          ; jne next
    48 01 c3                       ; add rbx,rax
    48 89 1f                       ; mov [rdi],rbx
    48 81 c7 STRIDE                ; next: add rdi,STRIDE
    ff c1                          ; inc ecx
    81 f9 COUNT                    ; cmp ecx,COUNT
    72 b0                          ; jb page
    49 ff 07                       ; inc [r15]
    83 e0 0f                       ; and eax,0xf
    83 c0 61                       ; add eax,0x61
    ba f8 03 00 00                 ; mov edx,0x3f8
    ee                             ; out dx,al
    eb 95                          ; jmp round
    b8 58 00 00 00                 ; wrong: mov eax,0x58
    ba f8 03 00 00                 ; mov edx,0x3f8
    ee                             ; out dx,al
    f4                             ; stop: hlt
    eb fd                          ; jmp stop
";

const GIB: u64 = 1 << 30;
const ROUND: u64 = 17 << 20;
const FIRST: u64 = 32 << 20;
const FACTOR: u64 = 0x1234_5679;

/// Where the guest has its patterns.
#[derive(Clone, Copy)]
struct Places {
    stride: u32,
    count: u32,
}

impl Places {
    fn kernel(self) -> Vec<u8> {
        let hex = |number: u32| number.to_le_bytes().map(|byte| format!("{byte:02x}")).join(" ");
        let code = |line: &str| line.split(';').next().unwrap_or_default().to_owned();
        let code: String = CODE.lines().map(code).collect();
        let code = code.replace("STRIDE", &hex(self.stride)).replace("COUNT", &hex(self.count));
        let byte = |word: &str| u8::from_str_radix(word, 16).expect("a byte");
        mvm::cli::kernel(&code.split_whitespace().map(byte).collect::<Vec<_>>())
    }

    /// The places in the memory file: index and offset. What lies above the hole follows what lies below it.
    fn all(self) -> impl Iterator<Item = (u64, u64)> {
        let address = move |index: u32| (u64::from(index), FIRST + u64::from(index) * u64::from(self.stride));
        (0..self.count).map(address).filter_map(|(index, address)| match address {
            _ if address < 3 * GIB => Some((index, address)),
            _ if address < 4 * GIB => None,
            _ => Some((index, address - GIB)),
        })
    }

    /// Does a memory file hold what the guest wrote, in the round that it counts? Returns the round.
    #[track_caller]
    fn check(self, mem: &fs::File) -> u64 {
        let word = |offset: u64| {
            let mut bytes = [0; 8];
            mem.read_exact_at(&mut bytes, offset).expect("it is long enough");
            u64::from_le_bytes(bytes)
        };
        let round = word(ROUND);
        assert!(round > 8, "{round}");
        for (index, offset) in self.all() {
            let age = round.wrapping_sub(index) & 3;
            // One whose turn it is was written already, or not yet.
            let ages = if age == 0 { [0, 4] } else { [age, age] };
            let should = ages.map(|age| index * FACTOR + round - age);
            assert!(should.contains(&word(offset)), "place {index} in round {round}: {:x}", word(offset));
        }
        round
    }
}

/// What the guest printed: the letters of its rounds, none left out and none twice.
fn rounds(console: &PathBuf) -> u64 {
    let text = fs::read(console).unwrap_or_default();
    for (index, letter) in text.iter().enumerate() {
        assert_eq!(
            char::from(*letter),
            char::from(b'a' + (index % 16) as u8),
            "round {index} of {}",
            text.len()
        );
    }
    text.len() as u64
}

fn cycles(sandbox: &Sandbox, places: Places, mem_mib: u64, cycles: u32) {
    let kernel = sandbox.artifacts().0;
    fs::write(&kernel, places.kernel()).expect("a kernel");
    sandbox.pool("firecracker");
    sandbox.ok(&format!("pool create acme/big --vmm firecracker --mem {mem_mib} --data-disk 0 --insecure"));
    sandbox.import("acme/big", "");
    let path = sandbox.instance("acme/big");
    sandbox.ok(&format!("instance start {path}"));
    let delta = sandbox.delta(&path);
    let console =
        delta.parent().and_then(|folder| folder.parent()).expect("a folder").join("logs/console.log");
    let mut seen = 0;
    for cycle in 0..cycles {
        // It has verified all that it had, and changed all, since it was woken.
        wait_until("the guest goes on", || rounds(&console) >= seen.max(4) + 6);
        if cycle % 4 == 3 {
            sandbox.ok(&format!("instance warm {path}"));
        }
        sandbox.ok(&format!("instance sleep {path}"));
        let mem = fs::File::open(crate::guest::part_of(&delta, "mem")).expect("a memory file");
        assert_eq!(mem.metadata().expect("a file").len(), mem_mib << 20);
        let round = places.check(&mem);
        seen = rounds(&console);
        assert!((seen..=seen + 1).contains(&round), "round {round}, and {seen} were printed");
        let scrubbed = sandbox.ok("node gc --scrub");
        assert_eq!((&scrubbed["scrubbed"], &scrubbed["damaged"]), (&json!(1), &json!([])), "{cycle}");
        assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
        sandbox.ok(&format!("instance wake {path}"));
    }
    wait_until("the guest goes on", || rounds(&console) > seen + 5);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// 500 places in 94 MiB.
const SMALL: Places = Places { stride: 0x2f008, count: 500 };
/// 1,000 in 5 GiB, of which 4 are memory.
const LARGE: Places = Places { stride: 0x50_0008, count: 1000 };

#[test]
fn a_guest_of_128_mib_finds_its_memory_as_it_was_ten_times() {
    if support::firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    cycles(&sandbox, SMALL, 128, 10);
}

#[test]
fn a_guest_of_4_gib_finds_both_parts_of_its_memory_as_they_were_ten_times() {
    if support::firecracker().is_none() {
        return;
    }
    assert!(LARGE.all().any(|(_, offset)| offset > 3 * GIB), "both parts of memory are in use");
    let Some(sandbox) = Sandbox::new() else { return };
    cycles(&sandbox, LARGE, 4096, 10);
}

#[test]
fn on_a_file_system_with_reflinks_a_guest_finds_its_memory_as_it_was() {
    if support::firecracker().is_none() {
        return;
    }
    let Some(mut sandbox) = Sandbox::new() else { return };
    own_mounts();
    if sandbox.mount_btrfs("512M") {
        cycles(&sandbox, SMALL, 128, 5);
    }
}

/// What fills its disk fills it in the middle of a sleep; the guest goes on, and sleeps once there is room.
#[test]
fn a_disk_that_fills_in_a_sleep_costs_the_guest_nothing() {
    if support::firecracker().is_none() {
        return;
    }
    let Some(mut sandbox) = Sandbox::new() else { return };
    own_mounts();
    sandbox.mount_tmpfs("64M");
    sandbox.ok("node set disk-floor-mib 0");
    fs::write(sandbox.artifacts().0, SMALL.kernel()).expect("a kernel");
    sandbox.pool("firecracker");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let delta = sandbox.delta(&path);
    let console =
        delta.parent().and_then(|folder| folder.parent()).expect("a folder").join("logs/console.log");
    let goes_on = || {
        let seen = rounds(&console);
        wait_until("the guest goes on", || rounds(&console) >= seen + 6);
    };
    goes_on();
    let free = mvm::vm::room::free_mib(sandbox.root()).expect("free space");
    let ballast = sandbox.root().join("ballast");
    fs::write(&ballast, vec![0; ((free << 20) - (600 << 10)) as usize]).expect("ballast");
    assert_eq!(sandbox.refused(&format!("instance sleep {path}"), 1), "disk_full");
    // What was written of it for nothing takes no place.
    assert_eq!(fs::read_dir(&delta).expect("a folder").count(), 0);
    fs::remove_file(&ballast).expect("it can be removed");
    goes_on();
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
    for _ in 0..2 {
        sandbox.ok(&format!("instance sleep {path}"));
        SMALL.check(&fs::File::open(crate::guest::part_of(&delta, "mem")).expect("a memory file"));
        assert_eq!(sandbox.ok("node gc --scrub")["damaged"], json!([]));
        sandbox.ok(&format!("instance wake {path}"));
        goes_on();
    }
}

/// After a sleep that was cut off nobody knows what the VMM wrote: the next one writes all, and what are zeros takes no place.
#[test]
fn memory_that_is_written_in_whole_takes_no_place_for_zeros() {
    use std::os::unix::fs::MetadataExt;
    if support::firecracker().is_none() {
        return;
    }
    let Some(sandbox) = Sandbox::new() else { return };
    fs::write(sandbox.artifacts().0, SMALL.kernel()).expect("a kernel");
    sandbox.pool("firecracker");
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    let sleep = format!("instance sleep {path}");
    let delta = sandbox.delta(&path);
    let console =
        delta.parent().and_then(|folder| folder.parent()).expect("a folder").join("logs/console.log");
    wait_until("the guest goes on", || rounds(&console) >= 10);
    assert!(support::was_killed(&sandbox.run_with(&sleep, "sleep.snapshot")));
    sandbox.ok("node recover");
    assert_eq!(sandbox.ok(&format!("instance info {path}"))["vmm"]["parent"], "unknown");
    sandbox.ok(&sleep);
    let mem = fs::File::open(crate::guest::part_of(&delta, "mem")).expect("a memory file");
    SMALL.check(&mem);
    let taken = mem.metadata().expect("a file").blocks() * 512;
    assert!(taken < 8 << 20, "{taken} bytes");
    assert_eq!(sandbox.ok("node gc --scrub")["damaged"], json!([]));
    sandbox.ok(&format!("instance wake {path}"));
    let seen = rounds(&console);
    wait_until("the guest goes on", || rounds(&console) >= seen + 6);
}
