//! Not on Linux: the whole command runs in the Linux VM, by the `mvm` inside.

use std::{os::unix::process::CommandExt, process::Command};

use super::{
    arguments::Cli,
    error::{CliError, Kind},
    output::Out,
};
use crate::infra::config::Environment;

/// The Lima VM that holds the Linux half.
const VM_NAME: &str = "mvm";

/// Replaces this process by the same command inside the VM, so that terminal, signals and exit code are its own.
pub fn execute(_: Cli, _: &Environment, _: &Out) -> Result<u8, CliError> {
    let mut command = Command::new("limactl");
    command.args(["shell", VM_NAME, "mvm"]).args(std::env::args_os().skip(1));
    let error = command.exec();
    let what = format!("cannot run limactl, which carries the command into the Linux VM {VM_NAME}: {error}");
    Err(CliError::new(Kind::Environment, "no_lima", what)
        .fix(format!("brew install lima, and a VM named {VM_NAME} with mvm in it")))
}
