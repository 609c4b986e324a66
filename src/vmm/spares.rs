//! Copies of Firecracker that are made beforehand, a few for each installed version: `vmm/<version>-<arch>/spares/<number>`.
//!
//! A jailer copies its program into each jail, so that no two VMMs share its memory. Over a file of the same length that has its
//! blocks and pages already that takes a third of the time, and one is made while others wait for the end of a VMM.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{
    infra::config::Roots,
    store::{self, StoreError},
};

use super::install::{self, Installed};

/// How many there are of a version: for so many starts one after another.
const SPARES: u32 = 4;

/// Moves one to where a jailer will put the program; without one it makes its own file there.
pub fn take(program: &Path, to: &Path) {
    // Others take some, too.
    all(program).find(|spare| is_whole(spare, program) && fs::rename(spare, to).is_ok());
}

/// Makes one where one is missing, of the installed version whose program is of that length: a VMM of it is going, which had a copy.
/// Nobody needs it: the next one makes what this one could not.
pub fn refill(roots: &Roots, length: u64) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let Ok(_alone) = ONE_AT_A_TIME.try_lock() else { return };
    let is_it = |one: &Installed| fs::metadata(&one.firecracker).is_ok_and(|meta| meta.len() == length);
    let versions = install::list(roots).unwrap_or_default();
    let _ = versions.iter().find(|one| is_it(one)).map(|one| refill_one(&one.firecracker));
}

fn refill_one(program: &Path) -> Result<(), StoreError> {
    let Some(missing) = all(program).find(|spare| !is_whole(spare, program)) else { return Ok(()) };
    let folder = folder(program);
    match fs::create_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        // Without its parent the version was removed meanwhile, and must not come back.
        made => made.map_err(StoreError::io("create", &folder))?,
    }
    store::sweep(&folder)?;
    let new = store::unfinished(&missing);
    let copied = fs::copy(program, &new).map_err(StoreError::io("copy", program));
    if let Err(error) = copied {
        let _ = store::remove_file(&new);
        return Err(error);
    }
    // Where another process was as fast, one of the two is dropped.
    store::rename(&new, &missing)
}

fn all(program: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = folder(program);
    (1..=SPARES).map(move |number| folder.join(number.to_string()))
}

/// What is behind the end of a shorter program would stay there, and a power cut may leave less than the whole.
fn is_whole(spare: &Path, program: &Path) -> bool {
    let length = |path: &Path| fs::metadata(path).map(|meta| meta.len()).ok();
    length(spare).is_some_and(|length_of_spare| Some(length_of_spare) == length(program))
}

/// Where those of a program are.
pub fn folder(program: &Path) -> PathBuf {
    program.with_file_name("spares")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_made_again_up_to_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("firecracker");
        fs::write(&program, "program").unwrap();
        let there = || store::names(&dir.path().join("spares"), |_| true).unwrap();
        let jail = dir.path().join("in-jail");
        take(&program, &jail);
        assert!(!jail.exists(), "there is none");
        (0..=SPARES).for_each(|_| refill_one(&program).unwrap());
        assert_eq!(there(), ["1", "2", "3", "4"]);
        take(&program, &jail);
        assert_eq!(fs::read_to_string(&jail).unwrap(), "program");
        assert_eq!(there(), ["2", "3", "4"]);
        refill_one(&program).unwrap();
        assert_eq!(there().len(), 4);
        // Of another length: of another program, or what a power cut has left. It is replaced.
        fs::write(&program, "prog").unwrap();
        let other = dir.path().join("other");
        take(&program, &other);
        assert!(!other.exists());
        refill_one(&program).unwrap();
        take(&program, &other);
        assert_eq!(fs::read_to_string(&other).unwrap(), "prog");
    }

    #[test]
    fn a_version_that_was_removed_does_not_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("1.16.1-x86_64");
        refill_one(&version.join("firecracker")).unwrap_err();
        assert!(!version.exists());
    }
}
