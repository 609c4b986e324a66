//! What is said of tenants' secrets and of the keys that they are sealed with, and of storage that is not encrypted.

use super::{CliError, Kind};
use crate::{
    node::NodeError,
    security::master_key::{MasterKeyError, Source},
    vm::{naming::TenantId, tenant::secrets::SecretsError},
};

/// Where a master key belongs.
const GIVE: &str = "LoadCredential=mvm-master-key:FILE in the unit, or MVM_MASTER_KEY_FILE=FILE";

/// What always leads out: nothing has to be opened for it.
fn again(tenant: &TenantId) -> String {
    format!("mvm tenant secrets remove {tenant} NAME, of each that cannot be read, and set them again")
}

impl From<&SecretsError> for CliError {
    fn from(error: &SecretsError) -> Self {
        match error {
            SecretsError::Store(error) => error.into(),
            SecretsError::MasterKey(error) => error.into(),
            SecretsError::Exists { tenant, name } => Self::of(Kind::Refused, "exists", error)
                .fix(format!("mvm tenant secrets rotate {tenant} {name}, if it shall be another one")),
            SecretsError::NotFound { tenant, .. } => {
                Self::of(Kind::NotFound, "not_found", error).fix(format!("mvm tenant secrets list {tenant}"))
            }
            SecretsError::Empty => Self::of(Kind::Usage, "empty_secret", error)
                .fix("--file FILE, or the secret on stdin"),
            SecretsError::TooMuch { .. } => Self::of(Kind::Usage, "too_long", error),
            SecretsError::OtherMasterKey { tenant, expected, .. }
            | SecretsError::NoMasterKey { tenant, expected } => Self::of(Kind::Environment, "master_key", error)
                .fix(format!("give mvm the master key {expected}: {GIVE}; where it is lost, {}", again(tenant))),
            SecretsError::Production => Self::of(Kind::Environment, "master_key", error).fix(GIVE),
            SecretsError::KeyGone { tenant, .. } | SecretsError::Sealed { tenant, .. } => {
                Self::of(Kind::Failed, "damaged", error)
                    .fix(format!("put the file back from a copy, or {}", again(tenant)))
            }
            SecretsError::Unfinished { source, .. } => {
                Self::of(Kind::Failed, "secrets_unfinished", error).fix_then_recover(&(&**source).into(), "finishes it")
            }
            SecretsError::Lost { tenant, .. } => Self::of(Kind::Failed, "damaged", error).fix(format!(
                "put the last one back from a copy, or mvm tenant secrets accept {tenant}, which takes what lies there"
            )),
        }
    }
}

impl CliError {
    /// Guests' memory would lie on a disk in the clear.
    pub(super) fn plain_storage(error: &NodeError) -> Self {
        let fix = match error {
            NodeError::PlainStorage { in_production: true, .. } => {
                "put MVM_ROOT on dm-crypt, or mvm node set production off first"
            }
            _ => "put MVM_ROOT on dm-crypt, or mvm node set plain-storage-waiver on",
        };
        Self::of(Kind::Refused, "plain_storage", error).fix(fix)
    }
}

impl From<&MasterKeyError> for CliError {
    fn from(error: &MasterKeyError) -> Self {
        let made = Self::of(Kind::Environment, "master_key", error);
        match error {
            MasterKeyError::Two => made.fix("unset one of them"),
            MasterKeyError::Open { from: Source::File(path) | Source::Root(path), .. } => {
                made.fix(format!("chown root {0} && chmod 600 {0}", path.display()))
            }
            // Not over one that secrets may be sealed with.
            MasterKeyError::Malformed { .. } => made.fix(
                "put the key back; where there never was one, (umask 077; head -c 32 /dev/urandom >NEWFILE) makes it",
            ),
            MasterKeyError::Unreadable { .. } => made.fix(format!("put the key back, or {GIVE}")),
            _ => made,
        }
    }
}
