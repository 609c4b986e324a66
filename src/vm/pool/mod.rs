//! Pools: what to run, and how. They own resources, policies and revisions of artifacts, and have no runtime state.

pub mod artifacts;
pub mod config;
pub mod lifecycle;
pub mod scale;
