//! The journal, the bases and the snapshots of a table, and the history that they belong to.

use std::sync::Arc;

use laredo_core::{Lsn, Sequence};
use tokio::sync::watch;

use super::TableError;
use super::copy::CompleteCopy;
use super::folders::{SavedTable, TableFolders, open_without_restoring};
use super::options::TableOptions;
use super::published::{PublishedTable, RowOrigin, TableChangeCounts, readers_checksum};
use super::recopy_diff::publish_copy;
use crate::base::BaseLocation;
use crate::clock::Clock;
use crate::durable::DurablePosition;
use crate::head::InstanceId;
use crate::journal::{Journal, JournalBeginning, JournalWriter, PredecessorJournal};
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::recovery::RestoredJournal;
use crate::snapshots::{RecoveredSnapshot, SnapshotFolder};
use crate::source::{Fork, SourceServer};
use crate::store::{
    self, AppenderState, ForkLog, JournalAppender, JournalFolder, JournalManifest, RowDefinition, SKIPPED, StoreStatus,
};

/// The journal, the bases and the snapshots of a table.
#[derive(Debug)]
pub(super) struct TableStorage {
    options: Arc<TableOptions>,
    /// The server of the source, which a new journal in the store is labeled with.
    server: SourceServer,
    journal: watch::Sender<Option<Journal>>,
    bases: BaseLocation,
    /// The snapshots, which the table shares with its handles.
    snapshots: watch::Sender<Option<Arc<SnapshotFolder>>>,
    /// The first sequence of the next journal.
    first_sequence: Sequence,
    /// The number of forks in this run, which the name of a new journal contains.
    forks: u64,
    /// Positions up to here may belong to a history that the database has abandoned.
    abandoned: Lsn,
    /// The journals of those histories. Each has the newest position that its history is known to
    /// share with the present one.
    abandoned_journals: Vec<(InstanceId, Lsn)>,
}

impl TableStorage {
    pub(super) fn new(
        options: Arc<TableOptions>,
        server: SourceServer,
        journal: watch::Sender<Option<Journal>>,
        snapshots: watch::Sender<Option<Arc<SnapshotFolder>>>,
    ) -> TableStorage {
        TableStorage {
            server,
            journal,
            bases: BaseLocation { folder: options.folder.clone(), store: None },
            snapshots,
            first_sequence: options.first_sequence,
            forks: 0,
            abandoned: Lsn::ZERO,
            abandoned_journals: Vec::new(),
            options,
        }
    }

    /// Uses the folders for the journal, its bases and the snapshots. Returns what was in them.
    pub(super) fn use_folders(&mut self, opened: TableFolders) -> Option<SavedTable> {
        let TableFolders { store, snapshots, left, abandoned } = opened;
        let instance = self.instance();
        self.bases.store = store.map(|store| (store, instance));
        self.abandoned = self.abandoned.max(abandoned);
        self.snapshots.send_replace(snapshots);
        left
    }

    /// Opens the folders that could not be opened when the run began. What is in them is too old to
    /// continue from: the source has kept nothing for it since.
    ///
    /// # Errors
    /// When a folder cannot be opened.
    pub(super) fn open_missing_folders(&mut self, clock: &Clock) -> Result<(), TableError> {
        let lacks_store = self.options.store.is_some() && self.bases.store.is_none();
        let lacks_snapshots = self.options.snapshots.is_some() && self.snapshots.borrow().is_none();
        if lacks_store || lacks_snapshots {
            let opened = open_without_restoring(&self.options, &self.server, clock)?;
            drop(self.use_folders(opened));
        }
        Ok(())
    }

    /// Notes on disk that the database's history has forked, or may have.
    ///
    /// # Errors
    /// When the fork cannot be noted.
    pub(super) fn note_fork(&mut self, fork: &Fork, reason: &str) -> Result<(), TableError> {
        self.abandoned = self.abandoned.max(fork.abandoned);
        self.abandoned_journals.iter_mut().for_each(|(_, common)| *common = fork.common.min(*common));
        if let Some(journal) = &*self.journal.borrow() {
            let is_noted = self.abandoned_journals.iter().any(|(instance, _)| instance == journal.instance());
            if !is_noted {
                self.abandoned_journals.push((journal.instance().clone(), fork.common));
            }
        }
        // This must be first: no snapshot of the other history may be mistaken for one of this
        // history.
        if let Some(journal) = self.journal.borrow().as_ref().filter(|_| fork.is_certain) {
            journal.mark_parted();
        }
        if let Some((store, _)) = &self.bases.store {
            ForkLog::note(store.folder(), fork, reason)?;
        }
        if let Some(snapshots) = self.snapshots() {
            snapshots.note_fork(fork, reason)?;
        }
        if let Some(journal) = &*self.journal.borrow() {
            journal.abandon_up_to(self.abandoned);
        }
        Ok(())
    }

    /// Returns the position up to which the rows of a journal are kept.
    pub(super) fn durable_position(&self, writer: &JournalWriter) -> DurablePosition {
        match (writer.journal().store_status(), self.snapshots()) {
            (Some(store), _) => store.durable,
            (None, Some(snapshots)) => snapshots.status().durable,
            (None, None) => DurablePosition::not_kept(writer.committed().position),
        }
    }

    /// Continues after forks that other tables have noted in this run, and this one did not have
    /// to.
    pub(super) fn begin_after_forks(&mut self, forks: u64) {
        self.forks = forks;
    }

    /// Counts a fork after which a new journal begins, and gives that journal a name of its own.
    /// Returns the number of forks. From then on, the source is on `server`.
    pub(super) fn count_fork(&mut self, server: SourceServer) -> u64 {
        self.forks += 1;
        self.identify(server);
        let instance = self.instance();
        self.bases.store = self.bases.store.take().map(|(store, _)| (store, instance));
        self.forks
    }

    /// Gives the next journal sequences after `last`, which the journal of the abandoned history
    /// has reached.
    pub(super) fn begin_after(&mut self, last: Sequence) {
        self.first_sequence = Sequence(last.0 + SKIPPED);
    }

    /// Handles a new timeline of the database, which contains everything that was followed.
    ///
    /// # Errors
    /// When the timeline cannot be noted on disk.
    pub(super) fn note_promotion(&mut self, server: SourceServer) -> Result<(), TableError> {
        if let Some((store, _)) = &self.bases.store
            && let Some(mut manifest) = JournalManifest::read(store)?
        {
            manifest.promote(&server);
            manifest.write(store)?;
        }
        self.identify(server);
        Ok(())
    }

    fn identify(&mut self, server: SourceServer) {
        if let Some(snapshots) = self.snapshots() {
            snapshots.identify(server.clone());
        }
        self.server = server;
    }

    /// Returns the name of a journal that begins now.
    fn instance(&self) -> InstanceId {
        self.options.instance.on_timeline(self.server.identity.timeline, self.forks)
    }

    /// Opens the journal that an earlier run has left, with its rows.
    ///
    /// # Errors
    /// When the rows do not fit their schema.
    pub(super) fn open_journal(&mut self, restored: RestoredJournal) -> Result<PublishedTable, TableError> {
        let RestoredJournal { mut beginning, appender, rows, definition, lineage, .. } = restored;
        self.bases.store = self.bases.store.take().map(|(store, _)| (store, lineage));
        let pipeline = Pipeline::bind(&PipelineOptions::default(), rows.schema())?;
        let is_compared = self.options.pipeline.is_repeatable();
        beginning.head.checksum = beginning.head.checksum.filter(|_| is_compared);
        let head = beginning.head;
        let (journal, writer) = Journal::open(beginning, self.options.journal.clone(), Some(appender));
        tracing::info!(
            event = "journal_resumed",
            table = %self.options.request.name, rows = rows.len(), position = %head.position,
            sequence = %head.sequence, "the journal continues where it ended"
        );
        self.journal.send_replace(Some(journal));
        let origin = self.origin_of_kept(&definition);
        Ok(PublishedTable { state: rows, pipeline, writer, origin, shown: None, is_compared })
    }

    /// Begins a journal with the rows of a snapshot.
    ///
    /// # Errors
    /// The errors of [`TableStorage::begin_journal`].
    pub(super) fn begin_at_snapshot(&mut self, recovered: RecoveredSnapshot) -> Result<PublishedTable, TableError> {
        let RecoveredSnapshot { info, rows: state, definition, unchanged_since, is_of_same_server: _ } = recovered;
        let origin = self.origin_of_kept(&definition);
        // These rows have already passed the pipeline.
        let pipeline = Pipeline::bind(&PipelineOptions::default(), state.schema())?;
        let (to, committed_at) = (info.position, info.committed_at);
        let source = definition.source.clone();
        let (mark, from, streamed, base) = (info.mark, None, None, None);
        let (definition_text, current_at) = (source, committed_at);
        let done = CompleteCopy {
            from,
            to,
            committed_at,
            current_at,
            mark,
            definition: definition_text,
            pipeline,
            state,
            streamed,
            base,
        };
        let instance = InstanceId::parse_snapshot_id(&info.id).map(|(instance, _)| InstanceId(instance.to_owned()));
        let predecessor = instance.map(|instance| PredecessorJournal { instance, position: to, unchanged_since });
        let served = self.begin_journal(done, definition, predecessor)?;
        Ok(PublishedTable { origin, ..served })
    }

    /// Returns the origin of rows that were kept under a definition. Only the source has the rows
    /// and columns that filters and transforms leave out.
    fn origin_of_kept(&self, definition: &RowDefinition) -> RowOrigin {
        match definition.is_whole && self.options.pipeline.is_plain() {
            true => RowOrigin::Source,
            false => RowOrigin::Readers,
        }
    }

    /// Publishes a complete copy: in a new journal if it is the first one, and otherwise as a
    /// change of the rows that readers have.
    ///
    /// # Errors
    /// The errors of [`TableStorage::begin_journal`], and those of the journal. `served` is
    /// unchanged then.
    pub(super) fn publish_copy(
        &mut self,
        served: &mut Option<PublishedTable>,
        done: CompleteCopy,
    ) -> Result<(PublishedTable, TableChangeCounts), TableError> {
        let definition = self.options.row_definition(done.definition.clone());
        let Some(mut known) = served.take() else {
            return Ok((self.begin_journal(done, definition, None)?, TableChangeCounts::default()));
        };
        match publish_copy(&mut known, done, definition.version()) {
            Ok(counts) => {
                known.writer.define(definition);
                Ok((known, counts))
            }
            Err(error) => {
                *served = Some(known);
                Err(error)
            }
        }
    }

    /// Replaces the journal of another history with a new one, in which a complete copy is
    /// published.
    ///
    /// # Errors
    /// The errors of [`TableStorage::begin_journal`]. The rows of the other history are dropped
    /// nevertheless.
    pub(super) fn replace_journal(
        &mut self,
        served: &mut Option<PublishedTable>,
        done: CompleteCopy,
    ) -> Result<PublishedTable, TableError> {
        let definition = self.options.row_definition(done.definition.clone());
        // The files of the old journal are removed, so nothing may write to them any more.
        drop(served.take());
        if let Some((store, _)) = &self.bases.store {
            store.forget_failure();
        }
        let before = self.journal.borrow().clone();
        let served = self.begin_journal(done, definition, None)?;
        if let Some(before) = before {
            before.close();
        }
        Ok(served)
    }

    /// Begins a journal with a first copy, or with a snapshot that another journal has issued.
    ///
    /// # Errors
    /// When the base cannot be made, or the table's folder cannot be written.
    fn begin_journal(
        &mut self,
        done: CompleteCopy,
        definition: RowDefinition,
        predecessor: Option<PredecessorJournal>,
    ) -> Result<PublishedTable, TableError> {
        // A base of the copy may have been begun under the name, so a promotion does not change it.
        let named = self.bases.store.as_ref().map(|(_, instance)| instance.clone());
        let instance = named.unwrap_or_else(|| self.instance());
        // The folder is claimed before the base has a name: a folder with a base must have an
        // owner.
        let name = &self.options.request.name;
        let claim = |(store, _): &(Arc<JournalFolder>, _)| store::claim(store, &instance, name, &self.server);
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
            let (head, assigned, schema) = (beginning.head, beginning.assigned, beginning.schema.clone());
            JournalAppender::begin(
                store.clone(),
                [].into(),
                AppenderState { instance, head, assigned, schema, definition },
            )
        };
        let appender = self.bases.store.as_ref().map(|(store, _)| begin(store)).transpose()?;
        if let (Some(manifest), Some(appender)) = (manifest, &appender) {
            store::note_beginning(appender.store(), manifest, appender)?;
        }
        let (journal, writer) = Journal::open(beginning, self.options.journal.clone(), appender);
        self.journal.send_replace(Some(journal));
        Ok(PublishedTable { state, pipeline, writer, origin: RowOrigin::Source, shown, is_compared })
    }

    /// Returns the highest position that may belong to an abandoned history.
    pub(super) fn abandoned(&self) -> Lsn {
        self.abandoned
    }

    /// Returns the location of the table's bases.
    pub(super) fn bases(&self) -> &BaseLocation {
        &self.bases
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
    pub(super) fn watch_journal(&self) -> watch::Receiver<Option<Journal>> {
        self.journal.subscribe()
    }

    /// Returns true if the table has a store that is open.
    pub(super) fn has_store(&self) -> bool {
        self.bases.store.is_some()
    }

    /// Returns the status of the table's store, if it has one.
    pub(super) fn store_status(&self) -> Option<watch::Receiver<StoreStatus>> {
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
}
