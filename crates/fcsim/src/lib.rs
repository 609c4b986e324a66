//! fcsim: a simulated Firecracker, its arguments, API and rules without a CPU behind them.
//!
//! It is a program like the real one: a process with an API socket, started by whatever manages microVMs, so that what
//! tests run is what production runs. What it answers is held to real Firecracker by one contract suite that runs
//! against both; where they differ, fcsim is wrong.
//!
//! - [`main`] is the program.
//! - `args`, `process`, `log`, `metrics`: the process.
//! - `http`, `api`, `wire`: from bytes on the API socket to an action.
//! - `vmm`, `snapshot`: what is configured, what may come when, and the texts of refusals.
//! - `guest`: memory, console, network and vsock services of the simulated guest.
//! - `fault`: faults on request. `host`: what the kernel is asked for.

mod api;
mod args;
mod fault;
mod guest;
mod host;
mod http;
mod log;
mod metrics;
mod process;
mod snapshot;
mod vmm;
mod wire;

/// The version of Firecracker that is simulated.
pub const VERSION: &str = "1.16.1";

/// Runs the simulated VMM with Firecracker's arguments (the first is the program's name) and returns its exit code.
pub fn main(args: impl Iterator<Item = std::ffi::OsString>) -> i32 {
    process::main(args)
}
