//! Looks for a text, and for what it looks like in hex and base64, in files and in what processes were started with.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{SeekFrom, seek};

/// What is looked for.
pub struct Needles(Vec<Vec<u8>>);

const PIECE: usize = 1 << 20;

impl Needles {
    /// This text, in every form.
    pub fn of(text: &str) -> Self {
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut all = vec![text.as_bytes().to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
        // As base64 it depends on what is before and behind it.
        for shift in 0..3 {
            let shifted = [&vec![0; shift][..], text.as_bytes()].concat();
            let whole = shifted.len() / 3 * 4;
            all.push(base64(&shifted).as_bytes()[(shift * 8).div_ceil(6)..whole].to_vec());
        }
        Self(all)
    }

    pub fn are_in(&self, bytes: &[u8]) -> bool {
        self.0.iter().any(|needle| contains(bytes, needle))
    }

    fn longest(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// The files below a folder that hold it, relative to that; also what a file's name says.
    pub fn in_files(&self, folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        self.walk(folder, folder, &mut found);
        found.sort();
        found
    }

    fn walk(&self, top: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                self.walk(top, &path, found);
            } else if kind.is_file()
                && (self.are_in_file(&path) || self.are_in(path.as_os_str().as_encoded_bytes()))
            {
                found.push(path.strip_prefix(top).expect("below it").display().to_string());
            }
        }
    }

    /// The data of a file, without its holes.
    fn are_in_file(&self, path: &PathBuf) -> bool {
        let file = match File::open(path) {
            // It went meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => return false,
            file => file.expect("a file"),
        };
        let (size, mut at) = (file.metadata().expect("a size").size(), 0);
        let mut piece = vec![0; PIECE];
        while at < size {
            let Ok(begin) = seek(&file, SeekFrom::Data(at)) else { return false };
            let end = seek(&file, SeekFrom::Hole(begin)).unwrap_or(size);
            at = begin;
            while at < end {
                let length = PIECE.min(usize::try_from(end - at).expect("a length"));
                let count = file.read_at(&mut piece[..length], at).expect("it can be read");
                if self.are_in(&piece[..count]) {
                    return true;
                }
                if count == 0 || at + count as u64 >= end {
                    at = end;
                } else {
                    // What lies across two pieces is in one of them.
                    at += (count - self.longest()) as u64;
                }
            }
        }
        false
    }

    /// The processes that have it among their arguments, or in their environment.
    pub fn in_processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if pid.bytes().all(|byte| byte.is_ascii_digit()) {
                let holds =
                    |what: &str| fs::read(entry.path().join(what)).is_ok_and(|bytes| self.are_in(&bytes));
                found.extend(
                    ["cmdline", "environ"]
                        .into_iter()
                        .filter(|what| holds(what))
                        .map(|what| format!("{pid} {what}")),
                );
            }
        }
        found
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else { return false };
    let mut left = bytes;
    while let Some(at) = left.iter().position(|byte| byte == first) {
        left = &left[at + 1..];
        if left.starts_with(rest) {
            return true;
        }
    }
    false
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=group.len()].copy_from_slice(group);
        let word = u32::from_be_bytes(word);
        text.extend((0..=group.len()).map(|at| DIGITS[(word >> (18 - 6 * at)) as usize & 63] as char));
    }
    text
}

/// A text that is nowhere else.
pub fn marker() -> String {
    let bytes: [u8; 15] = mvm::infra::entropy::random().expect("randomness");
    format!("s3-{}", base64(&bytes).replace(['+', '/'], "x"))
}
