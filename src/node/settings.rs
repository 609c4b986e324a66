//! Settings that no command has set: a record that was edited by hand is not what its log says.

use serde::Serialize;

use crate::{
    infra::config::Roots,
    security::audit::{self, Place, Record},
    store::StoreError,
    vm::{
        pool::{self, config::Pool},
        room::NodeConfig,
        tenant::{self, config::Tenant},
    },
};

/// What of the node's, the tenants' and the pools' records is not as it was set last, a line each. A record that cannot be read
/// is said by who needs it.
///
/// # Errors
/// When a log or a folder cannot be read.
pub fn set_by_hand(roots: &Roots) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    if let Ok(Some(node)) = NodeConfig::load_if_there(roots) {
        let (records, _) = audit::records(&roots.node_log(), Place::default())?;
        look(&mut found, &records, ("node", &node.node_id), &node);
    }
    for id in tenant::config::ids(roots)? {
        let (records, _) = audit::records(&tenant::config::folder(roots, &id), Place::default())?;
        if let Ok(tenant) = Tenant::load(roots, &id) {
            look(&mut found, &records, ("tenant", id.as_ref()), &tenant);
        }
        for path in pool::config::paths(roots, &id)? {
            if let Ok(pool) = Pool::load(roots, &path) {
                look(&mut found, &records, ("pool", &path.to_string()), &pool);
            }
        }
    }
    Ok(found)
}

fn look(found: &mut Vec<String>, records: &[Record], (thing, path): (&str, &str), now: &impl Serialize) {
    let set = audit::last_set(records, thing, path);
    found.extend(audit::differing(&set, now).into_iter().map(|what| format!("{path}: {what}")));
}
