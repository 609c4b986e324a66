//! The recipe for a Debian guest: packages from the mirror that apt is set up with here, and a few small files.
//!
//! ```text
//! versions → (there already?) → kernel → root → vmlinux, initrd, rootfs.ext4 → hash → in place
//! ```
//!
//! mmdebstrap makes the root in a mount and process namespace of its own, which ends with this process: nothing stays
//! mounted and nothing goes on, however this ends. Same versions, same content: times, ids of the file system and the order
//! of files are fixed, and what a machine would have of its own is not in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use super::{
    Image, ImageError, Manifest, Tool, agent,
    cpio::Archive,
    ext4::{self, HASH_SEED, TIME, UUID},
    kernel, modules, root,
};
use crate::{
    infra::{
        config::Roots,
        failpoint,
        shell::{self, Surroundings},
        text::hex,
    },
    store::{self, Schema, Sharing, StoreError},
    vm::{
        instance::fc_config::files,
        naming::ImageName,
        pool::{
            artifacts::{self, Artifact},
            checks,
            config::AgentMode,
        },
        room::{self, NodeConfig},
    },
};

/// What kind of image.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name.
    pub name: ImageName,
    /// Debian packages besides those of the recipe.
    pub packages: Vec<String>,
}

const TOOLS: [Tool; 7] = [
    ("apt-get", "apt"),
    ("apt-cache", "apt"),
    ("dpkg-deb", "dpkg"),
    ("dpkg-query", "dpkg"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("unshare", "util-linux"),
];

/// Besides the essential ones: the init of a guest without an agent and its tools, what a person expects on a network, and
/// who a session of `mvm instance ssh` speaks with.
const PACKAGES: [&str; 4] = ["busybox-static", "iproute2", "iputils-ping", "openssh-server"];
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the guest needs to find its disks, its network and its host.
const MODULES: [&str; 9] = [
    "virtio_ring",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "vsock",
    "vmw_vsock_virtio_transport",
    "overlay",
    "ext4",
];
/// reboot=k ends the VMM; the i8042 options save the guest from looking for a mouse.
const CMDLINE: &str =
    "console=ttyS0 reboot=k panic=-1 quiet loglevel=1 i8042.noaux i8042.nomux i8042.dumbkbd";
/// The root disk's virtual size; what is not used is a hole.
const ROOT_MIB: u64 = 512;
/// What making it takes at most, in MiB.
const NEEDED_MIB: u64 = 768;

/// With less than that left, a failure is the disk's.
const NEARLY_FULL_MIB: u64 = 16;

const A_MINUTE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(15 * 60);

/// Makes the image; `step` is told what is going on. False where one of the same versions is there already.
///
/// # Errors
/// What was there before stays where it fails, and nothing of the new one is left.
pub fn make(
    roots: &Roots,
    options: &Options,
    step: &mut dyn FnMut(&'static str),
) -> Result<(Manifest, bool), ImageError> {
    check_machine()?;
    let image = Image::of(roots, &options.name);
    store::make_folder(&image.folder)?;
    let _lock = image.lock(roots, Sharing::Exclusive)?;
    store::sweep(&image.folder)?;
    let work = store::unfinished(&image.folder.join("work"));
    store::remove_folder(&work)?;
    store::make_folder(&work)?;
    let made = Recipe { roots, options, work: &work }.cook(&image, step);
    // Programs do not always say in so many words that they ran out of space.
    let made = made.map_err(|error| match error {
        ImageError::Step { step, .. } if room::free_mib(&work).is_ok_and(|free| free < NEARLY_FULL_MIB) => {
            ImageError::DiskFull { step }
        }
        error => error,
    });
    let removed = store::remove_folder(&work);
    if made.is_err() {
        // One that has never been made leaves no folder of its name.
        let _ = fs::remove_dir(&image.folder);
    }
    let made = made?;
    removed?;
    Ok(made)
}

fn check_machine() -> Result<(), ImageError> {
    let arch = std::env::consts::ARCH;
    if arch != "x86_64" {
        return Err(ImageError::Architecture { arch });
    }
    let tools: Vec<Tool> = TOOLS.into_iter().filter(|(tool, _)| shell::find(tool).is_none()).collect();
    if !tools.is_empty() {
        return Err(ImageError::Tools { tools });
    }
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(ImageError::NotRoot),
    }
}

struct Recipe<'a> {
    roots: &'a Roots,
    options: &'a Options,
    work: &'a Path,
}

impl Recipe<'_> {
    fn cook(
        &self,
        image: &Image,
        step: &mut dyn FnMut(&'static str),
    ) -> Result<(Manifest, bool), ImageError> {
        step("looking which versions there are");
        let mirror = Mirror::of_apt()?;
        let kernel_package = kernel_package()?;
        let inputs = self.inputs(&kernel_package)?;
        match image.current(self.roots) {
            Ok((_, there)) if there.inputs == inputs => return Ok((there, false)),
            Ok(_) | Err(ImageError::Unknown { .. } | ImageError::Changed { .. }) => {}
            Err(error) => return Err(error),
        }
        room::check_disk(self.roots, &NodeConfig::load(self.roots)?, NEEDED_MIB)?;
        step("fetching the kernel");
        let unpacked = self.fetch_kernel(&kernel_package)?;
        failpoint::hit("image", "kernel").map_err(StoreError::io("make", self.work))?;
        step("making the root file system");
        let tree = self.bootstrap(&mirror)?;
        failpoint::hit("image", "root").map_err(StoreError::io("make", self.work))?;
        step("packing kernel, initial RAM disk and root disk");
        let mut packages = installed(&tree)?;
        packages.insert(kernel_package.0, kernel_package.1);
        root::furnish(&tree)?;
        let new = self.work.join("image");
        store::make_folder(&new)?;
        let kernel_version = self.pack_kernel(&unpacked, &new.join(files::KERNEL))?;
        pack_initrd(&unpacked, &kernel_version, &new.join(files::INITRD))?;
        let form = ext4::Form { size_mib: ROOT_MIB, content: ext4::Content::Made };
        ext4::make(&tree, &new.join(files::ROOT), &form)?;
        failpoint::hit("image", "packed").map_err(StoreError::io("make", self.work))?;
        let part = |name: &str| finish_part(&new, name);
        let (kernel, initrd, rootfs) = (part(files::KERNEL)?, part(files::INITRD)?, part(files::ROOT)?);
        let manifest = Manifest {
            schema_version: Schema,
            name: self.options.name.clone(),
            revision: artifacts::revision_of(&new, [&kernel, &rootfs, &initrd].into_iter(), CMDLINE)?,
            created_at: self.roots.now(),
            release: mirror.release,
            kernel_version,
            arch: std::env::consts::ARCH.to_owned(),
            agent: AgentMode::Required,
            cmdline: CMDLINE.to_owned(),
            root_drive: IgnoredAny,
            kernel,
            initrd,
            rootfs,
            packages,
            inputs,
        };
        // Versions that only look new to apt here give what is there already.
        let new_content =
            image.current(self.roots).map_or(true, |(_, there)| there.revision != manifest.revision);
        image.place(&new, &manifest)?;
        Ok((manifest, new_content))
    }

    fn packages(&self) -> impl Iterator<Item = &str> {
        PACKAGES.into_iter().chain(self.options.packages.iter().map(String::as_str))
    }

    /// A hash of the recipe and of the versions that apt would install into an empty root.
    fn inputs(&self, kernel_package: &(String, String)) -> Result<String, ImageError> {
        let status = self.work.join("status");
        fs::write(&status, "").map_err(StoreError::io("write", &status))?;
        let mut dir_status = OsString::from("Dir::State::status=");
        dir_status.push(&status);
        let arguments =
            ["-qq", "-s", "-o", "APT::Install-Recommends=false", "-o", "Debug::NoLocking=true", "-o"];
        let arguments = arguments.into_iter().map(OsStr::new).chain([dir_status.as_os_str()]);
        let arguments = arguments.chain(["install", "?essential"].map(OsStr::new));
        let arguments = arguments.chain(self.packages().map(OsStr::new));
        let said = shell::run("apt-get", arguments, b"", A_MINUTE).map_err(|error| match &error {
            shell::ShellError::Failed { stderr, .. } => match unknown_package(stderr) {
                Some(package) => ImageError::NoPackage { package },
                None => ImageError::step("asking apt for versions")(error),
            },
            _ => ImageError::step("asking apt for versions")(error),
        })?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let versions: BTreeSet<&str> = said.lines().filter(|line| line.starts_with("Inst ")).collect();
        let mut hasher = Sha256::new();
        for version in versions {
            // The brackets behind the version name the archive that it comes from.
            let fields: Vec<&str> = version.split_whitespace().take(3).collect();
            hasher.update(format!("{}\n", fields.join(" ")));
        }
        let (kernel, version) = kernel_package;
        hasher.update(format!(
            "{kernel} {version}\n{CMDLINE}\n{TIME} {ROOT_MIB} {UUID} {HASH_SEED}\n{MODULES:?}\n"
        ));
        hasher.update(root::recipe());
        hasher.update(Sha256::digest(agent::PROGRAM));
        hasher.update(self.packages().collect::<Vec<_>>().join(" "));
        Ok(format!("sha256:{}", hex(&hasher.finalize())))
    }

    /// Fetches the kernel's package and unpacks it, without installing it anywhere.
    fn fetch_kernel(&self, (package, version): &(String, String)) -> Result<PathBuf, ImageError> {
        const STEP: &str = "fetching the kernel's package";
        let folder = self.work.join("kernel");
        store::make_folder(&folder)?;
        let surroundings =
            Surroundings { directory: Some(&folder), dies_with_us: true, ..Surroundings::default() };
        let wanted = format!("{package}={version}");
        let arguments = ["-qq", "-o", "APT::Sandbox::User=root", "download", &wanted];
        shell::run_in(&surroundings, "apt-get", arguments, b"", LONG).map_err(ImageError::step(STEP))?;
        let fetched = store::names(&folder, |name| name.ends_with(".deb"))?;
        let file =
            folder.join(fetched.first().ok_or_else(|| ImageError::NoPackage { package: package.clone() })?);
        let unpacked = folder.join("unpacked");
        let arguments = [OsStr::new("-x"), file.as_os_str(), unpacked.as_os_str()];
        shell::run_in(&surroundings, "dpkg-deb", arguments, b"", LONG)
            .map_err(ImageError::step("unpacking the kernel's package"))?;
        store::remove_file(&file)?;
        Ok(unpacked)
    }

    /// A Debian root with these packages, configured, made in namespaces that end with this process.
    fn bootstrap(&self, mirror: &Mirror) -> Result<PathBuf, ImageError> {
        let root = self.work.join("root");
        let time = TIME.to_string();
        let include = format!("--include={}", self.packages().collect::<Vec<_>>().join(","));
        let surroundings = Surroundings {
            environment: &[
                ("SOURCE_DATE_EPOCH", OsStr::new(&time)),
                // What it leaves when it is killed goes with the folder.
                ("TMPDIR", self.work.as_os_str()),
            ],
            dies_with_us: true,
            ..Surroundings::default()
        };
        let isolated = ["--mount", "--mount-proc", "--pid", "--fork", "--kill-child", "mmdebstrap"];
        let settings = [
            "--mode=root",
            "--variant=essential",
            "--format=directory",
            include.as_str(),
            "--aptopt=APT::Install-Recommends \"false\"",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-exclude=/usr/share/info/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            mirror.release.as_str(),
        ];
        let arguments = isolated.into_iter().chain(settings).map(OsStr::new);
        let arguments = arguments.chain([root.as_os_str(), OsStr::new("-")]);
        shell::run_in(&surroundings, "unshare", arguments, mirror.sources.as_bytes(), LONG)
            .map_err(ImageError::step("making the root file system"))?;
        Ok(root)
    }

    /// Takes the ELF out of the package's kernel. Returns the kernel's version.
    fn pack_kernel(&self, unpacked: &Path, to: &Path) -> Result<String, ImageError> {
        let boot = unpacked.join("boot");
        let found = store::names(&boot, |name| name.starts_with("vmlinuz-"))?;
        let name = found.first().ok_or_else(|| ImageError::NoPackage { package: KERNEL.to_owned() })?;
        let path = boot.join(name);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let elf = kernel::vmlinux(&bytes).map_err(|source| ImageError::Kernel { path, source })?;
        fs::write(to, elf).map_err(StoreError::io("write", to))?;
        checks::check_kernel(to)?;
        Ok(name.trim_start_matches("vmlinuz-").to_owned())
    }
}

/// The first root: the modules, in which order they are loaded, and the agent. It hands over to the guest's own init where
/// the guest has no agent.
fn pack_initrd(unpacked: &Path, version: &str, to: &Path) -> Result<(), ImageError> {
    // Since usr was merged, packages may ship either.
    let places = ["lib/modules", "usr/lib/modules"].map(|place| unpacked.join(place).join(version));
    let folder = places.iter().find(|place| place.is_dir()).unwrap_or(&places[0]);
    let files = modules_in(folder)?;
    let mut contents = BTreeMap::new();
    let mut depends = BTreeMap::new();
    for (name, path) in &files {
        // Only those that are asked for and what they need are read; the rest are hundreds.
        depends.insert(name.clone(), Vec::new());
        contents.insert(name.clone(), path);
    }
    let mut bytes: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut open: Vec<String> = MODULES.iter().map(|&name| name.to_owned()).collect();
    while let Some(name) = open.pop() {
        let Some(path) = contents.get(&name).filter(|_| !bytes.contains_key(&name)) else { continue };
        let module = read_module(path)?;
        let needs = modules::depends(&module);
        open.extend(needs.iter().cloned());
        depends.insert(name.clone(), needs);
        bytes.insert(name, module);
    }
    let order = modules::order(&MODULES, &depends, &builtin_in(folder)?)?;
    let mut archive = Archive::default();
    for folder in ["dev", "modules"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, agent::PROGRAM);
    let list: String = order.iter().map(|name| format!("{name}.ko\n")).collect();
    archive.file("modules/order", 0o644, list.as_bytes());
    for name in &order {
        archive.file(&format!("modules/{name}.ko"), 0o644, &bytes[name]);
    }
    fs::write(to, archive.finish()).map_err(StoreError::io("write", to))?;
    Ok(())
}

/// The package that apt says it does not know.
fn unknown_package(stderr: &str) -> Option<String> {
    let after = |text: &str| Some(stderr.split_once(text)?.1.lines().next()?.trim().to_owned());
    let quoted = || Some(stderr.split_once("Package '")?.1.split_once('\'')?.0.to_owned());
    after("Unable to locate package ").or_else(quoted)
}

/// The Debian that apt is set up with.
struct Mirror {
    release: String,
    sources: String,
}

impl Mirror {
    fn of_apt() -> Result<Self, ImageError> {
        let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)";
        let arguments = ["indextargets", "--format", format, "Created-By: Packages"];
        let said = shell::run("apt-get", arguments, b"", A_MINUTE)
            .map_err(ImageError::step("asking apt for its mirror"))?;
        Self::parse(&String::from_utf8_lossy(&said), Path::new(KEYRING).exists()).ok_or(ImageError::NoMirror)
    }

    /// Only Debian itself: what else apt is set up with here is this machine's own business.
    fn parse(targets: &str, keyring: bool) -> Option<Self> {
        let signed_by = if keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let mut release = None;
        let mut sources = BTreeSet::new();
        for line in targets.lines() {
            let fields: Vec<&str> = line.split('|').collect();
            let ["Debian", label @ ("Debian" | "Debian-Security"), uri, suite, codename, component] =
                fields[..]
            else {
                continue;
            };
            let extra =
                ["-updates", "-security", "-backports", "-proposed"].iter().any(|end| codename.contains(end));
            if label == "Debian" && !extra {
                release = Some(codename.to_owned());
            }
            if !codename.contains("-backports") && !codename.contains("-proposed") {
                sources.insert(format!("deb {signed_by}{uri} {suite} {component}\n"));
            }
        }
        Some(Self { release: release?, sources: sources.into_iter().collect() })
    }
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package with the kernel itself, and its version: the one that is asked for only depends on it.
fn kernel_package() -> Result<(String, String), ImageError> {
    let unknown = || ImageError::NoPackage { package: KERNEL.to_owned() };
    let said = shell::run("apt-cache", ["show", "--no-all-versions", KERNEL], b"", A_MINUTE)
        .map_err(|_| unknown())?;
    let said = String::from_utf8_lossy(&said);
    let depends = said.lines().find_map(|line| line.strip_prefix("Depends: ")).ok_or_else(unknown)?;
    parse_dependency(depends).ok_or_else(unknown)
}

/// `linux-image-… (= version)`, the first of a list.
fn parse_dependency(depends: &str) -> Option<(String, String)> {
    let (name, rest) = depends.split(',').next()?.trim().split_once(" (= ")?;
    let version = rest.strip_suffix(')')?;
    name.starts_with("linux-image-").then(|| (name.to_owned(), version.to_owned()))
}

/// The packages in a root, with their versions.
fn installed(root: &Path) -> Result<BTreeMap<String, String>, ImageError> {
    let database = root.join("var/lib/dpkg");
    let arguments = ["-W", "-f", "${Package} ${Version}\n", "--admindir"].map(OsStr::new);
    let arguments = arguments.into_iter().chain([database.as_os_str()]);
    let said = shell::run("dpkg-query", arguments, b"", A_MINUTE)
        .map_err(ImageError::step("listing the packages"))?;
    let said = String::from_utf8_lossy(&said);
    let lines = said.lines().filter_map(|line| line.split_once(' '));
    Ok(lines.map(|(name, version)| (name.to_owned(), version.to_owned())).collect())
}

/// All modules of a kernel: names and files.
fn modules_in(folder: &Path) -> Result<BTreeMap<String, PathBuf>, StoreError> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.join("kernel")];
    while let Some(folder) = open.pop() {
        for name in store::names(&folder, |_| true)? {
            let path = folder.join(&name);
            match modules::name_of(&name) {
                _ if path.is_dir() => open.push(path),
                Some(name) => drop(found.insert(name, path)),
                None => {}
            }
        }
    }
    Ok(found)
}

/// The modules that are part of the kernel itself.
fn builtin_in(folder: &Path) -> Result<BTreeSet<String>, StoreError> {
    let path = folder.join("modules.builtin");
    let text = fs::read_to_string(&path).map_err(StoreError::io("read", &path))?;
    Ok(text.lines().filter_map(|line| modules::name_of(line.rsplit('/').next()?)).collect())
}

/// A module, unpacked: later Debians pack them by xz.
fn read_module(path: &Path) -> Result<Vec<u8>, ImageError> {
    let tool: Tool = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        _ => return Ok(fs::read(path).map_err(StoreError::io("read", path))?),
    };
    if shell::find(tool.0).is_none() {
        return Err(ImageError::Tools { tools: vec![tool] });
    }
    shell::run(tool.0, [OsStr::new("-dc"), path.as_os_str()], b"", A_MINUTE)
        .map_err(ImageError::step("unpacking a module"))
}

/// A file that is whole: read-only, on disk, with its hash.
fn finish_part(folder: &Path, name: &str) -> Result<Artifact, StoreError> {
    let path = folder.join(name);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).map_err(StoreError::io("write", &path))?;
    let file = fs::File::open(&path).map_err(StoreError::io("open", &path))?;
    file.sync_all().map_err(StoreError::io("sync", &path))?;
    let size_bytes = file.metadata().map_err(StoreError::io("look at", &path))?.len();
    Ok(Artifact { file: name.to_owned(), size_bytes, sha256: artifacts::hash_file(&path)?, mtime_ns: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_itself_is_taken_from_apt_s_settings() {
        let targets = "Debian|Debian|http://a/debian/|bookworm|bookworm|main\n\
            Debian|Debian|http://a/debian/|bookworm-updates|bookworm-updates|main\n\
            Debian|Debian-Security|http://a/security/|stable-security|bookworm-security|main\n\
            Debian|Debian Backports|http://a/debian/|bookworm-backports|bookworm-backports|main\n\
            Somebody|Tools|http://b/|any|any|main\n";
        let mirror = Mirror::parse(targets, true).unwrap();
        assert_eq!(mirror.release, "bookworm");
        assert_eq!(mirror.sources.lines().count(), 3);
        assert!(mirror.sources.lines().all(|line| line.starts_with(&format!("deb [signed-by={KEYRING}] "))));
        assert!(Mirror::parse("Ubuntu|Ubuntu|http://c/|noble|noble|main\n", true).is_none());
        assert!(Mirror::parse("", false).is_none());
    }

    #[test]
    fn the_kernel_is_what_the_package_of_its_name_depends_on() {
        let parsed = parse_dependency("linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), other").unwrap();
        assert_eq!(parsed, ("linux-image-6.1.0-56-cloud-amd64".into(), "6.1.192-2".into()));
        assert_eq!(parse_dependency("kmod, linux-base"), None);
        assert_eq!(unknown_package("E: Unable to locate package nonesuch\n").as_deref(), Some("nonesuch"));
        assert_eq!(
            unknown_package("E: Package 'telnetd' has no installation candidate").as_deref(),
            Some("telnetd")
        );
    }
}
