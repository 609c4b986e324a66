//! Tenants, pools and instances.
pub mod naming;
