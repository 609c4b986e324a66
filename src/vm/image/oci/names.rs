//! Names of an image's files: parsed once into parts that can be walked beneath a folder. Pure.
//!
//! What comes out has no empty part, no `.`, no `..`, no `/` and no NUL in it, so that no system call takes it for anything
//! but one entry of one folder.

use super::limits::{MAX_DEPTH, MAX_NAME, MAX_PATH};
use crate::infra::text::printable;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("its name is empty")]
    Empty,
    /// Leads upwards.
    #[error("its name leads upwards by '..'")]
    Upwards,
    /// No kernel takes that.
    #[error("its name holds a NUL")]
    Nul,
    /// Too long as a whole, or a part of it.
    #[error("its name is longer than {limit} bytes")]
    Long {
        /// The limit.
        limit: usize,
    },
    /// Too many folders.
    #[error("it lies more than {MAX_DEPTH} folders deep")]
    Deep,
}

/// A name, relative to the root of the image. Without parts it is the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    parts: Vec<Vec<u8>>,
}

impl Name {
    /// Parses a name as archives have it. An absolute one is taken as one beneath the image's root, as every engine does.
    ///
    /// # Errors
    /// [`NameError`] where it could lead somewhere else, or no guest could have it.
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.len() > MAX_PATH {
            return Err(NameError::Long { limit: MAX_PATH });
        }
        if bytes.contains(&0) {
            return Err(NameError::Nul);
        }
        let mut parts = Vec::new();
        for part in bytes.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                return Err(NameError::Upwards);
            }
            if part.len() > MAX_NAME {
                return Err(NameError::Long { limit: MAX_NAME });
            }
            if parts.len() == MAX_DEPTH {
                return Err(NameError::Deep);
            }
            parts.push(part.to_vec());
        }
        Ok(Self { parts })
    }

    /// All of it.
    pub fn parts(&self) -> &[Vec<u8>] {
        &self.parts
    }

    /// The folder that it lies in, and its last part; `None` for the root.
    pub fn split_last(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.parts.split_last().map(|(last, folder)| (folder, last.as_slice()))
    }
}

/// A text of the image as it may be shown to people: escaped, and not longer than a line or two.
pub fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 160;
    printable(&String::from_utf8_lossy(bytes), LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_parts_beneath_the_root_or_refused() {
        let long_part = "x".repeat(256);
        let long = "x/".repeat(2048);
        let deep = "x/".repeat(257);
        for (name, parsed) in [
            ("etc/passwd", Ok("etc/passwd")),
            ("./etc//passwd/", Ok("etc/passwd")),
            ("/etc/passwd", Ok("etc/passwd")),
            ("./", Ok("")),
            ("/", Ok("")),
            ("..x/y..", Ok("..x/y..")),
            ("", Err(NameError::Empty)),
            ("..", Err(NameError::Upwards)),
            ("a/../b", Err(NameError::Upwards)),
            ("/..", Err(NameError::Upwards)),
            ("a/..", Err(NameError::Upwards)),
            ("a\0b", Err(NameError::Nul)),
            (&long_part, Err(NameError::Long { limit: 255 })),
            (&long, Err(NameError::Long { limit: 4095 })),
            (&deep, Err(NameError::Deep)),
        ] {
            let joined = Name::parse(name.as_bytes()).map(|name| name.parts.join(&b'/'));
            assert_eq!(joined, parsed.map(|name| name.as_bytes().to_vec()), "{name:.20}");
        }
    }

    #[test]
    fn what_is_shown_has_no_control_characters() {
        assert_eq!(shown(b"a\x1b[31m\nb"), "a\\u{1b}[31m\\u{a}b");
        assert_eq!(shown(&[b'x'; 1000]).chars().count(), 161);
    }
}
