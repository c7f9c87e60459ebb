//! The queue of bytes to be written, and the thread that writes them. One fsync covers everything
//! that arrived in the meantime.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use laredo_core::RetryDelays;
use parking_lot::{Condvar, Mutex};

use super::data_file::DataFile;
use super::error::StoreError;
use super::journal_folder::JournalFolder;
use crate::durable::{FsyncProof, sync};
use crate::head::Head;

/// The number of unsynced bytes beyond which jobs wait. A table waits at half of it. One
/// transaction may exceed the limit.
pub(super) const UNSYNCED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The first delay before a write to a full disk is repeated. It doubles each time, up to the
/// maximum.
const DISK_RETRY: Duration = Duration::from_millis(100);
const DISK_RETRY_MAX: Duration = Duration::from_secs(2);
/// The number of bytes written at once.
const WRITE_BYTES: usize = 1024 * 1024;

/// A job for the thread. Jobs are done in order.
#[derive(Debug)]
pub(super) enum DiskJob {
    /// A write of these bytes, one after another. Once they are on disk, so is everything up to
    /// `head`.
    Write { file: Arc<DataFile>, at: u64, bytes: [Bytes; 3], head: Option<Head> },
    /// The removal of a file of this size.
    Remove { path: PathBuf, bytes: u64 },
}

/// The queue between an appender and the thread that writes.
#[derive(Debug)]
pub(super) struct DiskQueue {
    waiting: Mutex<DiskQueueState>,
    /// Notified of new jobs, and of the end.
    filled: Condvar,
    /// Notified when jobs are done, when the disk becomes full or has room again, and of a failure.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct DiskQueueState {
    jobs: VecDeque<DiskJob>,
    /// The number of bytes that wait or are being written.
    bytes: u64,
    is_closed: bool,
    /// The reason why nothing can be written for now.
    stalled: Option<String>,
    /// True once the thread no longer waits for a full disk.
    is_ending: bool,
    has_failed: bool,
}

impl DiskQueue {
    pub(super) fn new() -> DiskQueue {
        DiskQueue { waiting: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new() }
    }

    /// Adds a job. Blocks while more than [`UNSYNCED_BYTES_MAX`] bytes are waiting, unless the disk
    /// is full.
    ///
    /// Only callers that add large transactions block. They run where that delays no other table.
    /// Other callers check [`DiskQueue::is_behind`] first.
    pub(super) fn push(&self, job: DiskJob) {
        let mut waiting = self.waiting.lock();
        while waiting.bytes > UNSYNCED_BYTES_MAX && !waiting.has_failed && waiting.stalled.is_none() {
            self.emptied.wait(&mut waiting);
        }
        // After a failure nothing is written any more, so jobs must not accumulate.
        if !waiting.has_failed {
            waiting.bytes += job.bytes();
            waiting.jobs.push_back(job);
            self.filled.notify_one();
        }
    }

    /// Blocks while more than [`UNSYNCED_BYTES_MAX`] bytes are waiting.
    ///
    /// # Errors
    /// The reason why nothing can be written for now, if that many bytes are waiting.
    pub(super) fn wait_for_place(&self) -> Result<(), String> {
        let mut waiting = self.waiting.lock();
        while waiting.bytes > UNSYNCED_BYTES_MAX && !waiting.has_failed {
            if let Some(reason) = &waiting.stalled {
                return Err(reason.clone());
            }
            self.emptied.wait(&mut waiting);
        }
        Ok(())
    }

    /// Returns true if so many bytes are waiting that the table should wait, too.
    pub(super) fn is_behind(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.bytes > UNSYNCED_BYTES_MAX / 2 && !waiting.has_failed
    }

    /// Notes that no job follows. The thread does the waiting jobs and ends.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        (waiting.is_closed, waiting.is_ending) = (true, true);
        self.filled.notify_one();
    }

    /// Stops waiting for a full disk. A write that finds the disk full fails for good from now on.
    pub(super) fn end_waiting(&self) {
        self.waiting.lock().is_ending = true;
        self.filled.notify_one();
    }

    /// Notes the reason why nothing can be written, or `None` if writing works again.
    fn stall(&self, store: &JournalFolder, reason: Option<String>) {
        let mut waiting = self.waiting.lock();
        if waiting.stalled == reason {
            return;
        }
        waiting.stalled.clone_from(&reason);
        self.emptied.notify_all();
        drop(waiting);
        let folder = store.folder().path().display();
        match &reason {
            Some(error) => tracing::error!(
                event = "journal_write_retried",
                %folder, error,
                "the journal cannot be written for now; clients are served, PostgreSQL keeps the WAL, and writing is tried again"
            ),
            None => tracing::info!(event = "journal_write_resumed", %folder, "the journal is written again"),
        }
        store.update_status(|status| status.stalled = reason);
    }

    /// Waits before the next attempt to write. Returns false if that attempt is the last one.
    fn wait_for_disk(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut waiting = self.waiting.lock();
        while !waiting.is_ending {
            // The condition is also notified of new jobs.
            if self.filled.wait_until(&mut waiting, until).timed_out() {
                return true;
            }
        }
        false
    }

    /// Waits for jobs and returns all that have arrived. Returns `None` if there are none and none
    /// follow.
    fn take_jobs(&self) -> Option<VecDeque<DiskJob>> {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() {
            if waiting.is_closed {
                return None;
            }
            self.filled.wait(&mut waiting);
        }
        Some(std::mem::take(&mut waiting.jobs))
    }

    fn done(&self, bytes: u64) {
        self.waiting.lock().bytes -= bytes;
        self.emptied.notify_all();
    }

    /// Ends the writing of the journal: nothing is written from now on.
    pub(super) fn give_up(&self, store: &JournalFolder, error: &str) {
        tracing::error!(
            event = "journal_write_failed",
            folder = %store.folder().path().display(), error,
            "the journal cannot be written any more; PostgreSQL keeps the WAL from here on"
        );
        let mut waiting = self.waiting.lock();
        (waiting.has_failed, waiting.jobs) = (true, VecDeque::new());
        self.emptied.notify_all();
        drop(waiting);
        store.update_status(|status| (status.stalled, status.failed) = (None, Some(error.to_owned())));
    }
}

impl DiskJob {
    fn bytes(&self) -> u64 {
        match self {
            DiskJob::Write { bytes, .. } => bytes.iter().map(|bytes| bytes.len() as u64).sum(),
            DiskJob::Remove { .. } => 0,
        }
    }
}

/// Does the jobs of the queue until it is closed or a job fails.
///
/// If the disk is full, everything since the last successful fsync is written again until it is on
/// disk. Any other failed write or fsync ends the loop. The kernel may have dropped pages, so a
/// later success would prove nothing.
pub(super) fn run(queue: &DiskQueue, store: &JournalFolder) {
    while let Some(jobs) = queue.take_jobs() {
        let bytes = jobs.iter().map(DiskJob::bytes).sum();
        if let Err(error) = work_patiently(queue, &jobs, store) {
            queue.give_up(store, &error.to_string());
            return;
        }
        queue.done(bytes);
        // Wakes tasks that wait for the queue to shrink.
        store.update_status(|_| {});
    }
}

/// Does a group of jobs, and repeats it while the disk is full.
fn work_patiently(queue: &DiskQueue, jobs: &VecDeque<DiskJob>, store: &JournalFolder) -> io::Result<()> {
    let mut delay = RetryDelays::new(DISK_RETRY, DISK_RETRY_MAX);
    let mut is_last = false;
    loop {
        match write_jobs(jobs, store) {
            Err(error) if is_exhaustion(&error) && !is_last => {
                queue.stall(store, Some(error.to_string()));
                is_last = !queue.wait_for_disk(delay.after_failure());
                // Removing files that are no longer needed makes room.
                remove_files(jobs, store)?;
            }
            done => {
                if done.is_ok() {
                    queue.stall(store, None);
                }
                return done;
            }
        }
    }
}

/// Returns true if a resource is exhausted that may become available again: disk space, a quota, or
/// descriptors.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

fn remove_files(jobs: &VecDeque<DiskJob>, store: &JournalFolder) -> io::Result<()> {
    for job in jobs {
        let DiskJob::Remove { path, bytes } = job else { continue };
        match fs::remove_file(path) {
            Ok(()) => store.update_status(|status| status.journal_bytes = status.journal_bytes.saturating_sub(*bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes a group of jobs. Each file is synced once.
fn write_jobs(jobs: &VecDeque<DiskJob>, store: &JournalFolder) -> io::Result<()> {
    let mut open: Option<ContiguousWrite<'_>> = None;
    let mut head = None;
    for job in jobs {
        match job {
            DiskJob::Write { file, at, bytes, head: reached } => {
                let is_next = open.as_ref().is_some_and(|run| Arc::ptr_eq(run.file, file));
                if !is_next && let Some(before) = open.take() {
                    // A file is synced before the next one is written. So only the last file can be
                    // torn.
                    before.sync(store)?;
                }
                let run = open.get_or_insert_with(|| ContiguousWrite { file, at: *at, buffer: Vec::new() });
                bytes.iter().try_for_each(|bytes| run.write(bytes))?;
                head = reached.or(head);
            }
            DiskJob::Remove { .. } => {}
        }
    }
    if let Some(run) = open {
        let synced = run.sync(store)?;
        if let Some(Head { sequence, position, .. }) = head {
            store.reached(&synced, sequence, position);
        }
    }
    remove_files(jobs, store)
}

/// Consecutive bytes for one file.
struct ContiguousWrite<'a> {
    file: &'a Arc<DataFile>,
    at: u64,
    buffer: Vec<u8>,
}

impl ContiguousWrite<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.file().write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        self.file.written.store(self.at, Ordering::Release);
        Ok(())
    }

    fn sync(mut self, store: &JournalFolder) -> io::Result<FsyncProof> {
        self.flush()?;
        let synced_before = self.file.synced.load(Ordering::Relaxed);
        let began_at = Instant::now();
        let synced = sync(self.file.file())?;
        let took = began_at.elapsed();
        if synced_before == 0 {
            store.folder().sync_names().map_err(StoreError::into_io)?;
        }
        self.file.synced.store(self.at, Ordering::Relaxed);
        store.update_status(|status| {
            status.syncs += 1;
            status.sync_times.observe(took);
            status.journal_bytes += self.at.saturating_sub(synced_before);
        });
        Ok(synced)
    }
}

#[cfg(test)]
mod tests;
