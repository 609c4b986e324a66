//! Processes, as /proc tells of them. A pid alone is given out again; with its start and the host's boot it is not.

use std::fs;

/// What `/proc/<pid>/stat` says of a process.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// One letter: `Z` for one that has ended and whose parent has not taken note of it.
    pub state: u8,
    /// When it was started, in clock ticks since boot.
    pub start_time: u64,
    /// In clock ticks.
    pub cpu_time: u64,
    /// In pages.
    pub resident: u64,
}

/// A file of a process in /proc; none where the process is no more. Its name in there may hold any bytes.
pub fn proc_text(pid: i32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/{name}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What there is to know of a process.
pub fn stat(pid: i32) -> Option<Stat> {
    // The name in parentheses may hold any bytes: what follows the last one is fixed.
    let text = proc_text(pid, "stat")?;
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        start_time: number(19)?,
        cpu_time: number(11)? + number(12)?,
        resident: number(21)?,
    })
}

/// The id of the host's boot: pids and times of an earlier boot mean nothing in this one.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The host's boot and the tick of it in which a process began: no other process with its pid has the same. None where there
/// is no such process, or it has ended.
pub fn birth(pid: u32) -> Option<String> {
    let stat = stat(pid.try_into().ok()?).filter(|stat| stat.state != b'Z')?;
    Some(format!("{}/{}", boot_id(), stat.start_time))
}
