//! Secrets: values that are never printed, and the masking of text that may contain a secret.

use std::fmt;
use std::sync::LazyLock;

use laredo_postgres::ConnectionOptions;
use regex::Regex;

/// The text that is printed instead of a secret.
pub const MASK: &str = "****";

/// A string that no message, log or dump shows. Its `Debug` output is a mask, and it has no
/// `Display`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConfigSecret(String);

impl ConfigSecret {
    /// Wraps a value so that it is not printed.
    pub fn new(value: impl Into<String>) -> Self {
        ConfigSecret(value.into())
    }

    /// Returns the value, for the code that uses it. The result must not be logged.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the value as a connection string whose passwords are masked, in both of libpq's
    /// forms: `postgresql://user:****@host/db` and `host=db user=u password=****`. The passwords
    /// are where the parser of connection strings finds them. Any other text is masked as a whole.
    pub fn masked_connection(&self) -> String {
        ConnectionOptions::masked(&self.0, MASK).unwrap_or_else(|| MASK.to_owned())
    }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a literal that the tests compile")
}

impl fmt::Debug for ConfigSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({MASK})")
    }
}

/// Masks possible secrets in a text of a configuration: the values of keys with a secret's name,
/// the passwords and parameters of URLs, and `password=` anywhere. Each character becomes a `*`, so
/// that columns stay.
///
/// The function works on the text, because a file with a syntax error has no syntax tree. It also
/// finds a connection string under a mistyped key. In doubt, it masks.
pub(crate) fn mask_text(text: &str) -> String {
    static KEY: LazyLock<Regex> = LazyLock::new(|| regex(r#"([A-Za-z_][A-Za-z0-9_-]*)"?\s*(?:\+?=|:)"#));
    static URL: LazyLock<Regex> = LazyLock::new(|| regex(r#"://[^\s"':@/]*:([^\s"']+)@"#));
    static PARAMETERS: LazyLock<Regex> = LazyLock::new(|| regex(r#"://[^\s"'?]*\?([^\s"']+)"#));

    let mut hidden = vec![false; text.len()];
    for found in URL.captures_iter(text).chain(PARAMETERS.captures_iter(text)) {
        if let Some(password) = found.get(1) {
            hidden[password.range()].fill(true);
        }
    }
    for found in KEY.captures_iter(text) {
        if let (Some(all), Some(key)) = (found.get(0), found.get(1))
            && is_secret_name(key.as_str())
        {
            hide_value(text, all.end(), &mut hidden);
        }
    }
    text.char_indices().map(|(i, c)| if hidden[i] && c != '\n' { '*' } else { c }).collect()
}

/// Returns true if a key's name, or a misspelling of it, suggests that its value is secret.
pub(super) fn is_secret_name(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    // A token may have been written where its hash belongs.
    ["passw", "secret", "token", "connection", "dsn", "sha256"].iter().any(|part| key.contains(part))
        || strsim::damerau_levenshtein(&key, "connection") <= 3
        || strsim::damerau_levenshtein(&key, "password") <= 2
        || strsim::damerau_levenshtein(&key, "token") <= 1
        || strsim::damerau_levenshtein(&key, "key") <= 1
}

/// Marks the value that begins at `start` as hidden, to its end. All strings and bare words of a
/// list or block are hidden. Names of substitutions stay visible.
fn hide_value(text: &str, start: usize, hidden: &mut [bool]) {
    let mut at = start;
    let mut depth = 0_usize;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let end = match c {
            '\n' | ',' | '}' | ']' if depth == 0 => return,
            _ if c.is_whitespace() || "[{]},".contains(c) => {
                match c {
                    '[' | '{' => depth += 1,
                    ']' | '}' => depth -= 1,
                    _ => {}
                }
                at += c.len_utf8();
                continue;
            }
            '$' if rest.starts_with("${") => {
                at += rest.find('}').map_or(rest.len(), |i| i + 1);
                continue;
            }
            '"' if rest.starts_with("\"\"\"") => rest[3..].find("\"\"\"").map_or(rest.len(), |i| i + 6),
            '"' | '\'' => quoted_end(rest, c),
            _ => c.len_utf8(),
        };
        hidden[at..at + end].fill(true);
        at += end;
    }
}

/// Returns the length of the quoted string that `rest` begins with, up to its closing quote or the
/// end of the line.
fn quoted_end(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            '\n' => return i,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return i + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests;
