//! How a table's journal begins: with what an earlier run has left, or with a first copy.

use std::sync::Arc;

use laredo_core::Lsn;
use tokio::sync::watch;

use super::{Known, Live, Phase, Table, TableError, Wants, checksum, copy};
use crate::base::Bases;
use crate::history::Fork;
use crate::journal::{Beginning, Head, Journal};
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::snapshots::{Recovered, SnapshotError, SnapshotInfo, Snapshots};
use crate::source::Resume;
use crate::status::TablePhase;
use crate::store::{self, Appender, Begun, Definition, Restored, Store, StoreStatus};

impl Table {
    /// Goes on with what an earlier run left; by a copy where there is a reason for one. Readers have what there is at once. `written` is
    /// a position that no reader can have been told anything beyond.
    pub(crate) fn restore(&mut self, restored: Restored, resume: Resume, written: Lsn) -> Result<(), TableError> {
        let Restored { mut beginning, appender, rows, definition, lineage, is_of_same_server } = restored;
        self.bases.store = self.bases.store.take().map(|(store, _)| (store, lineage));
        if let Resume::Copy(reason) = &resume
            && !is_of_same_server
        {
            // Without what the slot would have sent, nothing proves that the history is still the one that was followed.
            let fork = Fork { common: Lsn::ZERO, abandoned: beginning.head.position, is_certain: false };
            self.note_fork(&fork, reason)?;
            beginning.abandoned = self.abandoned;
        }
        let is_whole = definition.is_whole && self.options.pipeline.is_plain();
        // Only the source has what filters and transforms leave out.
        let filtered = || Resume::Copy("what is kept are the rows that filters and transforms leave".to_owned());
        let resume = if is_whole { resume } else { filtered() };
        let pipeline = Pipeline::bind(&PipelineOptions::default(), rows.schema())?;
        let is_compared = self.options.pipeline.is_repeatable();
        let head = beginning.head;
        let beginning =
            Beginning { head: Head { checksum: head.checksum.filter(|_| is_compared), ..head }, ..beginning };
        let (journal, writer) = Journal::open(beginning, self.options.journal.clone(), Some(appender));
        tracing::info!(
            table = %self.name(), rows = rows.len(), position = %head.position, sequence = %head.sequence,
            "the journal goes on where it ended"
        );
        let known = if is_whole { Known::Source } else { Known::Readers };
        self.live = Some(Live { state: rows, pipeline, writer, known, shown: None, is_compared });
        self.current_at = head.committed_at;
        self.journal.send_replace(Some(journal));
        self.go_on(resume, written)
    }

    /// Begins a journal at a snapshot, where the source has everything after it. Where it has not, the table is copied as if there
    /// were none: rows that may be of any age are served only if somebody asks for it. `written` as above.
    pub(crate) fn begin_at_snapshot(
        &mut self,
        recovered: Recovered,
        resume: Resume,
        written: Lsn,
    ) -> Result<(), TableError> {
        let SnapshotInfo { id, position, .. } = recovered.info.clone();
        if let Resume::Copy(reason) = resume {
            tracing::warn!(
                table = %self.name(), id, %position, reason,
                "the newest snapshot cannot be gone on from, and the table is copied; RestoreSnapshot serves its rows until then"
            );
            return Ok(());
        }
        self.serve_snapshot(recovered)?;
        tracing::info!(table = %self.name(), id, %position, "a new journal begins at the newest snapshot");
        self.go_on(resume, written)
    }

    /// Serves the rows of a snapshot until the first copy is complete, which then tells what differs.
    ///
    /// # Errors
    /// When the table is served already, or has failed.
    pub(crate) fn restore_snapshot(&mut self, recovered: Recovered) -> Result<(), SnapshotError> {
        if let Some(live) = &self.live {
            return Err(SnapshotError::Served(live.writer.committed().position));
        }
        if let TablePhase::Failed { error } | TablePhase::Retrying { error, .. } = &self.status.lock().phase
            && !self.is_copying()
        {
            return Err(SnapshotError::Failed(error.clone()));
        }
        let SnapshotInfo { id, position, .. } = recovered.info.clone();
        self.serve_snapshot(recovered).map_err(|error| SnapshotError::Failed(error.to_string()))?;
        if let Phase::Copying(copying) = &mut self.phase {
            copying.go_on_from(position);
        }
        tracing::warn!(table = %self.name(), id, %position, "the rows of a snapshot are served until the table is copied");
        Ok(())
    }

    /// Begins a journal with the rows of a snapshot.
    fn serve_snapshot(&mut self, recovered: Recovered) -> Result<(), TableError> {
        let Recovered { info, rows: state, definition, is_of_same_server: _ } = recovered;
        let is_whole = definition.is_whole && self.options.pipeline.is_plain();
        // They are what the pipeline made of the source's rows.
        let pipeline = Pipeline::bind(&PipelineOptions::default(), state.schema())?;
        let (to, committed_at) = (info.position, info.committed_at);
        let source = definition.source.clone();
        let (mark, from, told, base) = (info.mark, None, None, None);
        let done = copy::Done { from, to, committed_at, mark, definition: source, pipeline, state, told, base };
        let live = self.begin_journal(done, definition)?;
        let known = if is_whole { Known::Source } else { Known::Readers };
        self.live = Some(Live { known, ..live });
        self.current_at = info.committed_at;
        Ok(())
    }

    /// Positions up to here may be those of a history that the database has abandoned, as earlier runs have noted.
    pub(crate) fn set_abandoned(&mut self, position: Lsn) {
        self.abandoned = position;
    }

    /// The table is served, and is followed or copied again.
    fn go_on(&mut self, resume: Resume, written: Lsn) -> Result<(), TableError> {
        self.phase = Phase::Live;
        self.status.lock().phase = TablePhase::Live;
        match resume {
            Resume::Follow => {}
            Resume::FollowThenCopy(reason) => self.copy_due = Some((written, reason)),
            Resume::Copy(reason) => drop(self.copy_after_a_gap(&reason)?),
        }
        self.copy_if_due(Wants::Nothing)?;
        self.report();
        Ok(())
    }

    /// Its snapshots, if it has any.
    pub(crate) fn snapshots(&self) -> Option<&Arc<Snapshots>> {
        self.snapshots.as_ref()
    }

    /// Tells of the journal.
    pub(crate) fn watch_journal(&self) -> watch::Receiver<Option<Journal>> {
        self.journal.subscribe()
    }

    /// Where its bases go.
    pub(crate) fn bases(&self) -> &Bases {
        &self.bases
    }

    /// How far its store is, if it has one.
    pub(crate) fn store_status(&self) -> Option<watch::Receiver<StoreStatus>> {
        self.bases.store.as_ref().map(|(store, _)| store.status())
    }

    /// Why nothing is kept any more, if it is so.
    pub(super) fn store_failure(&self) -> Option<String> {
        self.store_status().and_then(|status| status.borrow().failed.clone())
    }

    /// Returns why the store takes nothing for now, if it is so.
    pub(super) fn store_stall(&self) -> Option<String> {
        self.store_status().and_then(|status| status.borrow().stalled.clone())
    }

    /// Returns what the rows of a copy are rows of.
    pub(super) fn definition(&self, source: String) -> Definition {
        let pipeline = &self.options.pipeline;
        Definition { is_whole: pipeline.is_plain(), source, pipeline: pipeline.description() }
    }

    /// Begins a journal with a first copy.
    pub(super) fn begin_journal(&mut self, done: copy::Done, definition: Definition) -> Result<Live, TableError> {
        let instance = self.options.instance.on(self.identity.timeline, self.status.lock().forks);
        // Before the base has a name: a folder that has one is said to be somebody's.
        let claim = |(store, _): &(Arc<Store>, _)| store::claim(store, &instance, (self.name(), &self.identity));
        let manifest = self.bases.store.as_ref().map(claim).transpose()?;
        let shown = done.pipeline.checksums_of(&done.state);
        let is_compared = self.options.pipeline.is_repeatable();
        let checksum = is_compared.then(|| checksum(&done.state, shown.as_ref()));
        let (base, state, pipeline) = done.into_base(self.first_sequence, &self.bases, definition.clone(), checksum)?;
        let mut beginning = Beginning::at(instance.clone(), Arc::new(base), definition.clone());
        beginning.abandoned = self.abandoned;
        beginning.abandoned_journals.clone_from(&self.abandoned_journals);
        let begin = |store: &Arc<Store>| {
            let (head, taken, schema) = (beginning.head, beginning.taken, beginning.schema.clone());
            Appender::begin(store.clone(), [].into(), Begun { instance, head, taken, schema, definition })
        };
        let appender = self.bases.store.as_ref().map(|(store, _)| begin(store)).transpose()?;
        if let (Some(manifest), Some(appender)) = (manifest, &appender) {
            store::note_beginning(appender.store(), manifest, appender)?;
        }
        let (journal, writer) = Journal::open(beginning, self.options.journal.clone(), appender);
        self.journal.send_replace(Some(journal));
        Ok(Live { state, pipeline, writer, known: Known::Source, shown, is_compared })
    }
}
