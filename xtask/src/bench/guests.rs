//! Guests with an agent against bare Firecracker on the same base snapshot: how long until they are themselves, what they keep
//! in memory, and what reaches into them.
//!
//! Real Linux guests run in the lab, so this program is carried into it and measures there ([`in_lab`]); what it measured comes
//! back as JSON. Times of the lab are emulated: only their ratios say anything. It goes into a guest as well, as the bare end of a
//! stream ([`sink`]).

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use mvm::{
    infra::config::Roots,
    vm::{
        instance::{
            config::Instance,
            guest::Guest,
            lifecycle::{self, Operator},
        },
        naming::InstancePath,
    },
    vmm::vsock::Connection,
};
use mvm_proto::{
    Answer, Frames, Kind, Request, copy,
    message::{Exec, Exited},
};

use super::{
    Figure, bare,
    bare::{Tap, Vmm},
    endurance, figure, jail, ms, noise, percentile,
    root::Mvm,
};

/// Where the lab puts the image that was made outside.
const IMAGES: &str = "/job/guest/images";
/// Memory of a guest, in MiB.
const MEM: u32 = 256;
/// Its data disk, in MiB: this program goes there.
const DATA: u32 = 256;
/// How many clones there are when the last one's memory is looked at.
const CLONES: usize = 50;
/// How long a guest of the lab may take for anything; one that takes longer hangs, as one in twenty does there.
const LIMIT: Duration = Duration::from_secs(20);
/// The same for a boot.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How often something is tried that hung.
const TRIES: usize = 3;
/// What is streamed, in MiB.
const STREAM: usize = 32;
/// How often a shell of the guest starts a program.
const LOOPS: u32 = 50;
/// A program of the guest that needs no loader, since it is the loader.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// The sink's port in the guest.
const PORT: u32 = 5252;

/// Executing `true` in the simulated guest.
pub fn simulated(program: &Path, pairs: u32) -> Result<Vec<Figure>> {
    let mvm = Mvm::new(program)?;
    mvm.acme()?;
    mvm.ok("pool create acme/web --vmm sim --mem 128 --data-disk 8 --insecure --agent required")?;
    mvm.import("acme/web")?;
    let path = mvm.create("acme/web")?;
    mvm.ok(&format!("instance start {path}"))?;
    let mut times = Vec::new();
    for _ in 0..pairs {
        let start = Instant::now();
        mvm.ok(&format!("instance exec -n {path} -- true"))?;
        times.push(ms(start.elapsed()));
    }
    let p50 = percentile(&times, 0.5);
    mvm.ok("tenant destroy acme --yes --wipe-volumes")?;
    Ok(vec![figure(
        "exec of true, command, simulated guest, p50",
        format!("{p50:.1} ms"),
        "≤ 10 ms",
        p50 <= 10.0,
    )])
}

/// What is measured in one lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// A start from the base against a bare restore of it, and against a boot
    Starts,
    /// exec and cp against a ping and a bare stream
    Reach,
    /// The memory of the last of many clones against a bare restore's
    Memory,
    /// What a guest notices of another tenant's that floods everything it has
    Noise,
    /// A start and a wake in a jail and limited against neither
    Jail,
    /// How often in a row a guest sleeps and wakes; only where it is named
    Cycles,
    /// The same on bare Firecracker; only where it is named
    BareCycles,
}

impl Part {
    /// What is measured where no part is named.
    pub const USUAL: [Self; 5] = [Self::Starts, Self::Reach, Self::Memory, Self::Noise, Self::Jail];
}

/// What needs a real guest, inside the lab.
pub fn in_lab(pairs: u32, cycles: u32, parts: &[Part]) -> Result<Vec<Figure>> {
    let firecracker = bare::firecracker("guests").context("the lab has one")?;
    let mvm = Mvm::in_folder(Path::new("mvm"), &std::env::temp_dir())?;
    symlink(IMAGES, mvm.root.path().join("images"))?;
    mvm.acme()?;
    mvm.ok(&format!("pool create acme/web --image debian --mem {MEM} --data-disk {DATA} --insecure"))?;
    let mut lab = Lab { bare: Bare::new(&mvm, &firecracker)?, roots: mvm.operator()?.roots, mvm };
    let mut figures = Vec::new();
    for part in parts {
        figures.extend(match part {
            Part::Starts => lab.starts(pairs)?,
            Part::Reach => lab.reach(pairs)?,
            Part::Memory => lab.memory()?,
            Part::Noise => noise::measure(&lab.mvm, &lab.roots)?,
            Part::Jail => jail::measure_with(&lab.mvm, pairs, true)?,
            Part::Cycles => endurance::measure(&lab.mvm, &lab.roots, None, cycles)?,
            Part::BareCycles => endurance::measure(&lab.mvm, &lab.roots, Some(&firecracker), cycles)?,
        });
    }
    lab.mvm.ok("tenant destroy acme --yes --wipe-volumes")?;
    Ok(figures)
}

struct Lab {
    mvm: Mvm,
    roots: Roots,
    bare: Bare,
}

/// What bare Firecracker is started on: links to the same files, and a data disk of its own.
struct Bare {
    firecracker: PathBuf,
    folder: PathBuf,
    tap: Tap,
}

impl Bare {
    fn new(mvm: &Mvm, firecracker: &Path) -> Result<Self> {
        let pool = mvm.root.path().join("tenants/acme/pools/web");
        let only = |folder: PathBuf| -> Result<PathBuf> {
            let first =
                fs::read_dir(&folder)?.next().with_context(|| format!("{} is empty", folder.display()))?;
            Ok(first?.path())
        };
        let folder = mvm.root.path().join("bare");
        fs::create_dir(&folder)?;
        symlink(only(pool.join("snapshots/base"))?, folder.join("base"))?;
        let revision = only(pool.join("artifacts/revisions"))?;
        for name in ["vmlinux", "initrd", "rootfs.ext4"] {
            symlink(revision.join(name), folder.join(name))?;
        }
        fs::File::create(folder.join("data.ext4"))?.set_len(u64::from(DATA) << 20)?;
        Ok(Self { firecracker: firecracker.to_path_buf(), folder, tap: Tap::new("bare0")? })
    }

    /// Asks the agent how it is: a connection, a request, an answer.
    fn ping(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let connection = Connection::await_open(&self.folder, "v.sock", mvm_proto::PORT, deadline, || true)?;
        let mut frames = Frames::on(connection);
        frames.send(&mvm_proto::Hello::of("bench"))?;
        frames.send(&Request::Status {})?;
        let _: mvm_proto::Hello = frames.message()?;
        match frames.message()? {
            Answer::Status(_) => Ok(()),
            other => bail!("{other:?}"),
        }
    }

    /// Restores the base, and asks its agent something.
    fn restore(&self) -> Result<(Vmm, Duration)> {
        let start = Instant::now();
        let mut vmm = Vmm::spawn(&self.firecracker, &self.folder)?;
        let load = serde_json::json!({
            "snapshot_path": "base/vmstate",
            "mem_backend": { "backend_type": "File", "backend_path": "base/mem" },
            "track_dirty_pages": true, "resume_vm": true,
            "network_overrides": [{ "iface_id": "eth0", "host_dev_name": self.tap.0 }],
        });
        vmm.call("PUT", "/snapshot/load", &load.to_string())?;
        self.ping(LIMIT)?;
        Ok((vmm, start.elapsed()))
    }

    /// Boots the same guest, up to its agent.
    fn boot(&self, cmdline: &str) -> Result<Duration> {
        let start = Instant::now();
        let mut vmm = Vmm::spawn(&self.firecracker, &self.folder)?;
        let put =
            |vmm: &mut Vmm, path: &str, body: serde_json::Value| vmm.call("PUT", path, &body.to_string());
        put(&mut vmm, "/machine-config", serde_json::json!({ "vcpu_count": 1, "mem_size_mib": MEM }))?;
        put(
            &mut vmm,
            "/boot-source",
            serde_json::json!({ "kernel_image_path": "vmlinux", "initrd_path": "initrd", "boot_args": cmdline }),
        )?;
        for (id, file, read_only) in [("rootfs", "rootfs.ext4", true), ("data", "data.ext4", false)] {
            let body = serde_json::json!({
                "drive_id": id, "path_on_host": file, "is_root_device": false, "is_read_only": read_only,
            });
            put(&mut vmm, &format!("/drives/{id}"), body)?;
        }
        let nic = serde_json::json!({ "iface_id": "eth0", "host_dev_name": self.tap.0 });
        put(&mut vmm, "/network-interfaces/eth0", nic)?;
        put(&mut vmm, "/vsock", serde_json::json!({ "guest_cid": 3, "uds_path": "v.sock" }))?;
        put(&mut vmm, "/actions", serde_json::json!({ "action_type": "InstanceStart" }))?;
        self.ping(BOOT_LIMIT)?;
        Ok(start.elapsed())
    }
}

/// Hears a command out, which must succeed.
pub fn finish_exec(frames: &mut Frames<Connection>) -> Result<()> {
    loop {
        match frames.advance()? {
            Some(Kind::Message) => match frames.parse()? {
                Answer::Started { .. } => {}
                Answer::Exited(Exited::Code(0)) => return Ok(()),
                other => bail!("{other:?}"),
            },
            Some(_) => {}
            None => bail!("the guest closed the connection"),
        }
    }
}

/// What hangs in the lab's emulated nesting is tried again, and said.
pub fn again<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match work() {
            Ok(done) => return Ok(done),
            Err(error) => println!("REPEAT: {error:#}"),
        }
    }
    work()
}

/// Where KVM counts what it does for each VM.
const KVM: &str = "/sys/kernel/debug/kvm";

/// Pages that KVM mapped for a VMM's guest since it was there: each is an exit of the guest, at its first touch.
fn pages_mapped(pid: u32) -> Result<f64> {
    if !Path::new(KVM).exists() {
        let mounted =
            Command::new("mount").args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"]).status()?;
        ensure!(mounted.success(), "no debugfs");
    }
    let of_it = format!("{pid}-");
    let vm = fs::read_dir(KVM)?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&of_it))
        .with_context(|| format!("KVM knows no VM of process {pid}"))?;
    Ok(fs::read_to_string(vm.path().join("pf_fixed"))?.trim().parse()?)
}

/// The memory of a process that nobody else has, in MiB.
fn private_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0.0)
    };
    Ok((kib("Private_Clean:") + kib("Private_Dirty:")) / 1024.0)
}

impl Lab {
    /// Starts from the base, in turns with bare restores of it, and with boots.
    fn starts(&mut self, pairs: u32) -> Result<Vec<Figure>> {
        let path = self.mvm.create("acme/web")?;
        let (mut bare, mut commands, mut receipts, mut boots) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut bare_pages, mut pages) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            bare.push(again(|| {
                let (vmm, took) = self.bare.restore()?;
                bare_pages.push(pages_mapped(vmm.pid())?);
                Ok(ms(took))
            })?);
            commands.push(again(|| {
                let start = Instant::now();
                self.mvm.ok(&format!("instance start {path}"))?;
                Ok(ms(start.elapsed()))
            })?);
            self.mvm.ok(&format!("instance stop {path} --force"))?;
            receipts.push(again(|| self.receipt(&path))?);
            let vmm = Instance::load(&self.roots, &path)?.vmm.context("a VMM")?;
            pages.push(pages_mapped(vmm.pid.cast_unsigned())?);
            self.mvm.ok(&format!("instance stop {path} --force"))?;
            println!(
                "{pair}: bare {:.0}, command {:.0}, receipt {:.0} ms; pages {} and {}",
                bare[bare.len() - 1],
                commands[commands.len() - 1],
                receipts[receipts.len() - 1],
                bare_pages[bare_pages.len() - 1],
                pages[pages.len() - 1],
            );
        }
        let cmdline = self.cmdline()?;
        for _ in 0..pairs.min(5) {
            boots.push(again(|| Ok(ms(self.bare.boot(&cmdline)?)))?);
        }
        self.mvm.ok(&format!("instance destroy {path} --yes --wipe-volumes"))?;
        let mut figures = Vec::new();
        for (name, share) in [("p50", 0.5), ("p90", 0.9)] {
            let theirs = percentile(&bare, share);
            let mine = percentile(&receipts, share);
            figures.push(figure(
                format!("start from the base until its receipt is whole, {name} of {pairs}, against restore and ping"),
                format!("{mine:.0} ms against {theirs:.0} ms: {:.2}×", mine / theirs),
                "≤ 1.3×",
                mine / theirs <= 1.3,
            ));
            let exit = percentile(&commands, share);
            figures.push(figure(
                format!("the command's time to exit, {name}"),
                format!("{exit:.0} ms: {:.2}×", exit / theirs),
                "given",
                true,
            ));
        }
        let (theirs, mine) = (percentile(&bare_pages, 0.5), percentile(&pages, 0.5));
        figures.push(figure(
            "pages that the guest touched by then, p50, against restore and ping",
            format!("{mine:.0} against {theirs:.0}: {:.2}×", mine / theirs),
            "given",
            true,
        ));
        let (start, boot) = (percentile(&receipts, 0.5), percentile(&boots, 0.5));
        figures.push(figure(
            "start from the base against a boot up to the agent, p50",
            format!("{start:.0} ms against {boot:.0} ms: {:.2}×", start / boot),
            "≤ 0.25×",
            start / boot <= 0.25,
        ));
        Ok(figures)
    }

    /// Starts an instance by a call; the time until its receipt is whole, in ms: all of the call but its joining the network.
    fn receipt(&self, path: &InstancePath) -> Result<f64> {
        let mut operator = Operator::new(self.roots.clone());
        let start = Instant::now();
        let outcome = lifecycle::start(&mut operator, path)?;
        let all = ms(start.elapsed());
        let receipt = outcome.instance.last_receipt.context("a receipt")?;
        if all > 1000.0 * LIMIT.as_secs_f64() {
            bail!("a start of {all:.0} ms");
        }
        let facts: Vec<String> =
            receipt.confirmed.iter().map(|one| format!("{} {:.0}", one.fact, one.ms)).collect();
        let steps: Vec<String> =
            receipt.steps.iter().map(|one| format!("{} {:.0}", one.name, one.ms)).collect();
        println!("{}; {}", steps.join(", "), facts.join(", "));
        // The record, which comes after it, is not taken off.
        let join = receipt.steps.iter().find(|step| step.name == "join").map_or(0.0, |step| step.ms);
        Ok(all - join)
    }

    fn cmdline(&self) -> Result<String> {
        let manifest = fs::read_to_string(
            self.bare.folder.join("vmlinux").canonicalize()?.with_file_name("manifest.json"),
        )?;
        let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
        Ok(format!("{} mvm.agent=1", manifest["cmdline"].as_str().context("a command line")?))
    }

    /// exec and cp, against a ping and a bare stream of the same guest.
    fn reach(&mut self, pairs: u32) -> Result<Vec<Figure>> {
        let path = self.mvm.create("acme/web")?;
        again(|| self.mvm.ok(&format!("instance start {path}")))?;
        let instance = Instance::load(&self.roots, &path)?;
        let (mut pings, mut execs, mut loaders) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..pairs.max(20) {
            let start = Instant::now();
            Guest::of(&self.roots, &instance)?.status()?;
            pings.push(ms(start.elapsed()));
            let start = Instant::now();
            self.exec(&instance, &["true"])?;
            execs.push(ms(start.elapsed()));
            let start = Instant::now();
            self.exec(&instance, &[LOADER, "--version"])?;
            loaders.push(ms(start.elapsed()));
        }
        let [exec, loader, ping] = [&execs, &loaders, &pings].map(|times| percentile(times, 0.5));
        let mut figures = vec![
            figure(
                "exec of true, call, against a ping of the agent, p50",
                format!("{exec:.1} ms against {ping:.1} ms: {:.2}×", exec / ping),
                "≤ 3×",
                exec / ping <= 3.0,
            ),
            figure(
                "exec of a program that is not linked dynamically, p50",
                format!("{loader:.1} ms: {:.2}×", loader / ping),
                "given",
                true,
            ),
        ];
        // What the guest's own shell takes for as much: nobody starts a program there in less.
        let start = Instant::now();
        self.exec(&instance, &["sh", "-c", &format!("for i in $(seq {LOOPS}); do /bin/true; done")])?;
        let own = ms(start.elapsed()) / f64::from(LOOPS);
        figures.push(figure(
            "the same program, started by a shell of the guest, each of many",
            format!("{own:.1} ms: {:.2}×", own / ping),
            "given",
            true,
        ));
        let this = std::env::current_exe()?;
        self.mvm.ok(&format!("instance cp {} {path}:/data/sink", this.display()))?;
        let file = self.mvm.root.path().join("stream");
        fs::write(&file, (0..STREAM << 20).map(|at| (at ^ (at >> 11)) as u8).collect::<Vec<_>>())?;
        let mut sink =
            self.mvm.command(&format!("instance exec -n {path} -- /data/sink bench sink")).spawn()?;
        let (mut streams, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            streams.push(ms(self.stream(&path)?));
            copies.push(ms(self.copy(&instance, &file)?));
            self.exec(&instance, &["rm", "/run/copied"])?;
        }
        sink.kill()?;
        sink.wait()?;
        let rate = |times: &[f64]| STREAM as f64 * 1000.0 / percentile(times, 0.5);
        let (copied, streamed) = (rate(&copies), rate(&streams));
        figures.push(figure(
            format!("cp of {STREAM} MiB to a guest, against a bare vsock stream, p50"),
            format!("{copied:.0} MiB/s against {streamed:.0} MiB/s: {:.0} %", copied / streamed * 100.0),
            "≥ 60 %",
            copied / streamed >= 0.6,
        ));
        self.mvm.ok(&format!("instance destroy {path} --yes --wipe-volumes"))?;
        Ok(figures)
    }

    fn exec(&self, instance: &Instance, argv: &[&str]) -> Result<()> {
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        let mut guest = Guest::of(&self.roots, instance)?;
        guest.ask(&Request::Exec(Exec { argv, ..Exec::default() }), LIMIT)?;
        finish_exec(&mut guest.into_frames())
    }

    fn copy(&self, instance: &Instance, file: &Path) -> Result<Duration> {
        let start = Instant::now();
        let mut guest = Guest::of(&self.roots, instance)?;
        guest.begin(&Request::Put { path: "/run/copied".to_owned(), name: "copied".to_owned() })?;
        let mut frames = guest.into_frames();
        copy::send(&mut frames, file)?;
        match frames.message()? {
            Answer::Copied(_) => Ok(start.elapsed()),
            other => bail!("{other:?}"),
        }
    }

    /// As many bytes to a program that does nothing with them.
    fn stream(&self, path: &InstancePath) -> Result<Duration> {
        let directory = self.roots.vmm_dir(&Instance::load(&self.roots, path)?.net.tap_dev);
        let mut connection =
            Connection::await_open(&directory, "v.sock", PORT, Instant::now() + LIMIT, || true)?;
        connection.set_deadline(Some(Instant::now() + LIMIT));
        let piece = vec![7; 256 << 10];
        let start = Instant::now();
        connection.write_all(&((STREAM as u64) << 20).to_le_bytes())?;
        for _ in 0..STREAM * 4 {
            connection.write_all(&piece)?;
        }
        connection.read_exact(&mut [0])?;
        Ok(start.elapsed())
    }

    /// What the last of many clones has for itself, beyond a bare restore that was asked something.
    fn memory(&mut self) -> Result<Vec<Figure>> {
        let mut last = None;
        for clone in 1..=CLONES {
            let path = self.mvm.create("acme/web")?;
            again(|| self.mvm.ok(&format!("instance start {path}")))?;
            println!("clone {clone} runs");
            last = Some(path);
        }
        let path = last.context("a clone")?;
        let pid = Instance::load(&self.roots, &path)?.vmm.context("a VMM")?.pid;
        let mine = private_mib(pid.cast_unsigned())?;
        let (vmm, _) = again(|| self.bare.restore())?;
        let theirs = private_mib(vmm.pid())?;
        Ok(vec![figure(
            format!("private memory of clone {CLONES} beyond a bare restore and ping"),
            format!("{mine:.1} MiB against {theirs:.1} MiB: {:+.1} MiB", mine - theirs),
            "≤ 2 MiB",
            mine - theirs <= 2.0,
        )])
    }
}

/// The bare end of a stream, in a guest: reads as many bytes as the first eight say, answers with one, and goes on with the
/// next connection.
///
/// # Errors
/// When there is no vsock.
pub fn sink() -> Result<()> {
    let listener = listen()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        // SAFETY: no address is asked for; the descriptor that comes back belongs to nobody else.
        let accepted =
            unsafe { libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
        ensure(accepted >= 0)?;
        // SAFETY: it was just accepted.
        let mut stream = fs::File::from(unsafe { OwnedFd::from_raw_fd(accepted) });
        let mut length = [0; 8];
        stream.read_exact(&mut length)?;
        let mut left = u64::from_le_bytes(length);
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left)?);
            let count = stream.read(&mut buffer[..most])?;
            ensure!(count > 0, "the stream ended early");
            left -= count as u64;
        }
        stream.write_all(&[0])?;
    }
}

fn ensure(holds: bool) -> Result<()> {
    if holds { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

fn listen() -> Result<OwnedFd> {
    // SAFETY: plain system calls; the address lives as long as the call, and its size is its own.
    unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        ensure(socket >= 0)?;
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = PORT;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let size = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        ensure(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) == 0)?;
        ensure(libc::listen(socket.as_raw_fd(), 16) == 0)?;
        Ok(socket)
    }
}
