//! `cargo xtask lab`: a QEMU virtual machine made of Debian's packages, in which real Firecracker runs real Linux guests on
//! nested KVM. Where a machine has no usable /dev/kvm of its own, it shows what fcsim and tiny guests cannot.

mod emulator;
mod hang;
mod initrd;
mod job;
mod machine;
mod make;
mod recipe;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::bench::{Figure, guests::Part};

use self::{
    hang::Progress,
    job::Job,
    machine::{Console, Ended, Machine, Run},
};

/// Seconds that a job may take unless more are given.
const LIMIT: u64 = 2400;
/// Seconds that all tests together may take; on two CPUs they take 2600. A lab that stands still is noticed before, by its silence.
const TESTS_LIMIT: u64 = 3600;
/// Tests and measurements print what they do; no step of one takes as long.
const SILENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub struct LabArguments {
    #[command(subcommand)]
    command: LabCommand,
    /// Memory of the lab in MiB; half of what is free, at most 8192, unless said
    #[arg(long, global = true)]
    memory: Option<u64>,
    /// Seconds after which the lab is ended
    #[arg(long, global = true, default_value_t = LIMIT)]
    limit: u64,
    /// Another program that is on PATH in the lab; may be given again
    #[arg(long = "with", global = true, value_name = "FILE")]
    with: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Run a command in the lab and pass its exit code on; without one: mvm demo, and the story with real guests
    Run {
        /// The command
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// A root shell in the lab
    Shell,
    /// The tests with real guests (tier T4)
    Test {
        /// Passed on to the test program, a filter for example
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

/// What the lab cannot do without.
struct Host {
    firecracker: PathBuf,
    jailer: Option<PathBuf>,
}

/// Why there is no lab on this machine; none where there is one.
pub fn lacking() -> Option<String> {
    host().err()
}

fn host() -> Result<Host, String> {
    if std::env::consts::ARCH != "x86_64" {
        return Err("the lab is for x86_64 only".into());
    }
    let firecracker = program("FIRECRACKER_BIN", "firecracker").ok_or("no firecracker")?;
    crate::setup::ensure_lab().map_err(|error| format!("{error:#}"))?;
    Ok(Host { firecracker, jailer: program("JAILER_BIN", "jailer") })
}

fn program(variable: &str, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::var_os(variable)
        .map(PathBuf::from)
        .or_else(|| std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file()))
}

/// Runs it; returns the exit code of what ran in the lab.
///
/// # Errors
/// When the lab cannot be made, does not come up, or does not end.
pub fn run(arguments: &LabArguments) -> Result<u8> {
    let host = match host() {
        Ok(host) => host,
        Err(why) => {
            println!("SKIP ({why}): lab");
            return Ok(0);
        }
    };
    match &arguments.command {
        LabCommand::Run { command } if command.is_empty() => test(&host, arguments, &[]),
        LabCommand::Run { command } => {
            let words: Vec<String> = command.iter().map(|word| job::quoted(word)).collect();
            let script = format!("exec {}\n", words.join(" "));
            let programs = programs(&host, arguments)?;
            let guest = Some(guest(&programs)?);
            let job = Job { programs, guest, script };
            let limit = Duration::from_secs(arguments.limit);
            whole(play(&job, arguments.memory, limit, limit, Console::Transcript(console()))?)
        }
        LabCommand::Shell => shell(&host, arguments),
        LabCommand::Test { rest } => test(&host, arguments, rest),
    }
}

fn shell(host: &Host, arguments: &LabArguments) -> Result<u8> {
    let size = rustix::termios::tcgetwinsize(std::io::stdin())
        .map_or(String::new(), |size| format!("stty rows {} cols {}\n", size.ws_row, size.ws_col));
    let term = std::env::var("TERM").unwrap_or_else(|_| "linux".into());
    let script = format!(
        "{size}export TERM={}\necho 'lab: mvm, fcsim, firecracker and jailer are on PATH; Ctrl-D leaves, Ctrl-a x when it hangs'\nexec bash -i\n",
        job::quoted(&term)
    );
    let programs = programs(host, arguments)?;
    let guest = Some(guest(&programs)?);
    let job = Job { programs, guest, script };
    // Somebody sits in front of it: it ends when they are done.
    let limit = Duration::from_secs(arguments.limit.max(24 * 60 * 60));
    whole(play(&job, arguments.memory, limit, limit, Console::Terminal)?)
}

/// Runs the tests, and keeps their transcript.
///
/// # Errors
/// As [`run`].
fn test(host: &Host, arguments: &LabArguments, rest: &[String]) -> Result<u8> {
    let start = Instant::now();
    let mut programs = programs(host, arguments)?;
    let tests = job::build(&["test", "--package", "mvm", "--test", "lab", "--no-run"])?;
    let tests = tests.into_iter().find(|(name, _)| name == "lab").context("there are no tests of the lab")?;
    programs.push(("lab-tests".to_owned(), tests.1.clone()));
    let guest = Some(guest(&programs)?);
    let file = make::home().join("transcript.txt");
    // What it takes to build them is not theirs.
    let deadline = Instant::now() + Duration::from_secs(arguments.limit);
    let mut left = names(&tests.1, rest)?;
    let (mut transcript, mut lost_in, mut failed) = (String::new(), None, 0);
    let code = loop {
        let words: Vec<String> = left.iter().map(|name| job::quoted(name)).collect();
        // One after another: the machine is slow, and what the tests measure of each other would be nothing but waiting.
        let script = format!("exec lab-tests --nocapture --test-threads=1 --exact {}\n", words.join(" "));
        let job = Job { programs: programs.clone(), guest: guest.clone(), script };
        let time = deadline.saturating_duration_since(Instant::now());
        let _ = fs::remove_file(console());
        let ended = play(&job, arguments.memory, time, SILENCE, Console::Transcript(console()));
        let part = readable(&String::from_utf8_lossy(&fs::read(console()).unwrap_or_default()));
        transcript.push_str(&part);
        fs::write(&file, &transcript).with_context(|| format!("cannot write {}", file.display()))?;
        let why = match ended? {
            Ended::Code(code) if failed == 0 => break code,
            Ended::Code(_) => break 101,
            Ended::Lost(why) => why,
        };
        let progress = Progress::read(&part);
        failed += progress.failed;
        left.retain(|name| !progress.done.contains(name));
        let name = progress.under_way.unwrap_or_default();
        if lost_in.replace(name.clone()).is_some_and(|before| before == name) {
            bail!("the lab was lost twice in {name:?}: {why}");
        }
        let said = format!("REPEAT ({name}): the lab was lost: {why}; a fresh one goes on\n");
        print!("{said}");
        transcript.push_str(&said);
    };
    let repeats = transcript.lines().filter(|line| line.contains("REPEAT (")).count();
    let skips = transcript.lines().filter(|line| line.starts_with("SKIP (")).count();
    println!(
        "lab test: exit code {code}, {repeats} scenarios repeated, {skips} skipped, {:.0} s; transcript in {}",
        start.elapsed().as_secs_f64(),
        file.display()
    );
    Ok(code)
}

/// The tests of this program that these words pick.
fn names(tests: &Path, rest: &[String]) -> Result<Vec<String>> {
    let output = Command::new(tests).arg("--list").args(rest).output().context("cannot list the tests")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let names: Vec<String> =
        listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    match names.is_empty() {
        true => bail!("no test of the lab is called like {}", rest.join(" ")),
        false => Ok(names),
    }
}

/// Measures guests with an agent, each part in a lab of its own; nothing, said visibly, where there is none.
///
/// # Errors
/// When something cannot be measured.
pub fn measure(pairs: u32, cycles: u32, parts: &[Part]) -> Result<Vec<Figure>> {
    let host = match host() {
        Ok(host) => host,
        Err(why) => {
            println!("SKIP ({why}): guests in the lab");
            return Ok(Vec::new());
        }
    };
    let command = LabCommand::Run { command: Vec::new() };
    // A start takes most of a second there.
    let pairs = pairs.min(20);
    let arguments = LabArguments { command, memory: None, limit: LIMIT, with: Vec::new() };
    let mut programs = programs(&host, &arguments)?;
    let this = job::build(&["build", "--package", "xtask"])?;
    programs.extend(this);
    let guest = guest(&programs)?;
    let parts = if parts.is_empty() { &Part::USUAL } else { parts };
    let mut figures = Vec::new();
    for part in parts {
        let limit = match part {
            // A cycle takes a second or two.
            Part::Cycles | Part::BareCycles => LIMIT + u64::from(cycles) * 2,
            _ => LIMIT,
        };
        let part = part.to_possible_value().context("a part has a name")?;
        let part = part.get_name();
        let script = format!(
            "exec xtask bench guests --part {part} --pairs {pairs} --cycles {cycles} --json /out/guests.json\n"
        );
        let job = Job { programs: programs.clone(), guest: Some(guest.clone()), script };
        match measure_part(&job, limit) {
            Ok(measured) => figures.extend(measured),
            Err(error) => println!("NOT MEASURED ({error:#}): {part} of guests in the lab"),
        }
    }
    Ok(figures)
}

/// Figures that a job leaves, in a second lab where the first one was lost.
fn measure_part(job: &Job, limit: u64) -> Result<Vec<Figure>> {
    let file = make::home().join("out/guests.json");
    let _ = fs::remove_file(&file);
    let limit = Duration::from_secs(limit);
    let once = || play(job, None, limit, SILENCE, Console::Transcript(console()));
    let ended = match once()? {
        Ended::Lost(why) => {
            println!("REPEAT: the lab was lost: {why}");
            once()?
        }
        ended => ended,
    };
    match whole(ended)? {
        0 => {}
        code => bail!("the lab's measurements ended with exit code {code}"),
    }
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let report: serde_json::Value = serde_json::from_str(&text)?;
    Ok(serde_json::from_value(report["figures"].clone())?)
}

/// All tests of tier T4, as `cargo xtask test` calls them.
///
/// # Errors
/// When one fails.
pub fn tier() -> Result<()> {
    let command = LabCommand::Test { rest: Vec::new() };
    let arguments = LabArguments { command, memory: None, limit: TESTS_LIMIT, with: Vec::new() };
    match run(&arguments)? {
        0 => Ok(()),
        code => bail!("the lab's tests ended with exit code {code}"),
    }
}

/// A console without what only a terminal understands, and without the kernel's last words.
fn readable(console: &str) -> String {
    let mut text = String::with_capacity(console.len());
    let mut chars = console.chars().filter(|c| *c != '\r').peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.next_if_eq(&'[').is_some() => {
                // Parameters, up to the letter that says what they are for.
                while chars.next_if(|c| !c.is_ascii_alphabetic()).is_some() {}
                chars.next();
            }
            c => text.push(c),
        }
    }
    let lines = text.lines().filter(|line| !line.contains("reboot: Power down"));
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

fn programs(host: &Host, arguments: &LabArguments) -> Result<Vec<(String, PathBuf)>> {
    let mut programs = job::build(&["build", "--package", "mvm", "--package", "fcsim", "--bins"])?;
    programs.push(("firecracker".into(), host.firecracker.clone()));
    programs.extend(host.jailer.iter().map(|jailer| ("jailer".into(), jailer.clone())));
    for file in &arguments.with {
        let name = file.file_name().with_context(|| format!("{} has no name", file.display()))?;
        programs.push((name.to_string_lossy().into_owned(), file.clone()));
    }
    Ok(programs)
}

/// MVM_ROOT with the guest image that is booted in the lab, made anew where Debian has newer packages.
fn guest(programs: &[(String, PathBuf)]) -> Result<PathBuf> {
    let root = make::home().join("guest");
    fs::create_dir_all(&root)?;
    let mvm = programs.iter().find(|(name, _)| name == "mvm").context("mvm was not built")?;
    let (mvm, root_text) = (mvm.1.display().to_string(), root.display().to_string());
    crate::run(&mvm, &["image", "debian", "--root", &root_text])?;
    Ok(root)
}

/// The exit code of a job that cannot go on in another lab.
fn whole(ended: Ended) -> Result<u8> {
    match ended {
        Ended::Code(code) => Ok(code),
        Ended::Lost(why) => bail!("the lab was lost: {why}"),
    }
}

/// What the lab's console said last.
fn console() -> PathBuf {
    make::home().join("console.txt")
}

fn play(
    job: &Job,
    memory: Option<u64>,
    limit: Duration,
    silence: Duration,
    console: Console,
) -> Result<Ended> {
    let lab = make::ensure()?;
    let emulator = emulator::ensure(&lab)?;
    let run = Run::new()?;
    let memory_mib = memory.unwrap_or_else(memory_mib);
    let job = job.write(&run)?;
    let machine = Machine { lab: &lab, emulator, memory_mib, job, console, limit, silence };
    machine::run(&machine, &run, &make::home().join("out"))
}

/// What the lab gets of this machine's memory: enough for a guest of 4 GiB, where there is as much.
fn memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or(0);
    (free >> 11).clamp(2048, 8192)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transcript_has_nothing_of_a_terminal() {
        assert_eq!(readable("\x1b[32mgood\x1b[0m\r\n\x1b[?25lx \r\n[ 1] reboot: Power down\n"), "good\nx\n");
    }
}
