//! What can be executed in the simulated guest: a few programs, each a function in a thread.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use mvm_guest::{Agent, Control, Process, System};
use mvm_proto::{
    Code,
    message::{Exec, Exited, Refused, Size, Worker, WorkloadStatus},
    secrets::FOLDER,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Sim, WORKLOAD, files, machine::Machine};
use crate::guest::spawn as thread;

/// Signals that a program in C would say something to, and that end it.
const SIGHUP: i32 = 1;
/// Pids, from one that looks like one.
static PIDS: AtomicU32 = AtomicU32::new(100);

/// What is said to a program that runs.
#[derive(Debug, Default)]
struct Said {
    signal: Option<i32>,
    size: Option<Size>,
}

/// The agent's side of it.
struct Handle {
    said: Arc<Mutex<Said>>,
    bell: File,
}

fn said(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control for Handle {
    fn signal(&self, number: i32) {
        said(&self.said).signal = Some(number);
        let _ = (&self.bell).write_all(&[0]);
    }

    fn resize(&self, size: Size) {
        said(&self.said).size = Some(size);
    }

    fn hang_up(&self) {
        self.signal(SIGHUP);
    }
}

/// A program's side of it.
struct Run {
    agent: Arc<Agent<Sim>>,
    argv: Vec<String>,
    env: Vec<String>,
    stdin: Option<File>,
    stdout: File,
    stderr: File,
    said: Arc<Mutex<Said>>,
    bell: File,
}

/// Why a program ends early.
enum End {
    Signal(i32),
    Code(i32),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Nobody reads what it writes.
            io::ErrorKind::BrokenPipe => Self::Signal(13),
            _ => Self::Code(1),
        }
    }
}

type Program = fn(&mut Run) -> Result<i32, End>;

fn program(name: &str) -> Option<Program> {
    Some(match name.rsplit('/').next().unwrap_or(name) {
        "true" => |_| Ok(0),
        "false" => |_| Ok(1),
        "exit" => exit,
        "echo" => echo,
        "cat" => cat,
        "wc" => wc,
        "ls" => ls,
        "sh" => shell,
        "env" => |run| {
            let env = run.env.join("\n");
            run.say(&env)
        },
        "hostname" => |run| run.say_of(|machine| machine.hostname.clone()),
        "uname" => |run| run.say("Linux fcsim 6.1.0-sim x86_64"),
        "date" => |run| {
            let ns = run.agent.system().clocks().real;
            run.say(&format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000))
        },
        "stty" => |run| {
            let size = said(&run.said).size.unwrap_or(Size { rows: 0, columns: 0 });
            run.say(&format!("{} {}", size.rows, size.columns))
        },
        "sleep" => sleep,
        "worker" => worker,
        "workload" => workload,
        "log" => log,
        "yes" => |run| loop {
            run.say("y")?;
        },
        _ => return None,
    })
}

/// Starts a program.
pub(super) fn spawn(sim: &Sim, command: &Exec) -> Result<Process, Refused> {
    let name = command.argv.first().map_or("", String::as_str);
    let not_found = || Refused { code: Code::NotFound, why: format!("{name}: no such program") };
    let program = program(name).ok_or_else(not_found)?;
    let failed = |error: io::Error| Refused { code: Code::Failed, why: error.to_string() };
    let shared = sim.shared().map_err(failed)?;
    let agent = shared.agent.get().cloned().ok_or_else(not_found)?;
    let pipe = || {
        io::pipe().map(|(read, write)| (File::from(OwnedFd::from(read)), File::from(OwnedFd::from(write))))
    };
    let (stdin, to_stdin) = pipe().map_err(failed)?;
    let (stdout, to_stdout) = pipe().map_err(failed)?;
    let (exited, to_exited) = pipe().map_err(failed)?;
    let (bell, to_bell) = pipe().map_err(failed)?;
    let (stderr, to_stderr) = match command.terminal {
        Some(_) => (None, to_stdout.try_clone().map_err(failed)?),
        None => pipe().map(|(read, write)| (Some(read), write)).map_err(failed)?,
    };
    let told = Arc::new(Mutex::new(Said { signal: None, size: command.terminal }));
    let has_input = command.stdin || command.terminal.is_some();
    let mut run = Run {
        agent,
        argv: command.argv.clone(),
        env: command.env.clone(),
        stdin: has_input.then_some(stdin),
        stdout: to_stdout,
        stderr: to_stderr,
        said: Arc::clone(&told),
        bell,
    };
    thread("program", move || {
        let exited = match program(&mut run) {
            Ok(code) | Err(End::Code(code)) => Exited::Code(code & 0xff),
            Err(End::Signal(signal)) => Exited::Signal(signal),
        };
        let _running = run.agent.system().running();
        // The agent may have gone away with the connection.
        let _ = (&to_exited).write_all(&Process::encode(exited));
    })
    .map_err(failed)?;
    Ok(Process {
        pid: PIDS.fetch_add(1, Ordering::Relaxed),
        stdin: has_input.then_some(to_stdin),
        stdout,
        stderr,
        exited,
        control: Box::new(Handle { said: told, bell: to_bell }),
    })
}

impl Run {
    fn arguments(&self) -> &[String] {
        self.argv.get(1..).unwrap_or_default()
    }

    fn say(&mut self, text: &str) -> Result<i32, End> {
        self.wait(Duration::ZERO)?;
        self.stdout.write_all(format!("{text}\n").as_bytes())?;
        Ok(0)
    }

    fn say_of(&mut self, what: impl FnOnce(&Machine) -> String) -> Result<i32, End> {
        let text = {
            let _running = self.agent.system().running();
            what(&self.agent.system().machine())
        };
        self.say(&text)
    }

    fn complain(&mut self, text: &str) -> Result<i32, End> {
        let name = self.argv.first().cloned().unwrap_or_default();
        self.stderr.write_all(format!("{name}: {text}\n").as_bytes())?;
        Ok(1)
    }

    /// Waits so long, or until a signal ends it.
    fn wait(&self, limit: Duration) -> Result<(), End> {
        self.poll(None, limit).map(drop)
    }

    /// True where there is input.
    fn poll(&self, input: Option<&File>, limit: Duration) -> Result<bool, End> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN)];
        fds.extend(input.map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)));
        let timeout = Timespec::try_from(limit).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        match said(&self.said).signal.take() {
            Some(signal) => Err(End::Signal(signal)),
            None => Ok(fds.get(1).is_some_and(|fd| !fd.revents().is_empty())),
        }
    }

    /// What comes in, a piece at a time, up to its end.
    fn input(&mut self, mut piece: impl FnMut(&mut Self, &[u8]) -> Result<(), End>) -> Result<(), End> {
        let Some(mut stdin) = self.stdin.take() else { return Ok(()) };
        let mut buffer = vec![0; 64 << 10];
        loop {
            if !self.poll(Some(&stdin), Duration::MAX)? {
                continue;
            }
            match stdin.read(&mut buffer)? {
                0 => return Ok(()),
                count => {
                    drop(self.agent.system().running());
                    piece(self, &buffer[..count])?;
                }
            }
        }
    }
}

fn exit(run: &mut Run) -> Result<i32, End> {
    Ok(run.arguments().first().and_then(|code| code.parse().ok()).unwrap_or(0))
}

fn echo(run: &mut Run) -> Result<i32, End> {
    let text = run.arguments().join(" ");
    run.say(&text)
}

fn cat(run: &mut Run) -> Result<i32, End> {
    let files = run.arguments().to_vec();
    if files.is_empty() {
        run.input(|run, bytes| Ok(run.stdout.write_all(bytes)?))?;
    }
    for file in files {
        let content = {
            let _running = run.agent.system().running();
            let machine = run.agent.system().machine().clone();
            files::clean(&file).and_then(|path| files::read(&machine, run.agent.system(), &path))
        };
        match content {
            Some(content) => run.stdout.write_all(&content)?,
            None => return run.complain(&format!("{file}: No such file or directory")),
        }
    }
    Ok(0)
}

/// `ls /run/secrets`: nothing else is a folder that can be listed.
fn ls(run: &mut Run) -> Result<i32, End> {
    match run.arguments() {
        [folder] if folder == FOLDER => {
            run.say_of(|machine| machine.secrets.keys().map(String::as_str).collect::<Vec<_>>().join("\n"))
        }
        _ => run.complain("No such file or directory"),
    }
}

/// Counts the bytes that come in.
fn wc(run: &mut Run) -> Result<i32, End> {
    let mut bytes = 0;
    run.input(|_, piece| {
        bytes += piece.len();
        Ok(())
    })?;
    run.say(&bytes.to_string())
}

/// `sh -c 'one; other'`: programs, one after the other, without any quoting.
fn shell(run: &mut Run) -> Result<i32, End> {
    let script = run.arguments().get(1).cloned().unwrap_or_default();
    let mut code = 0;
    for line in script.split(';') {
        run.argv = line.split_whitespace().map(str::to_owned).collect();
        let name = run.argv.first().cloned().unwrap_or_default();
        match program(&name) {
            Some(_) if name == "exit" => return exit(run),
            Some(program) => code = program(run)?,
            None => {
                run.complain("not found")?;
                code = 127;
            }
        }
    }
    Ok(code)
}

fn sleep(run: &mut Run) -> Result<i32, End> {
    let seconds: f64 = run.arguments().first().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    run.wait(Duration::try_from_secs_f64(seconds).unwrap_or_default())?;
    Ok(0)
}

/// `worker ready|idle|busy`: what a workload says of itself.
fn worker(run: &mut Run) -> Result<i32, End> {
    let worker = match run.arguments().first().map(String::as_str) {
        Some("ready") => Some(Worker::Ready),
        Some("idle") => Some(Worker::Idle),
        Some("busy") => Some(Worker::Busy),
        _ => None,
    };
    let sim = run.agent.system();
    let _running = sim.running();
    let now = sim.clocks().real;
    sim.change(|machine| machine.worker = worker.map(|word| (word, now)))?;
    Ok(0)
}

/// `workload end CODE`, `kill SIGNAL`, `restart`, `fail TEXT`: what becomes of the workload's process.
fn workload(run: &mut Run) -> Result<i32, End> {
    let what = run.arguments().first().cloned().unwrap_or_default();
    let rest = run.arguments().get(1..).unwrap_or_default().join(" ");
    let number = rest.parse().unwrap_or(0);
    let sim = run.agent.system();
    let _running = sim.running();
    sim.change(|machine| {
        machine.workload = Some(match what.as_str() {
            "end" => WorkloadStatus::Ended(Exited::Code(number)),
            "kill" => WorkloadStatus::Ended(Exited::Signal(number)),
            "fail" => WorkloadStatus::Failed { why: rest },
            _ => {
                machine.restarts += 1;
                WorkloadStatus::Running { pid: WORKLOAD + machine.restarts, restarts: machine.restarts }
            }
        });
    })?;
    Ok(0)
}

/// `log TEXT`: what a workload prints.
fn log(run: &mut Run) -> Result<i32, End> {
    let text = run.arguments().join(" ");
    let _running = run.agent.system().running();
    run.agent.system().print(false, &text)?;
    Ok(0)
}
