//! Chains and sets as `nft` lists them, compared with what mvm would load: a rule that is missing, added or changed.

use std::{collections::BTreeMap, time::Duration};

use super::{Desired, NetError, load, rules};
use crate::infra::shell;

/// What `nft` lists between the braces of each chain, set and map, by its head: `inet chain raw`. Elements are not there.
pub type Blocks = BTreeMap<String, Vec<String>>;

/// What is there and what should be.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Heads of what should be there and is not.
    pub missing: Vec<String>,
    /// Heads of what is there, and other than it should be.
    pub changed: Vec<String>,
    /// Heads of what should not be there.
    pub strange: Vec<String>,
    /// Heads of chains that hang elsewhere than they should: that cannot be changed in place.
    moved: Vec<String>,
}

/// Compares. All tables are there.
///
/// # Errors
/// When `nft` fails.
pub fn compare(desired: &Desired) -> Result<Comparison, NetError> {
    let text = rules::tables("") + &rules::base() + &rules::extras(desired);
    std::thread::scope(|scope| {
        let scratch = scope.spawn(|| expected(&text));
        let is = listing();
        let should = scratch.join().unwrap_or_else(|_| {
            Err(NetError::kernel("list", "rules")(std::io::Error::other("the thread that did it panicked")))
        });
        Ok(difference(&is?, &should?))
    })
}

/// The chains, sets and maps of mvm's tables as they are. Of a single table `nft` would read every element, asked for or
/// not: that costs a fifth of a second with ten thousand leases. Of everything it reads none.
fn listing() -> Result<Blocks, NetError> {
    let text = shell::run("nft", ["-t", "list", "ruleset"], b"", Duration::from_secs(30))
        .map_err(|source| NetError::Rules { source })?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// The same as they should be: loaded into an empty network namespace, and listed by the same program.
fn expected(text: &str) -> Result<Blocks, NetError> {
    // SAFETY: only the network namespace of this thread changes, and the caller's thread ends with this call.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .map_err(|error| NetError::kernel("make", "a network namespace")(error.into()))?;
    load(text)?;
    listing()
}

fn parse(text: &str) -> Blocks {
    let mut blocks = Blocks::new();
    let mut family = None;
    let mut current: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix("table ") {
            let mut words = table.split(' ');
            let (of, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            family = rules::TABLES.contains(&(of, name)).then_some(of);
        }
        let Some(family) = family else { continue };
        let head = line.strip_suffix(" {").filter(|head| {
            ["chain ", "set ", "map "].iter().any(|kind| head.starts_with(kind)) && current.is_none()
        });
        if let Some(head) = head {
            let head = format!("{family} {head}");
            blocks.insert(head.clone(), Vec::new());
            current = Some(head);
        } else if line == "}" {
            current = None;
        } else if let Some(block) = current.as_ref().and_then(|head| blocks.get_mut(head)) {
            block.push(line.to_owned());
        }
    }
    blocks
}

fn difference(is: &Blocks, should: &Blocks) -> Comparison {
    let mut comparison = Comparison::default();
    for (head, wanted) in should {
        match is.get(head) {
            None => comparison.missing.push(head.clone()),
            Some(lines) if lines != wanted => {
                comparison.changed.push(head.clone());
                let hook =
                    |lines: &Vec<String>| lines.first().filter(|line| line.contains(" hook ")).cloned();
                if head.contains(" chain ") && hook(lines) != hook(wanted) {
                    comparison.moved.push(head.clone());
                }
            }
            Some(_) => {}
        }
    }
    comparison.strange = is.keys().filter(|head| !should.contains_key(*head)).cloned().collect();
    // Those for rates or a list of networks that nobody has any more do no harm: nothing leads to them.
    comparison.strange.retain(|head| {
        let name = head.rsplit(' ').next().unwrap_or_default();
        !["egress_", "rates_", "new_over_", "conns_"].iter().any(|made| name.starts_with(made))
            || !head.starts_with("inet ")
    });
    comparison
}

impl Comparison {
    /// What is wrong, a line each.
    pub fn describe(&self) -> Vec<String> {
        let lines = |heads: &[String], what: &str| {
            heads.iter().map(|head| format!("{head} {what}")).collect::<Vec<_>>()
        };
        let mut all = lines(&self.missing, "is not there");
        all.extend(lines(&self.changed, "was changed"));
        all.extend(lines(&self.strange, "is not mvm's"));
        all
    }

    /// What must go before the base can be loaded, as text of the same transaction: sets and chains that cannot be changed in
    /// place are deleted there and made again, which nothing can do to them while rules point to them.
    pub fn make_way(&self, base: &str) -> String {
        let definitions: Vec<&String> =
            self.changed.iter().filter(|head| !head.contains(" chain ")).collect();
        let moved = self.moved.iter().flat_map(|head| [statement("flush", head), statement("delete", head)]);
        if definitions.is_empty() {
            return moved.collect();
        }
        let mut text = String::new();
        for line in base.lines().filter(|line| line.starts_with("flush chain ")) {
            let chain = line.trim_start_matches("flush ");
            let head = chain.replacen("chain ", "", 1).replacen(" mvm ", " chain ", 1);
            if !self.missing.contains(&head) {
                text.push_str(line);
                text.push('\n');
            }
        }
        for head in definitions {
            text.push_str(&statement("flush", head));
            text.push_str(&statement("delete", head));
        }
        text.extend(moved);
        text
    }

    /// What removes what is not mvm's, as text; nothing of the base leads there any more.
    pub fn sweep(&self) -> String {
        let chains = || self.strange.iter().filter(|head| head.contains(" chain "));
        let mut text: String = chains().map(|head| statement("flush", head)).collect();
        text.extend(self.strange.iter().map(|head| statement("delete", head)));
        text
    }
}

/// `delete` and `inet set x` make `delete set inet mvm x`.
fn statement(verb: &str, head: &str) -> String {
    let words: Vec<&str> = head.splitn(3, ' ').collect();
    match words[..] {
        [family, kind, name] => format!("{verb} {kind} {family} mvm {name}\n"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_compared_line_by_line() {
        let text = "table inet mvm {\n\tset a {\n\t\ttype ifname\n\t}\n\n\tchain raw {\n\t\ttype filter\n\t\tdrop\n\t}\n}\n";
        let should = parse(text);
        assert_eq!(should["inet chain raw"], ["type filter", "drop"]);
        assert_eq!(should["inet set a"], ["type ifname"]);
        assert!(difference(&should, &should).describe().is_empty());
        let changed = parse(&text.replace("drop", "accept"));
        assert_eq!(difference(&changed, &should).describe(), ["inet chain raw was changed"]);
        assert_eq!(difference(&Blocks::new(), &should).missing.len(), 2);
        let more = parse(&text.replace("chain raw", "chain other"));
        assert_eq!(
            difference(&more, &should).describe(),
            ["inet chain raw is not there", "inet chain other is not mvm's"]
        );
        assert_eq!(
            difference(&more, &should).sweep(),
            "flush chain inet mvm other\ndelete chain inet mvm other\n"
        );
    }

    #[test]
    fn a_set_that_cannot_be_changed_is_made_again_once_no_rule_uses_it() {
        let comparison = Comparison { changed: vec!["bridge set port_ip".into()], ..Comparison::default() };
        let text = comparison.make_way("add set x\nflush chain bridge mvm from_port\n");
        let wanted =
            "flush chain bridge mvm from_port\nflush set bridge mvm port_ip\ndelete set bridge mvm port_ip\n";
        assert_eq!(text, wanted);
    }
}
