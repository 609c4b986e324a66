//! Are the records what mvm wrote: audit logs, and settings by what these say of them?

use super::{Check, fail, ok, warn};
use crate::{
    cli::{error::CliError, output::count},
    infra::config::Roots,
    node,
    security::audit::{self, NODE},
    store::StoreError,
    vm::tenant,
};

/// Are the audit logs of the node and of all tenants whole?
pub(super) fn audit_logs(roots: &Roots) -> Check {
    const NAME: &str = "audit logs";
    let tenants = match tenant::config::ids(roots) {
        Ok(tenants) => tenants,
        Err(error) => return warn(NAME, error.to_string(), "run as root"),
    };
    let node = roots.node_log().exists().then(|| (NODE.to_owned(), roots.node_log()));
    let logs = tenants.iter().map(|id| (id.to_string(), tenant::config::folder(roots, id)));
    let (mut whole, mut wrong) = (0_u64, Vec::new());
    for (whose, folder) in node.into_iter().chain(logs) {
        match audit::verify(roots, &whose, &folder) {
            Ok(_) => whole += 1,
            // Destroyed meanwhile.
            Err(_) if !folder.exists() => {}
            Err(error) => wrong.push(CliError::from(&error)),
        }
    }
    match wrong.first() {
        None => ok(NAME, format!("{} whole", count(whole, "log"))),
        Some(first) => {
            let all: Vec<String> = wrong.iter().map(CliError::whole).collect();
            fail(NAME, all.join("; "), first.remedy().unwrap_or("put the file back from a copy"))
        }
    }
}

/// Was every setting set by a command?
pub(super) fn settings(roots: &Roots) -> Check {
    const NAME: &str = "settings";
    match node::set_by_hand(roots) {
        Ok(found) if found.is_empty() => ok(NAME, "each as a command has set it last"),
        Ok(found) => fail(
            NAME,
            found.join("; "),
            "find out who edited it; then set it by mvm, or to another value and back, which is logged",
        ),
        Err(error @ StoreError::Io { .. }) => warn(NAME, CliError::from(error).whole(), "run as root"),
        Err(error) => fail(NAME, CliError::from(error).whole(), "put the file back from a copy"),
    }
}
