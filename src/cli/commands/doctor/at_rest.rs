//! What protects what lies on disks: the master key of tenants' secrets, themselves, and encrypted storage.

use super::{Check, fail, fail_with, ok, warn};
use crate::cli::{
    commands::secrets::CATCH_UP,
    output::{count, time},
};
use crate::{
    infra::config::Roots,
    security::{
        master_key::{self, Source},
        node_key::NodeKey,
        storage::{self, Storage},
    },
    vm::{
        instance::lifecycle::{self, Operator},
        room::NodeConfig,
        tenant::{
            self,
            secrets::{self, SecretsError, sealed_keys},
        },
    },
};

const GIVE: &str =
    "give it by systemd's LoadCredential=mvm-master-key:FILE, or MVM_MASTER_KEY_FILE, and remove it there";

pub(super) fn in_production(roots: &Roots) -> Option<NodeConfig> {
    NodeConfig::load_if_there(roots).ok().flatten().filter(|node| node.production)
}

/// Is the master key the one that tenants' keys are sealed with, and not beside them?
pub(super) fn master_key(roots: &Roots) -> Check {
    const NAME: &str = "master-key";
    let sealed = match sealed_keys(roots) {
        Ok(sealed) => sealed,
        Err(error) => return fail(NAME, error.to_string(), "put the file back from a copy"),
    };
    let first = sealed.first();
    match (master_key::given(roots), first) {
        (Err(error), _) => fail_with(NAME, &(&error).into()),
        (Ok(None), None) => ok(NAME, "none is needed yet: no tenant has secrets"),
        (Ok(None), Some((tenant, id))) => {
            fail(NAME, format!("none is given, and tenant {tenant} needs {id}"), "give mvm that master key")
        }
        (Ok(Some((key, from))), _) => {
            let id = key.id();
            if let Some((tenant, needed)) = sealed.iter().find(|(_, needed)| *needed != id) {
                let detail = format!("{from} is {id}, and tenant {tenant} needs {needed}");
                return fail(NAME, detail, "give mvm that master key");
            }
            match from {
                Source::Root(path) => {
                    let detail = format!("{} lies beside what it protects", path.display());
                    match in_production(roots) {
                        Some(_) => fail(NAME, detail + ": production does not take it", GIVE),
                        None => warn(NAME, detail, GIVE),
                    }
                }
                from => ok(NAME, format!("{from} is {id}")),
            }
        }
    }
}

/// Are the secrets of all tenants there, and their keys, and open as far as can be said here?
pub(super) fn secrets(roots: &Roots) -> Check {
    const NAME: &str = "secrets";
    let tenants = tenant::config::ids(roots).map_err(SecretsError::from);
    let checked = tenants.and_then(|tenants| {
        tenants.iter().try_fold(0_u64, |all, tenant| {
            let secrets = secrets::check(roots, tenant)?.map_or(0, |secrets| secrets.secrets.len());
            Ok(all + secrets as u64)
        })
    });
    match checked {
        Ok(all) => {
            let operator = Operator::new(roots.clone());
            let behind = tenant::config::ids(roots).unwrap_or_default().into_iter();
            let behind = behind.flat_map(|tenant| lifecycle::behind(&operator, &tenant).unwrap_or_default());
            let behind: Vec<String> = behind.map(|path| path.to_string()).collect();
            match behind.is_empty() {
                true => ok(NAME, format!("{} of all tenants, none known to be lost", count(all, "secret"))),
                false => warn(NAME, format!("guests have older ones: {}", behind.join(", ")), CATCH_UP),
            }
        }
        Err(error) => fail_with(NAME, &error.into()),
    }
}

/// Can the node's key be read, and by nobody else?
pub(super) fn node_key(roots: &Roots) -> Check {
    const NAME: &str = "node-key";
    match NodeKey::load(roots) {
        Ok(None) => ok(NAME, "there is none: the first head or report that is signed makes one"),
        Ok(Some(_)) if let Err(open) = NodeKey::check_own(roots) => fail_with(NAME, &open.into()),
        Ok(Some(key)) => ok(NAME, format!("{}, made at {}", key.public().key_id, time(key.public().made_at))),
        Err(error) => fail_with(NAME, &error.into()),
    }
}

/// Does guests' memory lie on encrypted storage?
pub(super) fn storage(roots: &Roots) -> Check {
    const NAME: &str = "storage";
    let node = in_production(roots);
    match (storage::look(&roots.root), node) {
        (Storage::Encrypted(device), _) => ok(NAME, format!("MVM_ROOT is encrypted by dm-crypt ({device})")),
        (Storage::Plain(on), node) => {
            let detail = format!(
                "MVM_ROOT lies on {on}, not known to be encrypted: guests' memory and disks are readable there"
            );
            let fix = "put it on dm-crypt";
            match node {
                Some(node) if !node.plain_storage_waiver => fail(NAME, detail, fix),
                Some(_) => warn(NAME, detail + " (waived)", fix),
                None => warn(NAME, detail, fix),
            }
        }
    }
}
