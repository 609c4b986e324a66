//! mvm's agent in a guest. The program (`main.rs`) is PID 1 of a microVM or a service in it; the library is what the
//! simulated guest runs as well.
//!
//! ```text
//! agent      a connection: hello, request, answer     identify   who the guest is, step by step
//!   │                                                 drain      what is under way, and no more
//!   │                                                 exec, log  commands and the workload's lines
//!   │                                                 secrets    what is in /run/secrets
//!   └─ system   what a machine does: [`System`], by Linux here and by the simulated guest
//! ```
//! The library knows the protocol and the order of things, and no system call that changes the machine.

mod agent;
mod drain;
mod exec;
mod identify;
pub mod log;
mod secrets;
mod system;

pub use mvm_proto::ssh_key;

pub use self::{
    agent::Agent,
    identify::Fact,
    secrets::Secrets,
    system::{Control, Hold, Process, Running, State, System},
};
