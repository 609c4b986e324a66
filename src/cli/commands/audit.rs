//! `mvm tenant audit`: a tenant's log, whether it is whole, and its head to keep elsewhere.

use std::{io::Read, path::Path};

use serde_json::json;

use crate::cli::{
    arguments::tenant::AuditArguments,
    error::CliError,
    output::{Out, count, time},
};
use crate::{
    security::{
        audit::{
            self, Place, Verified,
            kept::{KeptHead, Whose},
        },
        node_key::NodeKey,
    },
    store::{self, StoreError},
    vm::{
        instance::lifecycle::{LifecycleError, Operator, load_tenant},
        naming::TenantId,
        room::NodeConfig,
        tenant::{
            config::{self, Tenant},
            lifecycle,
        },
    },
};

/// A head is some 600 bytes.
const LONGEST_HEAD: u64 = 64 << 10;

/// A log: whose it is, and where it lies.
struct Log {
    whose: Whose,
    folder: std::path::PathBuf,
}

/// Runs the command.
pub fn run(out: &Out, operator: &Operator, arguments: &AuditArguments) -> Result<u8, CliError> {
    let roots = &operator.roots;
    let tenant = &arguments.tenant;
    if arguments.follow {
        load_tenant(roots, tenant)?;
        super::events::show(out, roots, Some(tenant), usize::MAX, true)?;
    } else if arguments.begin_anew {
        begin_anew(out, operator, tenant, arguments.yes)?;
    } else if arguments.head {
        let log = logs(operator, tenant)?.swap_remove(0);
        // Nothing is signed that is not whole.
        let verified = audit::verify(roots, tenant.as_ref(), &log.folder)?;
        let head = KeptHead::of(log.whose, &verified, roots.now());
        let signed = head
            .sign(&NodeKey::load_or_make(roots)?)
            .map_err(|error| StoreError::io("write", Path::new("the head"))(error.into()))?;
        out.show(&signed, || {
            let text = |name: &str| signed[name].as_str().unwrap_or_default().to_owned();
            format!(
                "{tenant} on {}\n  records    {}\n  hash       {}\n  at         {}\n  key        {}, {}\n  signature  {}\n\
                 with --json it is what --verify --against FILE takes",
                text("node_id"),
                head.count,
                head.hash,
                time(head.at),
                text("key_id"),
                text("public_key"),
                text("signature"),
            )
        });
    } else if let Some(file) = &arguments.against {
        against(out, operator, tenant, file)?;
    } else if arguments.verify {
        let folder = logs(operator, tenant)?.swap_remove(0).folder;
        let verified = audit::verify(roots, tenant.as_ref(), &folder)?;
        show_verified(out, tenant, &verified, None);
    } else {
        let folder = logs(operator, tenant)?.swap_remove(0).folder;
        let (records, _) = audit::records(&folder, Place::default())?;
        out.show(&records, || {
            records.iter().map(|record| super::events::line(out, record)).collect::<Vec<_>>().join("\n")
        });
    }
    Ok(0)
}

/// The tenant's log, and those that are kept of earlier tenants of that name; the latest first, and one at least.
fn logs(operator: &Operator, tenant: &TenantId) -> Result<Vec<Log>, CliError> {
    let roots = &operator.roots;
    let node_id = NodeConfig::load(roots)?.node_id;
    let log = |tenant: Tenant, folder| {
        let (tenant_id, tenant_created_at) = (tenant.tenant_id.to_string(), tenant.created_at);
        Log { whose: Whose { node_id: node_id.clone(), tenant_id, tenant_created_at }, folder }
    };
    let (mut all, mut missing) = (Vec::new(), None);
    match load_tenant(roots, tenant) {
        Ok(there) => all.push(log(there, config::folder(roots, tenant))),
        Err(error @ LifecycleError::NotFound { .. }) => missing = Some(error),
        Err(error) => return Err(error.into()),
    }
    for folder in lifecycle::kept_audit_logs_of(roots, tenant)? {
        all.push(log(store::read(&folder.join("tenant.json"))?, folder));
    }
    match missing {
        Some(error) if all.is_empty() => Err(error.into()),
        _ => Ok(all),
    }
}

fn against(out: &Out, operator: &Operator, tenant: &TenantId, file: &Path) -> Result<(), CliError> {
    let roots = &operator.roots;
    let mut all = logs(operator, tenant)?;
    let mut text = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(LONGEST_HEAD).read_to_end(&mut text))
        .map_err(StoreError::io("read", file))?;
    let about = |error: CliError| error.about(file.display());
    let head =
        KeptHead::read(&text, &NodeKey::load_or_make(roots)?).map_err(|error| about((&error).into()))?;
    // It may be of an earlier tenant of that name.
    let at = all.iter().position(|log| log.whose == head.whose).unwrap_or(0);
    let log = all.swap_remove(at);
    let verified = head.hold_against(roots, &log.folder, &log.whose)?;
    show_verified(out, tenant, &verified, Some(&head));
    Ok(())
}

fn show_verified(out: &Out, tenant: &TenantId, verified: &Verified, kept: Option<&KeptHead>) {
    let Verified { records, remarks, remarked, .. } = verified;
    let mut view = json!({ "tenant_id": tenant, "records": records, "ok": true, "remarks": remarks });
    if let Some(kept) = kept {
        view["against"] = json!({ "count": kept.count, "at": kept.at });
    }
    out.show(&view, || {
        let mut lines = vec![format!("{}, chain whole", count(*records, "record"))];
        lines.extend(kept.map(|kept| format!("as it was at {}: record {}", time(kept.at), kept.count)));
        lines.extend(remarks.iter().map(|remark| format!("record {}: {}", remark.record, remark.what)));
        lines.extend((*remarked > remarks.len()).then(|| format!("{remarked} such remarks in all")));
        lines.join("\n")
    });
}

fn begin_anew(out: &Out, operator: &Operator, tenant: &TenantId, yes: bool) -> Result<(), CliError> {
    let roots = &operator.roots;
    load_tenant(roots, tenant)?;
    out.confirm(&format!("Give up the audit log of {tenant}, and begin a new one?"), yes)?;
    let why = audit::begin_anew(roots, tenant.as_ref(), &config::folder(roots, tenant))?;
    out.done(&json!({ "tenant_id": tenant, "why": why }), || {
        format!("{tenant} has a new audit log, which says why; the files of the old one are beside it, as audit-N.*")
    });
    Ok(())
}
