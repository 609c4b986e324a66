//! What the guest uses, as `/proc` has it.

use std::{fs, path::Path, time::Duration};

use mvm_proto::message::Stats;
use rustix::time::{ClockId, clock_gettime};

use super::session::processes;

/// `/proc/stat` counts in hundredths of a second on every Linux.
const TICK_MS: u64 = 10;
/// Threads of the kernel are children of this one.
const KERNEL: i32 = 2;

/// Since the guest booted, without the time it slept.
pub fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// What is being used; `data` is where the data disk is mounted.
pub fn read(data: Option<&Path>) -> Stats {
    let text = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let memory = text("/proc/meminfo");
    // The kernel's quick count is off by many pages for each thread.
    let own_memory = text("/proc/self/smaps_rollup");
    let (received_bytes, sent_bytes) = traffic(&text("/proc/net/dev"));
    let (data_bytes, data_used_bytes) =
        data.and_then(|place| rustix::fs::statvfs(place).ok()).map_or((0, 0), |stat| {
            (stat.f_blocks * stat.f_frsize, (stat.f_blocks - stat.f_bfree) * stat.f_frsize)
        });
    let own = processes().filter(|stat| stat.pid != KERNEL && stat.parent != KERNEL).count();
    Stats {
        uptime_ms: u64::try_from(uptime().as_millis()).unwrap_or(u64::MAX),
        cpu_ms: cpu_ms(&text("/proc/stat")),
        load: text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        memory_bytes: kib(&memory, "MemTotal:") << 10,
        memory_available_bytes: kib(&memory, "MemAvailable:") << 10,
        agent_bytes: kib(&own_memory, "Rss:") << 10,
        processes: u32::try_from(own).unwrap_or(u32::MAX),
        data_bytes,
        data_used_bytes,
        received_bytes,
        sent_bytes,
    }
}

fn kib(memory: &str, name: &str) -> u64 {
    let value = memory.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// All but idling and waiting for disks. What virtual CPUs of its own take is in the first one already.
fn cpu_ms(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().map(|value| value.parse().unwrap_or(0)).collect();
    let busy = ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4 | 7));
    busy.map(|(_, ticks)| ticks).sum::<u64>() * TICK_MS
}

/// Bytes received and sent, but for those that the guest sent to itself.
fn traffic(devices: &str) -> (u64, u64) {
    let lines = devices.lines().filter_map(|line| line.split_once(':'));
    let others = lines.filter(|(name, _)| name.trim() != "lo");
    others.fold((0, 0), |(received, sent), (_, counts)| {
        let counts: Vec<u64> = counts.split_whitespace().map(|count| count.parse().unwrap_or(0)).collect();
        (received + counts.first().unwrap_or(&0), sent + counts.get(8).unwrap_or(&0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        assert_eq!(cpu_ms("cpu  10 20 30 4000 500 6 7 8 0 0\ncpu0 1 1 1 1\n"), (10 + 20 + 30 + 6 + 7) * 10);
        assert_eq!(kib("MemTotal:  100 kB\nMemAvailable:   50 kB\n", "MemAvailable:"), 50);
        let devices =
            "Inter-|   Receive\n face |bytes\n    lo: 9 1 0 0 0 0 0 0 9 1\n  eth0: 100 2 0 0 0 0 0 0 200 3\n";
        assert_eq!(traffic(devices), (100, 200));
        assert_eq!((cpu_ms(""), kib("", "MemTotal:"), traffic("")), (0, 0, (0, 0)));
    }

    #[test]
    fn this_machine_uses_something() {
        let stats = read(Some(Path::new("/")));
        assert!(stats.memory_bytes > stats.memory_available_bytes && stats.memory_available_bytes > 0);
        assert!(stats.processes > 0 && stats.agent_bytes > 0 && stats.data_bytes > 0);
    }
}
