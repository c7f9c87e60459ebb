//! Writing of snapshots from immutable data.

use std::io::{BufWriter, IntoInnerError};
use std::sync::Arc;

use super::description::SnapshotDescription;
use super::folder::{newest_first, remove_file};
use super::{SnapshotError, SnapshotFolder, SnapshotFormat, SnapshotInfo, jsonl, native};
use crate::base::{self, BaseWriter};
use crate::durable::DurablePosition;
use crate::journal::{BaseMergeInput, Journal};
use crate::store::{JournalManifest, io_error};

/// The number of bytes written at once.
const BUFFER_BYTES: usize = 1 << 20;

impl SnapshotFolder {
    /// Writes a snapshot, unless the newest one has the same entries and position.
    pub(super) fn write_if_moved(&self, journal: &Journal) -> Result<(), SnapshotError> {
        let head = journal.head();
        let id = journal.instance().snapshot_id(head.sequence);
        let is_known = self.newest().is_some_and(|newest| newest.id == id && newest.position == head.position);
        if is_known { Ok(()) } else { self.write(journal, None).map(drop) }
    }

    /// Writes a snapshot of everything that is visible.
    pub(super) fn write(
        &self,
        journal: &Journal,
        user_meta: Option<serde_json::Value>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let written = self.write_now(journal, user_meta);
        match &written {
            Ok(info) => tracing::info!(
                table = %self.table, id = info.id, position = %info.position, rows = info.rows, bytes = info.size_bytes,
                "snapshot written"
            ),
            Err(SnapshotError::Forked) => {}
            Err(error) => self.failed(error),
        }
        written
    }

    /// Notes the reason why a snapshot could not be written.
    pub(super) fn failed(&self, error: &SnapshotError) {
        self.status.send_modify(|status| {
            status.errors += 1;
            status.error = Some(error.to_string());
        });
    }

    fn write_now(
        &self,
        journal: &Journal,
        user_meta: Option<serde_json::Value>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        // The order matters: a fork that is noted later is detected after the file was written.
        let forks = self.forks.lock().count();
        if journal.is_parted() {
            return Err(SnapshotError::Forked);
        }
        let merging = journal.base_and_after();
        let unchanged_since = merging.unchanged_since();
        let BaseMergeInput { base, after, head, definition, .. } = merging;
        let base = match after.is_empty() {
            true => base,
            false => {
                let writer = BaseWriter::new(&self.temporary)?;
                Arc::new(base::merge(&base, &after, head, &self.temporary, writer)?)
            }
        };
        let id = journal.instance().snapshot_id(head.sequence);
        let earlier = self.known.lock().iter().find(|info| info.id == id).cloned();
        let user_meta = user_meta.or_else(|| earlier.as_ref()?.user_meta.clone());
        let taken_at = self.clock.as_ref()();
        let manifest = JournalManifest::new(journal.instance(), &self.table, &self.source.lock(), forks);
        let about = SnapshotDescription::new(manifest, taken_at, unchanged_since, user_meta.clone());
        let format = self.options.format;
        let name = format!("{:016X}.{id}.{}", head.position.0, format.name());
        let path = self.folder.path().join(&name);
        let file = self.folder.temporary().map_err(io_error("making a file beside", &path))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        match format {
            SnapshotFormat::Native => native::write(&base, head, &about, &definition, &mut out)?,
            SnapshotFormat::Jsonl => jsonl::write(&base, head, &about, &definition, &mut out)?,
        }
        let file = out.into_inner().map_err(IntoInnerError::into_error)?;
        let size_bytes = file.as_file().metadata()?.len();
        let (_, synced) = self.folder.persist_file(file, &name)?;
        let info = SnapshotInfo {
            id,
            sequence: head.sequence,
            position: head.position,
            committed_at: head.committed_at,
            mark: head.mark,
            taken_at,
            rows: base.rows(),
            size_bytes,
            format,
            user_meta,
            path,
        };
        {
            let (now, mut known) = (self.forks.lock(), self.known.lock());
            if now.count() != forks {
                return Err(SnapshotError::Forked);
            }
            drop(now);
            known.retain(|other| other.id != info.id);
            known.push(info.clone());
            newest_first(&mut known);
        }
        self.status.send_modify(|status| {
            status.durable = DurablePosition::kept(&synced, head.position);
            status.writes += 1;
            status.error = None;
        });
        // The new snapshot is valid even if old ones cannot be removed.
        if let Err(error) = self.make_room(earlier.as_ref().filter(|earlier| earlier.path != info.path)) {
            self.status.send_modify(|status| status.errors += 1);
            tracing::warn!(table = %self.table, %error, "an old snapshot cannot be removed");
        }
        Ok(info)
    }

    fn make_room(&self, replaced: Option<&SnapshotInfo>) -> Result<(), SnapshotError> {
        replaced.map_or(Ok(()), |replaced| remove_file(&replaced.path))?;
        self.remove_beyond(self.options.keep_count, self.options.age_max).map(drop)
    }
}
