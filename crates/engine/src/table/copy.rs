//! A copy under way: the rows that arrive, the transactions that are held meanwhile, and the table
//! that both make together.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Checksum, CommitMark, CommitTime, Lsn, Schema, Sequence, TableName, TableState, TupleBuf, TupleRef};
use tokio::time::Instant;

use super::TableError;
use super::apply::{ApplyError, apply_spool};
use super::commit_queue::CommitQueue;
use super::options::TableOptions;
use super::published::{PublishedTable, TableCommit};
use super::recent_transactions::RecentTransactions;
use super::redefinition::OwedCopy;
use crate::base::{Base, BaseLocation, BaseWriter};
use crate::head::Head;
use crate::pipeline::Pipeline;
use crate::source::{CopyEvent, TransactionSnapshot};
use crate::status::CopyProgress;
use crate::store::RowDefinition;

/// The number of copies in a row that are not shown because their definition has changed since.
const OUTDATED_MAX: u32 = 3;
/// The interval at which a copy logs its progress.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// A copy under way.
///
/// A transaction that commits before the snapshot is known, or while rows arrive, is held. A held
/// transaction that the snapshot sees is released. Once all rows have arrived, the others are
/// applied to them, in their order. Each released transaction is remembered. If this copy fails, a
/// later one has to see it.
///
/// All of these transactions are also kept apart. They are published one by one if they explain
/// everything that the copy shows.
#[derive(Debug)]
pub(crate) struct OngoingCopy {
    before: RowsBeforeCopy,
    stage: CopyStage,
    held: CommitQueue,
    /// The position up to which every commit is known.
    reached: Lsn,
    /// The newest commit of any table up to `reached`.
    mark: CommitMark,
    /// The number of copies that were not shown because their definition was known to be outdated.
    outdated: u32,
}

/// The rows that are known before a copy.
#[derive(Debug)]
enum RowsBeforeCopy {
    /// No rows: this is the first copy.
    Missing,
    /// The rows that readers have.
    Known {
        /// The last position that was known before the copy.
        position: Lsn,
        /// Every transaction after the position that is not held; `None` if some were not sent, or
        /// if they are too many.
        streamed: Option<CommitQueue>,
    },
    /// Rows of another history. The copy then begins a new journal, although there is one.
    OfAnotherHistory,
}

/// The stage of a copy.
#[derive(Debug)]
enum CopyStage {
    /// No copy is being made, and transactions are not held for one. The next copy has to see
    /// them.
    Waiting,
    /// Transactions are held. No snapshot is known yet.
    Holding,
    /// The rows arrive, or have all arrived.
    Arriving(Box<PartialCopy>),
}

#[derive(Debug)]
struct PartialCopy {
    snapshot: TransactionSnapshot,
    pipeline: Pipeline,
    state: TableState,
    /// The base, written while rows arrive; `None` once a transaction has changed them.
    base: Option<BaseWriter>,
    progress: CopyProgress,
    logged_at: Instant,
    copied_at: CommitTime,
    /// The time of the newest transaction that the copy shows.
    committed_at: CommitTime,
    /// The source's report after the last row; `None` before all rows have arrived.
    end: Option<CopyEnd>,
}

/// The source's report at the end of a copy.
#[derive(Debug)]
struct CopyEnd {
    /// The position that the stream has to reach.
    inserted: Lsn,
    /// The definition of the rows.
    definition: String,
    /// True if only transactions can have changed rows since the last copy.
    is_streamed: bool,
    /// The time of the report. Every earlier commit is before `inserted`.
    at: CommitTime,
}

/// The reason why a copy cannot continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyStopReason {
    /// This copy cannot be used, but another one may be.
    #[error("{0}")]
    StartOver(&'static str),
    /// The table cannot be followed.
    #[error(transparent)]
    Failed(#[from] TableError),
}

impl From<std::io::Error> for CopyStopReason {
    fn from(error: std::io::Error) -> CopyStopReason {
        CopyStopReason::Failed(error.into())
    }
}

/// A complete copy: the table at a position.
pub(crate) struct CompleteCopy {
    pub(crate) from: Option<Lsn>,
    pub(crate) to: Lsn,
    pub(crate) committed_at: CommitTime,
    /// A time at which the source had no other commit.
    pub(crate) current_at: CommitTime,
    /// The newest commit of any table up to `to`.
    pub(crate) mark: CommitMark,
    pub(crate) definition: String,
    pub(crate) pipeline: Pipeline,
    pub(crate) state: TableState,
    /// Every transaction after `from`, in order, if nothing else can have changed rows.
    pub(crate) streamed: Option<Vec<TableCommit>>,
    pub(crate) base: Option<BaseWriter>,
}

impl RowsBeforeCopy {
    /// Returns the last position that was known before the copy.
    fn position(&self) -> Option<Lsn> {
        match self {
            RowsBeforeCopy::Known { position, .. } => Some(*position),
            RowsBeforeCopy::Missing | RowsBeforeCopy::OfAnotherHistory => None,
        }
    }

    /// Takes every transaction since that position, unless some are missing.
    fn take_streamed(&mut self) -> Option<CommitQueue> {
        match self {
            RowsBeforeCopy::Known { streamed, .. } => streamed.take(),
            RowsBeforeCopy::Missing | RowsBeforeCopy::OfAnotherHistory => None,
        }
    }
}

impl OngoingCopy {
    fn new(before: RowsBeforeCopy) -> OngoingCopy {
        OngoingCopy {
            reached: before.position().unwrap_or(Lsn::ZERO),
            before,
            stage: CopyStage::Holding,
            held: CommitQueue::default(),
            mark: CommitMark::default(),
            outdated: 0,
        }
    }

    /// Returns the first copy of a table.
    pub(crate) fn first() -> OngoingCopy {
        OngoingCopy::new(RowsBeforeCopy::Missing)
    }

    /// Returns a copy of a table that readers know as of a position.
    pub(crate) fn after(position: Lsn) -> OngoingCopy {
        OngoingCopy::new(RowsBeforeCopy::Known { position, streamed: Some(CommitQueue::default()) })
    }

    /// Returns a copy that replaces rows of another history.
    pub(crate) fn after_fork() -> OngoingCopy {
        OngoingCopy::new(RowsBeforeCopy::OfAnotherHistory)
    }

    /// Returns true if the copy begins a new journal, although there is one.
    pub(crate) fn is_after_fork(&self) -> bool {
        matches!(self.before, RowsBeforeCopy::OfAnotherHistory)
    }

    /// Discards the rows that have arrived. Held transactions stay: the next snapshot shows which
    /// of them it sees.
    pub(crate) fn start_over(&mut self) {
        if let CopyStage::Arriving(_) = self.stage {
            self.stage = CopyStage::Holding;
        }
    }

    /// Holds transactions from now on: the snapshot of the copy that begins may not see them.
    pub(crate) fn begin_attempt(&mut self) {
        if let CopyStage::Waiting = self.stage {
            self.stage = CopyStage::Holding;
        }
    }

    /// Releases the held transactions, and holds no more until the next attempt begins. Its
    /// snapshot has to see all of them.
    pub(crate) fn stop_holding(&mut self, recent: &mut RecentTransactions) {
        self.abandon(recent);
        self.note_gap();
        self.stage = CopyStage::Waiting;
    }

    /// Returns true if transactions are not held, because no copy is being made.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.stage, CopyStage::Waiting)
    }

    /// Forgets the held transactions. PostgreSQL was restarted, so every later snapshot shows them,
    /// or they have never happened.
    pub(crate) fn forget_held(&mut self) {
        self.held = CommitQueue::default();
    }

    /// Notes that transactions may be missing from the stream. Those that were kept cannot be
    /// published one by one.
    pub(crate) fn note_gap(&mut self) {
        drop(self.before.take_streamed());
    }

    /// Handles a committed transaction.
    pub(crate) fn commit(
        &mut self,
        commit: TableCommit,
        options: &TableOptions,
        recent: &mut RecentTransactions,
    ) -> Result<(), CopyStopReason> {
        self.reached(commit.end, commit.mark());
        let xid = commit.xid;
        match &self.stage {
            CopyStage::Waiting => recent.remember(xid),
            CopyStage::Arriving(incoming) if incoming.snapshot.sees(xid) => {
                recent.remember(xid);
                self.keep_streamed(commit, options);
            }
            CopyStage::Holding | CopyStage::Arriving(_) => {
                self.held.push(commit, &options.folder).inspect_err(|_| recent.remember(xid))?;
            }
        }
        self.catch_up(options, recent)
    }

    /// Keeps a transaction that is not held, if it may be published by itself later.
    fn keep_streamed(&mut self, commit: TableCommit, options: &TableOptions) {
        let RowsBeforeCopy::Known { position, streamed: kept } = &mut self.before else { return };
        let Some(streamed) = kept.as_mut().filter(|_| commit.end > *position) else { return };
        let error = streamed.push(commit, &options.folder).err();
        // The transactions will be published all at once. The journal must hold all of them, or a
        // reader at the head would lose some.
        let (changes_max, bytes_max) = (options.journal.entries_max / 4, options.journal.bytes_max / 4);
        if error.is_some()
            || streamed.changes() > changes_max
            || streamed.bytes() > bytes_max.min(options.held_bytes_max)
        {
            tracing::info!(
                event = "copy_transactions_dropped",
                table = %options.request.name, bytes = streamed.bytes(), ?error,
                "the transactions during this copy are not kept any more: readers will receive them as one"
            );
            *kept = None;
        }
    }

    /// Releases the held transactions that the snapshot sees. The others keep their file. Later
    /// ones go to another file, so that this one can be removed.
    fn release_seen(
        &mut self,
        snapshot: &TransactionSnapshot,
        options: &TableOptions,
        recent: &mut RecentTransactions,
    ) {
        for commit in self.held.take_all() {
            match snapshot.sees(commit.xid) {
                true => {
                    recent.remember(commit.xid);
                    self.keep_streamed(commit, options);
                }
                false => self.held.push_back(commit),
            }
        }
    }

    /// Applies the held transactions to the copy, once all of its rows have arrived.
    fn catch_up(&mut self, options: &TableOptions, recent: &mut RecentTransactions) -> Result<(), CopyStopReason> {
        while let CopyStage::Arriving(incoming) = &mut self.stage
            && incoming.end.is_some()
            && let Some(mut held) = self.held.pop_front()
        {
            recent.remember(held.xid);
            if let Err(stop) = incoming.apply(&mut held) {
                self.held.push_front(held);
                return Err(stop);
            }
            self.keep_streamed(held, options);
        }
        Ok(())
    }

    pub(crate) fn reached(&mut self, position: Lsn, mark: CommitMark) {
        if position > self.reached || (position == self.reached && mark.end > self.mark.end) {
            (self.reached, self.mark) = (position, mark);
        }
    }

    /// Notes that readers have received rows as of a position meanwhile. The copy is then published
    /// as the difference from these rows.
    pub(crate) fn continue_from(&mut self, position: Lsn) {
        self.before = RowsBeforeCopy::Known { position, streamed: None };
        if let CopyStage::Arriving(incoming) = &mut self.stage {
            incoming.base = None;
        }
    }

    /// Returns the snapshot of the rows that arrive, or have all arrived.
    pub(crate) fn snapshot(&self) -> Option<&TransactionSnapshot> {
        match &self.stage {
            CopyStage::Arriving(incoming) => Some(&incoming.snapshot),
            CopyStage::Waiting | CopyStage::Holding => None,
        }
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// Returns true if all rows have arrived.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(&self.stage, CopyStage::Arriving(incoming) if incoming.end.is_some())
    }

    /// Returns true if the stream should wait for the copy. Once the copy has ended, nothing is
    /// held any more. The stream must then be read, or the copy would never be complete.
    pub(crate) fn is_full(&self, held_bytes_max: u64) -> bool {
        !self.has_ended() && self.held.bytes() > held_bytes_max
    }

    pub(crate) fn progress(&self) -> Option<CopyProgress> {
        match &self.stage {
            CopyStage::Arriving(incoming) => Some(incoming.progress),
            CopyStage::Waiting | CopyStage::Holding => None,
        }
    }

    /// Logs the progress of the copy from time to time.
    pub(crate) fn log_progress(&mut self, table: &TableName) {
        let CopyStage::Arriving(incoming) = &mut self.stage else { return };
        let PartialCopy { progress, logged_at, .. } = &mut **incoming;
        if logged_at.elapsed() < LOG_INTERVAL {
            return;
        }
        *logged_at = Instant::now();
        let CopyProgress { rows, bytes, rows_estimated, .. } = *progress;
        let seconds_left = progress.left().map(|left| left.as_secs());
        tracing::info!(
            event = "copy_progress", %table, rows, rows_estimated, bytes, ?seconds_left,
            "copying the table"
        );
    }

    pub(crate) fn receive(
        &mut self,
        event: CopyEvent,
        options: &TableOptions,
        bases: &BaseLocation,
        known: Option<&PublishedTable>,
        now: CommitTime,
        recent: &mut RecentTransactions,
    ) -> Result<(), CopyStopReason> {
        match event {
            CopyEvent::Begin { schema, snapshot, rows_estimated, bytes_estimated } => {
                self.start_over();
                recent.forget_below(snapshot.xmin);
                self.release_seen(&snapshot, options, recent);
                let started_at = Instant::now();
                let progress = CopyProgress { rows: 0, bytes: 0, rows_estimated, bytes_estimated, started_at };
                let base = if known.is_none() { Some(bases.writer().map_err(TableError::from)?) } else { None };
                let incoming = PartialCopy::new(&schema, snapshot, progress, options, base, now)?;
                self.stage = CopyStage::Arriving(Box::new(incoming));
            }
            CopyEvent::Rows(chunk) => {
                if let CopyStage::Arriving(incoming) = &mut self.stage {
                    if !rows(&chunk).all(|row| incoming.pipeline.has_form(row)) {
                        return Err(CopyStopReason::StartOver("a composite type changed during the copy"));
                    }
                    incoming.add(&chunk, known)?;
                }
            }
            CopyEvent::End { inserted, definition, is_streamed } => {
                let CopyStage::Arriving(incoming) = &mut self.stage else {
                    return Err(CopyStopReason::StartOver("the copy ended before it began"));
                };
                incoming.end = Some(CopyEnd { inserted, definition, is_streamed, at: now });
                self.catch_up(options, recent)?;
            }
        }
        Ok(())
    }

    /// Returns the table at the position that the stream has reached, once that is past everything
    /// that the copy may have seen.
    ///
    /// The position is also past everything that readers have received. A change that was not
    /// announced gets a position of its own. Otherwise a reader at the last position would never
    /// receive it.
    ///
    /// # Errors
    /// When another definition was seen meanwhile, which `owed` has. With an event trigger, no
    /// reader may reach that definition's position with these rows. A table whose definition
    /// changes all the time is shown all the same.
    pub(crate) fn complete(&mut self, owed: Option<&OwedCopy>) -> Result<Option<CompleteCopy>, CopyStopReason> {
        let from = self.before.position();
        let CopyStage::Arriving(incoming) = &mut self.stage else { return Ok(None) };
        let is_past = |end: &mut CopyEnd| self.reached >= end.inserted && from.is_none_or(|from| self.reached > from);
        let Some(end) = incoming.end.take_if(is_past) else { return Ok(None) };
        let CopyEnd { definition, is_streamed, at: current_at, .. } = end;
        let is_outdated = owed.is_some_and(|owed| owed.definition.is_some() && owed.is_owed_after(&definition));
        if is_outdated && self.outdated < OUTDATED_MAX {
            self.outdated += 1;
            return Err(CopyStopReason::StartOver("its definition changed while the copy waited for the stream"));
        }
        let CopyStage::Arriving(incoming) = std::mem::replace(&mut self.stage, CopyStage::Holding) else {
            return Ok(None);
        };
        let PartialCopy { pipeline, state, base, committed_at, .. } = *incoming;
        let streamed = self.before.take_streamed().filter(|_| is_streamed).map(|mut streamed| {
            let mut commits = Vec::from(streamed.take_all());
            // Transactions that the copy saw were released before others that had committed
            // earlier.
            commits.sort_by_key(|commit| commit.end);
            commits
        });
        let (to, mark) = (self.reached, self.mark);
        Ok(Some(CompleteCopy { from, to, committed_at, current_at, mark, definition, pipeline, state, streamed, base }))
    }

    /// Gives up the copy. The next one has to see every transaction that was held.
    pub(crate) fn abandon(&mut self, recent: &mut RecentTransactions) {
        self.held.take_all().into_iter().for_each(|held| recent.remember(held.xid));
    }
}

impl PartialCopy {
    fn new(
        schema: &Arc<Schema>,
        snapshot: TransactionSnapshot,
        progress: CopyProgress,
        options: &TableOptions,
        base: Option<BaseWriter>,
        copied_at: CommitTime,
    ) -> Result<PartialCopy, TableError> {
        let pipeline = Pipeline::bind(&options.pipeline, schema)?;
        // The estimate only saves growing. A wrong one must not cost the memory of rows that do not
        // exist.
        let capacity = usize::try_from(progress.rows_estimated.min(progress.bytes_estimated / 32)).unwrap_or(0);
        let state = TableState::new(pipeline.state().clone(), &[], capacity)?;
        let logged_at = progress.started_at;
        let committed_at = copied_at;
        Ok(PartialCopy { snapshot, pipeline, state, base, progress, logged_at, copied_at, committed_at, end: None })
    }

    /// Applies a transaction that the snapshot does not see.
    fn apply(&mut self, held: &mut TableCommit) -> Result<(), CopyStopReason> {
        if !self.pipeline.fits(&mut held.spool)? {
            return Err(CopyStopReason::StartOver("the table's columns or types changed again"));
        }
        self.base = None;
        match apply_spool(&mut self.state, &self.pipeline, &mut held.spool, held.committed_at, |_| Ok(())) {
            Ok(()) => {
                self.committed_at = held.committed_at;
                Ok(())
            }
            Err(ApplyError::Io(error)) => Err(error.into()),
            Err(error) => {
                tracing::error!(
                    event = "held_transaction_unfit", %error,
                    "a transaction held during the copy does not fit it"
                );
                Err(CopyStopReason::StartOver("a held transaction does not fit the copy"))
            }
        }
    }

    fn add(&mut self, chunk: &[u8], known: Option<&PublishedTable>) -> Result<(), TableError> {
        let (mut with_time, mut out) = (TupleBuf::new(), TupleBuf::new());
        let same_schema = known.filter(|known| known.pipeline.state() == self.pipeline.state());
        for row in rows(chunk) {
            let row = self.pipeline.state_row(row, self.copied_at, &mut with_time);
            // An unchanged row is shared with the state that readers have, and keeps its commit
            // time.
            let unchanged = same_schema.and_then(|known| {
                known.state.get_like(row).filter(|old| self.pipeline.same_source_row(old.as_ref(), row))
            });
            let tuple = unchanged.cloned().unwrap_or_else(|| row.to_tuple());
            self.progress.rows += 1;
            self.progress.bytes += tuple.len() as u64;
            if let Some(base) = &mut self.base
                && self.pipeline.classify(None, Some(row)) == laredo_values::VisibleEffect::Insert
            {
                base.push(self.pipeline.out_row(row, &mut out))?;
            }
            if self.state.put(tuple).is_some() {
                return Err(TableError::Source(
                    "two rows have one key: `key_fields` must name columns that no two rows share".to_owned(),
                ));
            }
        }
        Ok(())
    }
}

pub(super) fn rows(mut chunk: &[u8]) -> impl Iterator<Item = TupleRef<'_>> {
    std::iter::from_fn(move || {
        let (length, rest) = chunk.split_first_chunk::<4>()?;
        let (row, rest) = rest.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
        chunk = rest;
        Some(TupleRef::trusted(row))
    })
}

impl CompleteCopy {
    /// Returns the first base, and the state that it shows. `checksum` is that of the rows that
    /// readers receive, if they receive it.
    pub(crate) fn into_base(
        self,
        sequence: Sequence,
        bases: &BaseLocation,
        definition: RowDefinition,
        checksum: Option<Checksum>,
    ) -> Result<(Base, TableState, Pipeline), TableError> {
        let (position, committed_at, mark) = (self.to, self.committed_at, self.mark);
        let head = Head { sequence, position, committed_at, mark, checksum };
        let CompleteCopy { pipeline, state, base, .. } = self;
        let mut writer = match base {
            Some(writer) => writer,
            None => write_base(&state, &pipeline, bases)?,
        };
        writer.define(definition);
        let base = writer.finish(head, pipeline.out().clone())?;
        Ok((base, state, pipeline))
    }
}

fn write_base(state: &TableState, pipeline: &Pipeline, bases: &BaseLocation) -> Result<BaseWriter, TableError> {
    let mut writer = bases.writer()?;
    let mut out = TupleBuf::new();
    for row in state.rows() {
        if pipeline.classify(None, Some(row.as_ref())) == laredo_values::VisibleEffect::Insert {
            writer.push(pipeline.out_row(row.as_ref(), &mut out))?;
        }
    }
    Ok(writer)
}
