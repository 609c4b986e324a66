//! An instance asleep: what of it lies in `snapshots/delta`, and the two commit points.
//!
//! A sleep commits by giving `meta.json` its name: before that there is no snapshot, after it there is one. A wake takes
//! that name away again before any vCPU runs: from then on the data disk moves on, and the snapshot is never loaded
//! again. So whatever was cut off, one look at `meta.json` says what holds.
//!
//! The instance's memory file is its own alone. It is written into in place by the next sleep, also where the VMM was
//! loaded from it: it maps the file privately and writes only pages of which it has copies of its own; all others it
//! leaves as they are. A sleep that fails or is killed half-way takes nothing with it: the file was consumed by the wake.

mod archive;

use std::{
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    config::{self, Instance},
    fc_config::files,
    launch::root_disk,
};
use crate::{
    infra::{config::Roots, failpoint},
    store::{self, Schema, StoreError},
    vm::{
        naming::{InstancePath, RevisionHash},
        pool::config::AgentMode,
        snapshot::{Change, Image, Origin, SnapshotError, Stamp, taken_bytes},
    },
};

/// The folder's name, and that of the one in the VMM's directory in which snapshots are written and read.
pub const FOLDER: &str = "delta";
const META: &str = "meta.json";
/// What `meta.json` is called once its snapshot was loaded: it tells what the guest that goes on was loaded from.
const CONSUMED: &str = "consumed.json";

/// `meta.json`: a snapshot that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// Whose it is.
    pub instance: InstancePath,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// The revision that it runs.
    pub revision: RevisionHash,
    /// Where it comes from.
    pub origin: Origin,
    /// Its files.
    pub image: Image,
    /// The disks as the guest left them.
    pub disks: Vec<Stamp>,
    /// How much of the memory may have changed since the snapshot before, in bytes; all that is there, where the VMM had not
    /// mapped the file.
    pub written_bytes: u64,
    /// The memory, compressed; the memory file itself is not there then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Stamp>,
}

/// `instances/<i>/snapshots/delta`.
pub fn folder(roots: &Roots, path: &InstancePath) -> PathBuf {
    config::folder(roots, path).join("snapshots").join(FOLDER)
}

/// A snapshot's file, as its VMM knows it.
pub fn name(file: &str) -> String {
    format!("{FOLDER}/{file}")
}

/// The disks of an instance that runs this revision, as they are now.
///
/// # Errors
/// When one cannot be looked at.
pub fn disks(roots: &Roots, instance: &Instance, revision: &RevisionHash) -> Result<Vec<Stamp>, StoreError> {
    let volumes = volumes(roots, &instance.path());
    disk_names(instance, revision).map(|name| Stamp::of(&volumes, &name)).collect()
}

/// Brings to the disk what a snapshot relies on and no VMM syncs: what the guest wrote to its disks, and the names of the
/// folders above the snapshot's own.
///
/// # Errors
/// When one cannot be synced.
pub fn sync_beside(roots: &Roots, instance: &Instance, revision: &RevisionHash) -> Result<(), StoreError> {
    let path = instance.path();
    let volumes = volumes(roots, &path);
    for name in disk_names(instance, revision) {
        let disk = volumes.join(name);
        fs::File::open(&disk).and_then(|disk| disk.sync_data()).map_err(StoreError::io("sync", &disk))?;
    }
    folder(roots, &path).ancestors().skip(1).take(2).try_for_each(store::sync_folder)
}

fn disk_names(instance: &Instance, revision: &RevisionHash) -> impl Iterator<Item = String> {
    let data = (instance.resources.data_disk_mib > 0).then(|| files::DATA.to_owned());
    let root = (instance.agent == AgentMode::None).then(|| root_disk(revision.short()));
    [root, data].into_iter().flatten()
}

fn volumes(roots: &Roots, path: &InstancePath) -> PathBuf {
    config::folder(roots, path).join("volumes")
}

impl Delta {
    /// The snapshot of an instance, if it has one that can be loaded.
    ///
    /// # Errors
    /// When its `meta.json` cannot be read, or is another instance's: what it names lies elsewhere, and is not touched.
    pub fn load(roots: &Roots, path: &InstancePath) -> Result<Option<Self>, StoreError> {
        let file = folder(roots, path).join(META);
        match store::read_if_there::<Self>(&file)? {
            Some(delta) if delta.instance != *path => {
                let why = format!("it is of the snapshot of {}", delta.instance);
                Err(StoreError::Damaged { path: file, why })
            }
            delta => Ok(delta),
        }
    }

    /// Has every byte compared before it is loaded: what a scrub found must not be believed for its time alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn distrust(&mut self, roots: &Roots) -> Result<(), StoreError> {
        self.image.mem.mtime_ns = 0;
        self.image.sums.mtime_ns = 0;
        self.commit(roots)
    }

    /// Writes it down. This is the commit of a sleep.
    ///
    /// # Errors
    /// There is no snapshot where it fails; but for a folder that cannot be synced.
    pub fn commit(&self, roots: &Roots) -> Result<(), StoreError> {
        store::write(&folder(roots, &self.instance).join(META), self)
    }

    /// Takes it back for ever. This is the commit of a wake, durable before any vCPU runs.
    ///
    /// # Errors
    /// Where it fails, it may be either; [`Self::give_back`] makes it as before.
    pub fn consume(&self, roots: &Roots) -> Result<(), StoreError> {
        let folder = folder(roots, &self.instance);
        let meta = folder.join(META);
        fs::rename(&meta, folder.join(CONSUMED)).map_err(StoreError::io("rename", &meta))?;
        failpoint::hit("consume", "renamed").map_err(StoreError::io("sync", &folder))?;
        store::sync_folder(&folder)
    }

    /// Takes a wake's commit back, before any vCPU ran. It is well where there was none.
    ///
    /// # Errors
    /// Where it fails, it counts as consumed.
    pub fn give_back(&self, roots: &Roots) -> Result<(), StoreError> {
        let folder = folder(roots, &self.instance);
        let consumed = folder.join(CONSUMED);
        match consumed.exists() {
            true => fs::rename(&consumed, folder.join(META))
                .map_err(StoreError::io("rename", &consumed))
                .and_then(|()| store::sync_folder(&folder)),
            false => Ok(()),
        }
    }

    /// Takes the disks as they are now, where they are others than those that it names.
    ///
    /// # Errors
    /// When they cannot be looked at, or it not be written.
    pub fn take_disks(&mut self, roots: &Roots, instance: &Instance) -> Result<(), StoreError> {
        let now = disks(roots, instance, &self.revision)?;
        if now == self.disks {
            return Ok(());
        }
        self.disks = now;
        self.commit(roots)
    }

    /// May it be loaded on this machine, with the disks as they are? `force` takes disks whose time alone has changed.
    ///
    /// # Errors
    /// [`SnapshotError`] says why not.
    pub fn check(&self, roots: &Roots, path: &InstancePath, force: bool) -> Result<(), SnapshotError> {
        let folder = folder(roots, path);
        self.check_owner(&folder, path)?;
        self.origin.check()?;
        let volumes = volumes(roots, path);
        for disk in &self.disks {
            match disk.change(&volumes)? {
                None => {}
                Some(Change::Time | Change::Replaced) if force => {}
                Some(change) => {
                    let path = volumes.join(&disk.file);
                    let may_be_forced = matches!(change, Change::Time | Change::Replaced);
                    return Err(SnapshotError::DiskChanged { path, why: change.to_string(), may_be_forced });
                }
            }
        }
        match &self.archive {
            // Its pages are compared as they are unpacked.
            Some(archive) => archive.check_length(&folder).map(drop),
            None => self.image.check(&folder),
        }
    }

    fn check_owner(&self, folder: &Path, path: &InstancePath) -> Result<(), SnapshotError> {
        match self.instance == *path {
            true => Ok(()),
            false => Err(SnapshotError::Foreign { path: folder.join(META), of: self.instance.to_string() }),
        }
    }

    /// Is every byte of it what was written? What is archived is unpacked for that, and removed again.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is not.
    pub fn scrub(&self, roots: &Roots, path: &InstancePath) -> Result<(), SnapshotError> {
        let folder = folder(roots, path);
        self.check_owner(&folder, path)?;
        match &self.archive {
            None => self.image.scrub(&folder),
            Some(archive) => self.scrub_archive(&folder, archive),
        }
    }

    /// What it takes on the disk, in bytes.
    pub fn taken_bytes(&self, roots: &Roots) -> u64 {
        let folder = folder(roots, &self.instance);
        self.files().map(|name| taken_bytes(&folder.join(name))).sum()
    }

    fn files(&self) -> impl Iterator<Item = &str> {
        let archive = self.archive.as_ref().map(|archive| archive.file.as_str());
        let mem = self.image.mem.file.as_str();
        self.image.files().into_iter().filter(move |name| archive.is_none() || *name != mem).chain(archive)
    }

    /// [`Self::drop_others`] once `meta.json` is surely what a power cut would leave: after a failure nobody knows.
    ///
    /// # Errors
    /// When it cannot be synced, or a file not removed.
    pub fn drop_others_surely(&self, roots: &Roots) -> Result<(), StoreError> {
        store::sync_folder(&folder(roots, &self.instance))?;
        self.drop_others(roots)
    }

    /// Removes what lies beside it and does not belong to it: what earlier sleeps left.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn drop_others(&self, roots: &Roots) -> Result<(), StoreError> {
        let folder = folder(roots, &self.instance);
        let needed: Vec<&str> = self.files().chain([META]).collect();
        for name in store::names(&folder, |name| !needed.contains(&name))? {
            store::remove_file(&folder.join(name))?;
        }
        Ok(())
    }
}

/// Was a snapshot used up by a wake, and none made since? That is so while the guest goes on.
pub fn is_used_up(roots: &Roots, path: &InstancePath) -> bool {
    let folder = folder(roots, path);
    !folder.join(META).exists() && folder.join(CONSUMED).exists()
}

/// Takes the snapshot of an instance back whose guest goes on.
///
/// # Errors
/// When it cannot be removed, or that not be made durable.
pub fn forget(roots: &Roots, path: &InstancePath) -> Result<(), StoreError> {
    let folder = folder(roots, path);
    let meta = folder.join(META);
    match meta.exists() {
        true => store::remove_file(&meta).and_then(|()| store::sync_folder(&folder)),
        false => Ok(()),
    }
}

/// The snapshot that an instance was loaded from, and that is used up by that.
///
/// # Errors
/// When what is left of the snapshot cannot be read.
pub fn consumed(roots: &Roots, path: &InstancePath) -> Result<Option<Delta>, StoreError> {
    store::read_if_there(&folder(roots, path).join(CONSUMED))
}

/// Removes an instance's snapshot, and what is left of earlier ones. The snapshot's name goes first.
///
/// # Errors
/// When a file cannot be removed; calling it again goes on.
pub fn discard(roots: &Roots, path: &InstancePath) -> Result<(), StoreError> {
    forget(roots, path)?;
    store::remove_folder(&folder(roots, path))
}
