//! `mvm demo`: what mvm does, told with real packets in a throw-away root and network namespace.
//!
//! The command itself only stages: it makes the root, looks at the host, lets a child play the story in namespaces of its
//! own, looks at the host again, and removes the root. So nothing is left behind, even where the story is killed.

mod guest;
mod story;
mod world;

use std::{path::Path, process::Command, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::guest::{tell, tiny_kernel};
use self::world::World;
use crate::cli::{
    arguments::demo::DemoCommand,
    error::{CliError, Kind},
    output::{Out, Tone},
};
use crate::infra::{
    config::{Environment, THROW_AWAY_MARK},
    shell,
};

/// One thing that was shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    name: String,
    ok: bool,
    detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ms: Option<f64>,
}

/// All of it.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    vmm: String,
    checks: Vec<Check>,
    ok: bool,
}

fn failed(what: impl Into<String>) -> CliError {
    CliError::new(Kind::Failed, "demo", what)
}

fn lacking(what: impl Into<String>) -> CliError {
    CliError::new(Kind::Environment, "demo_environment", what).fix("mvm doctor")
}

/// Runs the command.
pub fn run(out: &Out, environment: &Environment, command: &DemoCommand) -> Result<u8, CliError> {
    match &command.inside {
        Some(root) => story::play(out, environment, root),
        None => stage(out, command.keep),
    }
}

fn stage(out: &Out, keep: bool) -> Result<u8, CliError> {
    let start = std::time::Instant::now();
    packages(out)?;
    let root = std::env::temp_dir().join(format!("mvm-demo-{}", std::process::id()));
    std::fs::create_dir(&root)
        .map_err(|error| lacking(format!("cannot make {}: {error}", root.display())))?;
    let staged = std::fs::write(root.join(THROW_AWAY_MARK), "")
        .map_err(|error| lacking(error.to_string()))
        .and_then(|()| staged(out, &root, start));
    world::end_processes_in(&root);
    if keep {
        out.note(format!("kept: {}", root.display()));
    } else {
        let _ = std::fs::remove_dir_all(&root);
    }
    staged
}

fn staged(out: &Out, root: &Path, start: std::time::Instant) -> Result<u8, CliError> {
    let before = World::look(root);
    let program = std::env::current_exe().map_err(|error| lacking(error.to_string()))?;
    let mut child = Command::new(program);
    child.arg("demo").arg("--inside").arg(root).env_remove("MVM_ROOT").stdin(std::process::Stdio::null());
    if out.json {
        child.arg("--json").stdout(std::process::Stdio::piped());
    }
    if !out.is_colored() {
        child.arg("--no-color");
    }
    let output = child
        .spawn()
        .and_then(|child| child.wait_with_output())
        .map_err(|error| lacking(error.to_string()))?;
    let after = World::look(root);
    let host = before.difference(&after);
    let mut ok = output.status.success() && host.is_empty();
    if out.json {
        let mut report: Report = match serde_json::from_slice(&output.stdout) {
            Ok(report) => report,
            Err(_) => return Ok(output.status.code().map_or(1, |code| code as u8)),
        };
        for check in report.checks.iter_mut().filter(|check| check.name == "leaks" && !host.is_empty()) {
            check.ok = false;
            check.detail = format!("on the host: {}", host.join(", "));
        }
        report.ok = report.ok && host.is_empty();
        ok = report.ok;
        out.show(&report, String::new);
    } else if !host.is_empty() {
        out.say(format!("  {} the host changed: {}", out.paint(Tone::Bad, "✗"), host.join(", ")));
    } else if ok {
        let seconds = format!("{:.1} s", start.elapsed().as_secs_f64());
        out.say(format!(
            "  {} the host is as it was: links, rules, mounts, cgroups{seconds:>33}",
            out.paint(Tone::Good, "✓")
        ));
    }
    Ok(match output.status.code() {
        Some(0) if ok => 0,
        Some(0) | None => 1,
        Some(code) => code as u8,
    })
}

/// How long a package manager may take.
const APT_LIMIT: Duration = Duration::from_secs(300);

/// Programs that the story needs and Debian's packages for them: installed as root, named otherwise.
fn packages(out: &Out) -> Result<(), CliError> {
    let needed = [("nft", "nftables"), ("mke2fs", "e2fsprogs")];
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| shell::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        return Err(lacking(format!("Debian packages are missing: {names}"))
            .fix(format!("sudo apt-get install {names}")));
    }
    out.note(format!("installing missing Debian packages: {names}"));
    for arguments in
        [vec!["update", "-qq"], [vec!["install", "-y", "-qq", "--no-install-recommends"], missing].concat()]
    {
        shell::run("apt-get", &arguments, b"", APT_LIMIT).map_err(|error| lacking(error.to_string()))?;
    }
    Ok(())
}
