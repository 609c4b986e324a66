//! Installed VMMs: `vmm/<version>-<arch>/{firecracker,jailer}`, several versions side by side, `vmm/default` names one.
//!
//! Where there is none, Firecracker is taken from where the environment says and copied in at first use, so that a
//! later upgrade of the host's own never changes under a sleeping instance.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    infra::{
        config::Roots,
        failpoint,
        shell::{self, ShellError},
    },
    store::{self, Lock, Sharing, StoreError},
};

use super::process::Program;

/// Why there is no VMM to run.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// None is installed and none was found.
    #[error("there is no Firecracker: none is installed, FIRECRACKER_BIN is not set, and none is on PATH")]
    None,
    /// That version is not installed.
    #[error("Firecracker {version} is not installed; {installed}")]
    NoSuchVersion {
        /// The version.
        version: String,
        /// Those that are.
        installed: String,
    },
    /// A program that is no Firecracker.
    #[error("{path} is not a Firecracker: {why}", path = path.display())]
    NotFirecracker {
        /// The program.
        path: PathBuf,
        /// What it said.
        why: String,
    },
    /// A program that is no jailer, or that of another Firecracker.
    #[error("{path} is not the jailer of Firecracker {version}: {why}", path = path.display())]
    NotJailer {
        /// The program.
        path: PathBuf,
        /// The Firecracker's version.
        version: String,
        /// What it said.
        why: String,
    },
    /// This build of mvm has no simulated VMM.
    #[error("this mvm was built without the simulated VMM")]
    NoSim,
    /// The state could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The program could not be run.
    #[error(transparent)]
    Shell(#[from] ShellError),
}

/// An installed version.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Installed {
    /// As in `1.16.1`.
    pub version: String,
    /// Of the machine.
    pub arch: String,
    /// The program.
    pub firecracker: PathBuf,
    /// The jailer beside it.
    pub jailer: Option<PathBuf>,
    /// Whether new pools get it.
    pub default: bool,
}

/// The first argument with which mvm runs as the simulated VMM.
pub const SIM_ARGUMENT: &str = "__fcsim";

const DEFAULT: &str = "default";

/// All installed versions, oldest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(roots: &Roots) -> Result<Vec<Installed>, StoreError> {
    let folder = roots.vmm_versions();
    let default = fs::read_to_string(folder.join(DEFAULT)).unwrap_or_default().trim().to_owned();
    let mut all = Vec::new();
    for name in store::names(&folder, |name| !name.starts_with('.') && name != DEFAULT)? {
        let Some((version, arch)) = name.rsplit_once('-') else {
            continue;
        };
        let firecracker = folder.join(&name).join("firecracker");
        let jailer = Some(folder.join(&name).join("jailer")).filter(|path| path.exists());
        if firecracker.exists() {
            let default = default == version;
            all.push(Installed { version: version.into(), arch: arch.into(), firecracker, jailer, default });
        }
    }
    all.sort_by_key(|installed| version_key(&installed.version));
    Ok(all)
}

fn version_key(version: &str) -> Vec<u64> {
    version.split(['.', '-']).map(|part| part.parse().unwrap_or(0)).collect()
}

/// The Firecracker to run: this version, or the default, or the newest, or the one that the environment names, which is
/// installed then.
///
/// # Errors
/// [`InstallError::None`] where there is none.
pub fn firecracker(roots: &Roots, version: Option<&str>) -> Result<Program, InstallError> {
    let installed = list(roots)?;
    let chosen = match version {
        Some(version) => installed.iter().find(|one| one.version == version),
        None => installed.iter().find(|one| one.default).or(installed.last()),
    };
    let chosen = match (chosen, &roots.firecracker_bin) {
        (Some(one), _) => one.clone(),
        (None, Some(binary)) => {
            let one = install(roots, binary, found_jailer(roots, binary))?;
            if version.is_some_and(|version| version != one.version) {
                return Err(no_such(version, list(roots)?));
            }
            one
        }
        (None, None) if version.is_some() && !installed.is_empty() => {
            return Err(no_such(version, installed));
        }
        (None, None) => return Err(InstallError::None),
    };
    Ok(chosen.program())
}

impl Installed {
    /// What is run.
    pub fn program(&self) -> Program {
        Program {
            path: self.firecracker.clone(),
            first_arguments: Vec::new(),
            version: self.version.clone(),
            jailer: self.jailer.clone(),
        }
    }
}

fn no_such(version: Option<&str>, installed: Vec<Installed>) -> InstallError {
    let installed = match &installed[..] {
        [] => "none is".to_owned(),
        some => {
            let versions: Vec<&str> = some.iter().map(|one| one.version.as_str()).collect();
            format!("there are {}", versions.join(", "))
        }
    };
    InstallError::NoSuchVersion { version: version.unwrap_or_default().to_owned(), installed }
}

/// The simulated VMM: this very program under another name. It has one version only, which reads what it wrote.
///
/// # Errors
/// [`InstallError::NoSim`] where it was left out of the build; [`InstallError::NoSuchVersion`] where it is another one.
#[cfg(feature = "sim")]
pub fn sim(wanted: Option<&str>) -> Result<Program, InstallError> {
    let version = fcsim::VERSION.to_owned();
    if let Some(wanted) = wanted.filter(|wanted| *wanted != version) {
        let installed = format!("this mvm simulates {version}");
        return Err(InstallError::NoSuchVersion { version: wanted.to_owned(), installed });
    }
    let path = std::env::current_exe()
        .map_err(|source| StoreError::io("find", Path::new("/proc/self/exe"))(source))?;
    Ok(Program { path, first_arguments: vec![SIM_ARGUMENT.into()], version, jailer: None })
}

/// The simulated VMM, which was left out of this build.
///
/// # Errors
/// [`InstallError::NoSim`].
#[cfg(not(feature = "sim"))]
pub fn sim(_wanted: Option<&str>) -> Result<Program, InstallError> {
    Err(InstallError::NoSim)
}

/// The version that a program of Firecracker's says it has, whose name stands before it.
fn version_of(program: &Path, name: &str) -> Result<String, String> {
    let said = shell::run(program, ["--version"], b"", Duration::from_secs(10));
    let said = said.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&said);
    let is_version = |version: &&str| {
        !version.is_empty() && version.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c))
    };
    let version = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" v"));
    match version.map(str::trim).filter(is_version) {
        Some(version) => Ok(version.to_owned()),
        None => Err(format!("it says {:?}", said.lines().next().unwrap_or_default())),
    }
}

/// The jailer that the environment has, where it is that of this Firecracker.
pub fn found_jailer<'a>(roots: &'a Roots, firecracker: &Path) -> Option<&'a Path> {
    roots.jailer_bin.as_deref().filter(|jailer| is_jailer_of(firecracker, jailer))
}

/// Is that the jailer of this Firecracker?
pub fn is_jailer_of(firecracker: &Path, jailer: &Path) -> bool {
    let version = version_of(firecracker, "Firecracker");
    version.is_ok_and(|version| version_of(jailer, "Jailer").is_ok_and(|other| other == version))
}

/// Is there one of this version, or any, where none is named?
///
/// # Errors
/// When the folder cannot be read.
pub fn is_installed(roots: &Roots, version: Option<&str>) -> Result<bool, StoreError> {
    Ok(list(roots)?.iter().any(|one| version.is_none_or(|version| version == one.version)))
}

/// Installs a Firecracker, and a jailer beside it, under the version that the programs themselves name.
///
/// # Errors
/// [`InstallError::NotFirecracker`] and [`InstallError::NotJailer`] where they name none, or two.
pub fn install(roots: &Roots, firecracker: &Path, jailer: Option<&Path>) -> Result<Installed, InstallError> {
    let not = |why: String| InstallError::NotFirecracker { path: firecracker.to_path_buf(), why };
    let version = version_of(firecracker, "Firecracker").map_err(not)?;
    if let Some(jailer) = jailer {
        let not = |why| InstallError::NotJailer { path: jailer.to_path_buf(), version: version.clone(), why };
        let other = version_of(jailer, "Jailer").map_err(not)?;
        if other != version {
            return Err(not(format!("it is that of {other}")));
        }
    }
    let folder = roots.vmm_versions();
    store::make_folder(&folder)?;
    let _lock =
        Lock::take(&roots.lock_file("vmm"), "the VMM versions", Sharing::Exclusive, roots.lock_timeout)?;
    store::sweep(&folder)?;
    let arch = std::env::consts::ARCH;
    let name = format!("{version}-{arch}");
    let place = folder.join(&name);
    if !place.join("firecracker").exists() {
        let new = store::unfinished(&place);
        store::make_folder(&new)?;
        for (program, from) in [("firecracker", Some(firecracker)), ("jailer", jailer)] {
            let Some(from) = from else { continue };
            copy_program(from, &new.join(program))?;
        }
        failpoint::hit("install", "copied").map_err(StoreError::io("install", &new))?;
        fs::rename(&new, &place).map_err(StoreError::io("rename", &new))?;
        store::sync_folder(&folder)?;
        failpoint::hit("install", "in-place").map_err(StoreError::io("install", &place))?;
    }
    // One that is there gets the jailer that is given.
    let there = place.join("jailer");
    if let Some(jailer) = jailer
        && fs::read(jailer).map_err(StoreError::io("read", jailer))? != fs::read(&there).unwrap_or_default()
    {
        let new = store::unfinished(&folder.join("jailer"));
        copy_program(jailer, &new)?;
        fs::rename(&new, &there).map_err(StoreError::io("rename", &new))?;
        store::sync_folder(&place)?;
    }
    let found = list(roots)?.into_iter().find(|one| one.version == version);
    found.ok_or_else(|| not("it vanished while it was installed".into()))
}

fn copy_program(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::copy(from, to).map_err(StoreError::io("copy", from))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(StoreError::io("write", to))?;
    fs::File::open(to).and_then(|file| file.sync_all()).map_err(StoreError::io("sync", to))
}

/// Makes a version the one that new pools get.
///
/// # Errors
/// [`InstallError::NoSuchVersion`] where it is not installed.
pub fn set_default(roots: &Roots, version: &str) -> Result<(), InstallError> {
    let installed = list(roots)?;
    if !installed.iter().any(|one| one.version == version) {
        return Err(no_such(Some(version), installed));
    }
    let file = roots.vmm_versions().join(DEFAULT);
    Ok(store::replace(&file, format!("{version}\n").as_bytes(), store::Durability::Durable)?)
}

/// Removes a version.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(roots: &Roots, installed: &Installed) -> Result<(), StoreError> {
    let _lock =
        Lock::take(&roots.lock_file("vmm"), "the VMM versions", Sharing::Exclusive, roots.lock_timeout)?;
    match installed.firecracker.parent() {
        Some(folder) => store::vanish(folder),
        None => Ok(()),
    }
}
