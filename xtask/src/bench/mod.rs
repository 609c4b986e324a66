//! Measures what has a figure: against the bare thing in the same run, where there is one. Never a test: figures of a busy
//! machine are looked at by people.

mod audit;
mod bare;
mod disk;
mod endurance;
mod fleet;
mod guest;
pub mod guests;
mod jail;
mod noise;
mod root;
mod sleep;
mod start;
mod wakes;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

#[derive(Debug, Args)]
pub struct BenchArguments {
    /// What to measure; everything but the cold build, where nothing is named
    what: Vec<What>,
    /// Pairs of what is compared, mvm's and the bare one's
    #[arg(long, default_value_t = 100)]
    pairs: u32,
    /// Memory of the guests that sleep and wake, in MiB
    #[arg(long, value_delimiter = ',', default_values_t = [128, 512])]
    mem: Vec<u32>,
    /// Parts of what is measured of guests, each in a lab of its own; all, where none is named
    #[arg(long, value_delimiter = ',')]
    part: Vec<guests::Part>,
    /// Sleeps and wakes of the part that counts them
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
    /// Instances of the large fleet; a tenth of them runs
    #[arg(long, default_value_t = 10_000)]
    instances: u32,
    /// Also write the results as JSON into this file
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// `mvm --version`
    Version,
    /// `instance start` against bare Firecracker
    Start,
    /// `instance sleep` and `wake` against bare Firecracker
    Sleep,
    /// Starts and wakes in a jail against the same without one
    Jail,
    /// Fifty wakes at once against as many bare restores at once
    Wakes,
    /// Guests with an agent: exec in a simulated one, the rest with real ones in the lab
    Guests,
    /// A line of an audit log against a bare append; verifying ten thousand
    Audit,
    /// Not measured: the bare end of a stream, in a guest of the lab
    #[value(hide = true)]
    Sink,
    /// Many instances: list, stats, net verify, the thousandth start
    Fleet,
    /// 200 lives, 4 at once
    Churn,
    /// A cold build of the workspace
    Build,
}

/// One figure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    what: String,
    value: String,
    must: String,
    ok: bool,
}

fn figure(what: impl Into<String>, value: impl Into<String>, must: impl Into<String>, ok: bool) -> Figure {
    Figure { what: what.into(), value: value.into(), must: must.into(), ok }
}

/// Runs it.
///
/// # Errors
/// When something cannot be measured; a figure that is missed is no error.
pub fn run(arguments: &BenchArguments) -> Result<()> {
    crate::setup::ensure()?;
    let wanted = |what| match arguments.what.is_empty() {
        true => !matches!(what, What::Build | What::Sink),
        false => arguments.what.contains(&what),
    };
    let mut figures = Vec::new();
    crate::run("cargo", &["build", "--release", "--quiet", "--package", "mvm", "--package", "xtask"])?;
    if cfg!(debug_assertions) {
        // What is called and not run is a part of this program: it is measured as it is released.
        let again = std::path::absolute("target/release/xtask")?;
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        return crate::run(again.to_str().context("a path that is no text")?, &arguments);
    }
    if wanted(What::Build) {
        figures.push(cold_build()?);
    }
    if wanted(What::Guests) {
        // Before there is a namespace: the lab is a machine of its own.
        figures.extend(crate::lab::measure(arguments.pairs, arguments.cycles, &arguments.part)?);
    }
    let program = std::path::absolute("target/release/mvm")?;
    // SAFETY: no other thread runs yet, so nothing else notices that the namespaces change.
    unsafe {
        rustix::thread::unshare_unsafe(
            rustix::thread::UnshareFlags::NEWNET | rustix::thread::UnshareFlags::NEWNS,
        )
    }
    .context("a network namespace is needed: run as root")?;
    if wanted(What::Version) {
        figures.extend(version(&program)?);
    }
    if wanted(What::Start) {
        figures.extend(start::measure(&program, arguments.pairs)?);
    }
    if wanted(What::Sleep) {
        figures.extend(sleep::measure(&program, arguments.pairs, &arguments.mem)?);
    }
    if wanted(What::Jail) {
        figures.extend(jail::measure(&program, arguments.pairs)?);
    }
    if wanted(What::Wakes) {
        figures.extend(wakes::measure(&program)?);
    }
    if wanted(What::Guests) {
        figures.extend(guests::simulated(&program, arguments.pairs)?);
    }
    if wanted(What::Audit) {
        figures.extend(audit::measure()?);
    }
    if wanted(What::Churn) {
        figures.push(fleet::churn(&program)?);
    }
    if wanted(What::Fleet) {
        figures.extend(fleet::measure(&program, arguments.instances)?);
    }
    report(&figures, arguments.json.as_deref())
}

/// What this program measures where it is carried to: into the lab, or into a guest there. There is no workspace.
///
/// # Errors
/// When something cannot be measured.
pub fn run_elsewhere(arguments: &BenchArguments) -> Result<()> {
    match arguments.what.as_slice() {
        [What::Sink] => guests::sink(),
        _ => report(
            &guests::in_lab(arguments.pairs, arguments.cycles, &arguments.part)?,
            arguments.json.as_deref(),
        ),
    }
}

fn report(figures: &[Figure], json: Option<&Path>) -> Result<()> {
    let conditions = conditions();
    println!("\n{conditions}\n");
    println!("| what | measured | must reach | |\n| --- | --- | --- | --- |");
    for Figure { what, value, must, ok } in figures {
        println!("| {what} | {value} | {must} | {} |", if *ok { "✓" } else { "✗" });
    }
    let report = serde_json::json!({ "conditions": conditions, "figures": figures });
    let text = serde_json::to_string_pretty(&report)?;
    match json {
        Some(path) => std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display())),
        None => {
            println!("\n{text}");
            Ok(())
        }
    }
}

fn conditions() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory =
        read("/proc/meminfo").split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    format!(
        "{cpus} CPUs, {} GiB, kernel {}, load {}",
        memory >> 20,
        read("/proc/sys/kernel/osrelease"),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
}

/// The value below which a share of the values lies.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count => sorted[((count - 1) as f64 * share).round() as usize],
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn version(program: &Path) -> Result<Vec<Figure>> {
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        Command::new(program).arg("--version").stdout(Stdio::null()).status()?;
        times.push(ms(start.elapsed()));
    }
    let p50 = percentile(&times, 0.5);
    let rss = peak_rss_mib(Command::new(program).arg("--version"))?;
    Ok(vec![
        figure("mvm --version, time", format!("{p50:.1} ms"), "≤ 5 ms", p50 <= 5.0),
        figure("mvm --version, memory", format!("{rss:.1} MiB"), "≤ 10 MiB", rss <= 10.0),
    ])
}

/// The most memory that a command had in RAM, as the kernel tells its parent.
fn peak_rss_mib(command: &mut Command) -> Result<f64> {
    let child = command.stdout(Stdio::null()).spawn()?;
    let pid = child.id().cast_signed();
    // SAFETY: rusage is plain data that wait4 fills in; the pid is this process's child and nobody else waits for it.
    let (waited, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(pid, std::ptr::null_mut(), 0, &mut usage), usage)
    };
    if waited != pid {
        bail!("cannot wait for a child");
    }
    Ok(usage.ru_maxrss as f64 / 1024.0)
}

fn cold_build() -> Result<Figure> {
    let folder = tempfile::tempdir()?;
    let start = Instant::now();
    let folder = folder.path().to_str().context("a temporary folder without a name")?.to_owned();
    crate::run("cargo", &["build", "--workspace", "--quiet", "--target-dir", &folder])?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(figure("cold build of the workspace, debug", format!("{seconds:.0} s"), "≤ 240 s", seconds <= 240.0))
}

/// Runs a program that must succeed.
fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
