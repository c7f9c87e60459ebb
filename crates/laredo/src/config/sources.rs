//! The texts that a configuration was read from, for errors to quote.

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

use super::secret::mask_text;
use super::tree::ConfigPlace;

/// The maximum length of a line that is shown. Terminals have no room for longer ones, and miette
/// does not count that far.
const LINE_BYTES_MAX: usize = 1000;

/// The texts that a configuration was read from, already masked. Code that uses them cannot print a
/// secret.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConfigTexts(Vec<ConfigText>);

#[derive(Debug, Clone)]
struct ConfigText {
    name: String,
    masked: String,
}

impl ConfigTexts {
    /// Adds a text and returns its index, for `ConfigPlace::File`.
    pub(crate) fn add(&mut self, name: String, text: &str) -> usize {
        self.0.push(ConfigText { name, masked: mask_text(text) });
        self.0.len() - 1
    }

    /// Returns true if the masked line differs from the original one, which means that it contains
    /// a secret.
    pub(crate) fn hides_on_line(&self, source: usize, line: usize, text: &str) -> bool {
        let nth = |text: &str| text.lines().nth(line.saturating_sub(1)).map(str::to_owned);
        self.0.get(source).and_then(|s| nth(&s.masked)) != nth(text)
    }

    /// Returns the text of the first required substitution at or after a place, on the same line.
    pub(crate) fn substitution_at(&self, place: &ConfigPlace) -> Option<&str> {
        let ConfigPlace::File { source, line, column } = place else {
            return None;
        };
        let text = &self.0.get(*source)?.masked;
        let rest = &text[span(text, *line, *column).offset()..];
        let rest = rest.split('\n').next()?;
        rest.match_indices("${").find_map(|(start, _)| {
            let end = rest[start..].find('}')?;
            let found = &rest[start..=start + end];
            (!found.starts_with("${?")).then_some(found)
        })
    }

    /// Returns the place of a substitution. The library reports its line and column, but not its
    /// file.
    pub(crate) fn substitution_place(&self, line: usize, column: usize) -> ConfigPlace {
        let found = self.0.iter().position(|source| {
            let text = &source.masked;
            line > 0 && text[span(text, line, column).offset()..].starts_with("${")
        });
        found.map_or(ConfigPlace::Nowhere, |source| ConfigPlace::File { source, line, column })
    }

    /// Corrects the place of a bracket, which the library may report one column past it.
    pub(crate) fn bracket(&self, place: ConfigPlace, bracket: char) -> ConfigPlace {
        match place {
            ConfigPlace::File { source, line, column } if column > 1 => {
                let text = self.0.get(source).map_or("", |s| s.masked.as_str());
                let before = span(text, line, column - 1).offset();
                let column = if text[before..].starts_with(bracket) { column - 1 } else { column };
                ConfigPlace::File { source, line, column }
            }
            place => place,
        }
    }

    /// Returns the text that contains a place, and the span of the word there. Returns `None` for a
    /// place that is not in a file, or if a line is too long to show.
    pub(crate) fn excerpt(&self, place: &ConfigPlace) -> Option<(ConfigExcerpt, SourceSpan)> {
        let ConfigPlace::File { source, line, column } = place else {
            return None;
        };
        let source = self.0.get(*source)?;
        let around = source.masked.lines().skip(line.saturating_sub(2)).take(3);
        let long = around.map(str::len).any(|length| length > LINE_BYTES_MAX);
        (!long).then(|| (ConfigExcerpt(source.clone()), span(&source.masked, *line, *column)))
    }

    /// Describes a place: `file:line:column`, or the variable or argument that set the key.
    pub(crate) fn name(&self, place: &ConfigPlace) -> String {
        match place {
            ConfigPlace::File { source, line, column } => {
                let name = self.0.get(*source).map_or("", |s| s.name.as_str());
                format!("{name}:{line}:{column}")
            }
            ConfigPlace::Variable(name) => format!("environment variable {name}"),
            ConfigPlace::Argument(name) => name.clone(),
            ConfigPlace::Nowhere => String::new(),
        }
    }
}

/// A source whose columns are counted in characters, as in editors. Miette counts bytes.
#[derive(Debug)]
pub(crate) struct ConfigExcerpt(ConfigText);

impl SourceCode for ConfigExcerpt {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let contents = self.0.masked.read_span(span, before, after)?;
        let start = contents.span().offset();
        let line_start = self.0.masked[..start].rfind('\n').map_or(0, |i| i + 1);
        Ok(Box::new(MietteSpanContents::new_named(
            self.0.name.clone(),
            contents.data(),
            *contents.span(),
            contents.line(),
            self.0.masked[line_start..start].chars().count(),
            contents.line_count(),
        )))
    }
}

/// Returns the byte span of the word at a line and column. Both count from 1, and the column counts
/// characters.
fn span(text: &str, line: usize, column: usize) -> SourceSpan {
    let line_start = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum::<usize>();
    let rest = text[line_start..].split('\n').next().unwrap_or_default();
    let offset = rest.char_indices().nth(column.saturating_sub(1)).map_or(rest.len(), |(i, _)| i);
    let word = &rest[offset..];
    let length = match word.chars().next() {
        Some('"') => word[1..].find('"').map_or(word.len(), |i| i + 2),
        Some(first) => word
            .char_indices()
            .skip(1)
            .find(|(_, c)| c.is_whitespace() || "=:,{}[]#\"".contains(*c))
            .map_or(word.len(), |(i, _)| i.max(first.len_utf8())),
        None => 0,
    };
    (line_start + offset, length).into()
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn a_place_past_the_end_of_the_text_is_no_panic() {
        for (line, column) in [(0, 0), (1, 99), (99, 1), (2, 1)] {
            span("abc\n", line, column);
            span("", line, column);
        }
    }
}
