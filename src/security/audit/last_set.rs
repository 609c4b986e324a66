//! What a log says that a record's fields were set to last: what differs from that was changed by no command. Pure.

use std::collections::BTreeMap;

use super::{Entry, Phase, Record, changes::parts, open::intents};

/// The fields of a tenant's, a pool's or the node's record (`thing`) that its updates have set, and to what; of a pool also what
/// its making says. Without those that a change touched which was cut off, or is under way.
pub fn last_set(records: &[Record], thing: &str, path: &str) -> BTreeMap<String, String> {
    let (create, update) = (format!("{thing}.create"), format!("{thing}.update"));
    let is_update = |entry: &Entry| entry.what == update && entry.path == path;
    let mut set = BTreeMap::new();
    for record in records.iter().filter(|record| record.entry.path == path) {
        let entry = &record.entry;
        match entry.phase {
            Phase::Done if entry.what == create => set = made(entry),
            Phase::Done if is_update(entry) => set.extend(changed(entry)),
            Phase::Recovered if is_update(entry) => {
                let closed = records.iter().find(|one| Some(one.seq) == entry.closes);
                closed.into_iter().for_each(|one| forget(&mut set, &one.entry));
            }
            _ => {}
        }
    }
    for open in intents(records).iter().filter(|open| is_update(&open.entry)) {
        forget(&mut set, &open.entry);
    }
    set
}

fn forget(set: &mut BTreeMap<String, String>, entry: &Entry) {
    changed(entry).for_each(|(name, _)| drop(set.remove(&name)));
}

/// Each field that a change sets, and to what.
fn changed(entry: &Entry) -> impl Iterator<Item = (String, String)> {
    let all = parts(entry.detail.as_deref().unwrap_or_default()).unwrap_or_default();
    all.into_iter().map(|[name, _, is]| (name.to_owned(), is.to_owned()))
}

/// What a pool has from its beginning: `vmm firecracker, insecure false, seccomp baseline`.
fn made(entry: &Entry) -> BTreeMap<String, String> {
    let fields =
        entry.detail.iter().flat_map(|detail| detail.split(", ")).filter_map(|part| part.split_once(' '));
    let known = |name| match name {
        "seccomp" => Some("seccomp_policy"),
        "vmm" | "insecure" => Some(name),
        _ => None,
    };
    fields.filter_map(|(name, is)| Some((known(name)?.to_owned(), is.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::{super::changes::differing, *};
    use crate::infra::config::{Environment, Roots};

    fn records(lines: &[(&str, Phase, &str, Option<u64>)]) -> Vec<Record> {
        let roots = Roots::new(Path::new("/nowhere"), &Environment::default()).unwrap();
        let record =
            |(seq, (what, phase, detail, closes)): (u64, &(&str, Phase, &str, Option<u64>))| Record {
                seq,
                at: roots.now(),
                who: roots.actor.clone(),
                entry: Entry {
                    detail: Some((*detail).to_owned()),
                    closes: *closes,
                    ..Entry::new(*what, "acme/web", *phase)
                },
                prev: String::new(),
            };
        (1..).zip(lines).map(record).collect()
    }

    #[test]
    fn what_no_command_has_set_differs() {
        let made = "vmm sim, insecure false, seccomp baseline";
        let lines = records(&[
            ("pool.update", Phase::Done, "insecure from false to true", None),
            ("pool.create", Phase::Done, made, None),
            ("pool.update", Phase::Intent, "cpus from 1 to 2, labels.a from none to b", None),
            ("pool.update", Phase::Done, "cpus from 1 to 2, labels.a from none to b", None),
        ]);
        let set = last_set(&lines, "pool", "acme/web");
        let as_set = json!({ "vmm": "sim", "insecure": false, "seccomp_policy": "baseline", "cpus": 2, "labels": { "a": "b" } });
        assert_eq!(differing(&set, &as_set), Vec::<String>::new());
        let by_hand = json!({ "vmm": "sim", "insecure": true, "seccomp_policy": "baseline", "cpus": 2 });
        assert_eq!(
            differing(&set, &by_hand),
            ["insecure is true, and was set to false", "labels.a is none, and was set to b"]
        );
    }

    #[test]
    fn what_was_cut_off_or_is_under_way_says_nothing() {
        let (change, seccomp) = ("cpus from 1 to 2", "seccomp_policy from baseline to strict");
        let mut lines = vec![
            ("pool.update", Phase::Done, "cpus from 4 to 1", None),
            ("pool.update", Phase::Done, "seccomp_policy from strict to baseline", None),
            ("pool.update", Phase::Intent, change, None),
        ];
        let names =
            |lines: &[_]| last_set(&records(lines), "pool", "acme/web").into_keys().collect::<Vec<_>>();
        assert_eq!(names(&lines), ["seccomp_policy"]);
        lines.push(("pool.update", Phase::Failed, "cpus from 1 to 2: no room", None));
        assert_eq!(names(&lines), ["cpus", "seccomp_policy"]);
        lines.push(("pool.update", Phase::Intent, seccomp, None));
        lines.push(("pool.update", Phase::Recovered, "it was cut off", Some(5)));
        assert_eq!(names(&lines), ["cpus"]);
    }
}
