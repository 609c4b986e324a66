//! A line of a tenant's audit log against a bare append of as many bytes with fdatasync, a pair at a time; and how long ten
//! thousand lines take to be verified.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
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

/// Where a log lies.
struct Log {
    roots: Roots,
    folder: PathBuf,
}

/// Measures lines in memory, where a sync costs nothing, and on a fresh ext4 against the bare thing.
pub fn measure() -> Result<Vec<Figure>> {
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let disk = Folder::new(Disk::Ext4)?;
    let mut figures = Vec::new();
    let (ours, _) = pairs(&Log::begin(memory.path())?)?;
    let p99 = percentile(&ours, 0.99);
    let what = format!("an audit line where a sync costs nothing, p99 of {PAIRS}");
    figures.push(figure(what, format!("{p99:.2} ms"), "≤ 1 ms", p99 <= 1.0));
    let log = Log::begin(&disk.path)?;
    let (ours, theirs) = pairs(&log)?;
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (our, their) = (percentile(&ours, share), percentile(&theirs, share));
        figures.push(figure(
            format!("the same on ext4 against a bare append and fdatasync, {name} of {PAIRS} pairs"),
            format!("{our:.2} ms against {their:.2} ms: {:+.2} ms", our - their),
            "≤ 1 ms or ≤ +1 ms",
            our <= 1.0 || our - their <= 1.0,
        ));
    }
    (PAIRS + 1..LINES).try_for_each(|number| log.append(number))?;
    let mut times = Vec::new();
    for _ in 0..9 {
        let mut records = 0;
        times.push(timed(|| {
            records = audit::verify(&log.roots, "acme", &log.folder)?.records;
            Ok(())
        })?);
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

impl Log {
    fn begin(root: &Path) -> Result<Self> {
        let roots = Roots::new(root, &Environment::default())?;
        let folder = root.join("acme");
        std::fs::create_dir(&folder)?;
        audit::begin(&roots, "acme", &folder, entry(0))?;
        Ok(Self { roots, folder })
    }

    fn append(&self, number: u64) -> Result<()> {
        Ok(audit::append(&self.roots, "acme", &self.folder, entry(number))?)
    }
}

fn entry(number: u64) -> Entry {
    let mut entry = Entry::new("instance.start", format!("acme/web/i-{number:08x}"), Phase::Done);
    entry.to = Some("running".into());
    entry.revision = Some("c".repeat(64));
    entry
}

/// How long lines took, and bare appends of as many bytes, in ms.
fn pairs(log: &Log) -> Result<(Vec<f64>, Vec<f64>)> {
    let line = vec![b'x'; usize::try_from(std::fs::metadata(audit::log_file(&log.folder))?.len())?];
    let mut bare = File::create(log.folder.with_extension("bare"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 1..=PAIRS {
        ours.push(timed(|| log.append(number))?);
        theirs.push(timed(|| Ok(bare.write_all(&line).and_then(|()| bare.sync_data())?))?);
    }
    Ok((ours, theirs))
}

/// How long it takes, in ms.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(ms(start.elapsed()))
}
