//! The table of mounts, as this process has it (proc_pid_mountinfo(5)).

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt, path::PathBuf};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The number of the file system's device: `major:minor`.
    pub device: String,
    /// Where.
    pub place: PathBuf,
    /// Which file system.
    pub kind: String,
    /// What it is on.
    pub source: PathBuf,
}

/// The mounts, each after those that it lies on; none where there is no table.
pub fn all() -> Vec<Mount> {
    parse(&fs::read("/proc/thread-self/mountinfo").unwrap_or_default())
}

/// The mounts of such a table.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// `36 29 0:30 / /place rw,… [more] - kind source options`
fn mount(line: &[u8]) -> Option<Mount> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let end = words.iter().position(|word| *word == b"-")?;
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    Some(Mount {
        device: text(words.get(2)?),
        place: path(words.get(4)?),
        kind: text(words.get(end + 1)?),
        source: path(words.get(end + 2)?),
    })
}

/// A space, a tab, a line break and a backslash stand there as `\040` and so on.
fn path(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [byte, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *byte == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => (rest, _) = (&after[3..], bytes.push(escaped)),
            None => (rest, _) = (after, bytes.push(*byte)),
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_mount_and_half_a_line_is_none() {
        let table = b"36 29 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 none rw\n\
                      40 29 254:1 /a\\040b /my\\040files\\134 rw - ext4 /dev/vda1 rw\n41 29 0:1 / /x rw -\n\n";
        let [cgroups, disk] = &parse(table)[..] else { panic!("two") };
        assert_eq!((cgroups.device.as_str(), cgroups.kind.as_str()), ("0:30", "cgroup2"));
        assert_eq!(
            (disk.place.as_path(), disk.source.as_path()),
            ("/my files\\".as_ref(), "/dev/vda1".as_ref())
        );
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(all().iter().any(|mount| mount.place.as_os_str() == "/"));
    }
}
