//! `mvm net …`

use std::collections::BTreeMap;

use super::report;
use crate::cli::{
    arguments::net::{NetCommand, VerifyCommand},
    error::CliError,
    output::{Out, Tone},
};
use crate::{
    net::{Finding, Net, probe::Probe},
    node::{self, Recovered},
    store::Sharing,
    vm::{
        instance::{
            lifecycle::{Operator, lock_tenant},
            net as wiring,
        },
        room::NodeConfig,
        tenant,
    },
};

/// Runs the command.
pub fn run(out: &Out, operator: &mut Operator, command: NetCommand) -> Result<u8, CliError> {
    match command {
        NetCommand::Verify(options) => verify(out, operator, &options),
        NetCommand::Repair => repair(out, operator),
    }
}

fn repair(out: &Out, operator: &mut Operator) -> Result<u8, CliError> {
    let mut net = Net::open(&NodeConfig::load(&operator.roots)?.node_id)?;
    let wrong =
        |findings: Vec<Finding>| findings.into_iter().filter(|finding| !finding.ok).collect::<Vec<_>>();
    let before = wrong(look(operator, &mut net)?);
    // A TAP may belong to a start that is under way: who looks after slots takes each one's lock.
    let Recovered { settled, reclaimed, failed, .. } = node::reclaim(operator)?;
    {
        let _lock = wiring::lock(&operator.roots, Sharing::Exclusive)?;
        net.repair(&wiring::desired(&operator.roots)?)?;
    }
    let left = wrong(look(operator, &mut net)?);
    let is_left = |finding: &&Finding| left.iter().any(|left| left.name == finding.name);
    let repaired: Vec<&Finding> = before.iter().filter(|finding| !is_left(finding)).collect();
    let ok = left.is_empty() && failed.is_empty();
    let value = serde_json::json!({ "repaired": repaired, "settled": settled, "reclaimed": reclaimed, "left": left, "failed": failed, "ok": ok });
    out.done(&value, || {
        let line = |mark: String, finding: &Finding| format!("{mark} {}: {}", finding.name, finding.detail);
        let mut lines: Vec<String> =
            repaired.iter().map(|finding| line(out.paint(Tone::Good, "repaired"), finding)).collect();
        lines.extend(settled.iter().map(|what| format!("settled {what}")));
        lines.extend(reclaimed.iter().map(|what| format!("reclaimed {what}")));
        lines.extend(left.iter().map(|finding| {
            line(out.paint(Tone::Bad, "left"), finding) + "        next: stop and start what it names"
        }));
        lines.extend(failed.iter().map(|what| format!("{} {what}", out.paint(Tone::Bad, "not done"))));
        if lines.is_empty() { "nothing to repair".to_owned() } else { lines.join("\n") }
    });
    Ok(if ok { 0 } else { 1 })
}

fn verify(out: &Out, operator: &mut Operator, options: &VerifyCommand) -> Result<u8, CliError> {
    if let Some(file) = &options.check_report {
        return report::check(out, &operator.roots, file);
    }
    // Not `operator.net()`: that one repairs what another boot left, and this one only looks.
    let mut net = Net::open(&NodeConfig::load(&operator.roots)?.node_id)?;
    let mut findings = look(operator, &mut net)?;
    if findings.iter().any(|finding| !finding.ok) {
        // Somebody may have begun or ended something between the look at the files and the one at the kernel.
        findings = look(operator, &mut net)?;
    }
    let mut summary = None;
    if options.deep {
        let sound = findings.iter().all(|finding| finding.ok);
        let (probed, counted) = deep(operator, &mut net, sound)?;
        findings.extend(probed);
        summary = Some(counted);
    }
    let written = match &options.report {
        Some(file) => report::write(&operator.roots, file, options.deep, &mut findings),
        None => Ok(()),
    };
    let ok = findings.iter().all(|finding| finding.ok);
    let view = serde_json::json!({ "checks": findings, "ok": ok });
    out.show(&view, || describe(out, &findings, summary.as_deref()));
    written?;
    Ok(if ok { 0 } else { 1 })
}

fn look(operator: &Operator, net: &mut Net) -> Result<Vec<Finding>, CliError> {
    let _lock = wiring::lock(&operator.roots, Sharing::Exclusive)?;
    Ok(net.verify(&wiring::desired(&operator.roots)?)?)
}

/// What is counted of one kind of probe.
#[derive(Default)]
struct Counted {
    must_answer: bool,
    right: usize,
    wrong: Vec<String>,
    slowest: Option<f64>,
}

/// Sends probes in every tenant's network. Returns a finding for each kind of probe, and the sum of it all.
fn deep(operator: &Operator, net: &mut Net, sound: bool) -> Result<(Vec<Finding>, String), CliError> {
    let roots = &operator.roots;
    let mut kinds: BTreeMap<&'static str, Counted> = BTreeMap::new();
    let mut findings = Vec::new();
    let found = |name: &str, ok: bool, detail: String| {
        // Where everything is as mvm wants it, somebody else's rules are what is left.
        let repair = if sound { "mvm doctor" } else { "mvm net repair" };
        Finding { name: name.into(), ok, detail, ms: None, repair: (!ok).then(|| repair.to_owned()) }
    };
    let tenants: Vec<_> = tenant::config::all(roots)?.iter().map(wiring::tenant_net).collect();
    let mut full = Vec::new();
    for id in tenant::config::ids(roots)? {
        // Nobody leases an address of this tenant, and nobody changes the network, while its probes are under way.
        let _tenant = lock_tenant(roots, &id)?;
        let Some(tenant) =
            crate::store::read_if_there::<tenant::config::Tenant>(&tenant::config::file(roots, &id))?
        else {
            continue;
        };
        let _lock = wiring::lock(roots, Sharing::Exclusive)?;
        let Some(slots) = wiring::free_slots(roots, &tenant) else {
            full.push(id.to_string());
            continue;
        };
        let shown = wiring::tenant_net(&tenant);
        let others = net.others(&tenants, &shown)?;
        match net.probe(&shown, slots, others) {
            Ok(probes) => probes.iter().for_each(|probe| count(&mut kinds, id.as_ref(), probe)),
            Err(error) => {
                let why = std::error::Error::source(&error).map_or(String::new(), |why| format!(": {why}"));
                findings.push(found("probes", false, format!("{id}: {error}{why}")));
            }
        }
    }
    let (mut answered, mut dropped, mut wrong) = (0, 0, 0);
    for (name, kind) in kinds {
        let what = if kind.must_answer { "answered" } else { "dropped" };
        *(if kind.must_answer { &mut answered } else { &mut dropped }) += kind.right;
        wrong += kind.wrong.len();
        let detail = match kind.wrong.len() {
            0 => format!("{what} in {} networks", kind.right),
            _ => format!("not {what}: {}", kind.wrong.join(", ")),
        };
        let mut made = found(&format!("probe_{name}"), kind.wrong.is_empty(), detail);
        made.ms = kind.slowest.map(|ms| (ms * 1000.0).round() / 1000.0);
        findings.push(made);
    }
    if !full.is_empty() {
        let detail = format!("not probed, no two addresses are free: {}", full.join(", "));
        findings.push(found("probes", true, detail));
    }
    let total = answered + dropped + wrong;
    let summary = match wrong {
        0 if total == 0 => "nothing was probed".to_owned(),
        0 => format!("{total} probes: {answered} answered, {dropped} dropped, as they must"),
        _ => format!("{total} probes: {answered} answered, {dropped} dropped, and {wrong} not as they must"),
    };
    Ok((findings, summary))
}

fn count(kinds: &mut BTreeMap<&'static str, Counted>, tenant: &str, probe: &Probe) {
    let kind = kinds.entry(probe.name).or_default();
    kind.must_answer = probe.must_answer;
    match probe.ok {
        true => kind.right += 1,
        false => kind.wrong.push(tenant.to_owned()),
    }
    kind.slowest = kind.slowest.into_iter().chain(probe.ms).reduce(f64::max);
}

fn describe(out: &Out, findings: &[Finding], summary: Option<&str>) -> String {
    let line = |finding: &Finding| {
        let mark = if finding.ok { out.paint(Tone::Good, "ok   ") } else { out.paint(Tone::Bad, "wrong") };
        let ms = finding.ms.map_or(String::new(), |ms| out.paint(Tone::Aside, &format!("  {ms:.1} ms")));
        let repair =
            finding.repair.as_ref().map_or(String::new(), |repair| format!("        repair: {repair}"));
        format!("{mark} {}: {}{ms}{repair}", finding.name, finding.detail)
    };
    findings.iter().map(line).chain(summary.map(str::to_owned)).collect::<Vec<_>>().join("\n")
}
