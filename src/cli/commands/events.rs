//! `mvm events`: the audit logs of all tenants and of the node as one stream.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use jiff::Timestamp;

use crate::cli::{
    arguments::events::EventsCommand,
    error::CliError,
    output::{Out, Tone, escape, time},
};
use crate::{
    infra::{config::Roots, watch::Watch},
    security::audit::{self, Phase, Place, Record},
    store::StoreError,
    vm::{naming::TenantId, tenant},
};

/// Runs the command.
pub fn run(out: &Out, roots: &Roots, command: &EventsCommand) -> Result<u8, CliError> {
    show(out, roots, None, command.last, command.follow)?;
    Ok(0)
}

/// Shows the last events of a tenant, or of all and of the node, and goes on as more happens.
pub fn show(
    out: &Out,
    roots: &Roots,
    only: Option<&TenantId>,
    last: usize,
    follow: bool,
) -> Result<(), CliError> {
    let tenants = roots.tenants();
    let watch = Watch::new(&tenants).map_err(StoreError::io("watch", &tenants))?;
    let mut seen: HashMap<PathBuf, Place> = HashMap::new();
    let mut first = true;
    loop {
        let (mut records, mut there) = (Vec::new(), HashMap::new());
        let ids = tenant::config::ids(roots)?.into_iter().filter(|id| only.is_none_or(|only| only == id));
        let folders = ids.map(|id| tenant::config::folder(roots, &id));
        for folder in folders.chain(only.is_none().then(|| roots.node_log())) {
            let from = seen.get(&folder).copied().unwrap_or_else(|| {
                watch.add(&folder);
                Place::default()
            });
            let (new, end) = audit::records(&folder, from)?;
            records.extend(in_order(new));
            there.insert(folder, end);
        }
        // A tenant that is gone is forgotten: one of the same name has another log.
        seen = there;
        records.sort_by_key(|(at, _)| *at);
        let skip = if first { records.len().saturating_sub(last) } else { 0 };
        for (_, record) in &records[skip..] {
            if out.json {
                out.json_line(record);
            } else {
                out.raw(format!("{}\n", line(out, record)).as_bytes());
            }
        }
        if !follow || out.is_unheard() {
            return Ok(());
        }
        first = false;
        // Tenants that come later are found when it looks again.
        watch.wait(&[], Some(Duration::from_secs(1)));
    }
}

/// The records of a log, each with a time that none after it is before: a clock that went ahead, and back, puts none of them last.
fn in_order(records: Vec<Record>) -> impl Iterator<Item = (Timestamp, Record)> {
    let mut ordered: Vec<(Timestamp, Record)> =
        records.into_iter().map(|record| (record.at, record)).collect();
    let mut next = Timestamp::MAX;
    for (at, _) in ordered.iter_mut().rev() {
        *at = next.min(*at);
        next = *at;
    }
    ordered.into_iter()
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
    let revision = entry.revision.as_ref().map_or(String::new(), |revision| {
        format!(" revision {}", escape(revision.get(..12).unwrap_or(revision).as_bytes()))
    });
    let detail =
        entry.detail.as_ref().map_or(String::new(), |detail| format!(" ({})", escape(detail.as_bytes())));
    let at = time(record.at);
    let phase = out.paint(tone, &format!("{phase:<9}"));
    format!(
        "{at}  uid {} {phase} {:<17} {}{change}{revision}{detail}",
        record.who.uid, entry.what, entry.path
    )
}
