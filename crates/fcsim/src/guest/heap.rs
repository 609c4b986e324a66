//! The guest's heap: pages whose content follows from a seed, their number and the count of their last write, so that
//! the guest can check all of its memory after a load without having kept a copy.
//!
//! Page 1 of memory is the head (seed, count), the pages after it a table of the last write to each heap page, the
//! heap pages are spread evenly over the rest, up to the last megabyte. The head's count is also kept in the
//! snapshot's state, as a register would be: a memory file of another moment is noticed.

use serde::{Deserialize, Serialize};

use super::image::{Image, PAGE, Page};

const HEAD: u64 = 1;
const TABLE: u64 = 2;
const ENTRIES: u64 = (PAGE / 8) as u64;
const MAGIC: u64 = u64::from_le_bytes(*b"fcsimmem");
/// Pages that a guest writes when it boots.
const AT_BOOT: u64 = 64;
/// Pages that a guest writes when it is resumed after a load.
const AT_WAKE: u64 = 4;
/// Heap pages at most.
const MAX_PAGES: u64 = 16_384;

/// What of the heap is kept outside of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heap {
    seed: u64,
    count: u64,
    pages: u64,
}

/// A page that is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corruption {
    #[error("the head of memory is not that of this guest")]
    Head,
    #[error("page {page} should be of write {expected} and is not")]
    Page { page: u64, expected: u64 },
}

impl Heap {
    /// Makes a heap in fresh memory and writes its first pages.
    pub(crate) fn create(seed: u64, image: &mut Image) -> Self {
        let mut heap = Self { seed, count: 0, pages: (image.pages() / 4).clamp(1, MAX_PAGES) };
        heap.dirty(image, AT_BOOT);
        heap
    }

    /// Writes some pages, as a guest does that goes on after a load.
    pub(crate) fn wake(&mut self, image: &mut Image) {
        self.dirty(image, AT_WAKE);
    }

    /// Writes to so many pseudo-random pages.
    pub(crate) fn dirty(&mut self, image: &mut Image, writes: u64) {
        for _ in 0..writes {
            self.count += 1;
            let page = mix(self.seed ^ mix(self.count)) % self.pages;
            image.write(self.place(image, page), &content(self.seed, page, self.count));
            let (table, entry) = (TABLE + page / ENTRIES, (page % ENTRIES) as usize);
            let mut entries = image.read(table);
            set(&mut entries, entry, self.count);
            image.write(table, &entries);
        }
        let mut head = [0; PAGE];
        for (index, value) in [MAGIC, self.seed, self.count, self.pages].into_iter().enumerate() {
            set(&mut head, index, value);
        }
        image.write(HEAD, &head);
    }

    /// How many writes there were.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Checks every page that was ever written, and gives a sum over their content.
    pub(crate) fn check(&self, image: &Image) -> Result<u64, Corruption> {
        let head = image.read(HEAD);
        if [MAGIC, self.seed, self.count, self.pages]
            != [get(&head, 0), get(&head, 1), get(&head, 2), get(&head, 3)]
        {
            return Err(Corruption::Head);
        }
        let mut sum = mix(self.seed ^ self.count);
        for table in 0..self.pages.div_ceil(ENTRIES) {
            let entries = image.read(TABLE + table);
            for entry in 0..ENTRIES as usize {
                let (page, expected) = (table * ENTRIES + entry as u64, get(&entries, entry));
                if expected == 0 {
                    continue;
                }
                let place = self.place(image, page);
                let found = image.read(place);
                if found != content(self.seed, page, expected) {
                    return Err(Corruption::Page { page: place, expected });
                }
                sum = (0..PAGE / 8)
                    .fold(sum, |sum, word| (sum ^ get(&found, word)).wrapping_mul(0x0100_0000_01b3));
            }
        }
        Ok(sum)
    }

    /// Spoils one page that was written, as a fault.
    pub(crate) fn corrupt(&self, image: &mut Image) {
        let page = self.place(image, mix(self.seed ^ mix(self.count)) % self.pages);
        let mut content = image.read(page);
        content[17] ^= 0x40;
        image.write(page, &content);
    }

    fn place(&self, image: &Image, page: u64) -> u64 {
        let first = TABLE + self.pages.div_ceil(ENTRIES);
        let stride = (image.pages().saturating_sub(first) / self.pages).max(1);
        first + page * stride
    }
}

fn get(page: &Page, index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[index * 8..index * 8 + 8]);
    u64::from_le_bytes(bytes)
}

fn set(page: &mut Page, index: usize, value: u64) {
    page[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
}

/// Scatters the bits of a number (splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn content(seed: u64, page: u64, count: u64) -> Page {
    let mut words = [0; PAGE];
    let mut state = mix(seed ^ mix(page) ^ mix(count).rotate_left(17)) | 1;
    for index in 0..PAGE / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        set(&mut words, index, state);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_follow_from_the_seed_and_can_be_checked() {
        let (mut a, mut b) = (Image::new(32, false), Image::new(32, false));
        let (mut first, mut second) = (Heap::create(7, &mut a), Heap::create(7, &mut b));
        first.dirty(&mut a, 100);
        second.dirty(&mut b, 100);
        assert_eq!(first.check(&a).unwrap(), second.check(&b).unwrap());
        second.dirty(&mut b, 1);
        assert_ne!(first.check(&a).unwrap(), second.check(&b).unwrap());
    }

    #[test]
    fn one_wrong_bit_is_found() {
        let mut image = Image::new(4096, false);
        let heap = Heap::create(1, &mut image);
        heap.corrupt(&mut image);
        assert!(matches!(heap.check(&image), Err(Corruption::Page { .. })));
    }

    #[test]
    fn a_memory_of_another_moment_is_found() {
        let mut image = Image::new(16, false);
        let mut heap = Heap::create(1, &mut image);
        let before = heap;
        heap.dirty(&mut image, 1);
        assert_eq!(before.check(&image), Err(Corruption::Head));
    }

    #[test]
    fn pages_lie_inside_memory_of_any_size() {
        for mib in [1, 2, 17, 128, 4096] {
            let mut image = Image::new(mib, false);
            let mut heap = Heap::create(3, &mut image);
            heap.dirty(&mut image, 2000);
            heap.check(&image).unwrap();
            assert!(heap.place(&image, heap.pages - 1) < image.pages(), "{mib}");
        }
    }
}
