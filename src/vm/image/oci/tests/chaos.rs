//! Bytes that nobody meant: whatever comes, nothing panics, nothing lands outside, and memory stays small.

use proptest::prelude::*;

use super::*;

/// A layer with something of everything.
fn sample() -> Vec<u8> {
    let mut bytes = layer(&["d/", "d/a=hello", "l->d", "h=>d/a", "d/.wh.x=", "e/.wh..wh..opq=", "|p", "%n"]);
    bytes.truncate(bytes.len() - 1024);
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("path", &b"pax"[..]), ("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"1")])
        .unwrap();
    let mut pax = builder.into_inner().unwrap();
    pax.truncate(pax.len() - 1024);
    bytes.extend(pax);
    bytes.extend(sparse::gnu(&[(0, 512), (4096, 512), (8192, 0)], 8192, &[1; 1024]));
    bytes
}

/// Makes the sums of all headers right again, so that what was changed in them is looked at.
fn mend(bytes: &mut [u8]) {
    for block in bytes.as_chunks_mut::<512>().0 {
        // A header has its letters there.
        if &block[257..262] == b"ustar" {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
}

fn limits() -> Limits {
    Limits { entries: 1000, ..Limits::default().at_most(4 << 20, Reason::Format) }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn bytes_are_no_archive(bytes in proptest::collection::vec(any::<u8>(), 0..3000), start in 0..4_usize) {
        let starts: [&[u8]; 4] = [b"", b"\x1f\x8b\x08\0", b"(\xb5/\xfd", b"\x50\x2a\x4d\x18"];
        let bench = Bench::new();
        let _ = bench.unpack(&[starts[start], &bytes].concat(), &limits());
    }

    #[test]
    fn a_changed_layer_lands_nowhere_else(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        if !is_root() {
            return Ok(());
        }
        let mut bytes = sample();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        mend(&mut bytes);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = Bench::new().unpack(&oci_archive(&[layer(&["d/x=1", "e/y=1"]), bytes]), &limits());
    }

    #[test]
    fn a_changed_archive_is_refused_or_the_same(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        if !is_root() {
            return Ok(());
        }
        let mut bytes = oci_archive(&[layer(&["a=1", "d/b=2"])]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let bench = Bench::new();
        if bench.unpack(&bytes, &limits()).is_ok() {
            prop_assert!(lines(&bench.tree()).contains(&"a=1".to_owned()));
        }
    }
}

proptest! {
    #![proptest_config(cases(40))]

    /// Names, links and whiteouts in any order, of parts that mean something.
    #[test]
    fn any_names_and_links_stay_inside(
        entries in proptest::collection::vec((0..6_usize, name(), name()), 1..14),
        split in any::<prop::sample::Index>(),
    ) {
        if !is_root() {
            return Ok(());
        }
        let lines: Vec<String> = entries.into_iter().map(|(kind, name, other)| match kind {
            0 => format!("{name}/"),
            1 => format!("{name}->{other}"),
            2 => format!("{name}=>{other}"),
            3 => format!("{name}/.wh.secret="),
            4 => format!("{name}/.wh..wh..opq="),
            _ => format!("{name}=x"),
        }).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (below, above) = lines.split_at(split.index(lines.len()));
        let bench = Bench::new();
        // Entry by entry, so that what is refused is in nobody's way.
        let layers: Vec<Vec<u8>> = [below, above].into_iter().map(|lines| {
            let fine = |line: &&&str| bench.lay(&[layer(&[**line])]).is_ok() || line.contains("=>");
            layer(&lines.iter().filter(fine).copied().collect::<Vec<_>>())
        }).collect();
        let _ = bench.unpack(&oci_archive(&layers), &limits());
    }
}

fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".", "outside", "secret", ""]);
    proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}
