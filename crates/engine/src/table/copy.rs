//! A copy under way: what arrives, what is held meanwhile, and what both make together.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn, Schema, Sequence, TableName, TableState, TupleBuf, TupleRef};
use tokio::time::Instant;

use super::{ApplyError, TableCommit, TableError, TableOptions, apply_spool};
use crate::base::{Base, BaseWriter};
use crate::journal::Head;
use crate::pipeline::Pipeline;
use crate::source::{CopyEvent, Snapshot};
use crate::status::CopyProgress;

/// A transaction that committed during the copy.
pub(crate) type Held = TableCommit;

/// Held transactions stay in memory up to this many bytes together.
const HELD_MEMORY_BYTES: u64 = 32 * 1024 * 1024;

/// How often a copy says in the log how far it is.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// A copy under way.
#[derive(Debug)]
pub(crate) struct Copying {
    /// The last position known before; `None` for the first copy.
    from: Option<Lsn>,
    held: Vec<Held>,
    held_bytes: u64,
    held_memory: u64,
    incoming: Option<Incoming>,
    ended: Option<(Snapshot, Lsn)>,
    /// Every commit up to here is held.
    reached: Lsn,
}

#[derive(Debug)]
struct Incoming {
    pipeline: Pipeline,
    state: TableState,
    base: Option<BaseWriter>,
    progress: CopyProgress,
    logged_at: Instant,
    copied_at: CommitTime,
}

/// What came of a copy once the stream had reached its end.
pub(crate) enum Completed {
    /// It cannot be used, because of this.
    StartOver(&'static str),
    /// It shows the table at a position.
    Done(Box<Done>),
}

/// The table at a position.
pub(crate) struct Done {
    pub(crate) from: Option<Lsn>,
    pub(crate) to: Lsn,
    pub(crate) committed_at: CommitTime,
    pub(crate) pipeline: Pipeline,
    pub(crate) state: TableState,
    pub(crate) held: Vec<Held>,
    /// What was written while rows arrived, unless a held transaction has changed them since.
    base: Option<BaseWriter>,
}

impl Copying {
    pub(crate) fn new(from: Option<Lsn>) -> Copying {
        let reached = from.unwrap_or(Lsn::ZERO);
        Copying { from, held: Vec::new(), held_bytes: 0, held_memory: 0, incoming: None, ended: None, reached }
    }

    /// What is held stays: a later copy tells which of it it has seen.
    pub(crate) fn start_over(&mut self) {
        self.incoming = None;
        self.ended = None;
    }

    pub(crate) fn hold(&mut self, mut commit: Held, folder: &Path) -> Result<(), TableError> {
        if self.held_memory + commit.spool.memory_bytes() as u64 > HELD_MEMORY_BYTES {
            commit.spool.to_file(folder)?;
        }
        self.held_memory += commit.spool.memory_bytes() as u64;
        self.held_bytes += commit.spool.bytes();
        self.reached(commit.end);
        self.held.push(commit);
        Ok(())
    }

    pub(crate) fn reached(&mut self, position: Lsn) {
        self.reached = self.reached.max(position);
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Once the copy has ended the stream has to be read on, or it would never be complete.
    pub(crate) fn is_full(&self, held_bytes_max: u64) -> bool {
        self.ended.is_none() && self.held_bytes > held_bytes_max
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.ended.as_ref().is_some_and(|(_, inserted)| self.reached >= *inserted)
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
        options: &TableOptions,
        known: Option<(&TableState, &Pipeline)>,
        now: CommitTime,
    ) -> Result<(), TableError> {
        match event {
            CopyEvent::Begin { schema, rows_estimated, bytes_estimated } => {
                self.start_over();
                let first = known.is_none();
                self.incoming = Some(Incoming::new(&schema, rows_estimated, bytes_estimated, options, first, now)?);
            }
            CopyEvent::Rows(chunk) => {
                if let Some(incoming) = &mut self.incoming {
                    incoming.add(&chunk, known)?;
                }
            }
            CopyEvent::End { snapshot, inserted } => self.ended = Some((snapshot, inserted)),
        }
        Ok(())
    }

    /// Puts on top of the copy what it has not seen of the held transactions.
    pub(crate) fn complete(&mut self) -> Result<Completed, TableError> {
        let (Some(mut incoming), Some((snapshot, _))) = (self.incoming.take(), self.ended.take()) else {
            return Ok(Completed::StartOver("the copy ended before it began"));
        };
        for held in &mut self.held {
            if snapshot.sees(held.xid) {
                continue;
            }
            if !held.spool.fits(incoming.pipeline.source()) {
                return Ok(Completed::StartOver("the table's columns changed again"));
            }
            incoming.base = None;
            match apply_spool(&mut incoming.state, &incoming.pipeline, &mut held.spool, held.committed_at, |_| Ok(())) {
                Ok(()) => {}
                Err(ApplyError::Io(error)) => return Err(error.into()),
                Err(ApplyError::Diverged(error)) => {
                    tracing::error!(%error, "a transaction held during the copy does not fit it");
                    return Ok(Completed::StartOver("a held transaction does not fit the copy"));
                }
            }
        }
        let Incoming { pipeline, state, base, copied_at, .. } = incoming;
        let held = std::mem::take(&mut self.held);
        let committed_at = held.last().map_or(copied_at, |held| held.committed_at);
        let (from, to) = (self.from, self.reached);
        Ok(Completed::Done(Box::new(Done { from, to, committed_at, pipeline, state, held, base })))
    }
}

impl Incoming {
    fn new(
        schema: &Arc<Schema>,
        rows_estimated: u64,
        bytes_estimated: u64,
        options: &TableOptions,
        first: bool,
        copied_at: CommitTime,
    ) -> Result<Incoming, TableError> {
        let pipeline = Pipeline::bind(&options.pipeline, schema)?;
        // An estimate only saves growing; a wrong one must not cost the memory of a table that is not there.
        let capacity = usize::try_from(rows_estimated.min(bytes_estimated / 32)).unwrap_or(0);
        let state = TableState::new(pipeline.state().clone(), &[], capacity)?;
        let base = if first { Some(BaseWriter::new(&options.folder)?) } else { None };
        let started_at = Instant::now();
        let progress = CopyProgress { rows: 0, bytes: 0, rows_estimated, bytes_estimated, started_at };
        Ok(Incoming { pipeline, state, base, progress, logged_at: started_at, copied_at })
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

fn rows(mut chunk: &[u8]) -> impl Iterator<Item = TupleRef<'_>> {
    std::iter::from_fn(move || {
        let (length, rest) = chunk.split_first_chunk::<4>()?;
        let (row, rest) = rest.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
        chunk = rest;
        Some(TupleRef::trusted(row))
    })
}

impl Done {
    /// The first base, and the state that it shows.
    pub(crate) fn into_base(
        self,
        sequence: Sequence,
        folder: &Path,
    ) -> Result<(Base, TableState, Pipeline), TableError> {
        let head = Head { sequence, position: self.to, committed_at: self.committed_at };
        let Done { pipeline, state, base, .. } = self;
        let writer = match base {
            Some(writer) => writer,
            None => write_base(&state, &pipeline, folder)?,
        };
        let base = writer.finish(head, pipeline.out().clone())?;
        Ok((base, state, pipeline))
    }
}

fn write_base(state: &TableState, pipeline: &Pipeline, folder: &Path) -> Result<BaseWriter, TableError> {
    let mut writer = BaseWriter::new(folder)?;
    let mut out = TupleBuf::new();
    for row in state.rows() {
        if pipeline.classify(None, Some(row.as_ref())) == laredo_core::Seen::Insert {
            writer.push(pipeline.out_row(row.as_ref(), &mut out))?;
        }
    }
    Ok(writer)
}
