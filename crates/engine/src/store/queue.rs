//! What waits to be written, and the thread that writes it: one fsync for all that arrived meanwhile.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::journal_folder::Store;
use crate::durable::{Synced, sync};
use crate::journal::{DataFile, Head};

/// Serving may run ahead of the disk by so many bytes, and one transaction beyond. Then the table waits.
pub(super) const UNSYNCED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Written in one go.
const WRITE_BYTES: usize = 1024 * 1024;

/// Something to be done, in order.
#[derive(Debug)]
pub(super) enum Job {
    /// Write these bytes, one behind the other. Once they are on disk, so is everything up to `head`.
    Write { file: Arc<DataFile>, at: u64, bytes: [Bytes; 3], head: Option<Head> },
    /// Forget a file, which holds so many bytes.
    Remove { path: PathBuf, bytes: u64 },
}

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// There is something to do.
    filled: Condvar,
    /// Something was done.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Bytes that wait, or are being written.
    bytes: u64,
    is_closed: bool,
    has_failed: bool,
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue { waiting: Mutex::default(), filled: Condvar::new(), emptied: Condvar::new() }
    }

    /// Adds a job. Blocks while far too much waits: who adds so much does so in a place where that harms nobody else, for who
    /// adds little asks [`Queue::is_behind`] before.
    pub(super) fn push(&self, job: Job) {
        let mut waiting = self.waiting.lock();
        while waiting.bytes > UNSYNCED_BYTES_MAX && !waiting.has_failed {
            self.emptied.wait(&mut waiting);
        }
        // After a failure nothing is kept any more, and nothing must pile up.
        if !waiting.has_failed {
            waiting.bytes += job.bytes();
            waiting.jobs.push_back(job);
            self.filled.notify_one();
        }
    }

    /// Whether so much waits that the table should, too.
    pub(super) fn is_behind(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.bytes > UNSYNCED_BYTES_MAX / 2 && !waiting.has_failed
    }

    /// No job follows. The thread does what waits, and ends.
    pub(super) fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.filled.notify_one();
    }

    /// All jobs that have come by now; `None` when there are none and none follow.
    fn take(&self) -> Option<VecDeque<Job>> {
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

    /// Nothing is kept from here on.
    pub(super) fn give_up(&self, store: &Store, error: &str) {
        tracing::error!(
            folder = %store.folder().path().display(), error,
            "the journal cannot be kept any more; PostgreSQL is asked to keep what follows"
        );
        let mut waiting = self.waiting.lock();
        (waiting.has_failed, waiting.jobs) = (true, VecDeque::new());
        self.emptied.notify_all();
        drop(waiting);
        store.tell(|status| status.failed = Some(error.to_owned()));
    }
}

impl Job {
    fn bytes(&self) -> u64 {
        match self {
            Job::Write { bytes, .. } => bytes.iter().map(|bytes| bytes.len() as u64).sum(),
            Job::Remove { .. } => 0,
        }
    }
}

/// Does what comes, until no more does or something fails. A failed write or fsync is the end: what the kernel has dropped since
/// the last good one nobody knows, so a later success would prove nothing.
pub(super) fn run(queue: &Queue, store: &Store) {
    while let Some(jobs) = queue.take() {
        let bytes = jobs.iter().map(Job::bytes).sum();
        if let Err(error) = work(jobs, store) {
            queue.give_up(store, &error.to_string());
            return;
        }
        queue.done(bytes);
        // Who waits for it to come closer looks again.
        store.tell(|_| {});
    }
}

/// Writes a group, and syncs it with as few calls as there are files.
fn work(jobs: VecDeque<Job>, store: &Store) -> io::Result<()> {
    let mut open: Option<Run> = None;
    let mut head = None;
    for job in jobs {
        match job {
            Job::Write { file, at, bytes, head: reached } => {
                let is_next = open.as_ref().is_some_and(|run| Arc::ptr_eq(&run.file, &file));
                if !is_next && let Some(before) = open.take() {
                    // Before anything stands in the next file: only the last one may be torn.
                    before.sync(store)?;
                }
                let run = open.get_or_insert_with(|| Run { file, at, buffer: Vec::new(), bytes: 0 });
                bytes.iter().try_for_each(|bytes| run.write(bytes))?;
                head = reached.or(head);
            }
            Job::Remove { path, bytes } => {
                fs::remove_file(&path)?;
                store.tell(|status| status.journal_bytes = status.journal_bytes.saturating_sub(bytes));
            }
        }
    }
    let Some(run) = open else { return Ok(()) };
    let synced = run.sync(store)?;
    if let Some(Head { sequence, position, .. }) = head {
        store.reached(&synced, sequence, position);
    }
    Ok(())
}

/// Bytes for one file.
struct Run {
    file: Arc<DataFile>,
    at: u64,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Run {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.file().write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        self.file.written.store(self.at, Ordering::Release);
        Ok(())
    }

    fn sync(mut self, store: &Store) -> io::Result<Synced> {
        self.flush()?;
        let is_new = self.file.synced.load(Ordering::Relaxed) == 0;
        let synced = sync(self.file.file())?;
        if is_new {
            store.folder().sync_names().map_err(io::Error::other)?;
        }
        self.file.synced.store(self.at, Ordering::Relaxed);
        store.tell(|status| {
            status.syncs += 1;
            status.journal_bytes += self.bytes;
        });
        Ok(synced)
    }
}
