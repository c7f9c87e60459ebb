//! The reading of a file and of the files that it includes. The HOCON library merges and resolves
//! the values; errors need the places.
//!
//! The library's syntax tree (`hocon::parser`) is not part of its stable interface. All code that
//! uses it is here, in `marks` and in `syntax`.

use std::path::{Path, PathBuf};

use hocon::parser::AstNode;
use hocon::{Config, ParseOptions};

use super::diagnostics::ConfigProblem;
use super::key_places::{KeyPlaces, PlaceRecorder};
use super::sources::ConfigTexts;
use super::syntax::{HoconSyntaxError, parse, plain};
use super::tree::{ConfigPlace, KeyPath};

/// The maximum length of a chain of files that include one another.
const INCLUDE_DEPTH_MAX: usize = 16;
/// The maximum number of includes in one document, nested ones counted. A chain in which each file
/// has two includes doubles the number at every step.
const INCLUDES_MAX: usize = 100;

/// A file that is being read.
pub(crate) struct OpenConfigFile {
    pub(crate) source: usize,
    /// The folder that its includes are relative to; `None` for a text that is not a file.
    folder: Option<PathBuf>,
    depth: usize,
}

/// A reader of documents, which fills one set of marks and collects problems.
pub(crate) struct DocumentReader<'r> {
    pub(crate) sources: &'r mut ConfigTexts,
    pub(crate) problems: &'r mut Vec<ConfigProblem>,
    /// The number of files included so far; `None` after the limit was exceeded.
    included: Option<usize>,
}

impl<'r> DocumentReader<'r> {
    pub(crate) fn new(sources: &'r mut ConfigTexts, problems: &'r mut Vec<ConfigProblem>) -> DocumentReader<'r> {
        DocumentReader { sources, problems, included: Some(0) }
    }

    /// Reads a file's text. Returns `None` if it has errors, which are then in `problems`.
    pub(crate) fn document(&mut self, path: &Path, text: &str, marks: &mut KeyPlaces) -> Option<Config> {
        let problems_before = self.problems.len();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let folder = path.parent().map(Path::to_path_buf);
        let file = OpenConfigFile {
            source: self.sources.add(path.display().to_string(), text),
            folder: folder.clone(),
            depth: 0,
        };
        self.mark(text, &file, marks, &[]);
        if self.problems.len() > problems_before {
            return None;
        }
        let mut options = ParseOptions::defaults().with_resolve_substitutions(false);
        if let Some(folder) = folder {
            options = options.with_base_dir(folder);
        }
        match hocon::parse_string_with_options(text, options) {
            Ok(config) => Some(config),
            Err(error) => {
                self.syntax_error(&file, text, &error.into());
                None
            }
        }
    }

    /// Follows an include. Adds the keys of the included file to the block that includes it.
    pub(crate) fn include(&mut self, node: &AstNode, from: &OpenConfigFile, owner: &mut KeyPlaces, path: &[String]) {
        let AstNode::Include { path: name, required, is_file, pos } = node else {
            return;
        };
        let place = ConfigPlace::File { source: from.source, line: pos.line, column: pos.col };
        let Some(included) = self.included else { return };
        if from.depth >= INCLUDE_DEPTH_MAX || included >= INCLUDES_MAX {
            self.included = None;
            let message = match from.depth {
                INCLUDE_DEPTH_MAX.. => "files include one another in a circle, or too deep".to_owned(),
                _ => format!("more than {INCLUDES_MAX} files are included; does one include many that include it?"),
            };
            self.problem(&place, message);
            return;
        }
        self.included = Some(included + 1);
        // The library resolves `file(…)` against the working directory, and the plain form against
        // the including file. Without an extension it reads all three kinds of file, and the last
        // one wins.
        let base = match &from.folder {
            Some(folder) if !is_file => folder.clone(),
            _ => PathBuf::new(),
        };
        let whole = base.join(name);
        let candidates = if whole.extension().is_some() {
            vec![whole]
        } else {
            ["properties", "json", "conf"].map(|extension| whole.with_extension(extension)).to_vec()
        };
        let present: Vec<_> = candidates.into_iter().filter(|c| c.exists()).collect();
        if present.is_empty() && *required {
            self.problem(&place, format!("the included file \"{name}\" does not exist"));
        } else if present.is_empty() && *is_file {
            // HOCON would skip the file silently. The operator may have expected the path to be
            // relative to the including file.
            let help = format!("write include \"{name}\" for a path relative to this file");
            self.problems.push(
                ConfigProblem::new(
                    &place,
                    &KeyPath::default(),
                    format!("\"{name}\" does not exist in the working directory, where file(…) looks"),
                )
                .help(help),
            );
        }
        for candidate in present {
            self.included(&candidate, &place, from.depth + 1, owner, path);
        }
    }

    fn included(&mut self, file: &Path, place: &ConfigPlace, depth: usize, owner: &mut KeyPlaces, path: &[String]) {
        match std::fs::read_to_string(file) {
            // Properties files have a syntax of their own. Their keys have the place of the
            // include.
            Ok(_) if file.extension().is_some_and(|e| e == "properties") => {}
            Ok(text) => {
                let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                let opened = OpenConfigFile {
                    source: self.sources.add(file.display().to_string(), text),
                    folder: file.parent().map(Path::to_path_buf),
                    depth,
                };
                self.mark(text, &opened, owner, path);
            }
            Err(error) => self.problem(place, format!("cannot read the included file {}: {error}", file.display())),
        }
    }

    fn mark(&mut self, text: &str, file: &OpenConfigFile, owner: &mut KeyPlaces, path: &[String]) {
        match parse(text, path.len()) {
            Ok(AstNode::Object { fields, .. }) => PlaceRecorder { file, reader: self }.object(&fields, owner, path),
            Ok(_) => {
                let message = "the file is a list; a configuration is a block of keys";
                self.syntax_error(file, text, &HoconSyntaxError::new(message, 1, 1));
            }
            Err(error) => self.syntax_error(file, text, &error),
        }
    }

    fn syntax_error(&mut self, file: &OpenConfigFile, text: &str, error: &HoconSyntaxError) {
        let (line, column) = match error.line {
            0 => (text.lines().count().max(1), 1),
            line => (line, error.column.max(1)),
        };
        // The library's message may quote the text.
        let message = if self.sources.hides_on_line(file.source, line, text) {
            "syntax error in a line that holds a secret; is the value in quotes?".to_owned()
        } else {
            plain(&error.message)
        };
        let place = ConfigPlace::File { source: file.source, line, column };
        self.problem(&place, message);
    }

    fn problem(&mut self, place: &ConfigPlace, message: impl Into<String>) {
        self.problems.push(ConfigProblem::new(place, &KeyPath::default(), message));
    }
}
