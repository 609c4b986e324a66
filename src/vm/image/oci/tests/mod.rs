//! Archives made in memory, unpacked into a folder beside which something lies that must stay as it is.

mod chaos;
mod fits;
mod hostile;
mod layers;
mod layouts;
mod sparse;

use std::{
    fs,
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::{archive::Archive, limits::Reason, *};

/// Who is not root cannot give files to others.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        crate::infra::tests::skip("needs root: an image's files belong to root");
    }
    is_root
}

/// A header with these names, whatever they are. What is longer than the field is cut.
fn header(kind: EntryType, name: &[u8], link: &[u8], size: usize) -> Header {
    let mut header = Header::new_gnu();
    let field = header.as_old_mut();
    field.name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    field.linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_600_000_000);
    header.set_cksum();
    header
}

/// A tar stream of lines: `folder/`, `file=content`, `link->target`, `name=>file` (a hard link), `|pipe`, `%device`.
fn layer(lines: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for line in lines {
        let (kind, name, link, content) = if let Some(name) = line.strip_prefix('|') {
            (EntryType::Fifo, name, "", "")
        } else if let Some(name) = line.strip_prefix('%') {
            (EntryType::Char, name, "", "")
        } else if let Some((name, to)) = line.split_once("->") {
            (EntryType::Symlink, name, to, "")
        } else if let Some((name, to)) = line.split_once("=>") {
            (EntryType::Link, name, to, "")
        } else if let Some((name, content)) = line.split_once('=') {
            (EntryType::Regular, name, "", content)
        } else {
            (EntryType::Directory, *line, "", "")
        };
        for (value, kind) in [(name, EntryType::GNULongName), (link, EntryType::GNULongLink)] {
            if value.len() > 100 {
                let long = header(kind, b"././@LongLink", b"", value.len() + 1);
                builder.append(&long, &[value.as_bytes(), b"\0"].concat()[..]).unwrap();
            }
        }
        let header = header(kind, name.as_bytes(), link.as_bytes(), content.len());
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What is in a folder, in the same lines, sorted.
fn lines(folder: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
            let name = String::from_utf8_lossy(name).into_owned();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                found.push(format!("{name}/"));
                walk(root, &path, found);
            } else if meta.is_symlink() {
                found.push(format!("{name}->{}", fs::read_link(&path).unwrap().display()));
            } else if meta.file_type().is_fifo() {
                found.push(format!("|{name}"));
            } else {
                found.push(format!("{name}={}", String::from_utf8_lossy(&fs::read(&path).unwrap())));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn config(layers: &[Vec<u8>]) -> Value {
    let (os, architecture) = layout::host();
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    json!({
        "os": os, "architecture": architecture, "config": { "Cmd": ["/bin/app"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// Files of an archive that is being made: names and contents.
type Files = Vec<(String, Vec<u8>)>;

/// Puts a blob among the files; returns what tells of it.
fn blob(files: &mut Files, media_type: &str, content: &[u8]) -> Value {
    let digest = Digest::of(content);
    files.push((digest.blob(), content.to_vec()));
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": content.len() })
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Puts an image among the files; returns what tells of it.
fn image(files: &mut Files, layers: &[(&str, Vec<u8>)], config: &Value) -> Value {
    let layer_type = |packing: &str| format!("application/vnd.oci.image.layer.v1.tar{packing}");
    let layers: Vec<Value> =
        layers.iter().map(|(packing, bytes)| blob(files, &layer_type(packing), bytes)).collect();
    let config = blob(files, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers }).to_string();
    blob(files, MANIFEST, manifest.as_bytes())
}

fn index(manifests: &[Value]) -> Vec<u8> {
    json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes()
}

/// The archive that holds these files.
fn archive(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let header = header(EntryType::Regular, name.as_bytes(), b"", content.len());
        builder.append(&header, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An OCI archive of these layers, as they are.
fn oci_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let mut files = vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let plain: Vec<_> = layers.iter().map(|layer| ("", layer.clone())).collect();
    let manifest = image(&mut files, &plain, &config(layers));
    files.push(("index.json".into(), index(&[manifest])));
    archive(&files)
}

/// A folder with a file that nothing may touch, beside which an archive is unpacked.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        Self { dir }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    /// Unpacks an archive.
    fn unpack(&self, archive: &[u8], limits: &Limits) -> Result<Unpacked, OciError> {
        let path = self.dir.path().join("image.tar");
        fs::write(&path, archive).unwrap();
        let _ = fs::remove_dir_all(self.tree());
        let spool = self.dir.path().join("spool");
        let _ = fs::remove_file(&spool);
        let unpacked = Archive::open(&path, &spool, limits)
            .and_then(|archive| unpack(&archive, &self.tree(), limits))
            .map(|(_, unpacked)| unpacked);
        self.assert_outside_is_untouched();
        unpacked
    }

    fn assert_outside_is_untouched(&self) {
        assert_eq!(lines(&self.dir.path().join("outside")), ["secret=untouched"]);
        let meta = fs::metadata(self.dir.path().join("outside/secret")).unwrap();
        assert_eq!((meta.nlink(), meta.mode() & 0o7777), (1, 0o644));
        for name in store::names(self.dir.path(), |_| true).unwrap() {
            assert!(["image.tar", "outside", "spool", "tree"].contains(&name.as_str()), "{name}");
        }
    }

    /// What layers become, without what mvm adds; or the whole error in one line.
    fn lay(&self, layers: &[Vec<u8>]) -> Result<Vec<String>, String> {
        self.unpack(&oci_archive(layers), &Limits::default()).map_err(|error| whole(&error))?;
        Ok(lines_of_image(self))
    }
}

/// What is in the tree, without what mvm adds.
fn lines_of_image(bench: &Bench) -> Vec<String> {
    let is_image_s = |line: &String| line != "etc/" && !line.starts_with("etc/mvm/");
    lines(&bench.tree()).into_iter().filter(is_image_s).collect()
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", whole(cause)),
        None => error.to_string(),
    }
}
