//! Pools: what to run, and how. They own resources, policies, revisions of artifacts and base snapshots, and have no runtime state.

pub mod artifacts;
pub mod base;
pub mod checks;
pub mod config;
pub mod import;
pub mod lifecycle;
pub mod on_rotate;
pub mod scale;
