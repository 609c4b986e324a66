//! A Debian guest, as a person in front of its console sees it.

use std::{cell::Cell, fs, time::Duration};

use serde_json::Value;

use crate::{
    Wrong, ensure,
    world::{World, wait_for},
};

/// From start to prompt; five to ten times what it takes.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// What a guest does within one line.
const LINE_LIMIT: Duration = Duration::from_secs(60);

/// A guest.
pub struct Guest<'a> {
    world: &'a World,
    /// Its path: TENANT/POOL/INSTANCE.
    pub path: String,
    /// Its address.
    pub ip: String,
    /// Its TAP, which names its VMM's folder.
    pub tap: String,
    /// Lines typed so far: each answer is told from the others by it.
    lines: Cell<u32>,
}

impl<'a> Guest<'a> {
    /// The guest of an instance, as its JSON describes it.
    pub fn new(world: &'a World, path: String, made: &Value) -> Self {
        let text = |field: &str| made["net"][field].as_str().unwrap_or_default().to_owned();
        Self { world, path, ip: text("guest_ip"), tap: text("tap_dev"), lines: Cell::new(0) }
    }

    /// Runs a command on it that must succeed.
    pub fn is_told(&self, verb: &str) -> Result<Value, Wrong> {
        self.world.ok(&format!("instance {verb} {}", self.path))
    }

    /// Is it in this state, and nothing of it unfinished?
    pub fn is(&self, state: &str) -> Result<(), Wrong> {
        let info = self.is_told("info")?;
        ensure(info["status"] == state && info["pending"].is_null(), || {
            format!("it is {} with {} pending, not {state}", info["status"], info["pending"])
        })
    }

    /// Starts it and waits for its prompt.
    pub fn start(&self) -> Result<(), Wrong> {
        self.is_told("start")?;
        // What it printed in an earlier life may still be there; no guest boots as fast as this looks.
        let before = self.console().len();
        wait_for("a prompt", BOOT_LIMIT, || self.console().get(before..)?.contains("root@").then_some(()))
    }

    /// What its console has shown since the start.
    pub fn console(&self) -> String {
        let file = self.world.folder(&self.path).join("logs/console.log");
        String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
    }

    /// Types a line and returns what it prints and its exit code.
    pub fn answers(&self, line: &str, limit: Duration) -> Result<(String, i32), Wrong> {
        let number = self.lines.get() + 1;
        self.lines.set(number);
        // The console shows what is typed, too: there the number stands apart from its marks.
        let typed = format!("printf '<%s<\\n' {number}; {line}; printf '>%s:%s>\\n' {number} $?");
        let _typist = self.world.types(&self.path, &typed)?;
        let (begin, end) = (format!("<{number}<"), format!(">{number}:"));
        wait_for(&format!("an answer to {line:?}"), limit, || {
            let console = self.console();
            let (said, rest) = console.split_once(&begin)?.1.split_once(&end)?;
            let code = rest.split_once('>')?.0.parse().ok()?;
            Some((said.replace('\r', "").trim().to_owned(), code))
        })
    }

    /// Types a line that must succeed and returns what it prints.
    pub fn says(&self, line: &str) -> Result<String, Wrong> {
        self.says_within(line, LINE_LIMIT)
    }

    /// The same, where it takes long.
    pub fn says_within(&self, line: &str, limit: Duration) -> Result<String, Wrong> {
        let (said, code) = self.answers(line, limit)?;
        ensure(code == 0, || format!("{line:?} ended with {code}: {said}"))?;
        Ok(said)
    }

    /// Does it reach an address?
    pub fn pings(&self, ip: &str) -> Result<bool, Wrong> {
        let (said, code) = self.answers(&format!("ping -n -c 1 -W 4 {ip}"), LINE_LIMIT)?;
        ensure(said.contains("1 packets transmitted"), || format!("no ping was sent: {said}"))?;
        Ok(code == 0)
    }

    /// The sha256 of a file.
    pub fn sum(&self, file: &str) -> Result<String, Wrong> {
        let said = self.says(&format!("sha256sum {file}"))?;
        Ok(said.split(' ').next().unwrap_or_default().to_owned())
    }
}
