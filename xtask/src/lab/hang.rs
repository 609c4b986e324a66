//! Whether a lab hangs, from what its console says. A guest within an emulated machine now and then takes the whole machine
//! along: its kernel says that a CPU is locked up, and nothing else is said any more. Pure: `now` is an argument.

use std::time::{Duration, Instant};

/// The kernel's words for a CPU that does nothing else any more.
const LOCKED: &str = "soft lockup - CPU";
/// A slow machine recovers from a lockup. One that has said nothing else for so long does not.
const LOCKED_FOR: Duration = Duration::from_secs(60);

/// What was heard.
#[derive(Debug)]
pub struct Watch {
    line: Vec<u8>,
    /// When something was said by others than the kernel.
    heard: Instant,
    /// Since when it is locked up.
    locked: Option<Instant>,
}

impl Watch {
    /// A machine that was switched on now.
    pub fn new(now: Instant) -> Self {
        Self { line: Vec::new(), heard: now, locked: None }
    }

    /// These bytes came.
    pub fn heard(&mut self, bytes: &[u8], now: Instant) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line);
                if line.contains(LOCKED) {
                    self.locked.get_or_insert(now);
                }
                self.line.clear();
                continue;
            }
            self.line.push(byte);
            // A line of the kernel's begins with its time.
            if self.line[0] != b'[' {
                (self.heard, self.locked) = (now, None);
            }
        }
    }

    /// Why it hangs, where it does; `silence` is how long it may say nothing.
    pub fn hangs(&self, now: Instant, silence: Duration) -> Option<&'static str> {
        if self.locked.is_some_and(|since| now.duration_since(since) >= LOCKED_FOR) {
            return Some("a CPU of it is locked up");
        }
        (now.duration_since(self.heard) >= silence).then_some("it says nothing any more")
    }
}

/// What a console shows of tests: which passed, which failed, and which one was under way.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Those that are done, well or not.
    pub done: Vec<String>,
    /// How many of them failed.
    pub failed: usize,
    /// One that began and did not end.
    pub under_way: Option<String>,
}

impl Progress {
    /// From a transcript: `test NAME ... `, what the test prints, and `ok` or `FAILED` in a line.
    pub fn read(transcript: &str) -> Self {
        let mut progress = Self::default();
        for line in transcript.lines() {
            if let Some((name, _)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ...")) {
                progress.under_way = Some(name.to_owned());
            }
            let last = line.rsplit(' ').next();
            if matches!(last, Some("ok" | "FAILED" | "ignored"))
                && (line.trim() == last.unwrap_or_default() || line.starts_with("test "))
                && let Some(name) = progress.under_way.take()
            {
                progress.failed += usize::from(last == Some("FAILED"));
                progress.done.push(name);
            }
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(300);

    #[test]
    fn a_lockup_that_ends_is_none() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut watch = Watch::new(begin);
        watch.heard(b"test a ... \r\n[  1.0] watchdog: BUG: soft lockup - CPU#1 stuck for 49s!\n", at(10));
        assert_eq!(watch.hangs(at(69), SILENCE), None);
        assert_eq!(watch.hangs(at(70), SILENCE), Some("a CPU of it is locked up"));
        watch.heard(b"[ 30.0] watchdog: BUG: soft lockup - CPU#1 stuck for 75s!\n", at(40));
        assert_eq!(watch.hangs(at(70), SILENCE), Some("a CPU of it is locked up"));
        watch.heard(b"ok\n", at(75));
        assert_eq!(watch.hangs(at(374), SILENCE), None);
        assert_eq!(watch.hangs(at(375), SILENCE), Some("it says nothing any more"));
    }

    #[test]
    fn the_tests_that_are_done_are_known() {
        let transcript = "running 3 tests\ntest a::b ...\n== story\n  ✓ x  1 s\n    all is ok\nok\ntest c ... FAILED\ntest d ...\ntest x is under way\n== e\n";
        assert_eq!(
            Progress::read(transcript),
            Progress { done: vec!["a::b".into(), "c".into()], failed: 1, under_way: Some("d".into()) }
        );
    }
}
