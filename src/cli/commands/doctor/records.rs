//! Are the records what mvm wrote: audit logs, and settings by what these say of them?

use super::{Check, fail, fail_with, ok};
use crate::{
    cli::{commands::audit::Log, error::CliError, output::count},
    infra::config::Roots,
    node::{self, Settings},
};

/// Are the audit logs of the node and of all tenants whole, also of those that were destroyed?
pub(super) fn audit_logs(roots: &Roots) -> Check {
    const NAME: &str = "audit logs";
    let logs = match Log::all(roots) {
        Ok(logs) => logs,
        Err(error) => return fail_with(NAME, &error),
    };
    let (mut whole, mut wrong) = (0_u64, Vec::new());
    for log in logs {
        match log.and_then(|log| log.verify_if_there(roots)) {
            Ok(there) => whole += u64::from(there.is_some()),
            Err(error) => wrong.push(error),
        }
    }
    match wrong.first() {
        None => ok(NAME, format!("{} whole", count(whole, "log"))),
        Some(first) => {
            let all: Vec<String> = wrong.iter().map(CliError::whole).collect();
            fail(NAME, all.join("; "), first.remedy().unwrap_or("put its files back from a copy"))
        }
    }
}

/// Is every setting as a command has set it last, as far as the logs say?
pub(super) fn settings(roots: &Roots) -> Check {
    const NAME: &str = "settings";
    let Settings { differing, unread } = match node::settings(roots) {
        Ok(settings) => settings,
        Err(error) => return fail_with(NAME, &error.into()),
    };
    match (differing.is_empty(), unread.is_empty()) {
        (true, true) => ok(NAME, "none differs from what the logs say"),
        (true, false) => fail(NAME, unread.join("; "), "put what cannot be read back from a copy"),
        (false, _) => fail(
            NAME,
            [differing, unread].concat().join("; "),
            "find out who changed it; then put back what it was, or set it by mvm, to another value and back: that is logged",
        ),
    }
}
