//! Layers that lie one over the other.

use std::os::unix::fs::PermissionsExt;

use super::{tree::Made, *};

/// What is tried, the layers, and what becomes of them.
type Row<'a> = (&'a str, &'a [&'a [&'a str]], &'a [&'a str]);

#[test]
fn layers_lie_one_over_the_other() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let rows: &[Row] = &[
        ("files and folders", &[&["./", "./a/", "./a/b=1", "c=2"]], &["a/", "a/b=1", "c=2"]),
        ("folders that no entry names", &[&["a/b/c=1"]], &["a/", "a/b/", "a/b/c=1"]),
        ("an absolute name", &[&["/a=1"]], &["a=1"]),
        ("replaced", &[&["a=1"], &["a=2"]], &["a=2"]),
        ("replaced within a layer", &[&["a=1", "a=2"]], &["a=2"]),
        ("whiteout", &[&["a=1", "d/x=1", "d/y=2"], &[".wh.a=", "d/.wh.x="]], &["d/", "d/y=2"]),
        ("whiteout of a folder", &[&["d/x=1", "d/e/y=1"], &[".wh.d="]], &[]),
        ("whiteout of nothing", &[&["a=1"], &[".wh.b=", "none/.wh.c="]], &["a=1"]),
        ("whiteout after what takes its place", &[&["a=1"], &["a=2", ".wh.a="]], &["a=2"]),
        ("whiteout before it", &[&["a=1"], &[".wh.a=", "a=2"]], &["a=2"]),
        (
            "whiteout of a folder that is there again",
            &[&["d/x=1"], &["d/", "d/y=2", ".wh.d="]],
            &["d/", "d/y=2"],
        ),
        ("opaque", &[&["d/x=1", "d/e/y=1"], &["d/", "d/.wh..wh..opq=", "d/z=1"]], &["d/", "d/z=1"]),
        ("opaque at the end", &[&["d/x=1", "d/e/y=1"], &["d/z=1", "d/.wh..wh..opq="]], &["d/", "d/z=1"]),
        (
            "opaque around what is new",
            &[&["d/e/old=1", "d/f/old=1"], &["d/e/new=1", "d/.wh..wh..opq="]],
            &["d/", "d/e/", "d/e/new=1"],
        ),
        (
            "opaque twice",
            &[&["d/old=1"], &["d/.wh..wh..opq=", "d/e/new=1", "d/.wh..wh..opq=", ".wh.d="]],
            &["d/", "d/e/", "d/e/new=1"],
        ),
        (
            "opaque around one that was",
            &[&["d/e/old=1", "d/f=1"], &["d/e/.wh..wh..opq=", "d/e/new=1", "d/.wh..wh..opq="]],
            &["d/", "d/e/", "d/e/new=1"],
        ),
        (
            "opaque around what a device would have lain in",
            &[&["d/old=1"], &["%d/dev/null", "d/.wh..wh..opq="]],
            &["d/", "d/dev/"],
        ),
        ("opaque root", &[&["a=1", "d/x=1"], &[".wh..wh..opq=", "b=2"]], &["b=2"]),
        ("opaque where nothing is", &[&["a=1"], &["none/.wh..wh..opq="]], &["a=1"]),
        ("a file becomes a folder", &[&["a=1"], &["a/", "a/b=2"]], &["a/", "a/b=2"]),
        ("a folder becomes a file", &[&["a/b/c=1"], &["a=2"]], &["a=2"]),
        ("a folder stays with what is in it", &[&["a/b=1"], &["a/", "a/c=2"]], &["a/", "a/b=1", "a/c=2"]),
        ("a link becomes a folder", &[&["b/x=1", "a->b"], &["a/", "a/y=1"]], &["a/", "a/y=1", "b/", "b/x=1"]),
        ("a link becomes a file", &[&["b=1", "a->b"], &["a=2"]], &["a=2", "b=1"]),
        ("a folder becomes a link", &[&["a/x=1"], &["a->b"]], &["a->b"]),
        ("a file becomes a link to itself", &[&["a=1"], &["a->a"]], &["a->a"]),
        (
            "through a link",
            &[&["usr/lib/x=1", "lib->usr/lib"], &["lib/y=2"]],
            &["lib->usr/lib", "usr/", "usr/lib/", "usr/lib/x=1", "usr/lib/y=2"],
        ),
        (
            "whiteout through a link",
            &[&["usr/lib/x=1", "lib->/usr/lib"], &["lib/.wh.x="]],
            &["lib->/usr/lib", "usr/", "usr/lib/"],
        ),
        (
            "through a link that leads back and forth",
            &[&["d/e/f/", "l->d/e/../e/f/../../x", "l/y=1"]],
            &["d/", "d/e/", "d/e/f/", "d/x/", "d/x/y=1", "l->d/e/../e/f/../../x"],
        ),
        (
            "through a link to what is not there yet",
            &[&["a->b/c", "a/x=1"]],
            &["a->b/c", "b/", "b/c/", "b/c/x=1"],
        ),
        ("a hard link", &[&["a=1", "d/b=>a"]], &["a=1", "d/", "d/b=1"]),
        ("a hard link to a layer below", &[&["a=1"], &["b=>/a"]], &["a=1", "b=1"]),
        ("a hard link through a link", &[&["d/a=1", "l->d"], &["b=>l/a"]], &["b=1", "d/", "d/a=1", "l->d"]),
        ("a hard link to a link", &[&["a->x", "b=>a"]], &["a->x", "b->x"]),
        ("a hard link to itself", &[&["a=1", "a=>a"]], &["a=1"]),
        ("a hard link over a file", &[&["a=1", "b=2"], &["b=>a"]], &["a=1", "b=1"]),
        ("one of two names replaced", &[&["a=1", "b=>a"], &["a=2"]], &["a=2", "b=1"]),
        ("a pipe", &[&["|p"]], &["|p"]),
        ("devices are left out", &[&["dev/", "%dev/null", "a=1"], &["%a"]], &["dev/"]),
        (
            "notes of another file system",
            &[&[".wh..wh.plnk/", ".wh..wh.plnk/1=x", ".wh..wh.aufs=", "a=1"]],
            &["a=1"],
        ),
        ("an empty layer", &[&["a=1"], &[]], &["a=1"]),
    ];
    for (what, layers, expected) in rows {
        let layers: Vec<_> = layers.iter().map(|lines| layer(lines)).collect();
        let laid = bench.lay(&layers);
        let laid: Result<Vec<&str>, _> =
            laid.as_ref().map(|lines| lines.iter().map(String::as_str).collect());
        assert_eq!(laid.as_deref(), Ok(*expected), "{what}");
    }
}

/// What a layer hides is gone through once: whatever is there then is its own, and a layer may say it as often as it likes.
#[test]
fn a_folder_is_gone_through_once_for_each_layer() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let (tree, left) = (Tree::make(&bench.tree()).unwrap(), Left::of(&Limits::default()));
    let place = |name: &[u8]| tree.place(&Name::parse(name).unwrap(), &left).unwrap().unwrap();
    let put = |name: &str| fs::write(bench.tree().join(name), "put there by nobody").unwrap();
    let mut made = Made::default();
    for name in ["d/own", "d/e/own"] {
        place(name.as_bytes()).make_folder(&Meta::plain(0o755)).unwrap();
        made.note(&place(name.as_bytes()));
    }
    put("d/below");
    place(b"d/.wh..wh..opq").hide_siblings(&mut made).unwrap();
    assert_eq!(lines(&bench.tree()), ["d/", "d/e/", "d/e/own/", "d/own/"]);
    // Whoever looked again would take it for something of a layer below.
    put("d/seen");
    put("d/e/seen");
    for _ in 0..3 {
        place(b"d/.wh..wh..opq").hide_siblings(&mut made).unwrap();
        place(b"d/e/.wh..wh..opq").hide_siblings(&mut made).unwrap();
        place(b".wh..wh..opq").hide_siblings(&mut made).unwrap();
        place(b"d").hide(&mut made).unwrap();
    }
    assert!(bench.tree().join("d/seen").exists() && bench.tree().join("d/e/seen").exists());
    // The next layer has another view of it.
    place(b"d").hide(&mut Made::default()).unwrap();
    assert_eq!(lines(&bench.tree()), [""; 0]);
}

/// One entry with all that a header says.
fn entry(
    kind: EntryType,
    name: &str,
    link: &str,
    (mode, uid, mtime): (u32, u64, u64),
    content: &str,
) -> Vec<u8> {
    let mut header = header(kind, name.as_bytes(), link.as_bytes(), content.len());
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(uid + 1);
    header.set_mtime(mtime);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, content.as_bytes()).unwrap();
    let bytes = builder.into_inner().unwrap();
    bytes[..bytes.len() - 1024].to_vec()
}

#[test]
fn owners_permissions_and_times_are_the_archive_s_own() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let below = [
        entry(EntryType::Directory, "d", "", (0o2775, 7, 111), ""),
        entry(EntryType::Regular, "d/suid", "", (0o4755, 1000, 222), "x"),
        entry(EntryType::Symlink, "d/link", "suid", (0o777, 5, 333), ""),
        entry(EntryType::Fifo, "d/pipe", "", (0o622, 6, 444), ""),
        entry(EntryType::Regular, "late", "", (0o600, 3_000_000, 4_000_000_000), ""),
        entry(EntryType::Regular, "implied/x", "", (0o600, 9, 1), ""),
    ];
    let above = [
        entry(EntryType::Regular, "d/more", "", (0o444, 1, 555), ""),
        entry(EntryType::Link, "d/second", "d/suid", (0o000, 99, 0), ""),
    ];
    bench.lay(&[below.concat(), above.concat()]).unwrap();
    for (name, mode, uid, mtime) in [
        ("d", 0o2775, 7, 111),
        ("d/suid", 0o4755, 1000, 222),
        ("d/second", 0o4755, 1000, 222),
        ("d/link", 0o777, 5, 333),
        ("d/pipe", 0o622, 6, 444),
        ("d/more", 0o444, 1, 555),
        ("late", 0o600, 3_000_000, i64::from(i32::MAX)),
        ("implied/x", 0o600, 9, 1),
        ("etc/mvm/workload.json", 0o644, 0, ext4::TIME.into()),
    ] {
        let meta = fs::symlink_metadata(bench.tree().join(name)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.mtime()), (mode, uid, mtime), "{name}");
        assert_eq!(meta.gid(), if uid == 0 { 0 } else { uid + 1 }, "{name}");
        assert_eq!(meta.mtime_nsec(), 0);
    }
    // Nobody said whose it is: root's, and nothing of the folder above or of this moment.
    let implied = fs::metadata(bench.tree().join("implied")).unwrap();
    assert_eq!((implied.permissions().mode() & 0o7777, implied.mtime()), (0o755, ext4::TIME.into()));
    assert_eq!(fs::metadata(bench.tree().join("d/suid")).unwrap().nlink(), 2);
}

/// A folder has the time that its entry says, also where what is in it comes later, goes, or is replaced.
#[test]
fn a_folder_s_time_is_not_that_of_what_happens_in_it() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let folder = |name: &str, mtime| entry(EntryType::Directory, name, "", (0o755, 0, mtime), "");
    let file = |name: &str| entry(EntryType::Regular, name, "", (0o644, 0, 9), "x");
    let below = [folder("d", 111), file("d/a"), file("d/b"), folder("d/e", 222), file("d/e/f")];
    let above = [file("d/a"), file("d/.wh.b"), file("d/e/.wh..wh..opq"), file("d/new/x")];
    bench.lay(&[below.concat(), above.concat()]).unwrap();
    for (name, mtime) in [("d", 111), ("d/e", 222)] {
        assert_eq!(fs::metadata(bench.tree().join(name)).unwrap().mtime(), mtime, "{name}");
    }
}

#[test]
fn what_is_left_out_is_counted() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.user.note", &b"one"[..]),
            ("SCHILY.xattr.security.selinux", b"label"),
            // A capability's value: version 2, effective, bind to low ports.
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ])
        .unwrap();
    builder.append(&header(EntryType::Regular, b"a", b"", 1), &b"x"[..]).unwrap();
    builder.append(&header(EntryType::Block, b"disk", b"", 0), &b""[..]).unwrap();
    builder.append(&header(EntryType::Char, b"null", b"", 0), &b""[..]).unwrap();
    builder.append(&header(EntryType::new(b's'), b"socket", b"", 0), &b""[..]).unwrap();
    let unpacked = bench.unpack(&oci_archive(&[builder.into_inner().unwrap()]), &Limits::default()).unwrap();
    let counts = Counts {
        entries: 4,
        devices_left_out: 2,
        sockets_left_out: 1,
        attributes_left_out: 1,
        with_attributes: 1,
    };
    assert_eq!(unpacked.counts, counts);
    let mut value = [0; 64];
    for (name, length) in [("user.note", 3), ("security.capability", 20)] {
        assert_eq!(rustix::fs::lgetxattr(bench.tree().join("a"), name, &mut value[..]), Ok(length), "{name}");
    }
}

/// Engines make it where it is missing, and so images seldom have it.
#[test]
fn the_folder_that_the_program_starts_in_is_there() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let unpack = |lines: &[&str], folder: &str| {
        let layers = [layer(lines)];
        let mut files = Files::new();
        let mut config = config(&layers);
        config["config"]["WorkingDir"] = folder.into();
        let manifest = image(&mut files, &[("", layers[0].clone())], &config);
        files.push(("index.json".into(), index(&[manifest])));
        bench.unpack(&archive(&files), &Limits::default()).map_err(|error| whole(&error))?;
        Ok::<_, String>(lines_of_image(&bench))
    };
    for (lines, folder, expected) in [
        (&["a=1"][..], "/srv/work/", &["a=1", "srv/", "srv/work/"][..]),
        (&["srv/x=1"], "/srv", &["srv/", "srv/x=1"]),
        (&["a=1"], "/", &["a=1"]),
        (&["a=1"], "", &["a=1"]),
        (&["usr/w/", "w->/usr/w"], "/w", &["usr/", "usr/w/", "w->/usr/w"]),
        (&["w->../../outside"], "/w/x", &["outside/", "outside/x/", "w->../../outside"]),
    ] {
        let found = unpack(lines, folder);
        let found: Result<Vec<&str>, _> =
            found.as_ref().map(|lines| lines.iter().map(String::as_str).collect());
        assert_eq!(found.as_deref(), Ok(expected), "{folder}");
    }
    let made = fs::metadata(bench.tree().join("outside/x")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid(), made.mtime()), (0o755, 0, ext4::TIME.into()));
    for (lines, folder, words) in [
        (&["srv=1"][..], "/srv/work", "its working directory /srv/work cannot be in it"),
        (&["srv=1"], "/srv", "no folder"),
        (&["a=1"], "/srv/../x", "leads upwards"),
        (&["w->w"], "/w", "symbolic links"),
    ] {
        let refused = unpack(lines, folder).unwrap_err();
        assert!(refused.contains(words), "{folder}: {refused}");
    }
}

/// The folder is mvm's: what an image puts there is not what a guest of mvm finds there.
#[test]
fn what_an_image_has_in_mvm_s_folder_goes() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    for lines in [
        &["etc/mvm/workload.json={}", "etc/mvm/other=x"][..],
        &["etc/mvm=x"],
        &["etc/mvm->/tmp", "tmp/"],
        &["etc/", "etc/mvm->../../outside"],
        &["etc->usr/etc", "usr/etc/"],
        &["etc/mvm/workload.json/", "etc/mvm/workload.json/x=1"],
    ] {
        let unpacked = bench.unpack(&oci_archive(&[layer(lines)]), &Limits::default()).unwrap();
        // The link leads from the machine's root, and the guest has another one.
        let etc = if lines[0].starts_with("etc->") { "usr/etc" } else { "etc" };
        let folder = bench.tree().join(etc).join("mvm");
        assert_eq!(store::names(&folder, |_| true).unwrap(), ["workload.json"], "{lines:?}");
        let written: Workload = store::read(&folder.join("workload.json")).unwrap();
        assert_eq!(written, unpacked.workload);
    }
    let refused = bench.lay(&[layer(&["etc=x"])]).unwrap_err();
    assert!(refused.contains("no folder"), "{refused}");
}
