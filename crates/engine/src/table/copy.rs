//! A copy under way: what arrives, what is held meanwhile, and what both make together.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Checksum, CommitMark, CommitTime, Lsn, Schema, Sequence, TableName, TableState, TupleBuf, TupleRef};
use tokio::time::Instant;

use super::recent::Recent;
use super::waiting::Waiting;
use super::{ApplyError, TableCommit, TableError, TableOptions, apply_spool};
use crate::base::{Base, BaseWriter, Bases};
use crate::journal::Head;
use crate::pipeline::Pipeline;
use crate::source::{CopyEvent, Snapshot};
use crate::status::CopyProgress;
use crate::store::Definition;

/// How often a copy says in the log how far it is.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// A copy under way.
///
/// A transaction that commits before the snapshot is known, or while rows arrive, is held. One that the snapshot sees is let go,
/// and once all rows are there the others are put on top of them, as they come. Whatever is let go is remembered, so that a later
/// copy has to see it, should this one come to nothing.
///
/// All of them are kept beside, to be told one by one where the copy shows nothing that they do not explain.
#[derive(Debug)]
pub(crate) struct Copying {
    /// The last position known before; `None` for the first copy.
    from: Option<Lsn>,
    held: Waiting,
    /// Every transaction after `from` that is not held; nothing where some were not sent, or where they are too many.
    told: Option<Waiting>,
    incoming: Option<Incoming>,
    /// All rows are there, and the stream has to be read up to here.
    ended: Option<Lsn>,
    /// Every commit up to here is known.
    reached: Lsn,
    /// The newest commit of any table up to there.
    mark: CommitMark,
    /// The rows that are known are of another history: the copy begins a new journal.
    is_after_fork: bool,
    /// No copy is being made, and transactions are not held for one: the next copy has to see them.
    is_waiting: bool,
}

#[derive(Debug)]
struct Incoming {
    snapshot: Snapshot,
    pipeline: Pipeline,
    state: TableState,
    /// Written while rows arrive, until a transaction changes them.
    base: Option<BaseWriter>,
    progress: CopyProgress,
    logged_at: Instant,
    copied_at: CommitTime,
    /// When the newest transaction that it shows committed.
    committed_at: CommitTime,
    /// What its rows were defined by, as the source says once all are there.
    definition: String,
    /// Whether nothing but transactions can have changed rows since the last copy, as the source says then.
    is_told: bool,
}

/// Why a copy does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyStop {
    /// It cannot be used; another one may be.
    #[error("{0}")]
    StartOver(&'static str),
    /// The table cannot be followed.
    #[error(transparent)]
    Failed(#[from] TableError),
}

impl From<std::io::Error> for CopyStop {
    fn from(error: std::io::Error) -> CopyStop {
        CopyStop::Failed(error.into())
    }
}

/// The table at a position.
pub(crate) struct Done {
    pub(crate) from: Option<Lsn>,
    pub(crate) to: Lsn,
    pub(crate) committed_at: CommitTime,
    /// The newest commit of any table up to there.
    pub(crate) mark: CommitMark,
    pub(crate) definition: String,
    pub(crate) pipeline: Pipeline,
    pub(crate) state: TableState,
    /// Every transaction after `from`, in order, if nothing else can have changed rows.
    pub(crate) told: Option<Vec<TableCommit>>,
    pub(crate) base: Option<BaseWriter>,
}

impl Copying {
    pub(crate) fn new(from: Option<Lsn>) -> Copying {
        Copying {
            from,
            held: Waiting::default(),
            told: from.map(|_| Waiting::default()),
            incoming: None,
            ended: None,
            reached: from.unwrap_or(Lsn::ZERO),
            mark: CommitMark::default(),
            is_after_fork: false,
            is_waiting: false,
        }
    }

    /// A copy that takes the place of rows of another history.
    pub(crate) fn after_fork() -> Copying {
        Copying { is_after_fork: true, ..Copying::new(None) }
    }

    /// Returns true if the copy begins a new journal, although there is one.
    pub(crate) fn is_after_fork(&self) -> bool {
        self.is_after_fork
    }

    /// What is held stays: a later copy tells which of it it sees.
    pub(crate) fn start_over(&mut self) {
        self.incoming = None;
        self.ended = None;
    }

    /// Holds transactions from now on: the snapshot of the copy that begins may not see them.
    pub(crate) fn begin_attempt(&mut self) {
        self.is_waiting = false;
    }

    /// Lets go of what is held, and holds no more until the next attempt begins, whose snapshot has to see all of it.
    pub(crate) fn stop_holding(&mut self, recent: &mut Recent) {
        self.abandon(recent);
        self.misses_some();
        self.is_waiting = true;
    }

    /// Returns true if transactions are not held, because no copy is being made.
    pub(crate) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Forgets what is held: PostgreSQL was started again, so every later snapshot shows it, or it has never happened.
    pub(crate) fn forget_held(&mut self) {
        self.held = Waiting::default();
    }

    /// Transactions may be missing from the stream: what it tells cannot be told on.
    pub(crate) fn misses_some(&mut self) {
        self.told = None;
    }

    /// A transaction has committed.
    pub(crate) fn commit(
        &mut self,
        commit: TableCommit,
        options: &TableOptions,
        recent: &mut Recent,
    ) -> Result<(), CopyStop> {
        self.reached(commit.end, commit.mark());
        let xid = commit.xid;
        match &self.incoming {
            _ if self.is_waiting => recent.remember(xid),
            Some(incoming) if incoming.snapshot.sees(xid) => {
                recent.remember(xid);
                self.keep_told(commit, options);
            }
            _ => {
                self.held.push(commit, &options.folder).inspect_err(|_| recent.remember(xid))?;
            }
        }
        self.catch_up(options, recent)
    }

    /// Keeps one that is not held, unless there is no use in it.
    fn keep_told(&mut self, commit: TableCommit, options: &TableOptions) {
        let Some(told) = self.told.as_mut().filter(|_| self.from.is_none_or(|from| commit.end > from)) else { return };
        let error = told.push(commit, &options.folder).err();
        // They will come all at once: a reader that is at the head must not lose them, because the journal cannot hold so much.
        let (changes_max, bytes_max) = (options.journal.entries_max / 4, options.journal.bytes_max / 4);
        if error.is_some() || told.changes() > changes_max || told.bytes() > bytes_max.min(options.held_bytes_max) {
            tracing::info!(
                table = %options.request.name, bytes = told.bytes(), ?error,
                "what commits during this copy is not kept any more: readers will get it as one transaction"
            );
            self.told = None;
        }
    }

    /// Lets go of what the copy sees. What stays in a file keeps it; what comes next goes to another one, so that this one
    /// can go.
    fn let_go(&mut self, snapshot: &Snapshot, options: &TableOptions, recent: &mut Recent) {
        for commit in self.held.take() {
            match snapshot.sees(commit.xid) {
                true => {
                    recent.remember(commit.xid);
                    self.keep_told(commit, options);
                }
                false => self.held.push_back(commit),
            }
        }
    }

    /// Puts what is held on top of the copy, once all of its rows are there.
    fn catch_up(&mut self, options: &TableOptions, recent: &mut Recent) -> Result<(), CopyStop> {
        if self.ended.is_none() {
            return Ok(());
        }
        while let Some(incoming) = &mut self.incoming
            && let Some(mut held) = self.held.pop_front()
        {
            recent.remember(held.xid);
            if let Err(stop) = incoming.apply(&mut held) {
                self.held.push_front(held);
                return Err(stop);
            }
            self.keep_told(held, options);
        }
        Ok(())
    }

    pub(crate) fn reached(&mut self, position: Lsn, mark: CommitMark) {
        if position > self.reached || (position == self.reached && mark.end > self.mark.end) {
            (self.reached, self.mark) = (position, mark);
        }
    }

    /// The rows as of a position are known meanwhile: what differs from them is what counts.
    pub(crate) fn go_on_from(&mut self, position: Lsn) {
        self.from = Some(position);
        self.incoming.iter_mut().for_each(|incoming| incoming.base = None);
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.held.bytes()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Once the copy has ended nothing is held any more, and the stream has to be read on, or it would never be complete.
    pub(crate) fn is_full(&self, held_bytes_max: u64) -> bool {
        self.ended.is_none() && self.held.bytes() > held_bytes_max
    }

    pub(crate) fn progress(&self) -> Option<CopyProgress> {
        self.incoming.as_ref().map(|incoming| incoming.progress)
    }

    /// Says how far the copy is, now and then.
    pub(crate) fn log_progress(&mut self, table: &TableName) {
        let Some(Incoming { progress, logged_at, .. }) = &mut self.incoming else { return };
        if logged_at.elapsed() < LOG_INTERVAL {
            return;
        }
        *logged_at = Instant::now();
        let CopyProgress { rows, bytes, rows_estimated, .. } = *progress;
        let seconds_left = progress.left().map(|left| left.as_secs());
        tracing::info!(%table, rows, rows_estimated, bytes, ?seconds_left, "copying the table");
    }

    pub(crate) fn receive(
        &mut self,
        event: CopyEvent,
        (options, bases): (&TableOptions, &Bases),
        known: Option<(&TableState, &Pipeline)>,
        now: CommitTime,
        recent: &mut Recent,
    ) -> Result<(), CopyStop> {
        match event {
            CopyEvent::Begin { schema, snapshot, rows_estimated, bytes_estimated } => {
                self.start_over();
                recent.forget_below(snapshot.xmin);
                self.let_go(&snapshot, options, recent);
                let started_at = Instant::now();
                let progress = CopyProgress { rows: 0, bytes: 0, rows_estimated, bytes_estimated, started_at };
                let base = if known.is_none() { Some(bases.writer().map_err(TableError::from)?) } else { None };
                self.incoming = Some(Incoming::new(&schema, snapshot, progress, options, base, now)?);
            }
            CopyEvent::Rows(chunk) => {
                if let Some(incoming) = &mut self.incoming {
                    incoming.add(&chunk, known)?;
                }
            }
            CopyEvent::End { inserted, definition, is_told } => {
                let Some(incoming) = &mut self.incoming else {
                    return Err(CopyStop::StartOver("the copy ended before it began"));
                };
                (incoming.definition, incoming.is_told) = (definition, is_told);
                self.ended = Some(inserted);
                self.catch_up(options, recent)?;
            }
        }
        Ok(())
    }

    /// The table at the position that the stream has reached, once that is past all that the copy may have seen. It is past all
    /// that readers have been told, too: a change that was not announced gets a position of its own, or a reader that has the
    /// last one would go on behind it.
    pub(crate) fn complete(&mut self) -> Option<Done> {
        self.ended.filter(|inserted| self.reached >= *inserted && self.from.is_none_or(|from| self.reached > from))?;
        let Incoming { pipeline, state, base, committed_at, definition, is_told, .. } = self.incoming.take()?;
        self.ended = None;
        let told = self.told.take().filter(|_| is_told).map(|mut told| {
            let mut commits = Vec::from(told.take());
            // Those that the copy saw were let go before others that had committed earlier.
            commits.sort_by_key(|commit| commit.end);
            commits
        });
        let (from, to, mark) = (self.from, self.reached, self.mark);
        Some(Done { from, to, committed_at, mark, definition, pipeline, state, told, base })
    }

    /// The copy is given up: whatever was held has to be seen by the next one.
    pub(crate) fn abandon(&mut self, recent: &mut Recent) {
        self.held.take().into_iter().for_each(|held| recent.remember(held.xid));
    }
}

impl Incoming {
    fn new(
        schema: &Arc<Schema>,
        snapshot: Snapshot,
        progress: CopyProgress,
        options: &TableOptions,
        base: Option<BaseWriter>,
        copied_at: CommitTime,
    ) -> Result<Incoming, TableError> {
        let pipeline = Pipeline::bind(&options.pipeline, schema)?;
        // An estimate only saves growing; a wrong one must not cost the memory of a table that is not there.
        let capacity = usize::try_from(progress.rows_estimated.min(progress.bytes_estimated / 32)).unwrap_or(0);
        let state = TableState::new(pipeline.state().clone(), &[], capacity)?;
        let logged_at = progress.started_at;
        let committed_at = copied_at;
        let (definition, is_told) = (String::new(), false);
        Ok(Incoming {
            snapshot,
            pipeline,
            state,
            base,
            progress,
            logged_at,
            copied_at,
            committed_at,
            definition,
            is_told,
        })
    }

    /// Puts a transaction that the snapshot does not see on top.
    fn apply(&mut self, held: &mut TableCommit) -> Result<(), CopyStop> {
        if !self.pipeline.fits(&mut held.spool)? {
            return Err(CopyStop::StartOver("the table's columns or types changed again"));
        }
        self.base = None;
        match apply_spool(&mut self.state, &self.pipeline, &mut held.spool, held.committed_at, |_| Ok(())) {
            Ok(()) => {
                self.committed_at = held.committed_at;
                Ok(())
            }
            Err(ApplyError::Io(error)) => Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "a transaction held during the copy does not fit it");
                Err(CopyStop::StartOver("a held transaction does not fit the copy"))
            }
        }
    }

    fn add(&mut self, chunk: &[u8], known: Option<(&TableState, &Pipeline)>) -> Result<(), TableError> {
        let (mut with_time, mut out) = (TupleBuf::new(), TupleBuf::new());
        let same_schema = known.filter(|(_, pipeline)| pipeline.state() == self.pipeline.state());
        for row in rows(chunk) {
            let row = self.pipeline.state_row(row, self.copied_at, &mut with_time);
            // A row that did not change is shared with the state that readers have, and keeps its commit time.
            let unchanged = same_schema.and_then(|(state, _)| {
                state.get_like(row).filter(|old| self.pipeline.same_source_row(old.as_ref(), row))
            });
            let tuple = unchanged.cloned().unwrap_or_else(|| row.to_tuple());
            self.progress.rows += 1;
            self.progress.bytes += tuple.len() as u64;
            if let Some(base) = &mut self.base
                && self.pipeline.classify(None, Some(row)) == laredo_core::Seen::Insert
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

impl Done {
    /// The first base, and the state that it shows; `checksum` is that of the rows that readers get, if they get it.
    pub(crate) fn into_base(
        self,
        sequence: Sequence,
        bases: &Bases,
        definition: Definition,
        checksum: Option<Checksum>,
    ) -> Result<(Base, TableState, Pipeline), TableError> {
        let (position, committed_at, mark) = (self.to, self.committed_at, self.mark);
        let head = Head { sequence, position, committed_at, mark, checksum };
        let Done { pipeline, state, base, .. } = self;
        let mut writer = match base {
            Some(writer) => writer,
            None => write_base(&state, &pipeline, bases)?,
        };
        writer.define(definition);
        let base = writer.finish(head, pipeline.out().clone())?;
        Ok((base, state, pipeline))
    }
}

fn write_base(state: &TableState, pipeline: &Pipeline, bases: &Bases) -> Result<BaseWriter, TableError> {
    let mut writer = bases.writer()?;
    let mut out = TupleBuf::new();
    for row in state.rows() {
        if pipeline.classify(None, Some(row.as_ref())) == laredo_core::Seen::Insert {
            writer.push(pipeline.out_row(row.as_ref(), &mut out))?;
        }
    }
    Ok(writer)
}
