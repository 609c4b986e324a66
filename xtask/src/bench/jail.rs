//! Starts and wakes in a jail against the same without one, a pair at a time.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use mvm::vm::naming::InstancePath;

use super::{Figure, bare, figure, guest::WRITER, ms, percentile, root::Mvm};

/// Memory of the guests, in MiB.
const MIB: u32 = 128;

/// Times in ms, by what was done.
type Times = BTreeMap<&'static str, Vec<f64>>;

/// Measures two instances of a pool that takes VMMs without a jail: there is none as long as the jailer is away.
pub fn measure(program: &Path, pairs: u32) -> Result<Vec<Figure>> {
    let Some(_) = bare::firecracker("jails") else { return Ok(Vec::new()) };
    let mvm = Mvm::new(program)?;
    mvm.acme()?;
    mvm.ok(&format!("pool create acme/web --mem {MIB} --data-disk 64 --insecure"))?;
    mvm.import_code("acme/web", &WRITER)?;
    let mut sides =
        [(mvm.create("acme/web")?, true, Times::new()), (mvm.create("acme/web")?, false, Times::new())];
    // The first start installs Firecracker, and is what is not measured.
    mvm.ok(&format!("instance start {}", sides[0].0))?;
    mvm.ok(&format!("instance stop {} --force", sides[0].0))?;
    let version = fs::read_dir(mvm.root.path().join("vmm"))?.flatten().find(|entry| entry.path().is_dir());
    let jailer = version.context("a version")?.path().join("jailer");
    let away = jailer.with_extension("away");
    for pair in 0..=pairs {
        for (path, is_jailed, times) in &mut sides {
            if !*is_jailed {
                fs::rename(&jailer, &away).context("there is no jailer")?;
            }
            let done = cycle(&mvm, path, *is_jailed, times);
            if !*is_jailed {
                fs::rename(&away, &jailer)?;
            }
            done?;
            if pair == 0 {
                times.clear();
            }
        }
    }
    let mut figures = Vec::new();
    for what in ["start", "wake"] {
        for (name, share) in [("p50", 0.5), ("p90", 0.9)] {
            let [ours, theirs] = [0, 1].map(|side: usize| percentile(&sides[side].2[what], share));
            let more = ours - theirs;
            figures.push(figure(
                format!("{what} in a jail against none, to the first byte, {name} of {pairs}"),
                format!("{ours:.1} ms against {theirs:.1} ms: {:.2}×, {more:+.1} ms", ours / theirs),
                "≤ 1.2× or ≤ +6 ms",
                ours / theirs <= 1.2 || more <= 6.0,
            ));
        }
    }
    Ok(figures)
}

/// A start and a wake.
fn cycle(mvm: &Mvm, path: &InstancePath, is_jailed: bool, times: &mut Times) -> Result<()> {
    let (started, _) = mvm.timed(&format!("instance start {path} --json"), path)?;
    let record: serde_json::Value = serde_json::from_str(&started.output)?;
    let lacks = record["vmm"]["lacks"].as_array().context("what it lacks")?;
    ensure!(lacks.contains(&"jail".into()) != is_jailed, "{record}");
    times.entry("start").or_default().push(ms(started.first));
    mvm.ok(&format!("instance sleep {path}"))?;
    let (woken, _) = mvm.timed(&format!("instance wake {path}"), path)?;
    times.entry("wake").or_default().push(ms(woken.first));
    mvm.ok(&format!("instance stop {path} --force")).map(drop)
}
