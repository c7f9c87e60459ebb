//! The columns of an archive's rows if the manifest does not name them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use laredo_core::{KeyColumns, Schema};

use super::object::{ObjectEntries, read_object};
use super::{Archive, ArchiveReadError, ReadProgress};
use crate::manifest::{Artifact, ManifestViolation, untyped};

/// Returns a schema without columns.
pub(super) fn none() -> Arc<Schema> {
    Arc::new(Schema::new(Vec::new(), KeyColumns::new([]), BTreeMap::new()))
}

impl Archive {
    /// Returns true if the manifest names the columns of an epoch and their types.
    ///
    /// # Errors
    /// If the columns are not those of a table.
    pub fn has_columns(&self, epoch: u64) -> Result<bool, ArchiveReadError> {
        self.known_schema(epoch).map(|schema| schema.is_some())
    }

    /// Checks that the key of the newest rows is known.
    ///
    /// # Errors
    /// [`ArchiveReadError::NoColumns`] if the key has to be named.
    pub fn check_key(&self) -> Result<(), ArchiveReadError> {
        match self.key.is_empty() && self.known_schema(self.manifest.epoch)?.is_none() {
            true => Err(ArchiveReadError::NoColumns { at: self.manifest_uri() }),
            false => Ok(()),
        }
    }

    /// Returns the schema of an epoch's artifacts, of which there is at least one. If the manifest
    /// lacks it, it consists of the field names in the rows, which are read for this.
    pub(super) async fn schema(&self, artifacts: &[Artifact]) -> Result<Arc<Schema>, ArchiveReadError> {
        let epoch = artifacts.last().map_or(self.manifest.epoch, |last| last.epoch);
        if let Some(schema) = self.known_schema(epoch)? {
            return Ok(schema);
        }
        self.check_key()?;
        let mut names = BTreeSet::new();
        for artifact in artifacts {
            names = self.names(artifact, names).await?;
        }
        let others = names.into_iter().filter(|name| !self.key.contains(name));
        let schema = untyped(self.key.iter().cloned().chain(others), &self.key);
        Ok(Arc::new(schema.map_err(|error| self.broken(error))?))
    }

    pub(super) fn known_schema(&self, epoch: u64) -> Result<Option<Arc<Schema>>, ArchiveReadError> {
        let schema = self.manifest.schema(epoch, &self.key).map_err(|error| self.broken(error))?;
        Ok(schema.map(Arc::new))
    }

    async fn names(
        &self,
        artifact: &Artifact,
        mut names: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, ArchiveReadError> {
        let (format, kind) = (self.format_of(artifact)?, artifact.kind);
        let all = move |entries: &mut ObjectEntries<'_>| {
            let mut count = 0;
            while entries.names(kind, &mut names)? {
                count += 1;
            }
            Ok((names, count))
        };
        read_object(self, artifact, format, none(), &ReadProgress::default(), all).await
    }

    fn broken(&self, error: ManifestViolation) -> ArchiveReadError {
        ArchiveReadError::Columns { at: self.manifest_uri(), error }
    }
}
