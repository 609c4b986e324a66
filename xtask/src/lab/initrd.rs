//! The lab's initial RAM disk: busybox, a script, and the few modules without which no disk is there. Debian's own takes longer
//! to make and to boot, and needs its packages configured.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::recipe::{BOOT_MODULES, INITRD_INIT};

/// Makes it from a root.
///
/// # Errors
/// When the root lacks something.
pub fn make(root: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "root"] {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, INITRD_INIT.as_bytes());
    archive.add("bin/busybox", 0o100_755, &read(&root.join("bin/busybox"))?);
    let mut order = String::new();
    for module in modules(root)? {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.add(&format!("modules/{name}"), 0o100_644, &read(&module)?);
        order.push_str(&format!("{name}\n"));
    }
    archive.add("modules/order", 0o100_644, order.as_bytes());
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The folder of the root's one kernel's modules.
fn modules_folder(root: &Path) -> Result<PathBuf> {
    let folder = root.join("lib/modules");
    let mut versions = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(versions.next().context("the lab has no kernel modules")??.path())
}

/// Modules in the order in which they can be loaded. A module that is built in needs no file.
fn modules(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = modules_folder(root)?;
    let text = String::from_utf8_lossy(&read(&folder.join("modules.dep"))?).into_owned();
    Ok(load_order(&text, &BOOT_MODULES).into_iter().map(|file| folder.join(file)).collect())
}

fn load_order<'a>(dependencies: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let known: HashMap<&str, (&str, &str)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter_map(|(file, needs)| Some((file.rsplit('/').next()?.split('.').next()?, (file, needs))))
        .collect();
    let mut order = Vec::new();
    for (file, needs) in wanted.iter().filter_map(|name| known.get(name)) {
        // A module comes before what it needs; the last one needs nothing.
        for module in needs.split_whitespace().rev().chain([*file]) {
            if !order.contains(&module) {
                order.push(module);
            }
        }
    }
    order
}

/// A cpio archive in the kernel's format.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.files += 1;
        let header = [
            self.files,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(data.len()).unwrap_or(u32::MAX),
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let text = "a/pci.ko: a/legacy.ko a/virtio.ko a/ring.ko\na/blk.ko: a/virtio.ko a/ring.ko\n";
        let order = load_order(text, &["pci", "blk", "built_in"]);
        assert_eq!(order, ["a/ring.ko", "a/virtio.ko", "a/legacy.ko", "a/pci.ko", "a/blk.ko"]);
    }

    #[test]
    fn every_file_of_an_archive_begins_at_a_word() {
        let mut archive = Archive::default();
        archive.add("x", 0o100_644, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let second = bytes.windows(6).skip(1).position(|six| six == b"070701").map(|at| at + 1);
        assert_eq!(second, Some(112 + 8));
    }
}
