//! `mvm instance …`

mod view;

use std::time::Duration;

pub use self::view::InstanceView;
pub(super) use self::view::without_secrets;
use self::view::{describe, doubts, took};
use super::{console, guest};
use crate::cli::{
    arguments::instance::{DiskCommand, InstanceCommand, StatsOf},
    error::{CliError, Kind},
    output::{Out, bytes, escape, mib},
};
use crate::{
    infra::watch::Watch,
    store::StoreError,
    vm::{
        fleet,
        instance::{
            config::{self, Instance},
            fc_config::files,
            lifecycle::{
                self, CreateOptions, LifecycleError, Operator, Outcome, load_pool, load_tenant, resolve,
            },
            logs,
            state::{self, Event, Next, State},
            stats::{self, Interfaces, Usage},
            wait,
        },
        naming::{InstancePath, InstanceRef, Scope},
        pool::{artifacts::Artifacts, config::AgentMode},
    },
    vmm::process,
};

fn show(operator: &Operator, instance: Instance) -> Result<InstanceView, CliError> {
    let current = Artifacts::of(&operator.roots, &instance.path().pool_path()).current()?;
    Ok(InstanceView::new(instance, current.is_some()).in_full(&operator.roots))
}

/// Carries a verb out on an instance and says how it went.
fn verb(
    out: &Out,
    operator: &mut Operator,
    typed: &InstanceRef,
    doing: impl Fn(&InstancePath) -> String,
    operation: impl FnOnce(&mut Operator, &InstancePath) -> Result<Outcome, LifecycleError>,
    went: impl FnOnce(&InstanceView) -> String,
) -> Result<(), CliError> {
    let path = resolve(&operator.roots, typed)?;
    let progress = out.progress(&doing(&path));
    let outcome = operation(operator, &path).map_err(|error| CliError::of_instance(&error, &path))?;
    drop(progress);
    let view = show(operator, outcome.instance)?;
    out.done(&view, || match outcome.changed {
        true => format!("{} {}", view.instance.instance_id, went(&view)),
        false if view.is_archived() => {
            format!("{} is already archived", view.instance.instance_id)
        }
        false => format!("{} is already {}", view.instance.instance_id, view.instance.status),
    });
    Ok(())
}

fn asleep(out: &Out, view: &InstanceView) -> String {
    let written = view.snapshot.as_ref().map_or(0, |snapshot| snapshot.written_bytes);
    format!("asleep in {}, {} of memory written", took(out, view), bytes(written))
}

fn awake(out: &Out, view: &InstanceView) -> String {
    format!("awake in {}{}", took(out, view), doubts(out, view) + &without_secrets(out, view))
}

/// Loads an instance; one whose VMM ended, or whose last operation was cut off, is settled first.
fn load(operator: &mut Operator, typed: &InstanceRef) -> Result<Instance, CliError> {
    let path = resolve(&operator.roots, typed)?;
    let instance = Instance::load(&operator.roots, &path)?;
    lifecycle::settle(operator, instance)?.ok_or_else(|| half_made(&path))
}

/// The same for who only shows it: no guest is waited for.
fn load_to_show(operator: &mut Operator, typed: &InstanceRef) -> Result<Instance, CliError> {
    let path = resolve(&operator.roots, typed)?;
    let instance = Instance::load(&operator.roots, &path)?;
    lifecycle::settle_unasked(operator, instance)?.ok_or_else(|| half_made(&path))
}

fn half_made(path: &InstancePath) -> CliError {
    CliError::new(Kind::NotFound, "not_found", format!("{path} was half made, and is gone"))
}

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, command: InstanceCommand) -> Result<u8, CliError> {
    match command {
        InstanceCommand::Create { pool, published } => {
            let instance = lifecycle::create(operator, &pool, CreateOptions { published })?;
            let view = show(operator, instance)?;
            if out.quiet && !out.json {
                // What was made has a name that nobody could guess.
                out.raw(format!("{}\n", view.path).as_bytes());
            }
            out.done(&view, || {
                let next = match view.instance.status {
                    State::Created => {
                        format!("mvm pool import {pool} --oci-archive FILE, or --kernel FILE --rootfs FILE")
                    }
                    _ => format!("mvm instance start {}", view.path),
                };
                format!(
                    "{} {} {}        next: {next}",
                    view.path, view.instance.net.guest_ip, view.instance.status
                )
            });
        }
        InstanceCommand::List { scope } => return list(out, operator, scope.as_ref()),
        InstanceCommand::Info { instance } => {
            let instance = load_to_show(operator, &instance)?;
            let view = show(operator, instance)?;
            let progress = out.progress(&format!("asking the guest of {}", view.path));
            let view = view.with_kernel(&operator.roots).with_guest(&operator.roots);
            drop(progress);
            out.show(&view, || describe(out, &view));
        }
        InstanceCommand::Why { instance } => why(out, operator, &instance)?,
        InstanceCommand::Start { instance } => {
            let doing = |path: &InstancePath| format!("starting {path}");
            let started = |view: &InstanceView| {
                let doubts = doubts(out, view) + &without_secrets(out, view);
                format!("{} {}{doubts}", view.instance.net.guest_ip, took(out, view))
            };
            verb(out, operator, &instance, doing, lifecycle::start, started)?;
        }
        InstanceCommand::Stop { instance, force } => {
            let doing = |path: &InstancePath| format!("waiting for the guest of {path} to shut down");
            let stop = |operator: &mut Operator, path: &InstancePath| lifecycle::stop(operator, path, force);
            let why = |view: &InstanceView| {
                view.instance.last_exit.as_ref().map(|exit| exit.why.clone()).unwrap_or_default()
            };
            verb(out, operator, &instance, doing, stop, why)?;
        }
        InstanceCommand::Warm { instance } => {
            let doing = |path: &InstancePath| format!("pausing {path}");
            verb(out, operator, &instance, doing, lifecycle::warm, |_| "warm".into())?;
        }
        InstanceCommand::Resume { instance } => {
            let doing = |path: &InstancePath| format!("resuming {path}");
            verb(out, operator, &instance, doing, lifecycle::resume, |_| "running".into())?;
        }
        InstanceCommand::Sleep { instance, force } => {
            let doing = |path: &InstancePath| format!("putting {path} to sleep");
            let sleep =
                |operator: &mut Operator, path: &InstancePath| lifecycle::sleep(operator, path, force);
            verb(out, operator, &instance, doing, sleep, |view| asleep(out, view))?;
        }
        InstanceCommand::Wake { instance, force } => {
            let doing = |path: &InstancePath| format!("waking {path}");
            let wake = |operator: &mut Operator, path: &InstancePath| lifecycle::wake(operator, path, force);
            verb(out, operator, &instance, doing, wake, |view| awake(out, view))?;
        }
        InstanceCommand::Archive { instance } => {
            let doing = |path: &InstancePath| format!("compressing {path}");
            let archived = |view: &InstanceView| {
                let taken = view.snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes);
                format!("archived, {} on disk", bytes(taken))
            };
            verb(out, operator, &instance, doing, lifecycle::archive, archived)?;
        }
        InstanceCommand::Wait { instance, state, timeout } => {
            let path = match (resolve(&operator.roots, &instance), instance.to_string().parse()) {
                // One that is gone already is what was waited for.
                (Err(LifecycleError::NotFound { .. }), Ok(path)) if state == State::Destroyed => path,
                (resolved, _) => resolved?,
            };
            match wait::wait(operator, &path, state, Duration::from_secs(timeout))? {
                Some(Some(instance)) => {
                    let view = show(operator, instance)?;
                    out.done(&view, || format!("{} is {state}", view.instance.instance_id));
                }
                Some(None) => out.done(&serde_json::json!({ "path": path, "status": state }), || {
                    format!("{} is {state}", path.instance)
                }),
                None => {
                    let what = format!("{path} was not {state} within {timeout} s");
                    return Err(
                        CliError::new(Kind::Failed, "timeout", what).fix(format!("mvm instance why {path}"))
                    );
                }
            }
        }
        InstanceCommand::Exec(arguments) => return Ok(guest::exec::run(out, operator, arguments)),
        InstanceCommand::Cp(arguments) => guest::copy::run(out, operator, arguments)?,
        InstanceCommand::Ssh(arguments) => return guest::ssh::run(operator, arguments),
        InstanceCommand::Logs { instance, follow, since, timestamps, vmm } => {
            let path = resolve(&operator.roots, &instance)?;
            let since = since.map(|since| since.before(operator.roots.now()));
            let record = Instance::load(&operator.roots, &path)?;
            if record.agent == AgentMode::Required && !vmm {
                let record = guest::reachable(operator, &instance)?;
                guest::logs::run(out, operator, &record, since, (follow, timestamps))?;
                return Ok(0);
            }
            let file = logs::vmm_log(&operator.roots, &path);
            let print = |bytes: &[u8]| print_lines(out, &logs::lines_since(bytes, since));
            stream(out, operator, &path, &file, follow, print)?;
        }
        InstanceCommand::Console(arguments) => return console::run(out, operator, &arguments),
        InstanceCommand::Stats { of: Some(StatsOf::Instance(instance)) } => {
            let instance = load(operator, &instance)?;
            guest::stats::run(out, operator, &instance)?;
        }
        InstanceCommand::Stats { of } => {
            let scope = of.and_then(|of| match of {
                StatsOf::Scope(scope) => Some(scope),
                StatsOf::Instance(_) => None,
            });
            return usage(out, operator, scope.as_ref());
        }
        InstanceCommand::Disk(DiskCommand::Grow { instance, size }) => {
            let path = resolve(&operator.roots, &instance)?;
            let instance = lifecycle::grow_disk(operator, &path, size)?;
            let view = show(operator, instance)?;
            out.done(&view, || {
                format!("the data disk of {path} has {}; a guest sees it at its next start", mib(size))
            });
        }
        InstanceCommand::Destroy { instance, destroy } => {
            let path = resolve(&operator.roots, &instance)?;
            out.confirm(&format!("Destroy {path}?"), destroy.yes)?;
            let data = config::folder(&operator.roots, &path).join("volumes").join(files::DATA);
            let kept = data.exists() && !destroy.wipe_volumes;
            lifecycle::destroy(operator, &path, destroy.wipe_volumes)?;
            out.done(&serde_json::json!({ "path": path, "status": "destroyed" }), || match kept {
                true => {
                    let kept = lifecycle::kept_folder(&operator.roots, &path.pool_path());
                    format!("{path} destroyed; its data disk is kept in {}", kept.display())
                }
                false => format!("{path} destroyed"),
            });
        }
    }
    Ok(0)
}

/// The instances of a scope, settled, and what is wrong with those that cannot be read or settled: they are neither
/// ignored nor in the way of the others. One that is destroyed at this moment is left out, and no guest is waited for.
fn scoped(
    operator: &mut Operator,
    scope: Option<&Scope>,
) -> Result<(Vec<InstanceView>, Vec<CliError>), CliError> {
    let roots = operator.roots.clone();
    match scope {
        Some(Scope { pool: Some(pool), .. }) => drop(load_pool(&roots, pool)?),
        Some(Scope { tenant, pool: None }) => drop(load_tenant(&roots, tenant)?),
        None => {}
    }
    let boot_id = process::boot_id();
    let (mut views, mut wrong) = (Vec::new(), Vec::new());
    for pool in fleet::pools(&roots, scope)? {
        let has_revision = Artifacts::of(&roots, &pool).current()?.is_some();
        for path in config::paths(&roots, &pool)? {
            let instance = match Instance::load_if_there(&roots, &path) {
                Ok(Some(instance)) => instance,
                Ok(None) => continue,
                Err(error) => {
                    wrong.push(error.into());
                    continue;
                }
            };
            let settled = match lifecycle::needs_settling(&roots, &instance, &boot_id) {
                true => lifecycle::settle_unasked(operator, instance.clone()).unwrap_or_else(|error| {
                    wrong.push(CliError::from(error).about(&path));
                    Some(instance)
                }),
                false => Some(instance),
            };
            views.extend(settled.map(|instance| InstanceView::new(instance, has_revision)));
        }
    }
    Ok((views, wrong))
}

/// Says what could not be read or settled. The exit code says so too.
pub(super) fn complain(out: &Out, wrong: &[CliError]) -> u8 {
    wrong.iter().map(|error| out.error(error)).max().unwrap_or(0)
}

fn list(out: &Out, operator: &mut Operator, scope: Option<&Scope>) -> Result<u8, CliError> {
    let (mut views, wrong) = scoped(operator, scope)?;
    if out.json {
        views = views.into_iter().map(|view| view.in_full(&operator.roots)).collect();
    }
    let now = operator.roots.now();
    out.show(&views, || {
        if views.is_empty() {
            return "no instances        next: mvm instance create TENANT/POOL".to_owned();
        }
        out.table(&view::COLUMNS, views.iter().map(|view| view::row(now, view)).collect())
    });
    Ok(complain(out, &wrong))
}

/// What would make an instance run, and what that would be refused for. Nothing is said where somebody is at work on it at this
/// moment.
fn refused(operator: &Operator, instance: &Instance) -> Result<Option<(Event, CliError)>, CliError> {
    let (roots, path) = (&operator.roots, instance.path());
    let event = match instance.status {
        // Where something was cut off, what goes on with it decides.
        _ if instance.pending.is_some() => return Ok(None),
        State::Ready | State::Stopped => Event::Start,
        State::Sleeping => Event::Wake,
        State::Warm => Event::Resume,
        State::Created | State::Running | State::Destroyed => return Ok(None),
    };
    let _lock = match lifecycle::try_lock(roots, &path) {
        Ok(Some(lock)) => lock,
        Ok(None) => return Ok(None),
        // It would not begin.
        Err(error) => return Ok(Some((event, error.into()))),
    };
    // It may have been started since it was read.
    let fresh = Instance::load_if_there(roots, &path)?;
    if fresh.is_none_or(|fresh| fresh.generation != instance.generation) {
        return Ok(None);
    }
    let refused = match event {
        Event::Resume => lifecycle::may_resume(operator, instance).err(),
        _ => lifecycle::may_launch(operator, instance).err(),
    };
    Ok(refused.map(|error| (event, CliError::of_instance(&error, &path))))
}

fn why(out: &Out, operator: &mut Operator, typed: &InstanceRef) -> Result<(), CliError> {
    let instance = load_to_show(operator, typed)?;
    let view = show(operator, instance)?;
    let instance = &view.instance;
    let because = match instance.status {
        State::Created => "its pool has no revision to run yet".to_owned(),
        State::Ready => "it was made and never started".to_owned(),
        State::Running => match &instance.vmm {
            Some(vmm) => format!("its VMM runs as pid {} ({} {})", vmm.pid, vmm.kind, vmm.version),
            None => "its VMM runs".to_owned(),
        },
        State::Warm if instance.is_ungreeted() => {
            "it woke, and waits off the network, paused, until it is resumed and greeted".to_owned()
        }
        State::Warm => "its vCPUs were paused; its memory is kept".to_owned(),
        State::Sleeping if view.is_archived() => "it was put to sleep, and archived".to_owned(),
        State::Sleeping => "it was put to sleep".to_owned(),
        State::Stopped | State::Destroyed => {
            instance.last_exit.as_ref().map_or("it was asked to".to_owned(), |exit| exit.why.clone())
        }
    };
    let progress = out.progress(&format!("looking at the snapshot of {}", view.path));
    let refused = refused(operator, instance)?;
    drop(progress);
    let can: Vec<&str> = Event::ALL
        .into_iter()
        .filter(|event| event.is_asked_for() && matches!(state::next(instance.status, *event), Next::To(_)))
        .map(Event::name)
        .collect();
    let log = match instance.status {
        State::Stopped => crate::vmm::client::log_tail(&logs::folder(&operator.roots, &view.path)),
        _ => String::new(),
    };
    let mut value = serde_json::json!({
        "path": view.path, "status": instance.status, "why": because, "can": can, "pending": instance.pending,
        "start_refused": null, "wake_refused": null, "resume_refused": null, "last_exit": instance.last_exit,
        "log": log.trim().lines().map(str::trim).collect::<Vec<_>>(),
    });
    if let Some((event, error)) = &refused {
        value[format!("{}_refused", event.name())] = serde_json::json!(error.body());
    }
    out.show(&value, || {
        let mut text = format!("{} is {}: {because}", view.path, instance.status);
        if let Some(intent) = &instance.pending {
            let operation = intent.operation.name();
            text.push_str(&format!(
                "\na {operation} was cut off, or is under way: {operation} it again, or mvm node recover"
            ));
        }
        if let Some((event, error)) = &refused {
            text.push_str(&format!(
                "\na {} would be refused: {}",
                event.name(),
                error.text(out.is_colored())
            ));
        }
        if !log.is_empty() {
            text.push_str(&format!("\nlast words of its VMM:{log}"));
        }
        text.push_str(&format!("\nyou can: {}", can.join(", ")));
        text
    });
    Ok(())
}

/// Prints a guest's or a VMM's bytes, escaped.
pub fn print_lines(out: &Out, bytes: &[u8]) {
    if !out.json {
        return out.raw(escape(bytes).as_bytes());
    }
    for line in String::from_utf8_lossy(bytes).lines() {
        out.json_line(&serde_json::json!({ "line": line }));
    }
}

/// Prints a log, and goes on as it grows until the instance's VMM has ended, or nobody reads it any more.
fn stream(
    out: &Out,
    operator: &mut Operator,
    path: &InstancePath,
    file: &std::path::Path,
    follow: bool,
    print: impl Fn(&[u8]),
) -> Result<(), CliError> {
    let tenant = load_tenant(&operator.roots, &path.tenant)?;
    logs::cut(&operator.roots, path, tenant.quotas.log_mib)?;
    let folder = logs::folder(&operator.roots, path);
    let watch = Watch::new(&folder).map_err(StoreError::io("watch", &folder))?;
    let mut from = 0;
    loop {
        let running = Instance::load(&operator.roots, path)?.vmm_is_alive(&process::boot_id());
        watch.add(file);
        let (bytes, end) = logs::read(file, from)?;
        from = end;
        print(&bytes);
        if !follow || !running || out.is_unheard() {
            return Ok(());
        }
        watch.wait(&[], Some(Duration::from_secs(1)));
    }
}

fn usage(out: &Out, operator: &mut Operator, scope: Option<&Scope>) -> Result<u8, CliError> {
    let interfaces = Interfaces::read();
    let (views, wrong) = scoped(operator, scope)?;
    let all: Vec<Usage> =
        views.iter().map(|view| stats::usage(&operator.roots, &view.instance, &interfaces)).collect();
    out.show(&all, || {
        if all.is_empty() {
            return "no instances        next: mvm instance create TENANT/POOL".to_owned();
        }
        out.table(&view::USAGE_COLUMNS, all.iter().map(view::usage_row).collect())
    });
    Ok(complain(out, &wrong))
}
