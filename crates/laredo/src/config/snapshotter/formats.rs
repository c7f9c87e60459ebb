//! The formats of artifacts.

use laredo_archive::ArtifactFormat;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::one_of;
use super::super::schema::{BlockSchema, KeySchema, SettingKind, TEXT};
use super::super::secret::mask_text;
use super::super::suggestions::nearest;
use super::super::write::{self, list, text};

/// The formats in which artifacts are written. Each artifact has one object for each format. Both
/// lists have at least one format, and none twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatsConfig {
    /// The formats of snapshots. Default jsonl.
    pub snapshot: Vec<ArtifactFormat>,
    /// The formats of diffs. Default jsonl.
    pub diff: Vec<ArtifactFormat>,
}

/// The schema of `formats`.
pub(super) static FORMATS: BlockSchema = BlockSchema {
    keys: &[KeySchema::new("snapshot", SettingKind::List(&TEXT)), KeySchema::new("diff", SettingKind::List(&TEXT))],
};

impl FormatsConfig {
    pub(super) fn read(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Self {
        FormatsConfig { snapshot: read(fields, "snapshot", problems), diff: read(fields, "diff", problems) }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        let ids = |formats: &[ArtifactFormat]| list(formats.iter().map(|format| text(format.id())));
        out.put("snapshot", ids(&self.snapshot));
        out.put("diff", ids(&self.diff));
    }
}

fn read(fields: &BlockFields, key: &str, problems: &mut Vec<ConfigProblem>) -> Vec<ArtifactFormat> {
    if !fields.has(key) {
        return vec!["jsonl".parse().expect("jsonl is a format")];
    }
    let path = fields.path.key(key);
    if fields.item_count(key) == 0 {
        let message = "there is no format; name one, or leave the key out for jsonl";
        problems.push(ConfigProblem::new(fields.place_of(key), &path, message));
    }
    let mut formats: Vec<ArtifactFormat> = Vec::new();
    for (id, path, place) in fields.texts_and_places(key) {
        match id.parse() {
            Ok(format) if formats.contains(&format) => {
                problems.push(ConfigProblem::new(place, &path, format!("names {format} twice")));
            }
            Ok(format) => formats.push(format),
            Err(_) => problems.push(unknown(&id, ConfigProblem::new(place, &path, ""))),
        }
    }
    formats
}

fn unknown(id: &str, problem: ConfigProblem) -> ConfigProblem {
    let ids = || ArtifactFormat::ALL.into_iter().map(ArtifactFormat::id);
    let message = if id == "parquet" {
        format!("parquet is not built yet; use {}", one_of(ids()))
    } else {
        format!("\"{}\" is not a format of this version; expected {}", mask_text(id), one_of(ids()))
    };
    let problem = ConfigProblem { message, ..problem };
    match nearest(id, ids()) {
        Some(near) => problem.help(format!("did you mean {near}?")),
        None => problem,
    }
}
