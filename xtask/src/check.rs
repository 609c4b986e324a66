//! Everything that CI runs beside the tests.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// Licences that a dependency may have; one of its alternatives is enough.
const LICENCES: [&str; 12] = [
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "CC0-1.0",
    "BSL-1.0",
    "MIT-0",
    "Apache-2.0 WITH LLVM-exception",
];

/// Runs all checks.
///
/// # Errors
/// The first that fails.
pub fn run() -> Result<()> {
    crate::run("cargo", &["fmt", "--all", "--check"])?;
    crate::run(
        "cargo",
        &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"],
    )?;
    crate::run(
        "cargo",
        &["rustdoc", "--lib", "--package", "mvm", "--locked", "--quiet", "--", "-D", "warnings"],
    )?;
    away_from_linux()?;
    crate::tidy::run()?;
    crate::docs::check()?;
    dependencies()?;
    println!("check: all well");
    Ok(())
}

/// The half that speaks with a person compiles for a Mac, where the target is installed.
fn away_from_linux() -> Result<()> {
    const TARGET: &str = "aarch64-apple-darwin";
    let installed = std::process::Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).exists());
    if !installed {
        println!("SKIP (target {TARGET} is not installed): compiling the command line for a Mac");
        return Ok(());
    }
    let arguments = [
        "clippy",
        "--target",
        TARGET,
        "--no-default-features",
        "--locked",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    crate::run("cargo", &arguments)
}

/// Every dependency has a licence from the list, and is there once.
fn dependencies() -> Result<()> {
    let output = std::process::Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata says nonsense")?;
    let mut wrong = Vec::new();
    let mut names = std::collections::HashSet::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        if !names.insert(name.to_owned()) {
            wrong.push(format!("{name} is there in two versions"));
        }
        let licence = package["license"].as_str().unwrap_or_default().replace('/', " OR ");
        let allowed = |one: &str| LICENCES.contains(&one.trim().trim_matches(['(', ')']));
        // `A AND B` needs both, `A OR B` one of them; no dependency nests them deeper than that.
        let fine = licence.split(" AND ").all(|part| part.split(" OR ").any(allowed));
        if !fine {
            wrong.push(format!("{name}: {licence:?}"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("dependencies:\n  {}", wrong.join("\n  "))
}
