//! Tenants: the boundary of isolation. They own quotas, a network, leases, secrets and an audit log, and have no runtime state.

pub mod config;
pub mod leases;
pub mod lifecycle;
pub mod quota;
pub mod secrets;
pub mod ssh_key;
