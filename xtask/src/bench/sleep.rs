//! `instance sleep` and `wake` against bare Firecracker on files of the same kind, a pair at a time: what the guest sees,
//! what the command takes, what is written, and whether any of it grows.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt, path::Path, process::Stdio, time::Instant};

use anyhow::{Context, Result, ensure};
use mvm::vm::{
    instance::lifecycle::{self, Operator},
    naming::InstancePath,
};

use super::{
    Figure,
    bare::{self, Restored},
    disk::{Disk, Folder},
    figure,
    guest::WRITER,
    ms, percentile,
    root::Mvm,
};

/// Pages that the guest writes to in each round: 16 MiB, every fifth page of 80.
const DIRTY_PAGES: u64 = 4096;
const DIRTY_BYTES: f64 = DIRTY_PAGES as f64 * 4096.0;
/// A byte is printed after so many pages.
const PAGES_PER_BYTE: u64 = 16;
/// Bytes on the console by which all pages were written to.
const ROUND: u64 = DIRTY_PAGES / PAGES_PER_BYTE;

/// Measures for these sizes of memory, on both file systems.
pub fn measure(program: &Path, pairs: u32, memory: &[u32]) -> Result<Vec<Figure>> {
    let Some(firecracker) = bare::firecracker("sleep and wake") else { return Ok(Vec::new()) };
    // VMMs become children of this process when the command that started them has ended: so their use is known.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(std::process::id().cast_signed()))?;
    let mut figures = Vec::new();
    for disk in [Disk::Ext4, Disk::Btrfs] {
        let folder = Folder::new(disk)?;
        for &mib in memory {
            let bench = Bench::new(program, &firecracker, &folder.path, disk, mib)?;
            figures.extend(bench.pairs(pairs)?);
        }
    }
    Ok(figures)
}

/// One instance that sleeps, and a bare VM that does the same.
struct Bench {
    mvm: Mvm,
    path: InstancePath,
    bare: Restored,
    label: String,
}

/// All times of one kind, in ms, by name.
#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<f64>>);

impl Times {
    fn add(&mut self, what: &'static str, value: f64) {
        self.0.entry(what).or_default().push(value);
    }

    fn of(&self, what: &str) -> &[f64] {
        self.0.get(what).map_or(&[], Vec::as_slice)
    }
}

impl Bench {
    fn new(program: &Path, firecracker: &Path, folder: &Path, disk: Disk, mib: u32) -> Result<Self> {
        let mvm = Mvm::in_folder(program, folder)?;
        mvm.acme()?;
        let path = mvm.first_asleep(mib, &WRITER)?;
        let bare = Restored::new(&mvm, firecracker, &path)?;
        Ok(Self { mvm, path, bare, label: format!("{mib} MiB, {}", disk.name()) })
    }

    fn pairs(&self, pairs: u32) -> Result<Vec<Figure>> {
        let mut times = Times::default();
        let mut operator = self.mvm.operator()?;
        let (mut steps, mut sleep_steps) = (Times::default(), Times::default());
        for _ in 0..pairs {
            let (wake, sleep) = self.bare.cycle(ROUND)?;
            times.add("bare wake", ms(wake));
            times.add("bare sleep", ms(sleep));
            self.command_cycle(&mut times, &mut steps, &mut sleep_steps)?;
            self.library_cycle(&mut operator, &mut times)?;
        }
        let mut figures = self.compare(&times);
        figures.extend(self.growth(&times));
        for (name, steps) in [("wake", &steps), ("sleep", &sleep_steps)] {
            let text: Vec<String> = steps
                .0
                .iter()
                .map(|(step, ms)| format!("{} {:.1}", &step[2..], percentile(ms, 0.5)))
                .collect();
            figures.push(figure(
                format!("{name}, step by step, p50 ms, {}", self.label),
                text.join(", "),
                "given",
                true,
            ));
        }
        Ok(figures)
    }

    /// A wake and a sleep by commands, as a person gives them.
    fn command_cycle(&self, times: &mut Times, steps: &mut Times, sleep_steps: &mut Times) -> Result<()> {
        let (timed, growth) = self.mvm.timed(&format!("instance wake {} --json", self.path), &self.path)?;
        let woken: serde_json::Value = serde_json::from_str(&timed.output)?;
        times.add("wake", ms(timed.first));
        times.add("wake exit", ms(timed.exit));
        add_steps(steps, &woken);
        let pid = woken["vmm"]["pid"].as_i64().context("a pid")? as i32;
        growth.beyond(ROUND)?;
        let before = Written::by(pid)?;
        let start = Instant::now();
        let mut child = self
            .mvm
            .command(&format!("instance sleep {} --json", self.path))
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take();
        let own = Written::by_ended(child.id().cast_signed())?;
        times.add("sleep", ms(start.elapsed()));
        add_steps(sleep_steps, &serde_json::from_reader(output.context("output")?)?);
        let vmm = Written::by_ended(pid)?;
        times.add("written by the VMM", (vmm.called - before.called) as f64);
        times.add("written by mvm", own.called as f64);
        times.add("written to the disk", (vmm.disk - before.disk + own.disk) as f64);
        times.add("disk", taken(&self.mvm.folder(&self.path).join("snapshots/delta"))? as f64);
        Ok(())
    }

    /// A wake and a sleep by calls, as an agent makes them.
    fn library_cycle(&self, operator: &mut Operator, times: &mut Times) -> Result<()> {
        let (first, exit, growth) = self.mvm.timed_call(operator, &self.path)?;
        times.add("library wake", ms(first));
        times.add("library wake exit", ms(exit));
        growth.beyond(ROUND)?;
        let start = Instant::now();
        lifecycle::sleep(operator, &self.path, false)?;
        times.add("library sleep", ms(start.elapsed()));
        Ok(())
    }

    fn compare(&self, times: &Times) -> Vec<Figure> {
        let mut figures = Vec::new();
        let pairs = times.of("bare wake").len();
        for (name, ours, theirs, ratio_limit, more_limit) in [
            ("wake to first byte", "wake", "bare wake", 1.5, 12.0),
            ("library wake to first byte", "library wake", "bare wake", 1.2, 5.0),
            ("sleep", "sleep", "bare sleep", 1.3, 0.0),
            ("library sleep", "library sleep", "bare sleep", 1.3, 0.0),
        ] {
            for (rank, share) in [("p50", 0.5), ("p90", 0.9)] {
                let (ours, theirs) = (percentile(times.of(ours), share), percentile(times.of(theirs), share));
                let (ratio, more) = (ours / theirs, ours - theirs);
                let value = format!("{ours:.1} ms against {theirs:.1} ms: {ratio:.2}×, {more:+.1} ms");
                let must = match more_limit {
                    0.0 => format!("≤ {ratio_limit}×"),
                    _ => format!("≤ {ratio_limit}× or ≤ +{more_limit} ms"),
                };
                let ok = ratio <= ratio_limit || (more_limit > 0.0 && more <= more_limit);
                figures.push(figure(
                    format!("{name}, {rank}, {pairs} pairs, {}", self.label),
                    value,
                    must,
                    ok,
                ));
            }
        }
        let exits = ["wake exit", "library wake exit"].map(|what| percentile(times.of(what), 0.5));
        figures.push(figure(
            format!("wake, time to exit, command and call, p50, {}", self.label),
            format!("{:.1} ms, {:.1} ms", exits[0], exits[1]),
            "given",
            true,
        ));
        let (vmm, own) =
            (percentile(times.of("written by the VMM"), 0.5), percentile(times.of("written by mvm"), 0.5));
        let ratio = (vmm + own) / DIRTY_BYTES;
        let disk = percentile(times.of("written to the disk"), 0.5) / DIRTY_BYTES;
        let value = format!(
            "{:.2} MiB by the VMM, {:.2} MiB by mvm for 16 MiB dirty: {ratio:.3}×; with the file system's own {disk:.3}×",
            vmm / 1048576.0,
            own / 1048576.0
        );
        figures.push(figure(
            format!("bytes a sleep writes, {}", self.label),
            value,
            "≤ 1.05×",
            ratio <= 1.05,
        ));
        figures
    }

    /// Do wakes get slower, or files larger, from sleep to sleep?
    fn growth(&self, times: &Times) -> Vec<Figure> {
        let grow = |what: &str, name: &str| {
            let share = growth_of(times.of(what));
            let value = format!(
                "{:+.1} % of the mean at most, over {} cycles",
                share * 100.0,
                times.of(what).len() * 2
            );
            figure(format!("growth of {name}, {}", self.label), value, "≤ 10 %", share <= 0.10)
        };
        vec![grow("wake", "wake time"), grow("sleep", "sleep time"), grow("disk", "disk used")]
    }
}

/// The upper end of the 95 % interval of how much the values rise from the first to the last, as a share of their mean: by the
/// slopes between all pairs of them (Theil and Sen, with Kendall's variance), since a few values that some other work on the
/// machine made long say nothing of a trend.
fn growth_of(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let slope_to = |(at, one): (usize, &f64)| {
        let one = *one;
        (at + 1..values.len()).map(move |later| (values[later] - one) / (later - at) as f64)
    };
    let mut slopes: Vec<f64> = values.iter().enumerate().flat_map(slope_to).collect();
    slopes.sort_by(f64::total_cmp);
    let spread = 1.96 * (count * (count - 1.0) * (2.0 * count + 5.0) / 18.0).sqrt();
    let upper = (slopes.len() as f64 + spread) / 2.0;
    let upper = slopes.get(upper.ceil() as usize).or(slopes.last());
    upper.copied().unwrap_or_default() * (count - 1.0) / mean
}

fn add_steps(times: &mut Times, instance: &serde_json::Value) {
    const NAMES: [&str; 16] = [
        "01reserve",
        "02check",
        "03directory",
        "04spawn",
        "05announce",
        "06unpack",
        "07tap",
        "08load",
        "09consume",
        "10resume",
        "11join",
        "12pause",
        "13snapshot",
        "14sums",
        "15commit",
        "16teardown",
    ];
    for step in instance["last_receipt"]["steps"].as_array().into_iter().flatten() {
        let name = step["name"].as_str().unwrap_or_default();
        if let (Some(known), Some(ms)) = (NAMES.iter().find(|known| &known[2..] == name), step["ms"].as_f64())
        {
            times.add(known, ms);
        }
    }
}

/// What a process has written so far, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    /// By its calls.
    called: u64,
    /// That the file system has to write for it.
    disk: u64,
}

impl Written {
    fn by(pid: i32) -> Result<Self> {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
        let line = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(Self {
            called: line("wchar: ").context("wchar")?,
            disk: line("write_bytes: ").context("write_bytes")?,
        })
    }

    /// Waits for a child, and what it has written in all its life.
    fn by_ended(pid: i32) -> Result<Self> {
        let child = rustix::process::Pid::from_raw(pid).context("a pid")?;
        // Ended and not yet waited for, it still says what it did.
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(child), options)?;
        let written = Self::by(pid);
        let ended = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
        let well = ended.is_some_and(|(_, status)| status.signaled() || status.exit_status() == Some(0));
        ensure!(well, "{pid} failed");
        written
    }
}

/// What the files of a folder take on the disk.
fn taken(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::growth_of;

    #[test]
    fn growth_is_a_trend_and_not_an_outlier() {
        // Values that go up and down around 10, without a trend and with one of 20 %.
        let noise = |at: usize| [0.0, 0.3, -0.2, 0.1, -0.3][at % 5];
        let mut flat: Vec<f64> = (0..100).map(|at| 10.0 + noise(at)).collect();
        assert!(growth_of(&flat).abs() < 0.02, "{}", growth_of(&flat));
        flat[95] = 500.0;
        assert!(growth_of(&flat).abs() < 0.02, "{}", growth_of(&flat));
        let rising: Vec<f64> = (0..100).map(|at| 10.0 + noise(at) + at as f64 * 0.02).collect();
        assert!((0.17..0.22).contains(&growth_of(&rising)), "{}", growth_of(&rising));
    }
}
