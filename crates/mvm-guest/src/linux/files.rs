//! Files that say who the guest is: host name, resolvers, machine id, SSH keys. Each is written whole and read back.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use mvm_guest::ssh_key;
use rustix::rand::{GetRandomFlags, getrandom};

const RESOLVERS: &str = "/etc/resolv.conf";
const MACHINE_ID: &str = "/etc/machine-id";
const SSH: &str = "/etc/ssh";

/// Puts what an identity will replace into the guest's memory, with nobody's content, and looks up what it will look for: a
/// clone that becomes somebody neither reads the root disk for it nor copies a folder from there.
///
/// # Errors
/// Where a file cannot be written.
pub fn make_ready(looked_for: &[&str]) -> io::Result<()> {
    for path in looked_for {
        // Most guests do not have it, and even that is known then.
        let _ = fs::read(path);
    }
    hostname("localhost")?;
    resolvers(&[])?;
    replace(Path::new(MACHINE_ID), "uninitialized\n", 0o444)?;
    forget_host_keys()?;
    ssh_keys(&[]).map(drop)
}

/// Puts a file in the place of what is there, at once.
///
/// # Errors
/// Where it cannot be written; what was there is still there then.
pub fn replace(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let at = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
    // A small root may have nothing of what a Linux has.
    if let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) {
        folder(parent, 0o755)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".mvm-new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(at)?;
    let written = file
        .write_all(content.as_bytes())
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        at(error)
    })
}

fn folder(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) => Err(io::Error::other(format!("{}: {error}", path.display()))),
    }
}

/// Sets the host's name.
pub fn hostname(name: &str) -> io::Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if name.is_empty() || !name.chars().all(fine) {
        return Err(io::Error::other(format!("{name:?} is no host name")));
    }
    rustix::system::sethostname(name.as_bytes())?;
    replace(Path::new("/etc/hostname"), &format!("{name}\n"), 0o644)?;
    replace(Path::new("/etc/hosts"), &format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"), 0o644)?;
    Ok(rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Says who resolves names.
pub fn resolvers(resolvers: &[Ipv4Addr]) -> io::Result<String> {
    let text: String = resolvers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
    replace(Path::new(RESOLVERS), &text, 0o644)?;
    let text = fs::read_to_string(RESOLVERS)?;
    let there: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("nameserver ")).collect();
    Ok(there.join(" "))
}

/// Sets the machine's id.
pub fn machine_id(id: &str) -> io::Result<String> {
    if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(io::Error::other(format!("{id:?} is no machine id")));
    }
    replace(Path::new(MACHINE_ID), &format!("{id}\n"), 0o444)?;
    Ok(fs::read_to_string(MACHINE_ID)?.trim().to_owned())
}

/// Removes the SSH host keys that came with the image: they are everybody's.
pub fn forget_host_keys() -> io::Result<()> {
    let place = Path::new(SSH);
    folder(place, 0o755)?;
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ssh_host_")) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Makes an SSH host key. Returns its public half.
pub fn host_key() -> io::Result<String> {
    let place = Path::new(SSH);
    let private = place.join("ssh_host_ed25519_key");
    let public = place.join("ssh_host_ed25519_key.pub");
    let mut seed = [0; 32];
    if getrandom(&mut seed, GetRandomFlags::empty())? < seed.len() {
        return Err(io::Error::other("the kernel gave no randomness"));
    }
    let key = ssh_key::make(seed);
    replace(&private, &key.private, 0o600)?;
    replace(&public, &format!("{}\n", key.public), 0o644)?;
    Ok(fs::read_to_string(public)?.trim().to_owned())
}

/// Says who may log in as root. Returns how many keys there are.
pub fn ssh_keys(keys: &[String]) -> io::Result<String> {
    let place = Path::new("/root/.ssh");
    if let Some(key) = keys.iter().find(|key| key.trim().is_empty() || key.contains(['\n', '\r'])) {
        return Err(io::Error::other(format!("{key:?} is no key")));
    }
    folder(place, 0o700)?;
    let file = place.join("authorized_keys");
    replace(&file, &keys.iter().map(|key| format!("{key}\n")).collect::<String>(), 0o600)?;
    Ok(fs::read_to_string(file)?.lines().count().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&other, "other").unwrap();
        std::os::unix::fs::symlink(&other, &file).unwrap();
        // What a killed one left is in nobody's way.
        fs::write(dir.path().join("file.mvm-new"), "left").unwrap();
        replace(&file, "new", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::read_to_string(&other).unwrap(), "other");
        assert_eq!(fs::symlink_metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(!dir.path().join("file.mvm-new").exists());
        replace(&dir.path().join("none/file"), "x", 0o600).unwrap();
        assert!(replace(&dir.path().join("other/file"), "x", 0o600).is_err());
    }
}
