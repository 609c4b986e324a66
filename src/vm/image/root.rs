//! What makes a Debian root a guest's: its own files come in, what a machine has of its own goes.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use crate::store::{self, StoreError};

/// The guest's own files: path, mode, content.
const GUEST_FILES: [(&str, u32, &str); 12] = [
    ("etc/inittab", 0o644, include_str!("guest/inittab")),
    ("etc/mvm/start", 0o755, include_str!("guest/start")),
    ("etc/mvm/console.json", 0o644, include_str!("guest/console.json")),
    ("etc/mvm/stop", 0o755, include_str!("guest/stop")),
    ("etc/profile.d/mvm.sh", 0o644, include_str!("guest/profile")),
    // Escape sequences before each prompt are noise in a log.
    ("etc/inputrc", 0o644, "set enable-bracketed-paste off\n"),
    ("etc/apt/sources.list", 0o644, "# The mirror that this image was made from is not written down here.\n"),
    ("usr/sbin/reboot", 0o755, include_str!("guest/reboot")),
    ("usr/sbin/poweroff", 0o755, include_str!("guest/reboot")),
    ("usr/sbin/halt", 0o755, include_str!("guest/reboot")),
    ("usr/sbin/shutdown", 0o755, include_str!("guest/reboot")),
    ("root/.hushlogin", 0o644, ""),
];
/// At the end of the path, so that a Debian package of the same is used where it is installed.
const APPLETS_FOLDER: &str = "usr/lib/mvm";
/// What busybox does as long as no package does it.
const APPLETS: [&str; 15] = [
    "free", "killall", "less", "lsmod", "nc", "netstat", "nslookup", "pidof", "ps", "sysctl", "telnet",
    "top", "uptime", "vi", "wget",
];

/// What each machine has of its own, and what only the making of the root needed.
const LEFT_OUT: [&str; 12] = [
    "etc/machine-id",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "etc/.pwd.lock",
    "var/lib/dbus",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/debconf/passwords.dat",
];
const EMPTIED: [&str; 6] = ["var/log", "var/cache/apt", "var/cache/ldconfig", "var/lib/apt", "tmp", "run"];

/// All of this recipe, as text: another one makes another image.
pub fn recipe() -> String {
    format!("{LEFT_OUT:?} {EMPTIED:?} {GUEST_FILES:?} {APPLETS:?}")
}

/// Makes a root a guest's: its own files come in, what a machine has of its own goes.
pub fn furnish(root: &Path) -> Result<(), StoreError> {
    for place in LEFT_OUT {
        let path = root.join(place);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => store::remove_folder(&path)?,
            _ => store::remove_file(&path)?,
        }
    }
    for place in EMPTIED {
        let folder = root.join(place);
        for name in store::names(&folder, |_| true)? {
            let path = folder.join(name);
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => store::remove_folder(&path)?,
                _ => store::remove_file(&path)?,
            }
        }
    }
    for key in store::names(&root.join("etc/ssh"), |name| name.starts_with("ssh_host_"))? {
        store::remove_file(&root.join("etc/ssh").join(key))?;
    }
    for (place, mode, content) in GUEST_FILES {
        let path = root.join(place);
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
                .map_err(StoreError::io("write", folder))?;
        }
        fs::write(&path, content).map_err(StoreError::io("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(StoreError::io("write", &path))?;
    }
    for folder in ["data", APPLETS_FOLDER] {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).map_err(StoreError::io("create", &folder))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))
            .map_err(StoreError::io("write", &folder))?;
    }
    link(root, "usr/sbin/init", "../bin/busybox")?;
    for applet in APPLETS {
        link(root, &format!("{APPLETS_FOLDER}/{applet}"), "/usr/bin/busybox")?;
    }
    Ok(())
}

fn link(root: &Path, place: &str, target: &str) -> Result<(), StoreError> {
    let path = root.join(place);
    store::remove_file(&path)?;
    symlink(target, &path).map_err(StoreError::io("link", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_loses_what_is_a_machine_s_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for folder in ["etc", "usr/sbin", "usr/bin", "var/log/apt", "etc/ssh", "root", "etc/apt"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in
            ["etc/machine-id", "var/log/apt/term.log", "etc/ssh/ssh_host_ed25519_key", "etc/resolv.conf"]
        {
            fs::write(root.join(file), "x").unwrap();
        }
        furnish(root).unwrap();
        furnish(root).unwrap();
        for gone in ["etc/machine-id", "var/log/apt", "etc/ssh/ssh_host_ed25519_key", "etc/resolv.conf"] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        assert!(root.join("etc/inittab").exists());
        assert_eq!(fs::read_link(root.join("usr/sbin/init")).unwrap(), Path::new("../bin/busybox"));
        let mode = fs::metadata(root.join("etc/mvm/start")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
