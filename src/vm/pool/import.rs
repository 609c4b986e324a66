//! Bringing a revision in: of files, or of an image that is unpacked for it.
//!
//! ```text
//! check → (unpack → ext4) → copy beside the revisions │ pool's lock: quota → in its place → current
//! ```
//!
//! What takes long is done before the pool's lock is taken, in folders that tell whose they are; a kill leaves nothing that
//! the next import, or `node recover`, does not remove.

use std::{fs, path::PathBuf};

use super::{
    artifacts::{Artifacts, Draft, Manifest, Origin, Sources},
    checks,
    config::{AgentMode, VmmKind},
    lifecycle::{self as pool, PoolError},
};
use crate::{
    infra::{config::Roots, failpoint},
    security::audit::{Entry, Phase},
    store::{self, Lock, Sharing, StoreError},
    vm::{
        image::{
            Image,
            oci::{
                self, Unpacked,
                limits::{Limits, Reason},
            },
        },
        instance::lifecycle::{self, Operator},
        naming::{ImageName, PoolPath},
        room::{self, NodeConfig},
        tenant::config::Tenant,
    },
    vmm::install::{self, InstallError},
};

/// What keeps a pool where it is while an image is unpacked in its folder: shared by those who do that, and alone with who
/// destroys the pool. Taken before every other lock.
///
/// # Errors
/// When somebody else holds it for too long.
pub fn lock(roots: &Roots, path: &PoolPath, sharing: Sharing) -> Result<Lock, StoreError> {
    let name = format!("import.{}.{}", path.tenant, path.pool);
    Lock::take(&roots.lock_file(&name), &format!("pool {path}"), sharing, roots.lock_timeout)
}

/// Brings files in as the pool's new current revision.
///
/// # Errors
/// The old revision stays current where it fails.
pub fn files(operator: &Operator, path: &PoolPath, sources: &Sources) -> Result<Manifest, PoolError> {
    let roots = &operator.roots;
    lifecycle::load_pool(roots, path)?;
    let _lock = pool::lock(roots, path, Sharing::Exclusive)?;
    let (tenant, _) = lifecycle::load_pool(roots, path)?;
    let needed_mib = sources.size_bytes()?.div_ceil(1 << 20);
    room::check_disk(roots, &NodeConfig::load(roots)?, needed_mib)?;
    room::check_quota(roots, &tenant, needed_mib)?;
    let artifacts = Artifacts::of(roots, path);
    let draft = artifacts.draft(roots, sources, Origin::Import)?;
    make_current(operator, path, &artifacts, draft, None)
}

/// Where the kernel and the initial RAM disk of an unpacked image come from.
#[derive(Debug, Clone)]
pub enum Kernel {
    /// From files.
    Files {
        /// The kernel.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: PathBuf,
    },
    /// From a guest image of mvm's own.
    Image(ImageName),
}

/// What is unpacked, and with what it starts.
#[derive(Debug, Clone)]
pub struct OciSource {
    /// The archive with the image.
    pub archive: PathBuf,
    /// Where the kernel comes from.
    pub kernel: Kernel,
    /// The kernel's command line; that of the guest image, where none is given.
    pub cmdline: Option<String>,
}

/// The kernel's command line where neither a person nor an image says one.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet loglevel=1";

impl OciSource {
    /// What the revision consists of, with this root file system. The lock, where there is one, keeps the files where they
    /// are.
    fn sources(&self, roots: &Roots, rootfs: PathBuf) -> Result<(Sources, Option<Lock>), PoolError> {
        let (sources, lock) = match &self.kernel {
            Kernel::Files { kernel, initrd } => {
                let (kernel, initrd) = (kernel.clone(), Some(initrd.clone()));
                (Sources { kernel, initrd, rootfs, cmdline: DEFAULT_CMDLINE.to_owned() }, None)
            }
            Kernel::Image(name) => {
                let image = Image::of(roots, name);
                let lock = image.lock(roots, Sharing::Shared)?;
                let (sources, _) = image.sources(roots)?;
                (Sources { rootfs, ..sources }, Some(lock))
            }
        };
        let cmdline = self.cmdline.clone().unwrap_or(sources.cmdline);
        Ok((Sources { cmdline, ..sources }, lock))
    }
}

/// Unpacks an image, and makes it the pool's new current revision. `step` is told what is going on.
///
/// # Errors
/// The old revision stays current where it fails, and nothing of the image is left.
pub fn oci(
    operator: &Operator,
    path: &PoolPath,
    source: &OciSource,
    step: &mut dyn FnMut(&'static str),
) -> Result<(Manifest, Unpacked), PoolError> {
    let roots = &operator.roots;
    lifecycle::load_pool(roots, path)?;
    let _stays = lock(roots, path, Sharing::Shared)?;
    let (tenant, pool) = lifecycle::load_pool(roots, path)?;
    if pool.agent == AgentMode::None {
        // Such an image has no init of its own.
        return Err(PoolError::NoAgent { path: path.clone() });
    }
    let limits = limits(roots, &tenant, source)?;
    let artifacts = Artifacts::of(roots, path);
    let work = artifacts.work_folder("oci")?;
    let made = (|| {
        failpoint::hit("oci", "begun")?;
        let (rootfs, unpacked) = oci::make(roots, &source.archive, &work, &limits, step)?;
        step("copying and checking");
        let (sources, _copying) = source.sources(roots, rootfs)?;
        Ok::<_, PoolError>((artifacts.draft(roots, &sources, Origin::Oci)?, unpacked))
    })();
    let removed = store::remove_folder(&work);
    let (draft, unpacked) = made?;
    if let Err(error) = removed {
        draft.discard()?;
        return Err(error.into());
    }
    let manifest = place(operator, path, &artifacts, draft, &unpacked)?;
    Ok((manifest, unpacked))
}

fn place(
    operator: &Operator,
    path: &PoolPath,
    artifacts: &Artifacts,
    draft: Draft,
    unpacked: &Unpacked,
) -> Result<Manifest, PoolError> {
    let roots = &operator.roots;
    let ready = (|| {
        failpoint::hit("oci", "drafted")?;
        let lock = pool::lock(roots, path, Sharing::Exclusive)?;
        let (tenant, _) = lifecycle::load_pool(roots, path)?;
        // It may be there already: then it takes nothing more.
        if !artifacts.all()?.contains(&draft.manifest.revision) {
            room::check_quota(roots, &tenant, draft.manifest.size_bytes().div_ceil(1 << 20))?;
        }
        Ok::<_, PoolError>(lock)
    })();
    match ready {
        Ok(_lock) => make_current(operator, path, artifacts, draft, Some(unpacked)),
        Err(error) => {
            draft.discard()?;
            Err(error)
        }
    }
}

/// How large the image may be: what the quota and the disk have left, once the kernel is there too. What is wrong with the
/// kernel is said here, and not when everything is unpacked.
fn limits(roots: &Roots, tenant: &Tenant, source: &OciSource) -> Result<Limits, PoolError> {
    // Of a root file system nothing is known yet.
    let (sources, _lock) = source.sources(roots, PathBuf::new())?;
    checks::check((&sources.kernel, sources.initrd.as_deref()), &sources.cmdline)?;
    let mut kernel_bytes = 0;
    for path in [Some(&sources.kernel), sources.initrd.as_ref()].into_iter().flatten() {
        kernel_bytes += fs::metadata(path).map_err(StoreError::io("read", path))?.len();
    }
    let kernel_mib = kernel_bytes.div_ceil(1 << 20);
    let least_mib = kernel_mib + oci::least_mib();
    let node = NodeConfig::load(roots)?;
    room::check_disk(roots, &node, least_mib)?;
    room::check_quota(roots, tenant, least_mib)?;
    let used_mib = room::stored(roots, tenant)?.disk_mib;
    let quota_mib = tenant.quotas.max_disk_mib().saturating_sub(used_mib + least_mib);
    // The files and the file system made of them are there at one time.
    let room_mib = (room::free_mib(&roots.root)?.saturating_sub(node.disk_floor_mib + kernel_mib)) / 2;
    let bytes = |mib: u64| mib.saturating_mul(1 << 20);
    let quota = Reason::Quota(tenant.tenant_id.clone());
    Ok(Limits::default().at_most(bytes(quota_mib), quota).at_most(bytes(room_mib), Reason::Room))
}

/// Gives a draft its place and makes it current. The caller holds the pool's lock.
fn make_current(
    operator: &Operator,
    path: &PoolPath,
    artifacts: &Artifacts,
    draft: Draft,
    unpacked: Option<&Unpacked>,
) -> Result<Manifest, PoolError> {
    let roots = &operator.roots;
    let manifest = artifacts.place(draft)?;
    // The first revision fixes the VMM's version. Where none is installed yet, the first start does.
    let (_, pool) = lifecycle::load_pool(roots, path)?;
    if pool.vmm_version.is_none() && pool.vmm == VmmKind::Firecracker {
        match install::firecracker(roots, None) {
            Ok(program) => lifecycle::fix_version(operator, path, &program.version)?,
            Err(InstallError::None) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut entry = Entry::new("pool.import", path, Phase::Intent);
    entry.revision = Some(manifest.revision.to_string());
    let from = artifacts.current()?.map(|current| format!("from {}", current.short()));
    entry.detail =
        lifecycle::joined([from, unpacked.map(|unpacked| format!("oci image {}", unpacked.image))]);
    pool::switch(roots, path, entry, (&manifest.revision, "import"))?;
    Ok(manifest)
}
