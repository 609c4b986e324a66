//! Starts the lab as a QEMU process, passes its console on, and hears how its job ended. The machine has no network, no longer
//! life than this process, and a limit for everything.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mvm::infra::shell::ended_within;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{emulator::Emulator, hang::Watch, make, recipe};

/// The serial port on which the lab says that it is up, and how its job ended, goes into this file of a run's folder.
const STATUS: &str = "status";

/// Its CPUs: a guest's vCPU and the VMM's other threads run at once. With one, a lab stands still now and then, all idle.
const CPUS: &str = "2";

/// The lab's disk for MVM_ROOT and temporary files, sparse.
const SCRATCH_SIZE: &str = "32G";

/// The disk for what a job leaves in /out, sparse too.
const OUT_SIZE: u64 = 256 << 20;

/// From power on to the job; ten times what it takes.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// How often somebody looks whether the lab hangs.
const LOOK: Duration = Duration::from_secs(2);

/// How a run of the lab ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Its job ended with this exit code.
    Code(u8),
    /// It hung or died, as its emulation does now and then; how that showed.
    Lost(&'static str),
}

/// Where the lab's console goes.
pub enum Console {
    /// To this terminal and back.
    Terminal,
    /// To stdout, and into a file.
    Transcript(PathBuf),
}

/// One run of a lab.
pub struct Machine<'a> {
    pub lab: &'a make::Lab,
    pub emulator: &'a Emulator,
    pub memory_mib: u64,
    /// The job disk.
    pub job: PathBuf,
    pub console: Console,
    pub limit: Duration,
    /// How long a job may print nothing.
    pub silence: Duration,
}

/// A folder of one run; gone with it.
pub struct Run(PathBuf);

impl Run {
    /// A fresh one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let folder = make::home().join(format!(".run-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the machine's one job. What the job left in /out lies in `out` afterwards.
///
/// # Errors
/// When the machine does not come up, or does not end in time.
pub fn run(machine: &Machine<'_>, run: &Run, out: &Path) -> Result<Ended> {
    let (scratch, out_disk, status) = (run.file("scratch.ext4"), run.file("out.tar"), run.file(STATUS));
    make::file_system(&scratch, SCRATCH_SIZE, None)?;
    File::create(&out_disk)?.set_len(OUT_SIZE)?;
    File::create(&status)?;
    let terminal = Terminal::of(&machine.console);
    let mut command = command(machine, run, &[&machine.job, &scratch, &out_disk]);
    let mut child = command.spawn().context("cannot run QEMU")?;
    let pidfd = Pid::from_raw(child.id().cast_signed())
        .context("no pid")
        .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))?;
    let watch = Arc::new(Mutex::new(Watch::new(Instant::now())));
    let pump = match &machine.console {
        Console::Terminal => None,
        Console::Transcript(file) => {
            let transcript =
                File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
            let console = child.stdout.take().context("QEMU has no console")?;
            let watch = Arc::clone(&watch);
            Some(std::thread::spawn(move || pass_on(console, transcript, &watch)))
        }
    };
    let ended = wait(machine, &pidfd, &status, &watch);
    if !matches!(ended, Ok(None)) {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
    child.wait().context("cannot wait for QEMU")?;
    drop(terminal);
    if let Some(pump) = pump {
        let _ = pump.join();
    }
    if let Some(why) = ended? {
        return Ok(Ended::Lost(why));
    }
    let said = fs::read_to_string(&status)?;
    let code =
        said.lines().find_map(|line| line.strip_prefix("exit ")).and_then(|code| code.trim().parse().ok());
    let Some(code) = code else { return Ok(Ended::Lost("it ended without saying how its job did")) };
    if let Some(uptime) = said.lines().find_map(|line| line.strip_prefix("up ")) {
        eprintln!("lab: booted in {} s, exit code {code}", uptime.trim());
    }
    unpack(&out_disk, out)?;
    Ok(Ended::Code(code))
}

fn command(machine: &Machine<'_>, run: &Run, disks: &[&Path]) -> Command {
    use make::files;
    let lab = &machine.lab.folder;
    let mut command = machine.emulator.command();
    command
        .args(recipe::MACHINE)
        .args(["-name", "mvm-lab", "-m", &machine.memory_mib.to_string(), "-smp", CPUS])
        .arg("-kernel")
        .arg(lab.join(files::KERNEL))
        .arg("-initrd")
        .arg(lab.join(files::INITRD))
        .args(["-append", recipe::CMDLINE])
        // Ctrl-a x ends the machine when it hangs.
        .args(["-chardev", "stdio,id=console,mux=on,signal=off", "-mon", "chardev=console"])
        .args(["-serial", "chardev:console", "-serial"])
        .arg(format!("file:{}", run.file(STATUS).display()))
        .env("TMPDIR", run.file(""));
    // The root is shared by runs, so what is written to it goes into a file that nobody else sees.
    let root = lab.join(files::ROOT);
    for (disk, options) in [(root.as_path(), "snapshot=on,cache=unsafe")]
        .into_iter()
        .chain(disks.iter().map(|disk| (*disk, "cache=unsafe")))
    {
        command.arg("-drive").arg(format!("file={},if=virtio,format=raw,{options}", disk.display()));
    }
    match machine.console {
        Console::Terminal => {}
        Console::Transcript(_) => {
            command.stdin(Stdio::null()).stdout(Stdio::piped());
        }
    }
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only system calls are made, none of which allocates.
    unsafe {
        command.pre_exec(move || {
            // However this process ends, the machine ends with it.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            match rustix::process::getppid() == Some(parent) {
                true => Ok(()),
                false => Err(io::ErrorKind::BrokenPipe.into()),
            }
        });
    }
    command
}

/// Waits until the machine ends, within the limits; or until it hangs, and then why.
fn wait(
    machine: &Machine<'_>,
    pidfd: &impl std::os::fd::AsFd,
    status: &Path,
    watch: &Mutex<Watch>,
) -> Result<Option<&'static str>> {
    let begun = Instant::now();
    if ended_within(pidfd, machine.limit.min(BOOT_LIMIT)) {
        return Ok(None);
    }
    if fs::metadata(status).map_or(0, |status| status.len()) == 0 {
        bail!("the lab did not come up within {} s", BOOT_LIMIT.as_secs());
    }
    while begun.elapsed() < machine.limit {
        if ended_within(pidfd, LOOK) {
            return Ok(None);
        }
        let watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is seen of a console that is a terminal: whoever sits there sees it.
        let is_seen = matches!(machine.console, Console::Transcript(_));
        if let Some(why) = watch.hangs(Instant::now(), machine.silence).filter(|_| is_seen) {
            return Ok(Some(why));
        }
    }
    bail!("the lab was ended: its job took longer than {} s", machine.limit.as_secs())
}

/// Passes the console on as it comes, and keeps it without what only a terminal understands.
fn pass_on(mut console: impl Read, mut transcript: File, watch: &Mutex<Watch>) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut bytes) {
        // Who reads along may be gone; the transcript goes on.
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(&bytes[..count]).and_then(|()| stdout.flush());
        let _ = transcript.write_all(&bytes[..count]);
        watch.lock().unwrap_or_else(PoisonError::into_inner).heard(&bytes[..count], Instant::now());
    }
}

/// Fetches what the job left.
fn unpack(disk: &Path, out: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(out);
    fs::create_dir_all(out)?;
    let output =
        Command::new("tar").arg("-xf").arg(disk).arg("--no-same-owner").arg("-C").arg(out).output()?;
    if !output.status.success() {
        bail!("what the job left cannot be read: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A terminal's settings, set back when this goes: QEMU changes them, and is sometimes killed.
struct Terminal(Option<rustix::termios::Termios>);

impl Terminal {
    fn of(console: &Console) -> Self {
        match console {
            Console::Terminal => Self(rustix::termios::tcgetattr(io::stdin()).ok()),
            Console::Transcript(_) => Self(None),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            let _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, settings);
        }
    }
}
