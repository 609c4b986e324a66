//! Many wakes at once, against as many bare restores at once, and what so many sleepers leave in memory.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, bail};
use mvm::vm::naming::InstancePath;

use super::{
    Figure,
    bare::{self, Restored},
    disk::{Disk, Folder},
    figure,
    guest::TICKER,
    ms, percentile,
    root::Mvm,
};

/// How many wake at once.
const AT_ONCE: usize = 50;

/// Wakes by commands and by calls, in turns with the bare ones.
pub fn measure(program: &Path) -> Result<Vec<Figure>> {
    let Some(firecracker) = bare::firecracker("wakes at once") else { return Ok(Vec::new()) };
    let folder = Folder::new(Disk::Ext4)?;
    let mvm = Mvm::in_folder(program, &folder.path)?;
    mvm.acme()?;
    let mut paths = vec![mvm.first_asleep(128, &TICKER)?];
    for _ in 1..AT_ONCE {
        paths.push(mvm.asleep()?);
    }
    let bare =
        paths.iter().map(|path| Restored::new(&mvm, &firecracker, path)).collect::<Result<Vec<_>>>()?;
    let sleep = |path: &InstancePath| mvm.ok(&format!("instance sleep {path}")).map(|_| Duration::ZERO);
    let (mut ours, mut theirs, mut called) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        theirs.extend(all(&bare, |bare| Ok(bare.wake()?.2))?);
        ours.extend(all(&paths, |path| Ok(mvm.timed(&format!("instance wake {path}"), path)?.0.first))?);
        all(&paths, sleep)?;
        called.extend(all(&paths, |path| Ok(mvm.timed_call(&mut mvm.operator()?, path)?.0))?);
        all(&paths, sleep)?;
    }
    let mut figures = Vec::new();
    for (name, ours) in [("commands, to first byte", &ours), ("calls, to first byte", &called)] {
        let (mine, bare) = (percentile(ours, 0.5), percentile(&theirs, 0.5));
        let value = format!("{mine:.0} ms against {bare:.0} ms: {:.2}×", mine / bare);
        let what = format!("{AT_ONCE} wakes at once, {name}, p50, 128 MiB, ext4");
        figures.push(figure(what, value, "≤ 1.3×", mine / bare <= 1.3));
    }
    let left = std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok())
        .filter(|cwd| cwd.starts_with(mvm.root.path()))
        .count();
    let links = Command::new("ip").args(["-o", "link"]).output()?;
    let taps = String::from_utf8_lossy(&links.stdout).lines().filter(|line| line.contains(": tn")).count();
    figures.push(figure(
        format!("what {AT_ONCE} sleepers leave in memory"),
        format!("{left} processes, {taps} TAPs"),
        "0",
        left + taps == 0,
    ));
    Ok(figures)
}

/// Does something with all of them at once; the times in ms.
fn all<T: Sync>(these: &[T], work: impl Fn(&T) -> Result<Duration> + Sync) -> Result<Vec<f64>> {
    std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = these.iter().map(|one| scope.spawn(move || work(one))).collect();
        running
            .into_iter()
            .map(|one| match one.join() {
                Ok(result) => result.map(ms),
                Err(_) => bail!("a thread ended"),
            })
            .collect()
    })
}
