//! Builds the agent that lies in guests: a static program, handed to the library as `MVM_GUEST`. It is built once for all
//! kinds of builds of mvm, in a target folder of its own, and only where mvm itself is for Linux.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// What the agent is made of.
const SOURCES: [&str; 7] = [
    "build.rs",
    "Cargo.toml",
    "Cargo.lock",
    "crates/mvm-guest/Cargo.toml",
    "crates/mvm-guest/src",
    "crates/mvm-proto/Cargo.toml",
    "crates/mvm-proto/src",
];

/// What of the outer cargo's variables the inner one needs: where things are, and how many jobs there may be.
const KEPT: [&str; 8] = [
    "CARGO_HOME",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
    "CARGO_TARGET_",
];
/// These belong to how mvm itself is compiled: clippy, coverage, other flags.
const DROPPED: [&str; 3] = ["RUSTC", "RUSTFLAGS", "CLIPPY_"];

fn main() -> ExitCode {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return ExitCode::SUCCESS;
    }
    match build() {
        Ok(program) => {
            println!("cargo::rustc-env=MVM_GUEST={}", program.display());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("the agent for guests cannot be built: {why}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let variable = |name: &str| env::var(name).map_err(|_| format!("cargo does not say {name}"));
    let (cargo, target, root) =
        (variable("CARGO")?, variable("TARGET")?, PathBuf::from(variable("CARGO_MANIFEST_DIR")?));
    let out = PathBuf::from(variable("OUT_DIR")?);
    let folder = folder(&out, &target).ok_or("cargo's folders are others than usual")?;
    let mut command = Command::new(cargo);
    command
        .current_dir(&root)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "guest",
            "--package",
            "mvm-guest",
            "--bin",
            "mvm-guest",
        ])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&folder);
    for (name, _) in env::vars_os() {
        if is_dropped(&name) {
            command.env_remove(name);
        }
    }
    // No path of this machine goes into a guest, and the same sources give the same bytes anywhere.
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    for (from, to) in [(Some(root), "/mvm"), (home, "/cargo")] {
        flags.extend(from.map(|from| format!("--remap-path-prefix={}={to}", from.display())));
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let status = command.status().map_err(|error| format!("cargo cannot be run: {error}"))?;
    match status.success() {
        true => {}
        false => return Err(format!("cargo ended with {status}")),
    }
    // A copy: it is there as long as what was built from it is.
    let (program, copy) = (folder.join(&target).join("guest").join("mvm-guest"), out.join("mvm-guest"));
    std::fs::copy(&program, &copy).map_err(|error| format!("{}: {error}", program.display()))?;
    Ok(copy)
}

/// One for debug and release builds, for clippy and the tests: beside their folders.
fn folder(out: &Path, target: &str) -> Option<PathBuf> {
    // <target folder>/[<target>/]<profile>/build/<package>/out
    let above = out.ancestors().nth(4)?;
    let above = if above.ends_with(target) { above.parent()? } else { above };
    Some(above.join("guest"))
}

fn is_dropped(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    is(&DROPPED) || (name.starts_with("CARGO_") && !is(&KEPT)) || name == "CARGO_TARGET_DIR"
}
