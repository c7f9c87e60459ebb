//! Whether an archive is whole.

use laredo_core::TableState;

use super::apply::fill;
use super::object::{Entries, read};
use super::{Archive, ReadError, ReadProgress};
use crate::format::FormatError;
use crate::manifest::{Artifact, Kind};

/// Something that is wrong with an archive.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Damage {
    /// Which artifact it is, from 0.
    pub artifact: usize,
    /// What is wrong.
    pub error: ReadError,
}

impl Archive {
    /// Reads every object to its end and compares it with the manifest, whose own rules were checked when it was opened. What is wrong
    /// comes as it is found; nothing is where the archive is whole.
    pub async fn verify(&self, progress: &ReadProgress, mut found: impl FnMut(Damage)) {
        for (number, artifact) in self.manifest.artifacts.iter().enumerate() {
            let mut damage = |error| found(Damage { artifact: number, error });
            if let Err(error) = self.format_of(artifact) {
                damage(error);
            }
            for format in artifact.known_formats() {
                let schema = match self.schema(std::slice::from_ref(artifact)).await {
                    Ok(schema) => schema,
                    Err(error) => {
                        damage(error);
                        break;
                    }
                };
                let (kind, like) = (artifact.kind, schema.clone());
                let all = move |entries: &mut Entries<'_>| match kind {
                    // A schema without indexes cannot lack an index's column.
                    Kind::Snapshot => {
                        let table = TableState::new(like, &[], 0).expect("there are no indexes");
                        Ok(((), fill(table, entries)?.1))
                    }
                    Kind::Diff => Ok(((), counted(entries)?)),
                };
                if let Err(error) = read(self, artifact, format, schema, progress, all).await {
                    damage(error);
                }
            }
        }
    }

    /// Bytes that [`Archive::verify`] reads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let of = |artifact: &Artifact| artifact.formats.values().map(|stored| stored.size_bytes).sum::<u64>();
        self.manifest.artifacts.iter().map(of).sum()
    }
}

fn counted(entries: &mut Entries<'_>) -> Result<u64, FormatError> {
    let mut count = 0;
    while entries.change()?.is_some() {
        count += 1;
    }
    Ok(count)
}
