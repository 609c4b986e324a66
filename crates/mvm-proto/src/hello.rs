//! Which versions a side speaks, and which one both do. Does no I/O.

use serde::{Deserialize, Serialize};

/// The newest version of this protocol.
pub const VERSION: u32 = 1;
/// The oldest version that this side still speaks.
pub const OLDEST: u32 = 1;

/// The first message of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest version that it speaks.
    pub oldest: u32,
    /// The newest version that it speaks.
    pub newest: u32,
    /// The program, for people: `mvm 0.1.0`.
    #[serde(default)]
    pub program: String,
    /// A host: the instance that it means. A guest that is another one refuses it: its slot has changed hands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
}

/// There is no version that both sides speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it speaks versions {} to {} of the guest protocol, this mvm {} to {}", .theirs.0, .theirs.1, .ours.0, .ours.1)]
pub struct Incompatible {
    /// The oldest and newest of the other side.
    pub theirs: (u32, u32),
    /// The oldest and newest of this side.
    pub ours: (u32, u32),
}

impl Hello {
    /// This side's.
    pub fn of(program: &str) -> Self {
        Self { oldest: OLDEST, newest: VERSION, program: program.to_owned(), instance_id: None }
    }

    /// To the guest of this instance, and no other.
    pub fn to(self, instance_id: Option<String>) -> Self {
        Self { instance_id, ..self }
    }

    /// The newest version that both speak.
    ///
    /// # Errors
    /// [`Incompatible`] where there is none.
    pub fn agree(&self, theirs: &Hello) -> Result<u32, Incompatible> {
        let version = self.newest.min(theirs.newest);
        match version >= self.oldest.max(theirs.oldest) {
            true => Ok(version),
            false => {
                Err(Incompatible { theirs: (theirs.oldest, theirs.newest), ours: (self.oldest, self.newest) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(oldest: u32, newest: u32) -> Hello {
        Hello { oldest, newest, ..Hello::of("") }
    }

    #[test]
    fn the_newest_that_both_speak_holds_both_ways() {
        for (one, other, agreed) in [
            ((1, 1), (1, 1), Some(1)),
            ((1, 1), (1, 4), Some(1)),
            ((2, 5), (1, 3), Some(3)),
            ((1, 1), (2, 4), None),
            ((3, 3), (1, 2), None),
        ] {
            let (one, other) = (speaks(one.0, one.1), speaks(other.0, other.1));
            assert_eq!(one.agree(&other).ok(), agreed, "{one:?} {other:?}");
            assert_eq!(other.agree(&one).ok(), agreed, "{other:?} {one:?}");
        }
    }

    #[test]
    fn who_is_meant_is_said_only_where_somebody_is() {
        let anybody = Hello::of("mvm");
        assert_eq!(serde_json::to_string(&anybody).unwrap(), r#"{"oldest":1,"newest":1,"program":"mvm"}"#);
        let one = anybody.to(Some("i-0f3a91c2".into()));
        let text = serde_json::to_string(&one).unwrap();
        assert!(text.ends_with(r#","instance_id":"i-0f3a91c2"}"#), "{text}");
        assert_eq!(serde_json::from_str::<Hello>(&text).unwrap(), one);
    }

    #[test]
    fn a_hello_of_a_later_version_is_understood() {
        let later = r#"{"oldest":1,"newest":9,"program":"mvm 4","compression":["zstd"]}"#;
        let later: Hello = serde_json::from_str(later).unwrap();
        assert_eq!(Hello::of("mvm").agree(&later), Ok(VERSION));
    }
}
