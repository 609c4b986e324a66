//! Sparse files in the forms that there are, and zeros that become holes.

use super::*;

/// A sparse file as GNU's own headers have it: its parts, its length, its content.
pub fn gnu(pieces: &[(u64, u64)], size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = header(EntryType::GNUSparse, b"a", b"", content.len());
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    gnu.set_is_extended(pieces.len() > 4);
    let (first, more) = pieces.split_at(pieces.len().min(4));
    for (field, (at, length)) in gnu.sparse.iter_mut().zip(first) {
        field.set_offset(*at);
        field.set_length(*length);
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    let mut blocks = more.chunks(21).peekable();
    while let Some(pieces) = blocks.next() {
        let mut block = tar::GnuExtSparseHeader::new();
        block.set_is_extended(blocks.peek().is_some());
        for (field, (at, length)) in block.sparse_mut().iter_mut().zip(pieces) {
            field.set_offset(*at);
            field.set_length(*length);
        }
        bytes.extend(block.as_bytes());
    }
    finish(bytes, content)
}

/// The end of an entry and of its archive, behind another entry that must still be found.
fn finish(mut bytes: Vec<u8>, content: &[u8]) -> Vec<u8> {
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(layer(&["next=1"]));
    bytes
}

/// A sparse file as extended headers have it.
fn pax(records: &[(&str, &str)], content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(header(EntryType::Regular, b"GNUSparseFile.0/a", b"", content.len()).as_bytes());
    finish(bytes, content)
}

#[test]
fn sparse_files_are_whole_in_every_form() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let pieces: Vec<(u64, u64)> = (0..50).map(|n| (n * 8192 + 100, 512)).collect();
    let content: Vec<u8> = (0..50_u8).flat_map(|n| [n + 1; 512]).collect();
    let size = 50 * 8192;
    let mut expected = vec![0; size as usize];
    for (n, (at, length)) in pieces.iter().enumerate() {
        expected[*at as usize..(at + length) as usize].fill(n as u8 + 1);
    }
    let numbers: Vec<String> =
        pieces.iter().flat_map(|(at, length)| [at.to_string(), length.to_string()]).collect();
    let (text, list) = (size.to_string(), numbers.join(","));
    let mut map = format!("{}\n{}\n", pieces.len(), numbers.join("\n")).into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    let old: Vec<(&str, &str)> = [("GNU.sparse.size", text.as_str()), ("path", "a")]
        .into_iter()
        .chain(numbers.chunks(2).flat_map(|pair| {
            [("GNU.sparse.offset", pair[0].as_str()), ("GNU.sparse.numbytes", pair[1].as_str())]
        }))
        .collect();
    for layer in [
        gnu(&pieces, size, &content),
        pax(&old, &content),
        pax(&[("GNU.sparse.size", &text), ("GNU.sparse.name", "a"), ("GNU.sparse.map", &list)], &content),
        pax(
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "a"),
                ("GNU.sparse.realsize", &text),
            ],
            &[map, content.clone()].concat(),
        ),
    ] {
        bench.unpack(&oci_archive(&[layer]), &Limits::default()).unwrap();
        assert!(fs::read(bench.tree().join("a")).unwrap() == expected, "another content");
        assert_eq!(fs::read(bench.tree().join("next")).unwrap(), b"1");
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let refused = |layer: Vec<u8>| bench.lay(&[layer]).unwrap_err();
    for layer in [
        gnu(&[(0, 600)], 512, &[1; 600]),
        gnu(&[(0, 512)], 1024, &[1; 100]),
        gnu(&[(512, 512), (0, 512)], 1024, &[1; 1024]),
    ] {
        assert!(refused(layer).contains("sparse"), "refused by the form");
    }
    let form = |map: &str| {
        let mut map = map.as_bytes().to_vec();
        map.resize(map.len().next_multiple_of(512), 0);
        pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "10")], &map)
    };
    for map in
        ["1\n0\n", "x\n", "99999999\n", "1\n0\n99999999999999999999999\n", "18446744073709551615\n", ""]
    {
        let why = refused(form(map));
        assert!(why.contains("sparse"), "{map:?}: {why}");
    }
}

#[test]
fn zeros_become_holes() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let mut content = vec![0; (4 << 20) + 77];
    content[1 << 20] = 1;
    content[(3 << 20) - 1] = 2;
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header(EntryType::Regular, b"a", b"", content.len()), &content[..]).unwrap();
    bench.unpack(&oci_archive(&[builder.into_inner().unwrap()]), &Limits::default()).unwrap();
    let path = bench.tree().join("a");
    assert!(fs::read(&path).unwrap() == content, "another content");
    assert!(fs::metadata(&path).unwrap().blocks() * 512 <= 64 << 10);
    // What is a hole here takes no block there either.
    let file = fs::File::open(&path).unwrap();
    let data: u64 = crate::infra::sparse::data(&file).unwrap().iter().map(|part| part.end - part.start).sum();
    assert!(data <= 8192, "{data}");
}
