//! The agent as it is built, in a machine that consists of namespaces: PID 1 of it, with a network, a host name, and files
//! of its own. What it does to the real machine stays in there; a host's clock has no namespace, so it is left alone.
//!
//! Mounting disks, vsock, and the clock are tested in the lab.

#![expect(
    clippy::unwrap_used,
    reason = "what helps tests is a test as well: where it cannot go on, it has failed"
)]

mod copy;
mod end;
mod exec;
mod identity;
mod nonsense;
mod secrets;
mod service;
mod terminal;
mod workload;
mod world;
