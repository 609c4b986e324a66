//! The commands on a node with instances: `net verify --deep`, what they find and repair, and what they never touch.

use std::process::Command;

use serde_json::{Value, json};

use super::tools::{ip, nft};
use crate::support::{Sandbox, was_killed};

fn links() -> Vec<String> {
    let output = Command::new("ip").args(["-o", "link"]).output().expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned())).collect()
}

/// The report of `net verify`, whatever its exit code; the two must agree.
fn report(sandbox: &Sandbox, options: &str) -> Value {
    let output = sandbox.run(&format!("net verify {options} --json"));
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(if report["ok"] == true { 0 } else { 1 }), "{report:#}");
    report
}

fn wrong(report: &Value) -> Vec<String> {
    let checks = report["checks"].as_array().expect("checks");
    let name = |check: &Value| check["name"].as_str().unwrap_or_default().to_owned();
    checks.iter().filter(|check| check["ok"] != true).map(name).collect()
}

/// Two tenants, two instances of the first running, and an uplink that leads nowhere.
fn node() -> Option<Sandbox> {
    let sandbox = Sandbox::new()?;
    ip(
        "link add up0 type veth peer name up1\naddr add 192.0.2.2/24 dev up0\nlink set up0 up\nlink set up1 up\nroute add default via 192.0.2.1\n",
    );
    sandbox.pool("sim");
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/29");
    for _ in 0..2 {
        let path = sandbox.instance("acme/web");
        sandbox.ok(&format!("instance start {path}"));
    }
    Some(sandbox)
}

fn pings(sandbox: &Sandbox) -> bool {
    let ping = json!({ "cmd": "ping", "to": "10.240.3.4", "timeout_ms": 2000 });
    sandbox.tell("tn3i3", &ping)["answered"] == true
}

/// What an auditor gets: signed, and worthless once a letter of it is another one.
pub fn a_report_is_signed() {
    let Some(sandbox) = node() else { return };
    let file = sandbox.root().join("report.json");
    sandbox.ok(&format!("net verify --deep --report {}", file.display()));
    let text = std::fs::read_to_string(&file).expect("a report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&report["ok"], &report["deep"]), (&json!(true), &json!(true)));
    assert!(report["checks"].as_array().is_some_and(|checks| checks.len() > 15), "{report:#}");
    assert_eq!(report["vmms"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["vmms"][0]["lacks"], json!(["jail", "limits", "filter"]));
    let check = format!("net verify --check-report {}", file.display());
    let checked = sandbox.ok(&check);
    assert_eq!(
        (&checked["signed"], &checked["this_node"], &checked["ok"]),
        (&json!(true), &json!(true), &json!(true))
    );
    std::fs::write(&file, text.replacen("\"jail\"", "\"none\"", 1)).expect("written");
    assert_eq!(sandbox.refused(&check, 1), "report_forged");
    std::fs::write(&file, "{}").expect("written");
    assert_eq!(sandbox.refused(&check, 1), "report_forged");
    // What cannot be read is not known, and the others are.
    let list = sandbox.ok("instance list");
    let damaged = list[0]["path"].as_str().expect("a path").to_owned();
    let [_, pool, id] = damaged.split('/').collect::<Vec<_>>()[..] else { panic!("{damaged}") };
    let record = sandbox.root().join(format!("tenants/acme/pools/{pool}/instances/{id}/instance.json"));
    let whole = std::fs::read(&record).expect("a record");
    std::fs::write(&record, "{").expect("written");
    let output = sandbox.run(&format!("net verify --report {}", file.display()));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && said.contains(&format!("{damaged}: ")), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("a report")).expect("JSON");
    assert_eq!((&report["ok"], report["vmms"].as_array().map(Vec::len)), (&json!(false), Some(1)));
    std::fs::write(&record, whole).expect("written");
    // What a node in production does not take is no well report.
    sandbox.ok("node set plain-storage-waiver on");
    sandbox.ok("node set production on");
    let written = sandbox.run(&format!("net verify --report {}", file.display()));
    let said = String::from_utf8_lossy(&written.stdout).into_owned();
    assert!(written.status.code() == Some(1) && said.contains("has no jail"), "{said}");
    let shown = sandbox.run(&check);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("0 kinds of probes; a node in production") && shown.contains("has no jail"),
        "{shown}"
    );
    // Something else that the node signed is no report.
    let head = sandbox.ok("tenant audit acme --head");
    std::fs::write(&file, head.to_string()).expect("written");
    assert_eq!(sandbox.refused(&check, 1), "report_forged");
}

pub fn probes_disturb_nobody() {
    let Some(sandbox) = node() else { return };
    let before = links();
    let deep = report(&sandbox, "--deep");
    assert_eq!(wrong(&deep), [""; 0], "{deep:#}");
    let checks = deep["checks"].as_array().expect("checks");
    let probes: Vec<&Value> = checks
        .iter()
        .filter(|check| check["name"].as_str().is_some_and(|n| n.starts_with("probe_")))
        .collect();
    assert!(probes.len() >= 15, "{probes:#?}");
    assert!(probes.iter().any(|probe| probe["name"] == "probe_east_west" && probe["ms"].as_f64().is_some()));
    assert_eq!(links(), before, "a probe's TAP is left");
    assert_eq!(wrong(&report(&sandbox, "")), [""; 0]);
    assert!(pings(&sandbox), "the guests reach each other no more");
    let text = String::from_utf8(sandbox.run("net verify --deep").stdout).expect("text");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.ends_with("as they must") && last.contains(" probes: "), "{text}");
    let file = sandbox.root().join("report.json");
    report(&sandbox, &format!("--report {}", file.display()));
    let written: Value = serde_json::from_slice(&std::fs::read(file).expect("a report")).expect("JSON");
    assert_eq!(written["ok"], true);
}

pub fn probes_find_what_lets_frames_pass_or_keeps_them() {
    let Some(sandbox) = node() else { return };
    nft("insert rule bridge mvm from_port accept\n");
    let deep = report(&sandbox, "--deep");
    let found = wrong(&deep);
    for name in [
        "rules",
        "probe_spoofed_ip",
        "probe_vlan_tag",
        "probe_ipv6",
        "probe_arp_claim",
        "probe_before_its_lease",
    ] {
        assert!(found.iter().any(|found| found == name), "{name} is not among {found:?}");
    }
    sandbox.ok("net repair");
    assert_eq!(wrong(&report(&sandbox, "--deep")), [""; 0]);
    // Somebody else's rules are no fault of mvm's tables; they are seen by what they do, and left alone.
    nft("add table bridge theirs\n\
         add chain bridge theirs everything { type filter hook prerouting priority 0; policy drop; }\n");
    let deep = report(&sandbox, "--deep");
    let found = wrong(&deep);
    assert!(
        found.contains(&"probe_east_west".to_owned()) && !found.contains(&"rules".to_owned()),
        "{found:?}"
    );
    let repair =
        deep["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "probe_east_west");
    assert_eq!(repair.expect("it is there")["repair"], "mvm doctor");
    sandbox.ok("net repair");
    let tables = Command::new("nft").args(["list", "tables"]).output().expect("nft runs");
    assert!(String::from_utf8_lossy(&tables.stdout).contains("table bridge theirs"));
}

pub fn probes_take_no_address_of_an_instance() {
    let Some(sandbox) = node() else { return };
    sandbox.ok("pool create globex/web --vmm sim --mem 128 --data-disk 8 --insecure");
    sandbox.import("globex/web", "");
    // 3 to 6 are for instances; with three leased no two are free.
    for _ in 0..3 {
        sandbox.instance("globex/web");
    }
    let deep = report(&sandbox, "--deep");
    assert_eq!(wrong(&deep), [""; 0], "{deep:#}");
    let said = deep["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "probes");
    let said = said.and_then(|check| check["detail"].as_str()).unwrap_or_default();
    assert!(said.contains("globex") && !said.contains("acme"), "{deep:#}");
}

pub fn a_killed_probe_is_swept() {
    let Some(sandbox) = node() else { return };
    let before = links();
    let killed = sandbox.run_with("net verify --deep", "probe.leased");
    assert!(was_killed(&killed), "it ran through");
    assert_eq!(links(), before, "a TAP outlived its probe");
    let found = wrong(&report(&sandbox, ""));
    assert!(found.contains(&"elements".to_owned()) && found.contains(&"neighbours".to_owned()), "{found:?}");
    sandbox.ok("net repair");
    assert_eq!(wrong(&report(&sandbox, "--deep")), [""; 0]);
}

pub fn an_orphan_is_removed_and_a_stranger_is_not() {
    let Some(sandbox) = node() else { return };
    ip("tuntap add tn3i77 mode tap\nlink set tn3i77 alias mvm\ntuntap add tn3i78 mode tap\n");
    let found = report(&sandbox, "");
    assert_eq!(wrong(&found), ["TAPs"], "{found:#}");
    sandbox.ok("net repair");
    assert_eq!(wrong(&report(&sandbox, "")), [""; 0]);
    let left = links();
    assert!(!left.contains(&"tn3i77".to_owned()) && left.contains(&"tn3i78".to_owned()), "{left:?}");
    assert!(pings(&sandbox));
}

/// A link's number changes when it is made again.
fn number(link: &str) -> String {
    let output = Command::new("ip").args(["-o", "link", "show", link]).output().expect("ip runs");
    assert!(output.status.success(), "{link} is gone");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn strangers_are_left_alone() {
    let Some(sandbox) = Sandbox::new() else { return };
    // A bridge.
    ip("link add br-tenant-3 type bridge\naddr add 172.20.0.1/16 dev br-tenant-3\nlink set br-tenant-3 up\n");
    let before = number("br-tenant-3");
    assert_eq!(sandbox.refused("tenant create acme --net-id 3 --subnet 10.240.3.0/24", 4), "foreign");
    sandbox.ok("net repair");
    assert_eq!(number("br-tenant-3"), before);
    ip("link del br-tenant-3\n");
    // A TAP.
    sandbox.pool("sim");
    let path = sandbox.instance("acme/web");
    ip("tuntap add tn3i3 mode tap\n");
    let before = number("tn3i3");
    assert_eq!(sandbox.refused(&format!("instance start {path}"), 4), "foreign");
    sandbox.ok("node recover");
    sandbox.ok("net repair");
    assert_eq!(number("tn3i3"), before);
    sandbox.ok(&format!("instance destroy {path} --yes --wipe-volumes"));
    assert_eq!(number("tn3i3"), before);
    ip("link del tn3i3\n");
    // A bridge that took the place of mvm's: everything else is repaired, and then it is named.
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    ip("link del br-tenant-3\nlink add br-tenant-3 type bridge\nlink set br-tenant-4 down\n");
    let before = number("br-tenant-3");
    assert_eq!(wrong(&report(&sandbox, "")), ["bridges"]);
    assert_eq!(sandbox.refused("net repair", 4), "foreign");
    assert_eq!(number("br-tenant-3"), before);
    assert!(number("br-tenant-4").contains("UP"), "the other bridge was not repaired");
    ip("link del br-tenant-3\n");
    sandbox.ok("net repair");
    assert_eq!(wrong(&report(&sandbox, "")), [""; 0]);
}

pub fn a_strangers_table_is_left_alone() {
    let Some(sandbox) = Sandbox::new() else { return };
    let theirs = "table inet mvm {\n\tchain theirs {\n\t\tcounter packets 0 bytes 0 accept\n\t}\n}\n";
    nft(theirs);
    assert_eq!(sandbox.refused("tenant create acme --net-id 3 --subnet 10.240.3.0/24", 4), "foreign");
    for command in ["net verify", "net repair"] {
        sandbox.refused(command, 4);
    }
    let listed = Command::new("nft").args(["list", "ruleset"]).output().expect("nft runs");
    assert_eq!(String::from_utf8_lossy(&listed.stdout), theirs);
    assert!(!links().iter().any(|link| link.starts_with("br-tenant")));
}
