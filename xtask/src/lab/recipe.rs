//! What the lab is made of, and its name: a hash over everything that could make another lab.

use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// What lies in the lab's root, from Debian. Nothing is configured: the packages are only unpacked, our own script is PID 1.
pub const PACKAGES: [&str; 20] = [
    "bash",
    "btrfs-progs",
    "busybox-static",
    "coreutils",
    "e2fsprogs",
    "findutils",
    "grep",
    "gzip",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-cloud-amd64",
    "mount",
    "nftables",
    "openssh-client",
    "procps",
    "sed",
    "systemd",
    "tar",
    "util-linux",
];

/// Modules that the initrd loads, each with what it needs; the rest comes from the root.
pub const BOOT_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// PID 1 of the initrd, and of the lab.
pub const INITRD_INIT: &str = include_str!("initrd-init.sh");
pub const LAB_INIT: &str = include_str!("lab-init.sh");

/// The machine, but for its memory, CPUs and disks. What EPYC has and QEMU's emulation has not is switched off, or it warns.
pub const MACHINE: [&str; 12] = [
    "-M",
    "q35",
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "EPYC,+svm,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec",
    "-nodefaults",
    "-no-reboot",
    "-nic",
    "none",
    "-display",
    "none",
];

/// The kernel's command line.
pub const CMDLINE: &str = "console=ttyS0 quiet loglevel=3 mitigations=off panic=-1 reboot=k";

/// Of what the making does beside the recipe: where that changes, so does this number.
const FORMAT: &str = "2";

/// The lab's name.
///
/// # Errors
/// When apt does not say which versions it would take.
pub fn key() -> Result<String> {
    let versions = match versions()? {
        versions if versions.len() == PACKAGES.len() => versions,
        _ if crate::setup::is_root() => {
            crate::run("apt-get", &["update", "-qq"])?;
            versions()?
        }
        versions => versions,
    };
    let missing: Vec<&str> =
        PACKAGES.into_iter().filter(|name| !versions.iter().any(|(known, _)| known == name)).collect();
    if !missing.is_empty() {
        bail!("apt has no {}: it needs Debian's packages, and apt-get update", missing.join(", "));
    }
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(FORMAT);
    for text in [INITRD_INIT, LAB_INIT, CMDLINE].into_iter().chain(MACHINE).chain(BOOT_MODULES) {
        add(text);
    }
    for (name, version) in &versions {
        add(name);
        add(version);
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// Name and version of each package as apt would take it now.
fn versions() -> Result<Vec<(String, String)>> {
    let output = Command::new("apt-cache")
        .env("LC_ALL", "C")
        .arg("policy")
        .args(PACKAGES)
        .output()
        .context("cannot run apt-cache")?;
    Ok(candidates(&String::from_utf8_lossy(&output.stdout)))
}

fn candidates(policy: &str) -> Vec<(String, String)> {
    let mut name = "";
    let mut found = Vec::new();
    for line in policy.lines() {
        match line.trim().strip_prefix("Candidate: ") {
            Some("(none)") => {}
            Some(version) => found.push((name.to_owned(), version.to_owned())),
            None if !line.starts_with(' ') => name = line.trim_end_matches(':'),
            None => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_a_candidate_has_no_version() {
        let policy = "bash:\n  Installed: (none)\n  Candidate: 5.2\n  Version table:\n     5.2 500\nnix:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(candidates(policy), [("bash".to_owned(), "5.2".to_owned())]);
    }
}
