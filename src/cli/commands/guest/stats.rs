//! `mvm instance stats` of one instance: what it uses, seen from outside and from inside.

use mvm_proto::message::Stats;
use serde::Serialize;

use crate::{
    cli::{
        error::CliError,
        output::{Out, bytes},
    },
    vm::{
        instance::{
            config::Instance,
            guest::Guest,
            lifecycle::Operator,
            state::State,
            stats::{self, Interfaces, Usage},
        },
        pool::config::AgentMode,
    },
};

#[derive(Serialize)]
struct Both {
    #[serde(flatten)]
    outside: Usage,
    /// What the guest says; `null` where it has no agent, or does not run.
    guest: Option<Stats>,
}

/// Shows it.
pub fn run(out: &Out, operator: &Operator, instance: &Instance) -> Result<(), CliError> {
    let outside = stats::usage(&operator.roots, instance, &Interfaces::read());
    let guest = match (instance.status, instance.agent) {
        (State::Running, AgentMode::Required) => {
            let asked = Guest::of(&operator.roots, instance).and_then(Guest::stats);
            Some(asked.map_err(|error| CliError::from(error).about(instance.path()))?)
        }
        _ => None,
    };
    let both = Both { outside, guest };
    out.show(&both, || describe(&both));
    Ok(())
}

fn describe(both: &Both) -> String {
    let Both { outside, guest } = both;
    let mut lines = vec![
        outside.path.to_string(),
        format!("  state     {}", outside.status),
        format!("  vmm       {:.1} s of CPU, {} in RAM", seconds(outside.cpu_ms), bytes(outside.rss_bytes)),
        format!("  network   {} in, {} out", bytes(outside.net_rx_bytes), bytes(outside.net_tx_bytes)),
        format!("  on disk   {}", bytes(outside.disk_bytes)),
    ];
    if let Some(guest) = guest {
        lines.push(format!(
            "  guest     up {:.0} s, {:.1} s of CPU, load {:.2}, {} processes",
            seconds(guest.uptime_ms),
            seconds(guest.cpu_ms),
            guest.load,
            guest.processes
        ));
        let used = guest.memory_bytes.saturating_sub(guest.memory_available_bytes);
        lines.push(format!(
            "  memory    {} of {} used, the agent has {}",
            bytes(used),
            bytes(guest.memory_bytes),
            bytes(guest.agent_bytes)
        ));
        if guest.data_bytes > 0 {
            lines.push(format!(
                "  data      {} of {} used",
                bytes(guest.data_used_bytes),
                bytes(guest.data_bytes)
            ));
        }
    }
    lines.join("\n")
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
