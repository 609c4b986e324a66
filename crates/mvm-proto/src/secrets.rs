//! What a set of secrets may be, and how a guest shows that it has it. Does no I/O.
//!
//! ```text
//! host    Secrets {salt, files, tell}          ──>
//!                                              <──  Ready | Refused (nothing secret was sent yet)
//!         a frame of data for each file        ──>
//!                                              <──  Receipt: secrets "COUNT DIGEST"; told, where somebody was
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The folder in a guest in which secrets lie: a tmpfs, to be read and nothing else.
pub const FOLDER: &str = "/run/secrets";
/// How many there may be.
pub const MAX_FILES: usize = 64;
/// Bytes of one at most.
pub const MAX_SIZE: usize = 64 << 10;
/// Bytes of all of them at most.
pub const MAX_TOTAL: usize = 1 << 20;
/// How long a program may take that is told of other secrets.
pub const HOOK_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a name at most.
pub const MAX_NAME: usize = 128;

/// What a guest shall have, and no other: the contents follow, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSet {
    /// Made for this one request, and kept by nobody: what the guest confirms tells nothing of what was in it.
    pub salt: [u8; 32],
    /// Their names and sizes.
    pub files: Vec<SecretFile>,
    /// Who hears of it, where they are others than before.
    #[serde(default)]
    pub tell: Tell,
}

/// A secret that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// Its name: [`is_name`].
    pub name: String,
    /// Its bytes.
    pub size: usize,
}

/// Who hears in a guest that its secrets have changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tell {
    /// Nobody.
    #[default]
    Nobody,
    /// The workload gets this signal.
    Signal(i32),
    /// This program is run, as the workload's user.
    Exec(String),
    /// Something that this side does not know.
    #[serde(other)]
    Unknown,
}

/// May a secret be called that? 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', not beginning with a dot.
pub fn is_name(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(fine)
}

impl SecretSet {
    /// Is it within the bounds, each name once?
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn check(&self) -> Result<(), String> {
        let total = self.files.iter().fold(0_usize, |sum, file| sum.saturating_add(file.size));
        let too_large = self.files.iter().any(|file| file.size > MAX_SIZE);
        if self.files.len() > MAX_FILES || total > MAX_TOTAL || too_large {
            return Err(format!(
                "more than {MAX_FILES} secrets, {MAX_SIZE} bytes of one or {MAX_TOTAL} of all"
            ));
        }
        for (at, file) in self.files.iter().enumerate() {
            if !is_name(&file.name) || self.files[..at].iter().any(|other| other.name == file.name) {
                return Err(format!("{:?} is no name, or there twice", file.name));
            }
        }
        Ok(())
    }
}

/// What a guest confirms that has these, in whatever order: their number, and a digest that means something to who knows
/// the salt alone.
pub fn confirmation<'a>(salt: &[u8; 32], secrets: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut all: Vec<_> = secrets.into_iter().collect();
    all.sort_unstable();
    let mut hasher = Sha256::new();
    hasher.update(salt);
    for (name, content) in &all {
        for part in [name.as_bytes(), content] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    let digest: String = hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {digest}", all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(files: &[(&str, usize)]) -> SecretSet {
        let file = |&(name, size): &(&str, usize)| SecretFile { name: name.to_owned(), size };
        SecretSet { salt: [1; 32], files: files.iter().map(file).collect(), tell: Tell::Nobody }
    }

    #[test]
    fn names_are_those_of_files_in_one_folder() {
        for fine in ["a", "DB_PASSWORD", "tls.key", "a-1", "_", "-", &"x".repeat(MAX_NAME)] {
            assert!(is_name(fine), "{fine}");
        }
        for bad in ["", ".", "..", "..data", ".a", "a/b", "a b", "ä", "a\0", "a\n", &"x".repeat(MAX_NAME + 1)]
        {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_set_is_bounded() {
        let names: Vec<String> = (0..=MAX_FILES).map(|number| format!("s{number}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
        assert!(set(&many[1..]).check().is_ok());
        assert!(set(&[("a", MAX_SIZE), ("b", 0)]).check().is_ok());
        let large: Vec<_> = many[..17].iter().map(|(name, _)| (*name, MAX_SIZE)).collect();
        assert!(set(&large[1..]).check().is_ok());
        for bad in [
            &many[..],
            &large,
            &[("a", MAX_SIZE + 1)],
            &[("a", 1), ("a", 2)],
            &[("..", 1)],
            &[("a", usize::MAX), ("b", 2)],
        ] {
            assert!(set(bad).check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_confirmation_depends_on_everything_but_the_order() {
        let of = |salt: u8, secrets: &[(&'static str, &'static [u8])]| {
            confirmation(&[salt; 32], secrets.iter().copied())
        };
        let one = of(1, &[("a", b"x"), ("b", b"y")]);
        assert!(one.starts_with("2 ") && one.len() == 18, "{one}");
        assert_eq!(one, of(1, &[("b", b"y"), ("a", b"x")]));
        for other in [
            of(2, &[("a", b"x"), ("b", b"y")]),
            of(1, &[("a", b"y"), ("b", b"x")]),
            of(1, &[("a", b"x")]),
            of(1, &[("ab", b""), ("b", b"y")]),
            of(1, &[]),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_a_later_host_wants_told_is_known_as_unknown() {
        let text = r#"{"salt":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],"files":[],"tell":"carrier_pigeon"}"#;
        assert_eq!(serde_json::from_str::<SecretSet>(text).unwrap().tell, Tell::Unknown);
        for tell in [Tell::Nobody, Tell::Signal(1), Tell::Exec("/bin/x".into())] {
            assert_eq!(serde_json::from_str::<Tell>(&serde_json::to_string(&tell).unwrap()).unwrap(), tell);
        }
    }
}
