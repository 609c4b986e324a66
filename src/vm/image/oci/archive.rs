//! The file that an image comes in: which files it holds, and where. It is never unpacked; one that is packed as a whole is
//! laid out beside the image first, since its parts are needed in another order than theirs.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::fs::OFlags;

use super::{
    entries::{Entries, Kind, TarError},
    error::OciError,
    left::{Exceeded, Left},
    limits::{Limits, MAX_MEMBERS, MAX_PATH},
    names::shown,
    stream::{Metered, Packing, Section, Unpacking},
};
use crate::store::StoreError;

/// Where a file of the archive lies.
#[derive(Debug, Clone)]
enum Member {
    File {
        at: u64,
        length: u64,
    },
    /// Another one, by its name from the archive's root: docker writes a layer once that is there twice.
    Link(Vec<u8>),
}

/// An archive that is open.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: File,
    members: HashMap<Vec<u8>, Member>,
    until: Instant,
}

impl Archive {
    /// Opens an archive and looks what it holds. One that is packed is laid out in `spool`.
    ///
    /// # Errors
    /// When it is no archive, or unpacks to more than it may.
    pub fn open(path: &Path, spool: &Path, limits: &Limits) -> Result<Self, OciError> {
        let damaged = |why: String| OciError::Damaged { path: path.to_path_buf(), why };
        let mut open = OpenOptions::new();
        // A pipe without a writer would be waited for.
        open.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let mut file = open.open(path).map_err(StoreError::io("open", path))?;
        let meta = file.metadata().map_err(StoreError::io("look at", path))?;
        if !meta.is_file() {
            return Err(OciError::NotAnImage {
                path: path.to_path_buf(),
                why: "it is no regular file".into(),
            });
        }
        let whole = Section::new(&file, 0, meta.len(), limits.until);
        let packing = whole.head().map_err(|error| OciError::reading(path, error)).map(Packing::of)?;
        let packing = packing.map_err(|other| damaged(other.to_string()))?;
        if packing != Packing::Plain {
            file = lay_out(path, whole, packing, spool, limits)?;
        }
        let members = list(&file, limits.until).map_err(|error| match error {
            TarError::Read(source) => OciError::reading(path, source),
            other => damaged(other.to_string()),
        })?;
        Ok(Self { path: path.to_path_buf(), file, members, until: limits.until })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of it, by its name; `None` where there is none.
    pub fn section(&self, name: &str) -> Option<Section<'_>> {
        const LINKS: usize = 8;
        let mut name = name.as_bytes();
        for _ in 0..LINKS {
            match self.members.get(name)? {
                Member::File { at, length } => {
                    return Some(Section::new(&self.file, *at, *length, self.until));
                }
                Member::Link(to) => name = to,
            }
        }
        None
    }
}

fn lay_out(
    path: &Path,
    whole: Section,
    packing: Packing,
    spool: &Path,
    limits: &Limits,
) -> Result<File, OciError> {
    let left = Left::of(limits);
    let mut out = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(spool)
        .map_err(StoreError::io("create", spool))?;
    let unpacking = Unpacking::new(whole, packing).map_err(StoreError::io("read", path))?;
    let mut input = Metered { input: unpacking, left: &left };
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = input.read(&mut buffer).map_err(|error| match error {
            error if error.raw_os_error().is_some() => OciError::reading(path, error),
            error => match Exceeded::of(&error) {
                Some(what) => OciError::exceeded(path, limits, what),
                None => {
                    OciError::Damaged { path: path.to_path_buf(), why: shown(error.to_string().as_bytes()) }
                }
            },
        })?;
        if read == 0 {
            break;
        }
        io::Write::write_all(&mut out, &buffer[..read]).map_err(StoreError::io("write", spool))?;
    }
    Ok(out)
}

/// The files and links of an archive.
fn list(file: &File, until: Instant) -> Result<HashMap<Vec<u8>, Member>, TarError> {
    let length = file.metadata().map_err(TarError::Read)?.len();
    let mut entries = Entries::new(Section::new(file, 0, length, until));
    let mut members = HashMap::new();
    while let Some(entry) = entries.next()? {
        let Some(name) = normal(&[], &entry.name) else { continue };
        let folder = name.iter().rposition(|&byte| byte == b'/').map_or(&[][..], |at| &name[..at]);
        let member = match entry.kind {
            // A sparse one is nowhere in one piece.
            Kind::File if entry.pieces.is_none() => {
                let (at, left) = (entries.input().position(), entries.input().left());
                if entry.stored > left {
                    return Err(TarError::Cut);
                }
                Member::File { at, length: entry.stored }
            }
            Kind::Symlink => match normal(folder, &entry.link) {
                Some(to) => Member::Link(to),
                None => continue,
            },
            Kind::HardLink => match normal(&[], &entry.link) {
                Some(to) => Member::Link(to),
                None => continue,
            },
            _ => continue,
        };
        // As when it is unpacked, the last one of a name counts.
        members.insert(name, member);
        if members.len() > MAX_MEMBERS {
            return Err(TarError::Malformed("it holds more files than any image needs"));
        }
    }
    Ok(members)
}

/// A name from the archive's root, seen from a folder of it; `None` where it leads out of it or is none.
fn normal(folder: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = folder.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    (!joined.is_empty() && joined.len() <= MAX_PATH).then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_an_archive_are_seen_from_its_root() {
        for (folder, name, is) in [
            ("", "./a/b", Some("a/b")),
            ("", "/a//b/", Some("a/b")),
            ("one", "../two/layer.tar", Some("two/layer.tar")),
            ("one", "../../etc/passwd", None),
            ("", "..", None),
            ("", "./", None),
        ] {
            let found = normal(folder.as_bytes(), name.as_bytes());
            assert_eq!(found.as_deref(), is.map(str::as_bytes), "{folder} {name}");
        }
    }
}
