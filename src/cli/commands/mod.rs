//! What each command does and prints, a file per group.

mod audit;
mod console;
mod demo;
mod doctor;
mod events;
mod guest;
mod image;
mod instance;
mod net;
mod node;
mod pool;
mod report;
mod run;
mod secrets;
mod status;
mod tenant;
mod vmm;

pub use self::demo::{kernel, tell as tell_guest, tiny_kernel};
use std::path::Path;

use super::{
    arguments::{Cli, Command},
    error::{CliError, Kind},
    output::Out,
};
use crate::{
    infra::config::{DEFAULT_ROOT, Environment, Roots},
    vm::instance::lifecycle::Operator,
};

/// Does what was asked for. Returns the exit code.
pub fn execute(cli: Cli, environment: &Environment, out: &Out) -> Result<u8, CliError> {
    if !environment.wrong.is_empty() {
        return Err(CliError::new(Kind::Environment, "environment", environment.wrong.join("; ")));
    }
    if let Command::Demo(command) = &cli.command {
        return demo::run(out, environment, command);
    }
    let root = cli.global.root.as_deref().or(environment.root.as_deref()).unwrap_or(Path::new(DEFAULT_ROOT));
    let roots = Roots::new(root, environment)
        .map_err(|error| CliError::new(Kind::Environment, "root", format!("no usable root: {error}")))?;
    let mut operator = Operator::new(roots);
    match cli.command {
        Command::Tenant(command) => tenant::run(out, &mut operator, command),
        Command::Pool(command) => pool::run(out, &mut operator, command),
        Command::Image(command) => image::run(out, &operator.roots, command),
        Command::Instance(command) => instance::run(out, &mut operator, command),
        Command::Net(command) => net::run(out, &mut operator, command),
        Command::Node(command) => node::run(out, &mut operator, command),
        Command::Vmm(command) => vmm::run(out, &operator.roots, command),
        Command::Events(command) => events::run(out, &operator.roots, &command),
        Command::Run(arguments) => run::run(out, &mut operator, arguments),
        Command::Status => status::run(out, &mut operator),
        Command::Doctor { fix } => doctor::run(out, &operator.roots, fix),
        // Those that need no root are done before.
        Command::Demo(_) | Command::Completions { .. } | Command::Man { .. } => Ok(0),
    }
}
