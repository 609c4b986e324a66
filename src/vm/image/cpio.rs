//! Archives as the kernel unpacks them into its first root (cpio, "newc"). Pure, and the same for the same content: no
//! time, no owner, no inode of the machine goes in.

/// An archive that is being written. Folders come before what is in them.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds a folder.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, (0, 0), b"");
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, mode: u32, numbers: (u32, u32)) {
        self.entry(path, CHARACTER_DEVICE | mode, numbers, b"");
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & FOLDER != 0 && mode & FILE == 0 { 2 } else { 1 };
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// The archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.pad(512);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::infra::shell;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("bin/one", 0o755, b"hello");
        archive.link("bin/two", "one");
        archive.device("console", 0o600, (5, 1));
        archive.finish()
    }

    #[test]
    fn it_is_the_same_for_the_same_content() {
        assert_eq!(sample(), sample());
        assert_eq!(sample().len() % 512, 0);
        assert!(sample().starts_with(b"070701"));
    }

    #[test]
    fn cpio_reads_it() {
        let Ok(listed) = shell::run("cpio", ["-tv", "--quiet"], &sample(), Duration::from_secs(10)) else {
            println!("SKIP (no cpio)");
            return;
        };
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(names, ["drwxr-xr-x", "-rwxr-xr-x", "lrwxrwxrwx", "crw-------"], "{listed}");
    }
}
