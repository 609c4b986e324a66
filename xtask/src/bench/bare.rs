//! Firecracker with nothing around it: what mvm is measured against.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};

/// Where a program is, if it is there.
pub fn find(program: &str) -> Option<PathBuf> {
    let named = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file()))
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
        while !std::fs::metadata(&self.file).is_ok_and(|meta| meta.len() > bytes) {
            self.wait(deadline)?;
        }
        Ok(())
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
        Ok(Self { child, stream: socket.connect()? })
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
