//! The appending side of a journal's files.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use laredo_core::{CommitMark, Lsn, Schema, Sequence};
use prost::Message;
use tokio::time::Instant;
use tracing::Span;

use super::data_file::{DataFile, StoredPart, StoredSegment};
use super::error::{StoreError, io_error};
use super::folder::private_file;
use super::format::{HEAD_BYTES, JournalFileHeader, RecordHead, RecordKind, RowDefinition, StoredCommitMark, sealed};
use super::journal_folder::{JOURNAL, JournalFolder};
use super::queue::{DiskJob, DiskQueue, is_exhaustion, run};
use crate::descriptors::with_reserve;
use crate::durable::sync;
use crate::head::{Head, InstanceId};

/// The minimum time between two marks if the position moves without changes to the table.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// Appends to a journal's files. A separate thread writes and syncs the records, so callers
/// normally do not wait for the disk.
#[derive(Debug)]
pub(crate) struct JournalAppender {
    store: Arc<JournalFolder>,
    queue: Arc<DiskQueue>,
    thread: Option<JoinHandle<()>>,
    /// All files, oldest first. The last one is being written.
    files: VecDeque<JournalFile>,
    state: AppenderState,
    /// The last position that was written.
    marked: Lsn,
    /// The newest commit that was written with it.
    marked_commit: CommitMark,
    marked_at: Instant,
}

/// A file of the journal.
#[derive(Clone, Debug)]
pub(crate) struct JournalFile {
    pub(crate) file: Arc<DataFile>,
    /// The last entry before the file.
    pub(crate) before: Sequence,
    pub(crate) bytes: u64,
    /// True if the file has contents that the header of a later file does not repeat.
    pub(crate) is_needed: bool,
}

/// The state with which appending begins, updated with every record.
#[derive(Clone, Debug)]
pub(crate) struct AppenderState {
    pub(crate) instance: InstanceId,
    /// The end of the last transaction.
    pub(crate) head: Head,
    /// The last sequence that was assigned.
    pub(crate) assigned: Sequence,
    pub(crate) schema: Arc<Schema>,
    pub(crate) definition: RowDefinition,
}

impl JournalAppender {
    /// Begins a new file after `files`.
    ///
    /// When this returns, the file is on disk. Its header ensures that no sequence up to
    /// `begun.assigned` is assigned again.
    pub(crate) fn begin(
        store: Arc<JournalFolder>,
        files: VecDeque<JournalFile>,
        begun: AppenderState,
    ) -> Result<JournalAppender, StoreError> {
        let queue = Arc::new(DiskQueue::new());
        let (marked, marked_commit) = (begun.head.position, begun.head.mark);
        let (thread, marked_at) = (None, Instant::now());
        let mut appender =
            JournalAppender { store, queue, thread, files, state: begun, marked, marked_commit, marked_at };
        let header = appender.begin_file()?;
        let Some(JournalFile { file, .. }) = appender.files.back() else { return Ok(appender) };
        let failed = |what| io_error(what, file.path().map_or(appender.store.folder().path(), PathBuf::as_path));
        let written = std::os::unix::fs::FileExt::write_all_at(file.file(), &header, 0).map_err(failed("writing"));
        let synced = written.and_then(|()| sync(file.file()).map_err(failed("syncing")));
        if let (Err(_), Some(path)) = (&synced, file.path()) {
            // The next attempt creates the same file. If the removal fails, too, a torn file
            // without entries remains.
            let _ = std::fs::remove_file(path);
        }
        let synced = synced?;
        appender.store.folder().sync_names()?;
        file.written.store(header.len() as u64, Ordering::Release);
        file.synced.store(header.len() as u64, Ordering::Relaxed);
        appender.drop_unneeded()?;
        let bytes = appender.files.iter().map(|file| file.bytes).sum();
        appender.store.update_status(|status| status.journal_bytes = bytes);
        appender.store.reached(&synced, appender.state.head.sequence, marked);
        let (queue, store) = (appender.queue.clone(), appender.store.clone());
        let span = Span::current();
        let work = move || span.in_scope(|| run(&queue, &store));
        let thread = std::thread::Builder::new().name("journal-sync".to_owned()).spawn(work);
        appender.thread =
            Some(thread.map_err(io_error("starting the thread that writes", appender.store.folder().path()))?);
        Ok(appender)
    }

    /// Returns the first sequence that the file being written can contain.
    pub(crate) fn begun_at(&self) -> Sequence {
        self.state.assigned.plus(1)
    }

    /// Removes files without changes. A server that restarts repeatedly must not fill its folder.
    fn drop_unneeded(&mut self) -> Result<(), StoreError> {
        for path in self.files.iter().filter(|file| !file.is_needed).filter_map(|file| file.file.path()) {
            std::fs::remove_file(path).map_err(io_error("removing", path))?;
        }
        self.files.retain(|file| file.is_needed);
        Ok(())
    }

    pub(crate) fn store(&self) -> &Arc<JournalFolder> {
        &self.store
    }

    /// Adds frames. Once they are on disk, so is everything up to `head`.
    ///
    /// # Errors
    /// When the disk is full and the queue is, too, or when no new file can be begun. A full disk
    /// fails only pieces of large transactions.
    pub(crate) fn append(
        &mut self,
        piece: RecordHead,
        schema: &Arc<Schema>,
        frames: &Bytes,
        olds: &Bytes,
        head: Option<Head>,
    ) -> Result<StoredSegment, StoreError> {
        if !piece.ends {
            // Whole transactions are accepted even if the disk is full: they are visible already,
            // and few follow.
            self.queue.wait_for_place().map_err(StoreError::Stalled)?;
        }
        if piece.begins {
            self.state.schema = schema.clone();
            match self.begin_file_if_full() {
                // The file grows beyond its size instead.
                Err(StoreError::Io { error, .. }) if is_exhaustion(&error) => {}
                begun => begun.inspect_err(|error| self.queue.give_up(&self.store, &error.to_string()))?,
            }
        }
        let part = self.record(piece, frames, olds, head);
        if let Some(head) = head {
            (self.state.head, self.state.assigned) = (head, head.sequence);
        }
        Ok(part)
    }

    /// Records that the pieces since the last transaction were discarded.
    pub(crate) fn abort(&mut self) {
        self.record(self.empty_record(RecordKind::Abort), &Bytes::new(), &Bytes::new(), None);
    }

    /// Records the position of `head`, up to which the table did not change. With `span_from`,
    /// records a span without changes.
    pub(crate) fn mark(&mut self, head: Head, span_from: Option<Lsn>) {
        (self.state.head.position, self.state.head.mark) = (head.position, head.mark);
        let mark = RecordHead { span_from, ..self.empty_record(RecordKind::Mark) };
        let newest = Bytes::from(StoredCommitMark::of(head.mark).unwrap_or_default().encode_to_vec());
        self.record(mark, &newest, &Bytes::new(), Some(self.state.head));
    }

    /// Records the definition of the rows from here on.
    pub(crate) fn define(&mut self, definition: &RowDefinition) {
        self.state.definition = definition.clone();
        let bytes = Bytes::from(definition.encode_to_vec());
        self.record(self.empty_record(RecordKind::Definition), &bytes, &Bytes::new(), Some(self.state.head));
    }

    /// Returns the time when the position must be written. Returns `None` if it is written already.
    pub(crate) fn mark_due_at(&self, head: Head) -> Option<Instant> {
        let is_news = head.position > self.marked || head.mark != self.marked_commit;
        is_news.then(|| self.marked_at + MARK_INTERVAL)
    }

    /// Returns true if the disk is so far behind that the table should wait for it.
    pub(crate) fn is_behind(&self) -> bool {
        self.queue.is_behind()
    }

    /// Stops waiting for a full disk: from now on, a write that finds the disk full fails for good.
    pub(crate) fn stop_waiting_for_disk(&self) {
        self.queue.end_waiting();
    }

    /// Removes files that have no entries after `pruned`.
    pub(crate) fn forget(&mut self, pruned: Sequence) {
        while self.files.get(1).is_some_and(|next| next.before <= pruned) {
            let Some(gone) = self.files.pop_front() else { return };
            if let Some(path) = gone.file.path() {
                self.queue.push(DiskJob::Remove { path: path.clone(), bytes: gone.bytes });
            }
        }
    }

    fn empty_record(&self, kind: RecordKind) -> RecordHead {
        let Head { sequence, position, committed_at, .. } = self.state.head;
        RecordHead {
            kind,
            begins: true,
            ends: true,
            has_schema: false,
            first: sequence,
            last: sequence,
            before: position,
            position,
            span_from: None,
            committed_at,
            synced: 0,
            frames: 0,
            olds: 0,
            checksum: 0,
        }
    }

    fn record(&mut self, head: RecordHead, frames: &Bytes, olds: &Bytes, reached: Option<Head>) -> StoredSegment {
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(frames);
        checksum.update(olds);
        let checksum = checksum.finalize();
        let last = self.files.back_mut().expect("a file is begun before anything is appended");
        let synced = last.file.synced.load(Ordering::Relaxed);
        let head = RecordHead { synced, frames: frames.len(), olds: olds.len(), checksum, ..head };
        let (at, file) = (last.bytes, last.file.clone());
        last.bytes += (HEAD_BYTES + head.contents_bytes()) as u64;
        let bytes = [head.encode(), frames.clone(), olds.clone()];
        self.queue.push(DiskJob::Write { file: file.clone(), at, bytes, head: reached });
        if let Some(Head { position, mark, .. }) = reached {
            (self.marked, self.marked_commit, self.marked_at) = (position, mark, Instant::now());
        }
        let at = at + HEAD_BYTES as u64;
        StoredSegment::new(file, StoredPart { at, frames: head.frames, olds: head.olds, checksum: Some(checksum) })
    }

    /// Begins the next file if the current one is full. Called between transactions, so that each
    /// stays in one file.
    fn begin_file_if_full(&mut self) -> Result<(), StoreError> {
        if self.files.back().is_some_and(|file| file.bytes < self.store.file_bytes) {
            return Ok(());
        }
        let header = self.begin_file()?;
        let Some(JournalFile { file, .. }) = self.files.back() else { return Ok(()) };
        let bytes = [header, Bytes::new(), Bytes::new()];
        self.queue.push(DiskJob::Write { file: file.clone(), at: 0, bytes, head: None });
        Ok(())
    }

    /// Creates the next file, and returns its header, which the caller must write.
    fn begin_file(&mut self) -> Result<Bytes, StoreError> {
        let AppenderState { instance, head, assigned, schema, definition } = &self.state;
        let first = assigned.plus(1);
        let header = Bytes::from(sealed(&JournalFileHeader {
            instance: instance.0.clone(),
            before_sequence: head.sequence.0,
            first_sequence: first.0,
            before_position: head.position.0,
            committed_at: head.committed_at.0,
            schema: Some(laredo_proto::schema::to_wire(schema)),
            definition: Some(definition.clone()),
            mark: StoredCommitMark::of(head.mark),
        }));
        let path = self.store.folder().path().join(format!("{:020}.{JOURNAL}", first.0));
        let file = with_reserve(|| private_file().read(true).write(true).create_new(true).open(&path));
        let file = DataFile::of_store(file.map_err(io_error("creating", &path))?, path, 0);
        self.files.push_back(JournalFile {
            file: Arc::new(file),
            before: head.sequence,
            bytes: header.len() as u64,
            is_needed: true,
        });
        Ok(header)
    }
}

impl Drop for JournalAppender {
    /// Waits until everything that was appended is on disk or has failed.
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // The thread reports its failures itself, and a panic has been printed already.
            let _ = thread.join();
        }
    }
}
