//! Why something could not be done with a tenant's secrets.

use std::path::PathBuf;

use crate::{
    security::{
        master_key::{MasterKeyError, Source},
        sealing::{KeyId, NotOpened},
    },
    store::StoreError,
    vm::{
        naming::{SecretName, TenantId},
        tenant::lifecycle::TenantError,
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
    /// There were secrets of a later generation.
    #[error(
        "{path} {how}, and tenant {tenant} had secrets{known}",
        path = path.display(), known = known.map(|one| format!(" of generation {one}")).unwrap_or_default()
    )]
    Lost {
        /// The tenant.
        tenant: TenantId,
        /// The file with its secrets.
        path: PathBuf,
        /// How it is: gone, damaged, or of another generation.
        how: String,
        /// The last one that is known of.
        known: Option<u64>,
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
    /// They are changed, and what follows that is not done.
    #[error("the secrets of tenant {tenant} are changed, and that is not written down everywhere")]
    Unfinished {
        /// The tenant.
        tenant: TenantId,
        /// Why not.
        source: Box<TenantError>,
    },
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SecretsError {
    /// Could it be well, and nobody here can tell, since no master key is given?
    pub(super) fn is_for_want_of_a_master_key(&self) -> bool {
        matches!(self, Self::NoMasterKey { .. } | Self::MasterKey(_) | Self::Production)
    }
}
