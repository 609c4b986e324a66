//! What tests and benchmarks need of Debian: installed where that is possible, named where it is not.

use anyhow::{Result, bail};

/// Programs and the packages that bring them.
const NEEDED: [(&str, &str); 4] =
    [("nft", "nftables"), ("mke2fs", "e2fsprogs"), ("ip", "iproute2"), ("mkfs.btrfs", "btrfs-progs")];

/// The same for the lab.
const NEEDED_BY_LAB: [(&str, &str); 3] =
    [("qemu-system-x86_64", "qemu-system-x86"), ("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")];

/// Installs what tests need and is missing, as root; otherwise says what is missing.
///
/// # Errors
/// When an installation fails, or nobody may install.
pub fn ensure() -> Result<()> {
    install(&NEEDED)
}

/// The same for what the lab needs.
///
/// # Errors
/// When an installation fails, or nobody may install.
pub fn ensure_lab() -> Result<()> {
    install(&NEEDED_BY_LAB)
}

/// Does this process have root's rights?
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn install(needed: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        needed.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        let names = missing.join(" ");
        bail!("missing Debian packages: {names}; sudo apt-get install {names}");
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
