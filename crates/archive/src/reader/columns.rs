//! The columns of an archive's rows if the manifest does not name them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use laredo_core::{KeyColumns, Schema};

use super::object::{ObjectEntries, read_object};
use super::{Archive, ArchiveReadError, ReadProgress};
use crate::manifest::Artifact;

/// Returns a schema without columns.
pub(super) fn none() -> Arc<Schema> {
    Arc::new(Schema::new(Vec::new(), KeyColumns::new([]), BTreeMap::new()))
}

/// Adds the names of the fields of an artifact's rows.
pub(super) async fn add_names(
    archive: &Archive,
    artifact: &Artifact,
    mut names: BTreeSet<String>,
) -> Result<BTreeSet<String>, ArchiveReadError> {
    let (format, kind) = (archive.format_of(artifact)?, artifact.kind);
    let all = move |entries: &mut ObjectEntries<'_>| {
        let mut count = 0;
        while entries.names(kind, &mut names)? {
            count += 1;
        }
        Ok((names, count))
    };
    read_object(archive, artifact, format, none(), &ReadProgress::default(), all).await
}
