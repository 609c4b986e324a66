//! The world of one scenario: a root and a network namespace of its own, with the lab's guest image in it.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    Wrong, ensure,
    guest::Guest,
    support::{Sandbox, was_killed},
};

/// Where the lab puts the images that were made outside.
const IMAGES: &str = "/job/guest/images";

/// No command takes as long, but for those that write gigabytes.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// The filter that VMMs have which are given none: the whole story shows that it lets them do all that mvm asks of them. Those
/// of `mvm run` and of images from elsewhere have Firecracker's own.
const STRICT: &str = "--seccomp strict";

/// The world.
pub struct World {
    sandbox: Sandbox,
}

impl World {
    /// A fresh one, on the lab's disk.
    pub fn new() -> Self {
        Self { sandbox: Sandbox::new().expect("the lab's root may do everything") }
    }

    /// The root goes onto a file system with reflinks. Before anything else.
    pub fn with_reflinks(&mut self) {
        assert!(self.sandbox.mount_btrfs("8G"), "the lab has btrfs and loop devices");
    }

    /// MVM_ROOT.
    pub fn root(&self) -> &Path {
        self.sandbox.root()
    }

    /// Runs a command with a limit, without looking at how it ends.
    pub fn run(&self, arguments: &str, limit: Duration) -> Result<Output, Wrong> {
        within(self.sandbox.command(arguments), limit).map_err(|wrong| format!("mvm {arguments}: {wrong}"))
    }

    /// Runs a command that is killed at a failpoint.
    pub fn killed_at(&self, point: &str, arguments: &str) -> Result<(), Wrong> {
        let mut command = self.sandbox.command(arguments);
        command.env("MVM_FAILPOINT", point);
        let output = within(command, COMMAND_LIMIT).map_err(|wrong| format!("mvm {arguments}: {wrong}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure(was_killed(&output), || format!("mvm {arguments} was not killed at {point}: {}", said.trim()))
    }

    /// Every snapshot is as it was written, says a scrub; there is one.
    pub fn scrubs_clean(&self) -> Result<(), Wrong> {
        let found = self.ok("node gc --scrub")?;
        ensure(found["scrubbed"] == 1 && found["damaged"] == serde_json::json!([]), || found.to_string())
    }

    /// Runs a command that must succeed and returns its JSON.
    pub fn ok_within(&self, arguments: &str, limit: Duration) -> Result<Value, Wrong> {
        let output = self.run(&format!("{arguments} --json"), limit)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure(output.status.success(), || format!("mvm {arguments}: {}", said.trim()))?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    /// The same within the usual limit.
    pub fn ok(&self, arguments: &str) -> Result<Value, Wrong> {
        self.ok_within(arguments, COMMAND_LIMIT)
    }

    /// Types a line on a guest's console. What comes back also follows what is printed, so it is ended once that was seen.
    pub fn types(&self, path: &str, line: &str) -> Result<Typist, Wrong> {
        let mut command = self.sandbox.command(&format!("instance console {path}"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("mvm instance console: {error}"))?;
        let input = child.stdin.take();
        let typist = Typist(child);
        // One that does not read has failed; then there is no answer either.
        let _ = input.map(|mut input| input.write_all(format!("{line}\n").as_bytes()));
        Ok(typist)
    }

    /// The same in an environment with this besides.
    pub fn ok_with(&self, arguments: &str, variable: (&str, &str)) -> Result<Value, Wrong> {
        let mut command = self.sandbox.command(&format!("{arguments} --json"));
        command.env(variable.0, variable.1);
        let output = within(command, COMMAND_LIMIT).map_err(|wrong| format!("mvm {arguments}: {wrong}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure(output.status.success(), || format!("mvm {arguments}: {}", said.trim()))?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    /// Runs a command in a guest through its agent: what it prints, on both ways, and its code.
    pub fn exec(&self, path: &str, argv: &[&str]) -> Result<(String, String, Option<i32>), Wrong> {
        let mut command = self.sandbox.command(&format!("instance exec -n {path} --"));
        command.args(argv);
        let output = within(command, COMMAND_LIMIT).map_err(|wrong| format!("exec {argv:?}: {wrong}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&output.stdout), text(&output.stderr), output.status.code()))
    }

    /// Begins a command in a guest through its agent; it is cut off where this goes.
    pub fn begins(&self, path: &str, argv: &[&str]) -> Result<Typist, Wrong> {
        let mut command = self.sandbox.command(&format!("instance exec -n {path} --"));
        command.args(argv).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Typist).map_err(|error| format!("mvm instance exec: {error}"))
    }

    /// The lab's Debian image is there.
    pub fn images(&self) -> Result<(), Wrong> {
        let images = self.root().join("images");
        if !images.exists() {
            std::os::unix::fs::symlink(IMAGES, &images).map_err(|error| format!("the image: {error}"))?;
        }
        Ok(())
    }

    /// A tenant whose pool runs the lab's Debian guest with its agent, its VMMs under the strict filter.
    pub fn agent_pool(&self, pool: &str, net_id: u16, options: &str) -> Result<(), Wrong> {
        self.images()?;
        let tenant = pool.split('/').next().unwrap_or_default();
        self.ok(&format!("tenant create {tenant} --net-id {net_id} --subnet 10.240.{net_id}.0/24"))?;
        let create = format!("pool create {pool} --image debian {STRICT} {options}");
        let made = self.ok_within(&create, Duration::from_secs(240))?;
        ensure(made["agent"] == "required", || made.to_string())
    }

    /// The same without an agent.
    pub fn pool(&self, pool: &str, net_id: u16, options: &str) -> Result<(), Wrong> {
        self.images()?;
        let tenant = pool.split('/').next().unwrap_or_default();
        self.ok(&format!("tenant create {tenant} --net-id {net_id} --subnet 10.240.{net_id}.0/24"))?;
        self.ok(&format!("pool create {pool} --image debian --agent none {STRICT} {options}")).map(drop)
    }

    /// Makes an instance, which is not started.
    pub fn instance(&self, pool: &str) -> Result<Guest<'_>, Wrong> {
        let made = self.ok(&format!("instance create {pool}"))?;
        let path = made["path"].as_str().ok_or("an instance without a path")?.to_owned();
        Ok(Guest::new(self, path, &made))
    }

    /// Makes and starts an instance, and waits for its prompt.
    pub fn guest(&self, pool: &str) -> Result<Guest<'_>, Wrong> {
        let guest = self.instance(pool)?;
        guest.start()?;
        Ok(guest)
    }

    /// The cgroups of its node, where cgroups begin at this one.
    pub fn cgroups(&self, hierarchy: &Path) -> PathBuf {
        let node = says(self.root(), "node.json");
        let node: Value = serde_json::from_str(&node).unwrap_or_default();
        hierarchy.join(format!("mvm.{}", node["node_id"].as_str().unwrap_or_default()))
    }

    /// That of an instance's VMM.
    pub fn cgroup(&self, hierarchy: &Path, record: &Value) -> PathBuf {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.cgroups(hierarchy).join(text(&record["tenant_id"])).join(text(&record["net"]["tap_dev"]))
    }

    /// Where an instance's files lie.
    pub fn folder(&self, path: &str) -> PathBuf {
        let parts: Vec<&str> = path.split('/').collect();
        let pool = self.root().join("tenants").join(parts[0]).join("pools").join(parts[1]);
        pool.join("instances").join(parts[2])
    }

    /// Ends everything through mvm, and looks for what is left.
    pub fn leaves_nothing(&self) -> Result<(), Wrong> {
        let leaks = self.sandbox.leaks();
        ensure(leaks.is_empty(), || format!("leaks: {leaks:?}"))?;
        let tenants = self.ok("tenant list")?;
        for tenant in tenants.as_array().into_iter().flatten() {
            let id = tenant["tenant_id"].as_str().unwrap_or_default();
            self.ok(&format!("tenant destroy {id} --yes --wipe-volumes"))?;
        }
        let left = (self.sandbox.vmms(), self.sandbox.links("tn"), self.sandbox.links("br-"));
        ensure(left.0.is_empty() && left.1.is_empty() && left.2.is_empty(), || format!("left over: {left:?}"))
    }

    /// Shows what helps to understand a failure: the instances, and the ends of their consoles and logs.
    pub fn show(&self) {
        for command in ["instance list", "events --limit 20"] {
            if let Ok(output) = self.run(command, COMMAND_LIMIT) {
                println!("{}", String::from_utf8_lossy(&output.stdout));
            }
        }
        let listed = self.ok("instance list").unwrap_or_default();
        for path in listed.as_array().into_iter().flatten().filter_map(|one| one["path"].as_str()) {
            for name in ["console.log", "vmm.log"] {
                let text = std::fs::read(self.folder(path).join("logs").join(name)).unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                let lines: Vec<&str> = text.lines().collect();
                println!("-- {path} {name}\n{}", lines[lines.len().saturating_sub(25)..].join("\n"));
            }
        }
    }
}

/// What a small file says; nothing where it is not there.
pub fn says(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap_or_default().trim().to_owned()
}

/// A command that goes on until this goes.
pub struct Typist(std::process::Child);

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command, and kills it where it takes too long.
pub fn within(mut command: Command, limit: Duration) -> Result<Output, Wrong> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run it: {error}"))?;
    let pidfd = rustix::process::Pid::from_raw(child.id().cast_signed())
        .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok())
        .ok_or("no handle on it")?;
    let waiter = std::thread::spawn(move || child.wait_with_output());
    if !mvm::infra::shell::ended_within(&pidfd, limit) {
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        return Err(format!("it took longer than {} s", limit.as_secs()));
    }
    let output = waiter.join().map_err(|_| "nobody waited for it".to_owned())?;
    output.map_err(|error| error.to_string())
}

/// Looks again and again until something is there, or until the limit.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T, Wrong> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure(Instant::now() < deadline, || format!("not within {} s: {what}", limit.as_secs()))?;
        // Nothing tells when a guest has printed; twenty looks a second disturb nobody.
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
