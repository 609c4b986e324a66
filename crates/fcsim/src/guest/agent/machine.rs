//! What a simulated Linux guest knows, kept in its memory: a snapshot holds all of it, and a clone begins with all of it,
//! randomness and keys included.
//!
//! ```text
//! the last pages of memory:   magic, length, JSON
//! ```

use std::{collections::BTreeMap, net::Ipv4Addr};

use mvm_guest::State;
use mvm_proto::message::{Line, Worker, WorkloadStatus};
use serde::{Deserialize, Serialize};

use crate::guest::image::{Image, PAGE};

const MAGIC: u64 = u64::from_le_bytes(*b"fcsimsys");
/// Pages at most, from the end of memory.
const PAGES: u64 = 512;
const HEAD: usize = 16;

/// A simulated guest, but for its memory, disks and interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// The kernel's random generator.
    pub rng: [u64; 4],
    pub boot_id: String,
    pub hostname: String,
    pub machine_id: String,
    /// The SSH host key, both halves.
    pub host_key: Option<(String, String)>,
    pub ssh_keys: Vec<String>,
    pub dns: Vec<Ipv4Addr>,
    pub mtu: u32,
    /// The data disk that is mounted: its UUID and where.
    pub data: Option<(String, String)>,
    /// The agent's own.
    pub agent: State,
    /// What the workload says, and when it said so: by the wall clock, in ns.
    pub worker: Option<(Worker, u64)>,
    /// The workload's process; none before the guest is somebody.
    pub workload: Option<WorkloadStatus>,
    /// How often it was started again.
    pub restarts: u32,
    pub lines: Vec<Line>,
    /// `/run/secrets`: a tmpfs too.
    #[serde(default)]
    pub secrets: BTreeMap<String, Bytes>,
    /// Files, folders and links by path; a tmpfs.
    pub files: BTreeMap<String, Node>,
}

/// What lies in the simulated file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Node {
    File { mode: u32, modified: i64, content: Bytes },
    Folder { mode: u32, modified: i64 },
    Link(String),
}

/// Bytes, as text where they are some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Bytes {
    Text(String),
    Raw(Vec<u8>),
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Raw(error.into_bytes()), Self::Text)
    }
}

impl Bytes {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Raw(bytes) => bytes,
        }
    }
}

/// There is no room in memory.
#[derive(Debug, thiserror::Error)]
#[error("the guest's memory is full")]
pub(super) struct Full;

impl Machine {
    /// One that boots; its randomness follows from the seed of its memory.
    pub(super) fn boot(seed: u64) -> Self {
        let mut machine =
            Self { rng: [seed | 1, seed.rotate_left(17), !seed, 0x9e37_79b9_7f4a_7c15], ..Self::default() };
        machine.mtu = 1500;
        machine.hostname = "localhost".to_owned();
        machine.boot_id = machine.uuid();
        machine
    }

    /// What is in memory; `None` where it is no guest with an agent, or nobody's any more.
    pub(super) fn load(image: &Image) -> Option<Self> {
        let first = place(image)?;
        let head = image.read(first);
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| head[at + index]));
        let length = usize::try_from(word(8)).ok().filter(|&length| length <= room(image))?;
        if word(0) != MAGIC {
            return None;
        }
        let mut bytes = Vec::with_capacity(HEAD + length);
        for page in first.. {
            if bytes.len() >= HEAD + length {
                break;
            }
            bytes.extend_from_slice(&image.read(page));
        }
        serde_json::from_slice(&bytes[HEAD..HEAD + length]).ok()
    }

    /// Writes it to memory: the pages that are others than before.
    pub(super) fn save(&self, image: &mut Image) -> Result<(), Full> {
        let json = serde_json::to_vec(self).map_err(|_| Full)?;
        let first = place(image).ok_or(Full)?;
        if json.len() > room(image) {
            return Err(Full);
        }
        let bytes = [&MAGIC.to_le_bytes()[..], &(json.len() as u64).to_le_bytes(), &json].concat();
        for (page, content) in (first..).zip(bytes.chunks(PAGE)) {
            let mut new = [0; PAGE];
            new[..content.len()].copy_from_slice(content);
            if image.read(page) != new {
                image.write(page, &new);
            }
        }
        Ok(())
    }

    /// 64 random bits: xoshiro256**.
    pub(super) fn random(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.rng;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// Random bytes.
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.random().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    /// Mixes bytes in.
    pub(super) fn mix(&mut self, entropy: &[u8]) {
        for (index, chunk) in entropy.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.rng[index % 4] ^= u64::from_le_bytes(word);
            self.random();
        }
        for _ in 0..8 {
            self.random();
        }
    }

    /// A random UUID, as the kernel writes one.
    pub(super) fn uuid(&mut self) -> String {
        let mut bytes: [u8; 16] = self.bytes();
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        uuid_text(&bytes)
    }
}

/// A UUID's usual form.
fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The first page of it: the heap leaves the end of memory free.
fn place(image: &Image) -> Option<u64> {
    image.pages().checked_sub(PAGES).filter(|&first| first >= image.pages() / 2)
}

fn room(image: &Image) -> usize {
    place(image).map_or(0, |_| PAGES as usize * PAGE - HEAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::heap::Heap;

    #[test]
    fn it_is_what_it_was_beside_a_heap_that_is_full() {
        for mib in [32, 512, 4096] {
            let mut image = Image::new(mib, false);
            let mut heap = Heap::create(7, &mut image);
            heap.dirty(&mut image, 3_000);
            let mut machine = Machine::boot(7);
            machine
                .files
                .insert("/x".into(), Node::File { mode: 1, modified: 2, content: vec![255; 9].into() });
            machine.save(&mut image).unwrap();
            heap.check(&image).unwrap();
            assert_eq!(Machine::load(&image).as_ref(), Some(&machine), "{mib}");
            heap.dirty(&mut image, 3_000);
            assert_eq!(Machine::load(&image), Some(machine), "{mib}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut image = Image::new(32, false);
        let mut machine = Machine::boot(7);
        machine.hostname = "x".repeat(3 << 20);
        assert!(machine.save(&mut image).is_err());
        assert_eq!(Machine::load(&image), None);
    }

    #[test]
    fn randomness_follows_from_what_was_mixed_in() {
        let (mut one, mut other) = (Machine::boot(7), Machine::boot(7));
        assert_eq!(one.uuid(), other.uuid());
        one.mix(&[1; 32]);
        other.mix(&[2; 32]);
        assert_ne!(one.uuid(), other.uuid());
    }
}
