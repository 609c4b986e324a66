//! A cgroup for each command: nothing that a command starts leaves it, however often it forks. No limits are set here.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Where cgroup v2 is mounted: alone, or beside v1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const MAGIC: u64 = 0x6367_7270;

/// Where cgroups are made, below the agent's own one; nowhere without cgroup v2.
pub struct Cgroups {
    base: Option<PathBuf>,
    number: AtomicU64,
}

impl Cgroups {
    /// Those of this machine.
    pub fn find() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).map(str::to_owned);
        let base = MOUNTS
            .into_iter()
            .find(|place| is_v2(place))
            .zip(own)
            .map(|(mount, own)| Path::new(mount).join(own));
        Self { base, number: AtomicU64::new(0) }
    }

    /// A new one; none where there can be none.
    pub fn make(&self) -> Option<Cgroup> {
        let base = self.base.as_ref()?;
        let cgroup = loop {
            let number = self.number.fetch_add(1, Ordering::Relaxed);
            let folder = base.join(format!("mvm-{number}"));
            match fs::create_dir(&folder) {
                Ok(()) => break Cgroup { folder },
                // An agent before this one has left it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(_) => return None,
            }
        };
        // One whose members cannot be killed at once is of no use.
        cgroup.folder.join("cgroup.kill").exists().then_some(cgroup)
    }
}

fn is_v2(place: &str) -> bool {
    rustix::fs::statfs(place).is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == MAGIC)
}

/// A cgroup; removed with this, where nothing is in it.
pub struct Cgroup {
    folder: PathBuf,
}

impl Cgroup {
    /// Who writes `0` into this joins it.
    pub fn entrance(&self) -> Option<File> {
        OpenOptions::new().write(true).open(self.folder.join("cgroup.procs")).ok()
    }

    /// Who is in it.
    pub fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills all that are in it.
    pub fn kill(&self) {
        let _ = fs::write(self.folder.join("cgroup.kill"), "1");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Who was killed is in it until it is dead.
        for _ in 0..50 {
            match fs::remove_dir(&self.folder) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::park_timeout(Duration::from_millis(2));
                }
                _ => return,
            }
        }
    }
}
