//! What a writer has in memory: the state that the manifest's head says, and what came since.

use std::sync::Arc;

use laredo_core::{
    ArchivedChecksums, Change, Checksum, DefinitionVersion, Lsn, Schema, StateError, TableState, Transaction,
};

use super::Plan;
use super::job::Job;
use crate::manifest::{PositionMark, SourceId};
use crate::net::{Net, NotTaken};
use crate::reader::Rebuilt;

/// What is known of rows at a position beside the position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowsVersion {
    /// The definition that they are of.
    pub(crate) definition: DefinitionVersion,
    /// The newest commit at or before the position.
    pub(crate) mark: Option<PositionMark>,
}

/// A state and what came after it.
pub(crate) struct Held {
    table: Arc<TableState>,
    position: Lsn,
    /// Whether the manifest's head says the same as `table`. If not, only a base can be written.
    is_archived: bool,
    source: Option<SourceId>,
    /// What the rows are rows of at `reached`.
    version: RowsVersion,
    /// The newest position up to which the history of the archive's head and that of these rows are known to be the same.
    shared_until: Lsn,
    /// What a job is writing.
    sealed: Option<Sealed>,
    /// What came after that.
    open: Net,
    /// The newest transaction's position.
    reached: Lsn,
    /// The checksum of the rows there.
    checksum: Checksum,
    /// True where the rows are the server's to the byte: not after they were read back, unless their types allow it.
    is_exact: bool,
    /// The checksum that the manifest has for `table`, once it is archived.
    archived: Checksum,
    /// What cannot be taken in before what is here is in the archive.
    behind: Option<Behind>,
}

struct Sealed {
    net: Arc<Net>,
    to: Lsn,
}

enum Behind {
    /// A transaction that changes the schema, and what the rows are rows of from it on: the epoch ends before it.
    Schema(Transaction, RowsVersion),
    /// All rows come anew.
    Restart,
}

/// What became of what had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Nothing waited, or it waits still.
    All,
    /// The rows have another schema now.
    Schema,
    /// These rows are of no use any more.
    Gone,
}

impl Held {
    /// Rows that no archive has.
    pub(crate) fn new(
        table: TableState,
        position: Lsn,
        source: Option<SourceId>,
        version: RowsVersion,
        shared_until: Lsn,
    ) -> Held {
        Held {
            checksum: table.checksum(),
            is_exact: true,
            archived: Checksum::default(),
            table: Arc::new(table),
            position,
            is_archived: false,
            source,
            version,
            shared_until,
            sealed: None,
            open: Net::default(),
            reached: position,
            behind: None,
        }
    }

    /// The rows that an archive has, with the checksum that it keeps of them.
    pub(crate) fn archived(rebuilt: Rebuilt, position: Lsn, source: Option<SourceId>, version: RowsVersion) -> Held {
        let Rebuilt { table, checksum, .. } = rebuilt;
        let is_exact = ArchivedChecksums::new(table.schema().clone()).are_of_bytes();
        let shared_until = Lsn(u64::MAX);
        let held = Held::new(table, position, source, version, shared_until);
        Held { is_archived: true, is_exact, archived: checksum, ..held }
    }

    pub(crate) fn schema(&self) -> &Arc<Schema> {
        self.table.schema()
    }

    pub(crate) fn position(&self) -> Lsn {
        self.position
    }

    /// Everything up to here has come.
    pub(crate) fn reached(&self) -> Lsn {
        self.reached
    }

    /// The checksum of everything that has come, if a server's can be compared with it.
    pub(crate) fn checksum(&self) -> Option<Checksum> {
        self.is_exact.then_some(self.checksum)
    }

    pub(crate) fn source(&self) -> Option<&SourceId> {
        self.source.as_ref()
    }

    pub(crate) fn definition(&self) -> DefinitionVersion {
        self.version.definition
    }

    pub(crate) fn mark(&self) -> Option<PositionMark> {
        self.version.mark
    }

    pub(crate) fn shared_until(&self) -> Lsn {
        self.shared_until
    }

    pub(crate) fn is_archived(&self) -> bool {
        self.is_archived
    }

    /// Keys that were touched since the head.
    pub(crate) fn depth(&self) -> u64 {
        let sealed = self.sealed.as_ref().map_or(0, |sealed| sealed.net.len());
        // A table that was emptied has changed, too, though no key of it is left.
        ((sealed + self.open.len()) as u64).max(u64::from(self.reached > self.position && !self.is_unchanged()))
    }

    fn is_unchanged(&self) -> bool {
        self.open.is_empty() && self.sealed.as_ref().is_none_or(|sealed| sealed.net.is_empty())
    }

    /// Whether the next transaction can be taken in.
    pub(crate) fn takes(&self) -> bool {
        self.behind.is_none()
    }

    pub(crate) fn is_of(&mut self, source: Option<SourceId>, definition: DefinitionVersion) {
        (self.source, self.version.definition) = (source, definition);
    }

    /// Takes a transaction in, after which the rows are of a version.
    ///
    /// # Errors
    /// When it does not fit: these rows are not the table's.
    pub(crate) fn take(&mut self, transaction: Transaction, version: RowsVersion) -> Result<(), StateError> {
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
            Err(NotTaken::Schema) => self.behind = Some(Behind::Schema(transaction, version)),
            Err(NotTaken::State(error)) => return Err(error),
        }
        Ok(())
    }

    /// The rows are of no more use once what came is in the archive. Nothing is left of rows that are in none.
    pub(crate) fn without_rows(mut self) -> Option<Held> {
        if !self.is_archived || self.is_unchanged() {
            return None;
        }
        self.behind = Some(Behind::Restart);
        Some(self)
    }

    /// Takes in what had to wait, if nothing is before it any more. No job may be under way.
    ///
    /// # Errors
    /// When it does not fit.
    pub(crate) fn advance(&mut self) -> Result<Taken, StateError> {
        if self.is_archived && !self.open.is_empty() {
            return Ok(Taken::All);
        }
        match self.behind.take() {
            None => Ok(Taken::All),
            Some(Behind::Restart) => Ok(Taken::Gone),
            Some(Behind::Schema(transaction, version)) => {
                let table = Arc::make_mut(&mut self.table);
                std::mem::take(&mut self.open).apply_to(table);
                transaction.changes.iter().try_for_each(|change: &Change| table.apply_change(change).map(drop))?;
                self.is_archived = false;
                self.position = transaction.position;
                self.reached = transaction.position;
                self.version = version;
                self.checksum = table.checksum();
                Ok(Taken::Schema)
            }
        }
    }

    /// What a job writes from here on.
    pub(crate) fn seal(&mut self, plan: Plan) -> Job {
        let sealed = Sealed { net: Arc::new(std::mem::take(&mut self.open)), to: self.reached };
        let job = Job {
            before: self.table.clone(),
            net: sealed.net.clone(),
            from: self.position,
            to: sealed.to,
            checksum: self.checksum,
            archived: self.archived,
            source: self.source.clone(),
            version: self.version,
            shared_until: self.shared_until,
            plan,
        };
        self.sealed = Some(sealed);
        job
    }

    /// The job has ended: what it wrote goes into the state, or back to what is yet to be written. With what it wrote comes the checksum that
    /// the manifest has of it. Tells whether there was one of this state.
    pub(crate) fn unseal(&mut self, written: Option<Checksum>) -> bool {
        let Some(Sealed { net, to }) = self.sealed.take() else { return false };
        if let Some(checksum) = written {
            net.apply_to(Arc::make_mut(&mut self.table));
            (self.position, self.is_archived, self.archived) = (to, true, checksum);
            self.shared_until = Lsn(u64::MAX);
        } else {
            let later = std::mem::take(&mut self.open);
            self.open = Arc::unwrap_or_clone(net).then(later);
        }
        true
    }
}
