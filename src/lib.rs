//! mvm runs fleets of Firecracker microVMs for many tenants: Tenant → WorkerPool → Instance.
//!
//! Layers, each using only those below it: `cli` → `node` → `vm` → `security` → `vmm`, `net` → `store`, `infra`.
//! The files under `MVM_ROOT` are the truth; every command works from them, and no daemon is needed.

#[cfg(target_os = "linux")]
pub mod cli;
#[cfg(target_os = "linux")]
pub mod infra;
#[cfg(target_os = "linux")]
pub mod net;
#[cfg(target_os = "linux")]
pub mod node;
#[cfg(target_os = "linux")]
pub mod security;
#[cfg(target_os = "linux")]
pub mod store;
pub mod vm;
#[cfg(target_os = "linux")]
pub mod vmm;
