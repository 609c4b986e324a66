//! The whole command line as Markdown, for docs/cli.md.

use clap::CommandFactory;

use super::{arguments::Cli, error};

/// Environment, exit codes, and the help of every command.
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
    text.push_str(
        "\nWith `--json` an error is `{\"error\":{\"code\",\"what\",\"why\",\"fix\"}}` on stderr; where several things are wrong, a line for each.\n",
    );
    let mut command = Cli::command().term_width(100);
    command.build();
    describe(&mut text, &mut command);
    text
}

fn describe(text: &mut String, command: &mut clap::Command) {
    if command.is_hide_set() || command.get_name() == "help" {
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
