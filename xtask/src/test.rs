//! All tests, in tiers; what this machine cannot run is counted and said.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

#[derive(Debug, Args)]
pub struct TestArguments {
    /// Leave out the lab (tier T4), which otherwise follows where nothing was picked and a firecracker is here
    #[arg(long)]
    no_lab: bool,
    /// Passed on to the test runner, a filter for example
    #[arg(trailing_var_arg = true)]
    rest: Vec<String>,
}

/// Runs them.
///
/// # Errors
/// When one fails.
pub fn run(arguments: &TestArguments) -> Result<()> {
    crate::setup::ensure()?;
    let skips = tempfile::NamedTempFile::new().context("no temporary file")?;
    let nextest =
        Command::new("cargo").args(["nextest", "--version"]).output().is_ok_and(|out| out.status.success());
    let mut command = Command::new("cargo");
    match nextest {
        true => command.args([
            "nextest",
            "run",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--status-level",
            "slow",
        ]),
        false => command.args(["test", "--workspace", "--locked", "--no-fail-fast"]),
    };
    let status = command
        .args(&arguments.rest)
        .env("MVM_SKIP_LOG", skips.path())
        .status()
        .context("cannot run cargo")?;
    report(&std::fs::read_to_string(skips.path()).unwrap_or_default());
    if !status.success() {
        bail!("tests failed");
    }
    lab(arguments)
}

/// Tier T4, where it is wanted and possible.
fn lab(arguments: &TestArguments) -> Result<()> {
    let left_out = match crate::lab::lacking() {
        Some(why) => why,
        None if arguments.no_lab => "--no-lab".into(),
        None if !arguments.rest.is_empty() => "only some tests were picked; cargo xtask lab test".into(),
        None => return crate::lab::tier(),
    };
    println!("SKIP ({left_out}): T4, the lab");
    Ok(())
}

fn report(skips: &str) {
    println!();
    println!(
        "tiers: T1 unit and property · T2 whole commands on the simulated VMM · T3 real Firecracker, tiny guest · T4 the lab, follows"
    );
    let mut reasons: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for reason in skips.lines() {
        *reasons.entry(reason).or_default() += 1;
    }
    if reasons.is_empty() {
        println!("nothing was skipped");
    }
    for (reason, count) in reasons {
        println!("SKIP ({reason}): {count} tests");
    }
}
