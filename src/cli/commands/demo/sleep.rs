//! The part of the story in which an instance sleeps and wakes.

use serde_json::{Value, json};

use super::story::{Stage, wrong_or};
use crate::{
    cli::{error::CliError, output::bytes},
    net::{links, netlink::Socket},
};

/// What the guest writes on its data disk before it sleeps.
const NOTE: &str = "6265666f726520736c656570";

impl Stage<'_> {
    /// One of acme's guests writes to its memory and its disk, sleeps, leaves nothing running, and goes on where it was.
    pub(super) fn sleep_and_wake(&mut self) -> Result<(), CliError> {
        const TAP: &str = "tn3i3";
        let all = self.mvm("instance list acme/workers")?;
        let ours = all.as_array().into_iter().flatten().find(|instance| instance["net"]["tap_dev"] == TAP);
        let Some(path) = ours.and_then(|instance| instance["path"].as_str()).map(ToOwned::to_owned) else {
            return Ok(());
        };
        self.tell(TAP, &json!({ "cmd": "dirty", "pages": 400 }))?;
        let disk = json!({ "drive": "data", "offset": 8 << 20 });
        let on_disk = |more: Value| {
            let mut command = disk.clone();
            for (key, value) in more.as_object().into_iter().flatten() {
                command[key] = value.clone();
            }
            command
        };
        self.tell(TAP, &on_disk(json!({ "cmd": "disk_write", "hex": NOTE })))?;
        let before = self.tell(TAP, &json!({ "cmd": "checksum" }))?;

        let asleep = self.mvm(&format!("instance sleep {path}"))?;
        let process = self.root.join("run/firecracker").join(TAP).exists();
        let link = links::find(&mut Socket::route().map_err(|error| super::failed(error.to_string()))?, TAP)?;
        let sleeps = asleep["status"] == "sleeping";
        let written = asleep["snapshot"]["written_bytes"].as_u64().unwrap_or_default();
        let detail = wrong_or(
            &[(sleeps, "it does not sleep")],
            &[(!process, "its VMM's directory is there"), (link.is_none(), "its TAP is there")],
            &format!(
                "10.240.3.3 sleeps, {} of memory written; its VMM and its TAP are gone, its lease stays",
                bytes(written)
            ),
        );
        self.shown("sleep", sleeps && !process && link.is_none(), "sleep", detail, ms(&asleep));

        let awake = self.mvm(&format!("instance wake {path}"))?;
        // The guest knows what it wrote, and refuses where memory is something else; waking, it goes on writing.
        let after = self.tell(TAP, &json!({ "cmd": "checksum" }))?;
        let memory = after["sum"].is_string() && after["writes"].as_u64() >= before["writes"].as_u64();
        let read = self.tell(TAP, &on_disk(json!({ "cmd": "disk_read", "len": NOTE.len() / 2 })))?;
        let disk = read["hex"] == NOTE;
        let address = self.reaches("tn3i4", "10.240.3.3")?.is_some();
        let detail = wrong_or(
            &[(memory, "its memory is not what it was"), (disk, "its disk is not what it was")],
            &[(address, "its neighbour does not reach it any more")],
            "memory, disk and address are what they were; its neighbour's ping is answered",
        );
        self.shown("wake", memory && disk && address, "wake", detail, ms(&awake));
        Ok(())
    }

    /// The same with a real Firecracker, as far as a guest can tell that prints a line and halts.
    pub(super) fn real_sleep(&self, path: &str) -> Result<String, CliError> {
        let asleep = self.mvm(&format!("instance sleep {path}"))?;
        let awake = self.mvm(&format!("instance wake {path}"))?;
        let time = |instance: &Value| ms(instance).unwrap_or_default();
        Ok(format!("asleep in {:.0} ms, awake in {:.0} ms", time(&asleep), time(&awake)))
    }
}

/// How long an instance's last operation took.
fn ms(instance: &Value) -> Option<f64> {
    instance["last_receipt"]["total_ms"].as_f64()
}
