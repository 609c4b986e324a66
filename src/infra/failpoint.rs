//! Failpoints: places between two effects where a test can kill this process, or make the next effect fail.
//!
//! They are in every build, so that what is tested is what runs, and cost one atomic load where none is armed.
//! [`arm`] is called only for a root that is marked throw-away.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

static ARMED: OnceLock<Armed> = OnceLock::new();
static PASSED: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
struct Armed {
    at: At,
    action: Action,
}

#[derive(Debug)]
enum At {
    Name(String),
    Count(u32),
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Kill,
    Fail,
}

/// Arms one failpoint for the life of this process: `[fail:]NAME` or `[fail:]#N` for the Nth point that is passed.
pub fn arm(spec: &str) {
    let (action, at) = match spec.strip_prefix("fail:") {
        Some(rest) => (Action::Fail, rest),
        None => (Action::Kill, spec),
    };
    let at = match at.strip_prefix('#').and_then(|number| number.parse().ok()) {
        Some(number) => At::Count(number),
        None => At::Name(at.to_owned()),
    };
    // A second call would come from a second set of roots in one process: the first one holds.
    let _ = ARMED.set(Armed { at, action });
}

/// Passes the point `operation.step`.
///
/// # Errors
/// An I/O error where a test armed this point to fail.
pub fn hit(operation: &str, step: &str) -> io::Result<()> {
    let Some(armed) = ARMED.get() else { return Ok(()) };
    let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    let here = match &armed.at {
        At::Count(number) => passed == *number,
        At::Name(name) => name.split_once('.') == Some((operation, step)),
    };
    match armed.action {
        _ if !here => Ok(()),
        Action::Fail => Err(io::Error::other(format!("made to fail at {operation}.{step}"))),
        Action::Kill => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is deadly; a process that runs on here would report a crash that did not happen.
            std::process::abort()
        }
    }
}
