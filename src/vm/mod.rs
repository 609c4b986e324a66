//! Tenants, pools and instances: what they are, and the operations on them.

pub mod naming;

#[cfg(target_os = "linux")]
pub mod instance;
#[cfg(target_os = "linux")]
pub mod pool;
#[cfg(target_os = "linux")]
pub mod room;
#[cfg(target_os = "linux")]
pub mod tenant;
