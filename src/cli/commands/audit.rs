//! `mvm tenant audit`: a tenant's log, whether it is whole, and its head to keep elsewhere.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::cli::{
    arguments::{node::NodeAuditArguments, tenant::AuditArguments},
    error::CliError,
    output::{Out, count, time},
};
use crate::{
    infra::config::Roots,
    security::{
        audit::{
            self, AuditError, NODE, Place, Verified,
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

/// A log: its tenant as it is or was, and where it lies.
struct Log {
    tenant: Tenant,
    folder: PathBuf,
}

impl Log {
    /// The tenant's, or where there is none, that of the last one of that name.
    fn find(roots: &Roots, id: &TenantId) -> Result<Self, CliError> {
        match load_tenant(roots, id) {
            Ok(tenant) => Ok(Self { tenant, folder: config::folder(roots, id) }),
            Err(error @ LifecycleError::NotFound { .. }) => {
                let folder = lifecycle::kept_audit_logs_of(roots, id)?.into_iter().next().ok_or(error)?;
                Self::kept(folder)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn kept(folder: PathBuf) -> Result<Self, CliError> {
        Ok(Self { tenant: store::read(&folder.join("tenant.json"))?, folder })
    }

    fn whose(&self, roots: &Roots) -> Result<Whose, CliError> {
        Ok(Whose {
            node_id: NodeConfig::load(roots)?.node_id,
            tenant_id: self.tenant.tenant_id.to_string(),
            tenant_created_at: self.tenant.created_at,
        })
    }

    fn verify(&self, roots: &Roots) -> Result<Verified, CliError> {
        Ok(audit::verify(roots, self.tenant.tenant_id.as_ref(), &self.folder)?)
    }
}

/// Runs the command.
pub fn run(out: &Out, operator: &Operator, arguments: &AuditArguments) -> Result<u8, CliError> {
    let roots = &operator.roots;
    let tenant = &arguments.tenant;
    if arguments.follow {
        load_tenant(roots, tenant)?;
        super::events::show(out, roots, Some(tenant), usize::MAX, true)?;
    } else if arguments.begin_anew {
        begin_anew(out, roots, tenant, arguments.yes)?;
    } else if arguments.head {
        show_head(out, roots, tenant)?;
    } else if let Some(file) = &arguments.against {
        against(out, roots, tenant, file)?;
    } else if arguments.verify {
        show_verified(out, ("tenant_id", tenant.as_ref()), &Log::find(roots, tenant)?.verify(roots)?, None);
    } else {
        let log = Log::find(roots, tenant)?;
        // A log has its tenant's first line: what shows none is damaged or gone.
        show_records(out, &log.folder, || log.verify(roots).map(drop))?;
    }
    Ok(0)
}

/// The same for the log of the node's settings, which begins with the first of them.
pub fn run_for_node(out: &Out, roots: &Roots, arguments: &NodeAuditArguments) -> Result<(), CliError> {
    let (folder, node) = (roots.node_log(), NodeConfig::load(roots)?);
    let verified = match audit::verify(roots, NODE, &folder) {
        Err(AuditError::Gone { .. }) if !node.is_logged => None,
        verified => Some(verified),
    };
    if !arguments.begin_anew && !arguments.verify {
        return show_records(out, &folder, || Ok(verified.transpose().map(drop)?));
    }
    let Some(verified) = verified else {
        let nothing = json!({ "node_id": node.node_id, "records": 0, "ok": true, "remarks": [] });
        out.show(&nothing, || "nothing was set yet".to_owned());
        return Ok(());
    };
    if arguments.begin_anew {
        out.confirm("Give up the audit log of the node, and begin a new one?", arguments.yes)?;
        store::make_folder(&folder)?;
        let why = audit::begin_anew(roots, NODE, &folder)?;
        show_anew(out, ("node_id", &node.node_id), &why);
    } else {
        show_verified(out, ("node_id", &node.node_id), &verified?, None);
    }
    Ok(())
}

/// Shows a log; where it has no line, it is asked why.
fn show_records(
    out: &Out,
    folder: &Path,
    check: impl FnOnce() -> Result<(), CliError>,
) -> Result<(), CliError> {
    let (records, _) = audit::records(folder, Place::default())?;
    if records.is_empty() {
        check()?;
    }
    out.show(&records, || {
        records.iter().map(|record| super::events::line(out, record)).collect::<Vec<_>>().join("\n")
    });
    Ok(())
}

fn show_head(out: &Out, roots: &Roots, tenant: &TenantId) -> Result<(), CliError> {
    let log = Log::find(roots, tenant)?;
    // Nothing is signed that is not whole.
    let head = KeptHead::of(log.whose(roots)?, &log.verify(roots)?, roots.now());
    let signed = head
        .sign(&NodeKey::load_or_make(roots)?)
        .map_err(|error| StoreError::io("write", Path::new("the head"))(error.into()))?;
    out.show(&signed, || {
        let text = |name: &str| signed[name].as_str().unwrap_or_default().to_owned();
        format!(
            "{tenant} on {}\n  records    {}\n  hash       {}\n  at         {}\n  key        {}, {}\n  signature  {}\n\
             with --json it is what --verify --against FILE takes",
            head.whose.node_id,
            head.count,
            head.hash,
            time(head.at),
            text("key_id"),
            text("public_key"),
            text("signature"),
        )
    });
    Ok(())
}

fn against(out: &Out, roots: &Roots, tenant: &TenantId, file: &Path) -> Result<(), CliError> {
    let mut log = Log::find(roots, tenant)?;
    let mut text = Vec::new();
    File::open(file)
        .and_then(|file| file.take(LONGEST_HEAD).read_to_end(&mut text))
        .map_err(StoreError::io("read", file))?;
    let head = KeptHead::read(&text, &NodeKey::load_or_make(roots)?)
        .map_err(|error| CliError::from(&error).about(file.display()))?;
    // It may be of an earlier tenant of that name.
    if log.whose(roots)? != head.whose {
        for folder in lifecycle::kept_audit_logs_of(roots, tenant)? {
            match Log::kept(folder) {
                Ok(earlier) if earlier.whose(roots)? == head.whose => log = earlier,
                // One that cannot be read is in the way of nothing else.
                _ => {}
            }
        }
    }
    let verified = head.hold_against(roots, &log.folder, &log.whose(roots)?)?;
    show_verified(out, ("tenant_id", tenant.as_ref()), &verified, Some(&head));
    Ok(())
}

fn show_verified(out: &Out, (id, whose): (&str, &str), verified: &Verified, kept: Option<&KeptHead>) {
    let Verified { records, remarks, remarked, .. } = verified;
    let mut view = json!({ id: whose, "records": records, "ok": true, "remarks": remarks });
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

fn begin_anew(out: &Out, roots: &Roots, tenant: &TenantId, yes: bool) -> Result<(), CliError> {
    load_tenant(roots, tenant)?;
    out.confirm(&format!("Give up the audit log of {tenant}, and begin a new one?"), yes)?;
    let why = audit::begin_anew(roots, tenant.as_ref(), &config::folder(roots, tenant))?;
    show_anew(out, ("tenant_id", tenant.as_ref()), &why);
    Ok(())
}

fn show_anew(out: &Out, (id, whose): (&str, &str), why: &str) {
    out.done(&json!({ id: whose, "why": why }), || {
        format!("{whose} has a new audit log, which says why; the files of the old one are beside it, as audit-N.*")
    });
}
