//! `mvm status`: what runs on this node, at a glance.

use std::collections::BTreeMap;

use crate::cli::{
    error::CliError,
    output::{Out, Tone, count, mib},
};
use crate::{
    node,
    vm::{
        fleet,
        instance::{
            self,
            config::Instance,
            lifecycle::{self, Operator},
        },
        pool::{artifacts::Artifacts, config::VmmKind},
    },
    vmm::process,
};

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator) -> Result<u8, CliError> {
    let roots = &operator.roots;
    let stats = node::stats(roots)?;
    let boot_id = process::boot_id();
    let (mut states, mut simulated, mut unsettled, mut unreadable) = (BTreeMap::new(), 0, 0, 0);
    for pool in fleet::pools(roots, None)? {
        let has_revision = Artifacts::of(roots, &pool).current()?.is_some();
        for path in instance::config::paths(roots, &pool)? {
            match Instance::load_if_there(roots, &path) {
                Ok(Some(instance)) => {
                    let state = lifecycle::effective_state(&instance, has_revision);
                    *states.entry(state.name()).or_insert(0u64) += 1;
                    unsettled += u64::from(lifecycle::needs_settling(roots, &instance, &boot_id));
                    simulated += u64::from(instance.vmm.is_some_and(|vmm| vmm.kind == VmmKind::Sim));
                }
                Ok(None) => {}
                Err(_) => unreadable += 1,
            }
        }
    }
    let value = serde_json::json!({ "node": stats, "instances": states, "simulated": simulated, "unsettled": unsettled, "unreadable": unreadable });
    out.show(&value, || {
        let counts: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        let mut lines = vec![
            format!(
                "{}, {}, instances: {counts}",
                count(stats.tenants as u64, "tenant"),
                count(stats.pools as u64, "pool")
            ),
            format!(
                "memory {} of {}, {} on {}, disk {} free",
                mib(stats.mem_used_mib),
                mib(stats.mem_limit_mib),
                count(stats.vcpus_used, "vCPU"),
                count(stats.cpus as u64, "CPU"),
                mib(stats.disk_free_mib)
            ),
        ];
        if simulated > 0 {
            lines.push(
                out.paint(Tone::Doubtful, &format!("{simulated} of them simulated: they run no guest")),
            );
        }
        if unsettled > 0 {
            lines.push(
                out.paint(Tone::Doubtful, &format!("{unsettled} to settle        next: mvm node recover")),
            );
        }
        if unreadable > 0 {
            let text = format!("{unreadable} that cannot be read        next: mvm instance list");
            lines.push(out.paint(Tone::Bad, &text));
        }
        lines.join("\n")
    });
    Ok(if unreadable > 0 { 1 } else { 0 })
}
