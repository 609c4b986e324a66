//! `mvm tenant …`

use serde::Serialize;

use super::{audit::Log, secrets};
use crate::cli::{
    arguments::tenant::TenantCommand,
    error::CliError,
    output::{Out, count, mib, time},
};
use crate::vm::{
    instance::lifecycle::{Operator, behind, load_tenant},
    naming::{Slot, TenantId},
    pool, room,
    tenant::{
        self,
        config::{self, Tenant},
        lifecycle::{self, TenantSpec},
        quota::{Quotas, Use},
    },
};

/// A tenant with what it uses.
#[derive(Debug, Serialize)]
struct TenantView {
    #[serde(flatten)]
    tenant: Tenant,
    pools: usize,
    running: u32,
    warm: u32,
    sleeping: usize,
    vcpus_used: u32,
    mem_used_mib: u64,
    /// Nothing where it never had any.
    #[serde(skip_serializing_if = "Option::is_none")]
    secrets: Option<SecretsView>,
}

/// A tenant's secrets, and whose guests have an older set.
#[derive(Debug, Clone, Serialize)]
struct SecretsView {
    count: usize,
    generation: u64,
    behind: Vec<String>,
}

fn view(operator: &Operator, tenant: Tenant) -> Result<TenantView, CliError> {
    let reserved = room::reserved(&operator.roots)?;
    let net_id = tenant.network.tenant_net_id;
    let Use { running, warm, vcpus, mem_mib, .. } = room::used_by(&reserved, net_id);
    // What has a place on the disk, and no VMM.
    let is_asleep = |(slot, taken): &&(Slot, Use)| slot.net_id == net_id && taken.vms() == 0;
    let sleeping = reserved.iter().filter(is_asleep).count();
    let pools = pool::config::paths(&operator.roots, &tenant.tenant_id)?.len();
    let (vcpus_used, mem_used_mib) = (vcpus, mem_mib);
    Ok(TenantView { tenant, pools, running, warm, sleeping, vcpus_used, mem_used_mib, secrets: None })
}

/// A tenant's secrets, where it has some: for that all its instances are looked at.
fn secrets_of(operator: &Operator, tenant: &TenantId) -> Result<Option<SecretsView>, CliError> {
    let Some(stored) = tenant::secrets::check(&operator.roots, tenant)? else { return Ok(None) };
    let behind = behind(operator, tenant)?.iter().map(ToString::to_string).collect();
    Ok(Some(SecretsView { count: stored.secrets.len(), generation: stored.generation, behind }))
}

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, command: TenantCommand) -> Result<u8, CliError> {
    match command {
        TenantCommand::Create { tenant, net_id, subnet, offset_range, quotas } => {
            let quotas = |all: &mut Quotas| quotas.apply(all);
            let spec = TenantSpec { id: tenant, net_id, subnet, offset_range, quotas: &quotas };
            let (tenant, new) = lifecycle::create(operator, &spec)?;
            let view = view(operator, tenant)?;
            out.done(&view, || {
                let (id, network) = (&view.tenant.tenant_id, &view.tenant.network);
                let (bridge, gateway) = (network.tenant_net_id.bridge(), network.gateway_ip);
                match new {
                    true => format!(
                        "{id}: bridge {bridge}, gateway {gateway}        next: mvm pool create {id}/NAME"
                    ),
                    false => format!("{id} exists already, just like that"),
                }
            });
        }
        TenantCommand::List => {
            let (mut views, mut wrong) = (Vec::new(), Vec::new());
            for id in config::ids(&operator.roots)? {
                match Tenant::load(&operator.roots, &id) {
                    Ok(tenant) => views.push(view(operator, tenant)?),
                    // One that cannot be read is neither ignored nor in the way of the others.
                    Err(error) => wrong.push(CliError::from(error)),
                }
            }
            out.show(&views, || {
                if views.is_empty() {
                    return "no tenants yet        next: mvm tenant create NAME --net-id N --subnet CIDR"
                        .to_owned();
                }
                let row = |view: &TenantView| {
                    vec![
                        view.tenant.tenant_id.to_string(),
                        view.tenant.network.tenant_net_id.to_string(),
                        view.tenant.network.ipv4_subnet.to_string(),
                        view.pools.to_string(),
                        format!("{} of {}", view.running, view.tenant.quotas.max_running),
                        format!("{} of {}", mib(view.mem_used_mib), mib(view.tenant.quotas.max_mem_mib)),
                    ]
                };
                let header = ["tenant", "net id", "subnet", "pools", "running", "memory"];
                out.table(&header, views.iter().map(row).collect())
            });
            return Ok(wrong.iter().map(|error| out.error(error)).max().unwrap_or(0));
        }
        TenantCommand::Info { tenant } => {
            let record = load_tenant(&operator.roots, &tenant)?;
            let log = Log::of(&record, config::folder(&operator.roots, &tenant), false);
            let mut view = view(operator, record)?;
            let secrets = secrets_of(operator, &tenant);
            view.secrets = secrets.as_ref().ok().cloned().flatten();
            out.show(&view, || describe(&view));
            // What is wrong with them, or with its log, is in the way of nothing else that is shown.
            let wrong = secrets.err().into_iter().chain(log.check(&operator.roots).err());
            return Ok(wrong.map(|error| out.error(&error)).max().unwrap_or(0));
        }
        TenantCommand::Update { tenant, pinned, retention_days, quotas } => {
            let (tenant, changed) = lifecycle::update(operator, &tenant, |tenant| {
                quotas.apply(&mut tenant.quotas);
                tenant.pinned = pinned.unwrap_or(tenant.pinned);
                tenant.retention_days = retention_days.unwrap_or(tenant.retention_days);
            })?;
            let view = view(operator, tenant)?;
            let id = &view.tenant.tenant_id;
            out.done(&view, || match changed {
                true => format!("{id} updated; what runs keeps its limits and rates until its next start"),
                false => format!("{id} is like that already"),
            });
        }
        TenantCommand::Destroy { tenant, destroy } => {
            load_tenant(&operator.roots, &tenant)?;
            let pools = pool::config::paths(&operator.roots, &tenant)?.len();
            // Nobody is asked for what is refused anyway.
            lifecycle::refuse_to_lose(&operator.roots, &tenant, destroy.wipe_volumes)?;
            out.confirm(
                &format!(
                    "Destroy tenant {tenant} with its {} and their instances?",
                    count(pools as u64, "pool")
                ),
                destroy.yes,
            )?;
            let progress = out.progress(&format!("destroying {tenant}"));
            lifecycle::destroy(operator, &tenant, destroy.wipe_volumes)?;
            drop(progress);
            out.done(&serde_json::json!({ "tenant_id": tenant, "status": "destroyed" }), || {
                format!("{tenant} destroyed; its audit log is kept")
            });
        }
        TenantCommand::Audit(arguments) => return super::audit::run(out, operator, &arguments),
        TenantCommand::Secrets(command) => return secrets::run(out, operator, command),
    }
    Ok(0)
}

fn describe(view: &TenantView) -> String {
    let tenant = &view.tenant;
    let (network, quotas) = (&tenant.network, &tenant.quotas);
    let (first, last) = tenant.offsets();
    format!(
        "{}\n  network   net id {}, {}, gateway {}, bridge {}, offsets {first} to {last}\n  \
         running   {} of {}\n  warm      {} of {}\n  sleeping  {}\n  vcpus     {} of {}\n  memory    {} of {}\n  pools     {} of {}\n  \
         made      {}\n  pinned    {}",
        tenant.tenant_id,
        network.tenant_net_id,
        network.ipv4_subnet,
        network.gateway_ip,
        network.tenant_net_id.bridge(),
        view.running,
        quotas.max_running,
        view.warm,
        quotas.max_warm,
        view.sleeping,
        view.vcpus_used,
        quotas.max_vcpus,
        mib(view.mem_used_mib),
        mib(quotas.max_mem_mib),
        view.pools,
        quotas.max_pools,
        time(tenant.created_at),
        if tenant.pinned { "yes" } else { "no" },
    ) + &view.secrets.as_ref().map_or(String::new(), |secrets| {
        let behind = match secrets.behind.len() as u64 {
            0 => String::new(),
            behind => format!(", older ones in {}: {}", count(behind, "guest"), secrets.behind.join(", ")),
        };
        format!("\n  secrets   {}{behind}", secrets.count)
    })
}
