//! `mvm pool …`

use std::{collections::BTreeMap, time::Instant};

use serde::Serialize;

use super::instance::{InstanceView, complain, without_secrets};
use crate::cli::{
    arguments::pool::{Counts, CreateArguments, ImportArguments, PoolCommand, UpdateArguments},
    error::{CliError, Kind},
    output::{Out, Tone, bytes, count, data_disk, mib, time},
};
use crate::{
    infra::text::printable,
    store::{Schema, Sharing},
    vm::{
        image::{Image, oci::Unpacked},
        instance::{
            self,
            lifecycle::{Operator, base, load_pool, load_tenant},
            state::State,
        },
        naming::{PoolPath, RevisionHash, TenantId},
        pool::{
            artifacts::{Artifacts, HistoryEntry, Sources},
            config::{self, AgentMode, DesiredCounts, Pool, Resources, RuntimePolicy, VmmKind},
            import::{self, DEFAULT_CMDLINE, Kernel, OciSource},
            lifecycle,
            scale::{self, Goal},
        },
        tenant,
    },
};

/// A pool with what there is of it.
#[derive(Debug, Serialize)]
struct PoolView {
    path: String,
    #[serde(flatten)]
    pool: Pool,
    revision: Option<RevisionHash>,
    revisions: usize,
    instances: usize,
}

fn view(operator: &Operator, pool: Pool) -> Result<PoolView, CliError> {
    let path = pool.path();
    let artifacts = Artifacts::of(&operator.roots, &path);
    let instances = instance::config::paths(&operator.roots, &path)?.len();
    Ok(PoolView {
        path: path.to_string(),
        pool,
        revision: artifacts.current()?,
        revisions: artifacts.all()?.len(),
        instances,
    })
}

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, command: PoolCommand) -> Result<u8, CliError> {
    match command {
        PoolCommand::Create { pool, settings } => create(out, operator, &pool, settings)?,
        PoolCommand::Import { pool, sources } => import_revision(out, operator, &pool, sources)?,
        PoolCommand::List { tenant } => list(out, operator, tenant)?,
        PoolCommand::Info { pool } => {
            let view = view(operator, load_pool(&operator.roots, &pool)?.1)?;
            out.show(&view, || describe(out, &view));
        }
        PoolCommand::Update { pool, settings } => {
            let (pool, changed) = lifecycle::update(operator, &pool, |pool| settings.apply(pool))?;
            let view = view(operator, pool)?;
            out.done(&view, || match changed {
                true => {
                    format!(
                        "{} updated; egress holds at once, the rest from the next start of each instance",
                        view.path
                    )
                }
                false => format!("{} is like that already", view.path),
            });
        }
        PoolCommand::Scale { pool, counts, no_apply: true } => {
            scale::want(operator, &pool, counts.into())?;
            let view = view(operator, load_pool(&operator.roots, &pool)?.1)?;
            out.done(&view, || {
                format!("{pool}: {} wanted, and nothing done about it yet", wanted(&view.pool.desired_counts))
            });
        }
        PoolCommand::Scale { pool, counts, no_apply: false } => {
            return apply_scale(out, operator, &pool, counts.into());
        }
        PoolCommand::History { pool } => history(out, operator, &pool)?,
        PoolCommand::Rollback { pool, revision } => {
            let (manifest, changed) = lifecycle::rollback(operator, &pool, revision.as_ref())?;
            let view = view(operator, load_pool(&operator.roots, &pool)?.1)?;
            out.done(&view, || match changed {
                true => format!(
                    "{pool}: revision {} is current; what runs keeps its own",
                    manifest.revision.short()
                ),
                false => format!("{pool}: revision {} is current already", manifest.revision.short()),
            });
        }
        PoolCommand::Verify { pool, revision } => return verify(out, operator, &pool, revision),
        PoolCommand::Gc { pool } => {
            let removed = lifecycle::collect(operator, &pool)?;
            let revisions = removed.revisions.iter().map(|one| format!("removed {}", one.short()));
            let bases = removed.bases.iter().map(|one| format!("removed base {}", one.short()));
            let lines: Vec<String> = revisions.chain(bases).collect();
            out.done(&removed, || match lines.is_empty() {
                true => format!("{pool}: every revision and base is needed"),
                false => lines.join("\n"),
            });
        }
        PoolCommand::Destroy { pool, destroy } => {
            load_pool(&operator.roots, &pool)?;
            let instances = instance::config::paths(&operator.roots, &pool)?.len();
            // Nobody is asked for what is refused anyway.
            lifecycle::refuse_to_lose(&operator.roots, &pool, destroy.wipe_volumes)?;
            out.confirm(
                &format!("Destroy pool {pool} with its {}?", count(instances as u64, "instance")),
                destroy.yes,
            )?;
            let progress = out.progress(&format!("destroying {pool}"));
            lifecycle::destroy(operator, &pool, destroy.wipe_volumes)?;
            drop(progress);
            out.done(&serde_json::json!({ "path": pool.to_string(), "status": "destroyed" }), || {
                format!("{pool} destroyed")
            });
        }
    }
    Ok(0)
}

impl UpdateArguments {
    fn apply(&self, pool: &mut Pool) {
        let resources = &mut pool.instance_resources;
        resources.vcpus = self.cpus.unwrap_or(resources.vcpus);
        resources.mem_mib = self.mem.unwrap_or(resources.mem_mib);
        resources.data_disk_mib = self.data_disk.unwrap_or(resources.data_disk_mib);
        pool.egress = self.egress.clone().unwrap_or_else(|| pool.egress.clone());
        pool.seccomp_policy = self.seccomp.unwrap_or(pool.seccomp_policy);
        pool.insecure = self.insecure.unwrap_or(pool.insecure);
        pool.metadata_enabled = self.metadata.unwrap_or(pool.metadata_enabled);
        let policy = &mut pool.runtime_policy;
        policy.drain_timeout_seconds = self.drain_timeout.unwrap_or(policy.drain_timeout_seconds);
        policy.graceful_shutdown_seconds = self.graceful_shutdown.unwrap_or(policy.graceful_shutdown_seconds);
        pool.on_rotate = self.on_rotate.clone().unwrap_or_else(|| pool.on_rotate.clone());
        pool.pinned = self.pinned.unwrap_or(pool.pinned);
        pool.critical = self.critical.unwrap_or(pool.critical);
        for (key, value) in &self.labels {
            match value.as_str() {
                "" => pool.labels.remove(key),
                _ => pool.labels.insert(key.clone(), value.clone()),
            };
        }
    }
}

/// Makes the base snapshot from which the pool's guests will start, where they have an agent. Where that fails the pool is as
/// good as before, and its first start says why: so it is only said.
fn prepare_base(out: &Out, operator: &mut Operator, pool: &PoolPath) -> Result<String, CliError> {
    if load_pool(&operator.roots, pool)?.1.agent == AgentMode::None {
        return Ok(String::new());
    }
    let progress = out.progress("booting a guest for the base snapshot");
    let clock = Instant::now();
    let made = base::prepare(operator, pool);
    drop(progress);
    match made {
        Ok(Some(_)) => Ok(format!(", base snapshot in {} ms", clock.elapsed().as_millis())),
        Ok(None) => Ok(String::new()),
        Err(error) => {
            out.note(format!("no base snapshot yet: {error}"));
            Ok(String::new())
        }
    }
}

/// Makes a pool, with its image's revision and base snapshot. Returns it, whether it is new, and what is said of the base.
pub fn make(
    out: &Out,
    operator: &mut Operator,
    path: &PoolPath,
    settings: CreateArguments,
) -> Result<(Pool, bool, String), CliError> {
    // An image that is not there, or is damaged, is said before anything is made.
    let image = settings.image.as_ref().map(|name| Image::of(&operator.roots, name));
    let copying = image.as_ref().map(|image| image.lock(&operator.roots, Sharing::Shared)).transpose()?;
    let sources = image.map(|image| image.sources(&operator.roots)).transpose()?;
    let pool = Pool {
        schema_version: Schema,
        tenant_id: path.tenant.clone(),
        pool_id: path.pool.clone(),
        created_at: operator.roots.now(),
        flake_ref: settings.flake,
        image: settings.image,
        profile: settings.profile,
        vmm: settings.vmm.0,
        vmm_version: settings.vmm.1,
        agent: settings
            .agent
            .unwrap_or_else(|| sources.as_ref().map_or(AgentMode::None, |(_, manifest)| manifest.agent)),
        insecure: settings.insecure,
        seccomp_policy: settings.seccomp,
        instance_resources: Resources {
            vcpus: settings.cpus,
            mem_mib: settings.mem,
            data_disk_mib: settings.data_disk,
        },
        desired_counts: DesiredCounts::default(),
        egress: settings.egress,
        metadata_enabled: settings.metadata,
        runtime_policy: RuntimePolicy::default(),
        on_rotate: settings.on_rotate,
        labels: settings.labels.into_iter().collect::<BTreeMap<_, _>>(),
        pinned: false,
        critical: false,
    };
    let (mut pool, new) = lifecycle::create(operator, &pool)?;
    let mut imported = false;
    if let Some((sources, _)) = sources
        && Artifacts::of(&operator.roots, path).current()?.is_none()
    {
        let progress = out.progress("copying and checking the image");
        import::files(operator, path, &sources)?;
        drop(progress);
        imported = true;
        // The first revision fixes the VMM's version.
        pool = load_pool(&operator.roots, path)?.1;
    }
    drop(copying);
    let prepared = if imported { prepare_base(out, operator, path)? } else { String::new() };
    Ok((pool, new, prepared))
}

fn create(
    out: &Out,
    operator: &mut Operator,
    path: &PoolPath,
    settings: CreateArguments,
) -> Result<(), CliError> {
    let (pool, new, prepared) = make(out, operator, path, settings)?;
    let view = view(operator, pool)?;
    out.done(&view, || match new {
        true => {
            let pool = &view.pool;
            let sim = if pool.vmm == VmmKind::Sim { ", on the simulated VMM" } else { "" };
            let resources = pool.instance_resources;
            let next = match &view.revision {
                Some(_) => format!("mvm instance create {path}"),
                None => format!("mvm pool import {path} --oci-archive FILE, or --kernel FILE --rootfs FILE"),
            };
            let image = pool.image.as_ref().map_or(String::new(), |name| format!(", image {name}"));
            format!(
                "{path}: {}, {}{image}{prepared}{sim}, egress {}        next: {next}",
                count(resources.vcpus, "vCPU"),
                mib(resources.mem_mib),
                pool.egress
            )
        }
        false => format!("{path} exists already, just like that"),
    });
    Ok(())
}

fn import_revision(
    out: &Out,
    operator: &mut Operator,
    pool: &PoolPath,
    arguments: ImportArguments,
) -> Result<(), CliError> {
    let ImportArguments { kernel, rootfs, oci_archive, kernel_image, initrd, cmdline } = arguments;
    let (manifest, unpacked) = match (oci_archive, rootfs, kernel) {
        (None, Some(rootfs), Some(kernel)) => {
            let progress = out.progress("copying and checking");
            let cmdline = cmdline.unwrap_or_else(|| DEFAULT_CMDLINE.to_owned());
            let manifest = import::files(operator, pool, &Sources { kernel, rootfs, initrd, cmdline })?;
            drop(progress);
            (manifest, None)
        }
        (Some(archive), None, kernel) => {
            let kernel = match (kernel, initrd) {
                (Some(kernel), Some(initrd)) => Kernel::Files { kernel, initrd },
                (None, None) => Kernel::Image(kernel_image.map_or_else(|| "debian".parse(), Ok)?),
                _ => return Err(usage("with --oci-archive, --kernel and --initrd go together")),
            };
            let mut progress = None;
            let mut step = |what: &'static str| {
                // The line of the step before goes first.
                drop(progress.take());
                progress = Some(out.progress(what));
                if out.verbose {
                    out.note(what);
                }
            };
            let source = OciSource { archive, kernel, cmdline };
            let made = import::oci(operator, pool, &source, &mut step);
            drop(progress);
            let (manifest, unpacked) = made?;
            (manifest, Some(unpacked))
        }
        // The parser of the command line lets nothing else through.
        _ => return Err(usage("it takes --kernel and --rootfs, or --oci-archive")),
    };
    let prepared = prepare_base(out, operator, pool)?;
    let imported = Imported { pool: view(operator, load_pool(&operator.roots, pool)?.1)?, oci: unpacked };
    for left_out in imported.oci.iter().flat_map(left_out) {
        out.note(left_out);
    }
    out.done(&imported, || {
        let (revision, size) = (manifest.revision.short(), bytes(manifest.size_bytes()));
        let runs = imported.oci.as_ref().map_or(String::new(), |unpacked| {
            let layers = count(unpacked.layers as u64, "layer");
            format!(", {layers}, runs {}", printable(&unpacked.workload.argv.join(" "), 400))
        });
        format!("{pool}: revision {revision} verified and current, {size}{runs}{prepared}        next: mvm instance create {pool}")
    });
    Ok(())
}

fn usage(what: &str) -> CliError {
    CliError::new(Kind::Usage, "usage", what).fix("mvm pool import --help")
}

/// A pool after an import, and of what its revision was made.
#[derive(Debug, Serialize)]
struct Imported {
    #[serde(flatten)]
    pool: PoolView,
    #[serde(skip_serializing_if = "Option::is_none")]
    oci: Option<Unpacked>,
}

/// What of an image is not in the guest, a line each.
fn left_out(unpacked: &Unpacked) -> Vec<String> {
    let counts = &unpacked.counts;
    let lines = [
        (counts.devices_left_out, "device", "the guest makes its own"),
        (counts.sockets_left_out, "socket", "a socket is of a process"),
        (counts.attributes_left_out, "extended attribute", "it would mean nothing in the guest"),
    ];
    let lines = lines.into_iter().filter(|(number, _, _)| *number > 0);
    lines.map(|(number, what, why)| format!("{} left out: {why}", count(number, what))).collect()
}

fn list(out: &Out, operator: &Operator, tenant: Option<TenantId>) -> Result<(), CliError> {
    let tenants = match tenant {
        Some(tenant) => vec![load_tenant(&operator.roots, &tenant)?.tenant_id],
        None => tenant::config::ids(&operator.roots)?,
    };
    let mut views = Vec::new();
    for tenant in tenants {
        for path in config::paths(&operator.roots, &tenant)? {
            views.push(view(operator, Pool::load(&operator.roots, &path)?)?);
        }
    }
    out.show(&views, || {
        if views.is_empty() {
            return "no pools yet        next: mvm pool create TENANT/POOL".to_owned();
        }
        let row = |view: &PoolView| {
            let resources = view.pool.instance_resources;
            vec![
                view.path.clone(),
                view.revision.as_ref().map_or("none".into(), |revision| revision.short().to_owned()),
                view.pool.vmm.to_string(),
                resources.vcpus.to_string(),
                mib(resources.mem_mib),
                view.instances.to_string(),
                view.pool.desired_counts.running.to_string(),
                view.pool.egress.to_string(),
            ]
        };
        let header = ["pool", "revision", "vmm", "vcpus", "memory", "instances", "wanted", "egress"];
        out.table(&header, views.iter().map(row).collect())
    });
    Ok(())
}

fn describe(out: &Out, view: &PoolView) -> String {
    let pool = &view.pool;
    let resources = pool.instance_resources;
    let version = pool.vmm_version.as_deref().unwrap_or("version fixed by the first revision");
    let mut lines = vec![
        view.path.clone(),
        format!(
            "  revision   {}",
            view.revision.as_ref().map_or("none".to_owned(), |revision| revision.to_string())
        ),
        format!("  revisions  {}", view.revisions),
        format!("  instances  {}, {} wanted", view.instances, wanted(&pool.desired_counts)),
        format!(
            "  each       {}, {} memory, {}",
            count(resources.vcpus, "vCPU"),
            mib(resources.mem_mib),
            data_disk(resources.data_disk_mib)
        ),
        match pool.vmm {
            VmmKind::Firecracker => format!("  vmm        firecracker, {version}"),
            VmmKind::Sim => format!("  vmm        {}", out.paint(Tone::Doubtful, "sim: it runs no guest")),
        },
        format!("  egress     {}", pool.egress),
        format!("  seccomp    {}", pool.seccomp_policy),
        format!("  on rotate  {}", printable(&pool.on_rotate.to_string(), 300)),
        format!("  metadata   {}", if pool.metadata_enabled { "at 169.254.169.254" } else { "none" }),
        format!("  flake      {} ({})", pool.flake_ref.as_deref().unwrap_or("none"), pool.profile),
        format!("  made       {}", time(pool.created_at)),
    ];
    lines.extend(pool.image.as_ref().map(|name| format!("  image      {name}")));
    if pool.insecure {
        lines.push(out.paint(Tone::Doubtful, "  insecure   accepts VMMs without a jail, limits or a filter"));
    }
    for (key, value) in &pool.labels {
        lines.push(format!("  label      {key}={value}"));
    }
    lines.join("\n")
}

impl From<Counts> for Goal {
    fn from(Counts { running, warm, sleeping }: Counts) -> Self {
        Self { running, warm, sleeping }
    }
}

/// How many are wanted: those that run, and of the others only where some are.
fn wanted(counts: &DesiredCounts) -> String {
    let DesiredCounts { running, warm, sleeping } = *counts;
    let also = [(warm, "warm"), (sleeping, "sleeping")];
    let also = also.into_iter().filter(|(count, _)| *count > 0);
    let also: String = also.map(|(count, state)| format!(", {count} {state}")).collect();
    format!("{running} running{also}")
}

fn apply_scale(out: &Out, operator: &mut Operator, pool: &PoolPath, goal: Goal) -> Result<u8, CliError> {
    let (mut touched, roots) = (Vec::new(), operator.roots.clone());
    let progress = out.progress(&format!("scaling {pool}"));
    let scaled = scale::scale(operator, pool, goal, |instance, one| {
        let (id, ip) = (&instance.instance_id, instance.net.guest_ip);
        let ms = instance.last_receipt.as_ref().map_or(0.0, |receipt| receipt.total_ms);
        let how = match (&one.path, one.from, one.to) {
            (None, _, State::Running) => format!("created, running in {ms:.0} ms"),
            (None, _, to) => format!("created, {to}"),
            (_, State::Sleeping, State::Running) => format!("awake, {ms:.0} ms"),
            (_, State::Warm, State::Running) => "resumed".to_owned(),
            (_, _, State::Running) => format!("started, {ms:.0} ms"),
            (_, _, State::Sleeping) => format!("asleep, {ms:.0} ms"),
            (_, _, to) => to.to_string(),
        };
        let view = InstanceView::new(instance.clone(), true).in_full(&roots);
        out.say(format!("{id} {ip} {how}{}", without_secrets(out, &view)));
        touched.push(view);
    });
    drop(progress);
    if out.json && (scaled.is_ok() || !touched.is_empty()) {
        out.show(&touched, String::new);
    }
    let left_out: Vec<CliError> =
        scaled?.into_iter().map(|(path, error)| CliError::from(error).about(&path)).collect();
    if !out.json && touched.is_empty() && left_out.is_empty() {
        let (_, pool) = load_pool(&operator.roots, pool)?;
        out.say(format!("{}: {} already", pool.path(), wanted(&pool.desired_counts)));
    }
    Ok(complain(out, &left_out))
}

fn history(out: &Out, operator: &Operator, pool: &PoolPath) -> Result<(), CliError> {
    load_pool(&operator.roots, pool)?;
    let artifacts = Artifacts::of(&operator.roots, pool);
    let (history, current) = (artifacts.history()?, artifacts.current()?);
    out.show(&history.entries, || {
        if history.entries.is_empty() {
            return format!(
                "{pool} has no revision yet        next: mvm pool import {pool} --oci-archive FILE, or --kernel FILE --rootfs FILE"
            );
        }
        let last = history.entries.len() - 1;
        let row = |(at, entry): (usize, &HistoryEntry)| {
            let is_current = at == last && Some(&entry.revision) == current.as_ref();
            let mark = if is_current { "current" } else { "" };
            vec![entry.revision.short().to_owned(), time(entry.at), entry.by.clone(), mark.to_owned()]
        };
        out.table(&["revision", "since", "by", ""], history.entries.iter().enumerate().map(row).collect())
    });
    Ok(())
}

fn verify(
    out: &Out,
    operator: &Operator,
    pool: &PoolPath,
    revision: Option<RevisionHash>,
) -> Result<u8, CliError> {
    load_pool(&operator.roots, pool)?;
    let artifacts = Artifacts::of(&operator.roots, pool);
    let all = artifacts.all()?;
    let wanted: Vec<RevisionHash> = match &revision {
        Some(wanted) => all.into_iter().filter(|one| one.starts_with(wanted)).collect(),
        None => all,
    };
    if wanted.is_empty() {
        let what = match revision {
            Some(revision) => format!("{pool} has no revision {revision}"),
            None => format!("{pool} has no revision yet"),
        };
        return Err(
            CliError::new(Kind::NotFound, "no_such_revision", what).fix(format!("mvm pool history {pool}"))
        );
    }
    let progress = out.progress("reading every byte");
    let mut checks = Vec::new();
    for revision in wanted {
        let wrong = artifacts.verify(&revision).err().map(|error| error.to_string());
        checks.push(serde_json::json!({ "name": revision, "ok": wrong.is_none(), "detail": wrong }));
    }
    drop(progress);
    let ok = checks.iter().all(|check| check["ok"] == true);
    out.show(&serde_json::json!({ "checks": checks, "ok": ok }), || {
        let line = |check: &serde_json::Value| match check["detail"].as_str() {
            None => {
                format!("{} {}", out.paint(Tone::Good, "ok   "), check["name"].as_str().unwrap_or_default())
            }
            Some(why) => format!("{} {why}", out.paint(Tone::Bad, "wrong")),
        };
        checks.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    Ok(if ok { 0 } else { 1 })
}
