//! Whatever a tree is like, the file system that is made of it holds all of it, and has room left.

use std::time::Duration;

use super::*;

fn said(program: &str, arguments: &[&str], image: &Path) -> String {
    let arguments = arguments.iter().map(std::ffi::OsStr::new).chain([image.as_os_str()]);
    String::from_utf8(shell::run(program, arguments, b"", Duration::from_secs(60)).unwrap()).unwrap()
}

/// The number behind a word that dumpe2fs prints.
fn number(text: &str, word: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(':'));
    line.unwrap().trim().parse().unwrap()
}

fn attributes(number: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for n in 0..number {
        builder.append_pax_extensions([("SCHILY.xattr.user.x", &[n as u8; 3400][..])]).unwrap();
        builder.append(&header(EntryType::Regular, format!("x{n}").as_bytes(), b"", 0), &b""[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn every_tree_fits_into_its_file_system_and_leaves_room() {
    if !is_root() {
        return;
    }
    let lines = |number: usize, line: &dyn Fn(usize) -> String| -> Vec<u8> {
        let lines: Vec<String> = (0..number).map(line).collect();
        layer(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (long, content) = ("n".repeat(250), "x".repeat(20 << 20));
    for (what, layer) in [
        ("nothing", layer(&["./"])),
        ("one large file", layer(&[&format!("a={content}")])),
        ("many small files", lines(6000, &|n| format!("d{}/f{n}=x", n % 7))),
        ("long names", lines(2000, &|n| format!("d/{n}{}->x", &long[..240]))),
        ("links that are long", lines(500, &|n| format!("l{n}->{}", "t/".repeat(1500)))),
        ("a deep folder", layer(&[&format!("{}x=1", "d/".repeat(255))])),
        ("large attributes", attributes(300)),
        ("many names of one file", [&layer(&["a=x"])[..1024], &lines(900, &|n| format!("h{n}=>a"))].concat()),
        // What mke2fs makes itself, and what its own language could take for something else.
        (
            "odd names",
            layer(&[
                "lost+found/",
                "lost+found/a=1",
                "a\nb=1",
                "\"q\"=1",
                "<1>=1",
                "-d=1",
                " =1",
                "\u{1b}=1",
                "ü=1",
            ]),
        ),
    ] {
        let bench = Bench::new();
        let archive = bench.dir.path().join("image.tar");
        fs::write(&archive, oci_archive(&[layer])).unwrap();
        let limits = Limits::default();
        let archive = Archive::open(&archive, &bench.dir.path().join("spool"), &limits).unwrap();
        let (tree, unpacked) = unpack(&archive, &bench.tree(), &limits).unwrap();
        let Size { inodes, blocks } = tree.measure(MAX_FOLDER).unwrap();
        let form = form(inodes, blocks + unpacked.counts.with_attributes);
        let image = bench.dir.path().join("image");
        ext4::make(tree.path(), &image, &form).unwrap_or_else(|error| panic!("{what}: {}", whole(&error)));
        said("e2fsck", &["-fn"], &image);
        let head = said("dumpe2fs", &["-h"], &image);
        let free = number(&head, "Free blocks");
        assert!((16_000..40_000).contains(&free), "{what}: {free} of {}", number(&head, "Block count"));
        assert!(number(&head, "Free inodes") >= 4000, "{what}: {head}");
    }
}

#[test]
fn a_folder_with_too_many_names_is_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let (tree, left) = (Tree::make(&bench.tree()).unwrap(), Left::of(&Limits::default()));
    for name in ["d/e/1", "d/e/2", "d/e/3"] {
        let place = tree.place(&Name::parse(name.as_bytes()).unwrap(), &left).unwrap().unwrap();
        place.make_folder(&Meta::plain(0o755)).unwrap();
    }
    assert!(tree.measure(3).is_ok());
    assert!(matches!(tree.measure(2), Err(TreeError::Wide(2))));
}
