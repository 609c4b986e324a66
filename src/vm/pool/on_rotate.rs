//! Who hears in a pool's guests that their secrets have changed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Signals by their names on Linux.
const SIGNALS: [(&str, i32); 8] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("USR1", 10),
    ("USR2", 12),
    ("TERM", 15),
    ("CONT", 18),
    ("WINCH", 28),
];

/// KILL and STOP: no program hears them.
const UNHEARD: [i32; 2] = [9, 19];

/// Who hears of other secrets: `none`, `signal:NAME`, or `exec:PATH`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OnRotate {
    /// Nobody: a signal ends a program that does not expect it.
    #[default]
    Nobody,
    /// The workload gets this signal.
    Signal(i32),
    /// This program of the guest is run, as the workload's user.
    Exec(String),
}

impl FromStr for OnRotate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.split_once(':') {
            None if text == "none" => Some(Self::Nobody),
            Some(("signal", name)) => {
                let known = SIGNALS.iter().find(|(known, _)| name.trim_start_matches("SIG") == *known);
                known
                    .map(|(_, number)| *number)
                    .or_else(|| name.parse().ok())
                    .filter(|number| (1..=64).contains(number) && !UNHEARD.contains(number))
                    .map(Self::Signal)
            }
            Some(("exec", path)) if path.starts_with('/') && path.len() <= 255 && !path.contains('\0') => {
                Some(Self::Exec(path.to_owned()))
            }
            _ => None,
        };
        parsed.ok_or_else(|| {
            format!("{text:?} tells nobody: expected none, signal:NAME as in signal:HUP, or exec:PATH")
        })
    }
}

impl TryFrom<String> for OnRotate {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<OnRotate> for String {
    fn from(told: OnRotate) -> Self {
        told.to_string()
    }
}

impl fmt::Display for OnRotate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("none"),
            Self::Signal(number) => match SIGNALS.iter().find(|(_, known)| known == number) {
                Some((name, _)) => write!(f, "signal:{name}"),
                None => write!(f, "signal:{number}"),
            },
            Self::Exec(path) => write!(f, "exec:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        for (text, is) in [
            ("none", OnRotate::Nobody),
            ("signal:HUP", OnRotate::Signal(1)),
            ("signal:34", OnRotate::Signal(34)),
            ("exec:/usr/bin/reload it", OnRotate::Exec("/usr/bin/reload it".into())),
        ] {
            assert_eq!(text.parse(), Ok(is.clone()));
            assert_eq!(is.to_string(), text);
        }
        assert_eq!("signal:SIGUSR1".parse(), Ok(OnRotate::Signal(10)));
        for bad in [
            "",
            "signal:9",
            "signal:19",
            "signal",
            "signal:",
            "signal:0",
            "signal:65",
            "signal:KILLER",
            "exec:",
            "exec:x",
            "exec:/\0",
            "nobody",
        ] {
            assert!(bad.parse::<OnRotate>().is_err(), "{bad:?}");
        }
    }
}
