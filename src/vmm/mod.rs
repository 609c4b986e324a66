//! The VMM, Firecracker or the simulated one: its API, its process, its installed versions.
//!
//! Knows nothing of tenants, pools and instances.

pub mod client;
pub mod install;
pub mod process;
pub mod quirks;
pub mod spares;
pub mod vsock;
pub mod wire;
