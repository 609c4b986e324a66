//! What the cases share: the program under test, its process, its API, and things for a VM to be made of.

mod client;
mod inputs;
mod program;
mod steps;
mod vmm;

pub use client::{Answer, Client};
pub use inputs::{endless_kernel, tiny_kernel};
pub use program::{Lab, Program, run, skip};
pub use vmm::{Ended, Vmm};

/// The version of Firecracker whose contract this is.
pub const VERSION: &str = "1.16.1";

/// What everything that may come too early is answered.
pub const PRE_BOOT: &str = "The requested operation is not supported before starting the microVM.";

/// What everything that comes too late is answered.
pub const POST_BOOT: &str = "The requested operation is not supported after starting the microVM.";

/// Turns functions that take a [`Lab`] into tests: each in a module `sim` on fcsim, and in a module `real` on
/// Firecracker. A case that is not listed is dead code, which clippy refuses.
#[macro_export]
macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod sim {
            $(#[test] fn $case() { $crate::support::run($crate::support::Program::Sim, super::$case); })+
        }
        mod real {
            $(#[test] fn $case() { $crate::support::run($crate::support::Program::Real, super::$case); })+
        }
    };
}
