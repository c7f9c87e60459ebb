//! The problems of a configuration, all reported at once, each with its place.

use std::fmt;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode, SourceSpan};

use super::sources::{ConfigExcerpt, ConfigTexts};
use super::tree::{ConfigPlace, KeyPath};

/// A problem: its place, the key, a message, and advice on how to fix it.
#[derive(Debug, Clone)]
pub(crate) struct ConfigProblem {
    pub(crate) place: ConfigPlace,
    pub(crate) path: KeyPath,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// Everything that is wrong with a configuration.
///
/// `Display` is one line for each problem, `file:line:column: path: message (help)`;
/// [`ConfigReport::render`] shows the lines of the files too. Secrets are masked in both.
#[derive(Debug, Clone)]
pub struct ConfigReport {
    sources: ConfigTexts,
    problems: Vec<ConfigProblem>,
}

impl ConfigReport {
    pub(crate) fn new(sources: ConfigTexts, problems: Vec<ConfigProblem>) -> Self {
        ConfigReport { sources, problems }
    }

    /// Returns the number of problems, which is never 0.
    pub fn problem_count(&self) -> usize {
        self.problems.len()
    }

    /// Formats the problems for a terminal, with the lines of the files around them.
    pub fn render(&self, color: bool) -> String {
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_wrap_lines(false);
        let mut out = String::new();
        for problem in &self.problems {
            // Writing to a string cannot fail. If a theme ever fails, the plain line still reports
            // the problem.
            if handler.render_report(&mut out, &ProblemDiagnostic::new(problem, &self.sources)).is_err() {
                out.push_str(&problem.line(&self.sources));
            }
            out.push('\n');
        }
        let count = self.problems.len();
        let s = if count == 1 { "" } else { "s" };
        out.push_str(&format!("The configuration has {count} error{s}; nothing was started.\n"));
        out
    }
}

impl fmt::Display for ConfigReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.problems.iter().map(|p| p.line(&self.sources)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigReport {}

impl ConfigProblem {
    pub(crate) fn new(place: &ConfigPlace, path: &KeyPath, message: impl Into<String>) -> Self {
        ConfigProblem { place: place.clone(), path: path.clone(), message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Formats the problem as one line.
    fn line(&self, sources: &ConfigTexts) -> String {
        let mut line = sources.name(&self.place);
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&self.headline());
        if let Some(help) = &self.help {
            line.push_str(&format!(" ({help})"));
        }
        line
    }

    /// Returns the path and the message as one text.
    fn headline(&self) -> String {
        let path = self.path.to_string();
        if path.is_empty() { self.message.clone() } else { format!("{path}: {}", self.message) }
    }
}

/// A problem in the form that miette displays.
#[derive(Debug)]
struct ProblemDiagnostic {
    headline: String,
    help: Option<String>,
    excerpt: Option<(ConfigExcerpt, SourceSpan)>,
}

impl ProblemDiagnostic {
    fn new(problem: &ConfigProblem, sources: &ConfigTexts) -> Self {
        let excerpt = sources.excerpt(&problem.place);
        let place = sources.name(&problem.place);
        ProblemDiagnostic {
            headline: if excerpt.is_some() || place.is_empty() {
                problem.headline()
            } else {
                format!("{place}: {}", problem.headline())
            },
            help: problem.help.clone(),
            excerpt,
        }
    }
}

impl fmt::Display for ProblemDiagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline)
    }
}

impl std::error::Error for ProblemDiagnostic {}

impl Diagnostic for ProblemDiagnostic {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.excerpt.as_ref().map(|(e, _)| e as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (_, span) = self.excerpt.as_ref()?;
        let label = LabeledSpan::new_primary_with_span(Some("here".to_owned()), *span);
        Some(Box::new(std::iter::once(label)))
    }
}

#[cfg(test)]
mod tests;
