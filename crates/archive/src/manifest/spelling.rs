//! The spelling of positions in a manifest.
//!
//! Objects are named after positions, so a name has the manifest's spelling. Other writers pad the
//! low half to eight digits (`0/0019F000`). A manifest that is written again keeps every spelling,
//! because otherwise its objects would no longer be found.

use laredo_core::Lsn;
use serde::Deserialize;
use serde_json::Value;

use super::{Artifact, ManifestError};

/// An artifact's positions as the manifest spells them, if PostgreSQL spells them differently.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PositionSpelling {
    from: Option<String>,
    to: Option<String>,
}

#[derive(Deserialize)]
struct ManifestText {
    artifacts: Option<Vec<ArtifactText>>,
}

#[derive(Deserialize)]
struct ArtifactText {
    #[serde(default)]
    from_position: Option<String>,
    #[serde(default)]
    to_position: Option<String>,
}

/// Records the spellings in the artifacts of a manifest that was parsed from `bytes`.
pub(super) fn note(noted: &mut [Artifact], bytes: &[u8]) -> Result<(), ManifestError> {
    let ManifestText { artifacts } = serde_json::from_slice(bytes)?;
    for (artifact, text) in noted.iter_mut().zip(artifacts.unwrap_or_default()) {
        artifact.spelling = PositionSpelling {
            from: other_spelling(artifact.from_position, text.from_position),
            to: other_spelling(artifact.to_position, text.to_position),
        };
    }
    Ok(())
}

fn other_spelling(position: Option<Lsn>, text: Option<String>) -> Option<String> {
    let position = position?.to_string();
    text.filter(|text| *text != position)
}

/// Restores the spellings in the JSON of a manifest.
pub(super) fn restore(spelled: &[Artifact], json: &mut Value) {
    let artifacts = json.get_mut("artifacts").and_then(Value::as_array_mut).into_iter().flatten();
    for (artifact, json) in spelled.iter().zip(artifacts) {
        let PositionSpelling { from, to } = &artifact.spelling;
        for (key, spelled) in [("from_position", from), ("to_position", to)] {
            if let Some(spelled) = spelled {
                json[key] = spelled.as_str().into();
            }
        }
    }
}

impl PositionSpelling {
    /// Returns true if PostgreSQL spells both positions in the same way.
    pub(super) fn is_usual(&self) -> bool {
        *self == PositionSpelling::default()
    }

    /// Returns the end of the artifact if another writer spells it differently from PostgreSQL.
    pub(super) fn other_end(&self) -> Option<&str> {
        self.to.as_deref()
    }

    /// Returns the spelling of an artifact's start as names have it.
    pub(super) fn spell_from(&self, position: Option<Lsn>) -> Option<String> {
        spelled(position, self.from.as_ref())
    }

    /// Returns the spelling of an artifact's end as names have it.
    pub(super) fn spell_to(&self, position: Option<Lsn>) -> Option<String> {
        spelled(position, self.to.as_ref())
    }
}

fn spelled(position: Option<Lsn>, text: Option<&String>) -> Option<String> {
    text.cloned().or_else(|| position.map(|position| position.to_string()))
}
