//! The guest's serial console: stdout or a file, with the token bucket that drops what is over; and what is typed on it.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{host::errno::OsError, log::open_output, wire::machine::SerialConfig};

/// Where the console goes.
pub(crate) struct Console {
    out: Mutex<Out>,
    /// Is stdin read? As in Firecracker only where the console is stdout, and stdin is a terminal or a FIFO.
    reads: AtomicBool,
}

struct Out {
    file: Option<File>,
    bucket: Option<Bucket>,
}

impl Console {
    /// Opens the console as configured.
    pub(crate) fn open(config: &SerialConfig) -> Result<Self, OsError> {
        let file = config.serial_out_path.as_deref().map(open_output).transpose()?;
        let bucket = config
            .rate_limiter
            .and_then(crate::wire::TokenBucketConfig::effective)
            .map(|limit| Bucket::new(limit.size, limit.one_time_burst.unwrap_or(0), limit.refill_time));
        let reads = AtomicBool::new(file.is_none() && is_typed_on(io::stdin()));
        Ok(Self { out: Mutex::new(Out { file, bucket }), reads })
    }

    /// Where what is typed comes from, as long as somebody may type.
    pub(crate) fn input(&self) -> Option<io::Stdin> {
        self.reads.load(Ordering::Relaxed).then(io::stdin)
    }

    /// Takes what was typed and shows it, as a terminal's line does. It is readable: this does not wait.
    pub(crate) fn echo(&self) {
        // as much as a UART holds
        let mut typed = [0; 64];
        match rustix::io::read(io::stdin(), &mut typed[..]) {
            Ok(read @ 1..) => {
                let shown = typed[..read].iter().map(|&byte| if byte == b'\r' { b'\n' } else { byte });
                self.write(shown.collect());
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Ok(_) | Err(_) => self.reads.store(false, Ordering::Relaxed),
        }
    }

    /// Prints a line. The guest is never blocked: what nobody takes, and what the limiter does not let through, is lost.
    pub(crate) fn print(&self, text: &str) {
        self.write(format!("{text}\n").into_bytes());
    }

    fn write(&self, mut bytes: Vec<u8>) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = &mut out.bucket {
            // a guest writes byte by byte, and each byte is let through or not
            let allowed = usize::try_from(bucket.take(bytes.len() as u64)).unwrap_or(bytes.len());
            bytes.truncate(allowed);
        }
        let _ = match &mut out.file {
            Some(file) => write_now(file.try_clone(), &bytes),
            None => write_now(Ok(io::stdout()), &bytes),
        };
    }
}

fn is_typed_on(stdin: io::Stdin) -> bool {
    use rustix::fs::{FileType, fstat};
    let is_fifo = fstat(&stdin).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    is_fifo || rustix::termios::isatty(stdin)
}

/// Writes as far as that is possible without waiting.
fn write_now(out: io::Result<impl Write + AsFd>, bytes: &[u8]) -> io::Result<()> {
    let mut out = out?;
    for chunk in bytes.chunks(4096) {
        if !writable(out.as_fd()) {
            break;
        }
        out.write_all(chunk)?;
    }
    out.flush()
}

fn writable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}

/// A token bucket: a burst that is used once, and a budget that fills again.
#[derive(Debug)]
struct Bucket {
    size: u64,
    burst: u64,
    budget: u64,
    refill: Duration,
    last: Instant,
}

impl Bucket {
    fn new(size: u64, burst: u64, refill_ms: u64) -> Self {
        Self { size, burst, budget: size, refill: Duration::from_millis(refill_ms), last: Instant::now() }
    }

    /// Takes up to so many tokens and says how many it got.
    fn take(&mut self, wanted: u64) -> u64 {
        let from_burst = wanted.min(self.burst);
        self.burst -= from_burst;
        let rest = wanted - from_burst;
        if rest > self.budget {
            self.replenish();
        }
        let from_budget = rest.min(self.budget);
        self.budget -= from_budget;
        from_burst + from_budget
    }

    fn replenish(&mut self) {
        let elapsed = self.last.elapsed();
        if elapsed >= self.refill {
            self.budget = self.size;
            self.last = Instant::now();
            return;
        }
        // elapsed < refill, so the share is below size and fits
        let tokens = (elapsed.as_nanos() * u128::from(self.size) / self.refill.as_nanos().max(1)) as u64;
        if tokens > 0 {
            self.budget = self.budget.saturating_add(tokens).min(self.size);
            self.last = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_is_used_once_and_the_rest_is_dropped() {
        let mut bucket = Bucket::new(10, 5, 3_600_000);
        assert_eq!(bucket.take(12), 12);
        assert_eq!(bucket.take(12), 3);
        assert_eq!(bucket.take(12), 0);
    }

    #[test]
    fn it_fills_again() {
        let mut bucket = Bucket::new(10, 0, 1);
        assert_eq!(bucket.take(10), 10);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(bucket.take(4), 4);
    }
}
