//! What of a record changes, in words: each field's name, what it was, what it is. Pure.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// `max_running from 4 to 8, quotas.max_conns from 1 to 2`; nothing where both are the same. What a field holds is written
/// out: not for what is secret.
pub fn changes<T: Serialize>(from: &T, to: &T) -> Option<String> {
    let fields = |of: &T| {
        let mut fields = BTreeMap::new();
        flatten("", &serde_json::to_value(of).unwrap_or_default(), &mut fields);
        fields
    };
    let (from, to) = (fields(from), fields(to));
    let none = || "none".to_owned();
    let mut changed: Vec<String> = Vec::new();
    for (name, is) in &to {
        let was = from.get(name).cloned().unwrap_or_else(none);
        if was != *is {
            changed.push(format!("{name} from {was} to {is}"));
        }
    }
    let gone = from.iter().filter(|(name, _)| !to.contains_key(*name));
    changed.extend(gone.map(|(name, was)| format!("{name} from {was} to none")));
    (!changed.is_empty()).then(|| changed.join(", "))
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
        "" | "none" => format!("{text:?}"),
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
}
