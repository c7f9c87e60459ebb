//! The tables that are followed, each with the progress of its copies.

use std::sync::Arc;

use laredo_core::Oid;
use laredo_engine::source::{TableIndex, TableRequest};
use parking_lot::Mutex;

use super::writers::WritingTransaction;
use crate::catalog::{TableDefinition, TableFacts, TablePublication, TypeFacts};

/// A table that is followed.
#[derive(Debug)]
pub(crate) struct SourceTable {
    pub(crate) index: TableIndex,
    pub(crate) request: TableRequest,
    progress: Mutex<TableCopyState>,
}

/// The progress of copying a table.
#[derive(Debug, Default)]
struct TableCopyState {
    /// The definition that the last complete copy was made under.
    copied: Option<Arc<TableDefinition>>,
    /// The number of restarts of PostgreSQL that were known when that copy began.
    restarts: u64,
    /// The state in which all earlier writers are known to have ended.
    settled: Option<StreamingScope>,
    /// The earlier writers that the last attempt to copy has waited for.
    awaited: Option<AwaitedWriters>,
    /// The facts of the table before its last copy failed permanently. If the catalog has other
    /// facts, copying is worth another attempt.
    failed: Option<Option<TableFacts>>,
}

/// The state that decides whether a change is streamed, and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamingScope {
    /// The number of the slot, as from `SourceSignals::wait_for_slot`.
    pub(super) slot: u64,
    /// The publication's settings for the table.
    pub(super) published: Option<TablePublication>,
    /// The OID of the table.
    pub(super) oid: Oid,
    /// The types of its columns. PostgreSQL sends a row as its types were when it was written.
    pub(super) types: Vec<TypeFacts>,
}

/// Transactions that have to end before a table can be copied.
#[derive(Debug)]
struct AwaitedWriters {
    /// The state that these transactions are older than.
    before: StreamingScope,
    /// The transactions that have not ended yet.
    writers: Vec<WritingTransaction>,
}

/// The transactions that wrote a table before its changes were streamed as they are now.
pub(super) enum EarlierWriters {
    /// All of them have ended.
    Ended,
    /// An earlier attempt to copy has found these.
    Known(Vec<WritingTransaction>),
    /// They were not looked up yet. They wrote one of these tables: the table itself, or the table
    /// that had its name before.
    Unknown([Oid; 2]),
}

impl SourceTable {
    /// Creates a table that was not copied yet.
    pub(crate) fn new(index: TableIndex, request: TableRequest) -> SourceTable {
        SourceTable { index, request, progress: Mutex::default() }
    }

    /// Returns the definition that the last complete copy was made under.
    pub(crate) fn copied(&self) -> Option<Arc<TableDefinition>> {
        self.progress.lock().copied.clone()
    }

    /// Records a complete copy under this definition. `restarts` is the number of restarts of
    /// PostgreSQL that were known when the copy began.
    pub(crate) fn record_copy(&self, definition: TableDefinition, restarts: u64) {
        let mut progress = self.progress.lock();
        (progress.copied, progress.restarts, progress.failed) = (Some(Arc::new(definition)), restarts, None);
    }

    /// Returns true if `copied` is the last complete copy, and began before this many restarts of
    /// PostgreSQL were known.
    pub(crate) fn is_copied_before(&self, copied: &Arc<TableDefinition>, restarts: u64) -> bool {
        let progress = self.progress.lock();
        is_same_copy(progress.copied.as_ref(), Some(copied)) && progress.restarts < restarts
    }

    /// Forgets the last copy. Until the next one, the catalog is not compared with its definition.
    pub(crate) fn forget_copy(&self) {
        self.progress.lock().copied = None;
    }

    /// Replaces the definition of the last copy by a newer one under which its rows are still
    /// valid. Returns it, or `None` if another copy has ended in the meantime.
    pub(crate) fn redefine(
        &self,
        copied: &Arc<TableDefinition>,
        newer: TableDefinition,
    ) -> Option<Arc<TableDefinition>> {
        let mut progress = self.progress.lock();
        let is_last = is_same_copy(progress.copied.as_ref(), Some(copied));
        is_last.then(|| progress.copied.insert(Arc::new(newer)).clone())
    }

    /// Records that a copy failed permanently when the catalog had these facts about the table.
    pub(crate) fn record_failure(&self, facts: Option<TableFacts>) {
        self.progress.lock().failed = Some(facts);
    }

    /// Forgets a permanent failure if the catalog has other facts now. Returns true if there was
    /// one, and `None` if `copied` is no longer the last complete copy.
    pub(crate) fn take_failure(
        &self,
        copied: Option<&Arc<TableDefinition>>,
        facts: Option<&TableFacts>,
    ) -> Option<bool> {
        let mut progress = self.progress.lock();
        is_same_copy(progress.copied.as_ref(), copied)
            .then(|| progress.failed.take_if(|then| then.as_ref() != facts).is_some())
    }

    /// Returns the transactions that have to end before a copy whose changes are streamed as in
    /// `scope`. `is_other` is true if the stream has just begun to follow another table.
    pub(super) fn earlier_writers(&self, scope: &StreamingScope, is_other: bool) -> EarlierWriters {
        let mut progress = self.progress.lock();
        if is_other {
            progress.awaited = None;
            progress.settled.take_if(|settled| settled == scope);
        }
        if progress.settled.as_ref() == Some(scope) {
            return EarlierWriters::Ended;
        }
        let before = progress.settled.as_ref().map_or(scope.oid, |settled| settled.oid);
        match progress.awaited.take_if(|awaited| awaited.before == *scope) {
            Some(awaited) => EarlierWriters::Known(awaited.writers),
            None => EarlierWriters::Unknown([scope.oid, before]),
        }
    }

    /// Remembers the transactions that the next attempt to copy has to wait for.
    pub(super) fn await_writers(&self, scope: &StreamingScope, writers: &[WritingTransaction]) {
        let awaited = AwaitedWriters { before: scope.clone(), writers: writers.to_vec() };
        self.progress.lock().awaited = Some(awaited);
    }

    /// Records that all earlier writers have ended.
    pub(super) fn settle(&self, scope: StreamingScope) {
        let mut progress = self.progress.lock();
        (progress.settled, progress.awaited) = (Some(scope), None);
    }
}

/// Returns true if both are the definition of one copy. Two copies may have equal definitions.
fn is_same_copy(one: Option<&Arc<TableDefinition>>, other: Option<&Arc<TableDefinition>>) -> bool {
    one.map(Arc::as_ptr) == other.map(Arc::as_ptr)
}
