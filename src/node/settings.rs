//! Settings that differ from what their log says: a record that was edited by hand, or put back from a copy.

use std::{collections::HashMap, fmt::Display};

use serde::Serialize;

use crate::{
    infra::{config::Roots, text::with_causes},
    security::audit::{self, Entry, Phase, Place},
    store::{Lock, StoreError},
    vm::{
        instance::lifecycle::lock_tenant,
        naming::TenantId,
        pool::{self, config::Pool},
        room::{self, NodeConfig},
        tenant::{self, config::Tenant},
    },
};

/// What is said where there is nothing to compare with.
const NO_LINE: &str = "its audit log has no line that can be read, and says nothing of what was set";

/// What was found of the node's, the tenants' and the pools' records.
#[derive(Debug, Default)]
pub struct Settings {
    /// Each field that is not as a command has set it last, as far as the logs say, a line each.
    pub differing: Vec<String>,
    /// Each record or log that cannot be read, and why.
    pub unread: Vec<String>,
}

impl Settings {
    fn note<T>(&mut self, what: impl Display, result: Result<T, StoreError>) -> Option<T> {
        result.map_err(|error| self.unread.push(format!("{what}: {}", with_causes(&error)))).ok()
    }

    fn compare(&mut self, path: &str, set: &HashMap<&str, audit::Fields>, now: &impl Serialize) {
        let found = set.get(path).map(|set| audit::differing(set, now)).unwrap_or_default();
        self.differing.extend(found.into_iter().map(|what| format!("{path}: {what}")));
    }

    /// Takes what a look finds; where that is a difference, what a second one finds under the lock of who changes it: record and
    /// log may have been read before and after a change.
    fn take(&mut self, look: impl Fn() -> Self, lock: impl FnOnce() -> Option<Lock>) {
        let mut found = look();
        if !found.differing.is_empty() {
            let _lock = lock();
            found = look();
        }
        self.differing.append(&mut found.differing);
        self.unread.append(&mut found.unread);
    }
}

/// Compares every record with its log.
///
/// # Errors
/// When the tenants cannot be listed.
pub fn settings(roots: &Roots) -> Result<Settings, StoreError> {
    let mut all = Settings::default();
    all.take(|| of_node(roots), || room::lock(roots).ok());
    for id in tenant::config::ids(roots)? {
        all.take(|| of_tenant(roots, &id), || lock_tenant(roots, &id).ok());
    }
    Ok(all)
}

/// What a log that is begun anew says of the settings that are there: a tenant's, or the node's. What cannot be read is not said.
pub fn found(roots: &Roots, tenant: Option<&TenantId>) -> Vec<Entry> {
    let entry = |what: &str, path: String, detail: String| Entry {
        detail: Some(detail),
        ..Entry::new(what, path, Phase::Observed)
    };
    let Some(id) = tenant else {
        let node = NodeConfig::load_if_there(roots).ok().flatten();
        let found = node.map(|node| entry("node.found", node.node_id.clone(), audit::node_found(&node)));
        return found.into_iter().collect();
    };
    let tenant = Tenant::load(roots, id).ok();
    let tenant = tenant.map(|tenant| entry("tenant.found", id.to_string(), audit::tenant_made(&tenant)));
    let pools = pool::config::paths(roots, id).unwrap_or_default().into_iter();
    let pools = pools.filter_map(|path| Pool::load(roots, &path).ok());
    let pools = pools.map(|pool| entry("pool.found", pool.path().to_string(), audit::pool_made(&pool)));
    tenant.into_iter().chain(pools).collect()
}

fn of_node(roots: &Roots) -> Settings {
    let mut found = Settings::default();
    let Some(Some(node)) = found.note("the node", NodeConfig::load_if_there(roots)) else { return found };
    let records = audit::records(&roots.node_log(), Place::default());
    let Some((records, _)) = found.note("the node", records) else { return found };
    if node.is_logged && records.is_empty() {
        found.unread.push(format!("{}: {NO_LINE}", node.node_id));
    }
    let set = audit::last_set(&records);
    let others = set.keys().filter(|path| **path != node.node_id);
    found.differing.extend(others.map(|path| format!("{}: its log is of {path}", node.node_id)));
    found.compare(&node.node_id, &set, &node);
    found
}

fn of_tenant(roots: &Roots, id: &TenantId) -> Settings {
    let (mut found, folder) = (Settings::default(), tenant::config::folder(roots, id));
    let records = audit::records(&folder, Place::default());
    let Some((records, _)) = found.note(id, records) else { return found };
    if records.is_empty() {
        found.unread.push(format!("{id}: {NO_LINE}"));
    }
    let set = audit::last_set(&records);
    if let Some(tenant) = found.note(id, Tenant::load(roots, id)) {
        found.compare(id.as_ref(), &set, &tenant);
    }
    for path in found.note(id, pool::config::paths(roots, id)).into_iter().flatten() {
        if let Some(pool) = found.note(&path, Pool::load(roots, &path)) {
            found.compare(&path.to_string(), &set, &pool);
        }
    }
    // Destroyed meanwhile.
    if folder.exists() { found } else { Settings::default() }
}
