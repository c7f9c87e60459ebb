use std::path::Path;

use laredo_core::{Lsn, Sequence};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::error::StoreError;
use super::folder::Folder;
use crate::durable::{Durable, Synced};
use crate::journal::InstanceId;

/// The folder of a table's journal.
#[derive(Debug)]
pub(crate) struct Store {
    folder: Folder,
    /// A new journal file is begun at this size.
    pub(super) file_bytes: u64,
    status: watch::Sender<StoreStatus>,
    /// The journal that the folder is of; bases of another one are not put into it.
    owner: Mutex<Option<InstanceId>>,
}

/// How far a store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// The position that a restart would go on from: every commit up to here is on disk.
    pub durable: Durable,
    /// The last entry of those.
    pub sequence: Sequence,
    /// Times that an fsync was waited for since the start.
    pub syncs: u64,
    /// Bytes of the journal's files.
    pub journal_bytes: u64,
    /// Why nothing is kept for now: the disk is full. It is tried again.
    pub stalled: Option<String>,
    /// Why nothing is kept any more.
    pub failed: Option<String>,
}

pub(super) const JOURNAL: &str = "journal";
pub(super) const BASE: &str = "base";

/// A journal is in about so many files: forgetting frees the disk in steps, and each takes a descriptor.
const FILES: u64 = 16;
const FILE_BYTES_MIN: u64 = 4 << 20;
const FILE_BYTES_MAX: u64 = 256 << 20;

impl Store {
    /// Takes a folder, which is made if there is none, for a journal of so many bytes.
    ///
    /// # Errors
    /// When another server has it, or when it cannot be written to.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Store, StoreError> {
        let file_bytes = (bytes_max / FILES).clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let (folder, status, owner) = (Folder::open(path)?, watch::Sender::default(), Mutex::default());
        Ok(Store { folder, file_bytes, status, owner })
    }

    /// The journal that the folder is of. It cannot change while the guard is held.
    pub(crate) fn owner(&self) -> MutexGuard<'_, Option<InstanceId>> {
        self.owner.lock()
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// How far it is.
    pub(crate) fn status(&self) -> watch::Receiver<StoreStatus> {
        self.status.subscribe()
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut StoreStatus)) {
        self.status.send_modify(change);
    }

    /// Forgets that an earlier journal could not be kept: another one takes its place.
    pub(crate) fn forget_failure(&self) {
        self.tell(|status| (status.stalled, status.failed) = (None, None));
    }

    /// Says how far the files reach; only an fsync gives what it takes to say it.
    pub(super) fn reached(&self, synced: &Synced, sequence: Sequence, position: Lsn) {
        self.tell(|status| (status.durable, status.sequence) = (Durable::kept(synced, position), sequence));
    }

    /// Blocks until an entry is on disk; `false` if it never will be.
    pub(crate) fn wait_for(&self, sequence: Sequence) -> bool {
        let mut status = self.status.subscribe();
        let waited = tokio::runtime::Handle::current()
            .block_on(status.wait_for(|status| status.sequence >= sequence || status.failed.is_some()));
        waited.is_ok_and(|status| status.failed.is_none())
    }

    /// The name of the base at a position.
    pub(crate) fn base_name(position: Lsn) -> String {
        format!("{:016X}.{BASE}", position.0)
    }

    /// Removes all bases but the one of this name.
    pub(crate) fn keep_base(&self, name: &str) -> Result<(), StoreError> {
        self.folder.remove(|found| found.ends_with(&format!(".{BASE}")) && found != name)
    }

    /// Removes the journal's files.
    pub(super) fn remove_journal(&self) -> Result<(), StoreError> {
        self.folder.remove(|name| name.ends_with(&format!(".{JOURNAL}")))
    }
}
