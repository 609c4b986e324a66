//! Developers' commands: `cargo xtask check|test|docs|bench`.

mod bench;
mod check;
mod docs;
mod setup;
mod test;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Debug, Parser)]
enum Task {
    /// Everything but the tests: format, clippy, tidy, documents, licences
    Check,
    /// All tests that this machine can run; says what it skipped and why
    Test(test::TestArguments),
    /// Make the generated documents anew
    Docs,
    /// Measure, and print a table and JSON
    Bench(bench::BenchArguments),
}

fn main() -> ExitCode {
    match run_task(&Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_task(task: &Task) -> Result<()> {
    std::env::set_current_dir(root()).context("the workspace is not where it was built")?;
    match task {
        Task::Check => check::run(),
        Task::Test(arguments) => test::run(arguments),
        Task::Docs => docs::write(),
        Task::Bench(arguments) => bench::run(arguments),
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Runs a program and fails with it.
fn run(program: &str, arguments: &[&str]) -> Result<()> {
    println!("$ {program} {}", arguments.join(" "));
    let status =
        Command::new(program).args(arguments).status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} {} failed: {status}", arguments.first().unwrap_or(&""));
    }
    Ok(())
}
