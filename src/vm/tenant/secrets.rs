//! `secrets.json` and `secrets.key`: a tenant's secrets, each sealed with the tenant's key, and that key sealed with the node's master
//! key. Nothing of them is stored in the clear.
//!
//! ```text
//! master key (master_key.rs) ── seals ──> secrets.key ── seals ──> each value, with tenant, name and version
//!                                              └─ a hash of each, which says nothing to who has not the key
//! ```
//! How they reach guests is `instance::delivery`'s.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use mvm_proto::secrets::{MAX_FILES, MAX_SIZE, MAX_TOTAL};
use serde::{Deserialize, Serialize};

use super::{config, lifecycle::TenantError};
use crate::{
    infra::{config::Roots, failpoint},
    security::{
        audit::{self, Entry as Line, Phase},
        master_key::{self, MasterKeyError, Source},
        sealing::{Key, KeyId, NotOpened, Plain, Sealed},
    },
    store::{self, Durability, Schema, StoreError},
    vm::{
        instance::lifecycle::{load_tenant, lock_tenant},
        naming::{SecretName, TenantId},
        room::{self, NodeConfig},
    },
};

/// Why something could not be done with a tenant's secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// There is one with another content.
    #[error("tenant {tenant} has a secret {name} with another content")]
    Exists {
        /// The tenant.
        tenant: TenantId,
        /// The secret.
        name: SecretName,
    },
    /// There is none.
    #[error("tenant {tenant} has no secret {name}")]
    NotFound {
        /// The tenant.
        tenant: TenantId,
        /// The secret.
        name: SecretName,
    },
    /// It is nothing at all.
    #[error("the secret is empty")]
    Empty,
    /// It, or all of them together, are too many or too long.
    #[error("{what}: at most {most} are possible")]
    TooMuch {
        /// How many of what.
        what: String,
        /// The limit.
        most: usize,
    },
    /// The master key is not where it is said to be.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// Another master key is needed than the one that is given.
    #[error(
        "the key of tenant {tenant} is sealed with master key {expected}, and {from} is master key {given}"
    )]
    OtherMasterKey {
        /// The tenant.
        tenant: TenantId,
        /// The one that is needed.
        expected: KeyId,
        /// The one that is given.
        given: KeyId,
        /// Where that one is.
        from: Source,
    },
    /// A master key is needed, and none is given.
    #[error("the key of tenant {tenant} is sealed with master key {expected}, and no master key is given")]
    NoMasterKey {
        /// The tenant.
        tenant: TenantId,
        /// The one that is needed.
        expected: KeyId,
    },
    /// A production node makes no master key for itself, and takes none that lies beside what it protects.
    #[error(
        "this node is in production: it takes no master key that lies in MVM_ROOT, and no other is given"
    )]
    Production,
    /// The tenant's key is gone, and its secrets are there.
    #[error("{path} is gone: the secrets of tenant {tenant} cannot be read any more", path = path.display())]
    KeyGone {
        /// The tenant.
        tenant: TenantId,
        /// The key's file.
        path: PathBuf,
    },
    /// Something sealed is not what mvm wrote there.
    #[error("{what} of tenant {tenant} cannot be read")]
    Sealed {
        /// The tenant.
        tenant: TenantId,
        /// What: its key, or a secret by its name.
        what: String,
        /// Why not.
        #[source]
        source: NotOpened,
    },
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// `secrets.json`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// The version of this file's form.
    pub schema_version: Schema<1>,
    /// Counts the changes: which set a guest has.
    pub generation: u64,
    /// Those that there are.
    pub secrets: BTreeMap<SecretName, Secret>,
}

/// A secret, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Counts its contents, from 1.
    pub version: u64,
    /// The set that it came with: no two contents have the same, also where it was removed in between.
    pub generation: u64,
    /// Since when it is this one.
    pub updated_at: Timestamp,
    /// Tells two contents apart, to who has not the tenant's key: nothing else.
    pub hash: String,
    /// Its content.
    pub sealed: Sealed,
}

/// `secrets.key`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    schema_version: Schema<1>,
    master_key: KeyId,
    created_at: Timestamp,
    sealed: Sealed,
}

/// A tenant's secrets in the clear: wiped when they are dropped.
pub struct Opened {
    /// Which set it is.
    pub generation: u64,
    /// Them, sorted by name.
    pub secrets: Vec<(SecretName, Plain)>,
}

/// What is to become of a secret.
pub enum Change {
    /// There shall be one like that.
    Set(Plain),
    /// The one that there is shall be like that.
    Rotate(Plain),
    /// There shall be none.
    Remove,
}

impl Change {
    fn what(&self) -> &'static str {
        match self {
            Self::Set(_) => "tenant.secrets.set",
            Self::Rotate(_) => "tenant.secrets.rotate",
            Self::Remove => "tenant.secrets.remove",
        }
    }
}

/// `tenants/<t>/secrets.json`.
pub fn file(roots: &Roots, tenant: &TenantId) -> PathBuf {
    config::folder(roots, tenant).join("secrets.json")
}

/// `tenants/<t>/secrets.key`.
pub fn key_file(roots: &Roots, tenant: &TenantId) -> PathBuf {
    config::folder(roots, tenant).join("secrets.key")
}

/// What a tenant's secrets are, but for their content; `None` where it never had any.
///
/// # Errors
/// When they cannot be read, or are gone: a tenant that has a key has had some.
pub fn stored(roots: &Roots, tenant: &TenantId) -> Result<Option<Secrets>, StoreError> {
    let path = file(roots, tenant);
    match store::read_if_there(&path)? {
        None if key_file(roots, tenant).exists() => {
            let why = "it is gone, and secrets.key says that there were secrets".to_owned();
            Err(StoreError::Damaged { path, why })
        }
        stored => Ok(stored),
    }
}

/// Opens a tenant's secrets; `None` where it never had any.
///
/// # Errors
/// [`SecretsError`] says which key is missing, or what is damaged.
pub fn open(roots: &Roots, tenant: &TenantId) -> Result<Option<Opened>, SecretsError> {
    let Some(Secrets { generation, secrets, .. }) = stored(roots, tenant)? else { return Ok(None) };
    let mut opened = Opened { generation, secrets: Vec::with_capacity(secrets.len()) };
    if secrets.is_empty() {
        return Ok(Some(opened));
    }
    let key = tenant_key(roots, tenant)?
        .ok_or_else(|| SecretsError::KeyGone { tenant: tenant.clone(), path: key_file(roots, tenant) })?;
    for (name, secret) in secrets {
        let place = place(tenant, &name, &secret);
        let plain = key.open(&texts(&place), &secret.sealed).map_err(|source| SecretsError::Sealed {
            tenant: tenant.clone(),
            what: format!("secret {name}"),
            source,
        })?;
        opened.secrets.push((name, plain));
    }
    Ok(Some(opened))
}

/// Sets, rotates or removes a secret. Returns all of them as they are then, and whether anything has changed: the same again is well.
///
/// # Errors
/// [`TenantError`] says why not; everything is as before then.
pub fn change(
    roots: &Roots,
    tenant: &TenantId,
    name: &SecretName,
    change: &Change,
) -> Result<(Secrets, bool), TenantError> {
    let _lock = lock_tenant(roots, tenant)?;
    load_tenant(roots, tenant)?;
    let mut all = stored(roots, tenant)?.unwrap_or_default();
    let there = all.secrets.get(name);
    let generation = all.generation + 1;
    match (change, there) {
        (Change::Rotate(_), None) | (Change::Remove, None) => {
            return Err(SecretsError::NotFound { tenant: tenant.clone(), name: name.clone() }.into());
        }
        (Change::Remove, Some(_)) => drop(all.secrets.remove(name)),
        (Change::Set(plain) | Change::Rotate(plain), there) => {
            check_size(plain, &all, name)?;
            let key = match tenant_key(roots, tenant)? {
                Some(key) => key,
                None if all.secrets.is_empty() => make_key(roots, tenant)?,
                None => {
                    let path = key_file(roots, tenant);
                    return Err(SecretsError::KeyGone { tenant: tenant.clone(), path }.into());
                }
            };
            let hash = key.hash(&[tenant.to_string().as_bytes(), name.to_string().as_bytes(), plain]);
            if there.is_some_and(|there| there.hash == hash) {
                return Ok((all, false));
            }
            if let (Change::Set(_), Some(_)) = (change, there) {
                return Err(SecretsError::Exists { tenant: tenant.clone(), name: name.clone() }.into());
            }
            let (version, updated_at) = (there.map_or(0, |there| there.version) + 1, roots.now());
            let mut secret = Secret { version, generation, updated_at, hash, sealed: Sealed::default() };
            secret.sealed = key.seal(&texts(&place(tenant, name, &secret)), plain)?;
            all.secrets.insert(name.clone(), secret);
        }
    }
    all.generation = generation;
    let line = |phase| {
        let mut line = Line::new(change.what(), tenant, phase);
        let version = all.secrets.get(name).map(|secret| format!(" version {}", secret.version));
        line.detail = Some(format!("{name}{}", version.unwrap_or_default()));
        audit::append(roots, tenant.as_ref(), &config::folder(roots, tenant), line)
    };
    line(Phase::Intent)?;
    failpoint::hit("secrets", "announced")?;
    store::write(&file(roots, tenant), &all)?;
    failpoint::hit("secrets", "saved")?;
    line(Phase::Done)?;
    failpoint::hit("secrets", "audited")?;
    Ok((all, true))
}

fn check_size(plain: &Plain, all: &Secrets, name: &SecretName) -> Result<(), SecretsError> {
    let others = || all.secrets.iter().filter(|(other, _)| *other != name);
    let (count, total) =
        (others().count() + 1, others().map(|(_, one)| one.sealed.plain_len()).sum::<usize>() + plain.len());
    for (what, is, most) in [
        ("bytes of a secret", plain.len(), MAX_SIZE),
        ("secrets of a tenant", count, MAX_FILES),
        ("bytes of all secrets of a tenant", total, MAX_TOTAL),
    ] {
        if is > most {
            return Err(SecretsError::TooMuch { what: format!("{is} {what}"), most });
        }
    }
    if plain.is_empty() { Err(SecretsError::Empty) } else { Ok(()) }
}

/// What a secret is sealed for: it opens as nothing else.
fn place(tenant: &TenantId, name: &SecretName, secret: &Secret) -> [String; 5] {
    let (version, generation) = (secret.version.to_string(), secret.generation.to_string());
    ["mvm secret".to_owned(), tenant.to_string(), name.to_string(), version, generation]
}

fn texts(place: &[String; 5]) -> [&str; 5] {
    place.each_ref().map(String::as_str)
}

fn key_place(tenant: &TenantId) -> [&str; 2] {
    ["mvm tenant key", tenant.as_ref()]
}

/// A tenant's key; `None` where it has none yet.
fn tenant_key(roots: &Roots, tenant: &TenantId) -> Result<Option<Key>, SecretsError> {
    let Some(file) = store::read_if_there::<KeyFile>(&key_file(roots, tenant))? else { return Ok(None) };
    let expected = file.master_key;
    let (master, from) = given(roots)?
        .ok_or_else(|| SecretsError::NoMasterKey { tenant: tenant.clone(), expected: expected.clone() })?;
    let given = master.id();
    if given != expected {
        return Err(SecretsError::OtherMasterKey { tenant: tenant.clone(), expected, given, from });
    }
    let damaged =
        |source| SecretsError::Sealed { tenant: tenant.clone(), what: "the key".to_owned(), source };
    let bytes = master.open(&key_place(tenant), &file.sealed).map_err(damaged)?;
    Ok(Some(Key::of(&bytes).ok_or_else(|| damaged(NotOpened))?))
}

/// The master key that is given, if it may be used.
fn given(roots: &Roots) -> Result<Option<(Key, Source)>, SecretsError> {
    let given = master_key::given(roots)?;
    match given {
        Some((_, Source::Root(_))) if NodeConfig::load(roots)?.production => Err(SecretsError::Production),
        given => Ok(given),
    }
}

/// Makes a tenant's key. All tenants' keys are sealed with one master key: another one than theirs is a mistake.
fn make_key(roots: &Roots, tenant: &TenantId) -> Result<Key, TenantError> {
    let others = sealed_keys(roots)?;
    let master = match (given(roots)?, others.into_iter().next()) {
        (Some((master, from)), Some((other, expected))) if master.id() != expected => {
            let given = master.id();
            return Err(SecretsError::OtherMasterKey { tenant: other, expected, given, from }.into());
        }
        (Some((master, _)), _) => master,
        (None, Some((tenant, expected))) => {
            return Err(SecretsError::NoMasterKey { tenant, expected }.into());
        }
        (None, None) => make_master_key(roots)?,
    };
    let key = Key::random()?;
    let file = KeyFile {
        schema_version: Schema,
        master_key: master.id(),
        created_at: roots.now(),
        sealed: master.seal(&key_place(tenant), key.bytes())?,
    };
    // Where there is a key there is the file, whatever is cut off here.
    if stored(roots, tenant)?.is_none() {
        store::write(&self::file(roots, tenant), &Secrets::default())?;
    }
    store::write(&key_file(roots, tenant), &file)?;
    Ok(key)
}

/// The tenants that have a key, and the master key that it is sealed with.
///
/// # Errors
/// When one cannot be read.
pub fn sealed_keys(roots: &Roots) -> Result<Vec<(TenantId, KeyId)>, StoreError> {
    let mut keys = Vec::new();
    for tenant in config::ids(roots)? {
        // One that is damaged, or was shredded half-way, is in the way of no other tenant.
        let file = store::read_if_there::<KeyFile>(&key_file(roots, &tenant)).unwrap_or(None);
        keys.extend(file.map(|file| (tenant, file.master_key)));
    }
    Ok(keys)
}

/// The node's own, where none is given, no tenant has a key yet, and it is not in production.
fn make_master_key(roots: &Roots) -> Result<Key, TenantError> {
    if NodeConfig::load(roots)?.production {
        return Err(SecretsError::Production.into());
    }
    let _lock = room::lock(roots)?;
    // Another tenant's first secret may have been faster.
    if let Some((master, _)) = given(roots)? {
        return Ok(master);
    }
    let master = Key::random()?;
    store::replace(&roots.own_master_key(), master.text().as_bytes(), Durability::Durable)?;
    Ok(master)
}

/// Makes a tenant's secrets unreadable for good, wherever a copy of them is.
///
/// # Errors
/// When its key cannot be overwritten.
pub fn shred(roots: &Roots, tenant: &TenantId) -> Result<(), StoreError> {
    store::shred(&key_file(roots, tenant))
}
