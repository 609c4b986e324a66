//! Which of a kernel's modules are loaded in which order. Modules say in themselves what they depend on.

use std::collections::{BTreeMap, BTreeSet};

/// A module that is needed, and neither there nor part of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel has no module {name}{}", needed_by.as_ref().map_or(String::new(), |by| format!(", which {by} needs")))]
pub struct MissingModule {
    /// The module.
    pub name: String,
    /// The one that needs it, where it was not asked for.
    pub needed_by: Option<String>,
}

/// A module's name, from its file's: the kernel takes `-` and `_` for the same.
pub fn name_of(file: &str) -> Option<String> {
    let (name, kind) = file.split_once('.')?;
    (kind == "ko" || kind.starts_with("ko.")).then(|| name.replace('-', "_"))
}

/// What a module depends on, as it says itself.
pub fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let text = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// The modules to load, each after what it depends on. Those of the kernel itself (`builtin`) are left out.
///
/// # Errors
/// [`MissingModule`] where one is neither there nor part of the kernel.
pub fn order(
    wanted: &[&str],
    there: &BTreeMap<String, Vec<String>>,
    builtin: &BTreeSet<String>,
) -> Result<Vec<String>, MissingModule> {
    let mut loaded = Vec::new();
    for name in wanted {
        load(name, None, there, builtin, &mut Vec::new(), &mut loaded)?;
    }
    Ok(loaded)
}

fn load(
    name: &str,
    needed_by: Option<&str>,
    there: &BTreeMap<String, Vec<String>>,
    builtin: &BTreeSet<String>,
    above: &mut Vec<String>,
    loaded: &mut Vec<String>,
) -> Result<(), MissingModule> {
    let is = |list: &[String]| list.iter().any(|one| one == name);
    // A circle would be a damaged module's: it is cut, not followed for ever.
    if is(loaded) || is(above) || builtin.contains(name) {
        return Ok(());
    }
    let depends = there
        .get(name)
        .ok_or_else(|| MissingModule { name: name.to_owned(), needed_by: needed_by.map(str::to_owned) })?;
    above.push(name.to_owned());
    for one in depends {
        load(one, Some(name), there, builtin, above, loaded)?;
    }
    above.pop();
    loaded.push(name.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(modules: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        modules.iter().map(|(name, depends)| ((*name).to_owned(), owned(depends))).collect()
    }

    #[test]
    fn each_comes_once_and_after_what_it_depends_on() {
        let there = there(&[
            ("virtio_net", &["virtio_ring", "virtio", "net_failover"]),
            ("net_failover", &["failover"]),
            ("failover", &[]),
            ("virtio_ring", &[]),
            ("virtio", &["virtio_ring"]),
        ]);
        assert_eq!(
            order(&["virtio", "virtio_net"], &there, &BTreeSet::new()).unwrap(),
            ["virtio_ring", "virtio", "failover", "net_failover", "virtio_net"]
        );
    }

    #[test]
    fn the_kernel_s_own_need_no_loading_and_a_missing_one_is_named() {
        let there = there(&[("a", &["ext4", "b"]), ("circle", &["circle"])]);
        let builtin = BTreeSet::from(["ext4".to_owned()]);
        let missing = order(&["a"], &there, &builtin).unwrap_err();
        assert_eq!(missing.to_string(), "the kernel has no module b, which a needs");
        assert_eq!(
            order(&["none"], &there, &builtin).unwrap_err().to_string(),
            "the kernel has no module none"
        );
        assert_eq!(order(&["circle"], &there, &builtin).unwrap(), ["circle"]);
    }

    #[test]
    fn a_module_says_what_it_depends_on() {
        assert_eq!(
            depends(b"\x7fELF..\0license=GPL\0depends=virtio-ring,virtio\0name=x\0"),
            ["virtio_ring", "virtio"]
        );
        assert!(depends(b"\0depends=\0").is_empty() && depends(b"nothing").is_empty());
        assert_eq!(name_of("crc32c-intel.ko").as_deref(), Some("crc32c_intel"));
        assert_eq!(name_of("ext4.ko.xz").as_deref(), Some("ext4"));
        assert_eq!(name_of("modules.dep"), None);
    }
}
