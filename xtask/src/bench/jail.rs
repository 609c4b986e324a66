//! Starts and wakes in a jail against the same without one, a pair at a time. In the lab, whose kernel has cgroups, in a jail
//! and limited against neither.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use mvm::vm::naming::InstancePath;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{Figure, bare, figure, guest::WRITER, ms, percentile, root::Mvm};

/// Memory of the guests, in MiB.
const MIB: u32 = 128;

/// Times in ms, by what was done.
type Times = BTreeMap<&'static str, Vec<f64>>;

/// Where the lab has its cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Measures two instances of a pool that takes VMMs without a jail.
pub fn measure(program: &Path, pairs: u32) -> Result<Vec<Figure>> {
    let Some(_) = bare::firecracker("jails") else { return Ok(Vec::new()) };
    let mvm = Mvm::new(program)?;
    mvm.acme()?;
    measure_with(&mvm, pairs, false)
}

/// Measures it for a tenant acme that is there; limits are what is measured as well where the machine has them.
pub fn measure_with(mvm: &Mvm, pairs: u32, has_limits: bool) -> Result<Vec<Figure>> {
    mvm.ok(&format!("pool create acme/jail --mem {MIB} --data-disk 64 --insecure"))?;
    mvm.import_code("acme/jail", &WRITER)?;
    let mut sides =
        [(mvm.create("acme/jail")?, true, Times::new()), (mvm.create("acme/jail")?, false, Times::new())];
    // The first start installs Firecracker, and is what is not measured.
    mvm.ok(&format!("instance start {}", sides[0].0))?;
    mvm.ok(&format!("instance stop {} --force", sides[0].0))?;
    let version = fs::read_dir(mvm.root.path().join("vmm"))?.flatten().find(|entry| entry.path().is_dir());
    let jailer = version.context("a version")?.path().join("jailer");
    for pair in 0..=pairs {
        for (path, is_jailed, times) in &mut sides {
            let lacks: &[&str] = match (*is_jailed, has_limits) {
                (true, _) => &[],
                (false, false) => &["jail"],
                (false, true) => &["jail", "limits"],
            };
            let _without = (!*is_jailed).then(|| Without::new(&jailer, has_limits)).transpose()?;
            cycle(mvm, path, (lacks, has_limits), times)?;
            if pair == 0 {
                times.clear();
            }
        }
    }
    for (path, ..) in &sides {
        mvm.ok(&format!("instance destroy {path} --yes --wipe-volumes"))?;
    }
    let what_it_has =
        if has_limits { "in a jail and limited against neither" } else { "in a jail against none" };
    let mut figures = Vec::new();
    for what in ["start", "wake"] {
        for (name, share) in [("p50", 0.5), ("p90", 0.9)] {
            let [ours, theirs] = [0, 1].map(|side: usize| percentile(&sides[side].2[what], share));
            let more = ours - theirs;
            figures.push(figure(
                format!("{what} {what_it_has}, to the first byte, {name} of {pairs}"),
                format!("{ours:.1} ms against {theirs:.1} ms: {:.2}×, {more:+.1} ms", ours / theirs),
                "≤ 1.2× or ≤ +6 ms",
                ours / theirs <= 1.2 || more <= 6.0,
            ));
        }
    }
    Ok(figures)
}

/// There is no jail as long as the jailer is away, and there are no limits as long as nobody finds cgroups.
struct Without {
    jailer: PathBuf,
    limits: bool,
}

impl Without {
    fn new(jailer: &Path, limits: bool) -> Result<Self> {
        fs::rename(jailer, jailer.with_extension("away")).context("there is no jailer")?;
        let mut without = Self { jailer: jailer.to_path_buf(), limits: false };
        if limits {
            unmount(CGROUPS, UnmountFlags::DETACH).context(CGROUPS)?;
            without.limits = true;
        }
        Ok(without)
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        let back = fs::rename(self.jailer.with_extension("away"), &self.jailer);
        let mounted = match self.limits {
            true => mount("cgroup2", CGROUPS, "cgroup2", MountFlags::empty(), None),
            false => Ok(()),
        };
        if let Err(error) = back.and_then(|()| mounted.map_err(Into::into)) {
            println!("what was taken away is not back: {error}");
        }
    }
}

/// A start and a wake.
fn cycle(
    mvm: &Mvm,
    path: &InstancePath,
    (lacks, has_limits): (&[&str], bool),
    times: &mut Times,
) -> Result<()> {
    let (started, _) = mvm.timed(&format!("instance start {path} --json"), path)?;
    let record: serde_json::Value = serde_json::from_str(&started.output)?;
    let found = record["vmm"]["lacks"].as_array().context("what it lacks")?;
    let agrees = |what: &str| found.contains(&what.into()) == lacks.contains(&what);
    ensure!(agrees("jail") && (!has_limits || agrees("limits")), "{record}");
    times.entry("start").or_default().push(ms(started.first));
    mvm.ok(&format!("instance sleep {path}"))?;
    let (woken, _) = mvm.timed(&format!("instance wake {path}"), path)?;
    times.entry("wake").or_default().push(ms(woken.first));
    mvm.ok(&format!("instance stop {path} --force")).map(drop)
}
