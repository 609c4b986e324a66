//! `instance start` against bare Firecracker on the same files: spawn, configure, start; both to the first console byte.

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

use super::{Figure, Mvm, figure, ms, percentile};

/// Pairs of starts: mvm's time to the first byte and to its exit, the bare one's to the first byte.
pub fn measure(program: &Path, pairs: u32) -> Result<Vec<Figure>> {
    let Some(firecracker) = find("firecracker") else {
        println!("SKIP (no firecracker): instance start against bare Firecracker");
        return Ok(Vec::new());
    };
    let mvm = Mvm::new(program)?;
    mvm.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24")?;
    mvm.ok("pool create acme/web --mem 128 --data-disk 64 --insecure")?;
    mvm.import("acme/web")?;
    let path = mvm.json("instance create acme/web")?["path"].as_str().context("a path")?.to_owned();
    let bare = Bare::new(&mvm, &firecracker)?;
    // Each once before it counts: files in the page cache, the binary installed.
    mvm_start(&mvm, &path)?;
    bare.start()?;
    let (mut first, mut whole, mut bared) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        let (to_first, to_exit) = mvm_start(&mvm, &path)?;
        first.push(ms(to_first));
        whole.push(ms(to_exit));
        bared.push(ms(bare.start()?));
    }
    let mut figures = Vec::new();
    for (name, share) in [("p50", 0.5), ("p90", 0.9)] {
        let (ours, theirs) = (percentile(&first, share), percentile(&bared, share));
        let ratio = ours / theirs;
        let ok = ratio <= 1.3 || ours - theirs <= 12.0;
        let value = format!("{ours:.1} ms against {theirs:.1} ms: {ratio:.2}×, +{:.1} ms", ours - theirs);
        figures.push(figure(
            format!("start to first byte, {name}, {pairs} pairs"),
            value,
            "≤ 1.3× or ≤ +12 ms",
            ok,
        ));
    }
    let exit = format!("{:.1} ms", percentile(&whole, 0.5));
    figures.push(figure("start, the command's time to exit, p50", exit, "given", true));
    Ok(figures)
}

fn find(program: &str) -> Option<PathBuf> {
    let named = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file()))
}

/// Watches a folder, in which a file gets its first byte.
struct FirstByte {
    watch: rustix::fd::OwnedFd,
    file: PathBuf,
}

impl FirstByte {
    fn of(file: &Path) -> Result<Self> {
        let folder = file.parent().context("a folder")?;
        std::fs::create_dir_all(folder)?;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, folder, inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE)?;
        Ok(Self { watch, file: file.to_path_buf() })
    }

    fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !std::fs::metadata(&self.file).is_ok_and(|meta| meta.len() > 0) {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left)?;
            if poll(&mut [PollFd::new(&self.watch, PollFlags::IN)], Some(&timeout))? == 0 {
                bail!("no byte on the console within 30 s");
            }
            rustix::io::read(&self.watch, &mut [0; 4096][..])?;
        }
        Ok(())
    }
}

fn mvm_start(mvm: &Mvm, path: &str) -> Result<(Duration, Duration)> {
    let parts: Vec<&str> = path.split('/').collect();
    let folder =
        mvm.root.path().join(format!("tenants/{}/pools/{}/instances/{}/logs", parts[0], parts[1], parts[2]));
    let console = folder.join("console.log");
    // The console of the run before would be taken for this one's.
    let _ = std::fs::remove_file(&console);
    let watch = FirstByte::of(&console)?;
    let start = Instant::now();
    let mut child = mvm.command(&format!("instance start {path}")).stdout(Stdio::null()).spawn()?;
    watch.wait()?;
    let first = start.elapsed();
    if !child.wait()?.success() {
        bail!("instance start failed");
    }
    let exit = start.elapsed();
    mvm.ok(&format!("instance stop {path} --force"))?;
    Ok((first, exit))
}

/// Firecracker with nothing around it, on copies of the same files and a TAP that is there already.
struct Bare {
    firecracker: PathBuf,
    folder: PathBuf,
}

impl Bare {
    fn new(mvm: &Mvm, firecracker: &Path) -> Result<Self> {
        let folder = mvm.root.path().join("bare");
        std::fs::create_dir(&folder)?;
        let (kernel, rootfs) = mvm.artifacts()?;
        std::fs::copy(kernel, folder.join("vmlinux"))?;
        std::fs::copy(&rootfs, folder.join("rootfs.ext4"))?;
        let data =
            Command::new("mke2fs").args(["-q", "-F"]).arg(folder.join("data.ext4")).arg("64M").output()?;
        let tap = Command::new("ip").args(["tuntap", "add", "bare0", "mode", "tap", "vnet_hdr"]).output()?;
        if !data.status.success() || !tap.status.success() {
            bail!("cannot prepare the bare run");
        }
        Ok(Self { firecracker: firecracker.to_path_buf(), folder })
    }

    fn start(&self) -> Result<Duration> {
        for name in ["api.sock", "v.sock", "console.log"] {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
        std::fs::write(self.folder.join("console.log"), "")?;
        let first_byte = FirstByte::of(&self.folder.join("console.log"))?;
        let socket = FirstByte::of(&self.folder.join("api.sock"))?;
        let start = Instant::now();
        let mut child = Command::new(&self.firecracker)
            .args(["--api-sock", "api.sock", "--id", "bare"])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let measured = self.configure(&socket).and_then(|()| first_byte.wait()).map(|()| start.elapsed());
        end(&mut child)?;
        measured
    }

    fn configure(&self, socket: &FirstByte) -> Result<()> {
        let path = self.folder.join("api.sock");
        let mut stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    std::thread::sleep(Duration::from_micros(50));
                }
                Err(_) => {
                    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
                    if poll(&mut [PollFd::new(&socket.watch, PollFlags::IN)], Some(&limit))? == 0 {
                        bail!("no API socket within 10 s");
                    }
                    rustix::io::read(&socket.watch, &mut [0; 4096][..])?;
                }
            }
        };
        let calls = [
            ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128,"track_dirty_pages":true}"#),
            (
                "/boot-source",
                r#"{"kernel_image_path":"vmlinux","boot_args":"console=ttyS0 reboot=k panic=-1 quiet"}"#,
            ),
            ("/serial", r#"{"serial_out_path":"console.log"}"#),
            (
                "/drives/rootfs",
                r#"{"drive_id":"rootfs","path_on_host":"rootfs.ext4","is_root_device":true,"is_read_only":false,"cache_type":"Writeback"}"#,
            ),
            (
                "/drives/data",
                r#"{"drive_id":"data","path_on_host":"data.ext4","is_root_device":false,"is_read_only":false,"cache_type":"Writeback"}"#,
            ),
            (
                "/network-interfaces/eth0",
                r#"{"iface_id":"eth0","host_dev_name":"bare0","guest_mac":"02:fc:00:03:00:99"}"#,
            ),
            ("/vsock", r#"{"guest_cid":3,"uds_path":"v.sock"}"#),
            ("/entropy", "{}"),
            ("/actions", r#"{"action_type":"InstanceStart"}"#),
        ];
        for (path, body) in calls {
            let request = format!("PUT {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(request.as_bytes())?;
            let mut answer = [0; 4096];
            let length = stream.read(&mut answer)?;
            if !answer[..length].starts_with(b"HTTP/1.1 204") {
                bail!("{path}: {}", String::from_utf8_lossy(&answer[..length]));
            }
        }
        Ok(())
    }
}

fn end(child: &mut Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}
