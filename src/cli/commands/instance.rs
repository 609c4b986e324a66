//! `mvm instance …`

use std::time::Duration;

use serde::Serialize;

use super::console;

use crate::cli::{
    arguments::instance::{DiskCommand, InstanceCommand},
    error::{CliError, Kind},
    output::{Out, Tone, bytes, count, data_disk, escape, mib, time},
};
use crate::{
    infra::watch::Watch,
    store::StoreError,
    vm::{
        fleet,
        instance::{
            config::{self, Instance, Receipt},
            fc_config::files,
            lifecycle::{
                self, CreateOptions, LifecycleError, Operator, Outcome, load_pool, load_tenant, resolve,
            },
            logs,
            snapshot::Delta,
            state::{self, Event, Next, State},
            stats::{self, Interfaces, Usage},
            wait,
        },
        naming::{InstancePath, InstanceRef, Scope},
        pool::{artifacts::Artifacts, config::VmmKind},
    },
    vmm::process,
};

/// An instance as it is shown: the record, its path, and the state as it is.
#[derive(Debug, Serialize)]
pub struct InstanceView {
    path: InstancePath,
    #[serde(flatten)]
    instance: Instance,
    /// What it would wake from; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<SnapshotView>,
}

/// A snapshot as it is shown.
#[derive(Debug, Serialize)]
struct SnapshotView {
    taken_at: jiff::Timestamp,
    vmm: VmmKind,
    vmm_version: String,
    /// What of the memory was written when it was taken.
    written_bytes: u64,
    /// What it takes on the disk.
    bytes: u64,
    archived: bool,
}

impl InstanceView {
    /// The state as it is depends on whether the pool has a revision.
    pub fn new(mut instance: Instance, has_revision: bool) -> Self {
        instance.status = lifecycle::effective_state(&instance, has_revision);
        Self { path: instance.path(), instance, snapshot: None }
    }
}

fn view(operator: &Operator, instance: Instance) -> Result<InstanceView, CliError> {
    let roots = &operator.roots;
    let current = Artifacts::of(roots, &instance.path().pool_path()).current()?;
    let mut view = InstanceView::new(instance, current.is_some());
    // One that cannot be read keeps nobody from seeing the instance: a wake says what is wrong with it.
    if view.instance.status == State::Sleeping
        && let Ok(Some(delta)) = Delta::load(roots, &view.path)
    {
        view.snapshot = Some(SnapshotView {
            bytes: delta.taken_bytes(roots),
            archived: delta.archive.is_some(),
            written_bytes: delta.written_bytes,
            taken_at: delta.taken_at,
            vmm: delta.origin.vmm,
            vmm_version: delta.origin.vmm_version,
        });
    }
    Ok(view)
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
    let outcome = operation(operator, &path)?;
    drop(progress);
    let view = view(operator, outcome.instance)?;
    out.done(&view, || match outcome.changed {
        true => format!("{} {}", view.instance.instance_id, went(&view)),
        false if view.snapshot.as_ref().is_some_and(|snapshot| snapshot.archived) => {
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
    format!("awake in {}{}", took(out, view), simulated(out, view))
}

/// How long the last operation took, and with `-v` its steps.
fn took(out: &Out, view: &InstanceView) -> String {
    match &view.instance.last_receipt {
        None => String::new(),
        Some(receipt) if out.verbose => format!("{:.0} ms: {}", receipt.total_ms, steps(receipt)),
        Some(receipt) => format!("{:.0} ms", receipt.total_ms),
    }
}

fn simulated(out: &Out, view: &InstanceView) -> String {
    match view.instance.vmm.as_ref().is_some_and(|vmm| vmm.kind == VmmKind::Sim) {
        true => out.paint(Tone::Doubtful, "  (simulated: no guest runs)"),
        false => String::new(),
    }
}

/// Loads an instance; one whose VMM ended, or whose last operation was cut off, is settled first.
fn load(operator: &mut Operator, typed: &InstanceRef) -> Result<Instance, CliError> {
    let path = resolve(&operator.roots, typed)?;
    let instance = Instance::load(&operator.roots, &path)?;
    lifecycle::settle(operator, instance)?.ok_or_else(|| {
        CliError::new(Kind::NotFound, "not_found", format!("{path} was half made, and is gone"))
    })
}

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, command: InstanceCommand) -> Result<u8, CliError> {
    match command {
        InstanceCommand::Create { pool, published } => {
            let instance = lifecycle::create(operator, &pool, CreateOptions { published })?;
            let view = view(operator, instance)?;
            if out.quiet && !out.json {
                // What was made has a name that nobody could guess.
                out.raw(format!("{}\n", view.path).as_bytes());
            }
            out.done(&view, || {
                let next = match view.instance.status {
                    State::Created => format!("mvm pool import {pool} --kernel FILE --rootfs FILE"),
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
            let instance = load(operator, &instance)?;
            let view = view(operator, instance)?;
            out.show(&view, || describe(out, &view));
        }
        InstanceCommand::Why { instance } => why(out, operator, &instance)?,
        InstanceCommand::Start { instance } => {
            let doing = |path: &InstancePath| format!("starting {path}");
            let started = |view: &InstanceView| {
                format!("{} {}{}", view.instance.net.guest_ip, took(out, view), simulated(out, view))
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
        InstanceCommand::Sleep { instance, force: _ } => {
            let doing = |path: &InstancePath| format!("putting {path} to sleep");
            verb(out, operator, &instance, doing, lifecycle::sleep, |view| asleep(out, view))?;
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
                    let view = view(operator, instance)?;
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
        InstanceCommand::Logs { instance, follow, since } => {
            let path = resolve(&operator.roots, &instance)?;
            let file = logs::vmm_log(&operator.roots, &path);
            let since = since.map(|since| since.before(operator.roots.now()));
            let print = |bytes: &[u8]| print_lines(out, &logs::lines_since(bytes, since));
            stream(out, operator, &path, &file, follow, print)?;
        }
        InstanceCommand::Console(arguments) => return console::run(out, operator, &arguments),
        InstanceCommand::Stats { scope } => return usage(out, operator, scope.as_ref()),
        InstanceCommand::Disk(DiskCommand::Grow { instance, size }) => {
            let path = resolve(&operator.roots, &instance)?;
            let instance = lifecycle::grow_disk(operator, &path, size)?;
            let view = view(operator, instance)?;
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

fn steps(receipt: &Receipt) -> String {
    let steps: Vec<String> =
        receipt.steps.iter().map(|step| format!("{} {:.1}", step.name, step.ms)).collect();
    steps.join(", ")
}

/// The instances of a scope, settled, and what is wrong with those that cannot be read or settled: they are neither
/// ignored nor in the way of the others. One that is destroyed at this moment is left out.
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
                true => lifecycle::settle(operator, instance.clone()).unwrap_or_else(|error| {
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
    let (views, wrong) = scoped(operator, scope)?;
    let now = operator.roots.now();
    out.show(&views, || {
        if views.is_empty() {
            return "no instances        next: mvm instance create TENANT/POOL".to_owned();
        }
        let row = |view: &InstanceView| {
            let instance = &view.instance;
            let status = match &instance.pending {
                Some(intent) => format!("{} ({} …)", instance.status, intent.operation.name()),
                None => instance.status.to_string(),
            };
            let since = match instance.status {
                State::Running => instance.entered_running_at,
                State::Warm => instance.entered_warm_at,
                State::Sleeping => instance.entered_sleeping_at,
                State::Stopped => instance.entered_stopped_at,
                _ => Some(instance.created_at),
            };
            vec![
                view.path.to_string(),
                status,
                instance.net.guest_ip.to_string(),
                instance.vmm.as_ref().map_or("-".into(), |vmm| vmm.kind.to_string()),
                instance.revision.as_ref().map_or("-".into(), |revision| revision.short().to_owned()),
                since.map_or("-".into(), |since| ago(now, since)),
            ]
        };
        out.table(
            &["instance", "state", "address", "vmm", "revision", "since"],
            views.iter().map(row).collect(),
        )
    });
    Ok(complain(out, &wrong))
}

/// How long ago something was, in its largest unit.
pub fn ago(now: jiff::Timestamp, then: jiff::Timestamp) -> String {
    match now.as_second() - then.as_second() {
        seconds @ ..60 => format!("{} s", seconds.max(0)),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn describe(out: &Out, view: &InstanceView) -> String {
    let instance = &view.instance;
    let (net, resources) = (&instance.net, instance.resources);
    let mut lines = vec![
        view.path.to_string(),
        format!("  state     {}", instance.status),
        format!(
            "  network   {} of {} via {}, {}, {}",
            net.guest_ip, net.cidr, net.gateway_ip, net.mac, net.tap_dev
        ),
        format!(
            "  gets      {}, {} memory, {}",
            count(resources.vcpus, "vCPU"),
            mib(resources.mem_mib),
            data_disk(resources.data_disk_mib)
        ),
    ];
    lines.extend(instance.revision.as_ref().map(|revision| format!("  revision  {revision}")));
    if let Some(vmm) = &instance.vmm {
        let jail = if vmm.insecure { out.paint(Tone::Doubtful, ", no jail") } else { String::new() };
        lines.push(format!("  vmm       {} {}, pid {}{jail}", vmm.kind, vmm.version, vmm.pid));
    }
    if let Some(intent) = &instance.pending {
        lines.push(format!(
            "  pending   {} since {} by pid {}",
            intent.operation.name(),
            time(intent.since),
            intent.pid
        ));
    }
    if let Some(snapshot) = &view.snapshot {
        let packed = if snapshot.archived { ", archived" } else { "" };
        lines.push(format!(
            "  snapshot  {}{packed}, by {} {}, {}",
            bytes(snapshot.bytes),
            snapshot.vmm,
            snapshot.vmm_version,
            time(snapshot.taken_at)
        ));
    }
    lines.push(format!("  made      {}", time(instance.created_at)));
    lines.extend(instance.entered_running_at.map(|at| format!("  started   {}", time(at))));
    lines.extend(instance.entered_stopped_at.map(|at| format!("  stopped   {}", time(at))));
    lines.extend(
        instance.last_exit.as_ref().map(|exit| format!("  last exit {}, {}", exit.why, time(exit.when))),
    );
    if let Some(receipt) = &instance.last_receipt {
        lines.push(format!(
            "  receipt   {} {:.1} ms: {}",
            receipt.operation,
            receipt.total_ms,
            steps(receipt)
        ));
    }
    lines.extend(net.published.iter().map(|port| format!("  publishes {port}")));
    lines.join("\n")
}

fn why(out: &Out, operator: &mut Operator, typed: &InstanceRef) -> Result<(), CliError> {
    let instance = load(operator, typed)?;
    let view = view(operator, instance)?;
    let instance = &view.instance;
    let because = match instance.status {
        State::Created => "its pool has no revision to run yet".to_owned(),
        State::Ready => "it was made and never started".to_owned(),
        State::Running => match &instance.vmm {
            Some(vmm) => format!("its VMM runs as pid {} ({} {})", vmm.pid, vmm.kind, vmm.version),
            None => "its VMM runs".to_owned(),
        },
        State::Warm => "its vCPUs were paused; its memory is kept".to_owned(),
        State::Sleeping => match &view.snapshot {
            Some(snapshot) if snapshot.archived => "it was put to sleep, and archived".to_owned(),
            Some(_) => "it was put to sleep".to_owned(),
            None => "it was put to sleep, and its snapshot is gone".to_owned(),
        },
        State::Stopped | State::Destroyed => {
            instance.last_exit.as_ref().map_or("it was asked to".to_owned(), |exit| exit.why.clone())
        }
    };
    let verbs = [
        Event::Start,
        Event::Pause,
        Event::Resume,
        Event::Sleep,
        Event::Wake,
        Event::Archive,
        Event::Stop,
        Event::Destroy,
    ];
    let can: Vec<&str> = verbs
        .into_iter()
        .filter(|&event| matches!(state::next(instance.status, event), Next::To(_)))
        .map(Event::name)
        .collect();
    let log = match instance.status {
        State::Stopped => crate::vmm::client::log_tail(&logs::folder(&operator.roots, &view.path)),
        _ => String::new(),
    };
    let value = serde_json::json!({
        "path": view.path, "status": instance.status, "why": because, "can": can, "pending": instance.pending,
        "last_exit": instance.last_exit, "log": log.trim().lines().map(str::trim).collect::<Vec<_>>(),
    });
    out.show(&value, || {
        let mut text = format!("{} is {}: {because}", view.path, instance.status);
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
    let text = escape(bytes);
    if !out.json {
        return out.raw(text.as_bytes());
    }
    for line in text.lines() {
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
        let row = |usage: &Usage| {
            vec![
                usage.path.to_string(),
                usage.status.to_string(),
                format!("{:.1} s", usage.cpu_ms as f64 / 1000.0),
                bytes(usage.rss_bytes),
                bytes(usage.net_rx_bytes),
                bytes(usage.net_tx_bytes),
                bytes(usage.disk_bytes),
            ]
        };
        out.table(
            &["instance", "state", "cpu", "memory", "net in", "net out", "disk"],
            all.iter().map(row).collect(),
        )
    });
    Ok(complain(out, &wrong))
}
