//! Measures what has a figure.

use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub struct BenchArguments {}

/// Runs it.
pub fn run(_arguments: &BenchArguments) -> Result<()> {
    Ok(())
}
