//! Digests: what a descriptor says that a blob has, and what was read.

use std::{
    cell::RefCell,
    fmt,
    io::{self, Read},
    str::FromStr,
};

use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use super::names::shown;
use crate::infra::text::{hex, unhex};

/// A sha256. No image that is in use names its blobs by anything else.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// What is no digest that mvm can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest that can be checked: it takes sha256: and 64 digits")]
pub struct DigestError(String);

impl Digest {
    /// From 64 hexadecimal digits.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let is_lower = !digits.bytes().any(|digit| digit.is_ascii_uppercase());
        unhex(digits).filter(|_| is_lower).map(Self)
    }

    /// Where the layout keeps the blob of that digest.
    pub fn blob(&self) -> String {
        format!("blobs/sha256/{}", hex(&self.0))
    }

    /// That of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digits = text.strip_prefix("sha256:").and_then(Self::from_hex);
        digits.ok_or_else(|| DigestError(shown(text.as_bytes())))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The digest and the length of what passes, beside the reader that it passes through.
#[derive(Debug)]
pub struct Sum(RefCell<(Option<Sha256>, u64)>);

impl Sum {
    /// With the digest, or the length alone.
    pub fn new(with_digest: bool) -> Self {
        Self(RefCell::new((with_digest.then(Sha256::new), 0)))
    }

    /// A reader whose bytes are summed here.
    pub fn of<R>(&self, input: R) -> Summed<'_, R> {
        Summed { input, sum: self }
    }

    /// What it was of all that passed, and how much that was.
    pub fn finish(self) -> (Option<Digest>, u64) {
        let (hasher, length) = self.0.into_inner();
        (hasher.map(|hasher| Digest(hasher.finalize().into())), length)
    }
}

/// See [`Sum::of`].
#[derive(Debug)]
pub struct Summed<'a, R> {
    /// What is read.
    pub input: R,
    sum: &'a Sum,
}

impl<R: Read> Read for Summed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let mut sum = self.sum.0.borrow_mut();
        if let Some(hasher) = &mut sum.0 {
            hasher.update(&buffer[..read]);
        }
        sum.1 += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_it_says_or_none() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Digest = format!("sha256:{empty}").parse().unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.blob(), format!("blobs/sha256/{empty}"));
        let upper = empty.to_uppercase();
        let other = [
            "",
            "sha256:",
            empty,
            &format!("sha512:{empty}"),
            &format!("sha256:{upper}"),
            &format!("sha256:{empty}0"),
        ];
        for text in other {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        let non_ascii = "é".repeat(32);
        assert!(format!("sha256:{non_ascii}").parse::<Digest>().is_err());
    }

    #[test]
    fn what_passes_is_summed() {
        let sum = Sum::new(true);
        let mut out = Vec::new();
        sum.of(&b"hello"[..]).read_to_end(&mut out).unwrap();
        assert_eq!((sum.finish(), out.as_slice()), ((Some(Digest::of(b"hello")), 5), &b"hello"[..]));
    }
}
