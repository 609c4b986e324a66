//! The emulator: QEMU of this machine, or, where that is old, the one of Debian's backports, unpacked beside the labs and not
//! installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

use super::make::{self, Lab, Sources};

const PROGRAM: &str = "qemu-system-x86_64";

/// Before 8.1 a thread that translates a page may miss what another one changes in it at that moment (QEMU's commit "accel/tcg:
/// Always lock pages before translation"): kernels that change their own code are lost by that, now and then, here and nested.
const FIRST: [u32; 2] = [8, 1];

/// What it consists of; the libraries that it needs came with the one that is installed.
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// A QEMU, and where its firmware lies; nowhere special for the one that is installed.
pub struct Emulator {
    program: PathBuf,
    firmware: Vec<PathBuf>,
}

impl Emulator {
    /// The one that is unpacked in this folder.
    fn within(folder: &Path) -> Self {
        let firmware = ["qemu", "seabios"].map(|name| folder.join("usr/share").join(name));
        Self { program: folder.join("usr/bin").join(PROGRAM), firmware: firmware.to_vec() }
    }

    /// Its program, with what it always needs to be told.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command
    }

    /// Major and minor number.
    fn version(&self) -> Result<[u32; 2]> {
        let said = make::output(self.command().arg("--version"))?;
        version(&said).with_context(|| format!("{} says no version", self.program.display()))
    }
}

fn version(said: &str) -> Option<[u32; 2]> {
    let mut numbers = said.split_whitespace().find_map(|word| word.split_once('.').map(|_| word))?.split('.');
    let mut next = || numbers.next()?.parse().ok();
    Some([next()?, next()?])
}

/// The newer of the two, where there is one; `_in_use` keeps it from being swept half-made.
///
/// # Errors
/// When there is none at all.
pub fn ensure(_in_use: &Lab) -> Result<&'static Emulator> {
    // Where nothing can be fetched, that is tried once.
    static CHOSEN: OnceLock<Emulator> = OnceLock::new();
    if let Some(chosen) = CHOSEN.get() {
        return Ok(chosen);
    }
    let installed = Emulator { program: PROGRAM.into(), firmware: Vec::new() };
    let [major, minor] = installed.version()?;
    let chosen = match [major, minor] < FIRST {
        false => installed,
        true => match unpacked() {
            Ok(newer) => newer,
            Err(why) => {
                println!("lab: QEMU {major}.{minor}, which loses a lab now and then; no newer one: {why:#}");
                installed
            }
        },
    };
    Ok(CHOSEN.get_or_init(|| chosen))
}

/// The one of backports; unpacked where it is not yet.
fn unpacked() -> Result<Emulator> {
    let folder = make::home().join("qemu");
    if !folder.exists() {
        let unfinished = make::home().join(format!(".new-qemu-{}", std::process::id()));
        fs::create_dir_all(&unfinished)?;
        let made = unpack(&unfinished).and_then(|root| match fs::rename(&root, &folder) {
            // Somebody else made the same one meanwhile.
            Err(_) if folder.exists() => Ok(()),
            renamed => renamed.context("cannot name it"),
        });
        let _ = fs::remove_dir_all(&unfinished);
        made?;
    }
    let newer = Emulator::within(&folder);
    let [major, minor] = newer.version()?;
    println!("lab: QEMU {major}.{minor} of Debian's backports");
    Ok(newer)
}

/// Has apt fetch the packages, by lists of its own, into this folder, and unpacks them into another one in it, which is returned
/// where what is there runs and is new enough.
fn unpack(folder: &Path) -> Result<PathBuf> {
    let Sources { suite, lines } = make::sources()?;
    let own = lines.iter().find_map(|line| line.strip_suffix(&format!(" {suite} main")));
    let source = own.with_context(|| format!("apt has no source of {suite}"))?;
    fs::write(folder.join("sources.list"), format!("{source} {suite}-backports main\n"))?;
    let place = folder.display();
    let settings = format!(
        "Dir::State::Lists \"{place}/lists\";\nDir::Cache \"{place}/cache\";\nDir::Etc::SourceList \"{place}/sources.list\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\nAPT::Sandbox::User \"root\";\nAcquire::Retries \"0\";\n\
         Acquire::http::Timeout \"20\";\nAcquire::https::Timeout \"20\";\n"
    );
    let settings_file = folder.join("apt.conf");
    fs::write(&settings_file, settings)?;
    let (archives, root) = (folder.join("archives"), folder.join("root"));
    for new in ["lists/partial", "cache/archives/partial", "archives", "root"] {
        fs::create_dir_all(folder.join(new))?;
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &settings_file).current_dir(&archives).arg("-qq").args(arguments);
        make::output(&mut command)
    };
    apt(&["update"])?;
    apt(&[&["download"][..], &PACKAGES].concat())?;
    for archive in fs::read_dir(&archives)? {
        make::output(Command::new("dpkg-deb").arg("--extract").arg(archive?.path()).arg(&root))?;
    }
    match Emulator::within(&root).version()? {
        version if version >= FIRST => Ok(root),
        [major, minor] => bail!("{suite}-backports has {major}.{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_it_says() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some([7, 2]));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some([10, 0]));
        assert_eq!(version("no such thing"), None);
        assert!([10, 0] >= FIRST && [7, 2] < FIRST);
    }
}
