//! Firecracker with nothing around it: what mvm is measured against.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mvm::vm::naming::InstancePath;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};

use super::{root::Mvm, run_quietly};

/// The program; without it what it is compared with is skipped visibly.
pub fn firecracker(what: &str) -> Option<PathBuf> {
    let named = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path).map(|dir| dir.join("firecracker")).find(|file| file.is_file())
    });
    if found.is_none() {
        println!("SKIP (no firecracker): {what} against bare Firecracker");
    }
    found
}

/// Watches a folder, in which a file appears and grows.
pub struct Growth {
    watch: rustix::fd::OwnedFd,
    file: PathBuf,
}

impl Growth {
    /// Watches for this file, which need not be there yet; its folder is made.
    pub fn of(file: &Path) -> Result<Self> {
        let folder = file.parent().context("a folder")?;
        std::fs::create_dir_all(folder)?;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, folder, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE)?;
        Ok(Self { watch, file: file.to_path_buf() })
    }

    /// Waits until it has more than so many bytes.
    pub fn beyond(&self, bytes: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            // It is written to under another name, which the folder does not hear of; and may be another file by now.
            let _ = inotify::add_watch(&self.watch, &self.file, inotify::WatchFlags::MODIFY);
            if std::fs::metadata(&self.file).is_ok_and(|meta| meta.len() > bytes) {
                return Ok(());
            }
            self.wait(deadline)?;
        }
    }

    fn wait(&self, deadline: Instant) -> Result<()> {
        let timeout = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
        if poll(&mut [PollFd::new(&self.watch, PollFlags::IN)], Some(&timeout))? == 0 {
            bail!("nothing more in {} within 30 s", self.file.display());
        }
        rustix::io::read(&self.watch, &mut [0; 4096][..])?;
        Ok(())
    }

    /// Connects to it, once it is a socket on which somebody listens.
    fn connect(&self) -> Result<UnixStream> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(&self.file) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(_) => self.wait(deadline)?,
            }
        }
    }
}

/// A Firecracker that was started in a folder.
pub struct Vmm {
    child: Child,
    stream: UnixStream,
}

impl Vmm {
    /// Starts it and connects to its API.
    pub fn spawn(firecracker: &Path, folder: &Path) -> Result<Self> {
        for name in ["api.sock", "v.sock"] {
            let _ = std::fs::remove_file(folder.join(name));
        }
        let socket = Growth::of(&folder.join("api.sock"))?;
        let child = Command::new(firecracker)
            .args(["--api-sock", "api.sock", "--id", "bare"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let stream = socket.connect()?;
        // In emulated nesting a call hangs now and then.
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { child, stream })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One request, which must succeed.
    pub fn call(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let request = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(request.as_bytes())?;
        let mut answer = [0; 4096];
        let length = self.stream.read(&mut answer)?;
        if !answer[..length].starts_with(b"HTTP/1.1 204") {
            bail!("{path}: {}", String::from_utf8_lossy(&answer[..length]));
        }
        Ok(())
    }
}

impl Drop for Vmm {
    /// Kills it and waits until it is gone.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A TAP that bare Firecracker finds; gone with it.
pub struct Tap(pub String);

impl Tap {
    /// Makes it.
    pub fn new(name: &str) -> Result<Self> {
        run_quietly(Command::new("ip").args(["tuntap", "add", name, "mode", "tap", "vnet_hdr"]))?;
        Ok(Self(name.to_owned()))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = run_quietly(Command::new("ip").args(["link", "delete", &self.0]));
    }
}

/// The same guest on bare Firecracker: its own copies of the files, and a TAP that is there already.
pub struct Restored {
    firecracker: PathBuf,
    pub folder: PathBuf,
    tap: Tap,
}

impl Restored {
    pub fn new(mvm: &Mvm, firecracker: &Path, path: &InstancePath) -> Result<Self> {
        let from = mvm.folder(path);
        let folder = mvm.root.path().join(format!("bare-{}", path.instance));
        std::fs::create_dir(&folder)?;
        for part in ["snapshots/delta", "volumes"] {
            for entry in std::fs::read_dir(from.join(part))? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let to = match name.split(['.', '-']).next() {
                    Some("root") => "rootfs.ext4".to_owned(),
                    Some(stem @ ("mem" | "vmstate")) => stem.to_owned(),
                    _ => name.clone(),
                };
                run_quietly(
                    Command::new("cp").arg("--sparse=always").arg(entry.path()).arg(folder.join(to)),
                )?;
            }
        }
        let tap = Tap::new(&format!("b{}", &path.instance.to_string()[2..]))?;
        Ok(Self { firecracker: firecracker.to_path_buf(), folder, tap })
    }

    /// Restores it; the time until its guest's first byte.
    pub fn wake(&self) -> Result<(Vmm, Growth, Duration)> {
        let console = self.folder.join("console.log");
        std::fs::write(&console, "")?;
        let growth = Growth::of(&console)?;
        let start = Instant::now();
        let mut vmm = Vmm::spawn(&self.firecracker, &self.folder)?;
        vmm.call("PUT", "/serial", r#"{"serial_out_path":"console.log"}"#)?;
        self.load_into(&mut vmm)?;
        growth.beyond(0)?;
        let first = start.elapsed();
        Ok((vmm, growth, first))
    }

    /// Restores it, its last words going into `vmm.log`.
    pub fn load(&self) -> Result<Vmm> {
        std::fs::write(self.folder.join("vmm.log"), "")?;
        let mut vmm = Vmm::spawn(&self.firecracker, &self.folder)?;
        vmm.call("PUT", "/logger", r#"{"log_path":"vmm.log","level":"Error"}"#)?;
        self.load_into(&mut vmm)?;
        Ok(vmm)
    }

    fn load_into(&self, vmm: &mut Vmm) -> Result<()> {
        let load = serde_json::json!({
            "snapshot_path": "vmstate", "mem_backend": { "backend_type": "File", "backend_path": "mem" },
            "track_dirty_pages": true, "resume_vm": true,
            "network_overrides": [{ "iface_id": "eth0", "host_dev_name": self.tap.0 }],
        });
        vmm.call("PUT", "/snapshot/load", &load.to_string())
    }

    /// Saves it again: pause, Diff onto its own memory file, kill.
    pub fn save(&self, mut vmm: Vmm) -> Result<()> {
        vmm.call("PATCH", "/vm", r#"{"state":"Paused"}"#)?;
        vmm.call(
            "PUT",
            "/snapshot/create",
            r#"{"snapshot_type":"Diff","snapshot_path":"vmstate.new","mem_file_path":"mem"}"#,
        )?;
        drop(vmm);
        std::fs::rename(self.folder.join("vmstate.new"), self.folder.join("vmstate"))?;
        Ok(())
    }

    /// Restores it, lets it print so many bytes, and saves it again.
    pub fn cycle(&self, round: u64) -> Result<(Duration, Duration)> {
        let (vmm, growth, wake) = self.wake()?;
        growth.beyond(round)?;
        let start = Instant::now();
        self.save(vmm)?;
        Ok((wake, start.elapsed()))
    }
}
