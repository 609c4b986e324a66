//! `mvm node …`

use serde::Serialize;

use super::{audit, run, secrets::CATCH_UP};
use crate::cli::{
    arguments::node::{NodeCommand, Setting, Switch},
    error::CliError,
    output::{Out, count, mib, time},
};
use crate::{
    node::{self, Collected, Damage, Recovered},
    security::node_key::{NodeKey, Public},
    vm::{
        instance::lifecycle::Operator,
        room::{self, NodeConfig},
    },
};

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, command: NodeCommand) -> Result<u8, CliError> {
    match command {
        NodeCommand::Info => {
            let node = NodeConfig::load(&operator.roots)?;
            let key = NodeKey::load_or_make(&operator.roots).map(|key| key.public());
            let view = NodeView { node: &node, key: key.as_ref().ok() };
            out.show(&view, || {
                let key = match view.key {
                    Some(Public { key_id, public_key, made_at }) => {
                        format!("{key_id}, {public_key}, made {}", time(*made_at))
                    }
                    None => "cannot be read".to_owned(),
                };
                format!("{}\n  key         {key}", describe(&node))
            });
            return Ok(key.err().map_or(0, |error| out.error(&error.into())));
        }
        NodeCommand::Stats => {
            let stats = node::stats(&operator.roots)?;
            out.show(&stats, || {
                format!(
                    "{}\n  tenants    {}\n  pools      {}\n  instances  {}\n  VMs        {} of {}\n  memory     {} of {}\n  \
                     vcpus      {} on {} CPUs\n  disk       {} free, floor {}",
                    stats.node_id,
                    stats.tenants,
                    stats.pools,
                    stats.instances,
                    stats.vms,
                    stats.max_vms,
                    mib(stats.mem_used_mib),
                    mib(stats.mem_limit_mib),
                    stats.vcpus_used,
                    stats.cpus,
                    mib(stats.disk_free_mib),
                    mib(stats.disk_floor_mib)
                )
            });
        }
        NodeCommand::Set(setting) => {
            let is_production_on = matches!(setting, Setting::Production { switch: Switch::On });
            let is_memory = matches!(setting, Setting::MemMib { .. });
            let node = node::update(&operator.roots, |node| match setting {
                Setting::MemMib { mib } => node.mem_limit_mib = mib,
                Setting::MemFloorMib { mib } => node.mem_floor_mib = mib,
                Setting::MaxVms { number } => node.max_vms = number,
                Setting::DiskFloorMib { mib } => node.disk_floor_mib = mib,
                Setting::Production { switch } => node.production = switch == Switch::On,
                Setting::PlainStorageWaiver { switch } => node.plain_storage_waiver = switch == Switch::On,
                Setting::Label { label: (key, value) } if value.is_empty() => drop(node.labels.remove(&key)),
                Setting::Label { label: (key, value) } => drop(node.labels.insert(key, value)),
            })?;
            out.done(&node, || describe(&node));
            let machine = room::memory_total_mib();
            if is_memory && node.mem_limit_mib.is_some_and(|limit| limit > machine) {
                out.note(format!(
                    "this machine has {}: guests that use more are ended by the kernel",
                    mib(machine)
                ));
            }
            if is_production_on {
                for (path, what) in node::outside_production(&operator.roots)? {
                    out.note(format!(
                        "{path} runs on with {what}: production refuses it its next start or wake, and any other secrets"
                    ));
                }
            }
        }
        NodeCommand::Audit(arguments) => audit::run_for_node(out, &operator.roots, &arguments)?,
        NodeCommand::Gc { scrub } => {
            let progress = out.progress("looking for what nobody refers to");
            let collected = node::collect(operator, scrub)?;
            drop(progress);
            let view = CollectedView::from(&collected);
            out.done(&view, || collection(&view, scrub));
            return Ok(if view.damaged.is_empty() { 0 } else { 1 });
        }
        NodeCommand::Recover => {
            let progress = out.progress("recovering");
            let mut recovered = node::recover(operator)?;
            match run::sweep_all(operator) {
                Ok(swept) => {
                    recovered
                        .reclaimed
                        .extend(swept.iter().map(|path| format!("{path} of a killed mvm run")));
                }
                Err(error) => recovered.failed.push(format!("what killed runs left: {}", error.what())),
            }
            drop(progress);
            out.done(&recovered, || recovery(&recovered));
            return Ok(if recovered.failed.is_empty() { 0 } else { 1 });
        }
    }
    Ok(0)
}

fn describe(node: &NodeConfig) -> String {
    let labels: String =
        node.labels.iter().map(|(key, value)| format!("\n  label       {key}={value}")).collect();
    let memory = match node.mem_limit_mib {
        Some(limit) => mib(limit),
        None => format!("what the machine has less {}", mib(node.mem_floor_mib)),
    };
    format!(
        "{}\n  memory      {memory}\n  VMs         {}\n  disk floor  {}\n  production  {}",
        node.node_id,
        node.max_vms,
        mib(node.disk_floor_mib),
        match (node.production, node.plain_storage_waiver) {
            (false, false) => "off",
            (false, true) => "off; it would need no encrypted storage: plain-storage-waiver is on",
            (true, false) => "on",
            (true, true) => "on, without encrypted storage",
        }
    ) + &labels
}

/// The node, and the key with which it signs.
#[derive(Debug, Serialize)]
struct NodeView<'a> {
    #[serde(flatten)]
    node: &'a NodeConfig,
    /// None where it cannot be read.
    key: Option<&'a Public>,
}

/// What was collected, as it is shown.
#[derive(Debug, Serialize)]
struct CollectedView<'a> {
    dropped: &'a [String],
    scrubbed: usize,
    damaged: Vec<DamageView<'a>>,
}

/// Something damaged, as it is shown.
#[derive(Debug, Serialize)]
struct DamageView<'a> {
    path: &'a str,
    what: String,
    fix: Option<String>,
}

impl<'a> From<&'a Collected> for CollectedView<'a> {
    fn from(collected: &'a Collected) -> Self {
        let view = |damage: &'a Damage| {
            let error = CliError::from(&damage.error);
            DamageView { path: &damage.path, what: error.whole(), fix: error.remedy().map(str::to_owned) }
        };
        Self {
            dropped: &collected.dropped,
            scrubbed: collected.scrubbed,
            damaged: collected.damaged.iter().map(view).collect(),
        }
    }
}

fn collection(collected: &CollectedView, scrub: bool) -> String {
    let mut lines: Vec<String> = collected.dropped.iter().map(|what| format!("dropped {what}")).collect();
    for DamageView { path, what, fix } in &collected.damaged {
        lines.push(format!("damaged {path}: {what}"));
        lines.extend(fix.as_ref().map(|fix| format!("  try: {fix}")));
    }
    if collected.dropped.is_empty() {
        lines.push("nothing to drop".to_owned());
    }
    if scrub {
        let (all, bad) = (collected.scrubbed as u64, collected.damaged.len());
        lines.push(match bad {
            0 => format!("{} read, all as written", count(all, "snapshot")),
            _ => format!("{} read, {bad} damaged", count(all, "snapshot")),
        });
    }
    lines.join("\n")
}

fn recovery(recovered: &Recovered) -> String {
    let mut lines: Vec<String> = Vec::new();
    lines.extend(recovered.settled.iter().map(|what| format!("settled {what}")));
    lines.extend(recovered.reclaimed.iter().map(|what| format!("reclaimed {what}")));
    lines.extend(recovered.network.iter().map(|what| format!("network: {what}")));
    lines.extend(recovered.failed.iter().map(|what| format!("not settled: {what}")));
    lines.extend(
        recovered
            .stuck
            .iter()
            .map(|path| format!("  try: mvm instance stop --force {path}, where its guest may end")),
    );
    lines.extend(recovered.behind.iter().map(|path| format!("{path} has older secrets: {CATCH_UP}")));
    let (number, run) =
        (recovered.adopted.len() as u64, if recovered.adopted.len() == 1 { "runs" } else { "run" });
    lines.push(format!("{} {run} on", count(number, "instance")));
    lines.join("\n")
}
