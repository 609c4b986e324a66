//! Where things are and what the environment says. Read once, at the edge; nothing below reads the environment.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::processes;

/// Where state lives when nobody says otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/mvm";

/// Every environment variable that mvm reads, and what it does. The documentation is made from this list.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("MVM_ROOT", "the folder that holds all state (default /var/lib/mvm)"),
    ("FIRECRACKER_BIN", "the Firecracker to install at first use; otherwise the one on PATH"),
    ("JAILER_BIN", "the jailer that goes with it"),
    ("MVM_LOCK_TIMEOUT_MS", "how long a command waits for another one's lock (default 30000)"),
    ("MVM_GUEST_TIMEOUT_MS", "how long a guest's agent may take for an answer (default 10000)"),
    (
        "MVM_MASTER_KEY_FILE",
        "the file that holds the master key of tenants' secrets: 32 bytes, or their hex or base64",
    ),
    ("MVM_MASTER_KEY", "the master key itself, as hex or base64; no program that mvm starts gets it"),
    (
        "CREDENTIALS_DIRECTORY",
        "set by systemd: the master key is its mvm-master-key, where none of the two above is set",
    ),
    ("NO_COLOR", "no colours, as --no-color"),
    ("COLUMNS", "the width of tables, where output is not a terminal"),
    ("MVM_FAILPOINT", "for tests, in a root marked throw-away: kill or fail the process at this point"),
    ("MVM_FIXED_CLOCK", "for tests, in a root marked throw-away: the time that is now"),
    ("MVM_FIXED_IDS", "for tests, in a root marked throw-away: the first instance id, counted up from there"),
];

/// The variable that no program gets which mvm starts or becomes.
pub const MASTER_KEY: &str = "MVM_MASTER_KEY";

/// The file that marks a root as made for a test or a demo: failpoints and fixed clocks work only beside it.
pub const THROW_AWAY_MARK: &str = ".throw-away";

/// Where the state is, and where time and chance come from: passed to everything that has effects.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `MVM_ROOT`, absolute.
    pub root: PathBuf,
    /// How long to wait for somebody else's lock.
    pub lock_timeout: Duration,
    /// How long a guest's agent may take for an answer that needs no work.
    pub guest_timeout: Duration,
    /// The Firecracker to install where the root has none.
    pub firecracker_bin: Option<PathBuf>,
    /// The jailer to install beside it.
    pub jailer_bin: Option<PathBuf>,
    /// Who acts, for the audit log.
    pub actor: Actor,
    /// Where the master key is said to be.
    pub master_key: MasterKeyPlaces,
    fixed_clock: Option<Timestamp>,
    fixed_ids: Option<u32>,
}

/// Who asked for an operation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Actor {
    /// The real user id; the one who called sudo, where somebody did.
    pub uid: u32,
    /// How they asked: `cli`.
    pub via: String,
    /// The process that did it.
    pub pid: u32,
    /// When that process began ([`processes::birth`]); lines of before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<String>,
}

impl Actor {
    /// This process.
    fn here(uid: u32) -> Self {
        let pid = std::process::id();
        Self { uid, via: "cli".into(), pid, began: processes::birth(pid) }
    }

    /// Is that process still there? Another one that was given its pid is not it.
    pub fn is_alive(&self) -> bool {
        let there = processes::birth(self.pid);
        there.is_some() && (self.began.is_none() || self.began == there)
    }

    /// Are both one process? Not known of who has no beginning.
    pub fn is(&self, other: &Self) -> bool {
        self.began.is_some() && (self.pid, &self.began) == (other.pid, &other.began)
    }
}

/// Where the environment says that the master key is.
#[derive(Debug, Clone, Default)]
pub struct MasterKeyPlaces {
    /// `MVM_MASTER_KEY_FILE`.
    pub file: Option<PathBuf>,
    /// `MVM_MASTER_KEY`.
    pub variable: Option<Hidden>,
    /// `CREDENTIALS_DIRECTORY`.
    pub credentials: Option<PathBuf>,
}

/// A text that is shown nowhere, and wiped when the last one who has it is gone.
#[derive(Clone)]
pub struct Hidden(Arc<Zeroizing<String>>);

impl Hidden {
    /// This one.
    pub fn new(text: String) -> Self {
        Self(Arc::new(Zeroizing::new(text)))
    }

    /// What it is.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

/// What the environment says.
#[derive(Debug, Default)]
pub struct Environment {
    /// `MVM_ROOT`.
    pub root: Option<PathBuf>,
    /// `NO_COLOR` is set to something.
    pub no_color: bool,
    /// `COLUMNS`.
    pub columns: Option<u16>,
    /// `MVM_LOCK_TIMEOUT_MS`.
    pub lock_timeout_ms: Option<u64>,
    /// `MVM_GUEST_TIMEOUT_MS`.
    pub guest_timeout_ms: Option<u64>,
    /// `FIRECRACKER_BIN`, else `firecracker` on `PATH`.
    pub firecracker_bin: Option<PathBuf>,
    /// `JAILER_BIN`, else `jailer` on `PATH`.
    pub jailer_bin: Option<PathBuf>,
    /// `SUDO_UID`, else the real uid.
    pub uid: u32,
    /// Where the master key is.
    pub master_key: MasterKeyPlaces,
    /// What is set to something that it cannot be, a line each.
    pub wrong: Vec<String>,
    failpoint: Option<String>,
    fixed_clock: Option<Timestamp>,
    fixed_ids: Option<u32>,
}

impl Environment {
    /// Reads the environment of this process.
    pub fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut wrong = Vec::new();
        let mut millis = |name: &str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
            let number = value.to_str().and_then(|value| value.parse().ok());
            if number.is_none() {
                wrong.push(format!("{name} is {value:?}, which is no number of milliseconds"));
            }
            number
        };
        let (lock_timeout_ms, guest_timeout_ms) =
            (millis("MVM_LOCK_TIMEOUT_MS"), millis("MVM_GUEST_TIMEOUT_MS"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let binary = |name: &str, program: &str| {
            text(name).map(PathBuf::from).or_else(|| find_on_path(&path, program))
        };
        Self {
            root: text("MVM_ROOT").map(PathBuf::from),
            no_color: text("NO_COLOR").is_some(),
            columns: text("COLUMNS").and_then(|value| value.parse().ok()),
            lock_timeout_ms,
            guest_timeout_ms,
            firecracker_bin: binary("FIRECRACKER_BIN", "firecracker"),
            jailer_bin: binary("JAILER_BIN", "jailer"),
            uid: text("SUDO_UID")
                .and_then(|value| value.parse().ok())
                .unwrap_or_else(|| rustix::process::getuid().as_raw()),
            master_key: MasterKeyPlaces {
                // One that is empty was meant to be something: none is made in its place.
                file: std::env::var_os("MVM_MASTER_KEY_FILE").map(PathBuf::from),
                variable: std::env::var_os(MASTER_KEY)
                    .map(|key| Hidden::new(key.to_string_lossy().into_owned())),
                credentials: text("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            },
            wrong,
            failpoint: text("MVM_FAILPOINT"),
            fixed_clock: text("MVM_FIXED_CLOCK").and_then(|value| value.parse().ok()),
            fixed_ids: text("MVM_FIXED_IDS").and_then(|value| u32::from_str_radix(&value, 16).ok()),
        }
    }
}

#[cfg(test)]
impl Environment {
    /// One in which it is always that time.
    pub fn at(clock: &str) -> Self {
        Self { fixed_clock: clock.parse().ok(), ..Self::default() }
    }
}

fn find_on_path(path: &OsString, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

impl Roots {
    /// The roots under `root`. Test settings of the environment count only where the root is marked throw-away.
    ///
    /// # Errors
    /// When there is no current folder.
    pub fn new(root: &Path, environment: &Environment) -> std::io::Result<Self> {
        let root = std::path::absolute(root)?;
        let throw_away = root.join(THROW_AWAY_MARK).exists();
        if throw_away && let Some(spec) = &environment.failpoint {
            super::failpoint::arm(spec);
        }
        Ok(Self {
            root,
            lock_timeout: Duration::from_millis(environment.lock_timeout_ms.unwrap_or(30_000)),
            guest_timeout: Duration::from_millis(environment.guest_timeout_ms.unwrap_or(10_000)),
            firecracker_bin: environment.firecracker_bin.clone(),
            jailer_bin: environment.jailer_bin.clone(),
            actor: Actor::here(environment.uid),
            master_key: environment.master_key.clone(),
            fixed_clock: environment.fixed_clock.filter(|_| throw_away),
            fixed_ids: environment.fixed_ids.filter(|_| throw_away),
        })
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        self.fixed_clock.unwrap_or_else(Timestamp::now)
    }

    /// 32 bits for a new instance id; `attempt` counts the collisions met so far.
    pub fn id_bits(&self, attempt: u32) -> u32 {
        match self.fixed_ids {
            Some(first) => first.wrapping_add(attempt),
            None => fastrand::u32(..),
        }
    }

    /// `node.json`.
    pub fn node_file(&self) -> PathBuf {
        self.root.join("node.json")
    }

    /// `node/`: the audit log of what was done to the node itself.
    pub fn node_log(&self) -> PathBuf {
        self.root.join("node")
    }

    /// `master.key`: where none is given, and the node is not in production.
    pub fn own_master_key(&self) -> PathBuf {
        self.root.join("master.key")
    }

    /// `locks/<name>`.
    pub fn lock_file(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(name)
    }

    /// `tenants/`.
    pub fn tenants(&self) -> PathBuf {
        self.root.join("tenants")
    }

    /// `run/firecracker/<tap>/root`: the working directory of one VMM.
    pub fn vmm_dir(&self, tap: &str) -> PathBuf {
        self.vmm_dirs().join(tap).join("root")
    }

    /// `run/firecracker`.
    pub fn vmm_dirs(&self) -> PathBuf {
        self.root.join("run/firecracker")
    }

    /// `reservations/`: one file per VMM that may run, its name says how much it takes.
    pub fn reservations(&self) -> PathBuf {
        self.root.join("reservations")
    }

    /// `images/`: the guest images, a folder each.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// `vmm/`: the installed Firecracker versions.
    pub fn vmm_versions(&self) -> PathBuf {
        self.root.join("vmm")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_settings_count_only_in_a_throw_away_root() {
        let dir = tempfile::tempdir().unwrap();
        let environment = Environment { fixed_ids: Some(7), ..Environment::default() };
        let roots = Roots::new(dir.path(), &environment).unwrap();
        assert_eq!(roots.fixed_ids, None);
        std::fs::write(dir.path().join(THROW_AWAY_MARK), "").unwrap();
        let roots = Roots::new(dir.path(), &environment).unwrap();
        assert_eq!(roots.id_bits(1), 8);
    }

    #[test]
    fn a_key_is_shown_by_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let master_key =
            MasterKeyPlaces { variable: Some(Hidden::new("a5a5a5".into())), ..MasterKeyPlaces::default() };
        let environment = Environment { master_key, ..Environment::default() };
        let roots = Roots::new(dir.path(), &environment).unwrap();
        assert_eq!(roots.master_key.variable.as_ref().map(Hidden::reveal), Some("a5a5a5"));
        assert!(!format!("{environment:?} {roots:?}").contains("a5a5"));
    }
}
