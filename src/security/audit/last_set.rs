//! What a log says that the fields of records were set to last: what differs from that was set by no command. Pure.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{
    Entry, Phase, Record,
    changes::{HOLDS, HOLDS_NOT, NONE, fields, parts, split},
};
use crate::infra::config::Actor;

/// Fields by name, as text.
pub type Fields = BTreeMap<String, String>;

/// By the path of the node, a tenant or a pool: the fields of its record that its updates have set, and to what, and what its making
/// says, or a log that was begun anew. Without those that a change touched which is under way, or was cut off and not set since.
pub fn last_set(records: &[Record]) -> HashMap<&str, Fields> {
    let mut all: HashMap<&str, (Fields, Vec<Open>)> = HashMap::new();
    for record in records {
        let entry = &record.entry;
        let is_said: Option<fn(&str) -> bool> = match (entry.what.as_str(), entry.phase) {
            ("node.update" | "tenant.update" | "pool.update", _) => None,
            ("tenant.create", Phase::Intent) | ("tenant.found", _) => Some(is_of_a_tenant),
            ("pool.create", Phase::Intent) | ("pool.found", _) => Some(is_of_a_pool),
            ("node.found", _) => Some(is_of_the_node),
            _ => continue,
        };
        let (set, open) = all.entry(&entry.path).or_default();
        if let Some(is_said) = is_said {
            // One of that name that was before is no more.
            (*set, *open) = (made(entry, is_said), Vec::new());
            continue;
        }
        match entry.phase {
            Phase::Intent => {
                let before = changed(entry).map(|(name, _)| (name.clone(), set.remove(&name))).collect();
                open.push(Open { seq: record.seq, who: &record.who, entry, before });
            }
            Phase::Done => {
                close(open, |one| one.who.is(&record.who));
                set.extend(changed(entry));
            }
            Phase::Failed => {
                let taken_back = close(open, |one| one.who.is(&record.who));
                set.extend(taken_back.into_iter().flat_map(Open::before));
            }
            Phase::Recovered => {
                let cut_off = close(open, |one| Some(one.seq) == entry.closes);
                let says = |what| entry.detail.as_deref().is_some_and(|detail| detail.ends_with(what));
                match cut_off {
                    Some(one) if says(HOLDS) => set.extend(changed(one.entry)),
                    Some(one) if says(HOLDS_NOT) => set.extend(one.before()),
                    _ => {}
                }
            }
            Phase::Observed => {}
        }
    }
    all.into_iter().map(|(path, (set, _))| (path, set)).collect()
}

/// An update without its outcome.
struct Open<'a> {
    seq: u64,
    who: &'a Actor,
    entry: &'a Entry,
    /// What its fields were set to before, where that is known.
    before: Vec<(String, Option<String>)>,
}

impl Open<'_> {
    /// What is set where it was taken back.
    fn before(self) -> impl Iterator<Item = (String, String)> {
        self.before.into_iter().filter_map(|(name, was)| Some((name, was?)))
    }
}

fn close<'a>(open: &mut Vec<Open<'a>>, is_it: impl Fn(&Open) -> bool) -> Option<Open<'a>> {
    open.iter().rposition(is_it).map(|at| open.remove(at))
}

/// Each field that an update sets, and to what.
fn changed(entry: &Entry) -> impl Iterator<Item = (String, String)> {
    let all = parts(entry.detail.as_deref().unwrap_or_default()).unwrap_or_default();
    all.into_iter().map(|[name, _, is]| (name.to_owned(), is.to_owned()))
}

/// `network.ipv4_subnet 10.240.3.0/24, network.tenant_net_id 3, pinned false, quotas.max_conns 2000`: what the making of a tenant
/// says of it.
pub fn tenant_made(tenant: &impl Serialize) -> String {
    said(tenant, is_of_a_tenant, &["network.offset_range"])
}

/// All that an update may set, and its network.
fn is_of_a_tenant(name: &str) -> bool {
    matches!(name.split('.').next(), Some("network" | "pinned" | "quotas" | "retention_days"))
}

/// `egress internet, insecure false, seccomp_policy baseline, vmm firecracker`: what the making of a pool says of it.
pub fn pool_made(pool: &impl Serialize) -> String {
    said(pool, is_of_a_pool, &[])
}

/// What protects others from what will run in it.
fn is_of_a_pool(name: &str) -> bool {
    matches!(name, "egress" | "insecure" | "seccomp_policy" | "vmm")
}

/// The same of the node, for a log that is begun anew.
pub fn node_found(node: &impl Serialize) -> String {
    said(node, is_of_the_node, &["mem_limit_mib"])
}

fn is_of_the_node(name: &str) -> bool {
    !matches!(name, "schema_version" | "node_id" | "is_logged")
}

/// Fields, and of these that there are none: a record has no place for what is not.
fn said(made: &impl Serialize, is_said: fn(&str) -> bool, may_lack: &[&str]) -> String {
    let mut fields = fields(made);
    for name in may_lack {
        fields.entry((*name).to_owned()).or_insert_with(|| NONE.to_owned());
    }
    fields
        .into_iter()
        .filter(|(name, _)| is_said(name))
        .map(|(name, is)| format!("{name} {is}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn made(entry: &Entry, is_said: fn(&str) -> bool) -> Fields {
    let field = |part| match split(part, " ")[..] {
        [name, is] if is_said(name) => Some((name.to_owned(), is.to_owned())),
        _ => None,
    };
    split(entry.detail.as_deref().unwrap_or_default(), ", ").into_iter().filter_map(field).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::{super::changes::differing, *};
    use crate::infra::config::{Environment, Roots};

    const MADE: &str = "egress \"allow:1.2.3.4, 5.6.7.8\", insecure false, seccomp_policy baseline, vmm sim";
    const CPUS: &str = "cpus from 1 to 2";

    /// Lines of one pool's, each with the process that wrote it and what it closes.
    fn records(lines: &[(&str, Phase, &str, u32, Option<u64>)]) -> Vec<Record> {
        let roots = Roots::new(Path::new("/nowhere"), &Environment::default()).unwrap();
        let record =
            |(seq, (what, phase, detail, pid, closes)): (u64, &(&str, Phase, &str, u32, _))| Record {
                seq,
                at: roots.now(),
                who: Actor { pid: *pid, began: Some(pid.to_string()), ..roots.actor.clone() },
                entry: Entry {
                    detail: Some((*detail).to_owned()),
                    closes: *closes,
                    ..Entry::new(format!("pool.{what}"), "acme/web", *phase)
                },
                prev: String::new(),
            };
        (1..).zip(lines).map(record).collect()
    }

    fn found(lines: &[(&str, Phase, &str, u32, Option<u64>)], now: &serde_json::Value) -> Vec<String> {
        differing(&last_set(&records(lines))["acme/web"], now)
    }

    #[test]
    fn what_no_command_has_set_differs() {
        let change = "cpus from 1 to 2, labels.a from none to b";
        let lines = [
            ("update", Phase::Done, "cpus from 1 to 9", 1, None),
            // Its outcome was never written: it is there all the same.
            ("create", Phase::Intent, MADE, 2, None),
            ("update", Phase::Intent, change, 3, None),
            ("update", Phase::Done, change, 3, None),
        ];
        let as_set = json!({ "vmm": "sim", "insecure": false, "seccomp_policy": "baseline", "egress": "allow:1.2.3.4, 5.6.7.8", "cpus": 2, "labels": { "a": "b" } });
        assert_eq!(found(&lines, &as_set), Vec::<String>::new());
        let mut by_hand = as_set.clone();
        by_hand["cpus"] = 1.into();
        assert_eq!(found(&lines[..2], &by_hand), Vec::<String>::new());
        (by_hand["insecure"], by_hand["cpus"], by_hand["labels"]) = (true.into(), 2.into(), json!({}));
        assert_eq!(
            found(&lines, &by_hand),
            ["insecure is true, and was set to false", "labels.a is none, and was set to b"]
        );
    }

    #[test]
    fn what_was_cut_off_or_is_under_way_says_nothing_until_it_is_set_again() {
        let (five, none) = (json!({ "cpus": 5 }), Vec::<String>::new());
        let mut lines = vec![
            ("update", Phase::Done, "cpus from 4 to 1", 1, None),
            ("update", Phase::Intent, CPUS, 2, None),
        ];
        assert_eq!(found(&lines, &five), none);
        // Another one sets it, before the first is found to have been cut off.
        lines.push(("update", Phase::Done, "cpus from 2 to 3", 3, None));
        lines.push(("update", Phase::Recovered, "it was cut off", 4, Some(2)));
        assert_eq!(found(&lines, &five), ["cpus is 5, and was set to 3"]);
        lines.push(("update", Phase::Intent, "cpus from 3 to 6", 5, None));
        lines.push(("update", Phase::Recovered, "it was cut off", 4, Some(5)));
        assert_eq!(found(&lines, &five), none);
        let holds = format!("it was cut off; {HOLDS}");
        lines.push(("update", Phase::Intent, "cpus from 6 to 7", 6, None));
        lines.push(("update", Phase::Recovered, &holds, 4, Some(7)));
        assert_eq!(found(&lines, &five), ["cpus is 5, and was set to 7"]);
        let holds_not = format!("it was cut off; {HOLDS_NOT}");
        lines.push(("update", Phase::Intent, "cpus from 7 to 8", 6, None));
        lines.push(("update", Phase::Recovered, &holds_not, 4, Some(9)));
        assert_eq!(found(&lines, &five), ["cpus is 5, and was set to 7"]);
    }

    #[test]
    fn what_is_said_of_a_pool_that_was_made_is_what_it_is() {
        let pool = json!({ "vmm": "sim", "insecure": true, "seccomp_policy": "strict", "egress": "deny", "cpus": 1 });
        assert_eq!(pool_made(&pool), "egress deny, insecure true, seccomp_policy strict, vmm sim");
        let lines = [("create", Phase::Intent, &*pool_made(&pool), 1, None)];
        assert_eq!(found(&lines, &pool), Vec::<String>::new());
        assert_eq!(found(&lines, &json!({})).len(), 4);
    }

    #[test]
    fn what_is_said_of_a_tenant_that_was_made_is_what_it_is() {
        let tenant =
            json!({ "tenant_id": "acme", "network": { "net": 3 }, "quotas": { "cpus": 2 }, "pinned": false });
        let detail = tenant_made(&tenant);
        assert_eq!(detail, "network.net 3, network.offset_range none, pinned false, quotas.cpus 2");
        let mut records = records(&[("create", Phase::Intent, &detail, 1, None)]);
        (records[0].entry.what, records[0].entry.path) = ("tenant.create".to_owned(), "acme".to_owned());
        let set = last_set(&records);
        assert_eq!(differing(&set["acme"], &tenant), Vec::<String>::new());
        let mut by_hand = tenant.clone();
        (by_hand["quotas"]["cpus"], by_hand["network"]["net"]) = (9.into(), 4.into());
        assert_eq!(
            differing(&set["acme"], &by_hand),
            ["network.net is 4, and was set to 3", "quotas.cpus is 9, and was set to 2"]
        );
    }

    #[test]
    fn a_log_that_was_begun_anew_says_what_was_found() {
        let node =
            json!({ "node_id": "node-1", "is_logged": true, "max_vms": 4, "labels": { "a b, c": "d e" } });
        let detail = node_found(&node);
        assert_eq!(detail, "labels.\"a b, c\" \"d e\", max_vms 4, mem_limit_mib none");
        let mut records = records(&[("found", Phase::Observed, &detail, 1, None)]);
        (records[0].entry.what, records[0].entry.path) = ("node.found".to_owned(), "node-1".to_owned());
        let set = last_set(&records);
        assert_eq!(differing(&set["node-1"], &node), Vec::<String>::new());
        assert_eq!(differing(&set["node-1"], &json!({ "max_vms": 5, "mem_limit_mib": 1 })).len(), 3);
    }

    #[test]
    fn what_failed_was_taken_back() {
        let lines = [
            ("update", Phase::Done, "cpus from 4 to 1", 1, None),
            ("update", Phase::Intent, CPUS, 2, None),
            ("update", Phase::Failed, "cpus from 1 to 2: no room", 2, None),
        ];
        assert_eq!(found(&lines, &json!({ "cpus": 2 })), ["cpus is 2, and was set to 1"]);
    }
}
