use std::path::Path;

use laredo_core::{DurationHistogram, Lsn, Sequence};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::error::StoreError;
use super::folder::LockedFolder;
use crate::durable::{DurablePosition, FsyncProof};
use crate::head::InstanceId;

/// The folder of a table's journal.
#[derive(Debug)]
pub(crate) struct JournalFolder {
    folder: LockedFolder,
    /// The size at which a new journal file begins.
    pub(crate) file_bytes: u64,
    status: watch::Sender<StoreStatus>,
    /// The journal that the folder belongs to. Bases of other journals are not added.
    owner: Mutex<Option<InstanceId>>,
}

/// The progress of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// The position from which a restart would continue. Every commit up to it is on disk.
    pub durable: DurablePosition,
    /// The last entry up to that position.
    pub sequence: Sequence,
    /// The number of fsyncs of journal files that the writing thread has completed.
    pub syncs: u64,
    /// The durations of those fsyncs.
    pub sync_times: DurationHistogram,
    /// The size of the journal's files in bytes.
    pub journal_bytes: u64,
    /// The reason why nothing can be written for now. Writes are repeated until they succeed.
    pub stalled: Option<String>,
    /// The reason why writing has ended.
    pub failed: Option<String>,
}

pub(crate) const JOURNAL: &str = "journal";
pub(crate) const BASE: &str = "base";

/// The approximate number of files of a journal. Pruning frees disk space file by file, and each
/// file takes a descriptor.
const FILES: u64 = 16;
const FILE_BYTES_MIN: u64 = 4 << 20;
const FILE_BYTES_MAX: u64 = 256 << 20;

impl JournalFolder {
    /// Opens a folder for a journal of `bytes_max` bytes, and creates it if it is missing.
    ///
    /// # Errors
    /// When another server uses the folder, or when it cannot be written to.
    pub(crate) fn open(path: &Path, bytes_max: u64) -> Result<JournalFolder, StoreError> {
        let file_bytes = (bytes_max / FILES).clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let (folder, status, owner) = (LockedFolder::open(path)?, watch::Sender::default(), Mutex::default());
        Ok(JournalFolder { folder, file_bytes, status, owner })
    }

    /// Returns the journal that the folder belongs to. It cannot change while the guard is held.
    pub(crate) fn owner(&self) -> MutexGuard<'_, Option<InstanceId>> {
        self.owner.lock()
    }

    pub(crate) fn folder(&self) -> &LockedFolder {
        &self.folder
    }

    /// Returns a receiver of the status.
    pub(crate) fn status(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    pub(crate) fn update_status(&self, change: impl FnOnce(&mut StoreStatus)) {
        self.status.send_modify(change);
    }

    /// Clears the failure of an earlier journal when another one replaces it.
    pub(crate) fn forget_failure(&self) {
        self.update_status(|status| (status.stalled, status.failed) = (None, None));
    }

    /// Updates how far the files reach. The [`FsyncProof`] proves that an fsync has completed.
    pub(crate) fn reached(&self, synced: &FsyncProof, sequence: Sequence, position: Lsn) {
        self.update_status(|status| {
            (status.durable, status.sequence) = (DurablePosition::kept(synced, position), sequence)
        });
    }

    /// Blocks until an entry is on disk. Returns false if the store has failed. Must be called on a
    /// thread with a Tokio runtime, outside of async code.
    pub(crate) fn wait_for(&self, sequence: Sequence) -> bool {
        let mut status = self.status.subscribe();
        let waited = tokio::runtime::Handle::current()
            .block_on(status.wait_for(|status| status.sequence >= sequence || status.failed.is_some()));
        waited.is_ok_and(|status| status.failed.is_none())
    }

    /// Returns the name of the base at a position.
    pub(crate) fn base_name(position: Lsn) -> String {
        format!("{:016X}.{BASE}", position.0)
    }

    /// Removes all bases except the one with this name.
    pub(crate) fn keep_base(&self, name: &str) -> Result<(), StoreError> {
        self.folder.remove(|found| found.ends_with(&format!(".{BASE}")) && found != name)
    }

    /// Removes all bases.
    pub(crate) fn remove_bases(&self) -> Result<(), StoreError> {
        self.folder.remove(|name| name.ends_with(&format!(".{BASE}")))
    }

    pub(crate) fn remove_journal(&self) -> Result<(), StoreError> {
        self.folder.remove(|name| name.ends_with(&format!(".{JOURNAL}")))
    }
}
