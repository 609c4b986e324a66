//! What every command prints, as inline snapshots: for people, as JSON, and when it goes wrong.
//!
//! Clock and ids are fixed; what differs from run to run (milliseconds, pids, the machine's size) is replaced.

#[path = "../support/mod.rs"]
mod support;

mod guest;
mod help;
mod instance;
mod net;
mod node;
mod pool;
mod secrets;
mod sleeper;
mod tenant;

use std::process::Output;

use support::Sandbox;

/// A sandbox with a fixed clock and fixed ids.
pub struct Terminal {
    sandbox: Sandbox,
}

impl Terminal {
    fn new() -> Option<Self> {
        Some(Self { sandbox: Sandbox::new()? })
    }

    /// One with a tenant acme and a pool acme/web on the simulated VMM, with a revision.
    fn with_pool() -> Option<Self> {
        let terminal = Self::new()?;
        let (kernel, rootfs) = terminal.sandbox.artifacts();
        let (kernel, rootfs) = (kernel.display(), rootfs.display());
        for command in [
            "tenant create acme --net-id 3 --subnet 10.240.3.0/24",
            "pool create acme/web --vmm sim --mem 128 --data-disk 8",
            &format!("pool import acme/web --kernel {kernel} --rootfs {rootfs} --cmdline=quiet"),
        ] {
            terminal.sees(command);
        }
        Some(terminal)
    }

    /// What a command prints: stdout, then stderr, then the exit code where it is not 0.
    fn sees(&self, arguments: &str) -> String {
        let output = self
            .sandbox
            .command(arguments)
            .env("MVM_FIXED_CLOCK", "2026-01-02T03:04:05Z")
            .env("MVM_FIXED_IDS", "0f3a91c2")
            .env("COLUMNS", "110")
            .output()
            .expect("mvm runs");
        shown(&output)
    }

    /// The same as JSON.
    fn sees_json(&self, arguments: &str) -> String {
        self.sees(&format!("{arguments} --json"))
    }
}

fn shown(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.code() != Some(0) {
        text.push_str(&format!("[exit {}]\n", output.status.code().unwrap_or(-1)));
    }
    text
}

/// Compares with an inline snapshot, after what differs from run to run was replaced.
#[macro_export]
macro_rules! snapshot {
    ($text:expr, @$snapshot:literal) => {
        insta::with_settings!({ filters => $crate::filters() }, {
            insta::assert_snapshot!($text, @$snapshot);
        });
    };
}

/// What differs from run to run.
fn filters() -> Vec<(&'static str, &'static str)> {
    vec![
        (r"/tmp/\.tmp[A-Za-z0-9]+", "ROOT"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "BOOT-ID"),
        (r"BOOT-ID/\d+", "BOOT-ID/TICK"),
        (r"node-[0-9a-f]{16}", "node-ID"),
        (r#""hash": "[0-9a-f]{64}""#, r#""hash": "HASH""#),
        (r#""prev": "[0-9a-f]{64}""#, r#""prev": "HASH""#),
        (r"ssh-ed25519 [A-Za-z0-9+/=]{68}", "ssh-ed25519 KEY"),
        (r"\([0-9]+ bytes of memory", "(N bytes of memory"),
        (r"sha256:[0-9a-f]{64}", "sha256:HASH"),
        (r"\b[0-9a-f]{128}\b", "SIGNATURE"),
        (r#""key_id": "[0-9a-f]{16}""#, r#""key_id": "KEY""#),
        (r"(key +)[0-9a-f]{16}, [0-9a-f]{64}", "${1}KEY, PUBLIC"),
        (r"(with the key |this node's is )[0-9a-f]{16}", "${1}KEY"),
        (r#""public_key": "[0-9a-f]{64}""#, r#""public_key": "PUBLIC""#),
        (r"(\bhash +|the hash |and had |its head named record [0-9]+, )[0-9a-f]{64}", "${1}HASH"),
        (r"\b[0-9a-f]{64}\b", "REVISION"),
        (r"it has [0-9a-f]{12}(, [0-9a-f]{12})*", "it has REVISIONS"),
        (r"removed [0-9a-f]{12}", "removed SHORT"),
        (r#""bytes": [0-9]+"#, r#""bytes": N"#),
        (r"\brevision [0-9a-f]{12}\b", "revision SHORT"),
        (r"\bbase [0-9a-f]{12}\b", "base SHORT"),
        (r"(?m)^[0-9a-f]{12}  ", "SHORT         "),
        (r"(sim          )[0-9a-f]{12}", "${1}SHORT       "),
        (r"(sim  )[0-9a-f]{12}", "${1}SHORT       "),
        (r#""hash": "[0-9a-f]{16}""#, r#""hash": "KEYED""#),
        (r"(DB_PASSWORD  [0-9]+ +)[0-9a-f]{16}", "${1}KEYED           "),
        (r"\bpid [0-9]+", "pid PID"),
        (r#""(pid|start_time)": ?[0-9]+"#, r#""$1": N"#),
        (r#""(ms|total_ms)": [0-9.]+"#, r#""$1": MS"#),
        (
            r"\b(disks|directory|tap|reserve|spawn|configure|boot|join|check|unpack|announce|load|consume|resume|pause|snapshot|sums|commit|teardown|identify|greet|prepare|parent) [0-9]+\.[0-9]",
            "$1 MS",
        ),
        (
            r"(?m)\b(entropy|clock|mac|mtu|address|gateway|dns|hostname|machine-id|host-key|ssh-keys|data|workload|instance) [0-9]+\.[0-9](,|$|  )",
            "$1 MS$2",
        ),
        (r"[0-9.]+ (KiB|MiB)( of memory written| on disk|, by sim|, archived)", "SIZE$2"),
        (r"\b[0-9]+(\.[0-9]+)? ms\b", "MS ms"),
        (r#"and this is (\\?)"[^"\\]*"#, r#"and this is $1"HERE"#),
        (r"\b(mem|vmstate|sums)\.[0-9]+\b", "$1.N"),
        (r"of [0-9.]+ GiB, ", "of SIZE, "),
        (r"disk [0-9.]+ [GM]iB free", "disk SIZE free"),
        (r"disk       [0-9.]+ [GM]iB free", "disk       SIZE free"),
        (r"memory     ([0-9]+ MiB) of [0-9.]+ GiB", "memory     $1 of SIZE"),
        (r"on [0-9]+ CPUs?", "on N CPUs"),
        (r#""(mem_limit_mib|disk_free_mib|cpus|rss_bytes|cpu_ms|disk_bytes)": [0-9]+"#, r#""$1": N"#),
    ]
}
