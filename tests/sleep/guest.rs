//! One instance of the simulated VMM whose guest remembers what it wrote, and a VMM of which faults can be asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use serde_json::{Value, json};

pub use crate::support::faulty::{fault, faulty_vmm, set_faults};
use crate::support::{Sandbox, faulty};

/// How much a guest writes by itself each time it is woken.
const AT_WAKE: u64 = 4;
const PAGES: u64 = 50;

/// An instance, running, and how often its guest wrote to its memory.
pub struct Guest {
    pub sandbox: Sandbox,
    pub path: String,
    pub tap: String,
    writes: u64,
    disk: String,
}

impl Guest {
    /// One on the simulated VMM.
    pub fn new() -> Option<Self> {
        let sandbox = Sandbox::new()?;
        sandbox.pool("sim");
        Some(Self::in_pool(sandbox))
    }

    /// One whose VMM has these faults, in a mount namespace of its own.
    pub fn with_faults(faults: &Value) -> Option<Self> {
        let sandbox = Sandbox::new()?;
        faulty::install(&sandbox, faults);
        sandbox.pool("firecracker");
        Some(Self::in_pool(sandbox))
    }

    /// One more in the pool acme/web.
    pub fn in_pool(sandbox: Sandbox) -> Self {
        let path = sandbox.instance("acme/web");
        let started = sandbox.ok(&format!("instance start {path}"));
        let tap = started["net"]["tap_dev"].as_str().expect("a TAP").to_owned();
        let mut guest = Self { sandbox, path, tap, writes: 0, disk: String::new() };
        guest.works();
        guest
    }

    /// Runs a verb that must succeed.
    pub fn ok(&self, verb: &str) -> Value {
        self.sandbox.ok(&format!("instance {verb} {}", self.path))
    }

    /// Runs a verb that must fail, and returns its word.
    pub fn refused(&self, verb: &str, exit: i32) -> String {
        self.sandbox.refused(&format!("instance {verb} {}", self.path), exit)
    }

    /// Starts a verb and does not wait for its end.
    pub fn begin(&self, verb: &str) -> Child {
        let mut command = self.sandbox.command(&format!("instance {verb} {} --json", self.path));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mvm runs")
    }

    /// Tells the guest what to do.
    pub fn tell(&self, command: &Value) -> Value {
        self.sandbox.tell(&self.tap, command)
    }

    /// The guest writes to its memory and its disk, and is asked what it has then.
    pub fn works(&mut self) {
        self.tell(&json!({ "cmd": "dirty", "pages": PAGES }));
        self.writes = self.tell(&json!({ "cmd": "checksum" }))["writes"].as_u64().expect("a number");
        self.disk = format!("{:016x}", self.writes);
        self.tell(&json!({ "cmd": "disk_write", "drive": "data", "offset": 4096, "hex": self.disk }));
    }

    /// The guest runs, and memory and disk are what they were when it worked last: it was woken so many times since.
    #[track_caller]
    pub fn is_as_it_was(&mut self, wakes: u64) {
        self.writes += wakes * AT_WAKE;
        assert_eq!(self.status(), "running");
        // The guest checks every page that it ever wrote.
        let sum = self.tell(&json!({ "cmd": "checksum" }));
        assert_eq!(sum["writes"], self.writes, "{sum}");
        let read = self.tell(&json!({ "cmd": "disk_read", "drive": "data", "offset": 4096, "len": 8 }));
        assert_eq!(read["hex"], self.disk.as_str());
        self.leaves_nothing();
    }

    /// It sleeps and is woken, and is as it was.
    #[track_caller]
    pub fn sleeps_well(&mut self) {
        self.works();
        self.ok("sleep");
        assert!(self.sandbox.vmms().is_empty());
        self.leaves_nothing();
        let scrubbed = self.sandbox.ok("node gc --scrub");
        assert_eq!((&scrubbed["scrubbed"], &scrubbed["damaged"]), (&json!(1), &json!([])));
        self.ok("wake");
        self.is_as_it_was(1);
    }

    pub fn status(&self) -> String {
        self.info()["status"].as_str().unwrap_or_default().to_owned()
    }

    pub fn info(&self) -> Value {
        self.ok("info")
    }

    #[track_caller]
    pub fn leaves_nothing(&self) {
        let leaks = self.sandbox.leaks();
        assert!(leaks.is_empty(), "{leaks:#?}");
    }

    /// `instance.json`, as it is on the disk.
    pub fn record(&self) -> Value {
        read(&self.folder().join("instance.json"))
    }

    pub fn folder(&self) -> PathBuf {
        self.delta().parent().and_then(Path::parent).expect("a folder").to_path_buf()
    }

    pub fn delta(&self) -> PathBuf {
        self.sandbox.delta(&self.path)
    }

    /// The file of its snapshot with this beginning: `mem`, `vmstate`, `sums`.
    pub fn part(&self, part: &str) -> PathBuf {
        part_of(&self.delta(), part)
    }

    pub fn pid(&self) -> i32 {
        let vmms = self.sandbox.vmms();
        vmms.iter().find(|(_, tap)| *tap == self.tap).expect("a VMM").0
    }
}

/// The file of a snapshot with this beginning.
pub fn part_of(delta: &Path, part: &str) -> PathBuf {
    let names = fs::read_dir(delta).expect("a folder").flatten().map(|entry| entry.path());
    let is = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem == part);
    names.into_iter().find(is).unwrap_or_else(|| panic!("no {part} in {}", delta.display()))
}

pub fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON")
}

pub fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = read(file);
    change(&mut value);
    fs::write(file, value.to_string()).expect("it can be written");
}

/// The end of a command that was begun: exit code, and the word for what is wrong.
pub fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let error: Value = serde_json::from_str(&said).unwrap_or_default();
    (output.status.code(), error["error"]["code"].as_str().unwrap_or(&said).to_owned())
}
