//! Generated documents: docs/cli.md, and the state diagram in docs/architecture.md.

use anyhow::{Context, Result, bail};

const CLI: &str = "docs/cli.md";
const ARCHITECTURE: &str = "docs/architecture.md";
const BEGIN: &str = "```mermaid\n";
const END: &str = "\n```\n<!-- made by `cargo xtask docs` -->";

/// Writes them.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write() -> Result<()> {
    for (path, text) in generated()? {
        std::fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// Compares them with what they should be.
///
/// # Errors
/// When one is not current.
pub fn check() -> Result<()> {
    for (path, text) in generated()? {
        if std::fs::read_to_string(path).unwrap_or_default() != text {
            bail!("{path} is not current: cargo xtask docs");
        }
    }
    Ok(())
}

fn generated() -> Result<Vec<(&'static str, String)>> {
    let page =
        std::fs::read_to_string(ARCHITECTURE).with_context(|| format!("cannot read {ARCHITECTURE}"))?;
    let begin = page.find(BEGIN).context("docs/architecture.md has no mermaid block")? + BEGIN.len();
    let end = page.find(END).context("docs/architecture.md has no end of its mermaid block")?;
    let diagram = mvm::vm::instance::state::diagram();
    let architecture = format!("{}{diagram}{}", &page[..begin], &page[end..]);
    Ok(vec![(CLI, mvm::cli::reference()), (ARCHITECTURE, architecture)])
}
