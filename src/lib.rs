//! mvm runs fleets of Firecracker microVMs for many tenants.
pub mod vm;
