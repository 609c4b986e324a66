//! Whether the guest runs: everything that it does goes through here, so that a pause stops all of it at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    running: bool,
    busy: usize,
}

/// Open while the VM runs.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// The guest is doing something; ends when dropped.
pub(crate) struct Running(Arc<Gate>);

impl mvm_guest::Hold for Running {}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the VM runs.
    pub(crate) fn enter(self: &Arc<Self>) -> Running {
        let mut state = self.state();
        while !state.running {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.busy += 1;
        Running(Arc::clone(self))
    }

    /// Lets the VM run.
    pub(crate) fn open(&self) {
        self.state().running = true;
        self.changed.notify_all();
    }

    /// Stops it, and waits until nothing is under way.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.running = false;
        while state.busy > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.busy -= 1;
        if state.busy == 0 {
            self.0.changed.notify_all();
        }
    }
}
