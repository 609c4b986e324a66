//! Under systemd: what its units start is held by limits with delegation and without, and outlives them.
//!
//! The systemd is a real one, the first process of namespaces made for it; its cgroups begin at one of the lab's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use serde_json::Value;

use crate::{
    Wrong, ensure, scenario, step,
    support::searcher::marker,
    world::{COMMAND_LIMIT, World, says, wait_for, within},
};

/// The folder of its units.
const UNITS: &str = "run/systemd/system";

/// The program, as a unit names it.
const MVM: &str = "/job/bin/mvm";

/// What becomes the first process of the new namespaces. No unit of Debian's is needed for those of the test.
const FIRST: &str = r#"
set -e
mkdir -p "$CGROUPS"
echo $$ >"$CGROUPS/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --cgroup bash -ec '
    # As at the boot of a machine: what systemd hands to a unit is mounted by a process that passes it on.
    mount --make-rshared /
    mount -t proc proc /proc
    mount -t tmpfs run /run
    umount /sys/fs/cgroup
    mount -t cgroup2 cgroup /sys/fs/cgroup
    mkdir -p /run/systemd/system
    printf "[Unit]\nDefaultDependencies=no\n" >/run/systemd/system/lab.target
    export container=lab
    exec /lib/systemd/systemd --system --unit=lab.target --log-target=null --show-status=no
'"#;

/// A systemd, and the processes of its units; they end with it.
struct Systemd<'a> {
    world: &'a World,
    /// Where its cgroups begin, seen from the lab.
    cgroups: PathBuf,
    unshare: Child,
    /// Its own number, as the lab has it.
    pid: u32,
}

impl<'a> Systemd<'a> {
    /// One whose units are in the world's network.
    fn new(world: &'a World) -> Result<Self, Wrong> {
        let name = world.root().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cgroups = Path::new("/sys/fs/cgroup").join(format!("systemd{name}"));
        let mut command = Command::new("bash");
        command.args(["-c", FIRST]).env("CGROUPS", &cgroups);
        let unshare = command.spawn().map_err(|error| error.to_string())?;
        let mut systemd = Self { world, cgroups, unshare, pid: 0 };
        let children = format!("/proc/{0}/task/{0}/children", systemd.unshare.id());
        systemd.pid = wait_for("systemd answers", COMMAND_LIMIT, || {
            let pid = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            PathBuf::from(format!("/proc/{pid}/root/run/systemd/private")).exists().then_some(pid)
        })?;
        // A container's manager does not stay in its cgroup either.
        let unshare = systemd.unshare.id().to_string();
        fs::write("/sys/fs/cgroup/cgroup.procs", unshare).map_err(|error| error.to_string())?;
        Ok(systemd)
    }

    /// Has it do something.
    fn control(&self, arguments: &[&str]) -> Result<String, Wrong> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid", "systemctl"]).args(arguments);
        let output = within(command, COMMAND_LIMIT * 2)?;
        ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).trim().to_owned())?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Writes a unit.
    fn write(&self, unit: &str, service: &str) -> Result<(), Wrong> {
        let file = PathBuf::from(format!("/proc/{}/root/{UNITS}/{unit}.service", self.pid));
        let path = std::env::var("PATH").unwrap_or_default();
        let root = self.world.root().display();
        let text = format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nEnvironment=PATH={path} MVM_ROOT={root}\n{service}\n"
        );
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        self.control(&["daemon-reload"]).map(drop)
    }

    /// Runs a command as a unit with such settings; what it prints, or complains of.
    fn runs(&self, settings: &str, arguments: &str) -> Result<String, Wrong> {
        let files = ["out", "err"].map(|name| self.world.root().join(format!("unit.{name}")));
        let (out, errors) = (files[0].display(), files[1].display());
        let service = format!(
            "Type=oneshot\nStandardOutput=truncate:{out}\nStandardError=truncate:{errors}\n{settings}\n\
             ExecStart={MVM} {arguments}"
        );
        self.write("mvm", &service)?;
        let ended = self.control(&["start", "mvm.service"]);
        let read = |file: &PathBuf| fs::read_to_string(file).unwrap_or_default();
        if ended.is_ok() {
            return Ok(read(&files[0]));
        }
        let status = self.control(&["show", "mvm.service", "-p", "Result,ExecMainStatus"])?;
        Err(format!("mvm {arguments}: {} ({})", read(&files[1]).trim(), status.trim().replace('\n', ", ")))
    }

    /// The same for one that must succeed, and prints JSON.
    fn ok(&self, settings: &str, arguments: &str) -> Result<Value, Wrong> {
        let said = self.runs(settings, &format!("{arguments} --json"))?;
        serde_json::from_str(&said).map_err(|error| format!("mvm {arguments}: {error}: {said:?}"))
    }

    /// A VMM that lacks nothing, by its record, and its cgroup as the lab sees it: what is in it, and its limits, which are those of
    /// the record.
    fn held(&self, record: &Value) -> Result<[String; 4], Wrong> {
        let folder = self.world.cgroup(&self.cgroups, record);
        let found = ["cgroup.procs", "memory.max", "cpu.max", "pids.max"].map(|name| says(&folder, name));
        let vmm = &record["vmm"];
        ensure(vmm["lacks"] == serde_json::json!([]), || vmm.to_string())?;
        ensure(!found[0].is_empty(), || format!("nothing in {}", folder.display()))?;
        ensure(vmm["limits"]["memory_max"].as_u64() == found[1].parse().ok(), || {
            format!("{found:?}, and {vmm}")
        })?;
        Ok(found)
    }
}

impl Drop for Systemd<'_> {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = fs::write(self.cgroups.join("cgroup.kill"), "1");
        let is_empty = || says(&self.cgroups, "cgroup.events").contains("populated 0").then_some(());
        let _ = wait_for("its cgroups are empty", COMMAND_LIMIT, is_empty);
        let _ = Command::new("find")
            .arg(&self.cgroups)
            .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"])
            .status();
    }
}

#[test]
fn units_of_systemds_start_what_outlives_them() {
    scenario("under systemd", |world| {
        step("a pool", || world.agent_pool("acme/web", 3, "--mem 256 --data-disk 0"))?;
        let (secret, key) = (marker(), world.root().join("given.key"));
        fs::write(&key, "5f".repeat(31) + "01").map_err(|error| error.to_string())?;
        let given = format!("LoadCredential=mvm-master-key:{}", key.display());
        let systemd = step("a systemd comes up", || Systemd::new(world))?;
        step("a secret is sealed with the master key that it hands over", || {
            let file = world.root().join("secret");
            fs::write(&file, &secret).map_err(|error| error.to_string())?;
            let set = format!("tenant secrets set acme DB --file {}", file.display());
            systemd.ok(&given, &set)?;
            ensure(!world.root().join("master.key").exists(), || "another key was made".to_owned())?;
            let without = systemd.ok("", &set);
            ensure(without.is_err_and(|wrong| wrong.contains("master")), || "it is no key of it".to_owned())
        })?;
        let made = systemd.ok("", "instance create acme/web")?;
        let path = made["path"].as_str().unwrap_or_default().to_owned();
        let start = format!("instance start {path}");
        step("where cgroups are read-only nothing starts", || {
            let refused = systemd.ok(&format!("{given}\nProtectControlGroups=yes"), &start);
            ensure(refused.as_ref().is_err_and(|wrong| wrong.contains("no_limits")), || {
                format!("{refused:?}")
            })
        })?;
        let delegated = format!("{given}\nDelegate=yes");
        let first = step("a unit with delegation starts a guest", || {
            let started = systemd.ok(&delegated, &start)?;
            systemd.held(&started)
        })?;
        step("the unit is over, and its VMM goes on", || {
            let said = systemd.runs("", &format!("instance exec {path} -n -- cat /run/secrets/DB"))?;
            ensure(said.trim() == secret, || said.clone())?;
            // Who may not write cgroups sees them all the same.
            let info = systemd.ok("ProtectControlGroups=yes", &format!("instance info {path}"))?;
            ensure(info["status"] == "running", || info.to_string())?;
            let now = systemd.held(&info)?;
            ensure(now == first, || format!("{first:?}, and now {now:?}"))
        })?;
        let second = systemd.ok("", "instance create acme/web")?;
        let second = second["path"].as_str().unwrap_or_default().to_owned();
        step("so does one of a unit without delegation that is stopped", || {
            let service = format!(
                "Type=notify\nNotifyAccess=all\n{given}\nExecStart=/bin/bash -c \
                 '{MVM} instance start {second} && systemd-notify --ready && exec sleep 600'"
            );
            systemd.write("stays", &service)?;
            systemd.control(&["start", "stays.service"])?;
            systemd.control(&["stop", "stays.service"])?;
            let info = systemd.ok("", &format!("instance info {second}"))?;
            ensure(info["status"] == "running", || info.to_string())?;
            systemd.held(&info).map(drop)
        })?;
        step("limits stay when systemd goes over its own", || {
            systemd.runs("CPUAccounting=yes\nMemoryMax=1G\nTasksMax=100\nIOAccounting=yes", "node info")?;
            systemd.control(&["daemon-reexec"])?;
            systemd.runs("", "node info")?;
            let info = systemd.ok("", &format!("instance info {path}"))?;
            let now = systemd.held(&info)?;
            ensure(now == first, || format!("{first:?}, and now {now:?}"))
        })?;
        step("it sleeps, wakes with its limits, and goes without a trace", || {
            systemd.ok("", &format!("instance sleep {path}"))?;
            let woken = systemd.ok(&given, &format!("instance wake {path}"))?;
            let now = systemd.held(&woken)?;
            ensure(now[1..] == first[1..], || format!("{first:?}, and now {now:?}"))?;
            systemd.ok("", "tenant destroy acme --yes")?;
            let left = world.cgroups(&systemd.cgroups);
            ensure(!left.exists(), || format!("{} is left", left.display()))
        })
    });
}
