//! `mvm vmm …`

use std::path::PathBuf;

use crate::cli::{
    arguments::vmm::VmmCommand,
    error::{CliError, Kind},
    output::Out,
};
use crate::{
    infra::config::Roots,
    node::{self, Damage, Versions},
    security::jailer,
    vmm::install::{self, Installed},
};

/// Runs the command.
pub fn run(out: &Out, roots: &Roots, command: VmmCommand) -> Result<u8, CliError> {
    match command {
        VmmCommand::List => {
            let all = install::list(roots)?;
            out.show(&all, || {
                if all.is_empty() {
                    return "none installed; the one on PATH is installed at first use        next: mvm vmm install FILE"
                        .to_owned();
                }
                let row = |one: &Installed| {
                    let jailer = if one.jailer.is_some() { "yes" } else { "no" };
                    let default = if one.default { "default" } else { "" };
                    vec![one.version.clone(), one.arch.clone(), jailer.into(), default.into()]
                };
                out.table(&["version", "arch", "jailer", ""], all.iter().map(row).collect())
            });
        }
        VmmCommand::Install { file, jailer } => {
            // One that only lies beside it, and is none, is nobody's mistake.
            let is_one = |path: &PathBuf| {
                path.is_file() && jailer::check_static(path).is_ok() && install::is_jailer_of(&file, path)
            };
            let jailer = jailer.or(Some(file.with_file_name("jailer")).filter(is_one));
            if let Some(jailer) = &jailer {
                jailer::check_static(jailer).map_err(|error| {
                    let fix = "give the jailer of an official release, or none";
                    CliError::new(Kind::Failed, "not_jailer", format!("it makes no jails: {error}")).fix(fix)
                })?;
            }
            let installed = install::install(roots, &file, jailer.as_deref())?;
            out.done(&installed, || format!("Firecracker {} installed", installed.version));
        }
        VmmCommand::Default { version } => {
            install::set_default(roots, &version)?;
            out.done(&serde_json::json!({ "version": version, "default": true }), || {
                format!("new pools get Firecracker {version}")
            });
        }
        VmmCommand::Gc => {
            let Versions { removed, unreadable } = node::collect_vmms(roots)?;
            out.done(&removed, || match (removed.len(), unreadable.len()) {
                (0, 0) => "every version is needed".to_owned(),
                (0, _) => "every version stays: it is not known which are needed".to_owned(),
                _ => format!("removed {}", removed.join(", ")),
            });
            let say = |damage: &Damage| out.error(&CliError::from(&damage.error).about(&damage.path)).max(1);
            return Ok(unreadable.iter().map(say).max().unwrap_or(0));
        }
    }
    Ok(0)
}
