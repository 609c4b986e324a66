//! A pool's artifacts: revisions named by the hash of their content, and `current`, a symlink that is switched at once.
//!
//! A revision is made beside its place and renamed when all of it is verified and synced; nothing changes it afterwards.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    infra::{config::Roots, failpoint, relief, text::hex},
    store::{self, Schema, StoreError},
    vm::{
        instance::{disk, fc_config::files},
        naming::{PoolPath, RevisionHash},
        pool::{self, checks},
        snapshot::mtime_ns,
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
    /// How: `import`, of files; `oci`, of an image that was unpacked.
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
    /// When it was last written to, in ns since 1970, where that is known: as long as it is, nobody has to read it to know that it
    /// is as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ns: Option<i128>,
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

/// Where a revision's root file system comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A file of somebody's, which is copied.
    Import,
    /// Made of an OCI image in a [work folder](Artifacts::work_folder), out of which it is moved.
    Oci,
}

impl Origin {
    fn as_str(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Oci => "oci",
        }
    }
}

/// A revision that is whole, and not in its place yet.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    /// What it consists of.
    pub manifest: Manifest,
}

impl Draft {
    /// Removes it.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn discard(self) -> Result<(), StoreError> {
        store::remove_folder(&self.folder)
    }
}

impl Sources {
    fn parts(&self) -> (&Path, Option<&Path>) {
        (&self.kernel, self.initrd.as_deref())
    }

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

    /// Copies files in beside the revisions, as one that is whole and not in its place yet. Nobody's lock is needed.
    ///
    /// # Errors
    /// [`ArtifactError::Wrong`] before anything is copied. Nothing is left of what was copied.
    pub fn draft(&self, roots: &Roots, sources: &Sources, origin: Origin) -> Result<Draft, ArtifactError> {
        checks::check(sources.parts(), &sources.cmdline)?;
        checks::check_file_system(&sources.rootfs)?;
        let revisions = self.revisions();
        store::make_folder(&revisions)?;
        store::sweep(&revisions)?;
        let folder = store::unfinished(&revisions.join("import"));
        store::remove_folder(&folder)?;
        store::make_folder(&folder)?;
        match fill(roots, sources, origin, &folder) {
            Ok(manifest) => Ok(Draft { folder, manifest }),
            Err(error) => {
                let _ = store::remove_folder(&folder);
                Err(error)
            }
        }
    }

    /// Gives a draft its place. The same content is there already: then that is the one. The caller holds the pool's lock.
    ///
    /// # Errors
    /// Nothing is left of the draft.
    pub fn place(&self, draft: Draft) -> Result<Manifest, ArtifactError> {
        let placed = self.put(&draft);
        if placed.is_err() {
            let _ = store::remove_folder(&draft.folder);
        }
        placed
    }

    fn put(&self, Draft { folder, manifest }: &Draft) -> Result<Manifest, ArtifactError> {
        let place = self.revision(&manifest.revision);
        if let Ok(mut there) = self.manifest(&manifest.revision)
            && self.check(&there).is_ok()
        {
            if self.note_times(&mut there)? {
                store::write(&place.join("manifest.json"), &there)?;
            }
            store::remove_folder(folder)?;
            return Ok(there);
        }
        store::write(&folder.join("manifest.json"), manifest)?;
        // A folder without a manifest is what a power cut left, and one that was changed runs nothing: the new one takes its place, at
        // once, since who sleeps or wakes reads the manifest without this lock.
        store::exchange(folder, &place)?;
        store::sync_folder(&self.revisions())?;
        store::remove_folder(folder)?;
        failpoint::hit("import", "in-place").map_err(StoreError::io("import", &place))?;
        Ok(manifest.clone())
    }

    /// Makes a revision the current one, or none. The caller holds the pool's lock.
    ///
    /// # Errors
    /// The old one stays current, unless only the folder could not be synced.
    pub fn lead_to(&self, revision: Option<&RevisionHash>) -> Result<(), StoreError> {
        let link = self.folder.join("current");
        let io = |action| StoreError::io(action, &link);
        let new = store::unfinished(&link);
        store::remove_file(&new)?;
        match revision {
            None => store::remove_file(&link)?,
            Some(revision) => {
                let target = Path::new("revisions").join(revision);
                relief::retry(|| symlink(&target, &new)).map_err(io("link"))?;
                failpoint::hit("switch", "before-rename").map_err(io("switch"))?;
                store::rename(&new, &link)?;
            }
        }
        store::sync_folder(&self.folder)?;
        failpoint::hit("switch", "switched").map_err(io("switch"))
    }

    /// Writes into the history that a revision became current.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, roots: &Roots, revision: &RevisionHash, by: &str) -> Result<(), StoreError> {
        let mut history = self.history()?;
        let (revision, by) = (revision.clone(), by.to_owned());
        history.entries.push(HistoryEntry { revision, at: roots.now(), by });
        let surplus = history.entries.len().saturating_sub(HISTORY_LENGTH);
        history.entries.drain(..surplus);
        store::write(&self.history, &history)
    }

    /// Writes down when its files were last written to, which are what they were. True where that was not known.
    fn note_times(&self, manifest: &mut Manifest) -> Result<bool, StoreError> {
        let folder = self.revision(&manifest.revision);
        let mut is_new = false;
        let Manifest { kernel, rootfs, initrd, .. } = manifest;
        for part in [Some(kernel), Some(rootfs), initrd.as_mut()].into_iter().flatten() {
            let path = folder.join(&part.file);
            let meta = fs::metadata(&path).map_err(StoreError::io("look at", &path))?;
            let is = Some(mtime_ns(&meta));
            is_new |= part.mtime_ns != is;
            part.mtime_ns = is;
        }
        Ok(is_new)
    }

    /// Are the revision's files what they were? That costs nothing where they were not written to since, nor put back from a copy:
    /// of others every byte is read. [`Self::verify`] reads all of them.
    ///
    /// # Errors
    /// [`ArtifactError::Changed`] names the first that is not.
    pub fn check(&self, manifest: &Manifest) -> Result<(), ArtifactError> {
        manifest.parts().try_for_each(|part| self.check_part(&manifest.revision, part))
    }

    /// The same for one of its files.
    ///
    /// # Errors
    /// [`ArtifactError::Changed`] where it is not what it was.
    pub fn check_part(&self, revision: &RevisionHash, part: &Artifact) -> Result<(), ArtifactError> {
        self.look_at(revision, part, |mtime_ns| part.mtime_ns == Some(mtime_ns))
    }

    /// `is_known` is asked with the time at which the file was last written to.
    fn look_at(
        &self,
        revision: &RevisionHash,
        part: &Artifact,
        is_known: impl Fn(i128) -> bool,
    ) -> Result<(), ArtifactError> {
        let path = self.revision(revision).join(&part.file);
        let why = match fs::metadata(&path) {
            Ok(meta) if meta.len() != part.size_bytes => {
                format!("it has {} bytes instead of {}", meta.len(), part.size_bytes)
            }
            Ok(meta) if is_known(mtime_ns(&meta)) => return Ok(()),
            Ok(_) if hash_file(&path)? == part.sha256 => return Ok(()),
            Ok(_) => "its sha256 is another one".to_owned(),
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
            self.look_at(revision, part, |_| false)?;
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

    /// Where something of that name is made for a revision to be, and what was left of earlier ones is removed.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn work_folder(&self, name: &str) -> Result<PathBuf, StoreError> {
        store::make_folder(&self.folder)?;
        store::sweep(&self.folder)?;
        let work = store::unfinished(&self.folder.join(name));
        store::remove_folder(&work)?;
        store::make_folder(&work)?;
        Ok(work)
    }

    /// The folders in which something may be left unfinished.
    pub fn folders(&self) -> [PathBuf; 2] {
        [self.revisions(), self.folder.clone()]
    }
}

/// Fills the folder of a draft.
fn fill(roots: &Roots, sources: &Sources, origin: Origin, new: &Path) -> Result<Manifest, ArtifactError> {
    let finish = |to: &Path, name: &str| -> Result<Artifact, StoreError> {
        fs::set_permissions(to, fs::Permissions::from_mode(0o444)).map_err(StoreError::io("write", to))?;
        let meta = fs::metadata(to).map_err(StoreError::io("look at", to))?;
        let (file, sha256) = (name.to_owned(), hash_file(to)?);
        Ok(Artifact { file, size_bytes: meta.len(), sha256, mtime_ns: Some(mtime_ns(&meta)) })
    };
    let take = |from: &Path, name: &str| {
        let to = new.join(name);
        disk::copy(from, &to)?;
        finish(&to, name)
    };
    let kernel = take(&sources.kernel, files::KERNEL)?;
    let rootfs = match origin {
        Origin::Import => take(&sources.rootfs, files::ROOT)?,
        Origin::Oci => {
            let to = new.join(files::ROOT);
            fs::rename(&sources.rootfs, &to).map_err(StoreError::io("rename", &sources.rootfs))?;
            File::open(&to).and_then(|file| file.sync_all()).map_err(StoreError::io("sync", &to))?;
            finish(&to, files::ROOT)?
        }
    };
    let initrd = sources.initrd.as_deref().map(|path| take(path, files::INITRD)).transpose()?;
    failpoint::hit("import", "copied").map_err(StoreError::io("import", new))?;
    let parts = [Some(&kernel), Some(&rootfs), initrd.as_ref()];
    Ok(Manifest {
        schema_version: Schema,
        revision: revision_of(new, parts.into_iter().flatten(), &sources.cmdline)?,
        created_at: roots.now(),
        source: origin.as_str().into(),
        arch: std::env::consts::ARCH.into(),
        cmdline: sources.cmdline.clone(),
        kernel,
        rootfs,
        initrd,
    })
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
