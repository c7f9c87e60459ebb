//! The beginning of a table's journal: with the state that an earlier run has left, or with a first
//! copy.

use std::sync::Arc;

use laredo_core::Lsn;
use tokio::sync::watch;

use super::{FollowUpAction, LiveTable, RowOrigin, Table, TableError, TableLifecycle, copy, readers_checksum};
use crate::base::BaseLocation;
use crate::head::{Head, InstanceId};
use crate::journal::{Journal, JournalBeginning, PredecessorJournal};
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::recovery::RestoredJournal;
use crate::snapshots::{RecoveredSnapshot, SnapshotError, SnapshotFolder, SnapshotInfo};
use crate::source::Fork;
use crate::source::ResumeDecision;
use crate::status::TablePhase;
use crate::store::{self, AppenderState, JournalAppender, JournalFolder, RowDefinition, StoreStatus};

impl Table {
    /// Continues with the state that an earlier run has left. Copies the table if `resume` gives a
    /// reason. Readers have the rows that are left at once. No reader can have received anything
    /// beyond the position `written`.
    pub(crate) fn restore(
        &mut self,
        restored: RestoredJournal,
        resume: ResumeDecision,
        written: Lsn,
    ) -> Result<(), TableError> {
        let RestoredJournal { mut beginning, appender, rows, definition, lineage, is_of_same_server } = restored;
        self.bases.store = self.bases.store.take().map(|(store, _)| (store, lineage));
        if let ResumeDecision::Copy(reason) = &resume
            && !is_of_same_server
        {
            // Without the changes that the slot would have sent, nothing proves that the history is
            // still the one that was followed.
            let fork = Fork { common: Lsn::ZERO, abandoned: beginning.head.position, is_certain: false };
            self.note_or_owe_fork(None, &fork, reason)?;
            beginning.abandoned = self.abandoned;
        }
        let is_whole = definition.is_whole && self.options.pipeline.is_plain();
        // Only the source has the rows and columns that filters and transforms leave out.
        let filtered =
            || ResumeDecision::Copy("what is kept are the rows that filters and transforms leave".to_owned());
        let resume = if is_whole { resume } else { filtered() };
        let pipeline = Pipeline::bind(&PipelineOptions::default(), rows.schema())?;
        let is_compared = self.options.pipeline.is_repeatable();
        let head = beginning.head;
        let beginning =
            JournalBeginning { head: Head { checksum: head.checksum.filter(|_| is_compared), ..head }, ..beginning };
        let (journal, writer) = Journal::open(beginning, self.options.journal.clone(), Some(appender));
        tracing::info!(
            table = %self.name(), rows = rows.len(), position = %head.position, sequence = %head.sequence,
            "the journal goes on where it ended"
        );
        let known = if is_whole { RowOrigin::Source } else { RowOrigin::Readers };
        self.live = Some(LiveTable { state: rows, pipeline, writer, known, shown: None, is_compared });
        self.current_at = head.committed_at;
        self.journal.send_replace(Some(journal));
        self.resume_following(resume, written)
    }

    /// Begins a journal at a snapshot, if the source has everything after it. Otherwise the table
    /// is copied as if there were no snapshot, because rows of any age are served only on request.
    /// `written` is the same as in `restore`.
    pub(crate) fn begin_at_snapshot(
        &mut self,
        recovered: RecoveredSnapshot,
        resume: ResumeDecision,
        written: Lsn,
    ) -> Result<(), TableError> {
        let SnapshotInfo { id, position, .. } = recovered.info.clone();
        if let ResumeDecision::Copy(reason) = resume {
            tracing::warn!(
                table = %self.name(), id, %position, reason,
                "the newest snapshot cannot be gone on from, and the table is copied; RestoreSnapshot serves its rows until then"
            );
            return Ok(());
        }
        self.serve_snapshot(recovered)?;
        tracing::info!(table = %self.name(), id, %position, "a new journal begins at the newest snapshot");
        self.resume_following(resume, written)
    }

    /// Serves the rows of a snapshot until the first copy is complete. Readers then receive the
    /// differences.
    ///
    /// # Errors
    /// When the table is already served, or has failed.
    pub(crate) fn restore_snapshot(&mut self, recovered: RecoveredSnapshot) -> Result<(), SnapshotError> {
        if let Some(live) = &self.live {
            return Err(SnapshotError::Served(live.writer.committed().position));
        }
        if self.is_forked {
            // The journal after the copy must not repeat the sequences of one that begins now.
            return Err(SnapshotError::Forked);
        }
        if let TablePhase::Failed { error } | TablePhase::Retrying { error, .. } = &self.status.lock().phase
            && !self.is_copying()
        {
            return Err(SnapshotError::Failed(error.clone()));
        }
        let SnapshotInfo { id, position, .. } = recovered.info.clone();
        self.serve_snapshot(recovered).map_err(|error| SnapshotError::Failed(error.to_string()))?;
        if let TableLifecycle::Copying(copying) = &mut self.phase {
            copying.continue_from(position);
        }
        tracing::warn!(table = %self.name(), id, %position, "the rows of a snapshot are served until the table is copied");
        Ok(())
    }

    /// Begins a journal with the rows of a snapshot.
    fn serve_snapshot(&mut self, recovered: RecoveredSnapshot) -> Result<(), TableError> {
        let RecoveredSnapshot { info, rows: state, definition, unchanged_since, is_of_same_server: _ } = recovered;
        let is_whole = definition.is_whole && self.options.pipeline.is_plain();
        // These rows have already passed the pipeline.
        let pipeline = Pipeline::bind(&PipelineOptions::default(), state.schema())?;
        let (to, committed_at) = (info.position, info.committed_at);
        let source = definition.source.clone();
        let (mark, from, told, base) = (info.mark, None, None, None);
        let done = copy::CompleteCopy { from, to, committed_at, mark, definition: source, pipeline, state, told, base };
        let instance = InstanceId::parse_snapshot_id(&info.id).map(|(instance, _)| InstanceId(instance.to_owned()));
        let predecessor = instance.map(|instance| PredecessorJournal { instance, position: to, unchanged_since });
        let live = self.begin_journal(done, definition, predecessor)?;
        let known = if is_whole { RowOrigin::Source } else { RowOrigin::Readers };
        self.live = Some(LiveTable { known, ..live });
        self.current_at = info.committed_at;
        Ok(())
    }

    /// Serves the table, and follows or copies it again.
    fn resume_following(&mut self, resume: ResumeDecision, written: Lsn) -> Result<(), TableError> {
        self.phase = TableLifecycle::Live;
        self.status.lock().phase = TablePhase::Live;
        match resume {
            ResumeDecision::Follow => {}
            ResumeDecision::FollowThenCopy(reason) => self.copy_due = Some((written, reason)),
            ResumeDecision::Copy(reason) => drop(self.copy_after_a_gap(&reason)?),
        }
        self.copy_if_due(FollowUpAction::Nothing)?;
        self.report();
        Ok(())
    }

    /// Returns the table's snapshots, if it has any.
    pub(super) fn snapshots(&self) -> Option<Arc<SnapshotFolder>> {
        self.snapshots.borrow().clone()
    }

    /// Returns a receiver of the table's snapshots, which come once their folder is open.
    pub(super) fn watch_snapshots(&self) -> watch::Receiver<Option<Arc<SnapshotFolder>>> {
        self.snapshots.subscribe()
    }

    /// Returns a receiver of the journal.
    pub(crate) fn watch_journal(&self) -> watch::Receiver<Option<Journal>> {
        self.journal.subscribe()
    }

    /// Returns the place where the table's bases are made.
    pub(crate) fn bases(&self) -> &BaseLocation {
        &self.bases
    }

    /// Returns the status of the table's store, if it has one.
    pub(crate) fn store_status(&self) -> Option<watch::Receiver<StoreStatus>> {
        self.bases.store.as_ref().map(|(store, _)| store.status())
    }

    /// Returns the error of the store, if it has failed.
    pub(super) fn store_failure(&self) -> Option<String> {
        self.store_status().and_then(|status| status.borrow().failed.clone())
    }

    /// Returns the reason why the store accepts no writes for now, if it does not.
    pub(super) fn store_stall(&self) -> Option<String> {
        self.store_status().and_then(|status| status.borrow().stalled.clone())
    }

    /// Returns the definition of a copy's rows. `source` is the definition that the source gave.
    pub(super) fn definition(&self, source: String) -> RowDefinition {
        let pipeline = &self.options.pipeline;
        RowDefinition { is_whole: pipeline.is_plain(), source, pipeline: pipeline.description() }
    }

    /// Begins a journal with a first copy, or with a snapshot that another journal has issued.
    pub(super) fn begin_journal(
        &mut self,
        done: copy::CompleteCopy,
        definition: RowDefinition,
        predecessor: Option<PredecessorJournal>,
    ) -> Result<LiveTable, TableError> {
        let instance = self.options.instance.on_timeline(self.identity.timeline, self.status.lock().forks);
        // The folder is claimed before the base has a name: a folder with a base must have an
        // owner.
        let claim =
            |(store, _): &(Arc<JournalFolder>, _)| store::claim(store, &instance, (self.name(), &self.identity));
        let manifest = self.bases.store.as_ref().map(claim).transpose()?;
        let shown = done.pipeline.checksums_of(&done.state);
        let is_compared = self.options.pipeline.is_repeatable();
        let checksum = is_compared.then(|| readers_checksum(&done.state, shown.as_ref()));
        let (base, state, pipeline) = done.into_base(self.first_sequence, &self.bases, definition.clone(), checksum)?;
        let mut beginning = JournalBeginning::from_base(instance.clone(), Arc::new(base), definition.clone());
        beginning.abandoned = self.abandoned;
        beginning.abandoned_journals.clone_from(&self.abandoned_journals);
        if let Some(predecessor) = predecessor {
            beginning.set_predecessor(predecessor);
        }
        let begin = |store: &Arc<JournalFolder>| {
            let (head, taken, schema) = (beginning.head, beginning.taken, beginning.schema.clone());
            JournalAppender::begin(
                store.clone(),
                [].into(),
                AppenderState { instance, head, taken, schema, definition },
            )
        };
        let appender = self.bases.store.as_ref().map(|(store, _)| begin(store)).transpose()?;
        if let (Some(manifest), Some(appender)) = (manifest, &appender) {
            store::note_beginning(appender.store(), manifest, appender)?;
        }
        let (journal, writer) = Journal::open(beginning, self.options.journal.clone(), appender);
        self.journal.send_replace(Some(journal));
        Ok(LiveTable { state, pipeline, writer, known: RowOrigin::Source, shown, is_compared })
    }
}
