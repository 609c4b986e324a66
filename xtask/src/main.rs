//! Developers' commands: `cargo xtask check|test|docs|bench|lab`.

mod bench;
mod check;
mod docs;
mod lab;
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
    /// A virtual machine in which real Firecracker runs real Linux guests
    Lab(lab::LabArguments),
}

fn main() -> ExitCode {
    match run_task(&Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_task(task: &Task) -> Result<ExitCode> {
    let here = std::env::set_current_dir(root()).context("the workspace is not where it was built");
    match (task, here) {
        // In the lab, where there is none, it measures what lies on PATH.
        (Task::Bench(arguments), Err(_)) => bench::run_elsewhere(arguments),
        (_, Err(error)) => Err(error),
        (Task::Check, _) => check::run(),
        (Task::Test(arguments), _) => test::run(arguments),
        (Task::Docs, _) => docs::write(),
        (Task::Bench(arguments), _) => bench::run(arguments),
        (Task::Lab(arguments), _) => return lab::run(arguments).map(ExitCode::from),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Where cargo puts what it builds, and we what we make.
fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    std::path::absolute(named.unwrap_or_else(|| "target".into())).unwrap_or_else(|_| "target".into())
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
