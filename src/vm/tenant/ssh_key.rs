//! A tenant's SSH key: who holds it may log in to the tenant's guests. The private half never enters a guest.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mvm_proto::ssh_key;

use super::config;
use crate::{
    infra::{config::Roots, entropy},
    store::{self, Durability, StoreError},
    vm::naming::TenantId,
};

/// `tenants/<t>/ssh_key`: the private half, for the host alone.
pub fn private_file(roots: &Roots, tenant: &TenantId) -> PathBuf {
    config::folder(roots, tenant).join("ssh_key")
}

/// The public half, as in `authorized_keys`; the key is made where the tenant has none yet.
///
/// # Errors
/// When it cannot be read or written.
pub fn public(roots: &Roots, tenant: &TenantId) -> Result<String, StoreError> {
    let private = private_file(roots, tenant);
    let public = private.with_extension("pub");
    if !private.exists() {
        make(roots, tenant)?;
    }
    let text = fs::read_to_string(&public).map_err(StoreError::io("read", &public))?;
    Ok(text.trim_end().to_owned())
}

/// Makes it. Of several who do so at once one has it done.
fn make(roots: &Roots, tenant: &TenantId) -> Result<(), StoreError> {
    let _lock = crate::vm::instance::lifecycle::lock_tenant(roots, tenant)?;
    let private = private_file(roots, tenant);
    if private.exists() {
        return Ok(());
    }
    let seed = entropy::random().map_err(StoreError::io("read", Path::new("/dev/urandom")))?;
    let key = ssh_key::make(seed);
    let public = format!("{} mvm-{tenant}\n", key.public);
    // The private half comes last: where it is, the other one is.
    store::replace(&private.with_extension("pub"), public.as_bytes(), Durability::Durable)?;
    store::replace(&private, key.private.as_bytes(), Durability::Durable)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::infra::config::Environment;

    #[test]
    fn it_is_made_once_and_is_the_hosts_alone() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), &Environment::default()).unwrap();
        let tenant: TenantId = "acme".parse().unwrap();
        store::make_folder(&config::folder(&roots, &tenant)).unwrap();
        let first = public(&roots, &tenant).unwrap();
        assert_eq!(public(&roots, &tenant).unwrap(), first);
        assert!(first.starts_with("ssh-ed25519 ") && first.ends_with(" mvm-acme"), "{first}");
        assert_eq!(fs::metadata(private_file(&roots, &tenant)).unwrap().mode() & 0o777, 0o600);
        fs::remove_file(private_file(&roots, &tenant)).unwrap();
        assert_ne!(public(&roots, &tenant).unwrap(), first);
    }
}
