//! What a guest gets that was restored and is not served yet: a tenant's secrets, opened, sent over vsock, confirmed, and wiped here; with
//! them the time, where it slept. Nothing of them is in what the guest was restored from, or in any record.

use std::time::{Duration, Instant};

use mvm_proto::{
    Answer, Code, Request,
    message::{Confirmed, facts},
    secrets::{HOOK_LIMIT, SecretFile, SecretSet, Tell, confirmation},
};

use super::{
    config::Instance,
    fc_config, guard,
    guest::{Guest, GuestError, identity, printable},
    lifecycle::LifecycleError,
};
use crate::{
    infra::{config::Roots, entropy},
    security::metadata::NO_SERVICE,
    vm::{
        pool::{
            config::{AgentMode, Pool},
            on_rotate::OnRotate,
        },
        tenant::secrets::{self, Opened, Secrets},
    },
    vmm::{
        client::{Client, VmmError},
        process::Vmm,
    },
};

/// Between two greetings of a guest that has no place for one.
const AGAIN: Duration = Duration::from_millis(20);

/// What a guest was given.
#[derive(Debug, Default)]
pub struct Given {
    /// What it confirmed.
    pub confirmed: Vec<Confirmed>,
    /// Which set of its tenant's secrets it has now.
    pub generation: Option<u64>,
    /// Why who should have heard of it did not.
    pub untold: Option<String>,
}

/// Puts what the guest of an instance may read of itself into its VMM, in place of what was there; of secrets, which it has by
/// its record.
///
/// # Errors
/// When the VMM does not take it.
pub fn put_metadata(client: &mut Client, instance: &Instance, pool: &Pool) -> Result<(), LifecycleError> {
    fc_config::metadata(instance, pool).map_or(Ok(()), |call| Ok(client.call(&call)?))
}

/// Has the guest of an instance that runs another set of secrets than its tenant?
pub fn is_behind(instance: &Instance, secrets: Option<&Secrets>) -> bool {
    let wanted = secrets.filter(|secrets| instance.secrets.is_some() || !secrets.secrets.is_empty());
    let has_agent = instance.agent == AgentMode::Required;
    has_agent
        && instance.status.has_vmm()
        && wanted.is_some_and(|secrets| instance.secrets != Some(secrets.generation))
}

/// A guest that goes on, whoever let it, hears what time it is and gets its secrets, which may be others by now; one without an agent is
/// not asked.
///
/// # Errors
/// When it does not confirm it.
pub fn greet(roots: &Roots, instance: &Instance, vmm: &Vmm) -> Result<Given, LifecycleError> {
    if instance.agent == AgentMode::None {
        return Ok(Given::default());
    }
    let deadline = Instant::now() + roots.guest_timeout;
    loop {
        match greet_once(roots, instance, vmm) {
            // Those who were connected before a sleep are a moment in finding out that they are no more.
            Err(LifecycleError::Guest(
                GuestError::Refused { code: Code::Busy, .. } | GuestError::Closed { .. },
            )) if Instant::now() < deadline && !vmm.has_ended() => {
                std::thread::sleep(AGAIN);
            }
            greeted => return greeted,
        }
    }
}

fn greet_once(roots: &Roots, instance: &Instance, vmm: &Vmm) -> Result<Given, LifecycleError> {
    let greeted = identity::wake(roots, Guest::await_loaded(roots, instance, vmm)?, instance)?;
    let given = give(roots, instance, vmm, || Guest::await_again(roots, instance, vmm))?;
    Ok(Given { confirmed: [greeted, given.confirmed].concat(), ..given })
}

/// Gives a guest its tenant's secrets, over a connection that is made for that; nothing where there are none, and it has none. Every
/// secret that leaves the host comes by here.
///
/// # Errors
/// When its VMM is not guarded as its pool wants by now, they cannot be opened, or it does not confirm that it has them: it must
/// not go on then.
pub fn give(
    roots: &Roots,
    instance: &Instance,
    vmm: &Vmm,
    connect: impl FnOnce() -> Result<Guest, GuestError>,
) -> Result<Given, LifecycleError> {
    let opened = match secrets::open(roots, &instance.tenant_id)? {
        Some(opened) if instance.secrets.is_some() || !opened.secrets.is_empty() => opened,
        _ => return Ok(Given::default()),
    };
    let pool = Pool::load(roots, &instance.path().pool_path())?;
    guard::check(roots, &pool, vmm, instance.slot(roots)?)?;
    let tell = match pool.on_rotate.clone() {
        OnRotate::Nobody => Tell::Nobody,
        OnRotate::Signal(number) => Tell::Signal(number),
        OnRotate::Exec(path) => Tell::Exec(path),
    };
    let given = send(connect()?, &opened, tell)?;
    // What it reads of itself names the set that it has: this one, from now on.
    let has = Instance { secrets: given.generation, ..instance.clone() };
    let mut client = Client::connect_now(&roots.vmm_dir(&instance.net.tap_dev))?;
    match put_metadata(&mut client, &has, &pool) {
        // One that was started without such a service has none that could say it.
        Err(LifecycleError::Vmm(VmmError::Refused { message, .. })) if message.contains(NO_SERVICE) => {
            Ok(given)
        }
        put => put.map(|()| given),
    }
}

fn send(mut guest: Guest, Opened { generation, secrets }: &Opened, tell: Tell) -> Result<Given, GuestError> {
    let no_salt = |error: std::io::Error| GuestError::Failed {
        fact: facts::SECRETS.to_owned(),
        why: error.to_string(),
    };
    let salt = entropy::random().map_err(no_salt)?;
    let expected =
        confirmation(&salt, secrets.iter().map(|(name, content)| (name.as_ref(), content.as_slice())));
    let files =
        secrets.iter().map(|(name, content)| SecretFile { name: name.to_string(), size: content.len() });
    let runs_a_program = matches!(tell, Tell::Exec(_));
    let request = Request::Secrets(SecretSet { salt, files: files.collect(), tell });
    // All of it takes no longer than an answer: its instance is locked until then. None is on its way before the guest has said that it takes them.
    match guest.ask(&request, Duration::ZERO).map_err(old)? {
        Answer::Ready {} => {}
        _ => return Err(guest.unexpected()),
    }
    for (_, content) in secrets {
        guest.send(content)?;
    }
    if runs_a_program {
        guest.give_more(HOOK_LIMIT);
    }
    let Answer::Receipt(mut receipt) = guest.answer()? else { return Err(guest.unexpected()) };
    // It has them, whatever became of who should have heard of it.
    let untold = match receipt.failed.take() {
        Some(failure) if failure.fact == facts::TOLD => Some(printable(&failure.why)),
        failed => {
            receipt.failed = failed;
            None
        }
    };
    let told = receipt.confirmed.iter().find(|one| one.fact == facts::TOLD).cloned();
    let mut confirmed = identity::check(receipt, &[(facts::SECRETS, Some(expected))])?;
    confirmed.extend(told.map(|one| Confirmed {
        value: printable(&one.value),
        ms: identity::plausible(one.ms),
        ..one
    }));
    confirmed.extend(untold.iter().map(|why| Confirmed {
        fact: facts::TOLD.to_owned(),
        value: format!("nobody: {why}"),
        ms: 0.0,
    }));
    Ok(Given { confirmed, generation: Some(*generation), untold })
}

/// What it means that an agent does not know the request.
fn old(error: GuestError) -> GuestError {
    match error {
        GuestError::Refused { request, code: Code::Unsupported, .. } => GuestError::Refused {
            request,
            code: Code::Unsupported,
            why: "its tenant has some, and this agent is older than they are".to_owned(),
        },
        error => error,
    }
}
