//! Many instances on the simulated VMM: what lists cost, whether the thousandth start costs more than the tenth, churn.

use std::{path::Path, time::Instant};

use anyhow::Result;
use mvm::vm::instance::lifecycle::{self, CreateOptions};

use super::{Figure, figure, ms, peak_rss_mib, percentile, root::Mvm};

/// Instances of one tenant: a /20 has 4,093 offsets, and a bridge 1,023 ports.
const PER_TENANT: u32 = 2500;

/// Lists and verification of a large fleet of which a tenth runs, and of a small one; starts at ten and at a thousand.
pub fn measure(program: &Path, instances: u32) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let small = fleet(program, 100)?;
    let small_times = times(&small)?;
    let tenth = starts(&small)?;
    drop(small);
    let large = fleet(program, instances)?;
    let running = instances / 10;
    for ((name, large_ms, rss), (_, small_ms, _)) in times(&large)?.into_iter().zip(&small_times) {
        let per_instance = |ms: f64, count: u32| ms * 1000.0 / f64::from(count);
        let value = format!(
            "{large_ms:.0} ms, {rss:.0} MiB; per instance {:.0} µs against {:.0} µs with 100",
            per_instance(large_ms, instances),
            per_instance(*small_ms, 100)
        );
        let what = format!("{name}, {instances} instances, {running} running");
        figures.push(figure(what, value, "≤ 300 ms, ≤ 100 MiB", large_ms <= 300.0 && rss <= 100.0));
    }
    let thousandth = starts(&large)?;
    let ratio = thousandth / tenth;
    let value = format!("{thousandth:.1} ms against {tenth:.1} ms: {ratio:.2}×");
    figures.push(figure(format!("start with {running} running against 10"), value, "≤ 1.2×", ratio <= 1.2));
    Ok(figures)
}

/// A fleet of so many instances; a tenth of them runs.
fn fleet(program: &Path, instances: u32) -> Result<Mvm> {
    let mvm = Mvm::new(program)?;
    let mut operator = mvm.operator()?;
    let tenants = instances.div_ceil(PER_TENANT);
    let start = Instant::now();
    for tenant in 0..tenants {
        let count = (instances - tenant * PER_TENANT).min(PER_TENANT);
        let quotas =
            "--max-running 1000 --max-vcpus 100000 --max-mem-mib 100000000 --max-instances-per-pool 10000";
        mvm.ok(&format!(
            "tenant create t{tenant} --net-id {tenant} --subnet 10.240.{}.0/20 {quotas}",
            tenant * 16
        ))?;
        let pool = format!("t{tenant}/web");
        mvm.ok(&format!("pool create {pool} --vmm sim --mem 128 --data-disk 0"))?;
        mvm.import(&pool)?;
        let path = pool.parse()?;
        for _ in 0..count {
            lifecycle::create(&mut operator, &path, CreateOptions::default())?;
        }
        mvm.ok(&format!("pool scale {pool} --running {} --quiet", count / 10))?;
    }
    println!("a fleet of {instances} in {:.0} s", start.elapsed().as_secs_f64());
    Ok(mvm)
}

/// Each command's time, the median of seven, and its memory.
fn times(mvm: &Mvm) -> Result<Vec<(&'static str, f64, f64)>> {
    let mut all = Vec::new();
    for (name, arguments) in [
        ("instance list", "instance list"),
        ("instance stats", "instance stats"),
        ("net verify", "net verify"),
    ] {
        let mut times = Vec::new();
        for _ in 0..7 {
            let start = Instant::now();
            mvm.ok(arguments)?;
            times.push(ms(start.elapsed()));
        }
        let rss = peak_rss_mib(&mut mvm.command(arguments))?;
        all.push((name, percentile(&times, 0.5), rss));
    }
    Ok(all)
}

/// The median of twenty starts of one more instance.
fn starts(mvm: &Mvm) -> Result<f64> {
    let path = mvm.create("t0/web")?;
    let mut times = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        mvm.ok(&format!("instance start {path}"))?;
        times.push(ms(start.elapsed()));
        mvm.ok(&format!("instance stop {path} --force"))?;
    }
    Ok(percentile(&times, 0.5))
}

/// 200 instances made, started, stopped and destroyed, 4 at once.
pub fn churn(program: &Path) -> Result<Figure> {
    let mvm = Mvm::new(program)?;
    mvm.ok("tenant create acme --net-id 3 --subnet 10.240.0.0/20")?;
    mvm.ok("pool create acme/web --vmm sim --mem 128 --data-disk 8")?;
    mvm.import("acme/web")?;
    let start = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..50).try_for_each(|_| one_life(&mvm)))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let value = format!("{seconds:.1} s");
    Ok(figure("create–start–stop–destroy of 200, 4 at once", value, "≤ 40 s", seconds <= 40.0))
}

fn one_life(mvm: &Mvm) -> Result<()> {
    let path = mvm.create("acme/web")?;
    for verb in ["start", "stop", "destroy --yes --wipe-volumes"] {
        let (verb, rest) = verb.split_once(' ').unwrap_or((verb, ""));
        mvm.ok(&format!("instance {verb} {path} {rest}"))?;
    }
    Ok(())
}
