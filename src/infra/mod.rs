//! What everything else stands on: configuration, failpoints, the spawner of processes.

pub mod beneath;
pub mod config;
pub mod entropy;
pub mod failpoint;
pub mod mounts;
pub mod processes;
pub mod regular;
pub mod relief;
pub mod shell;
pub mod sparse;
pub mod terminal;
pub mod text;
pub mod watch;

#[cfg(test)]
pub mod tests;
