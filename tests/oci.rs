//! Images from elsewhere: what becomes of one, as the file system itself tells it, and what is refused.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use mvm::store::{Lock, Sharing};
use serde_json::Value;
use support::{Sandbox, oci};
use tar::{Builder, EntryType};

/// A pool acme/web on the simulated VMM, without a revision.
fn pool() -> Option<Sandbox> {
    let sandbox = Sandbox::new()?;
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    sandbox.ok("pool create acme/web --vmm sim --mem 128 --data-disk 8 --agent required");
    Some(sandbox)
}

fn file(sandbox: &Sandbox, name: &str, content: &[u8]) -> String {
    let path = sandbox.root().join(name);
    fs::write(&path, content).expect("a file");
    path.display().to_string()
}

/// `--kernel FILE --initrd FILE`, of files that are quickly there.
fn kernel(sandbox: &Sandbox) -> String {
    let (kernel, _) = sandbox.artifacts();
    format!("--kernel {} --initrd {}", kernel.display(), file(sandbox, "initrd.in", b"070701"))
}

fn revision_folder(sandbox: &Sandbox, pool: &Value) -> PathBuf {
    let revisions = sandbox.root().join("tenants/acme/pools/web/artifacts/revisions");
    revisions.join(pool["revision"].as_str().expect("a revision"))
}

/// What debugfs says to a request about an image.
fn debugfs(image: &Path, request: &str) -> String {
    let output = Command::new("debugfs").args(["-R", request]).arg(image).output().expect("debugfs runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The words of a text, so that it does not matter how they are laid out.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An image with something of everything that a guest can have.
fn image() -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut add = |kind, name, link, (mode, owner): (u32, u64), content: &[u8]| {
        let mut header = oci::header(kind, name, link, content.len());
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_cksum();
        builder.append(&header, content).expect("in memory");
    };
    add(EntryType::Directory, "bin", "", (0o755, 0), b"");
    add(EntryType::Regular, "bin/app", "", (0o4755, 70_000), b"#!/bin/sh\necho hello\n");
    add(EntryType::Link, "bin/again", "bin/app", (0, 0), b"");
    add(EntryType::Symlink, "sbin", "bin", (0o777, 0), b"");
    add(EntryType::Directory, "srv", "", (0o1777, 1000), b"");
    add(EntryType::Fifo, "srv/pipe", "", (0o620, 1000), b"");
    add(EntryType::Char, "null", "", (0o666, 0), b"");
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.security.capability", &b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]),
            ("SCHILY.xattr.user.long", &[b'l'; 2000]),
        ])
        .expect("in memory");
    let sparse = [vec![0; 1 << 20], b"end".to_vec()].concat();
    builder
        .append(&oci::header(EntryType::Regular, "bin/ping", "", sparse.len()), &sparse[..])
        .expect("in memory");
    let layer = builder.into_inner().expect("in memory");
    oci::archive_of(&layer, &oci::config(&layer))
}

#[test]
fn an_image_becomes_a_revision_with_all_that_a_guest_can_have_of_it() {
    let Some(sandbox) = pool() else { return };
    let archive = file(&sandbox, "image.in", &image());
    let kernel = kernel(&sandbox);
    let imported = sandbox.ok(&format!("pool import acme/web --oci-archive {archive} {kernel}"));
    let made = &imported["oci"];
    assert_eq!(
        (&made["layers"], &made["entries"], &made["devices_left_out"]),
        (&1.into(), &8.into(), &1.into())
    );
    let folder = revision_folder(&sandbox, &imported);
    let manifest: Value =
        serde_json::from_slice(&fs::read(folder.join("manifest.json")).expect("a manifest")).expect("JSON");
    assert_eq!((&manifest["source"], &manifest["initrd"]["file"]), (&"oci".into(), &"initrd".into()));
    let image = folder.join("rootfs.ext4");
    for (name, expected) in [
        ("/bin/app", &["Mode: 04755", "User: 70000", "Group: 70000", "Links: 2", "mtime: 0x684ee180"][..]),
        ("/bin/again", &["Mode: 04755", "Links: 2"]),
        ("/sbin", &["Type: symlink", "Fast link dest: \"bin\""]),
        ("/srv", &["Type: directory", "Mode: 01777", "User: 1000", "mtime: 0x684ee180"]),
        ("/srv/pipe", &["Type: FIFO", "Mode: 0620", "User: 1000"]),
        ("/bin/ping", &["Size: 1048579", "Blockcount: 16"]),
        ("/etc/mvm/workload.json", &["Mode: 0644", "User: 0", "mtime: 0x6553f100"]),
    ] {
        let stat = words(&debugfs(&image, &format!("stat {name}")));
        for one in expected {
            assert!(stat.contains(one), "{name} has not {one}: {stat}");
        }
    }
    assert_eq!(debugfs(&image, "cat /bin/app"), "#!/bin/sh\necho hello\n");
    assert_eq!(
        debugfs(&image, "cat /etc/mvm/workload.json"),
        "{\"schema_version\":1,\"argv\":[\"/bin/app\",\"x\"],\
         \"env\":[\"K=V\",\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"],\
         \"cwd\":\"/\",\"user\":\"1000:1000\",\"restart\":\"on-failure\",\"stop_signal\":15}\n"
    );
    let attributes = debugfs(&image, "ea_list /bin/ping");
    assert!(attributes.contains("security.capability (20)") && attributes.contains("user.long (2000)"));
    assert!(!debugfs(&image, "ls /").contains("null"), "a device");
    support::run("e2fsck", &["-fn", &image.display().to_string()]);
    let path = sandbox.instance("acme/web");
    sandbox.ok(&format!("instance start {path}"));
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// Elsewhere, later, and packed: the name of a revision is that of its content.
#[test]
fn the_same_image_gives_the_same_revision() {
    let Some(sandbox) = pool() else { return };
    let other = sandbox.root().join("other");
    let kernel = kernel(&sandbox);
    let plain = image();
    let packed = zstd::encode_all(&plain[..], 1).expect("in memory");
    let (plain, packed) = (file(&sandbox, "plain.in", &plain), file(&sandbox, "packed.in", &packed));
    let first = sandbox.ok(&format!("pool import acme/web --oci-archive {plain} {kernel}"));
    fs::create_dir(&other).expect("a folder");
    let mut revisions = vec![first["revision"].clone()];
    // Times of files count in seconds there: the second one is made in another second.
    let second = || jiff::Timestamp::now().as_second();
    let before = second();
    while second() == before {
        std::thread::yield_now();
    }
    revisions.push(
        sandbox.ok(&format!("pool import acme/web --oci-archive {packed} {kernel}"))["revision"].clone(),
    );
    sandbox.ok("tenant create globex --net-id 4 --subnet 10.240.4.0/24");
    sandbox.ok("pool create globex/web --vmm sim --mem 128 --data-disk 8 --agent required");
    revisions.push(
        sandbox.ok(&format!("pool import globex/web --oci-archive {packed} {kernel}"))["revision"].clone(),
    );
    revisions.dedup();
    assert_eq!(revisions.len(), 1, "{revisions:?}");
    assert_eq!(sandbox.ok("pool history acme/web").as_array().map(Vec::len), Some(1));
}

#[test]
fn the_kernel_comes_from_the_debian_image_where_none_is_given() {
    let Some(sandbox) = pool() else { return };
    let archive = file(&sandbox, "image.in", &image());
    let import = format!("pool import acme/web --oci-archive {archive}");
    assert_eq!(sandbox.refused(&import, 3), "no_such_image");
    let said = sandbox.run(&import);
    assert!(String::from_utf8_lossy(&said.stderr).contains("try: mvm image debian"));
    sandbox.put_image("debian");
    sandbox.put_image("other");
    assert_eq!(sandbox.refused(&format!("{import} --kernel-image third"), 3), "no_such_image");
    let manifest = |pool: &Value| -> Value {
        let file = revision_folder(&sandbox, pool).join("manifest.json");
        serde_json::from_slice(&fs::read(file).expect("a manifest")).expect("JSON")
    };
    let first = sandbox.ok(&import);
    assert_eq!(manifest(&first)["cmdline"], "quiet", "the image's own");
    let again = sandbox.ok(&format!("{import} --kernel-image other"));
    assert_eq!(again["revision"], first["revision"], "the same files");
    let with = sandbox.ok(&format!("{import} --cmdline=mine"));
    assert_eq!(manifest(&with)["cmdline"], "mine");
    let said = sandbox.run(&format!("{import} -v"));
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("1 device left out") && said.contains("unpacking the layers"), "{said}");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// Every file of the root but locks. Folders that are unfinished are among the leaks.
fn everything(root: &Path) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.ends_with("locks") {
                continue;
            }
            match path.is_dir() && !path.is_symlink() {
                true => walk(&path, found),
                false => found.push(path.display().to_string()),
            }
        }
    }
    let mut found = Vec::new();
    walk(root, &mut found);
    found.sort();
    found
}

#[test]
fn what_is_refused_leaves_nothing() {
    let Some(sandbox) = pool() else { return };
    let kernel = kernel(&sandbox);
    let layer = oci::layer(&["a=1"]);
    let config = |change: &dyn Fn(&mut Value)| {
        let mut config = oci::config(&layer);
        change(&mut config);
        oci::archive_of(&layer, &config)
    };
    let whole = oci::archive_of(&layer, &oci::config(&layer));
    let hostile = oci::layer(&["a=1", "../../x=1"]);
    // A file of holes is as large as it says.
    let mut holes = oci::header(EntryType::GNUSparse, "a", "", 0);
    holes.as_gnu_mut().expect("it is one").set_real_size(1 << 30);
    holes.set_cksum();
    let holes = [&holes.as_bytes()[..], &[0; 1024]].concat();
    let other = oci::architectures().1;
    let fine = file(&sandbox, "fine.in", &whole);
    let files: Vec<(String, i32, &str)> = [
        (config(&|c| c["architecture"] = other.into()), 1, "other_platform"),
        (config(&|c| c["os"] = "windows".into()), 1, "other_platform"),
        (config(&|c| c["config"] = Value::Null), 1, "image_config"),
        (
            config(&|c| c["rootfs"]["diff_ids"][0] = format!("sha256:{}", "0".repeat(64)).into()),
            1,
            "image_damaged",
        ),
        (whole[..whole.len() - 3000].to_vec(), 1, "image_damaged"),
        (oci::archive_of(&hostile, &oci::config(&hostile)), 1, "image_file"),
        (oci::layer(&["a=1"]), 1, "not_an_image"),
        (b"nonsense".repeat(1000), 1, "image_damaged"),
        (Vec::new(), 1, "not_an_image"),
    ]
    .into_iter()
    .enumerate()
    .map(|(n, (bytes, exit, code))| (file(&sandbox, &format!("{n}.in"), &bytes), exit, code))
    .collect();
    let large = file(&sandbox, "large.in", &oci::archive_of(&holes, &oci::config(&holes)));
    let before = everything(sandbox.root());
    let import = |archive: &str| format!("pool import acme/web --oci-archive {archive} {kernel}");
    for (archive, exit, code) in &files {
        assert_eq!(sandbox.refused(&import(archive), *exit), *code, "{archive}");
        let said = sandbox.run(&import(archive));
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(*code != "other_platform" || said.contains("this machine is linux/"), "{said}");
    }
    let (k, _) = sandbox.artifacts();
    for (command, exit, code) in [
        (import("/none"), 1, "io"),
        (import("/dev/zero"), 1, "not_an_image"),
        (format!("pool import acme/none --oci-archive {fine} {kernel}"), 3, "not_found"),
        (
            format!("pool import acme/web --oci-archive {fine} --kernel {fine} --initrd {fine}"),
            1,
            "not_an_artifact",
        ),
        (format!("{} --cmdline={}", import(&fine), "x".repeat(2000)), 2, "command_line"),
        // usage
        ("pool import acme/web".into(), 2, "usage"),
        (format!("pool import acme/web --kernel {fine}"), 2, "usage"),
        (format!("pool import acme/web --rootfs {fine}"), 2, "usage"),
        (format!("pool import acme/web --rootfs {fine} --oci-archive {fine} --kernel {fine}"), 2, "usage"),
        (format!("pool import acme/web --oci-archive {fine} --kernel {}", k.display()), 2, "usage"),
        (format!("pool import acme/web --oci-archive {fine} --initrd {fine}"), 2, "usage"),
        (format!("{} --kernel-image debian", import(&fine)), 2, "usage"),
        (format!("pool import acme/web --kernel {fine} --rootfs {fine} --kernel-image debian"), 2, "usage"),
        (format!("pool import acme/web --oci-archive {fine} --kernel-image ../x"), 2, "usage"),
    ] {
        assert_eq!(sandbox.refused(&command, exit), code, "mvm {command}");
    }
    // The quota has no room for so large a one, and then for none.
    sandbox.ok("tenant update acme --max-disk-gib 1");
    assert_eq!(sandbox.refused(&import(&large), 4), "quota");
    let said = sandbox.run(&import(&large));
    assert!(String::from_utf8_lossy(&said.stderr).contains("max_disk_gib of tenant acme has no more left"));
    sandbox.ok("tenant update acme --max-disk-gib 0");
    assert_eq!(sandbox.refused(&import(&fine), 4), "quota");
    assert_eq!(everything(sandbox.root()), before, "something was left");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// A root on a file system of its own, with a pool acme/web. The archive lies elsewhere.
fn small_disk(size: &str, layer: &[u8]) -> Option<(Sandbox, tempfile::TempDir, String)> {
    let mut sandbox = Sandbox::new()?;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let archive = elsewhere.path().join("image");
    fs::write(&archive, oci::archive_of(layer, &oci::config(layer))).expect("an archive");
    support::own_mounts();
    sandbox.mount_tmpfs(size);
    sandbox.ok("node set disk-floor-mib 0");
    sandbox.ok("tenant create acme --net-id 3 --subnet 10.240.3.0/24");
    sandbox.ok("pool create acme/web --vmm sim --mem 128 --data-disk 8 --agent required");
    let import = format!("pool import acme/web --oci-archive {} {}", archive.display(), kernel(&sandbox));
    Some((sandbox, elsewhere, import))
}

#[test]
fn what_the_disk_has_no_room_for_is_refused() {
    let content = "x".repeat(20 << 20);
    let layer = oci::layer(&[&format!("a={content}"), &format!("b={content}"), &format!("c={content}")]);
    let Some((sandbox, _elsewhere, import)) = small_disk("100m", &layer) else { return };
    let before = everything(sandbox.root());
    // The files alone would fit, but not with the file system that is made of them.
    assert_eq!(sandbox.refused(&import, 4), "disk_floor");
    sandbox.ok("node set disk-floor-mib 50");
    assert_eq!(sandbox.refused(&import, 4), "disk_floor");
    assert_eq!(everything(sandbox.root()), before);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left_on_it() {
    let lines: Vec<String> = (0..300).map(|n| format!("{n}=x")).collect();
    let layer = oci::layer(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    // There is space enough, but not for so many files.
    let Some((sandbox, _elsewhere, import)) = small_disk("300m,nr_inodes=200", &layer) else { return };
    let before = everything(sandbox.root());
    assert_eq!(sandbox.refused(&import, 1), "disk_full");
    assert_eq!(everything(sandbox.root()), before);
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}

/// Who unpacks is not left in a folder that goes: the pool is there until the import has ended.
#[test]
fn a_pool_is_not_destroyed_under_an_import() {
    let Some(sandbox) = pool() else { return };
    let path = sandbox.instance("acme/web");
    let lock = sandbox.root().join("locks/import.acme.web");
    let importing = Lock::take(&lock, "", Sharing::Shared, std::time::Duration::ZERO).expect("nobody has it");
    let destroy = |what: &str| {
        let mut command = sandbox.command(what);
        command.env("MVM_LOCK_TIMEOUT_MS", "50").output().expect("mvm runs").status.code()
    };
    assert_eq!(destroy("pool destroy acme/web --yes --wipe-volumes"), Some(4));
    assert_eq!(destroy("tenant destroy acme --yes --wipe-volumes"), Some(4));
    assert_eq!(sandbox.states(), [format!("{path} created")], "and nothing of it either");
    let archive = file(&sandbox, "image.in", &image());
    sandbox.ok(&format!("pool import acme/web --oci-archive {archive} {}", kernel(&sandbox)));
    drop(importing);
    assert_eq!(destroy("pool destroy acme/web --yes --wipe-volumes"), Some(0));
    assert!(!lock.exists());
    sandbox.ok("node recover");
    assert!(sandbox.leaks().is_empty(), "{:?}", sandbox.leaks());
}
