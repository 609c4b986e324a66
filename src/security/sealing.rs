//! Keys, and what is sealed with them: XChaCha20-Poly1305, with a random nonce each time. What a text belongs to is sealed with
//! it, so that it opens nowhere else. Does no I/O but for randomness.

use std::{fmt, io};

use base64ct::{Base64, Encoding};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{AeadInOut, Buffer},
};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::infra::{entropy, text::hex};

const KEY: usize = 32;
const NONCE: usize = 24;
const TAG: usize = 16;

/// What was or will be sealed: wiped when it is dropped.
pub type Plain = Zeroizing<Vec<u8>>;

/// A key: 32 bytes, wiped when it is dropped.
#[derive(Clone)]
pub struct Key(Box<Zeroizing<[u8; KEY]>>);

/// A key's name: it tells which one it is, and nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

/// It was sealed with another key or for another place, or is damaged: which one cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not open: it was sealed with another key, or for another place, or is damaged")]
pub struct NotOpened;

/// Something sealed, as it is stored: nonce, text and tag, as base64.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(..)")
    }
}

impl Key {
    /// A key of these bytes; `None` where they are not as many, or all the same.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let mut key = Box::new(Zeroizing::new([0; KEY]));
        if bytes.len() != KEY || bytes.iter().all(|byte| *byte == bytes[0]) {
            return None;
        }
        key.copy_from_slice(bytes);
        Some(Self(key))
    }

    /// A new one.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn random() -> io::Result<Self> {
        let mut key = Box::new(Zeroizing::new([0; KEY]));
        let mut bytes: [u8; KEY] = entropy::random()?;
        key.copy_from_slice(&bytes);
        bytes.zeroize();
        Ok(Self(key))
    }

    /// Its name.
    pub fn id(&self) -> KeyId {
        KeyId(hex(&Sha256::new().chain_update("mvm key id\0").chain_update(**self.0).finalize()[..8]))
    }

    /// As text, for a file.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&**self.0))
    }

    /// Its bytes, to be sealed with another key.
    pub fn bytes(&self) -> &[u8] {
        &**self.0
    }

    /// A key that follows from it for one purpose.
    fn derive(&self, purpose: &str) -> Self {
        let mut derived = Box::new(Zeroizing::new([0; KEY]));
        derived.copy_from_slice(&self.mac(&[purpose]));
        Self(derived)
    }

    fn mac<T: AsRef<[u8]>>(&self, parts: &[T]) -> Zeroizing<Vec<u8>> {
        // A key of any length will do.
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&**self.0);
        let text = context(parts);
        let made = mac.map(|mac| mac.chain_update(&text).finalize().into_bytes().to_vec());
        Zeroizing::new(made.unwrap_or_default())
    }

    /// A short hash: the same for the same parts, and nothing to guess with for who has not the key.
    pub fn hash<T: AsRef<[u8]>>(&self, parts: &[T]) -> String {
        hex(&self.derive("mvm hash").mac(parts)[..8])
    }

    /// Seals a text for a place.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn seal(&self, place: &[&str], plain: &[u8]) -> io::Result<Sealed> {
        let nonce: [u8; NONCE] = entropy::random()?;
        // No part of it is left where it lay before it grew.
        let mut text = Zeroizing::new(Vec::with_capacity(plain.len() + TAG));
        text.extend_from_slice(plain);
        self.cipher()
            .encrypt_in_place(&XNonce::from(nonce), &context(place), &mut *text as &mut dyn Buffer)
            .map_err(|_| io::Error::other("it is too long to be sealed"))?;
        Ok(Sealed(Base64::encode_string(&[&nonce[..], &text].concat())))
    }

    /// Opens what was sealed for a place.
    ///
    /// # Errors
    /// [`NotOpened`] where it was not, not with this key, or was changed.
    pub fn open(&self, place: &[&str], sealed: &Sealed) -> Result<Plain, NotOpened> {
        let bytes = Base64::decode_vec(&sealed.0).map_err(|_| NotOpened)?;
        let (nonce, text) = bytes.split_first_chunk::<NONCE>().ok_or(NotOpened)?;
        let mut text = Zeroizing::new(text.to_vec());
        self.cipher()
            .decrypt_in_place(&XNonce::from(*nonce), &context(place), &mut *text as &mut dyn Buffer)
            .map_err(|_| NotOpened)?;
        Ok(text)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&**self.derive("mvm seal").0).into())
    }
}

impl Sealed {
    /// The length of what is in it, in bytes.
    pub fn plain_len(&self) -> usize {
        let padding = self.0.bytes().rev().take_while(|byte| *byte == b'=').count();
        (self.0.len() / 4 * 3).saturating_sub(padding + NONCE + TAG)
    }
}

/// Parts, so that none can be taken for another one's beginning.
fn context<T: AsRef<[u8]>>(parts: &[T]) -> Zeroizing<Vec<u8>> {
    let length = parts.iter().map(|part| part.as_ref().len() + size_of::<u64>()).sum();
    let mut text = Zeroizing::new(Vec::with_capacity(length));
    for part in parts {
        text.extend_from_slice(&(part.as_ref().len() as u64).to_le_bytes());
        text.extend_from_slice(part.as_ref());
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> Key {
        Key::of(&std::array::from_fn::<u8, KEY, _>(|at| byte ^ at as u8)).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_with_its_key_alone() {
        let place = ["acme", "DB", "1"];
        let sealed = key(1).seal(&place, b"word").unwrap();
        assert_eq!(key(1).open(&place, &sealed).unwrap().as_slice(), b"word");
        assert_eq!(key(2).open(&place, &sealed), Err(NotOpened));
        for other in [
            &["acme", "DB", "2"][..],
            &["globex", "DB", "1"],
            &["acme", "D", "B1"],
            &["acmeDB", "", "1"],
            &[],
        ] {
            assert_eq!(key(1).open(other, &sealed), Err(NotOpened), "{other:?}");
        }
        assert_ne!(key(1).seal(&place, b"word").unwrap(), sealed, "a nonce was used twice");
        for damaged in
            ["", "AAAA", "not base64", &sealed.0[4..], &sealed.0.replacen(&sealed.0[40..44], "AAAA", 1)]
        {
            assert_eq!(key(1).open(&place, &Sealed(damaged.to_owned())), Err(NotOpened), "{damaged}");
        }
    }

    #[test]
    fn keys_are_whole_and_shown_by_nothing() {
        for bad in [&[][..], &[1; 31], &[1; 33], &[0; 32], &[7; 32]] {
            assert!(Key::of(bad).is_none());
        }
        let key = key(9);
        assert_eq!(format!("{key:?}"), format!("Key({})", key.id()));
        assert!(!key.text().contains(&key.id().0));
        assert_ne!(Key::random().unwrap().id(), Key::random().unwrap().id());
    }

    #[test]
    fn a_hash_is_the_keys_own() {
        let hash = |byte: u8, parts: &[&str]| key(byte).hash(parts);
        assert_eq!(hash(1, &["a", "b"]), hash(1, &["a", "b"]));
        assert_eq!(hash(1, &["a", "b"]).len(), 16);
        for other in [hash(2, &["a", "b"]), hash(1, &["ab", ""]), hash(1, &["a"])] {
            assert_ne!(other, hash(1, &["a", "b"]));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let sealed = key(1).seal(&["x"], &bytes).unwrap();
            prop_assert_eq!(sealed.plain_len(), bytes.len());
            prop_assert_eq!(key(1).open(&["x"], &sealed).unwrap().to_vec(), bytes);
        }
    }
}
