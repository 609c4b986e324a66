//! What tests and benchmarks need of Debian: installed where that is possible, named where it is not.

use anyhow::{Result, bail};

/// Programs and the packages that bring them.
const NEEDED: [(&str, &str); 4] =
    [("nft", "nftables"), ("mke2fs", "e2fsprogs"), ("ip", "iproute2"), ("mkfs.btrfs", "btrfs-progs")];

/// Installs what is missing as root; otherwise says what is missing.
///
/// # Errors
/// When an installation fails.
pub fn ensure() -> Result<()> {
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if !root {
        bail!("missing Debian packages: {}; install them, or run this as root", missing.join(" "));
    }
    println!("installing missing Debian packages: {}", missing.join(" "));
    crate::run("apt-get", &["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(missing);
    crate::run("apt-get", &arguments)
}

/// Is there a program of that name?
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|folder| folder.join(program).is_file())
}
