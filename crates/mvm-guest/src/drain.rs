//! What is under way, and whether anything new is taken: a guest that is about to sleep finishes what it has begun.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How often it is looked whether the workload is still at work: what it says wakes somebody else.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Inner {
    draining: bool,
    under_way: u32,
    /// Counts who closes and opens: one that was overtaken changes nothing any more.
    epoch: u64,
}

/// Requests that are counted, and an end to taking new ones.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Ticket<'a>(&'a Drain);

impl Drain {
    pub(crate) fn new(draining: bool) -> Self {
        Self { inner: Mutex::new(Inner { draining, ..Inner::default() }), changed: Condvar::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request; `None` where nothing new is taken.
    pub(crate) fn enter(&self) -> Option<Ticket<'_>> {
        let mut inner = self.inner();
        if inner.draining {
            return None;
        }
        inner.under_way += 1;
        Some(Ticket(self))
    }

    /// Takes nothing new, and waits until nothing is under way and `is_busy` says no. Where that does not come to be in time,
    /// new requests are taken again, and the number that is still under way is returned.
    pub(crate) fn close(&self, limit: Duration, is_busy: impl Fn() -> bool) -> Result<(), u32> {
        let deadline = Instant::now() + limit;
        let own = {
            let mut inner = self.inner();
            inner.draining = true;
            inner.epoch += 1;
            inner.epoch
        };
        loop {
            // Not under the lock, which everybody needs who asks for something.
            let is_busy = is_busy();
            let mut inner = self.inner();
            // A wake has taken it back.
            if inner.epoch != own {
                return Err(inner.under_way);
            }
            if inner.under_way == 0 && !is_busy {
                return Ok(());
            }
            if Instant::now() >= deadline {
                inner.draining = false;
                return Err(inner.under_way);
            }
            drop(self.changed.wait_timeout(inner, LOOK));
        }
    }

    /// Takes requests again.
    pub(crate) fn open(&self) {
        let mut inner = self.inner();
        inner.draining = false;
        inner.epoch += 1;
        drop(inner);
        self.changed.notify_all();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.inner().draining
    }

    pub(crate) fn under_way(&self) -> u32 {
        self.inner().under_way
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.0.inner().under_way -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_under_way_is_waited_for_and_nothing_new_is_taken() {
        let drain = Drain::default();
        let ticket = drain.enter().unwrap();
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| drain.close(LONG, || false));
            while !drain.is_draining() {
                std::thread::yield_now();
            }
            assert!(drain.enter().is_none());
            assert!(!closing.is_finished());
            drop(ticket);
            assert_eq!(closing.join().unwrap(), Ok(()));
        });
        assert!(drain.enter().is_none());
        drain.open();
        assert!(drain.enter().is_some());
    }

    #[test]
    fn one_that_was_taken_back_changes_nothing_of_the_next() {
        let drain = Drain::default();
        let ticket = drain.enter().unwrap();
        // It is overtaken while it looks at the workload: taken back, and closed again by another one.
        let overtaken = drain.close(LONG, || {
            drain.open();
            drain.inner().draining = true;
            false
        });
        assert_eq!(overtaken, Err(1));
        assert!(drain.enter().is_none(), "the next one is under way");
        drop(ticket);
        drain.open();
        assert!(drain.enter().is_some());
    }

    #[test]
    fn what_does_not_end_in_time_keeps_the_guest_awake() {
        let drain = Drain::default();
        let _ticket = drain.enter().unwrap();
        assert_eq!(drain.close(Duration::ZERO, || false), Err(1));
        assert!(drain.enter().is_some());
        assert_eq!(Drain::default().close(Duration::ZERO, || true), Err(0));
    }
}
