//! `mvm demo`: what mvm does, told with real packets in a throw-away root and network namespace.
//!
//! The command itself only stages: it makes the root, looks at the host, lets a child play the story in namespaces of its
//! own, looks at the host again, and removes the root. So nothing is left behind where the story is killed or interrupted;
//! where the command itself is killed, the next one sweeps.

mod guest;
mod signals;
mod sleep;
mod story;
mod world;

use std::{
    io::Read,
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

pub use self::guest::{kernel, tell, tiny_kernel};
use self::{signals::Signals, world::World};
use crate::cli::{
    arguments::demo::DemoCommand,
    error::{CliError, Kind},
    output::{Out, Tone},
};
use crate::{
    infra::{
        config::{Environment, THROW_AWAY_MARK},
        shell,
    },
    store,
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
    /// Which VMM played the guests that packets went to.
    vmm: String,
    /// Why that one.
    why: String,
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
        Some(root) => {
            Signals::release();
            story::play(out, environment, root)
        }
        None => stage(out),
    }
}

/// Removes what a stage that was killed left behind, with the VMMs that still work in it.
fn sweep() {
    let folder = std::env::temp_dir();
    for name in store::names(&folder, |name| name.starts_with(NAME)).unwrap_or_default() {
        let pid = name.strip_prefix(NAME).and_then(|pid| pid.parse().ok());
        let root = folder.join(&name);
        if pid.is_some_and(|pid| !store::is_alive(pid)) && root.join(THROW_AWAY_MARK).exists() {
            world::end_vmms_in(&root);
            let _ = std::fs::remove_dir_all(&root);
        }
    }
}

fn stage(out: &Out) -> Result<u8, CliError> {
    let start = std::time::Instant::now();
    packages(out)?;
    let signals = Signals::hold().map_err(|error| lacking(error.to_string()))?;
    sweep();
    let root = std::env::temp_dir().join(format!("{NAME}{}", std::process::id()));
    let root = std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&root)
        // What looks for processes compares paths without symbolic links.
        .and_then(|()| root.canonicalize())
        .map_err(|error| lacking(format!("cannot make {}: {error}", root.display())))?;
    let before = World::look(&root);
    let played = std::fs::write(root.join(THROW_AWAY_MARK), "").and_then(|()| played(out, &root, &signals));
    world::end_vmms_in(&root);
    let host = before.difference(&World::look(&root));
    let _ = std::fs::remove_dir_all(&root);
    // Only now: who reads this may be gone, and then nothing comes after it.
    let (output, came) = played.map_err(|error| lacking(error.to_string()))?;
    if let Some(signal) = came.or_else(|| signals.came()) {
        out.note("interrupted; nothing of it is left");
        return Ok(128 + signal);
    }
    let code = match output.status.code() {
        Some(code) => code as u8,
        None => 1,
    };
    match out.json {
        true => report(out, code, &output.stdout, &host),
        false => Ok(conclude(out, code, &host, start.elapsed())),
    }
}

/// Plays the story. A signal that would end this process ends the story with all that it started: VMMs, which are not of its
/// group, go with the root.
fn played(out: &Out, root: &Path, signals: &Signals) -> std::io::Result<(Output, Option<u8>)> {
    let mut child = Command::new(std::env::current_exe()?);
    child.arg("demo").arg("--inside").arg(root).env_remove("MVM_ROOT").stdin(std::process::Stdio::null());
    if out.json {
        child.arg("--json").stdout(std::process::Stdio::piped());
    }
    if !out.is_colored() {
        child.arg("--no-color");
    }
    let mut child = child.process_group(0).spawn()?;
    let pid = Pid::from_child(&child);
    let pipe = child.stdout.take();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut bytes = Vec::new();
            pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes)).map(|_| bytes)
        });
        let came = pidfd_open(pid, PidfdFlags::empty())
            .map_err(std::io::Error::from)
            .and_then(|pidfd| signals.wait(pidfd));
        // Before it is reaped: nobody else has its number yet.
        let _ = kill_process_group(pid, Signal::KILL);
        let status = child.wait()?;
        let stdout = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((Output { status, stdout, stderr: Vec::new() }, came?))
    })
}

/// The story's report, with what the host says of it. Where there is none, it said on stderr why.
fn report(out: &Out, code: u8, json: &[u8], host: &[String]) -> Result<u8, CliError> {
    let Ok(mut report) = serde_json::from_slice::<Report>(json) else { return Ok(code.max(1)) };
    for check in report.checks.iter_mut().filter(|check| check.name == "leaks" && !host.is_empty()) {
        check.ok = false;
        check.detail = format!("on the host: {}", host.join(", "));
    }
    report.ok &= host.is_empty();
    out.show(&report, String::new);
    Ok(if report.ok { code } else { code.max(1) })
}

fn conclude(out: &Out, code: u8, host: &[String], took: Duration) -> u8 {
    if !host.is_empty() {
        out.say(format!("  {} the host changed: {}", out.paint(Tone::Bad, "✗"), host.join(", ")));
        return code.max(1);
    }
    if code == 0 {
        let (mark, seconds) = (out.paint(Tone::Good, "✓"), format!("{:.1} s", took.as_secs_f64()));
        out.say(format!("  {mark} the host is as it was: links, rules, mounts, cgroups{seconds:>33}"));
    }
    code
}

/// How the names of the roots begin; the pid follows.
const NAME: &str = "mvm-demo-";

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
