//! A table as readers know it: its rows, and the journal that shows them.

use std::io;

use laredo_core::{Checksum, ChecksumBuckets, CommitMark, CommitTime, Lsn, TableState, Tuple, TupleBuf, TupleRef, Xid};
use laredo_proto::batch::EntryAction;
use laredo_values::VisibleEffect;

use super::apply::{ApplyError, ChangeEffect, apply_spool};
use super::verification::Verification;
use crate::journal::JournalWriter;
use crate::pipeline::Pipeline;
use crate::spool::Spool;
use crate::status::TableStatus;

/// A table as readers know it.
#[derive(Debug)]
pub(crate) struct PublishedTable {
    pub(super) state: TableState,
    pub(super) pipeline: Pipeline,
    pub(super) writer: JournalWriter,
    pub(super) origin: RowOrigin,
    /// The checksums of the rows that readers receive; `None` if those are the rows of the state.
    pub(super) shown: Option<ChecksumBuckets>,
    /// True if readers receive the checksum.
    pub(super) is_compared: bool,
}

/// The origin of the rows in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrigin {
    /// The source's rows. Readers have what the pipeline makes of them.
    Source,
    /// The rows that readers have, as a journal has kept them after filters and transforms. Only a
    /// copy has the source's rows.
    Readers,
    /// Unknown rows. The next copy has to send all rows.
    Nothing,
}

/// The changes of a committed transaction to one table.
#[derive(Debug)]
pub(crate) struct TableCommit {
    pub(crate) xid: Xid,
    pub(crate) end: Lsn,
    pub(crate) committed_at: CommitTime,
    pub(crate) spool: Spool,
}

impl TableCommit {
    pub(crate) fn mark(&self) -> CommitMark {
        CommitMark { end: self.end, xid: self.xid, committed_at: self.committed_at }
    }
}

impl PublishedTable {
    /// Returns the position up to which every commit is applied.
    pub(super) fn position(&self) -> Lsn {
        self.writer.committed().position
    }

    /// Returns the number of rows in the state.
    pub(super) fn rows(&self) -> usize {
        self.state.len()
    }

    /// Returns true if a transaction's rows are rows of the schema that the table was copied under.
    /// A transaction that the table already has is not examined.
    pub(super) fn fits(&self, commit: &mut TableCommit) -> io::Result<bool> {
        Ok(commit.end <= self.position() || self.pipeline.fits(&mut commit.spool)?)
    }

    /// Applies a transaction, and writes it to the journal.
    pub(super) fn apply(
        &mut self,
        commit: &mut TableCommit,
        mut verification: Option<&mut Verification>,
    ) -> Result<TableChangeCounts, ApplyError> {
        let PublishedTable { state, pipeline, writer, origin, shown, is_compared } = self;
        writer.begin_commit(commit.mark())?;
        let (mut counts, mut scratch) = (TableChangeCounts::default(), EmittedRowBuffers::default());
        let applied = apply_spool(state, pipeline, &mut commit.spool, commit.committed_at, |applied| {
            counts.count(applied);
            if let Some(verification) = &mut verification {
                verification.track(commit.xid, pipeline.state().key(), applied);
            }
            emit_change(writer, pipeline, applied, &mut scratch, shown.as_mut())
        });
        if let Err(error) = applied {
            writer.abort();
            *origin = RowOrigin::Nothing;
            return Err(error);
        }
        if *is_compared {
            writer.note_checksum(readers_checksum(state, shown.as_ref()));
        }
        writer.commit()?;
        Ok(counts)
    }

    /// Returns the definition that the last copy was made under, if the rows are the source's.
    pub(super) fn definition(&self) -> Option<String> {
        (self.origin == RowOrigin::Source).then(|| self.writer.journal().definition().source)
    }
}

/// Returns the checksum of the rows that readers receive: that of the state, unless it is kept
/// separately.
pub(super) fn readers_checksum(state: &TableState, shown: Option<&ChecksumBuckets>) -> Checksum {
    shown.map_or_else(|| state.checksum(), ChecksumBuckets::total)
}

/// The numbers of changes that were applied.
#[derive(Default)]
pub(super) struct TableChangeCounts {
    inserts: u64,
    updates: u64,
    deletes: u64,
    truncates: u64,
}

impl TableChangeCounts {
    pub(super) fn add(&mut self, more: &TableChangeCounts) {
        self.inserts += more.inserts;
        self.updates += more.updates;
        self.deletes += more.deletes;
        self.truncates += more.truncates;
    }

    fn count(&mut self, applied: ChangeEffect<'_>) {
        match applied {
            ChangeEffect::Row { old: None, .. } => self.inserts += 1,
            ChangeEffect::Row { old: Some(_), new: Some(_), .. } => self.updates += 1,
            ChangeEffect::Row { old: Some(_), new: None, .. } => self.deletes += 1,
            ChangeEffect::Truncate => self.truncates += 1,
        }
    }

    pub(super) fn add_to(&self, status: &mut TableStatus) {
        status.inserts += self.inserts;
        status.updates += self.updates;
        status.deletes += self.deletes;
        status.truncates += self.truncates;
    }
}

#[derive(Default)]
pub(super) struct EmittedRowBuffers {
    new: TupleBuf,
    old: TupleBuf,
    key: TupleBuf,
}

/// Writes the change that readers see to the journal, and to the checksums of the rows that they
/// have.
pub(super) fn emit_change(
    writer: &mut JournalWriter,
    pipeline: &Pipeline,
    applied: ChangeEffect<'_>,
    scratch: &mut EmittedRowBuffers,
    shown: Option<&mut ChecksumBuckets>,
) -> io::Result<()> {
    let (old, new) = match applied {
        ChangeEffect::Truncate => {
            shown.into_iter().for_each(ChecksumBuckets::clear);
            return writer.push(EntryAction::Truncate, TupleRef::trusted(&[]), None);
        }
        ChangeEffect::Row { old, new, .. } => (old.map(Tuple::as_ref), new.map(Tuple::as_ref)),
    };
    let EmittedRowBuffers { new: new_out, old: old_out, key } = scratch;
    let (old, new) = match pipeline.classify(old, new) {
        VisibleEffect::Nothing => return Ok(()),
        VisibleEffect::Insert => (None, new),
        VisibleEffect::Update => (old, new),
        VisibleEffect::Delete => (old, None),
    };
    let old = old.map(|old| pipeline.out_row(old, old_out));
    let new = new.map(|new| pipeline.out_row(new, new_out));
    shown.into_iter().for_each(|shown| shown.replace(pipeline.out().key(), old, new));
    match (old, new) {
        (None, Some(new)) => writer.push(EntryAction::Insert, new, None),
        (Some(old), Some(new)) => writer.push(EntryAction::Update, new, Some(old)),
        (Some(old), None) => {
            key.clear();
            pipeline.out().key().cells_of(old).for_each(|cell| key.push(cell));
            writer.push(EntryAction::Delete, key.as_ref(), Some(old))
        }
        (None, None) => Ok(()),
    }
}
