//! Copies of Firecracker that are made beforehand, a few for each installed version: `vmm/<version>-<arch>/spares/<number>`.
//!
//! A jailer copies its program into each jail, so that no two VMMs share its memory. Over a file of the same length that has its
//! blocks and pages already that takes a third of the time, and nobody waits while one is made as a VMM goes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    infra::config::Roots,
    store::{self, StoreError},
};

use super::install::{self, Installed};

/// How many there are of a version: for so many starts one after another.
const SPARES: u32 = 4;

const FOLDER: &str = "spares";

/// Moves one to where a jailer will put the program; without one it makes its own file there.
pub fn take(program: &Path, to: &Path) {
    let folder = program.with_file_name(FOLDER);
    let length = |path: &Path| fs::metadata(path).map(|meta| meta.len()).ok();
    for number in 1..=SPARES {
        let spare = folder.join(number.to_string());
        // What is behind the end of a shorter program would stay there.
        if length(&spare).is_some() && length(&spare) == length(program) && fs::rename(&spare, to).is_ok() {
            return;
        }
    }
}

/// Makes one of each installed version of which one is missing. Nobody needs it: the next one makes what this one could not.
pub fn refill(roots: &Roots) {
    for version in install::list(roots).unwrap_or_default() {
        let _ = refill_one(&version);
    }
}

fn refill_one(version: &Installed) -> Result<(), StoreError> {
    let folder = folder(version);
    let missing = (1..=SPARES).map(|number| folder.join(number.to_string())).find(|spare| !spare.exists());
    let (Some(missing), Some(_)) = (missing, &version.jailer) else { return Ok(()) };
    store::make_folder(&folder)?;
    store::sweep(&folder)?;
    let new = store::unfinished(&missing);
    let copied = fs::copy(&version.firecracker, &new).map_err(StoreError::io("copy", &version.firecracker));
    if let Err(error) = copied {
        let _ = store::remove_file(&new);
        return Err(error);
    }
    // Where another one was as fast, one of the two is dropped.
    store::rename(&new, &missing)
}

/// Where those of a version are.
pub fn folder(version: &Installed) -> PathBuf {
    version.firecracker.with_file_name(FOLDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_made_again_up_to_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("firecracker");
        fs::write(&program, "program").unwrap();
        let jailer = Some(dir.path().join("jailer"));
        let version = Installed {
            version: "1.16.1".into(),
            arch: "x86_64".into(),
            firecracker: program.clone(),
            jailer,
            default: true,
        };
        let there = || store::names(&dir.path().join("spares"), |_| true).unwrap();
        let jail = dir.path().join("in-jail");
        take(&program, &jail);
        assert!(!jail.exists(), "there is none");
        (0..=SPARES).for_each(|_| refill_one(&version).unwrap());
        assert_eq!(there(), ["1", "2", "3", "4"]);
        take(&program, &jail);
        assert_eq!(fs::read_to_string(&jail).unwrap(), "program");
        assert_eq!(there(), ["2", "3", "4"]);
        refill_one(&version).unwrap();
        assert_eq!(there().len(), 4);
        // Of another length: of another program.
        fs::write(&program, "prog").unwrap();
        let other = dir.path().join("other");
        take(&program, &other);
        assert!(!other.exists());
        // Without a jailer nobody copies.
        fs::remove_dir_all(dir.path().join("spares")).unwrap();
        refill_one(&Installed { jailer: None, ..version }).unwrap();
        assert_eq!(there(), [""; 0]);
    }
}
