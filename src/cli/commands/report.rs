//! `mvm net verify --report` and `--check-report`: what was probed and found, in a form that is signed with the node's key, for who was
//! not there.

use std::{fs::File, io::Read, path::Path};

use serde_json::{Value, json};

use crate::{
    cli::{
        error::{CliError, Kind},
        output::{Out, count},
    },
    infra::{
        config::Roots,
        text::{printable, with_causes},
    },
    net::Finding,
    security::node_key::{self, NodeKey},
    store::StoreError,
    vm::{
        fleet,
        instance::{config::Instance, guard},
        room::NodeConfig,
    },
};

/// A report is no longer than that, in bytes: some hundred for each instance.
const LONGEST: u64 = 64 << 20;
/// What it calls itself.
const KIND: &str = "net verify";

/// Does what keeps the VMMs that run to themselves suffice? What a node in production takes is nothing less.
fn protection(node: &NodeConfig, vmms: &[Value], unread: Vec<String>) -> Finding {
    let lacking: Vec<String> = vmms.iter().filter_map(lack).collect();
    let ok = unread.is_empty() && (lacking.is_empty() || !node.production);
    let wrong = [lacking, unread].concat();
    let detail = match wrong.is_empty() {
        true => format!("{}, none without a jail, limits or a filter", count(vmms.len() as u64, "VMM")),
        false => wrong.join("; "),
    };
    let repair = (!ok).then(|| "mvm doctor; then stop and start what it names".to_owned());
    Finding { name: "vmms".into(), ok, detail, ms: None, repair }
}

/// Writes what was found, and what keeps the VMMs that run to themselves, which becomes a finding more.
pub fn write(roots: &Roots, file: &Path, deep: bool, findings: &mut Vec<Finding>) -> Result<(), CliError> {
    let check = |finding: &Finding| {
        // Signed numbers are whole.
        let us = finding.ms.map(|ms| (ms * 1000.0).round() as u64);
        json!({ "name": finding.name, "ok": finding.ok, "detail": finding.detail, "us": us })
    };
    let (node, (vmms, unread)) = (NodeConfig::load(roots)?, vmms(roots)?);
    findings.push(protection(&node, &vmms, unread));
    let report = json!({
        "report": KIND,
        "node_id": node.node_id,
        "production": node.production,
        "at": roots.now(),
        "mvm_version": env!("CARGO_PKG_VERSION"),
        "deep": deep,
        "ok": findings.iter().all(|finding| finding.ok),
        "checks": findings.iter().map(check).collect::<Vec<_>>(),
        "vmms": vmms,
    });
    let fields = report.as_object().cloned().unwrap_or_default();
    let signed = NodeKey::load_or_make(roots)?.sign(fields);
    Ok(std::fs::write(file, format!("{signed:#}\n")).map_err(StoreError::io("write", file))?)
}

/// What a VMM is without of what keeps it to itself, with its path.
fn lack(vmm: &Value) -> Option<String> {
    let lacks = vmm["lacks"].as_array().filter(|lacks| !lacks.is_empty())?;
    let lacks: Vec<&str> = lacks.iter().filter_map(Value::as_str).collect();
    let path = vmm["path"].as_str().unwrap_or_default();
    Some(printable(&format!("{path} has no {}", lacks.join(", no ")), 200))
}

/// Every instance's VMM that runs: its jail, its limits, its filter, read back as the kernel shows it now; and each instance of which
/// that is not known, with why.
fn vmms(roots: &Roots) -> Result<(Vec<Value>, Vec<String>), CliError> {
    let (mut vmms, mut unread) = (Vec::new(), Vec::new());
    for path in fleet::instances(roots)? {
        let instance = match Instance::load_if_there(roots, &path) {
            Ok(Some(instance)) => instance,
            Ok(None) => continue,
            Err(error) => {
                unread.push(format!("{path}: {}", with_causes(&error)));
                continue;
            }
        };
        let (Some(record), Some(vmm)) = (&instance.vmm, instance.find_vmm()) else { continue };
        // One that has ended meanwhile keeps nobody from anything.
        if let Some((lacks, limits, filter)) = guard::seen(roots, &vmm, &instance.net.tap_dev) {
            vmms.push(json!({
                "path": path.to_string(), "kind": record.kind, "version": record.version, "uid": record.uid,
                "lacks": lacks, "limits": limits, "filter": filter,
            }));
        }
    }
    Ok((vmms, unread))
}

/// Reads a report that somebody passed on: is it what a node signed, and which one?
pub fn check(out: &Out, roots: &Roots, file: &Path) -> Result<u8, CliError> {
    let mut text = Vec::new();
    File::open(file)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut text))
        .map_err(StoreError::io("read", file))?;
    let report: Value = serde_json::from_slice(&text).unwrap_or_default();
    let key = node_key::check(&report)
        .map_err(|why| CliError::new(Kind::Failed, "report_forged", format!("{}: {why}", file.display())))?;
    let own = NodeKey::load(roots)?.map(|own| own.public().public_key);
    let text = |name: &str| report[name].as_str().unwrap_or_default().to_owned();
    if text("report") != KIND {
        let what = format!("{} is signed, and no report of net verify", file.display());
        return Err(CliError::new(Kind::Failed, "report_forged", what));
    }
    let is_ours = own.as_deref() == Some(key.as_str());
    let named = NodeConfig::load(roots)?.node_id;
    if report["node_id"] == named && !is_ours {
        let what = format!(
            "{} says that it is of this node, {named}, and another key signed it: {}",
            file.display(),
            printable(&text("key_id"), 100)
        );
        return Err(CliError::new(Kind::Failed, "report_forged", what));
    }
    let vmms = report["vmms"].as_array().cloned().unwrap_or_default();
    let lacking: Vec<String> = vmms.iter().filter_map(lack).collect();
    let view = json!({
        "node_id": report["node_id"], "key_id": report["key_id"], "this_node": is_ours, "at": report["at"],
        "ok": report["ok"], "deep": report["deep"], "production": report["production"], "signed": true,
        "lacking": lacking,
    });
    let ok = report["ok"] == true;
    out.show(&view, || {
        let checks = report["checks"].as_array().map_or(0, Vec::len);
        let protected = match lacking.is_empty() {
            true => ", none without a jail, limits or a filter".to_owned(),
            false => format!("\n  VMMs       {}", lacking.join("\n             ")),
        };
        let is_probe = |check: &&Value| check["name"].as_str().is_some_and(|name| name.starts_with("probe_"));
        let probes = report["checks"].as_array().into_iter().flatten().filter(is_probe).count() as u64;
        let production = if report["production"] == true { "in production" } else { "not in production" };
        let verdict = if ok { "all as it must be" } else { "not all as it must be" };
        let whose = match is_ours {
            true => "this node's key",
            false => "not this node's; compare it with what mvm node info says there",
        };
        let [node, at, key_id] = ["node_id", "at", "key_id"].map(|name| printable(&text(name), 100));
        format!(
            "signed by node {node} at {at}: {}, {verdict}, {} of probes; a node {production}; {}{protected}\n  key        {key_id}, {key}: {whose}",
            count(checks as u64, "check"),
            count(probes, "kind"),
            count(vmms.len() as u64, "VMM"),
        )
    });
    Ok(if ok { 0 } else { 1 })
}
