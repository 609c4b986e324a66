//! Guests with an agent, as whole commands on the simulated VMM: who they are, what reaches into them, and what a guest that
//! lies, is silent or floods can do. The same with real guests is in the lab.

#[path = "../support/mod.rs"]
mod support;

mod clock;
mod copy;
mod drain;
mod exec;
mod hostile;
mod identity;
mod liars;
mod logs;
mod metadata;
mod shown;
mod signals;
mod world;
