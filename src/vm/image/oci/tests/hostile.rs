//! Archives that try to be somewhere else, or more than there is room for.

use std::time::Instant;

use super::{limits::MAX_STEPS, *};

/// Entries, and what becomes of them, where that is told; or the words by which they are refused.
type Row<'a> = (&'a [&'a str], Result<&'a [&'a str], &'a str>);

#[test]
fn names_and_links_lead_nowhere_but_into_the_tree() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside").display().to_string();
    let through = |line: &str| line.replace("OUTSIDE", &outside);
    // What is refused, and by which words; or what becomes of it.
    let long_part = format!("{}=x", "n".repeat(256));
    let long = format!("{}x=1", "dir/".repeat(1100));
    let deep = format!("{}x=1", "d/".repeat(255));
    let rows: &[Row] = &[
        (&["../x=1"], Err("leads upwards")),
        (&["a/../../x=1"], Err("leads upwards")),
        (&["a/../x=1"], Err("leads upwards")),
        (&["..=1"], Err("leads upwards")),
        (&["../outside/"], Err("leads upwards")),
        (&["OUTSIDE/secret=1"], Ok(&[])),
        (&["/=1"], Err("no name")),
        (&["a=>../outside/secret"], Err("leads upwards")),
        (&["a=>OUTSIDE/secret"], Err("no file here")),
        (&["a=>none"], Err("no file here")),
        (&["d/", "a=>d"], Err("no file here")),
        (&["a=>/"], Err("no file here")),
        (&["d/a=1", "d=>d/a"], Err("no file here")),
        // Links of the image stay links, and what goes through them stays inside.
        (&["a->OUTSIDE", "a/secret=1"], Ok(&[])),
        (&["a->..", "a/outside/secret=1"], Ok(&["a->..", "outside/", "outside/secret=1"])),
        (&["a->../../../..", "a/x=1"], Ok(&["a->../../../..", "x=1"])),
        (&["a->/", "a/x=1"], Ok(&["a->/", "x=1"])),
        (
            &["d/a->../../outside", "d/a/secret=1"],
            Ok(&["d/", "d/a->../../outside", "outside/", "outside/secret=1"]),
        ),
        (&["a->../outside", "a/.wh.secret="], Ok(&["a->../outside"])),
        (&["a->../outside", "a/.wh..wh..opq="], Ok(&["a->../outside"])),
        (&["a->../outside", "b=>a/secret"], Err("no file here")),
        (&["a->../outside/secret", "b=>a", "b=2"], Ok(&["a->../outside/secret", "b=2"])),
        (&["a->../outside/secret", "a=2"], Ok(&["a=2"])),
        (&["a->../outside", "a/"], Ok(&["a/"])),
        (
            &["a->/proc/self/root", "a/x=1"],
            Ok(&["a->/proc/self/root", "proc/", "proc/self/", "proc/self/root/", "proc/self/root/x=1"]),
        ),
        (&["a->b", "b->a", "a/x=1"], Err("40 symbolic links")),
        (&["a->a/a", "a/x=1"], Err("40 symbolic links")),
        (&["a=1", "a/x=1"], Err("no folder")),
        (&["|a", "a/x=1"], Err("no folder")),
        // Names that are none.
        (&[&long_part], Err("longer than 255")),
        (&[&long], Err("longer than 4095")),
        (&[&deep], Ok(&[])),
        (&[&format!("d/{deep}")], Err("256 folders deep")),
        (&["a->"], Err("what it links to cannot be")),
        (&[".wh.="], Err(".wh.")),
        (&[".wh..="], Err(".wh.")),
        (&["d/x=1", "d/.wh...="], Err(".wh.")),
        (&[".wh.d/x=1"], Err(".wh.")),
    ];
    for (lines, expected) in rows {
        let lines: Vec<String> = lines.iter().map(|line| through(line)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let laid = bench.lay(&[layer(&lines)]);
        match (&laid, expected) {
            (Ok(_), Ok([])) => {}
            (Ok(is), Ok(expected)) => assert_eq!(is, expected, "{lines:?}"),
            (Err(why), Err(words)) if why.contains(words) || *words == "no name" => {}
            _ => panic!("{lines:.60?}: {laid:?}"),
        }
    }
}

/// Each step of the way may double what is left of it: the way has an end all the same.
#[test]
fn links_that_grow_end() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let mut lines: Vec<String> = (0..45).map(|n| format!("l{n}->l{}/l{}", n + 1, n + 1)).collect();
    lines.push("l0/x=1".into());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let refused = bench.lay(&[layer(&lines)]).unwrap_err();
    assert!(refused.contains("symbolic links"), "{refused}");
    let lines = [format!("a->{}", "d/../".repeat(MAX_STEPS / 2)), "a/x=1".into()];
    let refused = bench.lay(&[layer(&[&lines[0], &lines[1]])]).unwrap_err();
    assert!(refused.contains("over more than 1024 folders"), "{refused}");
    let wide = "d/".repeat(200);
    let lines = [format!("a->{wide}"), format!("a/b->{wide}"), "a/b/x=1".into(), "a/b/y->/a/b/d".into()];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let refused = bench.lay(&[layer(&lines)]).unwrap_err();
    assert!(refused.contains("deeper than"), "{refused}");
}

#[test]
fn headers_that_are_none_are_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let refused = |layer: &[u8]| bench.lay(&[layer.to_vec()]).unwrap_err();
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = header(EntryType::Regular, b"a", b"", 0);
        change(&mut header);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    for (change, words) in [
        (&(|h: &mut Header| h.set_uid(u64::from(u32::MAX))) as &dyn Fn(&mut Header), "owner"),
        (&|h: &mut Header| h.set_gid(1 << 40), "owner"),
        (&|h: &mut Header| h.as_old_mut().name = [0; 100], "empty"),
        (&|h: &mut Header| h.set_size(1 << 62), "cut off"),
        (&|h: &mut Header| h.set_size(u64::MAX), "size"),
        (&|h: &mut Header| h.as_old_mut().size = *b"xxxxxxxxxxxx", "size"),
        (&|h: &mut Header| h.as_old_mut().mode = *b"89898989", "mode"),
        (&|h: &mut Header| h.set_entry_type(EntryType::new(b'M')), "not known"),
        (&|h: &mut Header| h.set_entry_type(EntryType::XHeader), "cut off"),
        (&|h: &mut Header| h.set_entry_type(EntryType::GNULongName), "cut off"),
    ] {
        let why = refused(&with(change));
        assert!(why.contains(words), "{words}: {why}");
    }
    let whole = layer(&["a=1", "b=2"]);
    let mut wrong = whole.clone();
    wrong[0] = b'x';
    assert!(refused(&wrong).contains("sum of a header"));
    assert!(refused(&whole[..700]).contains("cut off"));
    assert!(refused(b"no archive").contains("cut off"));
    let lone = [&whole[..whole.len() - 512], &whole].concat();
    assert!(refused(&lone).contains("follows its end"));
    // A header of a gigabyte, in an archive that says so: it is not read.
    let mut builder = tar::Builder::new(Vec::new());
    let mut bomb = header(EntryType::GNULongName, b"././@LongLink", b"", 1 << 30);
    bomb.set_cksum();
    builder.append(&bomb, &b""[..]).unwrap();
    assert!(refused(&builder.into_inner().unwrap()).contains("longer than any"));
    // PAX names with a NUL in them, and attributes that no file has room for.
    for (key, value, words) in [
        ("path", &b"a\0b"[..], "NUL"),
        ("path", b"../x", "leads upwards"),
        ("SCHILY.xattr.user.x", &[b'x'; 5000], "larger than ext4"),
        ("SCHILY.xattr.security.capability", b"nonsense", "extended attribute"),
        ("size", b"-1", "number"),
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([(key, value)]).unwrap();
        builder.append(&header(EntryType::Regular, b"a", b"", 0), &b""[..]).unwrap();
        let why = refused(&builder.into_inner().unwrap());
        assert!(why.contains(words), "{words}: {why}");
    }
}

/// Zeros pack well: what unpacks to more than there may be is refused, and has not been written by then.
#[test]
fn what_is_too_large_ends_at_its_limit() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let limits = Limits::default().at_most(1 << 20, Reason::Room);
    let zeros = layer(&[&format!("a={}", "0".repeat(8 << 20))]);
    // Something like it behind the end of the archive, where nobody looks for files.
    let behind = [layer(&["a=1"]), vec![0; 8 << 20]].concat();
    let many = layer(&["a=1"; 3000]);
    for bomb in [zeros, behind, many] {
        for (packing, packed) in [("", bomb.clone()), ("+gzip", gzip(&bomb)), ("+zstd", zstd(&bomb))] {
            let mut files = Files::new();
            let manifest = image(&mut files, &[(packing, packed)], &config(std::slice::from_ref(&bomb)));
            files.push(("index.json".into(), index(&[manifest])));
            let whole = archive(&files);
            for archive in [&whole, &gzip(&whole), &zstd(&whole)] {
                let refused = bench.unpack(archive, &limits).unwrap_err();
                assert!(
                    matches!(refused, OciError::TooLarge { limit_mib: 1, reason: Reason::Room, .. }),
                    "{refused}"
                );
            }
        }
    }
    // Holes take no room, but a file that consists of them is as large as it says to everybody who reads it.
    let sparse = sparse::gnu(&[], 8 << 20, b"");
    assert!(matches!(bench.unpack(&oci_archive(&[sparse]), &limits), Err(OciError::TooLarge { .. })));
    // Both layers together.
    let half = layer(&[&format!("a={}", "0".repeat(700 << 10))]);
    assert!(bench.unpack(&oci_archive(std::slice::from_ref(&half)), &limits).is_ok());
    assert!(matches!(
        bench.unpack(&oci_archive(&[half.clone(), half]), &limits),
        Err(OciError::TooLarge { .. })
    ));
}

/// What is small in an archive is not small on a disk: whole blocks, and folders that nobody named.
#[test]
fn what_is_small_takes_what_it_takes() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let many = |line: &dyn Fn(usize) -> String| {
        let lines: Vec<String> = (0..200).map(line).collect();
        layer(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut attributes = tar::Builder::new(Vec::new());
    for n in 0..200 {
        attributes.append_pax_extensions([("SCHILY.xattr.user.x", &b"1"[..])]).unwrap();
        attributes.append(&header(EntryType::Regular, format!("{n}").as_bytes(), b"", 0), &b""[..]).unwrap();
    }
    let deep = |n: usize| format!("{n}/{}x=", "d/".repeat(19));
    for (what, layer) in [
        ("files", many(&|n| format!("{n}=x"))),
        ("folders", many(&|n| format!("{n}/"))),
        ("long links", many(&|n| format!("{n}->{}", "t".repeat(60)))),
        ("attributes", attributes.into_inner().unwrap()),
        ("folders on the way", many(&deep)[..10 * 512].to_vec()),
    ] {
        let (stream, disk) = (layer.len() as u64, 200 * (4096 + 256));
        assert!(stream < disk / 2, "{what}: {stream}");
        let archive = oci_archive(&[layer]);
        let unpack = |bytes| bench.unpack(&archive, &Limits::default().at_most(bytes, Reason::Room));
        assert!(matches!(unpack(disk - 4096), Err(OciError::TooLarge { .. })), "{what}");
        unpack(disk + stream + (64 << 10)).unwrap_or_else(|error| panic!("{what}: {}", whole(&error)));
    }
    // Folders on the way are entries like those that have a name.
    let limits = |entries| Limits { entries, ..Limits::default() };
    let archive = oci_archive(&[many(&deep)[..10 * 512].to_vec()]);
    assert!(matches!(bench.unpack(&archive, &limits(209)), Err(OciError::TooMany { limit: 209, .. })));
    bench.unpack(&archive, &limits(210)).unwrap();
}

#[test]
fn what_takes_too_long_is_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let over = Limits { until: Instant::now(), ..Limits::default() };
    let archive = oci_archive(&[layer(&["a=1"])]);
    // While the archive is read: as it is, and where it is laid out first.
    for archive in [&archive, &gzip(&archive), &zstd(&archive)] {
        let refused = bench.unpack(archive, &over).unwrap_err();
        assert!(matches!(refused, OciError::TooSlow { .. }), "{refused}");
        assert!(refused.to_string().ends_with("is not unpacked within 30 minutes"), "{refused}");
    }
    // While its layers are laid down, though the archive is still read.
    let in_time = Limits::default();
    fs::write(bench.dir.path().join("image.tar"), &archive).unwrap();
    let open = Archive::open(&bench.dir.path().join("image.tar"), &bench.dir.path().join("spool"), &in_time);
    let refused = unpack(&open.unwrap(), &bench.tree(), &over).unwrap_err();
    assert!(matches!(refused, OciError::TooSlow { .. }), "{refused}");
    assert_eq!(lines(&bench.tree()), [""; 0]);
    bench.unpack(&archive, &in_time).unwrap();
}

#[test]
fn more_entries_than_there_may_be_are_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let limits = Limits { entries: 5, ..Limits::default() };
    let layers = |numbers: &[usize]| -> Vec<Vec<u8>> {
        numbers.iter().map(|&number| layer(&vec![".wh.x="; number])).collect()
    };
    assert!(bench.unpack(&oci_archive(&layers(&[2, 3])), &limits).is_ok());
    for numbers in [&[6][..], &[3, 3]] {
        let refused = bench.unpack(&oci_archive(&layers(numbers)), &limits).unwrap_err();
        assert!(matches!(refused, OciError::TooMany { limit: 5, .. }), "{refused}");
    }
    let layers = vec![layer(&["a=1"]); 128];
    assert!(bench.lay(&layers).unwrap_err().contains("128 layers: at most 127"));
    assert_eq!(bench.lay(&layers[..127]), Ok(vec!["a=1".to_owned()]));
}
