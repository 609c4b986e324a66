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
    #![proptest_config(cases(60))]

    /// Names, links and whiteouts in any order, of parts that mean something.
    #[test]
    fn any_names_and_links_stay_inside(
        entries in proptest::collection::vec((0..6_usize, name(), target()), 2..16),
        split in any::<prop::sample::Index>(),
    ) {
        if !is_root() {
            return Ok(());
        }
        let lines: Vec<String> = entries.into_iter().map(|(kind, name, target)| match kind {
            0 => format!("{name}/"),
            1 => format!("{name}->{target}"),
            2 => format!("{name}=>{target}"),
            3 => format!("{name}/.wh.secret="),
            4 => format!("{name}/.wh..wh..opq="),
            _ => format!("{name}/secret=x"),
        }).collect();
        let bench = Bench::new();
        // What is refused would hide what comes after it: it is left out.
        let mut taken: Vec<&str> = Vec::new();
        for line in &lines {
            taken.push(line);
            let (below, above) = taken.split_at(split.index(taken.len()));
            if bench.unpack(&oci_archive(&[layer(below), layer(above)]), &limits()).is_err() {
                taken.pop();
            }
        }
    }
}

/// Few, so that one meets the other.
fn name() -> impl Strategy<Value = String> {
    let names = ["a", "b", "a/b", "a/outside", "b/outside", "a/b/outside", "outside", "a/../b"];
    prop::sample::select(names.map(str::to_owned).to_vec())
}

/// Where a link may lead: back, out, to itself.
fn target() -> impl Strategy<Value = String> {
    let targets = ["..", "../..", "../outside", "a", "b", "/", "outside/secret"];
    prop::sample::select(targets.map(str::to_owned).to_vec())
}
