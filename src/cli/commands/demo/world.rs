//! What there is of links, rules, mounts, cgroups and processes: looked at before and after, so that a leak has a name.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use crate::{
    infra::shell,
    net::{links, netlink::Socket},
    vmm::process,
};

/// What there is.
#[derive(Debug, Default)]
pub struct World(BTreeSet<String>);

impl World {
    /// Looks at everything. Of processes only those that work under `root` count: the host's own come and go.
    pub fn look(root: &Path) -> Self {
        let mut seen = BTreeSet::new();
        if let Ok(mut socket) = Socket::route() {
            let all = links::all(&mut socket).unwrap_or_default();
            seen.extend(all.into_iter().map(|link| format!("link {}", link.name)));
        }
        let rules = shell::run("nft", ["list", "ruleset"], b"", Duration::from_secs(10)).unwrap_or_default();
        // Counters and timeouts of the host's own rules change all the time: the rules' heads are compared.
        let head = |line: &&str| {
            ["table ", "chain ", "set ", "map "].iter().any(|kind| line.trim().starts_with(kind))
        };
        seen.extend(
            String::from_utf8_lossy(&rules).lines().filter(head).map(|line| format!("rule {}", line.trim())),
        );
        seen.extend(mounts().into_iter().map(|mount| format!("mount {mount}")));
        for (pid, cwd) in process::all_working_directories() {
            if cwd.starts_with(root) {
                seen.insert(format!("process {pid}"));
            }
        }
        let unified = ["/sys/fs/cgroup/unified/mvm", "/sys/fs/cgroup/mvm"];
        seen.extend(
            unified.iter().filter(|path| Path::new(path).exists()).map(|path| format!("cgroup {path}")),
        );
        Self(seen)
    }

    /// What came and what went.
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let came = after.0.difference(&self.0).map(|thing| format!("new {thing}"));
        let went = self.0.difference(&after.0).map(|thing| format!("lost {thing}"));
        came.chain(went).collect()
    }

    /// How many things of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|thing| thing.starts_with(kind)).count()
    }
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}

/// Ends what still works under `root`.
pub fn end_processes_in(root: &Path) {
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_path_buf());
    for (_, cwd) in process::all_working_directories().into_iter().filter(|(_, cwd)| cwd.starts_with(&root)) {
        for vmm in process::find_in(&cwd) {
            let _ = vmm.kill();
        }
    }
}
