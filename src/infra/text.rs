//! Text of others on its way to a terminal or a record: a guest, a VMM, an archive may have written anything.

/// Could this character move, colour, hide or reorder what stands around it?
pub fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
        || matches!(c, '\u{e0000}'..='\u{e007f}')
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

/// An error, and what led to it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // A string takes whatever is written.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes of as many hex digits, in either case; `None` where a text is anything else.
pub fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    unhex_into(digits, &mut bytes)?;
    Some(bytes)
}

/// The same into a buffer of the caller's, who may have to wipe it: nothing is kept elsewhere. After a `None` it may hold anything.
pub fn unhex_into(digits: &str, bytes: &mut [u8]) -> Option<()> {
    if digits.len() != 2 * bytes.len() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(())
}

/// The last lines of a log, each after a line break; empty where there are none.
pub fn last_lines(bytes: &[u8]) -> String {
    const MOST: usize = 5;
    const LONGEST: usize = 2048;
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(MOST)..];
    last.iter().map(|line| format!("\n  {}", printable(line, LONGEST))).collect()
}

/// JSON in which no character is dangerous: what JSON itself leaves alone is escaped as JSON does it, and means the same.
pub fn json(json: String) -> String {
    // The line breaks between its parts are no content.
    let left_alone = |c: char| is_dangerous(c) && c != '\n';
    if !json.contains(left_alone) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match left_alone(c) {
            true => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }),
            false => escaped.push(c),
        }
    }
    escaped
}

/// A guest's bytes for a terminal: everything but printable text, line breaks and tabs is escaped; returns of the carriage,
/// which stand before line breaks most of the time, are left out.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' | '\t' => text.push(c),
                '\r' => {}
                c if is_dangerous(c) => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// [`escape`] for bytes that come in pieces: a character that is cut in two is one.
#[derive(Debug, Default)]
pub struct Escaper {
    open: Vec<u8>,
}

impl Escaper {
    /// What the next piece is on a terminal. Beginnings of characters are held until they are whole.
    pub fn escape(&mut self, bytes: &[u8]) -> String {
        self.open.extend_from_slice(bytes);
        let end = whole_up_to(&self.open);
        let text = escape(&self.open[..end]);
        self.open.drain(..end);
        text
    }

    /// What is held, where nothing comes any more.
    pub fn finish(&mut self) -> String {
        escape(&std::mem::take(&mut self.open))
    }
}

/// Where a last character begins that is not whole; the length where there is none.
fn whole_up_to(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last();
    let rest = last.map_or(&[][..], |chunk| chunk.invalid());
    match str::from_utf8(rest) {
        Err(error) if error.error_len().is_none() => bytes.len() - rest.len(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn nothing_that_is_escaped_controls_a_terminal(bytes: Vec<u8>) {
            let controls = |c: char| is_dangerous(c) && !matches!(c, '\n' | '\t');
            assert!(!escape(&bytes).contains(controls));
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let json = json(serde_json::to_string(&text).unwrap());
            assert!(!json.contains(is_dangerous));
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn json_is_escaped_once_and_only_as_json_does_it() {
        let text = "a\u{1b}\u{7f}\u{9b}\u{202e}\u{feff}\n\u{1f600}";
        let pretty = serde_json::to_string_pretty(&serde_json::json!({ "a": text })).unwrap();
        let json = json(pretty);
        assert_eq!(json, "{\n  \"a\": \"a\\u001b\\u007f\\u009b\\u202e\\ufeff\\n\u{1f600}\"\n}");
    }

    #[test]
    fn what_a_guest_prints_cannot_talk_to_the_terminal() {
        assert_eq!(escape(b"plain\ttext\r\n"), "plain\ttext\n");
        assert_eq!(escape(b"\x1b[2J\x07"), "\\u{1b}[2J\\u{7}");
        assert_eq!(escape(b"\xff\x9b"), "\\xff\\x9b");
        assert_eq!(escape("ä\u{202e}".as_bytes()), "ä\\u{202e}");
        assert_eq!(escape("\u{9b}".as_bytes()), "\\u{9b}");
    }

    #[test]
    fn the_last_lines_are_those_with_something_in_them() {
        assert_eq!(last_lines(b"1\n2\n\n3\n4\n \n5\x1b\n6\r\n"), "\n  2\n  3\n  4\n  5\\u{1b}\n  6");
        assert_eq!(last_lines(b"\n\n"), "");
        assert!(last_lines(&[b'x'; 9_000]).len() < 3_000);
    }

    #[test]
    fn nothing_of_it_talks_to_a_terminal() {
        assert_eq!(printable("a\x1b[2J\n\u{202e}b", 100), "a\\u{1b}[2J\\u{a}\\u{202e}b");
        assert_eq!(printable("abc", 2), "ab…");
    }
}
