//! `secrets.json`: a tenant's secrets, each sealed with the tenant's key (`key`), and that key sealed with the node's master key.
//! Nothing of them is stored in the clear.
//!
//! ```text
//! master key (master_key.rs) ── seals ──> secrets.key ── seals ──> each value, with tenant, name and version
//!                                              └─ a hash of each, which says nothing to who has not the key
//! ```
//! The tenant's record has the generation of the last change: what is older, or gone, is not taken for all that there is.
//! How they reach guests is `instance::delivery`'s.

mod error;
mod key;

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use mvm_proto::secrets::{MAX_FILES, MAX_SIZE, MAX_TOTAL};
use serde::{Deserialize, Serialize};

pub use self::{
    error::SecretsError,
    key::{sealed_keys, shred},
};
use super::{
    config::{self, Tenant},
    lifecycle::TenantError,
};
use crate::{
    infra::{config::Roots, failpoint, relief},
    security::{
        audit::{self, Entry as Line, Phase},
        sealing::{Key, Plain, Sealed},
    },
    store::{self, Schema, StoreError},
    vm::{
        instance::{
            self,
            config::Instance,
            lifecycle::{LifecycleError, load_tenant, lock_tenant},
        },
        naming::{SecretName, TenantId},
        pool, room,
    },
};

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

/// What a tenant's secrets are, but for their content; `None` where it never had any.
///
/// # Errors
/// When they cannot be read, are gone, or are older than its record says: [`SecretsError::Lost`].
pub fn stored(roots: &Roots, tenant: &TenantId) -> Result<Option<Secrets>, SecretsError> {
    stored_of(roots, &Tenant::load(roots, tenant)?)
}

fn stored_of(roots: &Roots, record: &Tenant) -> Result<Option<Secrets>, SecretsError> {
    let (tenant, known) = (&record.tenant_id, record.secrets_generation);
    let path = file(roots, tenant);
    let stored: Option<Secrets> = match store::read_if_there(&path) {
        Err(StoreError::Damaged { .. }) => return Err(lost(record, path, "is damaged".to_owned())),
        stored => stored?,
    };
    match stored.as_ref().map(|stored| stored.generation) {
        // A tenant that has a key has had some, also where its record is from before it said so.
        None if known.is_some() || key::file(roots, tenant).exists() => {
            Err(lost(record, path, "is gone".to_owned()))
        }
        Some(is) if Some(is) < known => Err(lost(record, path, format!("has generation {is}"))),
        _ => Ok(stored),
    }
}

/// What versions there are: what an audit log says of a change of them.
pub fn versions(all: &Secrets) -> BTreeMap<SecretName, u64> {
    all.secrets.iter().map(|(name, secret)| (name.clone(), secret.version)).collect()
}

fn lost(record: &Tenant, path: PathBuf, how: String) -> SecretsError {
    let (tenant, known) = (record.tenant_id.clone(), record.secrets_generation);
    SecretsError::Lost { tenant, path, how, known }
}

fn knows(record: &Tenant, generation: u64) -> bool {
    record.secrets_generation.unwrap_or(0) >= generation
}

/// Writes into a tenant's record which generation its secrets have. They come first: what a kill leaves in between is never taken
/// for older than it should be.
fn remember(roots: &Roots, record: &mut Tenant, generation: u64) -> Result<(), StoreError> {
    if knows(record, generation) {
        return Ok(());
    }
    record.secrets_generation = Some(generation);
    record.save(roots)
}

/// Writes down what a change that was cut off did not come to, or what an older mvm did not.
///
/// # Errors
/// As [`stored`].
pub fn settle(roots: &Roots, tenant: &TenantId) -> Result<(), LifecycleError> {
    let look = || -> Result<_, LifecycleError> {
        let record = load_tenant(roots, tenant)?;
        let generation = stored_of(roots, &record)?.map_or(0, |stored| stored.generation);
        Ok((record, generation))
    };
    let (record, generation) = look()?;
    if knows(&record, generation) {
        return Ok(());
    }
    let _lock = lock_tenant(roots, tenant)?;
    let (mut record, generation) = look()?;
    Ok(remember(roots, &mut record, generation)?)
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
    let key = required_key(roots, tenant)?;
    for (name, secret) in secrets {
        let plain = unseal(&key, tenant, &name, &secret)?;
        opened.secrets.push((name, plain));
    }
    Ok(Some(opened))
}

fn unseal(key: &Key, tenant: &TenantId, name: &SecretName, secret: &Secret) -> Result<Plain, SecretsError> {
    let damaged =
        |source| SecretsError::Sealed { tenant: tenant.clone(), what: format!("secret {name}"), source };
    key.open(&texts(&place(tenant, name, secret)), &secret.sealed).map_err(damaged)
}

fn required_key(roots: &Roots, tenant: &TenantId) -> Result<Key, SecretsError> {
    let gone = || SecretsError::KeyGone { tenant: tenant.clone(), path: key::file(roots, tenant) };
    key::of(roots, tenant)?.ok_or_else(gone)
}

/// What a tenant's secrets are, where they and its key are there, and open, as far as the master key that is given can tell.
///
/// # Errors
/// [`SecretsError`] says what is gone or damaged.
pub fn check(roots: &Roots, tenant: &TenantId) -> Result<Option<Secrets>, SecretsError> {
    match open(roots, tenant) {
        Err(error) if !error.is_for_want_of_a_master_key() => Err(error),
        _ => stored(roots, tenant),
    }
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
    // What takes something away is not refused for want of a page.
    let _relief = matches!(change, Change::Remove).then(|| relief::allow(&roots.root));
    let _lock = lock_tenant(roots, tenant)?;
    let mut record = load_tenant(roots, tenant)?;
    let mut all = stored_of(roots, &record)?.unwrap_or_default();
    let before = versions(&all);
    remember(roots, &mut record, all.generation)?;
    let mut new_key = None;
    let there = all.secrets.get(name);
    let generation = all.generation + 1;
    match (change, there) {
        (Change::Rotate(_), None) | (Change::Remove, None) => {
            return Err(SecretsError::NotFound { tenant: tenant.clone(), name: name.clone() }.into());
        }
        (Change::Remove, Some(_)) => drop(all.secrets.remove(name)),
        (Change::Set(plain) | Change::Rotate(plain), there) => {
            check_size(plain, &all, name)?;
            let key = match all.secrets.is_empty() {
                // One that is there seals nothing, and need not open.
                true => {
                    // Refused before anything is begun.
                    key::master(roots, tenant)?;
                    new_key.insert(Key::random()?).clone()
                }
                false => {
                    let key = required_key(roots, tenant)?;
                    // No two keys come into one set: what is there opens with this one. One tells, the shortest.
                    let shortest = all.secrets.iter().min_by_key(|(_, secret)| secret.sealed.plain_len());
                    shortest.map(|(name, secret)| unseal(&key, tenant, name, secret)).transpose()?;
                    key
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
    let detail = audit::changes(&before, &versions(&all)).unwrap_or_default();
    store_all(roots, &mut record, &all, (change.what(), &detail), new_key.as_ref())?;
    Ok((all, true))
}

/// Takes a tenant's secrets as they lie there, where they are [lost](SecretsError::Lost): those that can be read, or none. They
/// become a generation of their own, so that guests get them. Returns whether anything has changed.
///
/// # Errors
/// [`TenantError`] says why not; everything is as before then.
pub fn accept(roots: &Roots, tenant: &TenantId) -> Result<(Secrets, bool), TenantError> {
    let _lock = lock_tenant(roots, tenant)?;
    let mut record = load_tenant(roots, tenant)?;
    let how = match stored_of(roots, &record) {
        Err(SecretsError::Lost { how, .. }) => how,
        stored => return Ok((stored?.unwrap_or_default(), false)),
    };
    let mut all: Secrets = match store::read_if_there(&file(roots, tenant)) {
        Err(StoreError::Damaged { .. }) => Secrets::default(),
        there => there?.unwrap_or_default(),
    };
    // Nor is it one that a guest has: an older record knows no generation.
    let had = in_guests(roots, tenant)?.into_iter().max();
    all.generation = record.secrets_generation.max(had).unwrap_or(0).max(all.generation) + 1;
    let detail = format!("secrets.json {how}: generation {} from now on", all.generation);
    store_all(roots, &mut record, &all, ("tenant.secrets.accept", &detail), None)?;
    Ok((all, true))
}

/// The generations that a tenant's guests have.
fn in_guests(roots: &Roots, tenant: &TenantId) -> Result<Vec<u64>, StoreError> {
    let mut all = Vec::new();
    for pool in pool::config::paths(roots, tenant)? {
        for path in instance::config::paths(roots, &pool)? {
            all.extend(Instance::load_if_there(roots, &path)?.and_then(|instance| instance.secrets));
        }
    }
    Ok(all)
}

/// Announces a change and makes it: the key that it needs, the secrets, and their generation in the tenant's record.
fn store_all(
    roots: &Roots,
    record: &mut Tenant,
    all: &Secrets,
    (what, detail): (&str, &str),
    new_key: Option<&Key>,
) -> Result<(), TenantError> {
    let tenant = &record.tenant_id.clone();
    let folder = config::folder(roots, tenant);
    let log = (tenant.as_ref(), folder.as_path());
    let unfinished =
        |why: TenantError| SecretsError::Unfinished { tenant: tenant.clone(), source: why.into() }.into();
    let mut line = Line::new(what, tenant, Phase::Intent);
    line.detail = Some(detail.to_owned());
    audit::append(roots, log.0, log.1, line.clone())?;
    let stored = failpoint::hit("secrets", "announced").map_err(TenantError::from).and_then(|()| {
        // A key without secrets is nobody's: two tenants' first secrets at once have one master key.
        let _node = new_key.map(|_| room::lock(roots)).transpose()?;
        if let Some(key) = new_key {
            key::put(roots, tenant, key)?;
        }
        Ok(store::write(&file(roots, tenant), all)?)
    });
    if stored.is_err() {
        // Renamed, and not known to be durable: that is for a recovery to say, which looks.
        let there: Option<Secrets> = store::read_if_there(&file(roots, tenant)).unwrap_or_default();
        let stands = there.is_some_and(|there| there.generation == all.generation);
        return if stands { stored.map_err(unfinished) } else { audit::outcome(roots, log, line, stored) };
    }
    // They are what guests get from here on: the rest of it is written down on a full disk, too.
    let _relief = relief::allow(&roots.root);
    failpoint::hit("secrets", "saved")?;
    remember(roots, record, all.generation).map_err(TenantError::from).map_err(unfinished)?;
    failpoint::hit("secrets", "remembered")?;
    audit::outcome(roots, log, line, stored)?;
    Ok(failpoint::hit("secrets", "audited")?)
}

fn check_size(plain: &Plain, all: &Secrets, name: &SecretName) -> Result<(), SecretsError> {
    let others = || all.secrets.iter().filter(|(other, _)| *other != name);
    let (count, total) =
        (others().count() + 1, others().map(|(_, one)| one.sealed.plain_len()).sum::<usize>() + plain.len());
    if plain.len() > MAX_SIZE {
        // Of one that is longer no more was read.
        return Err(SecretsError::TooMuch { what: "too many bytes of a secret".to_owned(), most: MAX_SIZE });
    }
    for (what, is, most) in
        [("secrets of a tenant", count, MAX_FILES), ("bytes of all secrets of a tenant", total, MAX_TOTAL)]
    {
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
