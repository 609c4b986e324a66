//! Guest images: a kernel, an initial RAM disk and a root file system that a pool can start from.
//!
//! ```text
//! images/<name>/<hash>/{vmlinux,initrd,rootfs.ext4,manifest.json}     named by the hash of its content
//! images/<name>/current                                              a symlink, switched at once
//! ```
//!
//! An image is made beside its place and renamed when it is whole. A pool takes a copy of its own, so an image that was made
//! anew changes nothing under anybody, and the one before goes.

pub mod agent;
pub mod cpio;
pub mod debian;
mod error;
pub mod ext4;
pub mod kernel;
pub mod modules;
pub mod oci;
mod root;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::IgnoredAny};

pub use self::error::{ImageError, Tool};
use crate::{
    infra::{config::Roots, failpoint},
    store::{self, Lock, Schema, Sharing, StoreError},
    vm::{
        naming::{ImageName, RevisionHash},
        pool::{
            artifacts::{Artifact, Sources},
            config::AgentMode,
        },
    },
};

/// `manifest.json`: what an image consists of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// The image's name.
    pub name: ImageName,
    /// The hash of its content: the name of the revision that a pool gets from it.
    pub revision: RevisionHash,
    /// When it was made.
    pub created_at: Timestamp,
    /// The distribution's name for its release: `bookworm`.
    pub release: String,
    /// The kernel's own name for its version.
    pub kernel_version: String,
    /// The architecture that it runs on.
    pub arch: String,
    /// Whether its guests run mvm's agent.
    pub agent: AgentMode,
    /// The kernel's command line, without what mvm adds for each instance.
    pub cmdline: String,
    /// Who mounts the root disk, as manifests said before 0.1: the pool's kind of guest decides it. Read, and not written.
    #[serde(default, skip_serializing)]
    pub root_drive: IgnoredAny,
    /// The kernel.
    pub kernel: Artifact,
    /// The initial RAM disk.
    pub initrd: Artifact,
    /// The root file system.
    pub rootfs: Artifact,
    /// The packages in it, by name, with their versions.
    pub packages: BTreeMap<String, String>,
    /// A hash of what it was made from, known before it is made: the recipe and the versions that apt would take.
    pub inputs: String,
}

impl Manifest {
    /// What it takes, in bytes; the root file system has holes.
    pub fn size_bytes(&self) -> u64 {
        self.parts().map(|part| part.size_bytes).sum()
    }

    fn parts(&self) -> impl Iterator<Item = &Artifact> {
        [&self.kernel, &self.rootfs, &self.initrd].into_iter()
    }
}

/// Where an image's things lie.
#[derive(Debug, Clone)]
pub struct Image {
    name: ImageName,
    folder: PathBuf,
}

impl Image {
    /// The image of that name, which need not be there.
    pub fn of(roots: &Roots, name: &ImageName) -> Self {
        Self { name: name.clone(), folder: roots.images().join(name) }
    }

    /// The lock: exclusive for who makes it, shared for who copies it.
    ///
    /// # Errors
    /// When somebody else holds it for too long.
    pub fn lock(&self, roots: &Roots, sharing: Sharing) -> Result<Lock, StoreError> {
        let name = &self.name;
        let file = roots.lock_file(&format!("image.{name}"));
        Lock::take(&file, &format!("image {name}"), sharing, roots.lock_timeout)
    }

    /// The folder of its current content, and its manifest.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] where there is no such image, [`ImageError::Changed`] where its files are not those that
    /// were made.
    pub fn current(&self, roots: &Roots) -> Result<(PathBuf, Manifest), ImageError> {
        let link = self.folder.join("current");
        let target = match fs::read_link(&link) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::Unknown { name: self.name.clone(), there: names(roots)? });
            }
            Err(source) => return Err(StoreError::io("read", &link)(source).into()),
        };
        let folder = self.folder.join(target.file_name().unwrap_or_default());
        let manifest: Manifest = store::read(&folder.join("manifest.json"))?;
        for part in manifest.parts() {
            let path = folder.join(&part.file);
            let why = match fs::metadata(&path) {
                Ok(meta) if meta.len() == part.size_bytes => continue,
                Ok(meta) => format!("it has {} bytes instead of {}", meta.len(), part.size_bytes),
                Err(error) => error.to_string(),
            };
            return Err(ImageError::Changed { name: self.name.clone(), path, why });
        }
        Ok((folder, manifest))
    }

    /// What a pool imports of it.
    ///
    /// # Errors
    /// As [`Self::current`].
    pub fn sources(&self, roots: &Roots) -> Result<(Sources, Manifest), ImageError> {
        let (folder, manifest) = self.current(roots)?;
        let sources = Sources {
            kernel: folder.join(&manifest.kernel.file),
            rootfs: folder.join(&manifest.rootfs.file),
            initrd: Some(folder.join(&manifest.initrd.file)),
            cmdline: manifest.cmdline.clone(),
        };
        Ok((sources, manifest))
    }

    /// Puts a folder that is whole in its place, makes it the current one, and removes the one before. The caller holds the
    /// lock. The same content is there already: then only its manifest is written.
    fn place(&self, new: &Path, manifest: &Manifest) -> Result<(), StoreError> {
        let place = self.folder.join(&manifest.revision);
        if place.join("manifest.json").exists() {
            store::write(&place.join("manifest.json"), manifest)?;
        } else {
            store::write(&new.join("manifest.json"), manifest)?;
            // A folder without a manifest is what a power cut left.
            store::remove_folder(&place)?;
            fs::rename(new, &place).map_err(StoreError::io("rename", new))?;
            store::sync_folder(&self.folder)?;
        }
        failpoint::hit("image", "in-place").map_err(StoreError::io("make", &place))?;
        let link = self.folder.join("current");
        let new = store::unfinished(&link);
        store::remove_file(&new)?;
        symlink(&manifest.revision, &new).map_err(StoreError::io("link", &new))?;
        fs::rename(&new, &link).map_err(StoreError::io("switch", &link))?;
        store::sync_folder(&self.folder)?;
        failpoint::hit("image", "switched").map_err(StoreError::io("make", &link))?;
        let current: &str = manifest.revision.as_ref();
        let old = |name: &str| !name.starts_with('.') && name != "current" && name != current;
        for name in store::names(&self.folder, old)? {
            store::vanish(&self.folder.join(name))?;
        }
        Ok(())
    }
}

/// The names of all images.
///
/// # Errors
/// When the folder cannot be read.
pub fn names(roots: &Roots) -> Result<Vec<ImageName>, StoreError> {
    let names = store::names(&roots.images(), |name| !name.starts_with('.'))?;
    let made = |name: &ImageName| roots.images().join(name).join("current").is_symlink();
    Ok(names.into_iter().filter_map(|name| name.parse().ok()).filter(made).collect())
}

/// The folders in which something may be left unfinished.
///
/// # Errors
/// When one cannot be read.
pub fn folders(roots: &Roots) -> Result<Vec<PathBuf>, StoreError> {
    let names = store::names(&roots.images(), |name| !name.starts_with('.'))?;
    Ok(names.into_iter().map(|name| roots.images().join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infra::config::Environment;

    fn manifest(name: &ImageName, digit: char) -> Manifest {
        let part =
            |file: &str| Artifact { file: file.into(), size_bytes: 3, sha256: String::new(), mtime_ns: None };
        Manifest {
            schema_version: Schema,
            name: name.clone(),
            revision: digit.to_string().repeat(64).parse().unwrap(),
            created_at: Timestamp::UNIX_EPOCH,
            release: "bookworm".into(),
            kernel_version: "6.1.0".into(),
            arch: "x86_64".into(),
            agent: AgentMode::None,
            cmdline: "quiet".into(),
            root_drive: IgnoredAny,
            kernel: part("vmlinux"),
            initrd: part("initrd"),
            rootfs: part("rootfs.ext4"),
            packages: BTreeMap::new(),
            inputs: String::new(),
        }
    }

    /// `root_drive` said what nobody asked for.
    #[test]
    fn a_manifest_of_before_is_read() {
        let now = serde_json::to_value(manifest(&"debian".parse().unwrap(), 'a')).unwrap();
        assert!(now.get("root_drive").is_none());
        let mut before = now.clone();
        before["root_drive"] = serde_json::json!({ "is_root_device": false, "is_read_only": false });
        let read: Manifest = serde_json::from_value(before.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), now);
        before["root_device"] = before["root_drive"].take();
        assert!(serde_json::from_value::<Manifest>(before).is_err());
    }

    #[test]
    fn the_newest_takes_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), &Environment::default()).unwrap();
        let name: ImageName = "debian".parse().unwrap();
        let image = Image::of(&roots, &name);
        assert!(matches!(image.current(&roots), Err(ImageError::Unknown { .. })));
        for digit in ['a', 'b', 'b'] {
            let new = store::unfinished(&image.folder.join("work"));
            store::make_folder(&new).unwrap();
            for file in ["vmlinux", "initrd", "rootfs.ext4"] {
                fs::write(new.join(file), "abc").unwrap();
            }
            image.place(&new, &manifest(&name, digit)).unwrap();
            assert_eq!(image.current(&roots).unwrap().1, manifest(&name, digit));
            store::remove_folder(&new).unwrap();
        }
        assert_eq!(store::names(&image.folder, |_| true).unwrap(), ["b".repeat(64), "current".into()]);
        assert_eq!(names(&roots).unwrap(), [name]);
        fs::write(image.folder.join("current/initrd"), "").unwrap();
        assert!(matches!(image.current(&roots), Err(ImageError::Changed { .. })));
    }
}
