//! A guest of 4 GiB: its memory lies in two slots, below and above the hole for devices, and both come back whole.

use std::{os::unix::fs::FileExt, time::Duration};

use crate::{
    ensure, scenario, skip, step,
    vsock::{ask_within, start_server},
};

/// Memory of the large guest, and what its server takes of it. The kernel gives memory from above the hole first, and that
/// is 1 GiB: what is more lies below.
const GUEST_MIB: u64 = 4096;
const TAKEN_MIB: u64 = 1280;

/// One page in so many is written; the others stay zeros.
const STEP: usize = 64;

const PAGE: usize = 4096;

/// Memory that the server inside the guest holds.
#[derive(Default)]
pub struct Memory {
    pages: Vec<u8>,
    seed: u64,
}

impl Memory {
    /// Answers a question: `echo X`, `take MIB`, `write SEED`, `check`.
    pub fn answer(&mut self, question: &str) -> String {
        let (verb, rest) = question.split_once(' ').unwrap_or((question, ""));
        let number = rest.parse().unwrap_or(0);
        match verb {
            "echo" => rest.to_owned(),
            "take" => self.take(number),
            "write" => {
                self.seed = number;
                let seed = self.seed;
                for (at, page) in self.pages.chunks_exact_mut(PAGE).enumerate().step_by(STEP) {
                    fill(page, seed ^ at as u64);
                }
                "written".into()
            }
            "check" => self.check(),
            _ => format!("what is {verb:?}?"),
        }
    }

    /// Takes memory, each page of it, and says how much of it lies below and above 4 GiB.
    fn take(&mut self, mib: u64) -> String {
        self.pages = vec![0; (mib << 20) as usize];
        // A page is taken when it is written to.
        self.pages.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        let Ok(map) = std::fs::File::open("/proc/self/pagemap") else { return "no pagemap".into() };
        let first = self.pages.as_ptr() as u64 / PAGE as u64;
        let (mut below, mut above) = (0, 0);
        for page in (0..self.pages.len() / PAGE).step_by(STEP) {
            let mut entry = [0; 8];
            if map.read_exact_at(&mut entry, (first + page as u64) * 8).is_ok() {
                // The lower 55 bits are the number of the page frame.
                match u64::from_le_bytes(entry) & ((1 << 55) - 1) {
                    frame if frame >= (4 << 30) / PAGE as u64 => above += 1,
                    frame if frame > 0 => below += 1,
                    _ => {}
                }
            }
        }
        format!("below {below} above {above}")
    }

    fn check(&self) -> String {
        let mut expected = vec![0; PAGE];
        let mut wrong = 0;
        for (at, page) in self.pages.chunks_exact(PAGE).enumerate() {
            let whole = match at % STEP {
                0 => {
                    fill(&mut expected, self.seed ^ at as u64);
                    page == expected
                }
                _ => page[0] == 1,
            };
            wrong += u64::from(!whole);
        }
        format!("wrong {wrong} of {}", self.pages.len() / PAGE)
    }
}

/// Fills a page with what follows from a seed (xorshift).
fn fill(page: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn lab_has(mib: u64) -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    total >> 10 >= mib
}

#[test]
fn four_gib_in_two_slots_come_back_whole() {
    if std::env::var_os("MVM_LAB").is_some() && !lab_has(GUEST_MIB + 1024) {
        skip("the lab has less than 5 GiB: a guest of 4 GiB");
        return;
    }
    scenario("4 GiB in two slots", |world| {
        let long = Duration::from_secs(240);
        world.pool("acme/big", 3, &format!("--mem {GUEST_MIB} --data-disk 128"))?;
        let guest = step("a server listens in a guest of 4 GiB", || start_server(world, "acme/big"))?;
        step("it takes memory on both sides of 4 GiB", || {
            let said = ask_within(world, &guest, &format!("take {TAKEN_MIB}"), long)?;
            println!("    of each {STEP}th page: {said}");
            ensure(!said.contains(" 0"), || said.clone())
        })?;
        for cycle in 1..=2 {
            let said = step("it writes", || ask_within(world, &guest, &format!("write {cycle}"), long))?;
            ensure(said == "written", || said.clone())?;
            step("it sleeps", || world.ok_within(&format!("instance sleep {}", guest.path), long))?;
            step("it wakes", || world.ok_within(&format!("instance wake {}", guest.path), long))?;
            let said = step("it looks at each page", || ask_within(world, &guest, "check", long))?;
            println!("    {said}");
            ensure(said.starts_with("wrong 0 of "), || said.clone())?;
        }
        Ok(())
    });
}
