//! Which program a case runs on, and the folder in which it runs.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{VERSION, Vmm, inputs};

/// What a case is run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Sim,
    Real,
}

impl Program {
    /// Its executable, or why there is none here.
    fn executable(self) -> Result<PathBuf, &'static str> {
        static REAL: OnceLock<Result<PathBuf, &'static str>> = OnceLock::new();
        match self {
            Self::Sim => Ok(env!("CARGO_BIN_EXE_fcsim").into()),
            Self::Real => REAL.get_or_init(real).clone(),
        }
    }
}

fn real() -> Result<PathBuf, &'static str> {
    let named = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path).map(|folder| folder.join("firecracker")).find(|file| file.is_file())
    });
    let program = found.ok_or("no firecracker")?;
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Err("no /dev/kvm");
    }
    let said = Command::new(&program).arg("--version").output().map_err(|_| "no firecracker")?;
    match String::from_utf8_lossy(&said.stdout).starts_with(&format!("Firecracker v{VERSION}\n")) {
        true => Ok(program),
        false => Err("firecracker is not v1.16.1, whose contract this is"),
    }
}

/// Says visibly that a test did not run, and why.
pub fn skip(reason: &str) {
    println!("SKIP ({reason})");
    if let Some(log) = std::env::var_os("MVM_SKIP_LOG") {
        let line = format!("{reason}\n");
        let _ = fs::File::options().append(true).open(log).and_then(|mut log| log.write_all(line.as_bytes()));
    }
}

/// Runs a case, where its program is here.
pub fn run(program: Program, case: impl Fn(&Lab)) {
    match program.executable() {
        Ok(executable) => case(&Lab::new(executable)),
        Err(reason) => skip(reason),
    }
}

/// A case's own folder, and the program that it runs there.
pub struct Lab {
    dir: tempfile::TempDir,
    executable: PathBuf,
}

impl Lab {
    fn new(executable: PathBuf) -> Self {
        let dir = tempfile::Builder::new().prefix("vmm").tempdir().expect("a temporary folder");
        inputs::write(dir.path());
        Self { dir, executable }
    }

    /// The folder, in which the VMMs of the case work too: a relative path means the same to both.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("it can be written");
    }

    /// Reads a file.
    #[track_caller]
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Is something at this path?
    pub fn exists(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// The program with these arguments, in the folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.executable);
        command.env_clear().current_dir(self.dir()).args(arguments).stdin(Stdio::null());
        command
    }

    /// A VMM whose API answers.
    #[track_caller]
    pub fn start(&self) -> Vmm {
        self.start_with(&[])
    }

    /// A VMM with further arguments whose API answers.
    #[track_caller]
    pub fn start_with(&self, arguments: &[&str]) -> Vmm {
        let vmm = self.spawn(&[&["--id", "anon", "--api-sock", "api.sock"], arguments].concat());
        vmm.wait_for_api("api.sock");
        vmm
    }

    /// A VMM with these arguments and no others, just started.
    #[track_caller]
    pub fn spawn(&self, arguments: &[&str]) -> Vmm {
        self.spawn_command(self.command(arguments))
    }

    /// A VMM of this command, just started.
    #[track_caller]
    pub fn spawn_command(&self, command: Command) -> Vmm {
        Vmm::spawn(self.dir(), command)
    }

    /// Gives the case's thread, and what it starts from now on, a network of its own. False, said visibly, where that is
    /// not allowed.
    #[must_use]
    pub fn own_network(&self) -> bool {
        if !rustix::process::geteuid().is_root() {
            skip("needs root: network namespaces and TAPs");
            return false;
        }
        // SAFETY: only the network namespace of the calling thread changes, and each test has a thread of its own.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        if let Err(error) = unshared {
            skip(&format!("no network namespaces here: {error}"));
        } else if !Path::new("/dev/net/tun").exists() {
            skip("no /dev/net/tun");
        } else {
            return true;
        }
        false
    }
}
