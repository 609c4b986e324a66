//! Whose are the users that VMMs run as? They must be nobody's: who has the same one may end a VMM, and read what it reads. Only the
//! machine's own files are looked at, no directory of users.

use std::{fmt, fs, ops::RangeInclusive};

use crate::infra::text::printable;

/// Files in which a line gives ids away, and in which of its fields, from 0: one id, or the first of many and their number.
const FILES: [(&str, usize, bool); 4] =
    [("/etc/passwd", 2, false), ("/etc/group", 2, false), ("/etc/subuid", 1, true), ("/etc/subgid", 1, true)];

/// A line that gives ids to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    file: &'static str,
    line: String,
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} says {}", self.file, printable(&self.line, 100))
    }
}

/// The first line that gives one of these uids and gids to somebody.
pub fn given(ids: RangeInclusive<u32>) -> Option<Given> {
    FILES.into_iter().find_map(|(file, field, is_range)| {
        let text = String::from_utf8_lossy(&fs::read(file).ok()?).into_owned();
        let line = text.lines().find(|line| gives(line, field, is_range, &ids))?;
        Some(Given { file, line: line.to_owned() })
    })
}

fn gives(line: &str, field: usize, is_range: bool, ids: &RangeInclusive<u32>) -> bool {
    let mut numbers = line.split(':').skip(field).map(|field| field.trim().parse::<u64>().ok());
    let Some(Some(first)) = numbers.next() else { return false };
    let count = if is_range { numbers.next().flatten().unwrap_or(0) } else { 1 };
    count > 0 && first <= u64::from(*ids.end()) && first.saturating_add(count - 1) >= u64::from(*ids.start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_by_a_line_of_its_own_or_in_a_range() {
        let ids = 1000..=1999;
        for (line, is_range, is_given) in [
            ("a:x:999:1500::/:", false, false),
            ("a:x:1000:0::/:", false, true),
            ("a:x:1999:0::/:", false, true),
            ("a:x:2000:0::/:", false, false),
            ("a:x:-1:0::/:", false, false),
            ("nonsense", false, false),
            ("a:1:999", true, false),
            ("a:1:1000", true, true),
            ("a:1999:1", true, true),
            ("a:1999:0", true, false),
            ("a:1:18446744073709551615", true, true),
            ("a:18446744073709551615:18446744073709551615", true, false),
        ] {
            assert_eq!(gives(line, if is_range { 1 } else { 2 }, is_range, &ids), is_given, "{line}");
        }
    }
}
