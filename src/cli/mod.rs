//! The command line: arguments, what is printed, exit codes. The only place that prints.

mod arguments;
mod demo;
mod doctor;
mod error;
mod events;
mod instance;
mod net;
mod node;
mod output;
mod pool;
mod status;
mod tenant;
mod vmm;

pub use self::demo::{tell as tell_guest, tiny_kernel};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::{
    arguments::Global,
    error::{CliError, Kind},
    output::Out,
};
use crate::{
    infra::config::{Environment, Roots},
    vm::instance::lifecycle::Operator,
};

/// Runs fleets of Firecracker microVMs for many tenants.
#[derive(Debug, Parser)]
#[command(name = "mvm", version, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what mvm does, with real packets, in a throw-away root and network namespace
    Demo(demo::DemoCommand),
    /// Show what runs on this node
    Status,
    /// Look for settings of this host that hurt
    Doctor,
    /// Show what happened, on all tenants
    Events(events::EventsCommand),
    /// Tenants: isolation, quotas, audit
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Pools: what to run, and how
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Instances: one microVM each
    #[command(subcommand)]
    Instance(instance::InstanceCommand),
    /// The tenants' networks in the kernel
    #[command(subcommand)]
    Net(net::NetCommand),
    /// This node: limits, recovery, cleaning up
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Installed versions of Firecracker
    #[command(subcommand)]
    Vmm(vmm::VmmCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page per command into a folder
    Man {
        /// Where to write them
        #[arg(long)]
        dir: Option<std::path::PathBuf>,
    },
}

/// Runs the command that the process's arguments name. Returns the exit code.
pub fn run() -> u8 {
    let mut command = Cli::command();
    let matches = match command.try_get_matches_from_mut(std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) => return error::usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return error::usage(&error),
    };
    let out = Out::new(&cli.global);
    match execute(cli, &out) {
        Ok(code) => code,
        Err(error) => out.error(&error),
    }
}

fn execute(cli: Cli, out: &Out) -> Result<u8, CliError> {
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "mvm", &mut script);
            out.raw(&script);
            return Ok(0);
        }
        Command::Man { dir } => return man(out, dir.as_deref()),
        Command::Demo(demo) => return demo::run(out, demo),
        _ => {}
    }
    let environment = Environment::read();
    let roots = Roots::new(&cli.global.root, &environment)
        .map_err(|error| CliError::new(Kind::Environment, "root", format!("no usable root: {error}")))?;
    let mut operator = Operator::new(roots);
    match cli.command {
        Command::Tenant(command) => tenant::run(out, &mut operator, command),
        Command::Pool(command) => pool::run(out, &mut operator, command),
        Command::Instance(command) => instance::run(out, &mut operator, command),
        Command::Net(command) => net::run(out, &mut operator, command),
        Command::Node(command) => node::run(out, &mut operator, command),
        Command::Vmm(command) => vmm::run(out, &operator.roots, command),
        Command::Events(command) => events::run(out, &operator.roots, &command),
        Command::Status => status::run(out, &mut operator),
        Command::Doctor => doctor::run(out, &operator.roots),
        Command::Demo(_) | Command::Completions { .. } | Command::Man { .. } => Ok(0),
    }
}

fn man(out: &Out, dir: Option<&std::path::Path>) -> Result<u8, CliError> {
    let command = Cli::command();
    match dir {
        Some(dir) => clap_mangen::generate_to(command, dir).map_err(|error| {
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

/// The whole command line as Markdown, for docs/cli.md.
pub fn reference() -> String {
    let mut text = String::from(
        "# The command line\n\nMade from the program itself by `cargo xtask docs`; checked by `cargo xtask check`.\n",
    );
    text.push_str("\n## Environment\n\n| variable | what it does |\n| --- | --- |\n");
    for (name, does) in crate::infra::config::ENVIRONMENT {
        text.push_str(&format!("| `{name}` | {does} |\n"));
    }
    text.push_str("\n## Exit codes\n\n");
    text.push_str(error::EXIT_CODES);
    let mut command = Cli::command().term_width(100);
    command.build();
    describe(&mut text, &mut command);
    text
}

fn describe(text: &mut String, command: &mut clap::Command) {
    if command.is_hide_set() {
        return;
    }
    let name = command.get_bin_name().unwrap_or("mvm").to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    text.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end()));
    for sub in command.get_subcommands_mut() {
        describe(text, sub);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
