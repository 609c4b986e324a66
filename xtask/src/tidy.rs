//! What no compiler checks: the size of files, their headers, the direction of layers, who prints and who starts processes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Past this a file has two subjects.
const MAX_LINES: usize = 600;

/// Layers of the library from top to bottom: a file may use its own and those below.
const LAYERS: [&[&str]; 6] =
    [&["cli"], &["node"], &["vm"], &["security", "worker"], &["vmm", "net"], &["store", "infra"]];

/// What every layer may speak of: names are data.
const EVERYBODYS: &str = "vm::naming";

/// Who starts processes: the one place for it, the story that starts mvm itself, and the way into the Linux VM.
const SPAWNERS: [&str; 3] = ["infra/shell/", "cli/commands/demo/", "cli/away.rs"];

/// Runs all checks.
///
/// # Errors
/// Lists everything that is wrong.
pub fn run() -> Result<()> {
    let mut wrong = Vec::new();
    for file in files()? {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.display().to_string();
        if name.ends_with(".rs") {
            check_rust(&name, &text, &mut wrong);
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("tidy:\n  {}", wrong.join("\n  "))
}

fn check_rust(name: &str, text: &str, wrong: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > MAX_LINES {
        wrong.push(format!("{name} has {lines} lines: at most {MAX_LINES}"));
    }
    if !text.trim_start().starts_with("//!") {
        wrong.push(format!("{name} does not begin with //!"));
    }
    let stubs =
        [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("FIX", "ME"), concat!("dbg", "!(")];
    for stub in stubs {
        if text.contains(stub) {
            wrong.push(format!("{name} holds {stub}"));
        }
    }
    if let Some(path) = name.strip_prefix("src/") {
        check_layer(path, text, wrong);
        let printing = ["println!(", "eprintln!(", "print!(", "std::env::var"];
        let allowed = path.starts_with("cli/") || matches!(path, "infra/config.rs" | "infra/tests.rs");
        for call in printing.iter().filter(|call| !allowed && text.contains(**call)) {
            wrong.push(format!("{name} uses {call} and is not in cli"));
        }
        let spawns = text.contains("Command::new(") && !SPAWNERS.iter().any(|place| path.starts_with(place));
        if spawns {
            wrong.push(format!("{name} starts processes by itself: infra::shell does"));
        }
    }
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn check_layer(path: &str, text: &str, wrong: &mut Vec<String>) {
    let module = path.split(['/', '.']).next().unwrap_or_default();
    let Some(own) = layer_of(module) else { return };
    for (used, whole) in uses(text) {
        if layer_of(&used).is_some_and(|layer| layer < own) && !whole.starts_with(EVERYBODYS) {
            wrong.push(format!("src/{path} uses {whole}, which lies above it"));
        }
    }
}

/// The modules that a file takes from the crate: the first name, and as much of the path as is written.
fn uses(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for part in text.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            // A group: each name that stands at its first level.
            Some(group) => {
                let mut depth = 1;
                let mut start = 0;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 || (c == ',' && depth == 1) {
                        found.extend(path_of(&group[start..at]));
                        start = at + 1;
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            None => found.extend(path_of(part)),
        }
    }
    found
}

fn path_of(text: &str) -> Option<(String, String)> {
    let path: String =
        text.trim().chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
    let first = path.split("::").next().filter(|first| !first.is_empty())?.to_owned();
    // `vm::{naming::…}` names what it takes inside its own group.
    let rest = text.trim().get(path.len()..).unwrap_or_default();
    let whole = match rest.strip_prefix('{') {
        Some(group) => format!("{path}{}", group.trim().split([':', ',', '}']).next().unwrap_or_default()),
        None => path,
    };
    Some((first, whole))
}

fn files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in ["src", "crates", "xtask", "tests"] {
        collect(Path::new(folder), &mut files)?;
    }
    files.sort();
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_found_in_groups_too() {
        let text = "use crate::{\n    net::{Net, egress::Egress},\n    vm::{naming::Slot, room},\n};\nlet x = crate::store::read();";
        let first: Vec<String> = uses(text).into_iter().map(|(first, _)| first).collect();
        assert_eq!(first, ["net", "vm", "store"]);
        let mut wrong = Vec::new();
        check_layer("vmm/x.rs", "use crate::vm::room;", &mut wrong);
        check_layer("vmm/x.rs", "use crate::vm::naming::Slot;", &mut wrong);
        assert_eq!(wrong.len(), 1);
    }
}
