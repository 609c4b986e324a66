//! What there is of links, rules, mounts, cgroups and processes: looked at before and after, so that a leak has a name.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use crate::{
    infra::{mounts, shell},
    net::{links, netlink::Socket},
    security::cgroups,
    vmm::process::{self, Vmm},
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
        let there = process::all_working_directories().into_iter();
        seen.extend(there.filter(|(_, cwd)| cwd.starts_with(root)).map(|(pid, _)| format!("process {pid}")));
        seen.extend(vmms_in(root).iter().map(|vmm| format!("process {}", vmm.identity.pid)));
        let cgroups = cgroups::hierarchy().map(fs::read_dir).into_iter().flatten().flatten().flatten();
        let node = fs::read_to_string(root.join("node.json")).unwrap_or_default();
        let node: serde_json::Value = serde_json::from_str(&node).unwrap_or_default();
        let own = format!("mvm.{}", node["node_id"].as_str().unwrap_or_default());
        let ours = cgroups.filter(|entry| entry.file_name().to_string_lossy() == own);
        seen.extend(ours.map(|entry| format!("cgroup {}", entry.path().display())));
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
    mounts::all().into_iter().map(|mount| mount.place.display().to_string()).collect()
}

/// The VMMs of a root: a jailed one's working directory has another name in its own root, so each is looked for in its folder.
fn vmms_in(root: &Path) -> Vec<Vmm> {
    let folders = fs::read_dir(root.join("run/firecracker")).into_iter().flatten().flatten();
    folders.flat_map(|folder| process::find_in(&folder.path().join("root"))).collect()
}

/// Ends the VMMs that still run under `root`.
pub fn end_vmms_in(root: &Path) {
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_path_buf());
    for vmm in vmms_in(&root) {
        let _ = vmm.kill();
    }
}
