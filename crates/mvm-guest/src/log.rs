//! What the workload printed: a ring of lines, bounded in bytes.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mvm_proto::message::Line;

/// Bytes of text that are kept at most.
const MAX_BYTES: usize = 256 << 10;
/// A line is cut into pieces of that length.
const MAX_LINE: usize = 4 << 10;
/// What a line takes besides its text.
const OVERHEAD: usize = 48;

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    /// The number of the first line that is there: older ones are gone.
    first: u64,
}

/// The lines.
#[derive(Debug, Default)]
pub struct Log {
    ring: Mutex<Ring>,
    changed: Condvar,
}

impl Log {
    /// One that holds these lines.
    pub fn of(lines: Vec<Line>) -> Self {
        let log = Self::default();
        lines.into_iter().for_each(|line| log.push(line));
        log
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line; the oldest ones go where there is no room.
    pub fn push(&self, mut line: Line) {
        if line.text.len() > MAX_LINE {
            // A character has at most four bytes.
            let end = (MAX_LINE - 3..=MAX_LINE).rfind(|&end| line.text.is_char_boundary(end));
            line.text.truncate(end.unwrap_or(0));
        }
        let mut ring = self.ring();
        ring.bytes += line.text.len() + OVERHEAD;
        ring.lines.push_back(line);
        while ring.bytes > MAX_BYTES {
            let Some(gone) = ring.lines.pop_front() else { break };
            ring.bytes -= gone.text.len() + OVERHEAD;
            ring.first += 1;
        }
        drop(ring);
        self.changed.notify_all();
    }

    /// All lines that are there.
    pub fn lines(&self) -> Vec<Line> {
        self.ring().lines.iter().cloned().collect()
    }

    /// The lines from this number on that are not older than `since_unix_ms`, and the number to go on with. Waits up to
    /// `limit` where there is none.
    pub fn after(&self, number: u64, since_unix_ms: u64, limit: Duration) -> (Vec<Line>, u64) {
        let mut ring = self.ring();
        if !limit.is_zero() && number >= ring.first + ring.lines.len() as u64 {
            let waited = self.changed.wait_timeout(ring, limit);
            (ring, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let skip = usize::try_from(number.saturating_sub(ring.first)).unwrap_or(usize::MAX);
        let lines = ring.lines.iter().skip(skip).filter(|line| line.at_unix_ms >= since_unix_ms).cloned();
        (lines.collect(), ring.first + ring.lines.len() as u64)
    }
}

/// Cuts what a program prints into lines.
#[derive(Debug, Default)]
pub struct Splitter {
    open: Vec<u8>,
}

impl Splitter {
    /// Takes bytes, and gives each line that is whole, without its end; one that is too long in pieces.
    pub fn take(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for &byte in bytes {
            if byte == b'\n' || self.open.len() == MAX_LINE {
                line(String::from_utf8_lossy(&self.open).trim_end_matches('\r').to_owned());
                self.open.clear();
            }
            if byte != b'\n' {
                self.open.push(byte);
            }
        }
    }

    /// What is left, where the last line has no end.
    pub fn finish(self, line: impl FnOnce(String)) {
        if !self.open.is_empty() {
            line(String::from_utf8_lossy(&self.open).into_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_unix_ms: u64, text: &str) -> Line {
        Line { at_unix_ms, errors: false, text: text.to_owned() }
    }

    #[test]
    fn a_follower_misses_nothing_that_is_still_there() {
        let log = Log::default();
        log.push(line(1, "a"));
        let (lines, next) = log.after(0, 0, Duration::ZERO);
        assert_eq!((lines.len(), next), (1, 1));
        log.push(line(2, "b"));
        log.push(line(3, "c"));
        let (lines, next) = log.after(next, 3, Duration::ZERO);
        assert_eq!((lines, next), (vec![line(3, "c")], 3));
        assert_eq!(log.after(next, 0, Duration::ZERO), (vec![], 3));
    }

    #[test]
    fn it_does_not_grow() {
        let log = Log::default();
        for at in 0..10_000 {
            log.push(line(at, &"x".repeat(2 * MAX_LINE)));
        }
        let lines = log.lines();
        let bytes: usize = lines.iter().map(|line| line.text.len()).sum();
        assert!(bytes <= MAX_BYTES && lines.len() > 10, "{bytes} bytes");
        assert_eq!(lines.last().map(|line| line.at_unix_ms), Some(9_999));
        // Who was away for long goes on with what is left.
        assert_eq!(log.after(3, 0, Duration::ZERO).0.len(), lines.len());
    }

    #[test]
    fn lines_are_found_in_any_pieces() {
        for size in 1..9 {
            let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
            for piece in b"one\r\n\ntwo\xff\nthree".chunks(size) {
                splitter.take(piece, |line| lines.push(line));
            }
            splitter.finish(|line| lines.push(line));
            assert_eq!(lines, ["one", "", "two\u{fffd}", "three"]);
        }
    }
}
