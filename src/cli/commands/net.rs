//! `mvm net …`

use crate::cli::{
    arguments::net::NetCommand,
    error::CliError,
    output::{Out, Tone},
};
use crate::{
    net::Finding,
    store::Sharing,
    vm::instance::{lifecycle::Operator, net as wiring},
};

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, command: NetCommand) -> Result<u8, CliError> {
    match command {
        NetCommand::Verify => {
            // Not `operator.net()`: that one repairs what another boot left, and this one only looks.
            let mut net = crate::net::Net::open()?;
            let findings = {
                let _lock = wiring::lock(&operator.roots, Sharing::Exclusive)?;
                net.verify(&wiring::desired(&operator.roots)?)?
            };
            let ok = findings.iter().all(|finding| finding.ok);
            out.show(&serde_json::json!({ "checks": findings, "ok": ok }), || describe(out, &findings));
            Ok(if ok { 0 } else { 1 })
        }
        NetCommand::Repair => {
            operator.net()?;
            let done = {
                let _lock = wiring::lock(&operator.roots, Sharing::Exclusive)?;
                let desired = wiring::desired(&operator.roots)?;
                operator.net()?.repair(&desired)?
            };
            out.done(&done, || match done.len() {
                0 => "nothing to repair".to_owned(),
                _ => done.join("\n"),
            });
            Ok(0)
        }
    }
}

fn describe(out: &Out, findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let mark = if finding.ok { out.paint(Tone::Good, "ok   ") } else { out.paint(Tone::Bad, "wrong") };
        let repair =
            finding.repair.as_ref().map_or(String::new(), |repair| format!("        repair: {repair}"));
        format!("{mark} {}: {}{repair}", finding.name, finding.detail)
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}
