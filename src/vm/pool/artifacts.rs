//! A pool's artifacts: revisions named by the hash of their content, and `current`, a symlink that is switched at once.
//!
//! A revision is made beside its place and renamed when all of it is verified and synced; nothing changes it afterwards.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    infra::{config::Roots, failpoint},
    security::audit::hex,
    store::{self, Schema, StoreError},
    vm::{
        instance::{disk, fc_config::files},
        naming::{PoolPath, RevisionHash},
        pool,
    },
};

/// `manifest.json`: what a revision consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// Its name.
    pub revision: RevisionHash,
    /// When it was made.
    pub created_at: Timestamp,
    /// How: `import`.
    pub source: String,
    /// The architecture that it runs on.
    pub arch: String,
    /// The kernel's command line, without what mvm adds for each instance.
    pub cmdline: String,
    /// The kernel.
    pub kernel: Artifact,
    /// The root file system.
    pub rootfs: Artifact,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Artifact>,
}

/// One file of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Its name in the revision's folder.
    pub file: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its content.
    pub sha256: String,
}

/// `build_history.json`: the revisions in the order in which they became current, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// The newest at the end, and not more than are kept.
    pub entries: Vec<HistoryEntry>,
}

/// A revision that became current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryEntry {
    /// The revision.
    pub revision: RevisionHash,
    /// When.
    pub at: Timestamp,
    /// By what: `import` or `rollback`.
    pub by: String,
}

/// How many entries a history keeps.
const HISTORY_LENGTH: usize = 50;

/// The files of a revision to be.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The kernel.
    pub kernel: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

impl Sources {
    /// What they take together, in bytes.
    ///
    /// # Errors
    /// When one cannot be looked at.
    pub fn size_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for path in [Some(&self.kernel), Some(&self.rootfs), self.initrd.as_ref()].into_iter().flatten() {
            bytes += fs::metadata(path).map_err(StoreError::io("read", path))?.len();
        }
        Ok(bytes)
    }
}

impl Manifest {
    /// What the revision takes, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.parts().map(|part| part.size_bytes).sum()
    }

    /// Its files.
    fn parts(&self) -> impl Iterator<Item = &Artifact> {
        [Some(&self.kernel), Some(&self.rootfs), self.initrd.as_ref()].into_iter().flatten()
    }
}

/// Why artifacts are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file that is not what it should be.
    #[error("{path} is not {what}: {why}", path = path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What was seen instead.
        why: String,
    },
    /// A file of a revision that changed.
    #[error("{path} is not what was imported: {why}", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A command line that Firecracker does not take.
    #[error("the command line is {length} bytes long; with what mvm adds, at most 1900 fit")]
    CommandLine {
        /// Its length.
        length: usize,
    },
    /// A command line that is more than one line.
    #[error("the command line holds control characters")]
    ControlCharacters,
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where a pool's artifacts lie.
#[derive(Debug, Clone)]
pub struct Artifacts {
    folder: PathBuf,
    history: PathBuf,
}

impl Artifacts {
    /// Those of this pool.
    pub fn of(roots: &Roots, pool: &PoolPath) -> Self {
        let pool = pool::config::folder(roots, pool);
        Self { folder: pool.join("artifacts"), history: pool.join("build_history.json") }
    }

    fn revisions(&self) -> PathBuf {
        self.folder.join("revisions")
    }

    /// The folder of a revision.
    pub fn revision(&self, revision: &RevisionHash) -> PathBuf {
        self.revisions().join(revision)
    }

    /// The current revision, if there is one.
    ///
    /// # Errors
    /// When the link cannot be read or leads to no revision.
    pub fn current(&self) -> Result<Option<RevisionHash>, StoreError> {
        let link = self.folder.join("current");
        match fs::read_link(&link) {
            Ok(target) => {
                let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let damaged =
                    |_| StoreError::Damaged { path: link.clone(), why: format!("it leads to {target:?}") };
                name.parse().map(Some).map_err(damaged)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::io("read", &link)(source)),
        }
    }

    /// The manifest of a revision.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where there is no such revision.
    pub fn manifest(&self, revision: &RevisionHash) -> Result<Manifest, StoreError> {
        store::read(&self.revision(revision).join("manifest.json"))
    }

    /// All revisions, sorted by name.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all(&self) -> Result<Vec<RevisionHash>, StoreError> {
        let names = store::names(&self.revisions(), |name| !name.starts_with('.'))?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The history, oldest first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn history(&self) -> Result<History, StoreError> {
        Ok(store::read_if_there(&self.history)?.unwrap_or_default())
    }

    /// Copies files in as a revision and verifies them. The same content gives the same revision. The caller holds the
    /// pool's lock.
    ///
    /// # Errors
    /// [`ArtifactError::Wrong`] before anything is copied.
    pub fn import(&self, roots: &Roots, sources: &Sources) -> Result<Manifest, ArtifactError> {
        check_kernel(&sources.kernel)?;
        check_file_system(&sources.rootfs)?;
        if let Some(initrd) = &sources.initrd {
            check_initrd(initrd)?;
        }
        // Firecracker's limit on x86_64 is 2,048 bytes; each instance's identity takes some 120 of them.
        let length = sources.cmdline.len();
        if length > 1900 {
            return Err(ArtifactError::CommandLine { length });
        }
        if sources.cmdline.contains(char::is_control) {
            return Err(ArtifactError::ControlCharacters);
        }
        let revisions = self.revisions();
        store::make_folder(&revisions)?;
        store::sweep(&revisions)?;
        let new = store::unfinished(&revisions.join("import"));
        store::remove_folder(&new)?;
        store::make_folder(&new)?;
        let imported = self.fill(roots, sources, &new);
        if imported.is_err() {
            let _ = store::remove_folder(&new);
        }
        imported
    }

    fn fill(&self, roots: &Roots, sources: &Sources, new: &Path) -> Result<Manifest, ArtifactError> {
        let take = |from: &Path, name: &str| -> Result<Artifact, ArtifactError> {
            let to = new.join(name);
            disk::copy(from, &to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o444))
                .map_err(StoreError::io("write", &to))?;
            Ok(Artifact {
                file: name.to_owned(),
                size_bytes: fs::metadata(&to).map_err(StoreError::io("look at", &to))?.len(),
                sha256: hash_file(&to)?,
            })
        };
        let kernel = take(&sources.kernel, files::KERNEL)?;
        let rootfs = take(&sources.rootfs, files::ROOT)?;
        let initrd = sources.initrd.as_deref().map(|path| take(path, files::INITRD)).transpose()?;
        failpoint::hit("import", "copied").map_err(StoreError::io("import", new))?;
        let parts = [Some(&kernel), Some(&rootfs), initrd.as_ref()];
        let revision = revision_of(new, parts.into_iter().flatten(), &sources.cmdline)?;
        let manifest = Manifest {
            schema_version: Schema,
            revision: revision.clone(),
            created_at: roots.now(),
            source: "import".into(),
            arch: std::env::consts::ARCH.into(),
            cmdline: sources.cmdline.clone(),
            kernel,
            rootfs,
            initrd,
        };
        if let Ok(there) = self.manifest(&revision) {
            store::remove_folder(new)?;
            return Ok(there);
        }
        store::write(&new.join("manifest.json"), &manifest)?;
        let place = self.revision(&revision);
        // A folder without a manifest is what a power cut left: the new one takes its place.
        store::remove_folder(&place)?;
        fs::rename(new, &place).map_err(StoreError::io("rename", new))?;
        store::sync_folder(&self.revisions())?;
        failpoint::hit("import", "in-place").map_err(StoreError::io("import", &place))?;
        Ok(manifest)
    }

    /// Makes a revision the current one, and writes the history. The caller holds the pool's lock.
    ///
    /// # Errors
    /// The old one stays current where it fails.
    pub fn switch(&self, roots: &Roots, revision: &RevisionHash, by: &str) -> Result<(), StoreError> {
        if self.current()?.as_ref() == Some(revision) {
            return Ok(());
        }
        let link = self.folder.join("current");
        let new = store::unfinished(&link);
        store::remove_file(&new)?;
        symlink(Path::new("revisions").join(revision), &new).map_err(StoreError::io("link", &new))?;
        failpoint::hit("switch", "before-rename").map_err(StoreError::io("switch", &link))?;
        fs::rename(&new, &link).map_err(StoreError::io("switch", &link))?;
        store::sync_folder(&self.folder)?;
        failpoint::hit("switch", "switched").map_err(StoreError::io("switch", &link))?;
        let mut history = self.history()?;
        history.entries.push(HistoryEntry { revision: revision.clone(), at: roots.now(), by: by.to_owned() });
        let surplus = history.entries.len().saturating_sub(HISTORY_LENGTH);
        history.entries.drain(..surplus);
        store::write(&self.history, &history)
    }

    /// Are the revision's files there, and as long as they were? That costs nothing; [`Self::verify`] reads every byte.
    ///
    /// # Errors
    /// [`ArtifactError::Changed`] names the first that is not.
    pub fn check(&self, manifest: &Manifest) -> Result<(), ArtifactError> {
        for part in manifest.parts() {
            self.check_size(&manifest.revision, part)?;
        }
        Ok(())
    }

    fn check_size(&self, revision: &RevisionHash, part: &Artifact) -> Result<PathBuf, ArtifactError> {
        let path = self.revision(revision).join(&part.file);
        let why = match fs::metadata(&path) {
            Ok(meta) if meta.len() == part.size_bytes => return Ok(path),
            Ok(meta) => format!("it has {} bytes instead of {}", meta.len(), part.size_bytes),
            Err(error) => error.to_string(),
        };
        Err(ArtifactError::Changed { path, why })
    }

    /// Checks every byte of a revision against its manifest.
    ///
    /// # Errors
    /// [`ArtifactError::Changed`] names the first file that is not what was imported.
    pub fn verify(&self, revision: &RevisionHash) -> Result<Manifest, ArtifactError> {
        let manifest = self.manifest(revision)?;
        for part in manifest.parts() {
            let path = self.check_size(revision, part)?;
            if hash_file(&path)? != part.sha256 {
                return Err(ArtifactError::Changed { path, why: "its sha256 is another one".into() });
            }
        }
        Ok(manifest)
    }

    /// Removes a revision. The caller holds the pool's lock and knows that nobody needs it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, revision: &RevisionHash) -> Result<(), StoreError> {
        store::vanish(&self.revision(revision))
    }

    /// The folders in which something may be left unfinished.
    pub fn folders(&self) -> [PathBuf; 2] {
        [self.revisions(), self.folder.clone()]
    }
}

/// The name of the revision that consists of these files and this command line.
///
/// # Errors
/// None that can be: a sha256 is a revision's name.
pub fn revision_of<'a>(
    folder: &Path,
    parts: impl Iterator<Item = &'a Artifact>,
    cmdline: &str,
) -> Result<RevisionHash, StoreError> {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(format!("{} {}\n", part.sha256, part.file));
    }
    hasher.update(format!("{} {cmdline}", std::env::consts::ARCH));
    let wrong =
        |_| StoreError::Damaged { path: folder.to_path_buf(), why: "a hash that is no revision".into() };
    hex(&hasher.finalize()).parse().map_err(wrong)
}

/// The sha256 of a file, as hex digits.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> Result<String, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(StoreError::io("read", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn head_of(path: &Path, what: &'static str) -> Result<Vec<u8>, ArtifactError> {
    let wrong = |why| ArtifactError::Wrong { path: path.to_path_buf(), what, why };
    let meta = fs::metadata(path).map_err(StoreError::io("read", path))?;
    if !meta.is_file() {
        return Err(wrong("it is no regular file".into()));
    }
    let file = File::open(path).map_err(StoreError::io("read", path))?;
    let mut head = vec![0; usize::try_from(meta.len()).unwrap_or(usize::MAX).min(4096)];
    file.read_exact_at(&mut head, 0).map_err(StoreError::io("read", path))?;
    Ok(head)
}

/// Are the ELF's segments within the file, and does it begin inside one of them? A download that was cut off has the head
/// of a kernel too.
fn check_segments(path: &Path, head: &[u8]) -> Result<(), &'static str> {
    const LOAD: u64 = 1;
    // Firecracker loads a kernel at 1 MiB or above.
    const LOWEST_ENTRY: u64 = 1 << 20;
    let length = fs::metadata(path).map_or(0, |meta| meta.len());
    let number = |offset: u64, size: usize| -> Option<u64> {
        let offset = usize::try_from(offset).ok()?;
        let bytes = head.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let cut = "its head is not whole";
    let (entry, table) = (number(24, 8).ok_or(cut)?, number(32, 8).ok_or(cut)?);
    let (size, count) = (number(54, 2).ok_or(cut)?, number(56, 2).ok_or(cut)?);
    let mut begins = false;
    for index in 0..count {
        let at = table.saturating_add(index * size);
        let field =
            |offset: u64, size| number(at.saturating_add(offset), size).ok_or("its segments are not in it");
        if field(0, 4)? != LOAD {
            continue;
        }
        let (offset, physical) = (field(8, 8)?, field(24, 8)?);
        let (in_file, in_memory) = (field(32, 8)?, field(40, 8)?);
        if offset.saturating_add(in_file) > length {
            return Err("it was cut off: a segment reaches beyond its end");
        }
        begins |= (physical..physical.saturating_add(in_memory)).contains(&entry);
    }
    match begins && entry >= LOWEST_ENTRY {
        true => Ok(()),
        false => Err("it does not begin where a kernel does: it is some other program"),
    }
}

/// Is this a kernel that Firecracker boots on this machine's architecture?
///
/// # Errors
/// [`ArtifactError::Wrong`] says what it is instead.
pub fn check_kernel(path: &Path) -> Result<(), ArtifactError> {
    let (what, arch) = ("a kernel that Firecracker boots", std::env::consts::ARCH);
    let head = head_of(path, what)?;
    let wrong = |why: &str| Err(ArtifactError::Wrong { path: path.to_path_buf(), what, why: why.into() });
    let at = |offset: usize, bytes: &[u8]| head.get(offset..offset + bytes.len()) == Some(bytes);
    if at(0x202, b"HdrS") {
        return wrong("it is a bzImage; Firecracker takes the uncompressed ELF inside (vmlinux)");
    }
    if arch == "x86_64" && at(0, b"\x7fELF\x02\x01") && at(18, &[62, 0]) {
        return check_segments(path, &head).or_else(wrong);
    }
    match arch {
        // e_machine: 62 is x86-64
        "x86_64" if !at(0, b"\x7fELF") => wrong("it is no ELF file"),
        "x86_64" if !at(4, &[2, 1]) || !at(18, &[62, 0]) => wrong("it is an ELF file, but none for x86_64"),
        "aarch64" if !at(56, b"ARM\x64") => wrong("it is no arm64 Image"),
        _ => Ok(()),
    }
}

fn check_file_system(path: &Path) -> Result<(), ArtifactError> {
    let what = "a root file system";
    let head = head_of(path, what)?;
    let at = |offset: usize, bytes: &[u8]| head.get(offset..offset + bytes.len()) == Some(bytes);
    let known =
        at(1080, &[0x53, 0xef]) || at(0, b"hsqs") || at(0, b"XFSB") || at(1024, &[0xe2, 0xe1, 0xf5, 0xe0]);
    if known {
        return Ok(());
    }
    let why = "it holds no ext4, xfs, squashfs or erofs".to_owned();
    Err(ArtifactError::Wrong { path: path.to_path_buf(), what, why })
}

fn check_initrd(path: &Path) -> Result<(), ArtifactError> {
    let what = "an initial RAM disk";
    let head = head_of(path, what)?;
    let magics: [&[u8]; 7] = [
        b"070701",
        b"070702",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ",
        b"\x02\x21\x4c\x18",
        b"\x04\x22\x4d\x18",
    ];
    if magics.iter().any(|magic| head.starts_with(magic)) {
        return Ok(());
    }
    let why = "it is no cpio archive, plain or compressed by gzip, zstd, xz or lz4".to_owned();
    Err(ArtifactError::Wrong { path: path.to_path_buf(), what, why })
}
