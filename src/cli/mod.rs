//! The command line: arguments, what is printed, exit codes. The only place that prints.
#![cfg_attr(
    not(target_os = "linux"),
    expect(dead_code, reason = "away from Linux nothing is done and printed here")
)]

mod arguments;
mod error;
mod output;
mod reference;

#[cfg(not(target_os = "linux"))]
mod away;
#[cfg(target_os = "linux")]
mod commands;

#[cfg(not(target_os = "linux"))]
use away::execute;
use clap::{CommandFactory, FromArgMatches};
#[cfg(target_os = "linux")]
use commands::execute;

#[cfg(target_os = "linux")]
pub use self::commands::{kernel, tell_guest, tiny_kernel};
pub use self::reference::reference;
use self::{
    arguments::{Cli, Command},
    error::{CliError, Kind},
    output::Out,
};
use crate::infra::config::Environment;

/// Runs the command that the process's arguments name. Returns the exit code.
pub fn run() -> u8 {
    let mut command = Cli::command();
    let parsed = command
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return error::usage(&error),
    };
    let environment = Environment::read();
    let out = Out::new(&cli.global, &environment);
    let done = match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "mvm", &mut script);
            out.raw(&script);
            Ok(0)
        }
        Command::Man { dir } => man(&out, dir.as_deref()),
        _ => execute(cli, &environment, &out),
    };
    let code = done.unwrap_or_else(|error| out.error(&error));
    match out.unwritten() {
        // Done, and not said: who reads the output must not take it for all there is.
        Some(why) if code == 0 => {
            out.error(&CliError::new(Kind::Failed, "io", format!("cannot write to stdout: {why}")))
        }
        _ => code,
    }
}

fn man(out: &Out, dir: Option<&std::path::Path>) -> Result<u8, CliError> {
    let command = Cli::command();
    match dir {
        Some(dir) => std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(command, dir))
            .map_err(|error| {
                CliError::new(Kind::Failed, "io", format!("cannot write to {}: {error}", dir.display()))
            })?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut page)
                .map_err(|error| CliError::new(Kind::Failed, "io", error.to_string()))?;
            out.raw(&page);
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
