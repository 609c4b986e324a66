//! Which image an archive holds: its configuration and its layers, in order. Both forms are known, the OCI layout
//! (`index.json`, as skopeo, buildah and newer dockers write it) and that of `docker save` (`manifest.json`).
//!
//! Every document that has a digest is compared with it before it is believed. Blobs of layers are only named here.

use std::{collections::BTreeSet, io::Read};

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    archive::Archive,
    digest::Digest,
    error::OciError,
    limits::{MAX_JSON, MAX_LAYERS, MAX_NESTING},
    names::shown,
};

const INDEX: &str = "index.json";
const DOCKER: &str = "manifest.json";
const LAYOUT: &str = "oci-layout";

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// How they are packed they say themselves; this only says that they are layers of files.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// The image of an archive.
#[derive(Debug, Clone)]
pub struct Found {
    /// What names it: the digest of its manifest, or of its configuration in what `docker save` wrote.
    pub id: Digest,
    /// The configuration, as it was read.
    pub config: Vec<u8>,
    /// Its layers, the lowest first.
    pub layers: Vec<Blob>,
}

/// A layer's file in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its name in the archive.
    pub name: String,
    /// Its digest, where the archive says one. Each layer has one of what it unpacks to besides.
    pub digest: Option<Digest>,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "org.opencontainers.image.ref.name", default)]
    name: Option<String>,
    /// Says of what an attestation is one: it is no image.
    #[serde(rename = "vnd.docker.reference.type", default)]
    reference: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Layout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// This machine, in the words of images.
pub fn host() -> (&'static str, &'static str) {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    ("linux", arch)
}

/// Looks which image the archive holds.
///
/// # Errors
/// When it holds none, several, or none for this machine, or a document is not what it should be.
pub fn find(archive: &Archive) -> Result<Found, OciError> {
    let found = match (archive.section(INDEX), archive.section(DOCKER)) {
        (Some(_), _) => of_index(archive)?,
        (None, Some(_)) => of_docker(archive)?,
        (None, None) => return Err(no_image(archive, format!("it has neither {INDEX} nor {DOCKER}"))),
    };
    match found.layers.len() {
        0 => Err(no_image(archive, "its image has no layers".into())),
        1..=MAX_LAYERS => Ok(found),
        more => Err(no_image(archive, format!("its image has {more} layers: at most {MAX_LAYERS}"))),
    }
}

fn no_image(archive: &Archive, why: String) -> OciError {
    OciError::NotAnImage { path: archive.path().to_path_buf(), why }
}

fn damaged(archive: &Archive, why: String) -> OciError {
    OciError::Damaged { path: archive.path().to_path_buf(), why }
}

/// A document of the archive, which may not be long.
fn document(archive: &Archive, name: &str) -> Result<Vec<u8>, OciError> {
    let section = archive.section(name);
    let section =
        section.ok_or_else(|| damaged(archive, format!("{} is missing", shown(name.as_bytes()))))?;
    let (wanted, mut bytes) = (section.left(), Vec::new());
    if wanted > MAX_JSON {
        let name = shown(name.as_bytes());
        return Err(damaged(archive, format!("{name} has {wanted} bytes: at most {MAX_JSON}")));
    }
    section
        .take(MAX_JSON)
        .read_to_end(&mut bytes)
        .map_err(|error| OciError::reading(archive.path(), error))?;
    match bytes.len() as u64 == wanted {
        true => Ok(bytes),
        false => Err(damaged(archive, "it was cut off".into())),
    }
}

fn parse<T: DeserializeOwned>(archive: &Archive, name: &str, bytes: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (name, error) = (shown(name.as_bytes()), shown(error.to_string().as_bytes()));
        damaged(archive, format!("{name}: {error}"))
    })
}

/// A document that a descriptor tells of: of that length, with that digest.
fn described(archive: &Archive, descriptor: &Descriptor) -> Result<Vec<u8>, OciError> {
    let bytes = document(archive, &descriptor.digest.blob())?;
    let (size, digest) = (bytes.len() as u64, Digest::of(&bytes));
    check(archive, &descriptor.digest.blob(), (descriptor.digest, descriptor.size), (digest, size))?;
    Ok(bytes)
}

/// Compares what a blob should be with what was read of it.
///
/// # Errors
/// When its length or its digest is another one.
pub fn check(
    archive: &Archive,
    name: &str,
    (digest, size): (Digest, u64),
    is: (Digest, u64),
) -> Result<(), OciError> {
    let name = shown(name.as_bytes());
    if size != is.1 {
        return Err(damaged(archive, format!("{name} has {} bytes instead of {size}", is.1)));
    }
    match digest == is.0 {
        true => Ok(()),
        false => Err(damaged(archive, format!("the content of {name} has the digest {}", is.0))),
    }
}

fn of_index(archive: &Archive) -> Result<Found, OciError> {
    if archive.section(LAYOUT).is_some() {
        let layout: Layout = parse(archive, LAYOUT, &document(archive, LAYOUT)?)?;
        if !layout.version.starts_with("1.") {
            let version = shown(layout.version.as_bytes());
            return Err(no_image(archive, format!("its layout has version {version}, and 1.x is known")));
        }
    }
    let index: Index = parse(archive, INDEX, &document(archive, INDEX)?)?;
    let fitting = fitting(archive, index)?;
    let digests: BTreeSet<String> = fitting.iter().map(|one| one.digest.to_string()).collect();
    let is_one_image = digests.len() == 1 || fitting.iter().all(|one| one.platform.is_some());
    let names: BTreeSet<&str> = fitting.iter().filter_map(name_of).collect();
    if !is_one_image || names.len() > 1 && digests.len() > 1 {
        return Err(several(archive, digests.len(), names));
    }
    let mut descriptor = fitting.into_iter().next();
    for _ in 0..=MAX_NESTING {
        let Some(one) = descriptor else { break };
        if !INDEX_TYPES.contains(&one.media_type.as_str()) {
            return of_manifest(archive, &one);
        }
        let index: Index = parse(archive, &one.digest.blob(), &described(archive, &one)?)?;
        // Within an image, the first one that fits is the one, as its maker put them in that order.
        descriptor = self::fitting(archive, index)?.into_iter().next();
    }
    Err(no_image(archive, format!("its indexes lie more than {MAX_NESTING} deep in one another")))
}

fn name_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations.as_ref()?.name.as_deref()
}

fn several<'a>(archive: &Archive, number: usize, names: impl IntoIterator<Item = &'a str>) -> OciError {
    let names: Vec<String> = names.into_iter().take(8).map(|name| shown(name.as_bytes())).collect();
    OciError::Several { path: archive.path().to_path_buf(), number, names: names.join(", ") }
}

/// Those of an index that are for this machine, or do not say for which. Never none.
fn fitting(archive: &Archive, index: Index) -> Result<Vec<Descriptor>, OciError> {
    let (os, arch) = host();
    let (mut fitting, mut other) = (Vec::new(), BTreeSet::new());
    for one in index.manifests {
        let is_reference = one.annotations.as_ref().is_some_and(|notes| notes.reference.is_some());
        match &one.platform {
            _ if is_reference => {}
            Some(is) if is.os != os || is.architecture != arch => {
                other.insert(format!("{}/{}", shown(is.os.as_bytes()), shown(is.architecture.as_bytes())));
            }
            _ => fitting.push(one),
        }
    }
    match (fitting.is_empty(), other.is_empty()) {
        (false, _) => Ok(fitting),
        (true, true) => Err(no_image(archive, "its index names no image".into())),
        (true, false) => {
            let found: Vec<String> = other.into_iter().take(16).collect();
            Err(OciError::Platform {
                path: archive.path().to_path_buf(),
                found: found.join(", "),
                host: format!("{os}/{arch}"),
            })
        }
    }
}

fn of_manifest(archive: &Archive, descriptor: &Descriptor) -> Result<Found, OciError> {
    let media_type = descriptor.media_type.as_str();
    if !media_type.is_empty() && !MANIFEST_TYPES.contains(&media_type) {
        return Err(no_image(archive, format!("it holds a {}", shown(media_type.as_bytes()))));
    }
    let bytes = described(archive, descriptor)?;
    let manifest: Manifest = parse(archive, &descriptor.digest.blob(), &bytes)?;
    let config_type = manifest.config.media_type.as_str();
    if !CONFIG_TYPES.contains(&config_type) {
        let why = format!("what it holds is no image but a {}", shown(config_type.as_bytes()));
        return Err(no_image(archive, why));
    }
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        let (media_type, name) = (layer.media_type.as_str(), layer.digest.blob());
        let plain = [".gzip", "+gzip", "+zstd"].iter().find_map(|end| media_type.strip_suffix(end));
        if !LAYER_TYPES.contains(&plain.unwrap_or(media_type)) {
            let why = format!("a layer of it is a {}", shown(media_type.as_bytes()));
            return Err(no_image(archive, why));
        }
        let section = archive.section(&name);
        let length = section.ok_or_else(|| damaged(archive, format!("the layer {name} is missing")))?.left();
        if length != layer.size {
            return Err(damaged(archive, format!("{name} has {length} bytes instead of {}", layer.size)));
        }
        layers.push(Blob { name, digest: Some(layer.digest) });
    }
    let config = described(archive, &manifest.config)?;
    Ok(Found { id: descriptor.digest, config, layers })
}

/// What `docker save` wrote, before it wrote the layout as well.
fn of_docker(archive: &Archive) -> Result<Found, OciError> {
    let mut saved: Vec<Saved> = parse(archive, DOCKER, &document(archive, DOCKER)?)?;
    let (Some(image), true) = (saved.pop(), saved.is_empty()) else {
        if saved.is_empty() {
            return Err(no_image(archive, format!("{DOCKER} names no image")));
        }
        let all: Vec<Saved> = parse(archive, DOCKER, &document(archive, DOCKER)?)?;
        let names = all.iter().filter_map(|one| one.repo_tags.as_ref()?.first().map(String::as_str));
        return Err(several(archive, all.len(), names));
    };
    let config = document(archive, &image.config)?;
    let id = Digest::of(&config);
    // Its name is its digest, wherever it lies.
    let digits = image.config.rsplit('/').next().unwrap_or_default();
    let digits = digits.strip_suffix(".json").unwrap_or(digits);
    if let Some(named) = Digest::from_hex(digits) {
        let size = config.len() as u64;
        check(archive, &image.config, (named, size), (id, size))?;
    }
    let mut layers = Vec::new();
    for name in image.layers {
        if archive.section(&name).is_none() {
            return Err(damaged(archive, format!("the layer {} is missing", shown(name.as_bytes()))));
        }
        let digest = name.strip_prefix("blobs/sha256/").and_then(Digest::from_hex);
        layers.push(Blob { name, digest });
    }
    Ok(Found { id, config, layers })
}
