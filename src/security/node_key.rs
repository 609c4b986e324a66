//! The node's key: what this node says to others, who keep it or pass it on, is signed with it.
//!
//! It is made when it is first needed. A lost one is made anew, and whoever kept what the old one signed sees that by the key's
//! id; a damaged one is never replaced.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ed25519_compact::{KeyPair, PublicKey, Seed, Signature};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    infra::{
        config::Roots,
        entropy,
        text::{hex, unhex},
    },
    store::{self, Lock, Schema, Sharing, StoreError},
};

/// `node.key`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    schema_version: Schema<1>,
    made_at: Timestamp,
    public_key: String,
    private_key: String,
}

/// The node's key.
pub struct NodeKey {
    pair: KeyPair,
    made_at: Timestamp,
}

/// The half of a key that everybody may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Public {
    /// A short name of it.
    pub key_id: String,
    /// Its 32 bytes in hex digits: Ed25519, RFC 8032.
    pub public_key: String,
    /// When it was made.
    pub made_at: Timestamp,
}

/// Why a document is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    /// It has no signature, or nothing that could be one.
    #[error("it has no signature")]
    None,
    /// What is signed is something else.
    #[error("its signature does not fit its content")]
    Other,
}

fn file(roots: &Roots) -> PathBuf {
    roots.root.join("node.key")
}

/// A short name of a key.
fn id_of(public: &[u8]) -> String {
    hex(&Sha256::digest(public)[..8])
}

impl NodeKey {
    /// Is it nobody else's to read?
    ///
    /// # Errors
    /// [`StoreError::Open`] where others may read it: what it signs may be anybody's.
    pub fn check_own(roots: &Roots) -> Result<(), StoreError> {
        let path = file(roots);
        let meta = std::fs::metadata(&path).map_err(StoreError::io("read", &path))?;
        let (mode, owner) = (meta.mode() & 0o777, meta.uid());
        let is_trusted = owner == 0 || owner == rustix::process::geteuid().as_raw();
        match mode & 0o077 == 0 && is_trusted {
            true => Ok(()),
            false => Err(StoreError::Open { path, mode, owner }),
        }
    }

    /// Reads it, or makes it, to sign.
    ///
    /// # Errors
    /// When it cannot be read or written, is damaged, or others may read it.
    pub fn load_or_make(roots: &Roots) -> Result<Self, StoreError> {
        if let Some(key) = Self::load(roots)? {
            Self::check_own(roots)?;
            return Ok(key);
        }
        store::make_folder(&roots.root)?;
        let lock = roots.lock_file("node-key");
        let _lock = Lock::take(&lock, "the node's key", Sharing::Exclusive, roots.lock_timeout)?;
        if let Some(key) = Self::load(roots)? {
            return Ok(key);
        }
        let seed = entropy::random().map_err(StoreError::io("read", Path::new("/dev/urandom")))?;
        let key = Self { pair: KeyPair::from_seed(Seed::new(seed)), made_at: roots.now() };
        let stored = Stored {
            schema_version: Schema,
            made_at: key.made_at,
            public_key: hex(&key.pair.pk[..]),
            private_key: hex(&seed),
        };
        store::write(&file(roots), &stored)?;
        Ok(key)
    }

    /// Reads it; `None` where none was needed yet.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn load(roots: &Roots) -> Result<Option<Self>, StoreError> {
        let path = file(roots);
        let Some(stored) = store::read_if_there::<Stored>(&path)? else {
            // A link that leads nowhere is one that is missing: none is made in its place.
            return match path.symlink_metadata() {
                Ok(_) => Err(StoreError::Damaged { path, why: "it is a link that leads nowhere".to_owned() }),
                Err(_) => Ok(None),
            };
        };
        let pair = unhex(&stored.private_key).map(|seed| KeyPair::from_seed(Seed::new(seed)));
        match pair.filter(|pair| hex(&pair.pk[..]) == stored.public_key) {
            Some(pair) => Ok(Some(Self { pair, made_at: stored.made_at })),
            None => {
                Err(StoreError::Damaged { path, why: "its two halves do not belong together".to_owned() })
            }
        }
    }

    /// What everybody may know of it.
    pub fn public(&self) -> Public {
        let public = &self.pair.pk[..];
        Public { key_id: id_of(public), public_key: hex(public), made_at: self.made_at }
    }

    /// Signs a JSON object: it gets the fields `key_id`, `public_key` and `signature`. What is signed is the object without its
    /// signature, as JSON without spaces and with its names sorted. Its numbers must be whole: fractions are not read as they were
    /// written by every program.
    pub fn sign(&self, mut document: serde_json::Map<String, Value>) -> Value {
        let Public { key_id, public_key, .. } = self.public();
        document.insert("key_id".into(), key_id.into());
        document.insert("public_key".into(), public_key.into());
        document.remove(SIGNATURE);
        let mut document = Value::Object(document);
        let signature = self.pair.sk.sign(document.to_string(), None);
        document[SIGNATURE] = hex(&signature[..]).into();
        document
    }
}

const SIGNATURE: &str = "signature";

/// Checks a signed JSON object. Returns the public key that signed it: whose that is, is for the caller to know.
///
/// # Errors
/// [`NotSigned`] where it is not what was signed.
pub fn check(document: &Value) -> Result<String, NotSigned> {
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let public: [u8; 32] = text("public_key").and_then(unhex).ok_or(NotSigned::None)?;
    let signature: [u8; 64] = text(SIGNATURE).and_then(unhex).ok_or(NotSigned::None)?;
    // People compare the id: a stranger's key must not pass for one by it.
    if text("key_id") != Some(id_of(&public).as_str()) {
        return Err(NotSigned::Other);
    }
    let mut signed = document.clone();
    if let Some(fields) = signed.as_object_mut() {
        fields.remove(SIGNATURE);
    }
    PublicKey::new(public)
        .verify(signed.to_string(), &Signature::new(signature))
        .map_err(|_| NotSigned::Other)?;
    Ok(hex(&public))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use serde_json::json;

    use super::*;
    use crate::infra::config::Environment;

    fn roots() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), &Environment::default()).unwrap();
        (dir, roots)
    }

    fn signed(key: &NodeKey) -> Value {
        key.sign(
            json!({ "count": 7, "at": "noon", "more": { "b": [1, 2], "a": null } })
                .as_object()
                .unwrap()
                .clone(),
        )
    }

    #[test]
    fn it_is_made_once_and_is_the_hosts_alone() {
        let (dir, roots) = roots();
        let first = NodeKey::load_or_make(&roots).unwrap().public();
        assert_eq!(NodeKey::load_or_make(&roots).unwrap().public(), first);
        let path = dir.path().join("node.key");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
        assert_ne!(NodeKey::load_or_make(&roots).unwrap().public().key_id, first.key_id);
    }

    #[test]
    fn a_damaged_one_is_not_replaced() {
        let (dir, roots) = roots();
        NodeKey::load_or_make(&roots).unwrap();
        let path = dir.path().join("node.key");
        let whole = std::fs::read_to_string(&path).unwrap();
        let other = whole.replace("\"private_key\": \"", "\"private_key\": \"00").replacen("00", "0", 1);
        for damaged in ["", "{}", &whole[..whole.len() / 2], &other] {
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(NodeKey::load_or_make(&roots), Err(StoreError::Damaged { .. })), "{damaged}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn what_was_signed_is_believed_and_nothing_else() {
        let (_dir, roots) = roots();
        let key = NodeKey::load_or_make(&roots).unwrap();
        let document = signed(&key);
        assert_eq!(check(&document), Ok(key.public().public_key));
        // Spaces and the order of names are not what is signed.
        let again: Value = serde_json::from_str(&serde_json::to_string_pretty(&document).unwrap()).unwrap();
        assert!(check(&again).is_ok());
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut document = document.clone();
            change(&mut document);
            check(&document)
        };
        assert_eq!(changed(&|one| one["count"] = 8.into()), Err(NotSigned::Other));
        assert_eq!(changed(&|one| one["more"]["b"][0] = 2.into()), Err(NotSigned::Other));
        assert_eq!(changed(&|one| one["extra"] = 1.into()), Err(NotSigned::Other));
        assert_eq!(changed(&|one| one["key_id"] = "0".into()), Err(NotSigned::Other));
        assert_eq!(changed(&|one| one["signature"] = "00".repeat(64).into()), Err(NotSigned::Other));
        assert_eq!(changed(&|one| one["signature"] = "xx".into()), Err(NotSigned::None));
        assert_eq!(check(&json!([1])), Err(NotSigned::None));
        // Another key's signature, under this key's name.
        let (_other_dir, other) = self::roots();
        let other = NodeKey::load_or_make(&other).unwrap();
        let theirs = signed(&other);
        assert_eq!(changed(&|one| one["signature"] = theirs["signature"].clone()), Err(NotSigned::Other));
        // Its own document, which says that this key signed it.
        let mut claims = theirs.clone();
        claims["key_id"] = key.public().key_id.into();
        claims.as_object_mut().unwrap().remove(SIGNATURE);
        let signature = other.pair.sk.sign(claims.to_string(), None);
        claims[SIGNATURE] = hex(&signature[..]).into();
        assert_eq!(check(&claims), Err(NotSigned::Other));
    }

    /// Test 1 of RFC 8032, 7.1: the crate's signatures are everybody's.
    #[test]
    fn signatures_are_ed25519() {
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let signature = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b";
        let pair = KeyPair::from_seed(Seed::new(unhex(seed).unwrap()));
        assert_eq!(hex(&pair.sk.sign("", None)[..]), signature);
    }
}
