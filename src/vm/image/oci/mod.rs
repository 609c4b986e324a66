//! Images from elsewhere, as archives have them: an OCI layout or what `docker save` writes becomes an ext4 for a guest's root.
//!
//! ```text
//! archive → which image → its configuration → layers, one over the other → workload.json → ext4
//! ```
//!
//! Nothing in an archive is trusted: see `limits` for how much of it there may be, `tree` for how nothing lands outside. A
//! layer is read once, and what was read of it counts only if its digests are right: all of it lies in a work folder until then,
//! which goes with the first error. Memory does not grow with the image but by some bytes for each of its files.
//!
//! The same archive gives the same file system: nothing of the time or the machine goes into it.

mod archive;
pub mod config;
mod digest;
mod entries;
mod error;
mod layers;
mod layout;
mod left;
pub mod limits;
mod names;
mod pax;
mod stream;
mod tree;

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
};

use mvm_proto::settings::Workload;
use serde::Serialize;

use self::{
    archive::Archive,
    config::{Config, ConfigError},
    digest::Sum,
    entries::{Entries, TarError},
    layers::{Counts, LayerError, Refusal},
    layout::{Blob, Found},
    left::Left,
    limits::{Limits, MAX_FOLDER},
    names::{Name, shown},
    stream::{Metered, Packing, Section, Unpacking},
    tree::{Meta, Size, Tree, TreeError},
};
pub use self::{digest::Digest, error::OciError};
use super::{
    ImageError,
    ext4::{self, Content},
};
use crate::{
    infra::{config::Roots, failpoint, shell},
    store::{self, StoreError},
    vm::room::{self, NodeConfig},
};

/// Of what an image was made, and what was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unpacked {
    /// The digest that names the image.
    #[serde(serialize_with = "as_text")]
    pub image: Digest,
    /// Its layers.
    pub layers: usize,
    /// What was in them.
    #[serde(flatten)]
    pub counts: Counts,
    /// What its guests run.
    pub workload: Workload,
}

fn as_text<S: serde::Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(digest)
}

/// Free space in the file system: for guests that write to a copy of it, and for what ext4 has of its own.
const SLACK_BLOCKS: u64 = (64 << 20) / 4096;
const SLACK_INODES: u64 = 4096;

/// The least that an image's file system takes, in MiB.
pub fn least_mib() -> u64 {
    form(1, 1).size_mib
}

/// Makes a root file system of the archive's image in the folder `work`, which is there, is this process's own and goes with it
/// where this fails. Returns the file, and of what it was made. `step` is told what is going on.
///
/// # Errors
/// [`OciError`] says what is wrong with the archive, or what is lacking here.
pub fn make(
    roots: &Roots,
    archive: &Path,
    work: &Path,
    limits: &Limits,
    step: &mut dyn FnMut(&'static str),
) -> Result<(PathBuf, Unpacked), OciError> {
    let point = |name: &str| failpoint::hit("oci", name).map_err(StoreError::io("unpack", archive));
    check_machine()?;
    step("looking what is in the archive");
    let spool = work.join("archive");
    let archive_file = Archive::open(archive, &spool, limits)?;
    point("opened")?;
    step("unpacking the layers");
    let (tree, unpacked) = unpack(&archive_file, &work.join("tree"), limits)?;
    drop(archive_file);
    store::remove_file(&spool)?;
    point("unpacked")?;
    step("making the root file system");
    let image = work.join("rootfs.ext4");
    make_file_system(roots, archive, &tree, &image, &unpacked)?;
    point("made")?;
    // It is as large as the file system, and that will be copied nowhere before this is gone.
    store::remove_folder(tree.path())?;
    point("tree-removed")?;
    Ok((image, unpacked))
}

fn check_machine() -> Result<(), ImageError> {
    if shell::find("mke2fs").is_none() {
        return Err(ImageError::Tools { tools: vec![("mke2fs", "e2fsprogs")] });
    }
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(ImageError::NotRoot),
    }
}

/// Unpacks the archive's image to a new tree at `place`.
fn unpack(archive: &Archive, place: &Path, limits: &Limits) -> Result<(Tree, Unpacked), OciError> {
    let path = archive.path();
    let Found { id, config, layers } = layout::find(archive)?;
    let config = Config::parse(&config).map_err(|source| match source {
        ConfigError::Platform { found, host } => OciError::Platform { path: path.to_path_buf(), found, host },
        source => OciError::Config { path: path.to_path_buf(), source },
    })?;
    if config.layers.len() != layers.len() {
        let why =
            format!("its configuration tells of {} layers, and it has {}", config.layers.len(), layers.len());
        return Err(OciError::Damaged { path: path.to_path_buf(), why });
    }
    let in_tree = |error| of_tree(place, error);
    let tree = Tree::make(place).map_err(in_tree)?;
    let left = Left::of(limits);
    let mut counts = Counts::default();
    for (number, (blob, unpacks_to)) in layers.iter().zip(config.layers).enumerate() {
        failpoint::hit("oci", "layer").map_err(StoreError::io("unpack", path))?;
        let Some(section) = archive.section(&blob.name) else {
            return Err(OciError::Damaged { path: path.to_path_buf(), why: "a layer is missing".into() });
        };
        let length = section.left();
        let digests = lay(section, blob.digest.is_some(), &tree, &left, &mut counts)
            .map_err(|error| of_layer(archive, number + 1, blob, limits, place, error))?;
        let compare = |wanted: Option<Digest>, is: Option<Digest>| match (wanted, is) {
            (Some(wanted), Some(is)) => layout::check(archive, &blob.name, (wanted, length), (is, length)),
            _ => Ok(()),
        };
        compare(blob.digest, digests.of_blob)?;
        compare(Some(unpacks_to), digests.of_content)?;
    }
    let cannot_be = |what: String| {
        move |error| match error {
            TreeError::Io { .. } => in_tree(error),
            TreeError::Exceeded(what) => OciError::exceeded(path, limits, what),
            error => no_image(path, format!("{what} cannot be in it: {error}")),
        }
    };
    // What is added here is little, and not the image's.
    let left = Left::of(&Limits { until: limits.until, ..Limits::default() });
    // As every engine does: images seldom have a layer for the folder that their program starts in.
    tree.make_folders(&config.folder, &left)
        .map_err(cannot_be(format!("its working directory {}", shown(config.workload.cwd.as_bytes()))))?;
    write_workload(&tree, &config.workload, &left).map_err(cannot_be(Workload::FILE.to_owned()))?;
    if !can_be_ext4(&tree).map_err(in_tree)? {
        return Err(no_image(path, "its /lost+found is no folder, as every ext4 has it".into()));
    }
    let unpacked = Unpacked { image: id, layers: layers.len(), counts, workload: config.workload };
    Ok((tree, unpacked))
}

/// What was read of a layer.
struct Digests {
    of_blob: Option<Digest>,
    of_content: Option<Digest>,
}

/// Lays one layer over the tree, and says what was read.
fn lay(
    section: Section,
    with_blob: bool,
    tree: &Tree,
    left: &Left,
    counts: &mut Counts,
) -> Result<Digests, LayerError> {
    let length = section.left();
    let packing = Packing::of(section.head()?).map_err(|other| TarError::Packed(other.to_string()))?;
    // What is not packed has one digest, not two.
    let is_packed = packing != Packing::Plain;
    let (blob, content) = (Sum::new(with_blob && is_packed), Sum::new(true));
    let unpacking = Unpacking::new(blob.of(section), packing)?;
    let mut stream = Metered { input: content.of(unpacking), left };
    layers::apply(tree, &mut Entries::new(&mut stream), left, counts)?;
    // Digests are of all of it, also of what comes behind the end.
    io::copy(&mut stream, &mut io::sink())?;
    if stream.input.input.has_more()? {
        return Err(TarError::Malformed("something follows its end").into());
    }
    let (of_content, _) = content.finish();
    let (of_blob, read) = blob.finish();
    match read == length {
        true => Ok(Digests { of_blob: if is_packed { of_blob } else { of_content }, of_content }),
        false => Err(TarError::Cut.into()),
    }
}

/// What went wrong with a layer, and where.
fn of_layer(
    archive: &Archive,
    layer: usize,
    blob: &Blob,
    limits: &Limits,
    tree: &Path,
    error: LayerError,
) -> OciError {
    let path = archive.path().to_path_buf();
    let name = shown(blob.name.as_bytes());
    match error {
        LayerError::Exceeded(what) => OciError::exceeded(&path, limits, what),
        LayerError::Entry(_, Refusal::Tree(error)) if is_the_disk_s(&error) => of_tree(tree, error),
        LayerError::Entry(name, source) => OciError::Entry { path, layer, name, source },
        LayerError::Stream(TarError::Read(source)) if source.raw_os_error().is_some() => {
            StoreError::io("read", &path)(source).into()
        }
        LayerError::Stream(TarError::Read(source)) => {
            let why = format!("layer {layer}, {name}: {}", shown(source.to_string().as_bytes()));
            OciError::Damaged { path, why }
        }
        LayerError::Stream(error) => {
            OciError::Damaged { path, why: format!("layer {layer}, {name}: {error}") }
        }
    }
}

/// Is it the disk that has to be looked after, and not the image?
fn is_the_disk_s(error: &TreeError) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let TreeError::Io { source, .. } = error else { return false };
    matches!(source.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | PermissionDenied)
}

fn of_tree(tree: &Path, error: TreeError) -> OciError {
    match error {
        TreeError::Io { action, source } => StoreError::io(action, tree)(source).into(),
        error => no_image(tree, error.to_string()),
    }
}

fn no_image(path: &Path, why: String) -> OciError {
    OciError::NotAnImage { path: path.to_path_buf(), why }
}

/// Writes what the guest runs. `/etc/mvm` is mvm's: what an image has there goes.
fn write_workload(tree: &Tree, workload: &Workload, left: &Left) -> Result<(), TreeError> {
    let wrong = |error: serde_json::Error| TreeError::Io { action: "write", source: error.into() };
    let mut bytes = serde_json::to_vec(workload).map_err(wrong)?;
    bytes.push(b'\n');
    let name = |text: &str| {
        let named = Name::parse(text.as_bytes());
        named.map_err(|error| TreeError::Io { action: "name", source: io::Error::other(error) })
    };
    let file = name(Workload::FILE)?;
    let folder = Workload::FILE.rsplit_once('/').map_or(Workload::FILE, |(folder, _)| folder);
    if let Some(folder) = tree.place(&name(folder)?, left)? {
        folder.remove()?;
        folder.make_folder(&Meta::plain(0o755))?;
    }
    match tree.place(&file, left)? {
        Some(place) => place.make_file(&Meta::plain(0o644), |file| {
            io::Write::write_all(&mut &*file, &bytes)
                .map_err(|source| TreeError::Io { action: "write", source })
        }),
        None => Ok(()),
    }
}

/// Every ext4 has a folder of its own: nothing else of an image can have its name.
fn can_be_ext4(tree: &Tree) -> Result<bool, TreeError> {
    let place = Name::parse(b"lost+found").ok().map(|name| tree.place_if_there(&name));
    let place = place.transpose()?.flatten();
    match place {
        Some(place) => Ok(place.look()?.is_none() || place.is_folder()?),
        None => Ok(true),
    }
}

fn make_file_system(
    roots: &Roots,
    archive: &Path,
    tree: &Tree,
    image: &Path,
    unpacked: &Unpacked,
) -> Result<(), OciError> {
    let Size { inodes, mut blocks } = tree.measure(MAX_FOLDER).map_err(|error| match error {
        TreeError::Io { .. } => of_tree(tree.path(), error),
        error => no_image(archive, error.to_string()),
    })?;
    // What does not fit into an inode has a block of its own.
    blocks += unpacked.counts.with_attributes;
    room::check_disk(roots, &NodeConfig::load(roots)?, blocks >> 8)?;
    let form = form(inodes, blocks);
    ext4::make(tree.path(), image, &form).map_err(|error| match error {
        // Programs do not always say in so many words that they ran out of space.
        ImageError::Step { step, .. }
            if room::free_mib(tree.path()).is_ok_and(|free| free < NEARLY_FULL_MIB) =>
        {
            ImageError::DiskFull { step }
        }
        error => error,
    })?;
    Ok(())
}

/// With less than that left, a failure is the disk's.
const NEARLY_FULL_MIB: u64 = 16;

/// A file system that holds so much, and some more.
fn form(inodes: u64, blocks: u64) -> ext4::Form {
    const INODES_IN_BLOCK: u64 = 4096 / 256;
    let inodes = inodes + SLACK_INODES.max(inodes / 10);
    let blocks = blocks + inodes.div_ceil(INODES_IN_BLOCK) + ext4::JOURNAL_MIB * 256;
    let blocks = blocks + SLACK_BLOCKS.max(blocks / 10);
    ext4::Form { size_mib: blocks.div_ceil(256), content: Content::Measured { inodes } }
}
