//! A line of a tenant's audit log against a bare append of as many bytes with fdatasync, a pair at a time; and how long ten
//! thousand lines take to be verified.

use std::{
    fs::File,
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use mvm::{
    infra::config::{Environment, Roots},
    security::audit::{self, Entry, Phase},
};

use super::{
    Figure,
    disk::{Disk, Folder},
    figure, ms, percentile,
};

/// Lines of the log that is verified.
const LINES: u64 = 10_000;

/// Pairs at least: a 99th percentile of fewer says nothing.
const PAIRS: u64 = 1000;

/// Measures both on a fresh ext4, on which nobody else syncs.
pub fn measure() -> Result<Vec<Figure>> {
    let disk = Folder::new(Disk::Ext4)?;
    let roots = Roots::new(&disk.path, &Environment::default())?;
    let folder = disk.path.join("acme");
    std::fs::create_dir(&folder)?;
    let entry = |number: u64| {
        let mut entry = Entry::new("instance.start", format!("acme/web/i-{number:08x}"), Phase::Done);
        entry.to = Some("running".into());
        entry.revision = Some("c".repeat(64));
        entry
    };
    audit::begin(&roots, "acme", &folder, entry(0))?;
    let line = vec![b'x'; usize::try_from(std::fs::metadata(audit::log_file(&folder))?.len())?];
    let mut bare = File::create(disk.path.join("bare"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 1..=PAIRS {
        ours.push(ms(timed(|| Ok(audit::append(&roots, "acme", &folder, entry(number))?))?));
        theirs.push(ms(timed(|| Ok(bare.write_all(&line).and_then(|()| bare.sync_data())?))?));
    }
    let mut figures = Vec::new();
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (our, their) = (percentile(&ours, share), percentile(&theirs, share));
        figures.push(figure(
            format!("an audit line against a bare append and fdatasync, {name} of {PAIRS} pairs"),
            format!("{our:.2} ms against {their:.2} ms: {:+.2} ms", our - their),
            "≤ 1 ms",
            our <= 1.0,
        ));
    }
    for number in PAIRS + 1..LINES {
        audit::append(&roots, "acme", &folder, entry(number))?;
    }
    let mut times = Vec::new();
    for _ in 0..9 {
        let mut records = 0;
        times.push(ms(timed(|| {
            records = audit::verify(&roots, "acme", &folder)?.records;
            Ok(())
        })?));
        ensure!(records == LINES, "{records} records");
    }
    let (p50, slowest) = (percentile(&times, 0.5), percentile(&times, 1.0));
    figures.push(figure(
        format!("verifying {LINES} audit lines, p50 of 9 and the slowest"),
        format!("{p50:.0} ms, {slowest:.0} ms"),
        "≤ 100 ms",
        slowest <= 100.0,
    ));
    Ok(figures)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
