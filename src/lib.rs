//! mvm runs fleets of Firecracker microVMs for many tenants: Tenant → WorkerPool → Instance.
//!
//! Layers, each using only those below it: `cli` → `node` → `vm` → `security`, `worker` → `vmm`, `net` → `store`, `infra`.
//! The files under `MVM_ROOT` are the truth; every command works from them, and no daemon is needed.
//!
//! Away from Linux only the half that speaks with a person is compiled: names, arguments, texts.

pub mod cli;
#[cfg(target_os = "linux")]
pub mod infra;
#[cfg(target_os = "linux")]
pub mod net;
#[cfg(target_os = "linux")]
pub mod node;
#[cfg(target_os = "linux")]
pub mod security;
pub mod store;
pub mod vm;
#[cfg(target_os = "linux")]
pub mod vmm;
#[cfg(target_os = "linux")]
pub mod worker;

#[cfg(not(target_os = "linux"))]
pub mod infra {
    //! What the command line needs of it.
    pub mod config;
    pub mod failpoint;
    pub mod processes;
    pub mod regular;
    pub mod relief;
    pub mod text;
}
#[cfg(not(target_os = "linux"))]
pub mod net {
    //! What the command line needs of it.
    pub mod egress;
}
#[cfg(not(target_os = "linux"))]
pub mod security {
    //! What the command line needs of it.
    pub mod policy;
}
