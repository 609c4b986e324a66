//! `mvm tenant secrets …`: values come in by a file or stdin, and never go out.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
    path::Path,
};

use jiff::Timestamp;
use mvm_proto::secrets::MAX_SIZE;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::cli::{
    arguments::tenant::{SecretArguments, SecretsCommand},
    error::{CliError, Kind},
    output::{Out, count, time},
};
use crate::{
    security::{audit::AuditError, sealing::Plain},
    store::StoreError,
    vm::{
        instance::lifecycle::{self, Delivered, Operator, load_tenant},
        naming::{SecretName, TenantId},
        tenant::{
            lifecycle::TenantError,
            secrets::{self, Change, Secret, Secrets, SecretsError},
        },
    },
};

/// What brings a guest with older secrets up to its tenant's.
pub const CATCH_UP: &str =
    "their last change again gives these to a guest that runs, a resume to one that is warm";

/// A secret, but for its content.
#[derive(Debug, Serialize)]
struct SecretView<'a> {
    name: &'a SecretName,
    /// None where it was removed.
    #[serde(flatten)]
    is: Option<ContentView<'a>>,
}

/// What can be said of a content.
#[derive(Debug, Serialize)]
struct ContentView<'a> {
    version: u64,
    hash: &'a str,
    updated_at: Timestamp,
}

/// A secret that was changed, and who has it.
#[derive(Debug, Serialize)]
struct ChangeView<'a> {
    tenant_id: &'a TenantId,
    #[serde(flatten)]
    secret: SecretView<'a>,
    changed: bool,
    #[serde(flatten)]
    guests: Guests,
    /// The master key that was made for that, where none was given: beside what it protects.
    #[serde(skip_serializing_if = "Option::is_none")]
    master_key_made: Option<String>,
}

/// What lay there, and was taken.
#[derive(Debug, Serialize)]
struct AcceptView<'a> {
    tenant_id: &'a TenantId,
    changed: bool,
    generation: u64,
    names: Vec<&'a SecretName>,
    #[serde(flatten)]
    guests: Guests,
}

/// What became of guests that run.
#[derive(Debug, Default, Serialize)]
struct Guests {
    /// Instances whose guests have got it now.
    given: Vec<String>,
    /// Instances that run and have not got it, or whose workload was not told.
    failed: Vec<String>,
    /// Instances that run without an agent, and get none.
    no_agent: Vec<String>,
    /// Why it failed.
    #[serde(skip)]
    errors: Vec<CliError>,
}

impl Guests {
    fn give(out: &Out, operator: &mut Operator, tenant: &TenantId) -> Result<Self, CliError> {
        let progress = out.progress("giving it to guests that run");
        let delivered = lifecycle::give_all(operator, tenant)?;
        drop(progress);
        let mut guests = Self::default();
        for (path, one) in delivered {
            match one {
                Ok(Delivered::Given) => guests.given.push(path.to_string()),
                Ok(Delivered::Not) => {}
                Ok(Delivered::NoAgent) => guests.no_agent.push(path.to_string()),
                Ok(Delivered::Untold(why)) => {
                    guests.failed.push(path.to_string());
                    let what = format!("{path} has its secrets, and nobody in it was told: {why}");
                    guests.errors.push(CliError::new(Kind::Failed, "not_told", what));
                }
                Err(error) => {
                    guests.failed.push(path.to_string());
                    guests.errors.push(CliError::from(error).about(&path));
                }
            }
        }
        Ok(guests)
    }

    /// `; 2 guests got it`, and the like.
    fn said(&self) -> String {
        let some = |guests: &[String], what: &str| match guests.len() as u64 {
            0 => String::new(),
            number => format!("; {} {what}", count(number, "guest")),
        };
        some(&self.given, "got it") + &some(&self.no_agent, "without an agent get none")
    }

    fn exit_code(&self, out: &Out) -> u8 {
        self.errors.iter().map(|error| out.error(error)).max().unwrap_or(0)
    }
}

fn view<'a>(name: &'a SecretName, all: &'a Secrets) -> SecretView<'a> {
    let is = |secret: &'a Secret| ContentView {
        version: secret.version,
        hash: &secret.hash,
        updated_at: secret.updated_at,
    };
    SecretView { name, is: all.secrets.get(name).map(is) }
}

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, command: SecretsCommand) -> Result<u8, CliError> {
    match command {
        SecretsCommand::Set(SecretArguments { tenant, name, file }) => {
            load_tenant(&operator.roots, &tenant)?;
            change(out, operator, &tenant, &name, &Change::Set(content(file.as_deref())?))
        }
        SecretsCommand::Rotate(SecretArguments { tenant, name, file }) => {
            load_tenant(&operator.roots, &tenant)?;
            change(out, operator, &tenant, &name, &Change::Rotate(content(file.as_deref())?))
        }
        SecretsCommand::Remove { tenant, name } => change(out, operator, &tenant, &name, &Change::Remove),
        SecretsCommand::Accept { tenant } => {
            let accepted = secrets::accept(&operator.roots, &tenant);
            let (all, changed) = given_all_the_same(out, operator, &tenant, accepted)?;
            let view = AcceptView {
                tenant_id: &tenant,
                changed,
                generation: all.generation,
                names: all.secrets.keys().collect(),
                guests: Guests::give(out, operator, &tenant)?,
            };
            out.done(&view, || {
                let what = match (changed, view.names.len() as u64) {
                    (false, _) => "its secrets are as the last change left them".to_owned(),
                    (true, 0) => "it has no secrets any more".to_owned(),
                    (true, secrets) => format!("{} taken as they are", count(secrets, "secret")),
                };
                format!("{tenant}: {what}{}", view.guests.said())
            });
            // What was taken may be of no use.
            let opens = secrets::check(&operator.roots, &tenant).map_err(CliError::from);
            let wrong = opens.err().map_or(0, |error| out.error(&error));
            Ok(view.guests.exit_code(out).max(wrong))
        }
        SecretsCommand::List { tenant } => {
            load_tenant(&operator.roots, &tenant)?;
            let all = secrets::stored(&operator.roots, &tenant)?.unwrap_or_default();
            let views: Vec<SecretView> = all.secrets.keys().map(|name| view(name, &all)).collect();
            let behind = lifecycle::behind(operator, &tenant)?;
            out.show(&views, || list(out, &tenant, &views));
            for path in behind {
                out.note(format!("{path} has older ones: {CATCH_UP}"));
            }
            let opens = secrets::check(&operator.roots, &tenant).map_err(CliError::from);
            Ok(opens.err().map_or(0, |error| out.error(&error)))
        }
    }
}

fn list(out: &Out, tenant: &TenantId, views: &[SecretView]) -> String {
    if views.is_empty() {
        return format!("no secrets yet        next: mvm tenant secrets set {tenant} NAME --file FILE");
    }
    let row = |view: &SecretView| {
        let is = view.is.as_ref()?;
        Some(vec![view.name.to_string(), is.version.to_string(), is.hash.to_owned(), time(is.updated_at)])
    };
    out.table(&["name", "version", "hash", "since"], views.iter().filter_map(row).collect())
}

/// What a change has come to; where it stands and could not be finished, guests get it all the same.
fn given_all_the_same<T>(
    out: &Out,
    operator: &mut Operator,
    tenant: &TenantId,
    changed: Result<T, TenantError>,
) -> Result<T, CliError> {
    if let Err(
        TenantError::Secrets(SecretsError::Unfinished { .. }) | TenantError::Audit(AuditError::Unsaid { .. }),
    ) = &changed
    {
        let guests = Guests::give(out, operator, tenant)?;
        guests.exit_code(out);
        out.note(format!("{tenant}: it is changed{}", guests.said()));
    }
    Ok(changed?)
}

fn change(
    out: &Out,
    operator: &mut Operator,
    tenant: &TenantId,
    name: &SecretName,
    change: &Change,
) -> Result<u8, CliError> {
    let had_key = operator.roots.own_master_key().exists();
    let (all, changed) = match secrets::change(&operator.roots, tenant, name, change) {
        // Removed by a command that was cut off before all guests had heard of it.
        Err(TenantError::Secrets(SecretsError::NotFound { .. }))
            if matches!(change, Change::Remove) && !lifecycle::behind(operator, tenant)?.is_empty() =>
        {
            (secrets::stored(&operator.roots, tenant)?.unwrap_or_default(), false)
        }
        changed => given_all_the_same(out, operator, tenant, changed)?,
    };
    let file = operator.roots.own_master_key();
    let master_key_made = (!had_key && file.exists()).then(|| file.display().to_string());
    if let Some(file) = &master_key_made {
        out.note(format!("no master key was given: one was made, {file}, beside what it protects"));
    }
    let guests = Guests::give(out, operator, tenant)?;
    let secret = view(name, &all);
    let view = ChangeView { tenant_id: tenant, secret, changed, guests, master_key_made };
    out.done(&view, || {
        let what = match (&view.secret.is, changed) {
            (Some(is), true) => format!("{name} is version {} now", is.version),
            (Some(is), false) => format!("{name} is like that already, version {}", is.version),
            (None, true) => format!("{name} removed"),
            (None, false) => format!("there is no {name}"),
        };
        format!("{tenant}: {what}{}", view.guests.said())
    });
    Ok(view.guests.exit_code(out))
}

/// What a file or stdin holds: as it is, also its last line's end.
fn content(file: Option<&Path>) -> Result<Plain, CliError> {
    let (mut from, name) = match file {
        Some(path) => (File::open(path).map_err(StoreError::io("read", path))?, path),
        None if io::stdin().is_terminal() => {
            let what = "a secret is not typed where it can be seen";
            let fix = "--file FILE, or the secret through a pipe";
            return Err(CliError::new(Kind::Usage, "usage", what).fix(fix));
        }
        // Not std's own, which keeps what it has read.
        None => {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            let name = Path::new("stdin");
            (File::from(stdin.map_err(StoreError::io("read", name))?), name)
        }
    };
    // One byte more than may be: then it is too long.
    let mut content = Zeroizing::new(vec![0; MAX_SIZE + 1]);
    let mut length = 0;
    while length < content.len() {
        match from.read(&mut content[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", name)(error).into()),
        }
    }
    content.truncate(length);
    Ok(content)
}
