//! The manifest of a folder, a readable text that says which journal the folder belongs to.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use laredo_core::{Lsn, Sequence, SourceIdentity, TableName};
use serde::{Deserialize, Serialize};

use super::append::JournalAppender;
use super::error::{StoreError, io_error};
use super::forks::ForkLog;
use super::format::VERSION;
use super::journal_folder::JournalFolder;
use crate::head::{EarlierInstance, InstanceId};
use crate::source::SourceServer;

pub(super) const NAME: &str = "manifest.json";

/// The description of the journal in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalManifest {
    /// The format of all files in the folder.
    pub(crate) format: u32,
    instance: String,
    schema: String,
    table: String,
    system_identifier: String,
    database: String,
    timeline: u32,
    /// The start time of the PostgreSQL server at the last write; empty if unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    server_started: String,
    /// The number of forks that were noted when the journal began.
    #[serde(default)]
    forks: u64,
    /// The name of the journal in the run that opened it last. If empty, the name is `instance`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    opened_as: String,
    /// The names of the journal in earlier runs, oldest first, and the last entry that each shares
    /// with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<ManifestInstance>,
    /// The first sequence of the journal file that the last run began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun_at: Option<u64>,
}

/// The name of a journal in one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestInstance {
    instance: String,
    last: u64,
}

/// The maximum number of earlier names that are remembered.
const EARLIER_MAX: usize = 64;

impl JournalManifest {
    pub(crate) fn new(instance: &InstanceId, table: &TableName, source: &SourceServer, forks: u64) -> JournalManifest {
        JournalManifest {
            format: VERSION,
            forks,
            opened_as: String::new(),
            earlier: Vec::new(),
            begun_at: None,
            instance: instance.0.clone(),
            schema: table.schema.clone(),
            table: table.table.clone(),
            system_identifier: source.identity.system_identifier.clone(),
            database: source.identity.database.clone(),
            timeline: source.identity.timeline,
            server_started: source.started.clone(),
        }
    }

    /// Reads the manifest of a folder. Returns `None` if there is none.
    pub(crate) fn read(store: &JournalFolder) -> Result<Option<JournalManifest>, StoreError> {
        let path = store.folder().path().join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        // The format is checked first: another one may have other keys.
        let damaged = |error: serde_json::Error| StoreError::damaged(&path, 0, error.to_string());
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        check_format(&value, &path)?;
        serde_json::from_value(value).map(Some).map_err(damaged)
    }

    /// Writes the manifest, and replaces an older one.
    pub(crate) fn write(&self, store: &JournalFolder) -> Result<(), StoreError> {
        let path = store.folder().path().join(NAME);
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from).map_err(io_error("writing", &path))?;
        let mut file = store.folder().temporary().map_err(io_error("creating a file next to", &path))?;
        file.write_all(&text).map_err(io_error("writing", &path))?;
        store.folder().persist_file(file, NAME).map(drop)
    }

    pub(crate) fn instance(&self) -> InstanceId {
        InstanceId(self.instance.clone())
    }

    /// Returns the number of forks that were noted when the journal began.
    pub(crate) fn forks(&self) -> u64 {
        self.forks
    }

    /// Renames a journal for the run that opens it.
    ///
    /// The earlier names stay valid up to the contents of the files now: `last` is the last entry,
    /// and nothing before `pruned` is kept.
    pub(crate) fn open_as(&mut self, instance: &InstanceId, source: &SourceServer, pruned: Sequence, last: Sequence) {
        let before = match self.opened_as.as_str() {
            "" => self.instance.clone(),
            name => name.to_owned(),
        };
        self.earlier.retain(|opening| opening.last >= pruned.0 && opening.instance != before);
        if before != instance.0 {
            self.earlier.push(ManifestInstance { instance: before, last: last.0 });
        }
        let surplus = self.earlier.len().saturating_sub(EARLIER_MAX);
        self.earlier.drain(..surplus);
        self.opened_as.clone_from(&instance.0);
        self.timeline = source.identity.timeline;
        self.server_started.clone_from(&source.started);
    }

    /// Returns the names that earlier runs had for the journal.
    pub(crate) fn earlier(&self) -> Vec<EarlierInstance> {
        let earlier = |opening: &ManifestInstance| EarlierInstance {
            id: InstanceId(opening.instance.clone()),
            last: Sequence(opening.last),
        };
        self.earlier.iter().map(earlier).collect()
    }

    /// Notes the first sequence of the file that a run begins with.
    pub(crate) fn begin_at(&mut self, first: Sequence) {
        self.begun_at = Some(first.0);
    }

    /// Returns the first sequence of the file that the last run began with.
    pub(crate) fn begun_at(&self) -> Option<Sequence> {
        self.begun_at.map(Sequence)
    }

    /// Returns true if the manifest was written during the current run of PostgreSQL, which implies
    /// the same history.
    pub(crate) fn is_of_server(&self, source: &SourceServer) -> bool {
        !self.server_started.is_empty() && self.server_started == source.started
    }

    /// Returns the timeline that the manifest was written on.
    pub(crate) fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Updates the timeline to the one that the database writes now.
    pub(crate) fn promote(&mut self, source: &SourceServer) {
        self.timeline = source.identity.timeline;
    }

    pub(crate) fn table(&self) -> TableName {
        TableName::new(&self.schema, &self.table)
    }

    /// Returns true if the manifest was written on the same database, even if that database's
    /// history has forked.
    pub(crate) fn is_of_database(&self, source: &SourceServer) -> bool {
        let SourceIdentity { system_identifier, database, .. } = &source.identity;
        (&self.system_identifier, &self.database) == (system_identifier, database)
    }

    /// Checks that contents up to `position` are part of the source's history.
    ///
    /// # Errors
    /// The reason if they are not.
    pub(crate) fn is_past_of(&self, source: &SourceServer, position: Lsn) -> Result<(), String> {
        if !self.is_of_database(source) {
            return Err(format!(
                "it is of database {} of cluster {}, and this is {} of {}",
                self.database, self.system_identifier, source.identity.database, source.identity.system_identifier
            ));
        }
        if self.timeline != source.identity.timeline {
            return match source.identity.left_at(self.timeline) {
                Some(at) if position <= at => Ok(()),
                Some(at) => Err(format!(
                    "it ends at {position}, and the database left that timeline ({}) at {at}: it was promoted or restored",
                    self.timeline
                )),
                None => Err(format!("timeline {} is not part of the database's history", self.timeline)),
            };
        }
        if source.written < position {
            return Err(format!(
                "it ends at {position}, and the database's WAL ends at {}: it was restored to an earlier state",
                source.written
            ));
        }
        Ok(())
    }
}

/// Checks that this version knows the format that a manifest names.
///
/// # Errors
/// When the format is another one.
pub(crate) fn check_format(manifest: &serde_json::Value, path: &Path) -> Result<(), StoreError> {
    match manifest.get("format").and_then(serde_json::Value::as_u64) {
        Some(found) if found != u64::from(VERSION) => {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            Err(StoreError::Version { path: path.to_owned(), found })
        }
        _ => Ok(()),
    }
}

/// Prepares a folder for a new journal: removes the files of the old journal, and writes a
/// manifest.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn claim(
    store: &JournalFolder,
    instance: &InstanceId,
    table: &TableName,
    source: &SourceServer,
) -> Result<JournalManifest, StoreError> {
    let mut owner = store.owner();
    *owner = Some(instance.clone());
    store.remove_journal()?;
    let manifest = JournalManifest::new(instance, table, source, ForkLog::read(store.folder())?.count());
    manifest.write(store)?;
    Ok(manifest)
}

/// Notes the journal file that this run begins with, so that a later run notices if it is missing.
///
/// # Errors
/// When the manifest cannot be written.
pub(crate) fn note_beginning(
    store: &JournalFolder,
    mut manifest: JournalManifest,
    appender: &JournalAppender,
) -> Result<(), StoreError> {
    manifest.begin_at(appender.begun_at());
    manifest.write(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use laredo_core::TimelineSwitch;

    #[test]
    fn only_a_past_that_the_source_shares_is_gone_on_with() {
        let switch = |(timeline, end)| TimelineSwitch { timeline, position: Lsn(end) };
        let source = |timeline, written| SourceServer {
            identity: SourceIdentity {
                system_identifier: "s".to_owned(),
                database: "d".to_owned(),
                timeline,
                history: [(1, 100), (2, 200)].map(switch).into_iter().filter(|left| left.timeline < timeline).collect(),
            },
            written: Lsn(written),
            started: String::new(),
        };
        let kept = |timeline| {
            JournalManifest::new(&InstanceId("j".to_owned()), &TableName::new("public", "t"), &source(timeline, 0), 0)
        };
        let (mut elsewhere, mut other) = (source(1, 500), source(1, 500));
        elsewhere.identity.system_identifier = "t".to_owned();
        other.identity.database = "e".to_owned();
        let cases = [
            (kept(1), source(1, 500), 400, None),
            (kept(1), source(1, 399), 400, Some("WAL ends at 0/18F")),
            (kept(1), source(2, 500), 100, None),
            (kept(1), source(2, 500), 101, Some("left that timeline (1) at 0/64")),
            (kept(2), source(1, 500), 50, Some("timeline 2 is not part")),
            (kept(1), elsewhere, 50, Some("of cluster s, and this is d of t")),
            (kept(1), other, 50, Some("database d of cluster s")),
        ];
        for (kept, now, position, wrong) in cases {
            let found = kept.is_past_of(&now, Lsn(position));
            match wrong {
                None => assert_eq!(found, Ok(())),
                Some(wrong) => assert!(found.clone().is_err_and(|why| why.contains(wrong)), "{found:?}"),
            }
        }
    }
}
