//! Extended headers of an entry ("pax"), and the parts of a sparse file. Pure.
//!
//! A record says its own length, and its value may be any bytes, newlines too: that of `security.capability` often holds one.

use std::collections::BTreeMap;

use super::limits::{MAX_ATTRIBUTES, MAX_PIECES};

/// What a header holds that it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PaxError(pub &'static str);

/// A part of a sparse file that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the file.
    pub at: u64,
    /// How long it is.
    pub length: u64,
}

/// Where the parts of a sparse file are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Map {
    /// In the header.
    Here(Vec<Piece>),
    /// Before the content.
    BeforeContent,
}

/// An extended attribute: name and value.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// What an extended header says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pax {
    /// The name.
    pub path: Option<Vec<u8>>,
    /// What a link leads to.
    pub link: Option<Vec<u8>>,
    /// The length of the content in the archive.
    pub size: Option<u64>,
    /// The owner.
    pub uid: Option<u64>,
    /// The owner's group.
    pub gid: Option<u64>,
    /// When the content was changed, in seconds.
    pub mtime: Option<i64>,
    /// Extended attributes that a guest's files may have.
    pub attributes: Vec<Attribute>,
    /// How many others there were, which are left out.
    pub left_out: u64,
    /// Of a sparse file: its parts, and its length.
    pub sparse: Option<(Map, u64)>,
}

/// Those that mean the same in every guest. Labels of security modules and marks of overlays are the other machine's.
fn is_kept(attribute: &[u8]) -> bool {
    attribute == b"security.capability" || attribute.starts_with(b"user.")
}

/// The form of sparse files in extended headers changed twice.
#[derive(Default)]
struct SparseRecords {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    numbers: Vec<u64>,
    has_map: bool,
}

/// Attributes that are kept: the last one of a name counts. More than a file may have are refused at once, so they stay few
/// however many a header names.
#[derive(Default)]
struct Attributes<'a> {
    values: BTreeMap<&'a [u8], &'a [u8]>,
    length: usize,
}

impl<'a> Attributes<'a> {
    fn take(&mut self, name: &'a [u8], value: &'a [u8]) -> Result<(), PaxError> {
        let before = self.values.insert(name, value);
        self.length += value.len();
        self.length -= before.map_or(0, <[u8]>::len);
        self.length += if before.is_none() { name.len() } else { 0 };
        match self.length > MAX_ATTRIBUTES {
            true => Err(PaxError("its extended attributes are larger than ext4 has room for")),
            false => Ok(()),
        }
    }
}

impl Pax {
    /// Parses a header.
    ///
    /// # Errors
    /// When a record is not what the form says.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, PaxError> {
        let mut pax = Self::default();
        let (mut sparse, mut attributes) = (SparseRecords::default(), Attributes::default());
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(PaxError("a record of its header is malformed"))?;
            bytes = rest;
            match key.strip_prefix(b"SCHILY.xattr.") {
                Some(name) if is_kept(name) && !name.contains(&0) => attributes.take(name, value)?,
                Some(_) => pax.left_out += 1,
                None => pax.take(key, value, &mut sparse)?,
            }
        }
        if sparse.major.is_some() || sparse.has_map {
            let size = sparse.size.ok_or(PaxError("the header of a sparse file lacks its size"))?;
            let map = match sparse.major {
                Some(1) => Map::BeforeContent,
                None | Some(0) => Map::Here(pieces(&sparse.numbers)?),
                Some(_) => return Err(PaxError("it is sparse in a form that is not known")),
            };
            pax.sparse = Some((map, size));
            pax.path = sparse.name.or(pax.path);
        }
        let attributes = attributes.values.into_iter();
        pax.attributes = attributes.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8], sparse: &mut SparseRecords) -> Result<(), PaxError> {
        // An empty value takes back what was said before.
        let text = Some(value.to_vec()).filter(|value| !value.is_empty());
        let number = || match value {
            b"" => Ok(None),
            _ => decimal(value).map(Some).ok_or(PaxError("a number in its header is none")),
        };
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = time(value)?,
            b"GNU.sparse.major" => sparse.major = number()?,
            b"GNU.sparse.name" => sparse.name = text,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.size = number()?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                // They come in turns.
                let is_offset = key.ends_with(b"offset");
                if is_offset != sparse.numbers.len().is_multiple_of(2) {
                    return Err(PaxError("the parts of a sparse file are not in order"));
                }
                sparse.numbers.extend(number()?);
                sparse.has_map = true;
            }
            b"GNU.sparse.map" => {
                let parts = value.split(|&byte| byte == b',').filter(|part| !part.is_empty());
                let parts: Option<Vec<u64>> = parts.map(decimal).collect();
                sparse.numbers = parts.ok_or(PaxError("a number in its header is none"))?;
                sparse.has_map = true;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The first record: key, value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// A number of digits alone.
pub fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// Whole seconds of a time; what is less than one is left out, and what no number holds is as far as one goes.
fn time(value: &[u8]) -> Result<Option<i64>, PaxError> {
    if value.is_empty() {
        return Ok(None);
    }
    let whole = value.split(|&byte| byte == b'.').next().unwrap_or_default();
    let (digits, sign) = whole.strip_prefix(b"-").map_or((whole, 1), |digits| (digits, -1));
    let seconds = decimal(digits).ok_or(PaxError("a time in its header is none"))?;
    Ok(Some(sign * i64::try_from(seconds).unwrap_or(i64::MAX)))
}

/// Offsets and lengths, in turns.
///
/// # Errors
/// When there are too many, or one is missing.
pub fn pieces(numbers: &[u64]) -> Result<Vec<Piece>, PaxError> {
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(PaxError("the parts of a sparse file are not in order"));
    };
    if pairs.len() > MAX_PIECES {
        return Err(PaxError("a sparse file has too many parts"));
    }
    Ok(pairs.iter().map(|&[at, length]| Piece { at, length }).collect())
}

/// Are these the parts of a file of that length, with `stored` bytes of content?
///
/// # Errors
/// When they are out of order, lie on one another, or reach beyond its end.
pub fn check(pieces: &[Piece], size: u64, stored: u64) -> Result<(), PaxError> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for piece in pieces {
        let piece_end = piece.at.checked_add(piece.length).filter(|end| *end <= size);
        match piece_end {
            Some(piece_end) if piece.at >= end => end = piece_end,
            _ => return Err(PaxError("the parts of a sparse file are not in it, or not in order")),
        }
        sum += piece.length;
    }
    match sum == stored {
        true => Ok(()),
        false => Err(PaxError("the parts of a sparse file are not as long as its content")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records, with the lengths that they have.
    fn header(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|length| length.to_string().len() + rest == *length).unwrap();
            bytes.extend(format!("{length} {key}=").bytes().chain(value.iter().copied()).chain([b'\n']));
        }
        bytes
    }

    #[test]
    fn records_are_as_long_as_they_say_whatever_is_in_them() {
        let capability = b"\x01\n\0\0\x0220 path=x\n";
        let pax = Pax::parse(&header(&[
            ("path", b"a/b"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.x", b"old"),
            ("SCHILY.xattr.user.x", b"1=2"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("size", b"8589934592"),
            ("uid", b"4000000000"),
            ("gid", b"7"),
            ("gid", b""),
            ("mtime", b"-1.5"),
            ("comment", b"x"),
        ]));
        let pax = pax.unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        let attributes: [Attribute; 2] =
            [(b"security.capability".to_vec(), capability.to_vec()), (b"user.x".to_vec(), b"1=2".to_vec())];
        assert_eq!(pax.attributes, attributes);
        assert_eq!(pax.left_out, 2);
        assert_eq!(
            (pax.size, pax.uid, pax.gid, pax.mtime),
            (Some(1 << 33), Some(4_000_000_000), None, Some(-1))
        );
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bytes in [
            &b"5 a=b\n"[..],
            b"6 a=b\n7",
            b"7 a=b\n",
            b"6 a=bx",
            b"6 ab \n",
            b"99999999999999999999 a=b\n",
            b"0 a=b\n",
            b"1 a=b\n",
            b"x",
            &header(&[("uid", b"-1")]),
            &header(&[("mtime", b"x")]),
            &header(&[("SCHILY.xattr.user.x", &[7; 4000])]),
            &header(&[("GNU.sparse.major", b"1")]),
            &header(&[("GNU.sparse.major", b"2"), ("GNU.sparse.realsize", b"1")]),
            &header(&[("GNU.sparse.size", b"1"), ("GNU.sparse.numbytes", b"1")]),
            &header(&[("GNU.sparse.size", b"1"), ("GNU.sparse.map", b"1,2,3")]),
        ] {
            assert!(Pax::parse(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    /// Who has too many is refused where they become too many: nothing behind that is looked at, and nothing before it is long.
    #[test]
    fn attributes_are_never_more_than_a_file_may_have() {
        let half = [b'x'; MAX_ATTRIBUTES / 2];
        let again = [("SCHILY.xattr.user.x", &half[..]); 9];
        assert_eq!(Pax::parse(&header(&again)).unwrap().attributes, [(b"user.x".to_vec(), half.to_vec())]);
        let names: Vec<String> = (0..2 * MAX_ATTRIBUTES).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
        let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        let broken = [&header(&many)[..], b"what is no record"].concat();
        let why = Pax::parse(&broken).unwrap_err();
        assert!(why.0.contains("larger than ext4"), "{why}");
    }

    #[test]
    fn sparse_files_are_known_in_all_three_forms() {
        let piece = |at, length| Piece { at, length };
        let map = Map::Here(vec![piece(0, 10), piece(4096, 1)]);
        let old = Pax::parse(&header(&[
            ("GNU.sparse.size", b"9000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"10"),
            ("GNU.sparse.offset", b"4096"),
            ("GNU.sparse.numbytes", b"1"),
        ]));
        assert_eq!(old.unwrap().sparse, Some((map.clone(), 9000)));
        let next = [("GNU.sparse.size", &b"9000"[..]), ("GNU.sparse.map", b"0,10,4096,1")];
        assert_eq!(Pax::parse(&header(&next)).unwrap().sparse, Some((map, 9000)));
        let now = Pax::parse(&header(&[
            ("path", b"GNUSparseFile.1/x"),
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"x"),
            ("GNU.sparse.realsize", b"9000"),
        ]));
        let now = now.unwrap();
        assert_eq!((now.path.unwrap(), now.sparse.unwrap()), (b"x".to_vec(), (Map::BeforeContent, 9000)));
    }

    #[test]
    fn parts_of_a_sparse_file_lie_in_it_one_after_the_other() {
        let check = |pieces: &[(u64, u64)], size, stored| {
            let pieces: Vec<Piece> = pieces.iter().map(|&(at, length)| Piece { at, length }).collect();
            check(&pieces, size, stored)
        };
        assert!(check(&[(0, 10), (10, 5), (100, 0)], 100, 15).is_ok());
        assert!(check(&[], 1 << 60, 0).is_ok());
        for (pieces, size, stored) in [
            (&[(0, 10), (9, 5)][..], 100, 15),
            (&[(10, 1), (0, 1)], 100, 2),
            (&[(0, 101)], 100, 101),
            (&[(u64::MAX, 2)], u64::MAX, 2),
            (&[(0, 10)], 100, 9),
            (&[(101, 0)], 100, 0),
        ] {
            assert!(check(pieces, size, stored).is_err(), "{pieces:?}");
        }
    }
}
