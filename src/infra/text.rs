//! Text of others on its way to a terminal or a record: a guest, a VMM, an archive may have written anything.

/// Could this character move, colour, hide or reorder what stands around it?
pub fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// One line of it, at most so many characters long.
pub fn printable(text: &str, most: usize) -> String {
    let mut escaped = String::new();
    for c in text.chars().take(most) {
        match is_dangerous(c) {
            true => escaped.extend(c.escape_unicode()),
            false => escaped.push(c),
        }
    }
    if text.chars().nth(most).is_some() {
        escaped.push('…');
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_talks_to_a_terminal() {
        assert_eq!(printable("a\x1b[2J\n\u{202e}b", 100), "a\\u{1b}[2J\\u{a}\\u{202e}b");
        assert_eq!(printable("abc", 2), "ab…");
    }
}
