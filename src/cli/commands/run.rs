//! `mvm run`: a command in a microVM of its own, for who just wants to see it.
//!
//! ```text
//! image → tenant `run` → pool `run/<image>-…` → instance → exec → the instance is destroyed
//! ```
//! Tenant and pool stay: the next run starts from the same base snapshot. What a run that was killed left behind, the next one
//! removes; a lock tells whether its process is still there.

use std::io::IsTerminal;

use super::{guest::exec, pool};
use crate::cli::{
    arguments::{
        guest::{ExecOptions, RunArguments},
        pool::CreateArguments,
    },
    error::{CliError, Kind},
    output::Out,
};
use crate::{
    infra::config::Roots,
    net::egress::Egress,
    security::policy::SeccompPolicy,
    store::{self, Durability, Lock, Sharing},
    vm::{
        image::{
            Image, ImageError,
            debian::{self, Options},
        },
        instance::{
            config::{self, Instance, VmmRecord},
            lifecycle::{self, CreateOptions, Operator},
        },
        naming::{ImageName, InstancePath, PoolPath, TenantId},
        pool::{
            artifacts::Artifacts,
            config::{self as pools, AgentMode, VmmKind},
            import, lifecycle as pool_lifecycle,
            on_rotate::OnRotate,
        },
        tenant::{
            config::Tenant,
            lifecycle::{self as tenants, TenantError, TenantSpec},
        },
    },
};

/// The image that mvm can make.
const RECIPE: &str = "debian";
/// In the folder of an instance that is kept.
const KEPT: &str = "kept";
/// The tenant of runs.
const TENANT: &str = "run";
/// Where its net id is looked for, from the highest down, and how often: coordinators begin at the other end.
const HIGHEST_NET_ID: u16 = 4095;
const TRIES: u16 = 64;

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, arguments: RunArguments) -> Result<u8, CliError> {
    let RunArguments { image, cpus, mem, data_disk, vmm, keep, mut how, mut argv } = arguments;
    if argv.is_empty() {
        argv = vec!["/bin/sh".to_owned()];
        how.terminal = true;
    }
    // Nothing is made for what is refused anyway.
    let insecure = true;
    pool_lifecycle::check_production(&operator.roots, vmm.0, insecure).map_err(|error| {
        CliError::from(error).fix("mvm pool create, without --insecure: the pools of mvm run are with it")
    })?;
    let agent = ensure_image(out, &operator.roots, &image)?;
    if agent == AgentMode::None {
        let what = format!("image {image} has no agent: nothing can be run in its guests");
        return Err(CliError::new(Kind::Refused, "no_agent", what).fix("mvm image debian makes one that has"));
    }
    let tenant = ensure_tenant(operator)?;
    let sim = if vmm.0 == VmmKind::Sim { "-sim" } else { "" };
    let name = format!("{image}-{cpus}c-{mem}m-{data_disk}d{sim}");
    let path = PoolPath {
        tenant: tenant.tenant_id,
        pool: name.parse().map_err(|error| CliError::new(Kind::Usage, "name", format!("{error}")))?,
    };
    let settings = CreateArguments {
        on_rotate: OnRotate::default(),
        flake: None,
        image: Some(image.clone()),
        profile: "minimal".to_owned(),
        cpus,
        mem,
        data_disk,
        agent: None,
        vmm,
        insecure,
        seccomp: SeccompPolicy::Baseline,
        egress: Egress::Internet,
        metadata: true,
        labels: Vec::new(),
    };
    pool::make(out, operator, &path, settings)?;
    refresh(out, operator, &path, &image)?;
    sweep(operator, &path)?;
    // Nobody sweeps while an instance has no lock of its own yet.
    let beginning = Lock::take(
        &begin_file(&operator.roots, &path),
        &path.to_string(),
        Sharing::Shared,
        operator.roots.lock_timeout,
    )?;
    let instance = lifecycle::create(operator, &path, CreateOptions::default())?;
    let place = instance.path();
    let lock = lock(&operator.roots, &place)?;
    drop(beginning);
    let started = start(out, operator, &place);
    let code = match started {
        Ok(instance) => {
            let how = ExecOptions { terminal: how.terminal && std::io::stdin().is_terminal(), ..how };
            exec::in_guest(out, operator, &instance, &how, argv)
        }
        Err(error) => {
            out.error(&error);
            exec::FAILED
        }
    };
    match keep {
        true => {
            let kept = config::folder(&operator.roots, &place).join(KEPT);
            store::replace(&kept, b"", Durability::Durable)?;
            out.note(format!("{place} runs on        next: mvm instance exec {place} -- …"));
        }
        false => lifecycle::destroy(operator, &place, true)?,
    }
    lock.remove();
    Ok(code)
}

fn start(out: &Out, operator: &mut Operator, path: &InstancePath) -> Result<Instance, CliError> {
    let progress = out.progress(&format!("starting {path}"));
    let outcome = lifecycle::start(operator, path).map_err(|error| CliError::of_instance(&error, path))?;
    drop(progress);
    if let Some(lacks) = outcome.instance.vmm.as_ref().and_then(unprotected) {
        out.note(lacks);
    }
    if let Some(receipt) = outcome.instance.last_receipt.as_ref().filter(|_| out.verbose) {
        out.note(format!("{path} started in {:.0} ms", receipt.total_ms));
    }
    Ok(outcome.instance)
}

/// What a VMM runs without here, which its pool accepts.
fn unprotected(vmm: &VmmRecord) -> Option<String> {
    let lacks = vmm.unprotected()?;
    Some(format!(
        "its VMM has {lacks}: pools of mvm run are --insecure and accept that        next: mvm doctor"
    ))
}

/// The image is there, or is made where there is a recipe for it.
fn ensure_image(out: &Out, roots: &Roots, name: &ImageName) -> Result<AgentMode, CliError> {
    match Image::of(roots, name).current(roots) {
        Ok((_, manifest)) => Ok(manifest.agent),
        Err(ImageError::Unknown { .. }) if name.to_string() == RECIPE => {
            out.note(format!("making image {name}, once: this takes half a minute"));
            let mut progress = None;
            let mut step = |what: &'static str| {
                drop(progress.take());
                progress = Some(out.progress(what));
            };
            let made = debian::make(roots, &Options { name: name.clone(), packages: Vec::new() }, &mut step);
            drop(progress);
            Ok(made?.0.agent)
        }
        Err(error) => Err(error.into()),
    }
}

/// The tenant of runs, made where it is not there: with a net id and a subnet that nobody has.
fn ensure_tenant(operator: &mut Operator) -> Result<Tenant, CliError> {
    let id: TenantId =
        TENANT.parse().map_err(|error| CliError::new(Kind::Usage, "name", format!("{error}")))?;
    if let Ok(tenant) = lifecycle::load_tenant(&operator.roots, &id) {
        return Ok(tenant);
    }
    let mut last = None;
    for number in 0..TRIES {
        let net_id = (HIGHEST_NET_ID - number).to_string();
        let subnet = format!("10.255.{}.0/24", 255 - number);
        let (Ok(net_id), Ok(subnet)) = (net_id.parse(), subnet.parse()) else { continue };
        let spec = TenantSpec { id: id.clone(), net_id, subnet, offset_range: None, quotas: &|_| () };
        match tenants::create(operator, &spec) {
            Ok((tenant, _)) => return Ok(tenant),
            Err(
                error @ (TenantError::NetIdUsed { .. }
                | TenantError::NetIdLeft { .. }
                | TenantError::Overlap { .. }),
            ) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or_else(
        || CliError::new(Kind::Refused, "net_id_used", "there is no free net id".to_owned()),
        CliError::from,
    ))
}

/// A pool that has another content than its image has now gets that.
fn refresh(out: &Out, operator: &mut Operator, pool: &PoolPath, name: &ImageName) -> Result<(), CliError> {
    let image = Image::of(&operator.roots, name);
    let _copying = image.lock(&operator.roots, Sharing::Shared)?;
    let (sources, manifest) = image.sources(&operator.roots)?;
    if Artifacts::of(&operator.roots, pool).current()?.as_ref() != Some(&manifest.revision) {
        let _progress = out.progress("copying and checking the image");
        import::files(operator, pool, &sources)?;
    }
    Ok(())
}

fn lock(roots: &Roots, path: &InstancePath) -> Result<Lock, CliError> {
    let file = roots.lock_file(&format!("run.{}.{}.{}", path.tenant, path.pool, path.instance));
    Ok(Lock::take(&file, &path.to_string(), Sharing::Exclusive, roots.lock_timeout)?)
}

fn begin_file(roots: &Roots, pool: &PoolPath) -> std::path::PathBuf {
    roots.lock_file(&format!("run.{}.{}", pool.tenant, pool.pool))
}

/// Destroys what all runs left that were killed. Returns which instances these were.
///
/// # Errors
/// When one of them cannot be destroyed.
pub fn sweep_all(operator: &mut Operator) -> Result<Vec<InstancePath>, CliError> {
    let Ok(tenant) = TENANT.parse() else { return Ok(Vec::new()) };
    if lifecycle::load_tenant(&operator.roots, &tenant).is_err() {
        return Ok(Vec::new());
    }
    let mut swept = Vec::new();
    for pool in pools::paths(&operator.roots, &tenant)? {
        swept.extend(sweep(operator, &pool)?);
    }
    Ok(swept)
}

/// Destroys what runs left that were killed: what nobody works on, and nobody wants to keep.
fn sweep(operator: &mut Operator, pool: &PoolPath) -> Result<Vec<InstancePath>, CliError> {
    let roots = operator.roots.clone();
    let mut swept = Vec::new();
    let Some(_nobody_begins) = Lock::try_take(&begin_file(&roots, pool))? else { return Ok(swept) };
    for path in config::paths(&roots, pool)? {
        let file = roots.lock_file(&format!("run.{}.{}.{}", path.tenant, path.pool, path.instance));
        if config::folder(&roots, &path).join(KEPT).exists() {
            continue;
        }
        if let Some(lock) = Lock::try_take(&file)? {
            lifecycle::destroy(operator, &path, true)?;
            lock.remove();
            swept.push(path);
        }
    }
    Ok(swept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{security::Lack, vm::instance::config::Parent};

    #[test]
    fn a_run_says_what_its_vmm_lacks_and_nothing_where_it_lacks_nothing() {
        let vmm = |kind, lacks: &[Lack]| VmmRecord {
            kind,
            version: "1.16.1".into(),
            pid: 1,
            start_time: 1,
            boot_id: String::new(),
            uid: 0,
            lacks: lacks.to_vec(),
            limits: None,
            filter: None,
            parent: Parent::Unknown,
            ungreeted: false,
        };
        let said = unprotected(&vmm(VmmKind::Firecracker, &[Lack::Jail, Lack::Limits])).unwrap();
        assert!(said.starts_with("its VMM has no jail, no limits: "), "{said}");
        assert_eq!(unprotected(&vmm(VmmKind::Firecracker, &[])), None);
        assert_eq!(
            unprotected(&vmm(VmmKind::Sim, &[Lack::Jail])),
            None,
            "list and info say that it is simulated"
        );
    }
}
