//! `mvm events`: the audit logs of all tenants as one stream.

use std::{collections::HashMap, io, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};

use crate::cli::{
    arguments::events::EventsCommand,
    error::{CliError, Kind},
    output::{Out, Tone, escape, time},
};
use crate::{
    infra::config::Roots,
    security::audit::{self, Phase, Record},
    vm::{naming::TenantId, tenant},
};

/// Watches a folder for changes.
pub struct Watch(OwnedFd);

impl Watch {
    /// A watch on a folder, which need not exist.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let watch = Self(fd);
        watch.add(folder);
        Ok(watch)
    }

    /// Also this folder.
    pub fn add(&self, folder: &Path) {
        let events =
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        let _ = inotify::add_watch(&self.0, folder, events);
    }

    /// Waits for a change, at most `limit`.
    pub fn wait(&self, limit: Duration) {
        let timeout = Timespec::try_from(limit).unwrap_or_default();
        if matches!(poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)), Ok(ready) if ready > 0)
        {
            let _ = rustix::io::read(&self.0, &mut [0; 4096][..]);
        }
    }
}

/// Runs the command.
pub fn run(out: &Out, roots: &Roots, command: &EventsCommand) -> Result<u8, CliError> {
    let watch = Watch::new(&roots.tenants())
        .map_err(|error| CliError::new(Kind::Failed, "io", format!("cannot watch: {error}")))?;
    let mut seen: HashMap<TenantId, u64> = HashMap::new();
    let mut first = true;
    loop {
        let mut records = Vec::new();
        for tenant in tenant::config::ids(roots)? {
            let folder = tenant::config::folder(roots, &tenant);
            let from = seen.get(&tenant).copied().unwrap_or_else(|| {
                watch.add(&folder);
                0
            });
            let (new, end) = audit::records(&folder, from)?;
            records.extend(new);
            seen.insert(tenant, end);
        }
        records.sort_by_key(|record| record.at);
        let skip = if first { records.len().saturating_sub(command.last) } else { 0 };
        for record in &records[skip..] {
            if out.json {
                out.json_line(record);
            } else {
                out.raw(format!("{}\n", line(out, record)).as_bytes());
            }
        }
        if !command.follow {
            return Ok(0);
        }
        first = false;
        watch.wait(Duration::from_secs(2));
    }
}

/// One record as a line.
pub fn line(out: &Out, record: &Record) -> String {
    let entry = &record.entry;
    let tone = match entry.phase {
        Phase::Intent => Tone::Aside,
        Phase::Done => Tone::Good,
        Phase::Failed => Tone::Bad,
        Phase::Recovered | Phase::Observed => Tone::Doubtful,
    };
    let phase = serde_json::to_value(entry.phase)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default();
    let change = match (&entry.from, &entry.to) {
        (Some(from), Some(to)) => format!(" {from} → {to}"),
        (None, Some(to)) => format!(" → {to}"),
        _ => String::new(),
    };
    let revision = entry
        .revision
        .as_ref()
        .map_or(String::new(), |revision| format!(" revision {}", &revision[..revision.len().min(12)]));
    let detail =
        entry.detail.as_ref().map_or(String::new(), |detail| format!(" ({})", escape(detail.as_bytes())));
    let at = time(record.at);
    let phase = out.paint(tone, &format!("{phase:<9}"));
    format!(
        "{at}  uid {} {phase} {:<17} {}{change}{revision}{detail}",
        record.who.uid, entry.what, entry.path
    )
}
