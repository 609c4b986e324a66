//! The story: two tenants, pools, instances; what may pass and what may not; sleep and wake; a kill and a recovery; nothing
//! left.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::{Value, json};

use super::{
    Check, Report, failed,
    guest::{tell, tiny_kernel},
    lacking,
    world::World,
};
use crate::{
    cli::{
        error::CliError,
        output::{Out, Tone},
    },
    infra::{config::Environment, watch::Watch},
    store::StoreError,
    vm::instance::{disk, fc_config::files},
};

/// How long an answer that must come is waited for, and after how long a guest asks again, in ms.
const ANSWER_MS: u64 = 2000;
const AGAIN_MS: u64 = 200;

/// A port of the host on which somebody listens, and which is not offered to guests.
const HOST_PORT: u16 = 7777;

/// How long a packet that must not arrive is waited for; its positive twin takes less than a millisecond.
const DENIED_MS: u64 = 150;

pub(super) struct Stage<'a> {
    out: &'a Out,
    pub(super) root: PathBuf,
    program: PathBuf,
    /// Firecracker and what it needs are here: then the kill is shown on it.
    real: bool,
    checks: Vec<Check>,
}

/// Plays it, in namespaces of its own.
pub fn play(out: &Out, environment: &Environment, root: &Path) -> Result<u8, CliError> {
    enter_namespaces()?;
    let program = std::env::current_exe().map_err(|error| lacking(error.to_string()))?;
    let (real, why) = vmm_and_why(environment);
    let mut stage = Stage { out, root: root.to_path_buf(), program, real, checks: Vec::new() };
    let guests =
        if real { "Simulated guests, and a real Firecracker for the kill" } else { "Simulated guests" };
    out.say(format!("  {guests} ({why}); throw-away root and network namespace"));
    let before = World::look(root);
    stage.build()?;
    stage.packets()?;
    stage.quota()?;
    stage.sleep_and_wake()?;
    stage.kill()?;
    stage.audit()?;
    stage.leave_nothing(&before)?;
    let ok = stage.checks.iter().all(|check| check.ok);
    if out.json {
        out.show(&Report { vmm: "sim".into(), why, checks: stage.checks, ok }, String::new);
    }
    Ok(if ok { 0 } else { 1 })
}

/// Is a real Firecracker here, and why does it not play all guests?
fn vmm_and_why(environment: &Environment) -> (bool, String) {
    match &environment.firecracker_bin {
        None => (false, "there is no firecracker on PATH".into()),
        Some(_) if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() => {
            (false, "firecracker is there, but /dev/kvm cannot be opened".into())
        }
        Some(_) => (true, "no guest image here speaks IP".into()),
    }
}

/// A network and a mount namespace; a user namespace around them for who is not root.
fn enter_namespaces() -> Result<(), CliError> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let root = rustix::process::geteuid().is_root();
    let mut flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    if !root {
        flags |= UnshareFlags::NEWUSER;
    }
    // SAFETY: this process has one thread, so nothing else notices that its namespaces change.
    unsafe { unshare_unsafe(flags) }.map_err(|error| {
        lacking(format!("cannot make namespaces: {error}"))
            .fix("run as root, or allow unprivileged user namespaces")
    })?;
    if !root {
        let write = |file: &str, text: String| {
            std::fs::write(format!("/proc/self/{file}"), text)
                .map_err(|error| lacking(format!("{file}: {error}")))
        };
        write("setgroups", "deny".into())?;
        write("uid_map", format!("0 {uid} 1"))?;
        write("gid_map", format!("0 {gid} 1"))?;
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
            return Err(lacking(format!("/dev/net/tun: {error}")).fix("run as root"));
        }
    }
    let mut socket = crate::net::netlink::Socket::route()
        .map_err(|error| lacking(format!("cannot open netlink: {error}")))?;
    crate::net::links::bring_up(&mut socket, "lo").map_err(CliError::from)
}

/// What is wrong, or else what was shown.
pub(super) fn wrong_or(twins: &[(bool, &str)], denials: &[(bool, &str)], good: &str) -> String {
    let wrong: Vec<&str> =
        twins.iter().chain(denials).filter(|(holds, _)| !holds).map(|(_, wrong)| *wrong).collect();
    if wrong.is_empty() { good.to_owned() } else { wrong.join("; ") }
}

impl Stage<'_> {
    pub(super) fn tell(&self, tap: &str, command: &Value) -> Result<Value, CliError> {
        let directory = self.root.join("run/firecracker").join(tap).join("root");
        tell(&directory, command).map_err(|error| failed(format!("the guest on {tap}: {error}")))
    }

    fn command(&self, arguments: &str, failpoint: Option<&str>) -> Result<Output, CliError> {
        let mut command = Command::new(&self.program);
        command.args(arguments.split(' ')).arg("--json").arg("--root").arg(&self.root).stdin(Stdio::null());
        if let Some(point) = failpoint {
            command.env("MVM_FAILPOINT", point);
        }
        command.output().map_err(|error| failed(format!("cannot run mvm {arguments}: {error}")))
    }

    /// Runs a command of mvm that must succeed, and returns what it prints.
    pub(super) fn mvm(&self, arguments: &str) -> Result<Value, CliError> {
        let output = self.command(arguments, None)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(format!("mvm {arguments} failed: {said}")));
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    pub(super) fn shown(&mut self, name: &str, ok: bool, title: &str, detail: String, ms: Option<f64>) {
        let (tone, mark) = if ok { (Tone::Good, "✓") } else { (Tone::Bad, "✗") };
        let time = ms.map_or(String::new(), |ms| self.out.paint(Tone::Aside, &format!("  {ms:.1} ms")));
        self.out.say(format!("  {} {title}: {detail}{time}", self.out.paint(tone, mark)));
        self.checks.push(Check { name: name.into(), ok, detail, ms });
    }

    /// Makes a pool with a revision.
    fn pool(&self, pool: &str, vmm: &str) -> Result<(), CliError> {
        let (kernel, rootfs) = (self.root.join("kernel"), self.root.join("rootfs"));
        if !kernel.exists() {
            std::fs::write(&kernel, tiny_kernel()).map_err(|error| failed(error.to_string()))?;
            disk::make_data_disk(&rootfs, 8).map_err(CliError::from)?;
        }
        self.mvm(&format!("pool create {pool} --vmm {vmm} --mem 128 --data-disk 16 --insecure"))?;
        let (kernel, rootfs) = (kernel.display(), rootfs.display());
        self.mvm(&format!("pool import {pool} --kernel {kernel} --rootfs {rootfs}")).map(drop)
    }

    fn build(&mut self) -> Result<(), CliError> {
        let start = Instant::now();
        self.mvm("tenant create acme --net-id 3 --subnet 10.240.3.0/24 --max-running 2")?;
        self.mvm("tenant create globex --net-id 4 --subnet 10.240.4.0/24")?;
        for pool in ["acme/workers", "globex/web"] {
            self.pool(pool, "sim")?;
        }
        let mut started = Vec::new();
        for (pool, running) in [("acme/workers", 2), ("globex/web", 1)] {
            let touched = self.mvm(&format!("pool scale {pool} --running {running}"))?;
            for instance in touched.as_array().into_iter().flatten() {
                let ms = instance["last_receipt"]["total_ms"].as_f64().unwrap_or_default();
                let ip = instance["net"]["guest_ip"].as_str().unwrap_or_default();
                started.push(format!("{ip} in {ms:.0} ms"));
            }
        }
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        self.out.say(format!(
            "  {} tenants acme and globex, a bridge each; instances {}  {}",
            self.out.paint(Tone::Good, "✓"),
            started.join(", "),
            self.out.paint(Tone::Aside, &format!("{ms:.0} ms"))
        ));
        Ok(())
    }

    pub(super) fn ping(&self, tap: &str, to: &str, timeout_ms: u64) -> Result<Option<f64>, CliError> {
        let answer = self.tell(tap, &json!({ "cmd": "ping", "to": to, "timeout_ms": timeout_ms }))?;
        Ok(answer["ms"].as_f64().filter(|_| answer["answered"] == true))
    }

    /// Pings what must answer, and asks again as every real guest does. A TAP forwards nothing until the kernel has taken note
    /// that its VMM opened it, and Linux before 6.8 looks at what changed only once a second: what a guest of a fresh start
    /// or wake sends, or should hear, may be lost as on any wire.
    pub(super) fn reaches(&self, tap: &str, to: &str) -> Result<Option<f64>, CliError> {
        let deadline = Instant::now() + Duration::from_millis(ANSWER_MS);
        loop {
            let answer = self.ping(tap, to, AGAIN_MS)?;
            if answer.is_some() || Instant::now() >= deadline {
                return Ok(answer);
            }
        }
    }

    fn packets(&mut self) -> Result<(), CliError> {
        let east_west = self.reaches("tn3i3", "10.240.3.4")?;
        let answered = if east_west.is_some() { "answered" } else { "and got no answer" };
        let detail = format!("acme's 10.240.3.3 pings its neighbour 10.240.3.4, {answered}");
        self.shown("east_west", east_west.is_some(), "east/west", detail, east_west);

        // Its positive twin: globex's guest is there and answers its own gateway's side.
        let own = self.reaches("tn4i3", "10.240.4.1")?.is_some();
        let guest = self.ping("tn3i3", "10.240.4.3", DENIED_MS)?.is_none();
        let gateway = self.ping("tn3i3", "10.240.4.1", DENIED_MS)?.is_none();
        let detail = wrong_or(
            &[(own, "globex's own gateway does not answer globex"), (guest, "acme reached globex's guest")],
            &[(gateway, "acme reached globex's gateway")],
            "acme reaches neither globex's guest nor its gateway, which answers globex",
        );
        self.shown("cross_tenant", own && guest && gateway, "cross-tenant", detail, None);

        self.spoof()?;
        self.host_port()
    }

    fn spoof(&mut self) -> Result<(), CliError> {
        let ping =
            json!({ "cmd": "ping", "to": "10.240.3.4", "as_ip": "10.240.3.77", "timeout_ms": DENIED_MS });
        self.tell("tn3i3", &ping)?;
        let ping = json!({ "cmd": "ping", "to": "10.240.3.4", "as_mac": "02:fc:00:03:00:63", "timeout_ms": DENIED_MS });
        self.tell("tn3i3", &ping)?;
        // What was sent before a packet that arrives would have arrived before it.
        let honest = self.ping("tn3i3", "10.240.3.4", ANSWER_MS)?.is_some();
        let mut seen = false;
        for bytes in ["0af0034d", "02fc00030063"] {
            let recv = json!({ "cmd": "recv", "contains": bytes, "timeout_ms": 0 });
            seen |= !self.tell("tn3i4", &recv)?["frame"].is_null();
        }
        let detail = wrong_or(
            &[(honest, "the honest packet was not answered")],
            &[(!seen, "a frame with a false source reached the neighbour")],
            "false IP and false MAC never reach the neighbour, the honest packet after them does",
        );
        self.shown("spoof", honest && !seen, "spoofed source", detail, None);
        Ok(())
    }

    fn host_port(&mut self) -> Result<(), CliError> {
        let listener =
            TcpListener::bind(("0.0.0.0", HOST_PORT)).map_err(|error| failed(error.to_string()))?;
        let listens =
            TcpStream::connect_timeout(&([127, 0, 0, 1], HOST_PORT).into(), Duration::from_secs(2)).is_ok();
        let tcp = json!({ "cmd": "tcp", "to": "10.240.3.1", "port": HOST_PORT, "timeout_ms": DENIED_MS });
        let refused = self.tell("tn3i3", &tcp)?["result"] != "open";
        let gateway = self.ping("tn3i3", "10.240.3.1", ANSWER_MS)?;
        drop(listener);
        let detail = wrong_or(
            &[(listens, "nobody listens on the host"), (gateway.is_some(), "the gateway answers no ping")],
            &[(refused, "a guest reached a port of the host")],
            &format!(
                "port {HOST_PORT} of the host, open to itself, is closed to guests; the gateway answers ping"
            ),
        );
        self.shown("host_port", listens && refused && gateway.is_some(), "host port", detail, gateway);
        Ok(())
    }

    fn quota(&mut self) -> Result<(), CliError> {
        let third = self.mvm("instance create acme/workers")?;
        let path = third["path"].as_str().unwrap_or_default().to_owned();
        let output = self.command(&format!("instance start {path}"), None)?;
        let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
        let ok = output.status.code() == Some(4) && error["error"]["code"] == "quota";
        let what = error["error"]["what"].as_str().unwrap_or("it was not refused").to_owned();
        self.shown("quota", ok, "third start refused", what, None);
        Ok(())
    }

    fn kill(&mut self) -> Result<(), CliError> {
        self.mvm("tenant update acme --max-running 3")?;
        let pool = if self.real { "acme/metal" } else { "acme/more" };
        self.pool(pool, if self.real { "firecracker" } else { "sim" })?;
        let instance = self.mvm(&format!("instance create {pool}"))?;
        let path = instance["path"].as_str().unwrap_or_default().to_owned();
        let tap = instance["net"]["tap_dev"].as_str().unwrap_or_default();
        let output = self.command(&format!("instance start {path}"), Some("start.tap"))?;
        let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
        let begun = Instant::now();
        let settled = self.mvm(&format!("instance info {path}"))?;
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        let clean = settled["status"] == "ready"
            && settled["pending"].is_null()
            && !self.root.join("run/firecracker").join(tap).exists();
        let started = self.mvm(&format!("instance start {path}"))?;
        let prints = self.wait_for_console(&path)?;
        let steps = started["last_receipt"]["steps"].as_array().map_or(&[][..], Vec::as_slice);
        let step = steps.iter().position(|step| step["name"] == "tap").map_or(0, |at| at + 1);
        let vmm = match self.real {
            true => format!("Firecracker {}", started["vmm"]["version"].as_str().unwrap_or_default()),
            false => "the simulated VMM".to_owned(),
        };
        let booted = started["last_receipt"]["total_ms"].as_f64().unwrap_or_default();
        let slept = if self.real { format!(", {}", self.real_sleep(&path)?) } else { String::new() };
        let good = format!(
            "mvm killed at step {step}/{} of a start of {vmm}; the next command cleaned up, then it booted in {booted:.0} ms{slept}",
            steps.len()
        );
        let detail = wrong_or(
            &[(killed, "mvm was not killed"), (clean, "something was left behind")],
            &[(prints, "it did not boot afterwards")],
            &good,
        );
        self.shown("kill", killed && clean && prints, "kill -9", detail, Some(ms));
        Ok(())
    }

    /// Does the guest print something within some seconds?
    fn wait_for_console(&self, path: &str) -> Result<bool, CliError> {
        let parts: Vec<&str> = path.split('/').collect();
        let [tenant, pool, instance] = parts[..] else { return Ok(false) };
        let logs = format!("tenants/{tenant}/pools/{pool}/instances/{instance}/logs");
        let logs = self.root.join(logs);
        let watch = Watch::new(&logs).map_err(StoreError::io("watch", &logs))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let console = logs.join(files::CONSOLE);
            watch.add(&console);
            if std::fs::metadata(console).is_ok_and(|meta| meta.len() > 0) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !watch.wait(&[], Some(left)) {
                return Ok(false);
            }
        }
    }

    fn audit(&mut self) -> Result<(), CliError> {
        let mut records = 0;
        let mut ok = true;
        for tenant in ["acme", "globex"] {
            let report = self.mvm(&format!("tenant audit {tenant} --verify"))?;
            ok &= report["ok"] == true;
            records += report["records"].as_u64().unwrap_or_default();
        }
        let chains = if ok { "both chains whole" } else { "a chain is broken" };
        self.shown("audit", ok, "audit", format!("{records} records, {chains}"), None);
        Ok(())
    }

    fn leave_nothing(&mut self, before: &World) -> Result<(), CliError> {
        let during = World::look(&self.root);
        let network = self.mvm("net verify")?["ok"] == true;
        for tenant in ["acme", "globex"] {
            self.mvm(&format!("tenant destroy {tenant} --yes --wipe-volumes"))?;
        }
        let after = World::look(&self.root);
        let left = before.difference(&after);
        let rules = self.mvm("net verify")?["ok"] == true;
        let reservations =
            std::fs::read_dir(self.root.join("reservations")).map_or(0, |entries| entries.count());
        let ok = left.is_empty() && network && rules && reservations == 0;
        let detail = match left.is_empty() {
            true => format!(
                "{} processes and {} links are gone; rules, mounts, cgroups and reservations are as before",
                during.count("process"),
                during.count("link") - before.count("link")
            ),
            false => left.join(", "),
        };
        self.shown("leaks", ok, &format!("{} leaks", left.len()), detail, None);
        Ok(())
    }
}
