//! A pool's base snapshots: freshly booted guests that know nothing yet of who they will be, named by the hash of all
//! that they depend on.
//!
//! ```text
//! snapshots/base/<key>/vmstate    \
//!                      mem         | read-only; see vm::snapshot
//!                      sums       /
//!                      meta.json   whose it is, what it depends on, where it comes from
//! ```
//! A base is made beside its place ([`begin`]) and renamed when all of it is synced ([`Draft::put`]); nothing changes it
//! afterwards. It is kept while it is the current one of its pool or an instance stands on it. Who loads one holds the
//! pool's lock, shared, until the instance's record names it: [`collect`] runs under the same lock, alone.
//!
//! The memory of a sleeper may be laid over that of its base. So a base that an instance stands on is replaced by nothing,
//! not even by one of the same key: another boot of the same guest has another memory.

mod key;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::key::Ingredients;
use super::{
    artifacts::Artifacts,
    config::{Pool, VmmKind},
    lifecycle::{PoolError, lock},
};
use crate::{
    infra::{config::Roots, failpoint},
    store::{self, Schema, Sharing, StoreError},
    vm::{
        instance::{
            config::{Instance, paths},
            lifecycle::load_pool,
        },
        naming::{BaseKey, PoolPath},
        pool,
        room::{self, NodeConfig},
        snapshot::{Image, Origin, SnapshotError, Sums, cpu_model, data_pages},
    },
    vmm::install,
};

/// What the VMM's state is called.
pub const VMSTATE: &str = "vmstate";
/// What the memory is called.
pub const MEM: &str = "mem";
/// What the sums of its pages are called.
pub const SUMS: &str = "sums";
const META: &str = "meta.json";

/// `meta.json`: a base that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// Its name.
    pub key: BaseKey,
    /// Whose it is: nothing of a snapshot is shared between pools.
    pub pool: PoolPath,
    /// When it was made.
    pub created_at: Timestamp,
    /// What the key was made of.
    pub ingredients: Ingredients,
    /// Where it comes from.
    pub origin: Origin,
    /// Its files.
    pub image: Image,
}

/// Where a pool's base snapshots lie.
#[derive(Debug, Clone)]
pub struct Bases {
    pool: PoolPath,
    folder: PathBuf,
}

impl Bases {
    /// Those of this pool.
    pub fn of(roots: &Roots, pool: &PoolPath) -> Self {
        Self { pool: pool.clone(), folder: pool::config::folder(roots, pool).join("snapshots/base") }
    }

    /// The folder in which they lie, and in which something may be left unfinished.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a base.
    pub fn place(&self, key: &BaseKey) -> PathBuf {
        self.folder.join(key)
    }

    /// The keys of all, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn all(&self) -> Result<Vec<BaseKey>, StoreError> {
        let names = store::names(&self.folder, |name| !name.starts_with('.'))?;
        Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// A base that may be loaded on this machine; `None` where there is none of that key. The caller holds the pool's lock.
    ///
    /// # Errors
    /// [`SnapshotError`] says why it may not: what is damaged, another pool's or another CPU's is never returned.
    pub fn get(&self, key: &BaseKey) -> Result<Option<Base>, SnapshotError> {
        let Some(base) = self.load(key)? else { return Ok(None) };
        base.origin.check()?;
        base.image.check(&self.place(key))?;
        Ok(Some(base))
    }

    /// Is every byte of it what was written? False where there is none of that key. The caller holds the pool's lock.
    ///
    /// # Errors
    /// [`SnapshotError`] says what is not.
    pub fn scrub(&self, key: &BaseKey) -> Result<bool, SnapshotError> {
        let Some(base) = self.load(key)? else { return Ok(false) };
        base.image.scrub(&self.place(key))?;
        Ok(true)
    }

    /// What `meta.json` says, if that is what was written for this place.
    fn load(&self, key: &BaseKey) -> Result<Option<Base>, SnapshotError> {
        let place = self.place(key);
        let path = place.join(META);
        let Some(base) = store::read_if_there::<Base>(&path)? else {
            return match place.exists() {
                true => {
                    let why = "it is gone, and its folder is there".into();
                    Err(SnapshotError::Damaged { path, why })
                }
                false => Ok(None),
            };
        };
        self.check(key, &base)?;
        Ok(Some(base))
    }

    /// Is it this pool's, and what its key says?
    fn check(&self, key: &BaseKey, base: &Base) -> Result<(), SnapshotError> {
        let path = self.place(key).join(META);
        if base.pool != self.pool {
            return Err(SnapshotError::Foreign { path, of: base.pool.to_string() });
        }
        let Origin { vmm, vmm_version, cpu_model, .. } = &base.origin;
        let made_of = &base.ingredients;
        let why = if base.key != *key || made_of.key() != *key {
            "it is that of another key"
        } else if (vmm, vmm_version, cpu_model) != (&made_of.vmm, &made_of.vmm_version, &made_of.cpu_model) {
            "it comes from something else than its key says"
        } else if base.image.files() != [VMSTATE, MEM, SUMS] {
            // Names with a path in them would lead to somebody else's memory.
            "it names files that are not its own"
        } else {
            return Ok(());
        };
        Err(SnapshotError::Damaged { path, why: why.into() })
    }

    /// Removes a base. The caller holds the pool's lock, alone, and knows that nobody needs it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, key: &BaseKey) -> Result<(), StoreError> {
        store::vanish(&self.place(key))
    }

    /// What all of them take of the disk quota, in bytes: the lengths of their files, whatever is in those, so that one
    /// that is damaged is in nobody's way.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn size_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0_u64;
        for place in self.all()?.iter().map(|key| self.place(key)) {
            for name in store::names(&place, |_| true)? {
                // One that is collected at this moment takes nothing any more.
                let length = fs::metadata(place.join(name)).map_or(0, |meta| meta.len());
                bytes = bytes.saturating_add(length);
            }
        }
        Ok(bytes)
    }
}

/// What the base depends on that a pool would start from now; `None` where it has nothing to run yet, or the version of its
/// VMM is not known.
///
/// # Errors
/// When the pool or its revision cannot be read.
pub fn current(roots: &Roots, pool: &PoolPath) -> Result<Option<Ingredients>, StoreError> {
    let artifacts = Artifacts::of(roots, pool);
    let Some(revision) = artifacts.current()? else { return Ok(None) };
    let pool = Pool::load(roots, pool)?;
    let version = match pool.vmm {
        VmmKind::Firecracker => pool.vmm_version.clone(),
        // It has the version of this program.
        VmmKind::Sim => install::sim(None).ok().map(|sim| sim.version),
    };
    let Some(version) = version else { return Ok(None) };
    let manifest = artifacts.manifest(&revision)?;
    Ok(Some(Ingredients::of(&pool, pool.instance_resources, &manifest, &version, &cpu_model())))
}

/// The bases on which instances of a pool stand.
///
/// # Errors
/// When an instance's record cannot be read: what it stands on is not known then.
pub fn references(roots: &Roots, pool: &PoolPath) -> Result<BTreeSet<BaseKey>, StoreError> {
    let mut keys = BTreeSet::new();
    for path in paths(roots, pool)? {
        let instance = Instance::load_if_there(roots, &path)?;
        keys.extend(instance.and_then(|instance| instance.stands_on().cloned()));
    }
    Ok(keys)
}

/// Removes the bases that are neither current nor any instance's. Returns those removed. The caller holds the pool's lock,
/// alone.
///
/// # Errors
/// When it is not known which are needed, or one cannot be removed.
pub fn collect(roots: &Roots, pool: &PoolPath) -> Result<Vec<BaseKey>, StoreError> {
    let bases = Bases::of(roots, pool);
    let mut surplus = bases.all()?;
    if surplus.is_empty() {
        return Ok(surplus);
    }
    let mut needed = references(roots, pool)?;
    needed.extend(current(roots, pool)?.map(|ingredients| ingredients.key()));
    surplus.retain(|key| !needed.contains(key));
    for key in &surplus {
        bases.remove(key)?;
    }
    Ok(surplus)
}

/// Makes the place in which a base is made: whoever makes it writes [`VMSTATE`] and [`MEM`] there, and calls
/// [`Draft::put`].
///
/// # Errors
/// When there is no such pool, or no room for the memory.
pub fn begin(roots: &Roots, pool: &PoolPath, ingredients: Ingredients) -> Result<Draft, PoolError> {
    // Drafts of one key at one time, of one process: each has a place of its own.
    static DRAFTS: AtomicU32 = AtomicU32::new(0);
    let _lock = lock(roots, pool, Sharing::Shared)?;
    let (tenant, _) = load_pool(roots, pool)?;
    let needed_mib = ingredients.resources.mem_mib;
    room::check_disk(roots, &NodeConfig::load(roots)?, needed_mib)?;
    room::check_quota(roots, &tenant, needed_mib)?;
    let bases = Bases::of(roots, pool);
    store::make_folder(&bases.folder)?;
    store::sweep(&bases.folder)?;
    let name = format!("{}.{}", ingredients.key(), DRAFTS.fetch_add(1, Ordering::Relaxed));
    let folder = store::unfinished(&bases.folder.join(name));
    // A process of the same number may have left one.
    store::remove_folder(&folder)?;
    store::make_folder(&folder)?;
    Ok(Draft { bases, folder, ingredients })
}

/// A base that is being made. Dropped before it is put into its place, it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    bases: Bases,
    folder: PathBuf,
    ingredients: Ingredients,
}

impl Draft {
    /// Where its files are written.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the sums, syncs all of it and puts it into its place. True where it is new: where there is one of that key
    /// already that is whole, that one stays and is returned. Takes the pool's lock for a moment; the caller has none.
    ///
    /// # Errors
    /// [`SnapshotError`] says what the draft lacks. Also where the one that is there is damaged and an instance stands on it:
    /// another one in its place would be loaded under that instance's changes.
    pub fn put(self, roots: &Roots) -> Result<(Base, bool), SnapshotError> {
        let base = self.finish(roots)?;
        failpoint::hit("base", "written").map_err(StoreError::io("make", &self.folder))?;
        let place = self.bases.place(&base.key);
        let _lock = lock(roots, &base.pool, Sharing::Exclusive)?;
        match self.bases.get(&base.key) {
            Ok(Some(there)) => return Ok((there, false)),
            Ok(None) => {}
            Err(error) => {
                if !is_damage(&error) || references(roots, &base.pool)?.contains(&base.key) {
                    return Err(error);
                }
                self.bases.remove(&base.key)?;
            }
        }
        fs::rename(&self.folder, &place).map_err(StoreError::io("rename", &self.folder))?;
        store::sync_folder(&self.bases.folder)?;
        failpoint::hit("base", "in-place").map_err(StoreError::io("make", &place))?;
        Ok((base, true))
    }

    /// Everything but the name.
    fn finish(&self, roots: &Roots) -> Result<Base, SnapshotError> {
        let mem = self.folder.join(MEM);
        let memory = File::open(&mem).map_err(StoreError::io("open", &mem))?;
        let length = memory.metadata().map_err(StoreError::io("look at", &mem))?.len();
        let whole = self.ingredients.resources.mem_mib << 20;
        if length != whole {
            let why = format!("it has {length} bytes in place of {whole}");
            return Err(SnapshotError::Damaged { path: mem, why });
        }
        let pages = data_pages(&memory).map_err(StoreError::io("look at", &mem))?;
        Sums::in_file(&self.folder.join(SUMS)).update(&memory, length, &pages)?;
        for name in [VMSTATE, MEM, SUMS] {
            let path = self.folder.join(name);
            read_only(&path)?;
            File::open(&path).and_then(|file| file.sync_all()).map_err(StoreError::io("sync", &path))?;
        }
        let base = Base {
            schema_version: Schema,
            key: self.ingredients.key(),
            pool: self.bases.pool.clone(),
            created_at: roots.now(),
            origin: Origin::here(self.ingredients.vmm, &self.ingredients.vmm_version),
            ingredients: self.ingredients.clone(),
            image: Image::of(&self.folder, VMSTATE, MEM, SUMS)?,
        };
        self.bases.check(&base.key, &base)?;
        let meta = self.folder.join(META);
        store::write(&meta, &base)?;
        read_only(&meta)?;
        Ok(base)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone where it was put into its place; what cannot be removed is swept when this process is no more.
        let _ = store::remove_folder(&self.folder);
    }
}

fn read_only(path: &Path) -> Result<(), StoreError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).map_err(StoreError::io("write", path))
}

/// Is that an error of what was written, and not of reading it? A base is made again where it is damaged; one of a newer
/// mvm, or one that cannot be read at this moment, is none of that.
fn is_damage(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::Damaged { .. }
        | SnapshotError::Foreign { .. }
        | SnapshotError::Store(StoreError::Damaged { .. }) => true,
        SnapshotError::OtherCpu { .. } | SnapshotError::DiskChanged { .. } | SnapshotError::Store(_) => false,
    }
}

#[cfg(test)]
mod tests;
