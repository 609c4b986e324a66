//! `secrets.key`: a tenant's key, sealed with the node's master key.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Secrets, SecretsError};
use crate::{
    infra::{config::Roots, failpoint},
    security::{
        master_key::{self, Source},
        sealing::{Key, KeyId, NotOpened, Sealed},
    },
    store::{self, Durability, Schema, StoreError},
    vm::{
        naming::TenantId,
        room::NodeConfig,
        tenant::{config, lifecycle::TenantError},
    },
};

/// `secrets.key`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    schema_version: Schema<1>,
    master_key: KeyId,
    created_at: Timestamp,
    sealed: Sealed,
}

/// `tenants/<t>/secrets.key`.
pub(super) fn file(roots: &Roots, tenant: &TenantId) -> PathBuf {
    config::folder(roots, tenant).join("secrets.key")
}

fn place(tenant: &TenantId) -> [&str; 2] {
    ["mvm tenant key", tenant.as_ref()]
}

/// A tenant's key; `None` where it has none yet.
pub(super) fn of(roots: &Roots, tenant: &TenantId) -> Result<Option<Key>, SecretsError> {
    let damaged =
        |source| SecretsError::Sealed { tenant: tenant.clone(), what: "the key".to_owned(), source };
    let file = match store::read_if_there::<KeyFile>(&file(roots, tenant)) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(StoreError::Damaged { .. }) => return Err(damaged(NotOpened)),
        Err(error) => return Err(error.into()),
    };
    let expected = file.master_key;
    let (master, from) = given(roots)?
        .ok_or_else(|| SecretsError::NoMasterKey { tenant: tenant.clone(), expected: expected.clone() })?;
    let given = master.id();
    if given != expected {
        return Err(SecretsError::OtherMasterKey { tenant: tenant.clone(), expected, given, from });
    }
    let bytes = master.open(&place(tenant), &file.sealed).map_err(damaged)?;
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

/// The master key for a tenant's new key: the one that all other tenants' are sealed with, another one is a mistake. `None` where
/// there is none at all, and one may be made.
pub(super) fn master(roots: &Roots, tenant: &TenantId) -> Result<Option<Key>, SecretsError> {
    let other = sealed_keys(roots)?.into_iter().find(|(other, _)| other != tenant);
    match (given(roots)?, other) {
        (Some((master, from)), Some((tenant, expected))) if master.id() != expected => {
            let given = master.id();
            Err(SecretsError::OtherMasterKey { tenant, expected, given, from })
        }
        (Some((master, _)), _) => Ok(Some(master)),
        (None, Some((tenant, expected))) => Err(SecretsError::NoMasterKey { tenant, expected }),
        (None, None) if NodeConfig::load(roots)?.production => Err(SecretsError::Production),
        (None, None) => Ok(None),
    }
}

/// Stores a tenant's new key, sealed with the master key, which is made where there is none. The node is locked, until there are
/// secrets.
pub(super) fn put(roots: &Roots, tenant: &TenantId, key: &Key) -> Result<(), TenantError> {
    let master = match master(roots, tenant)? {
        Some(master) => master,
        None => {
            let master = Key::random()?;
            store::replace(&roots.own_master_key(), master.text().as_bytes(), Durability::Durable)?;
            failpoint::hit("secrets", "master-key")?;
            master
        }
    };
    // Where there is a key there is the file, whatever is cut off here.
    let secrets = super::file(roots, tenant);
    if !secrets.exists() {
        store::write(&secrets, &Secrets::default())?;
    }
    let key_file = KeyFile {
        schema_version: Schema,
        master_key: master.id(),
        created_at: roots.now(),
        sealed: master.seal(&place(tenant), key.bytes())?,
    };
    store::write(&file(roots, tenant), &key_file)?;
    Ok(failpoint::hit("secrets", "key")?)
}

/// The tenants that have secrets, and the master key that their keys are sealed with.
///
/// # Errors
/// When a key cannot be read.
pub fn sealed_keys(roots: &Roots) -> Result<Vec<(TenantId, KeyId)>, StoreError> {
    let mut keys = Vec::new();
    for tenant in config::ids(roots)? {
        // A key that seals nothing needs no master key.
        if matches!(super::stored(roots, &tenant), Ok(Some(all)) if all.secrets.is_empty()) {
            continue;
        }
        match store::read_if_there::<KeyFile>(&file(roots, &tenant)) {
            // One that is damaged, or was shredded half-way, is in the way of no other tenant.
            Err(StoreError::Damaged { .. }) => {}
            file => keys.extend(file?.map(|file| (tenant, file.master_key))),
        }
    }
    Ok(keys)
}

/// Makes a tenant's secrets unreadable for good, wherever a copy of them is. None are left first: they are not lost where the tenant
/// is not destroyed to its end.
///
/// # Errors
/// When they cannot be written, or the key overwritten.
pub fn shred(roots: &Roots, tenant: &TenantId) -> Result<(), StoreError> {
    if let Ok(Some(mut all)) = super::stored(roots, tenant)
        && !all.secrets.is_empty()
    {
        all.secrets.clear();
        store::write(&super::file(roots, tenant), &all)?;
    }
    store::shred(&file(roots, tenant))
}
