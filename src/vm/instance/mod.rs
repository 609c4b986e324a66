//! Instances: one microVM each, with a state machine. Everything that changes one is in [`lifecycle`].

pub mod config;
pub mod delivery;
pub mod disk;
pub mod disk_rates;
pub mod fc_config;
pub mod guard;
pub mod guest;
pub mod launch;
pub mod lifecycle;
pub mod logs;
pub mod net;
pub mod runner;
pub mod snapshot;
pub mod state;
pub mod stats;
pub mod vmm_dir;
pub mod wait;
