//! The only spawner of processes: argument vectors, a cleared environment, a time limit, stderr kept.

mod detached;
mod fence;
mod pipes;

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{PoisonError, RwLock},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, getppid, set_parent_process_death_signal},
};

use super::config::MASTER_KEY;

pub use self::{
    detached::{ABOUT_TO_BE, Cell, Streams, read_only, spawn_detached},
    fence::version as landlock,
};

/// Why a program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program ended with a failure.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        program: PathBuf,
        /// Its exit status.
        status: String,
        /// What it said, trimmed.
        stderr: String,
    },
    /// The program did not end in time and was killed.
    #[error("{program} did not end within {} s and was killed", limit.as_secs())]
    TimedOut {
        /// The program.
        program: PathBuf,
        /// The limit.
        limit: Duration,
    },
}

/// The search path of the programs that mvm runs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Held, shared, by who starts a program, until it is executed; held alone by who has a descriptor open that no child may
/// hold for even that moment.
static STARTING: RwLock<()> = RwLock::new(());

/// Does something while no thread of this process starts a program. A TAP, for one, is busy as long as anybody has it
/// open, and a child has what its parent has until it executes its program.
pub fn with_nothing_starting<T>(work: impl FnOnce() -> T) -> T {
    let _alone = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    work()
}

fn start(command: &mut Command) -> std::io::Result<Child> {
    let _shared = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    // It returns once the program is executed, or cannot be.
    command.spawn()
}

/// Where a program of the host is, if it is there.
pub fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// What a program finds when it starts, where that is more than the usual.
#[derive(Debug, Default)]
pub struct Surroundings<'a> {
    /// Variables besides `PATH` and `LC_ALL`.
    pub environment: &'a [(&'a str, &'a OsStr)],
    /// Its working directory.
    pub directory: Option<&'a Path>,
    /// Is it killed when this process ends, however that comes?
    pub dies_with_us: bool,
}

/// Runs a program to its end and returns its stdout.
///
/// # Errors
/// When it cannot be started, ends with a failure, or runs longer than `limit`.
pub fn run<S: AsRef<OsStr>>(
    program: impl AsRef<Path>,
    arguments: impl IntoIterator<Item = S>,
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, ShellError> {
    run_in(&Surroundings::default(), program, arguments, input, limit)
}

/// Like [`run`], in these surroundings.
///
/// # Errors
/// As [`run`].
pub fn run_in<S: AsRef<OsStr>>(
    surroundings: &Surroundings,
    program: impl AsRef<Path>,
    arguments: impl IntoIterator<Item = S>,
    input: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, ShellError> {
    let program = program.as_ref().to_path_buf();
    let spawn_error = |source| ShellError::Spawn { program: program.clone(), source };
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .envs(surroundings.environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(directory) = surroundings.directory {
        command.current_dir(directory);
    }
    if surroundings.dies_with_us {
        let parent = Pid::from_raw(std::process::id().cast_signed());
        // SAFETY: both are plain system calls, and the closure allocates nothing.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // Who was gone before that sends nothing any more.
                match getppid() == parent {
                    true => Ok(()),
                    false => Err(rustix::io::Errno::SRCH.into()),
                }
            });
        }
    }
    let mut child = start(&mut command).map_err(spawn_error)?;
    let attended = pipes::attend(&mut child, input, limit);
    if !matches!(attended, Ok(Some(_))) {
        let _ = child.kill();
    }
    let status = child.wait().map_err(spawn_error)?;
    match attended.map_err(spawn_error)? {
        None => Err(ShellError::TimedOut { program: program.clone(), limit }),
        Some(said) if status.success() => Ok(said.out),
        Some(said) => {
            let stderr = String::from_utf8_lossy(&said.err).trim().to_owned();
            Err(ShellError::Failed { program: program.clone(), status: status.to_string(), stderr })
        }
    }
}

/// This process becomes that program, with its terminal, its environment but for keys, and its id. Returns why not.
pub fn replace<S: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = S>) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    Command::new(program).args(arguments).env_remove(MASTER_KEY).exec()
}

/// Waits until the process behind a pidfd has ended; false when `limit` passes first.
pub fn ended_within(pidfd: &impl std::os::fd::AsFd, limit: Duration) -> bool {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else {
            return false;
        };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_back_and_failure_carries_stderr() {
        let limit = Duration::from_secs(10);
        assert_eq!(run("cat", [""; 0], b"hello", limit).unwrap(), b"hello");
        let error = run("ls", ["/no/such/folder"], b"", limit).unwrap_err();
        assert!(matches!(error, ShellError::Failed { stderr, .. } if stderr.contains("No such file")));
    }

    #[test]
    fn a_program_sees_its_surroundings() {
        let dir = tempfile::tempdir().unwrap();
        let place = std::fs::canonicalize(dir.path()).unwrap();
        let surroundings = Surroundings {
            environment: &[("MARK", OsStr::new("7"))],
            directory: Some(&place),
            dies_with_us: true,
        };
        let said =
            run_in(&surroundings, "sh", ["-c", "echo $MARK; pwd"], b"", Duration::from_secs(10)).unwrap();
        assert_eq!(String::from_utf8_lossy(&said), format!("7\n{}\n", place.display()));
    }

    #[test]
    fn a_program_that_runs_too_long_is_killed() {
        let error = run("sleep", ["1000"], b"", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, ShellError::TimedOut { .. }));
    }

    #[test]
    fn a_child_that_holds_a_programs_pipes_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; echo done", pid.display());
        let said = run("sh", ["-c", &script], b"", Duration::from_secs(600));
        let child = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
        assert_eq!(said.unwrap(), b"done\n");
    }

    #[test]
    fn much_goes_through_both_ways() {
        let much = vec![7; 3 << 20];
        assert_eq!(run("cat", [""; 0], &much, Duration::from_secs(60)).unwrap(), much);
        // Who reads none of it is well, too.
        assert_eq!(run("true", [""; 0], &much, Duration::from_secs(60)).unwrap(), b"");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run("/no/such/program", [""; 0], b"", Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"));
    }
}
