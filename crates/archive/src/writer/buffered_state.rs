//! The rows that a writer holds in memory: the state at the manifest's head, and the changes after
//! it.

use std::sync::Arc;

use laredo_core::{
    Change, Checksum, DefinitionVersion, Lsn, Schema, ScopedMark, SourceIdentity, StateError, TableState, Transaction,
};
use laredo_values::ArchivedChecksums;

use super::ArtifactPlan;
use super::job::ArtifactJob;
use crate::net_changes::{NetChangeError, NetChangeSet};
use crate::reader::RebuiltTable;

/// The properties of the rows at a position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowsVersion {
    /// The definition version of the rows.
    pub(crate) definition: DefinitionVersion,
    /// The newest commit at or before the position.
    pub(crate) mark: Option<ScopedMark>,
}

/// The rows that a writer has.
pub(crate) enum WriterRows {
    /// No rows have arrived yet, or the previous ones were dropped.
    Awaited {
        /// The newest position up to which the history of the archive's head and that of the rows
        /// that will arrive are known to be the same.
        shared_until: Lsn,
    },
    /// Rows, and the changes after them.
    Held(Box<BufferedState>),
}

/// A state and the changes after it.
pub(crate) struct BufferedState {
    table: Arc<TableState>,
    position: Lsn,
    /// The relation of `table` to the archive.
    archived: ArchivedRows,
    source: Option<SourceIdentity>,
    /// The version of the rows at `reached`.
    version: RowsVersion,
    /// The newest position up to which the history of the archive's head and that of these rows are
    /// known to be the same.
    shared_until: Lsn,
    /// The changes that a job is writing.
    sealed: Option<SealedChanges>,
    /// The changes after those that the job is writing.
    open: NetChangeSet,
    /// The position of the newest transaction.
    reached: Lsn,
    /// The checksum of the rows at `reached`.
    checksum: Checksum,
    /// True if the rows equal the server's byte for byte. After the rows were read back from an
    /// archive, this depends on their types.
    is_exact: bool,
    /// An update that has to wait until the changes here are in the archive.
    behind: Option<DeferredUpdate>,
}

/// The relation of rows to the archive.
#[derive(Clone, Copy, Debug)]
enum ArchivedRows {
    /// The manifest's head has the same rows, with this checksum.
    AtHead(Checksum),
    /// No archive has the rows. Only a snapshot can be written, and only of rows that have reached
    /// the position `least`.
    Nowhere { least: Option<Lsn> },
}

struct SealedChanges {
    net: Arc<NetChangeSet>,
    to: Lsn,
}

enum DeferredUpdate {
    /// A transaction that changes the schema, and the version of the rows after it. The epoch ends
    /// before it.
    Schema(Transaction, RowsVersion),
    /// A restart: all rows will be received again. `shared_until` is that of
    /// [`WriterRows::Awaited`].
    Restart { shared_until: Lsn },
}

/// The result of applying an update that had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdvanceOutcome {
    /// No update was waiting, or it still waits.
    All,
    /// The rows have another schema now.
    Schema,
    /// A restart had to wait, and these rows are now obsolete. `shared_until` is that of
    /// [`WriterRows::Awaited`].
    Gone { shared_until: Lsn },
}

impl WriterRows {
    pub(crate) fn new(held: Option<BufferedState>) -> WriterRows {
        held.map_or(WriterRows::Awaited { shared_until: Lsn(u64::MAX) }, |held| WriterRows::Held(Box::new(held)))
    }

    pub(crate) fn held(&self) -> Option<&BufferedState> {
        match self {
            WriterRows::Awaited { .. } => None,
            WriterRows::Held(held) => Some(held),
        }
    }

    pub(crate) fn held_mut(&mut self) -> Option<&mut BufferedState> {
        match self {
            WriterRows::Awaited { .. } => None,
            WriterRows::Held(held) => Some(held),
        }
    }

    /// Drops the rows, which are in no archive or not the table's. The rows that arrive next
    /// inherit their relation to the archive's history.
    pub(crate) fn drop_held(&mut self) {
        if let WriterRows::Held(held) = self {
            *self = WriterRows::Awaited { shared_until: held.shared_until };
        }
    }

    /// Marks the rows as obsolete, because all rows will be received again. Their changes are kept
    /// until they are in the archive. `shared_until` is the newest position up to which the
    /// histories of the rows before and after are known to be the same.
    pub(crate) fn restart(&mut self, shared_until: Lsn) {
        let shared_until = match self {
            WriterRows::Awaited { shared_until: known } => shared_until.min(*known),
            WriterRows::Held(held) => shared_until.min(held.shared_until),
        };
        match self {
            WriterRows::Held(held) if held.has_changes_to_archive() => {
                held.behind = Some(DeferredUpdate::Restart { shared_until });
            }
            WriterRows::Held(_) | WriterRows::Awaited { .. } => *self = WriterRows::Awaited { shared_until },
        }
    }
}

impl BufferedState {
    /// Creates a state with rows that no archive has. They are written once they have reached the
    /// position `least`.
    pub(crate) fn new(
        table: TableState,
        position: Lsn,
        source: Option<SourceIdentity>,
        version: RowsVersion,
        shared_until: Lsn,
        least: Option<Lsn>,
    ) -> BufferedState {
        BufferedState {
            checksum: table.checksum(),
            is_exact: true,
            table: Arc::new(table),
            position,
            archived: ArchivedRows::Nowhere { least },
            source,
            version,
            shared_until,
            sealed: None,
            open: NetChangeSet::default(),
            reached: position,
            behind: None,
        }
    }

    /// Creates a state with the rows of an archive and the checksum that the archive has for them.
    pub(crate) fn archived(
        rebuilt: RebuiltTable,
        position: Lsn,
        source: Option<SourceIdentity>,
        version: RowsVersion,
    ) -> BufferedState {
        let RebuiltTable { table, checksum, .. } = rebuilt;
        let is_exact = ArchivedChecksums::new(table.schema().clone()).are_of_bytes();
        let shared_until = Lsn(u64::MAX);
        let held = BufferedState::new(table, position, source, version, shared_until, None);
        BufferedState { archived: ArchivedRows::AtHead(checksum), is_exact, ..held }
    }

    pub(crate) fn schema(&self) -> &Arc<Schema> {
        self.table.schema()
    }

    pub(crate) fn position(&self) -> Lsn {
        self.position
    }

    /// Returns the position up to which everything has been received.
    pub(crate) fn reached(&self) -> Lsn {
        self.reached
    }

    /// Returns the checksum of everything received, if it can be compared with a server's.
    pub(crate) fn checksum(&self) -> Option<Checksum> {
        self.is_exact.then_some(self.checksum)
    }

    pub(crate) fn source(&self) -> Option<&SourceIdentity> {
        self.source.as_ref()
    }

    pub(crate) fn definition(&self) -> DefinitionVersion {
        self.version.definition
    }

    pub(crate) fn mark(&self) -> Option<ScopedMark> {
        self.version.mark
    }

    pub(crate) fn is_archived(&self) -> bool {
        match self.archived {
            ArchivedRows::AtHead(_) => true,
            ArchivedRows::Nowhere { .. } => false,
        }
    }

    /// Returns true if the rows have reached the position from which on they may be written.
    pub(crate) fn is_writable(&self) -> bool {
        match self.archived {
            ArchivedRows::AtHead(_) => true,
            ArchivedRows::Nowhere { least } => least.is_none_or(|least| self.reached >= least),
        }
    }

    /// Returns the number of keys that changed since the head.
    pub(crate) fn depth(&self) -> u64 {
        let sealed = self.sealed.as_ref().map_or(0, |sealed| sealed.net.len());
        // Emptying the table is a change, too, although no key of it is left.
        ((sealed + self.open.len()) as u64).max(u64::from(self.reached > self.position && !self.is_unchanged()))
    }

    fn is_unchanged(&self) -> bool {
        self.open.is_empty() && self.sealed.as_ref().is_none_or(|sealed| sealed.net.is_empty())
    }

    /// Returns true if the next transaction can be added.
    pub(crate) fn accepts_transactions(&self) -> bool {
        self.behind.is_none()
    }

    pub(crate) fn set_source(&mut self, source: Option<SourceIdentity>, definition: DefinitionVersion) {
        (self.source, self.version.definition) = (source, definition);
    }

    /// Adds a transaction. `version` is the version of the rows after it.
    ///
    /// # Errors
    /// When the transaction does not fit, so these rows are not the table's.
    pub(crate) fn add_transaction(&mut self, transaction: Transaction, version: RowsVersion) -> Result<(), StateError> {
        let (table, sealed) = (&*self.table, self.sealed.as_ref());
        let before = |key: &laredo_core::Key| {
            let sealed = sealed.and_then(|sealed| sealed.net.row(key));
            sealed.unwrap_or_else(|| table.get(key))
        };
        match self.open.add(&transaction, table.schema().key(), before, &mut self.checksum) {
            Ok(()) => {
                self.reached = self.reached.max(transaction.position);
                self.version = version;
            }
            Err(NetChangeError::Schema) => self.behind = Some(DeferredUpdate::Schema(transaction, version)),
            Err(NetChangeError::State(error)) => return Err(error),
        }
        Ok(())
    }

    /// Returns true if there are changes that continue the archive.
    fn has_changes_to_archive(&self) -> bool {
        self.is_archived() && !self.is_unchanged()
    }

    /// Applies the update that had to wait, if no changes are before it any more. No job may be
    /// running.
    ///
    /// # Errors
    /// When the update does not fit the rows.
    pub(crate) fn advance(&mut self) -> Result<AdvanceOutcome, StateError> {
        if self.is_archived() && !self.open.is_empty() {
            return Ok(AdvanceOutcome::All);
        }
        match self.behind.take() {
            None => Ok(AdvanceOutcome::All),
            Some(DeferredUpdate::Restart { shared_until }) => Ok(AdvanceOutcome::Gone { shared_until }),
            Some(DeferredUpdate::Schema(transaction, version)) => {
                let table = Arc::make_mut(&mut self.table);
                std::mem::take(&mut self.open).apply_to(table);
                transaction.changes.iter().try_for_each(|change: &Change| table.apply_change(change).map(drop))?;
                // Rows that are older than the head stay so.
                if matches!(self.archived, ArchivedRows::AtHead(_)) {
                    self.archived = ArchivedRows::Nowhere { least: None };
                }
                self.position = transaction.position;
                self.reached = transaction.position;
                self.version = version;
                self.checksum = table.checksum();
                Ok(AdvanceOutcome::Schema)
            }
        }
    }

    /// Returns a job that writes the state up to now. Later changes are collected separately.
    pub(crate) fn seal(&mut self, plan: ArtifactPlan) -> ArtifactJob {
        let sealed = SealedChanges { net: Arc::new(std::mem::take(&mut self.open)), to: self.reached };
        let job = ArtifactJob {
            before: self.table.clone(),
            net: sealed.net.clone(),
            from: self.position,
            to: sealed.to,
            checksum: self.checksum,
            archived: match self.archived {
                ArchivedRows::AtHead(checksum) => checksum,
                ArchivedRows::Nowhere { .. } => Checksum::default(),
            },
            source: self.source.clone(),
            version: self.version,
            shared_until: self.shared_until,
            plan,
        };
        self.sealed = Some(sealed);
        job
    }

    /// Ends the job. `written` is the checksum that the manifest has for the state that the job
    /// wrote. With it, the job's changes are applied to the state; without it, they are put back to
    /// be written again. Returns true if a job of this state was running.
    pub(crate) fn unseal(&mut self, written: Option<Checksum>) -> bool {
        let Some(SealedChanges { net, to }) = self.sealed.take() else { return false };
        if let Some(checksum) = written {
            net.apply_to(Arc::make_mut(&mut self.table));
            (self.position, self.archived) = (to, ArchivedRows::AtHead(checksum));
            self.shared_until = Lsn(u64::MAX);
        } else {
            let later = std::mem::take(&mut self.open);
            self.open = Arc::unwrap_or_clone(net).followed_by(later);
        }
        true
    }
}
