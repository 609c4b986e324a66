//! `mvm tenant audit` and `mvm node audit`: a log, whether it is whole, and its head to keep elsewhere.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde_json::json;

use crate::cli::{
    arguments::{audit::LogArguments, tenant::AuditArguments},
    error::{CliError, Kind, restore_or},
    output::{Out, count, time},
};
use crate::{
    infra::config::Roots,
    node,
    security::{
        audit::{
            self, AuditError, NODE, Place, Verified,
            kept::{KeptError, KeptHead, Whose},
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

/// A log: whose it is or was, and where it lies.
pub(super) struct Log {
    tenant_id: String,
    created_at: Timestamp,
    folder: PathBuf,
    /// Its tenant is destroyed: nothing is appended to it any more.
    is_destroyed: bool,
}

impl Log {
    /// The tenant's, or where there is none, that of the last one of that name.
    fn find(roots: &Roots, id: &TenantId) -> Result<Self, CliError> {
        match load_tenant(roots, id) {
            Ok(tenant) => Ok(Self::of(&tenant, config::folder(roots, id), false)),
            Err(error @ LifecycleError::NotFound { .. }) => {
                let folder = lifecycle::kept_audit_logs_of(roots, id)?.into_iter().next().ok_or(error)?;
                Self::kept(folder)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn of(tenant: &Tenant, folder: PathBuf, is_destroyed: bool) -> Self {
        Self { tenant_id: tenant.tenant_id.to_string(), created_at: tenant.created_at, folder, is_destroyed }
    }

    fn kept(folder: PathBuf) -> Result<Self, CliError> {
        let tenant: Tenant = store::read(&folder.join("tenant.json"))?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if name.rsplit_once('-').is_none_or(|(of, _)| of != tenant.tenant_id.to_string()) {
            let what =
                format!("{} holds the audit log of {}: it was put there", folder.display(), tenant.tenant_id);
            return Err(
                CliError::new(Kind::Failed, "audit_broken", what).fix("put its own log back from a copy")
            );
        }
        Ok(Self::of(&tenant, folder, true))
    }

    /// The node's, every tenant's, and those of destroyed ones; each that cannot be told whose it is, with why.
    pub(super) fn all(roots: &Roots) -> Result<Vec<Result<Self, CliError>>, CliError> {
        let node = NodeConfig::load_if_there(roots)?;
        let has_begun = roots.node_log().exists() || node.is_some_and(|node| node.is_logged);
        let mut logs: Vec<_> = has_begun.then(|| Ok(Self::of_node(roots))).into_iter().collect();
        for id in config::ids(roots)? {
            let folder = config::folder(roots, &id);
            match load_tenant(roots, &id) {
                // Destroyed meanwhile.
                Err(LifecycleError::NotFound { .. }) => {}
                tenant => {
                    logs.push(tenant.map(|tenant| Self::of(&tenant, folder, false)).map_err(CliError::from))
                }
            }
        }
        logs.extend(lifecycle::all_kept_audit_logs(roots)?.into_iter().map(Self::kept));
        Ok(logs)
    }

    /// Verifies it; `None` where it went meanwhile, with its tenant or its time.
    pub(super) fn verify_if_there(&self, roots: &Roots) -> Result<Option<Verified>, CliError> {
        let verified = self.verify(roots).map(Some);
        if verified.is_err() && !self.folder.exists() && self.tenant_id != NODE { Ok(None) } else { verified }
    }

    fn of_node(roots: &Roots) -> Self {
        let (tenant_id, created_at) = (NODE.to_owned(), Timestamp::UNIX_EPOCH);
        Self { tenant_id, created_at, folder: roots.node_log(), is_destroyed: false }
    }

    fn whose(&self, roots: &Roots) -> Result<Whose, CliError> {
        let node_id = NodeConfig::load(roots)?.node_id;
        Ok(Whose { node_id, tenant_id: self.tenant_id.clone(), tenant_created_at: self.created_at })
    }

    fn verify(&self, roots: &Roots) -> Result<Verified, CliError> {
        let verified = audit::verify(roots, &self.tenant_id, &self.folder);
        let verified = verified.map_err(|error| self.explain(&error.into()))?;
        let broken = |what| Err(CliError::new(Kind::Failed, "audit_broken", what).fix(self.remedy()));
        match verified.first_at {
            Some(first) if first < self.created_at => broken(format!(
                "the audit log begins at {first}, and its tenant was made at {}: it is an earlier one's",
                self.created_at
            )),
            _ => self.check_end(verified),
        }
    }

    /// A log that is kept of a tenant that was destroyed says so at its end.
    fn check_end(&self, verified: Verified) -> Result<Verified, CliError> {
        if !self.is_destroyed || verified.is_ended {
            return Ok(verified);
        }
        let what = format!(
            "the audit log in {} lies among those of destroyed tenants, and does not end with its tenant's destroy",
            self.folder.display()
        );
        let fix = format!("find out who put it there: by its log {} was not destroyed", self.tenant_id);
        Err(CliError::new(Kind::Failed, "audit_broken", what).fix(fix))
    }

    /// Would it take a line? What lies behind its head is looked at for that, not the whole of it.
    pub(super) fn check(&self, roots: &Roots) -> Result<(), CliError> {
        match audit::check(roots, &self.tenant_id, &self.folder) {
            // That says nothing of the log.
            Err(AuditError::Store(StoreError::Io { source, .. }))
                if source.kind() == ErrorKind::ReadOnlyFilesystem =>
            {
                Ok(())
            }
            checked => checked.map_err(|error| self.explain(&error.into())),
        }
    }

    fn hold_against(&self, roots: &Roots, head: &KeptHead) -> Result<Verified, CliError> {
        let held = head.hold_against(roots, &self.folder, &self.whose(roots)?);
        held.map_err(|error| self.explain(&error)).and_then(|verified| self.check_end(verified))
    }

    /// With what can be done about this log.
    fn explain(&self, error: &KeptError) -> CliError {
        let is_broken = matches!(error, KeptError::Audit(error) if !matches!(error, AuditError::Store(_)));
        let made = CliError::from(error);
        if is_broken { made.fix(self.remedy()) } else { made }
    }

    fn remedy(&self) -> String {
        let command = match self.tenant_id.as_str() {
            // After the log of a tenant that is destroyed comes no other.
            _ if self.is_destroyed => {
                return "put its files back from a copy: its tenant is destroyed".to_owned();
            }
            NODE => "node audit".to_owned(),
            tenant => format!("tenant audit {tenant}"),
        };
        restore_or(&format!("mvm {command} --begin-anew"))
    }
}

/// Runs the command.
pub fn run(out: &Out, operator: &Operator, arguments: &AuditArguments) -> Result<u8, CliError> {
    let AuditArguments { tenant, follow, log: what } = arguments;
    let roots = &operator.roots;
    if *follow || what.begin_anew {
        load_tenant(roots, tenant)?;
    }
    if *follow {
        super::events::show(out, roots, Some(tenant), usize::MAX, true)?;
        return Ok(0);
    }
    let kept = what.against.as_deref().map(|file| read_head(roots, file)).transpose()?;
    let mut log = Log::find(roots, tenant)?;
    // The head may be of an earlier tenant of that name.
    if let Some(head) = &kept
        && log.whose(roots)? != head.whose
    {
        for folder in lifecycle::kept_audit_logs_of(roots, tenant)? {
            match Log::kept(folder) {
                Ok(earlier) if earlier.whose(roots)? != head.whose => {}
                Ok(earlier) if log.is_destroyed => log = earlier,
                Ok(earlier) => return Err(of_an_earlier_one(roots, tenant, (&log, &earlier), head)?),
                // One that cannot be read is in the way of nothing else.
                Err(_) => {}
            }
        }
    }
    look(out, roots, ("tenant_id", tenant.as_ref()), &log, (what, kept.as_ref()))?;
    Ok(0)
}

/// The head is of a tenant that was destroyed, and there is one of that name: both logs may be whole, and one in the place of the other.
///
/// # Errors
/// Where one of them is not.
fn of_an_earlier_one(
    roots: &Roots,
    tenant: &TenantId,
    (log, earlier): (&Log, &Log),
    head: &KeptHead,
) -> Result<CliError, CliError> {
    earlier.hold_against(roots, head)?;
    log.verify(roots)?;
    let what = format!(
        "the kept head is of a {tenant} that was made at {} and destroyed, whose log in {} is as it was: record {} at {}; \
         the {tenant} that is there was made at {}, and has another log",
        earlier.created_at,
        earlier.folder.display(),
        head.count,
        time(head.at),
        log.created_at,
    );
    let fix = format!(
        "keep a head of the one that is there; where nobody destroyed {tenant}, somebody exchanged its log"
    );
    Ok(CliError::new(Kind::Failed, "audit_other", what).fix(fix))
}

/// The same for the node's log, which begins with the first setting, or the first kept log that was dropped.
pub fn run_for_node(out: &Out, roots: &Roots, what: &LogArguments) -> Result<(), CliError> {
    let (log, node) = (Log::of_node(roots), NodeConfig::load(roots)?);
    let kept = what.against.as_deref().map(|file| read_head(roots, file)).transpose()?;
    if kept.is_none() && !node.is_logged && audit::names(&log.folder)?.is_empty() {
        let nothing = json!({ "node_id": node.node_id, "records": 0, "ok": true, "remarks": [] });
        return match what {
            LogArguments { head: true, .. } => {
                let what = "nothing was done to this node yet: its log has not begun";
                Err(CliError::new(Kind::NotFound, "not_found", what))
            }
            LogArguments { verify: true, .. } | LogArguments { begin_anew: true, .. } => {
                out.show(&nothing, || "nothing was set yet".to_owned());
                Ok(())
            }
            _ => {
                out.show(&json!([]), String::new);
                Ok(())
            }
        };
    }
    look(out, roots, ("node_id", &node.node_id), &log, (what, kept.as_ref()))
}

/// Does with a log what is wanted.
fn look(
    out: &Out,
    roots: &Roots,
    id: (&str, &str),
    log: &Log,
    (what, kept): (&LogArguments, Option<&KeptHead>),
) -> Result<(), CliError> {
    match kept {
        _ if what.begin_anew => begin_anew(out, roots, id, log, what.yes),
        _ if what.head => show_head(out, roots, id, log),
        Some(head) => {
            show_verified(out, id, &log.hold_against(roots, head)?, kept);
            Ok(())
        }
        None if what.verify => {
            show_verified(out, id, &log.verify(roots)?, None);
            Ok(())
        }
        None => show_records(out, roots, log),
    }
}

/// Shows the lines of a log that can be read, and what is wrong with it.
fn show_records(out: &Out, roots: &Roots, log: &Log) -> Result<(), CliError> {
    let (records, _) = audit::records(&log.folder, Place::default())?;
    let verified = log.verify(roots).map(drop);
    if records.is_empty() {
        return verified;
    }
    out.show(&records, || {
        records.iter().map(|record| super::events::line(out, record)).collect::<Vec<_>>().join("\n")
    });
    verified
}

fn show_head(out: &Out, roots: &Roots, (_, whose): (&str, &str), log: &Log) -> Result<(), CliError> {
    // Nothing is signed that is not whole.
    let head = KeptHead::of(log.whose(roots)?, &log.verify(roots)?, roots.now());
    let signed = head
        .sign(&NodeKey::load_or_make(roots)?)
        .map_err(|error| StoreError::io("write", Path::new("the head"))(error.into()))?;
    out.show(&signed, || {
        let text = |name: &str| signed[name].as_str().unwrap_or_default().to_owned();
        let node = match log.tenant_id == NODE {
            true => String::new(),
            false => format!(" on {}", head.whose.node_id),
        };
        format!(
            "{whose}{node}\n  records    {}\n  hash       {}\n  at         {}\n  key        {}, {}\n  signature  {}\n\
             with --json it is what --verify --against FILE takes",
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

fn read_head(roots: &Roots, file: &Path) -> Result<KeptHead, CliError> {
    let mut text = Vec::new();
    File::open(file)
        .and_then(|file| file.take(LONGEST_HEAD).read_to_end(&mut text))
        .map_err(StoreError::io("read", file))?;
    KeptHead::read(&text, NodeKey::load(roots)?.as_ref())
        .map_err(|error| CliError::from(&error).about(file.display()))
}

fn begin_anew(
    out: &Out,
    roots: &Roots,
    (id, whose): (&str, &str),
    log: &Log,
    yes: bool,
) -> Result<(), CliError> {
    let of = if log.tenant_id == NODE { "the node" } else { whose };
    out.confirm(&format!("Give up the audit log of {of}, and begin a new one?"), yes)?;
    if log.tenant_id == NODE {
        store::make_folder(&log.folder)?;
    }
    let found = node::found(roots, log.tenant_id.parse().ok().as_ref());
    let why = audit::begin_anew(roots, &log.tenant_id, &log.folder, found)?;
    out.done(&json!({ id: whose, "why": why }), || {
        format!("{whose} has a new audit log, which says why; the files of the old one are beside it, as audit-N.*")
    });
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
