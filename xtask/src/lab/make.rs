//! Makes a lab where there is none: unpacks Debian's packages, adds our script, and writes kernel, initrd and root disk. A lab
//! that is not finished has another name and is never used; older ones are swept.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::recipe;

/// What a lab's folder holds.
pub mod files {
    pub const KERNEL: &str = "vmlinuz";
    pub const INITRD: &str = "initrd.img";
    pub const ROOT: &str = "root.ext4";
}

/// Room of the root disk: what Debian's packages take, and some more.
const ROOT_SIZE: &str = "512M";

/// A lab, and the lock that keeps it from being swept.
pub struct Lab {
    pub folder: PathBuf,
    _in_use: File,
}

/// Where labs, and the runs in them, lie.
pub fn home() -> PathBuf {
    crate::target().join("lab")
}

/// The lab of today's recipe; made when missing.
///
/// # Errors
/// When it cannot be made.
pub fn ensure() -> Result<Lab> {
    let home = home();
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let key = recipe::key()?;
    let folder = home.join(&key);
    let lock = File::create(home.join("lock")).context("cannot make the lab's lock")?;
    // Only who is alone sweeps: another one's run may be in an older lab.
    if lock.try_lock().is_ok() {
        sweep(&home, &key)?;
        lock.unlock()?;
    }
    lock.lock_shared()?;
    if !folder.exists() {
        let start = std::time::Instant::now();
        println!("lab: making {key} from Debian's packages …");
        let unfinished = home.join(format!(".new-{}", std::process::id()));
        fs::create_dir(&unfinished)?;
        let made = make(&unfinished).and_then(|()| match fs::rename(&unfinished, &folder) {
            // Somebody else made the same one meanwhile.
            Err(_) if folder.exists() => Ok(()),
            renamed => renamed.context("cannot name the new lab"),
        });
        let _ = fs::remove_dir_all(&unfinished);
        made?;
        println!("lab: made in {:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(Lab { folder, _in_use: lock })
}

/// Removes what is unfinished and older labs. Nobody else is at work.
fn sweep(home: &Path, key: &str) -> Result<()> {
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let old = name.len() == key.len() && name != key && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if old || name.starts_with(".new-") || name.starts_with(".run-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn make(folder: &Path) -> Result<()> {
    let (archive, root) = (folder.join("root.tar"), folder.join("root"));
    unpack(&archive)?;
    fs::create_dir(&root)?;
    as_root("tar", &["--no-same-owner", "-xf", text(&archive)?, "-C", text(&root)?])?;
    fs::remove_file(&archive)?;
    for mount_point in ["job", "scratch", "out"] {
        fs::create_dir(root.join(mount_point))?;
    }
    // No package is configured, so nobody has a name yet.
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\ntty:x:5:\n")?;
    let init = root.join("sbin/lab-init");
    fs::write(&init, recipe::LAB_INIT)?;
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(folder.join(files::INITRD), super::initrd::make(&root)?)?;
    let kernel = fs::read_dir(root.join("boot"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .context("the packages brought no kernel")?;
    fs::copy(kernel, folder.join(files::KERNEL))?;
    file_system(&folder.join(files::ROOT), ROOT_SIZE, Some(&root))?;
    fs::remove_dir_all(&root).context("cannot remove the unpacked root")
}

/// Writes the packages into an archive, and what the kernel's modules need of each other.
fn unpack(archive: &Path) -> Result<()> {
    let sources = sources()?;
    let modules = r#"chroot "$1" depmod "$(ls "$1/lib/modules")""#;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=extract", "--format=tar"])
        .arg(if crate::setup::is_root() { "--mode=root" } else { "--mode=unshare" })
        .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
        .arg(format!("--include={}", recipe::PACKAGES.join(",")))
        .arg(format!("--extract-hook={modules}"));
    for option in proxies()? {
        command.arg(format!("--aptopt={option}"));
    }
    output(command.arg(&sources.suite).arg(archive).args(&sources.lines)).map(drop)
}

/// Where this machine's apt takes Debian's packages from.
pub struct Sources {
    pub suite: String,
    pub lines: Vec<String>,
}

/// Asks apt.
///
/// # Errors
/// When it knows none.
pub fn sources() -> Result<Sources> {
    let format = "$(ORIGIN)|$(CODENAME)|$(SITE)|$(RELEASE)|$(COMPONENT)";
    let targets = said("apt-get", &["indextargets", "--format", format, "Created-By: Packages"])?;
    let mut sources = Sources { suite: String::new(), lines: Vec::new() };
    for target in targets.lines() {
        let [origin, codename, site, release, component] = target.split('|').collect::<Vec<_>>()[..] else {
            continue;
        };
        if origin != "Debian" {
            continue;
        }
        // bookworm, not bookworm-updates.
        if sources.suite.is_empty() || codename.len() < sources.suite.len() {
            sources.suite = codename.to_owned();
        }
        let line = format!("deb {site} {release} {component}");
        if !sources.lines.contains(&line) {
            sources.lines.push(line);
        }
    }
    if sources.lines.is_empty() {
        bail!("apt knows no source of Debian's packages");
    }
    Ok(sources)
}

/// The proxies that apt goes through here: mmdebstrap's apt does not read the host's configuration.
fn proxies() -> Result<Vec<String>> {
    let all = said("apt-config", &["dump"])?;
    let of_interest = |line: &&str| line.starts_with("Acquire::") && line.contains("Proxy ");
    Ok(all.lines().filter(of_interest).map(str::to_owned).collect())
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    output(Command::new(program).args(arguments))
}

/// What a command says.
///
/// # Errors
/// What it complains of.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Makes an ext4 file system, filled with a folder's files. They belong to root, whoever makes it.
///
/// # Errors
/// When mke2fs fails.
pub fn file_system(image: &Path, size: &str, content: Option<&Path>) -> Result<()> {
    let mut arguments = vec!["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1"];
    if let Some(content) = content {
        arguments.extend(["-d", text(content)?]);
    }
    arguments.extend([text(image)?, size]);
    as_root("mke2fs", &arguments)
}

/// Runs a program as root, or in a user namespace in which it seems so.
fn as_root(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = match crate::setup::is_root() {
        true => Command::new(program),
        false => {
            let mut unshare = Command::new("unshare");
            unshare.args(["--map-root-user", program]);
            unshare
        }
    };
    let path = std::env::var("PATH").unwrap_or_default();
    output(command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(arguments)).map(drop)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))
}
