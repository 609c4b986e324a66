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
    use super::*;

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

    /// Name, mode, links, device numbers, content.
    type Entry = (String, u32, u32, (u32, u32), String);

    /// Read back by the rules of the format: the kernel reads it by the same.
    #[test]
    fn every_entry_is_found_where_the_one_before_ends() {
        let bytes = sample();
        let mut at = 0;
        let mut entries = Vec::new();
        loop {
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let digits = str::from_utf8(&bytes[start..start + 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[at + 110..at + 109 + name_size].to_vec()).unwrap();
            let content = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                break;
            }
            let text = String::from_utf8(bytes[content..content + size].to_vec()).unwrap();
            entries.push((name, mode, field(4), (field(9), field(10)), text));
            at = (content + size).next_multiple_of(4);
        }
        let entry =
            |name: &str, mode, links, device, text: &str| (name.into(), mode, links, device, text.into());
        let expected: [Entry; 4] = [
            entry("bin", 0o040_755, 2, (0, 0), ""),
            entry("bin/one", 0o100_755, 1, (0, 0), "hello"),
            entry("bin/two", 0o120_777, 1, (0, 0), "one"),
            entry("console", 0o020_600, 1, (5, 1), ""),
        ];
        assert_eq!(entries, expected);
    }
}
