//! The formats of artifacts.

use laredo_archive::ArtifactFormat;

use super::super::declaration::{ConfigKey, config_block, custom};
use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::one_of;
use super::super::reader::ConfigReader;
use super::super::schema::{SettingKind, TEXT};
use super::super::secret::mask_text;
use super::super::suggestions::nearest;
use super::super::write::{list, text};

config_block! {
    /// The formats in which artifacts are written. Each artifact has one object for each format.
    /// Both lists have at least one format, and none twice.
    pub struct FormatsConfig {
        /// The formats of a base, each an object of its own: `jsonl` or `protobuf`; ours:
        /// `jsonl.zst` and `protobuf.zst`. A change of `formats` begins an epoch.
        pub snapshot: Vec<ArtifactFormat> = formats("snapshot"),
        /// The formats of a diff.
        pub diff: Vec<ArtifactFormat> = formats("diff"),
    }
}

const fn formats(name: &'static str) -> ConfigKey<Vec<ArtifactFormat>> {
    custom(
        name,
        SettingKind::List(&TEXT),
        || vec!["jsonl".parse().expect("jsonl is a format")],
        |key, fields, reader| fields.has(key.name()).then(|| read(fields, key.name(), reader)),
        |formats, key, out| out.put(key.name(), list(formats.iter().map(|format| text(format.id())))),
    )
}

fn read(fields: &BlockFields, key: &str, reader: &mut ConfigReader) -> Vec<ArtifactFormat> {
    if fields.item_count(key) == 0 {
        reader.report(fields, key, "there is no format; name one, or leave the key out for jsonl");
    }
    let mut formats: Vec<ArtifactFormat> = Vec::new();
    for (id, path, place) in fields.texts(key) {
        match id.parse() {
            Ok(format) if formats.contains(&format) => {
                reader.problems.push(ConfigProblem::new(place, &path, format!("names {format} twice")));
            }
            Ok(format) => formats.push(format),
            Err(_) => reader.problems.push(unknown(&id, ConfigProblem::new(place, &path, ""))),
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
