//! `mvm status`: what runs on this node, at a glance.

use std::collections::BTreeMap;

use crate::cli::{
    error::CliError,
    output::{Out, Tone, count, mib},
};
use crate::{
    node, store,
    vm::{
        instance::{
            self,
            config::Instance,
            lifecycle::{self, Operator},
        },
        pool::{self, artifacts::Artifacts, config::VmmKind},
        tenant,
    },
    vmm::process,
};

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator) -> Result<u8, CliError> {
    let roots = &operator.roots;
    let stats = node::stats(roots)?;
    let boot_id = process::boot_id();
    let (mut states, mut simulated, mut unsettled) = (BTreeMap::new(), 0, 0);
    for tenant in tenant::config::ids(roots)? {
        for pool in pool::config::paths(roots, &tenant)? {
            let has_revision = Artifacts::of(roots, &pool).current()?.is_some();
            for path in instance::config::paths(roots, &pool)? {
                let file = instance::config::file(roots, &path);
                let Some(instance) = store::read_if_there::<Instance>(&file)? else {
                    continue;
                };
                *states.entry(lifecycle::effective_state(&instance, has_revision).name()).or_insert(0u64) +=
                    1;
                unsettled += u64::from(lifecycle::needs_settling(&instance, &boot_id));
                simulated += u64::from(instance.vmm.is_some_and(|vmm| vmm.kind == VmmKind::Sim));
            }
        }
    }
    let value = serde_json::json!({ "node": stats, "instances": states, "simulated": simulated, "unsettled": unsettled });
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
        lines.join("\n")
    });
    Ok(0)
}
