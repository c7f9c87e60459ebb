//! The formats of artifacts.

use laredo_archive::Format;

use super::super::diagnostics::Problem;
use super::super::fields::Fields;
use super::super::leaf::one_of;
use super::super::nearest::nearest;
use super::super::schema::{Block, Key, Kind, TEXT};
use super::super::secret::mask_text;
use super::super::write::{self, list, text};

/// The formats in which artifacts are written. Each artifact has one object for each format. Both
/// lists have at least one format, and none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatsConfig {
    /// The formats of snapshots. Default jsonl.
    pub snapshot: Vec<Format>,
    /// The formats of diffs. Default jsonl.
    pub diff: Vec<Format>,
}

/// The schema of `formats`.
pub(super) static FORMATS: Block =
    Block { keys: &[Key::new("snapshot", Kind::List(&TEXT)), Key::new("diff", Kind::List(&TEXT))] };

impl FormatsConfig {
    pub(super) fn read(fields: &Fields, problems: &mut Vec<Problem>) -> Self {
        FormatsConfig { snapshot: read(fields, "snapshot", problems), diff: read(fields, "diff", problems) }
    }

    pub(super) fn write(&self, out: &mut write::Block) {
        let ids = |formats: &[Format]| list(formats.iter().map(|format| text(format.id())));
        out.put("snapshot", ids(&self.snapshot));
        out.put("diff", ids(&self.diff));
    }
}

fn read(fields: &Fields, key: &str, problems: &mut Vec<Problem>) -> Vec<Format> {
    if !fields.has(key) {
        return vec!["jsonl".parse().expect("jsonl is a format")];
    }
    let path = fields.path.key(key);
    if fields.item_count(key) == 0 {
        let message = "there is no format; name one, or leave the key out for jsonl";
        problems.push(Problem::new(fields.place_of(key), &path, message));
    }
    let mut formats: Vec<Format> = Vec::new();
    for (id, path, place) in fields.texts_and_places(key) {
        match id.parse() {
            Ok(format) if formats.contains(&format) => {
                problems.push(Problem::new(place, &path, format!("names {format} twice")));
            }
            Ok(format) => formats.push(format),
            Err(_) => problems.push(unknown(&id, Problem::new(place, &path, ""))),
        }
    }
    formats
}

fn unknown(id: &str, problem: Problem) -> Problem {
    let ids = || Format::ALL.into_iter().map(Format::id);
    let message = if id == "parquet" {
        format!("parquet is not built yet; use {}", one_of(ids()))
    } else {
        format!("\"{}\" is not a format of this version; expected {}", mask_text(id), one_of(ids()))
    };
    let problem = Problem { message, ..problem };
    match nearest(id, ids()) {
        Some(near) => problem.help(format!("did you mean {near}?")),
        None => problem,
    }
}
