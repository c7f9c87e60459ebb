//! Text from elsewhere, such as a table's name, on a terminal or in a log.

use std::io::{self, Write};

/// Escapes control characters, so that the text stays on one line and cannot control the terminal.
pub(crate) fn printable(text: &str) -> String {
    match text.contains(char::is_control) {
        false => text.to_owned(),
        true => text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect(),
    }
}

/// Escapes control characters other than the ends of lines, in the form that JSON has for them.
/// JSON itself leaves some unescaped: DEL, and those from U+0080 on.
pub(crate) fn printable_lines(text: &str) -> String {
    let is_other = |c: char| c.is_control() && c != '\n';
    match text.contains(is_other) {
        false => text.to_owned(),
        true => {
            let escape = |c: char| if is_other(c) { format!("\\u{:04x}", u32::from(c)) } else { c.into() };
            text.chars().map(escape).collect()
        }
    }
}

/// An output of UTF-8 that escapes the characters which [`printable_lines`] escapes, except tabs.
pub(crate) struct PrintableOutput<W> {
    out: W,
    /// True if the last byte was the first one of a character from U+0080 to U+00BF. It was not
    /// written yet.
    is_in_character: bool,
}

/// The first byte of the characters from U+0080 to U+00BF, of which some are control characters.
const LEAD: u8 = 0xc2;

impl<W> PrintableOutput<W> {
    pub(crate) fn new(out: W) -> PrintableOutput<W> {
        PrintableOutput { out, is_in_character: false }
    }
}

impl<W: Write> Write for PrintableOutput<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut escaped = Vec::with_capacity(bytes.len());
        for byte in bytes {
            let is_second = std::mem::take(&mut self.is_in_character);
            match byte {
                0x80..=0x9f if is_second => escaped.extend(format!("\\u{byte:04x}").bytes()),
                byte => {
                    escaped.extend(is_second.then_some(LEAD));
                    match byte {
                        &LEAD => self.is_in_character = true,
                        b'\n' | b'\t' => escaped.push(*byte),
                        byte if byte.is_ascii_control() => escaped.extend(format!("\\u{byte:04x}").bytes()),
                        byte => escaped.push(*byte),
                    }
                }
            }
        }
        self.out.write_all(&escaped).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_escapes_across_its_writes() {
        let text = "a\x1b[2J\tb\u{9b}c\u{a3}é\x7f\r\n";
        for size in 1..text.len() {
            let mut out = PrintableOutput::new(Vec::new());
            text.as_bytes().chunks(size).for_each(|chunk| out.write_all(chunk).unwrap());
            let shown = String::from_utf8(out.out).unwrap();
            assert_eq!(shown, "a\\u001b[2J\tb\\u009bc\u{a3}é\\u007f\\u000d\n", "{size}");
        }
    }

    #[test]
    fn no_text_controls_the_terminal() {
        assert_eq!(printable("a\x1b[31m\nb\u{9b}é"), "a\\u{1b}[31m\\nb\\u{9b}é");
        assert_eq!(printable_lines("a\x1b[31m\nb\u{9b}é\r"), "a\\u001b[31m\nb\\u009bé\\u000d");
        let json = serde_json::json!({ "a": "\x1b\u{9d}\x7f\n" });
        let text = printable_lines(&json.to_string());
        assert!(!text.contains(char::is_control), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), json);
    }
}
