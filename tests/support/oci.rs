//! Small OCI archives, made in memory.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// A header of an entry that belongs to nobody in particular.
pub fn header(kind: EntryType, name: &str, link: &str, size: usize) -> Header {
    let mut header = Header::new_gnu();
    let field = header.as_old_mut();
    field.name[..name.len()].copy_from_slice(name.as_bytes());
    field.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_750_000_000);
    header.set_cksum();
    header
}

/// The words for this machine and another one.
pub fn architectures() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") }
}

/// What an image says of the program in it, for a layer with that content.
pub fn config(layer: &[u8]) -> Value {
    let program = json!({ "Entrypoint": ["/bin/app"], "Cmd": ["x"], "User": "1000:1000", "Env": ["K=V"] });
    config_of(&[layer.to_vec()], &program)
}

/// What an image says of a program in these words, for these layers.
pub fn config_of(layers: &[Vec<u8>], program: &Value) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "os": "linux", "architecture": architectures().0, "config": program,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// A layer of lines: `folder/`, or `file=content`.
pub fn layer(lines: &[&str]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for line in lines {
        let (kind, name, content) = match line.split_once('=') {
            Some((name, content)) => (EntryType::Regular, name, content),
            None => (EntryType::Directory, *line, ""),
        };
        builder.append(&header(kind, name, "", content.len()), content.as_bytes()).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

/// The archive of an image with one layer.
pub fn archive_of(layer: &[u8], config: &Value) -> Vec<u8> {
    archive_of_layers(&[layer.to_vec()], config)
}

/// The archive of an image with these layers, the lowest first.
pub fn archive_of_layers(layers: &[Vec<u8>], config: &Value) -> Vec<u8> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut blob = |media_type: &str, bytes: Vec<u8>| {
        let (digest, size) = (digest(&bytes), bytes.len());
        files.push((format!("blobs/{}", digest.replace(':', "/")), bytes));
        json!({ "mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": digest, "size": size })
    };
    let layers: Vec<Value> = layers.iter().map(|layer| blob("layer.v1.tar", layer.clone())).collect();
    let config = blob("config.v1+json", config.to_string().into_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest = blob("manifest.v1+json", manifest.to_string().into_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    let mut builder = Builder::new(Vec::new());
    for (name, content) in files {
        builder
            .append(&header(EntryType::Regular, &name, "", content.len()), &content[..])
            .expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

/// The archive of an image with one layer of these lines.
pub fn archive(lines: &[&str]) -> Vec<u8> {
    let layer = layer(lines);
    archive_of(&layer, &config(&layer))
}
