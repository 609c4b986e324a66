//! What of a record changes, in words: each field's name, what it was, what it is; and whether that holds. Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::Fields;

/// `max_running from 4 to 8, quotas.max_conns from 1 to 2`; nothing where both are the same. What a field holds is written
/// out: not for what is secret.
pub fn changes<T: Serialize>(from: &T, to: &T) -> Option<String> {
    let (from, to) = (fields(from), fields(to));
    let mut changed: Vec<String> = Vec::new();
    for (name, is) in &to {
        let was = from.get(name).map_or(NONE, String::as_str);
        if was != *is {
            changed.push(format!("{name} from {was} to {is}"));
        }
    }
    let gone = from.iter().filter(|(name, _)| !to.contains_key(*name));
    changed.extend(gone.map(|(name, was)| format!("{name} from {was} to {NONE}")));
    (!changed.is_empty()).then(|| changed.join(", "))
}

/// What is said of a change that holds.
pub const HOLDS: &str = "what it changes is as it was to be";
/// The same of one that does not.
pub const HOLDS_NOT: &str = "what it changes is as it was before";

/// Does what [`changes`] says hold in a record as it is now? In words; `None` where it says no changes.
pub fn held(changes: &str, now: &impl Serialize) -> Option<&'static str> {
    let now = fields(now);
    let (mut made, mut left) = (true, true);
    for [name, was, is] in parts(changes)? {
        let value = now.get(name).map_or(NONE, String::as_str);
        (made, left) = (made && value == is, left && value == was);
    }
    Some(match (made, left) {
        (true, _) => HOLDS,
        (_, true) => HOLDS_NOT,
        _ => "what it changes is partly as it was to be, or was changed since",
    })
}

/// Of each change its field, what that was, and what it is; `None` where a text says no changes.
pub fn parts(changes: &str) -> Option<Vec<[&str; 3]>> {
    let part = |change| {
        let [name, values] = split(change, " from ")[..] else { return None };
        let [was, is] = split(values, " to ")[..] else { return None };
        Some([name, was, is])
    };
    split(changes, ", ").into_iter().map(part).collect()
}

/// What of a record is not as its fields were set last, in words.
pub fn differing(set: &Fields, now: &impl Serialize) -> Vec<String> {
    let now = fields(now);
    let differs = |(name, set): (&String, &String)| {
        let is = now.get(name).map_or(NONE, String::as_str);
        (is != set).then(|| format!("{name} is {is}, and was set to {set}"))
    };
    set.iter().filter_map(differs).collect()
}

/// What stands for a field that is not there.
pub(super) const NONE: &str = "none";

pub(super) fn fields(of: &impl Serialize) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    flatten("", &serde_json::to_value(of).unwrap_or_default(), &mut fields);
    fields
}

/// The parts of a text between these words, where those are not in quotes.
pub(super) fn split<'a>(text: &'a str, between: &str) -> Vec<&'a str> {
    let (mut parts, mut from, mut is_quoted, mut is_escaped) = (Vec::new(), 0, false, false);
    for (at, one) in text.char_indices() {
        match one {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ if !is_quoted && at >= from && text[at..].starts_with(between) => {
                parts.push(&text[from..at]);
                from = at + between.len();
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

/// Every field that holds no others, by the names that lead to it.
fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            let dot = if name.is_empty() { "" } else { "." };
            for (field, value) in fields {
                flatten(&format!("{name}{dot}{}", quoted(field)), value, into);
            }
        }
        Value::Null => {}
        Value::String(text) => drop(into.insert(name.to_owned(), quoted(text))),
        value => drop(into.insert(name.to_owned(), value.to_string())),
    }
}

/// Without quotes where it cannot be taken for more, or for less, than it is.
fn quoted(text: &str) -> String {
    let is_plain = text.chars().all(|one| one.is_alphanumeric() || "-._:/@+=".contains(one));
    match text {
        "" | NONE => format!("{text:?}"),
        text if is_plain => text.to_owned(),
        text => Value::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_change_says_what_was_and_what_is() {
        let was = json!({ "a": 1, "b": { "c": "x", "d": null }, "gone": true, "list": [1] });
        let is = json!({
            "a": 1, "b": { "c": "y", "d": 2 }, "list": [1, 2], "e": "x, a from 1 to 2", "f": "", "g": "none", "h from 1": 2,
        });
        assert_eq!(
            changes(&was, &is).as_deref(),
            Some(
                "\"h from 1\" from none to 2, b.c from x to y, b.d from none to 2, e from none to \"x, a from 1 to 2\", f from none to \"\", g from none to \"none\", list from [1] to [1,2], gone from true to none"
            )
        );
        assert_eq!(changes(&is, &is), None);
    }

    #[test]
    fn what_was_changed_is_found_again_in_the_record() {
        let was = json!({ "a": 1, "b": "from", "to": { "from": "x" }, "gone": "\"", "list": ["a, b from 1 to 2", 1] });
        let is = json!({ "a": 2, "b": "to", "to": { "from": "\\, y" }, "list": ["a", 1], "new": "none" });
        let between = json!({ "a": 2, "b": "to", "to": { "from": "x" }, "list": ["a", 1], "new": "none" });
        let changes = changes(&was, &is).unwrap();
        let now = |now| held(&changes, now).unwrap();
        assert!(now(&is).ends_with("to be"), "{changes}");
        assert!(now(&was).ends_with("before"), "{changes}");
        assert!(now(&between).ends_with("since"), "{changes}");
        assert_eq!(held("another word", &is), None);
    }
}
