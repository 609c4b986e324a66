//! mvm on a root of its own: the commands that a person gives, and how long they take until a guest prints.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mvm::{
    infra::config::{Environment, Roots},
    vm::{
        instance::lifecycle::{self, Operator},
        naming::InstancePath,
    },
};

use super::{bare::Growth, run_quietly};

/// A root of its own, and mvm on it.
pub struct Mvm {
    program: PathBuf,
    pub root: tempfile::TempDir,
}

/// What a command took, and what it printed.
pub struct Timed {
    /// Until its guest's first byte.
    pub first: Duration,
    /// Until it ended.
    pub exit: Duration,
    pub output: String,
}

impl Mvm {
    pub fn new(program: &Path) -> Result<Self> {
        // Not in /tmp, which may be memory: what is measured is a disk's fsync.
        Self::in_folder(program, Path::new("target"))
    }

    pub fn in_folder(program: &Path, folder: &Path) -> Result<Self> {
        let root = tempfile::tempdir_in(folder)?;
        std::fs::write(root.path().join(".throw-away"), "")?;
        let mvm = Self { program: program.to_path_buf(), root };
        for setting in ["mem-mib 100000000", "max-vms 100000", "disk-floor-mib 1"] {
            mvm.ok(&format!("node set {setting}"))?;
        }
        Ok(mvm)
    }

    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.root.path()).args(arguments.split_whitespace()).stdin(Stdio::null());
        command
    }

    pub fn ok(&self, arguments: &str) -> Result<Output> {
        let output = self.command(arguments).output()?;
        if !output.status.success() {
            bail!("mvm {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output)
    }

    pub fn json(&self, arguments: &str) -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.ok(&format!("{arguments} --json"))?.stdout)?)
    }

    /// The same operations by calls, as an agent makes them.
    pub fn operator(&self) -> Result<Operator> {
        Ok(Operator::new(Roots::new(self.root.path(), &Environment::default())?))
    }

    /// A kernel of a few dozen bytes, and a small file system.
    pub fn artifacts(&self) -> Result<(PathBuf, PathBuf)> {
        let (kernel, rootfs) = (self.root.path().join("kernel.in"), self.root.path().join("rootfs.in"));
        std::fs::write(&kernel, mvm::cli::tiny_kernel())?;
        run_quietly(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&rootfs).arg("4M"))?;
        Ok((kernel, rootfs))
    }

    /// Gives a pool a revision with the usual kernel.
    pub fn import(&self, pool: &str) -> Result<()> {
        let (kernel, rootfs) = self.artifacts()?;
        self.import_files(pool, &kernel, &rootfs)
    }

    /// Gives a pool a revision whose kernel is this code.
    pub fn import_code(&self, pool: &str, code: &[u8]) -> Result<()> {
        let kernel = self.root.path().join("guest.in");
        let (_, rootfs) = self.artifacts()?;
        std::fs::write(&kernel, mvm::cli::kernel(code))?;
        self.import_files(pool, &kernel, &rootfs)
    }

    fn import_files(&self, pool: &str, kernel: &Path, rootfs: &Path) -> Result<()> {
        self.ok(&format!("pool import {pool} --kernel {} --rootfs {}", kernel.display(), rootfs.display()))?;
        Ok(())
    }

    /// The tenant of those benches that need one.
    pub fn acme(&self) -> Result<()> {
        self.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24").map(drop)
    }

    /// Makes an instance.
    pub fn create(&self, pool: &str) -> Result<InstancePath> {
        let made = self.json(&format!("instance create {pool}"))?;
        Ok(made["path"].as_str().context("a path")?.parse()?)
    }

    /// Makes an instance of acme and lets it sleep once: what is measured is from the second sleep on.
    pub fn asleep(&self) -> Result<InstancePath> {
        let path = self.create("acme/web")?;
        self.ok(&format!("instance start {path}"))?;
        std::thread::sleep(Duration::from_millis(100));
        self.ok(&format!("instance sleep {path}"))?;
        Ok(path)
    }

    /// A sleeper, the first of a pool whose kernel is this code.
    pub fn first_asleep(&self, mib: u32, code: &[u8]) -> Result<InstancePath> {
        self.ok(&format!("pool create acme/web --mem {mib} --data-disk 64 --insecure"))?;
        self.import_code("acme/web", code)?;
        self.asleep()
    }

    /// Where an instance's files lie.
    pub fn folder(&self, InstancePath { tenant, pool, instance }: &InstancePath) -> PathBuf {
        self.root.path().join(format!("tenants/{tenant}/pools/{pool}/instances/{instance}"))
    }

    /// An instance's console, from which what was printed before is gone: it would be taken for what comes.
    pub fn console(&self, path: &InstancePath) -> Result<Growth> {
        let console = self.folder(path).join("logs/console.log");
        let _ = std::fs::remove_file(&console);
        Growth::of(&console)
    }

    /// Runs a command that makes an instance's guest print; returns its console as well.
    pub fn timed(&self, arguments: &str, path: &InstancePath) -> Result<(Timed, Growth)> {
        let growth = self.console(path)?;
        let start = Instant::now();
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn()?;
        growth.beyond(0)?;
        let first = start.elapsed();
        let output = child.stdout.take();
        ensure!(child.wait()?.success(), "mvm {arguments} failed");
        let exit = start.elapsed();
        let output = std::io::read_to_string(output.context("output")?)?;
        Ok((Timed { first, exit, output }, growth))
    }

    /// Wakes an instance by a call: the time to its guest's first byte, to the end of the call, and its console.
    pub fn timed_call(
        &self,
        operator: &mut Operator,
        path: &InstancePath,
    ) -> Result<(Duration, Duration, Growth)> {
        let growth = self.console(path)?;
        let start = Instant::now();
        let (first, exit) = std::thread::scope(|scope| -> Result<_> {
            let first = scope.spawn(|| growth.beyond(0).map(|()| start.elapsed()));
            lifecycle::wake(operator, path, false)?;
            let exit = start.elapsed();
            let Ok(first) = first.join() else { bail!("the watcher ended") };
            Ok((first?, exit))
        })?;
        Ok((first, exit, growth))
    }
}

impl Drop for Mvm {
    fn drop(&mut self) {
        let tenants = self.json("tenant list").unwrap_or_default();
        for tenant in tenants.as_array().into_iter().flatten() {
            let id = tenant["tenant_id"].as_str().unwrap_or_default();
            let _ = self.ok(&format!("tenant destroy {id} --yes --wipe-volumes"));
        }
    }
}
