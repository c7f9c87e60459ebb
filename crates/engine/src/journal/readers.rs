//! Who reads a journal, and how far behind each may be.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use laredo_core::Sequence;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::gaps::Gaps;

#[cfg(test)]
mod tests;

/// How long a reader may slow the source down before it is cut.
const SLOW_DOWN_MAX: Duration = Duration::from_secs(30);

/// What happens to a live reader that falls too far behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferPolicy {
    /// It is cut; it can come back and go on where it was.
    DropDisconnect,
    /// The source is read no faster than the slowest such reader for at most 30 s; then it is cut.
    SlowDown,
}

/// What a reader says of itself.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// A name for people.
    pub client_id: String,
    /// Entries that it may be behind once it is live.
    pub behind_max: u64,
    /// What happens beyond.
    pub policy: BufferPolicy,
}

/// Names a reader for as long as it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(u64);

/// What a reader is doing. None of this survives a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaderState {
    /// It is sent a base, or what came since.
    CatchingUp,
    /// It has been at the head.
    Live,
    /// It is live and so far behind that the source waits for it.
    Backpressured,
    /// It has been asked to leave.
    Draining,
}

/// A reader, as the status shows it.
#[derive(Clone, Debug)]
pub struct ReaderInfo {
    /// Its number.
    pub id: ReaderId,
    /// Its name.
    pub client_id: String,
    /// The last entry handed to it.
    pub sequence: Sequence,
    /// When it came.
    pub since: Instant,
    /// What it is doing.
    pub state: ReaderState,
}

#[derive(Debug)]
pub(super) struct Readers {
    list: Mutex<BTreeMap<ReaderId, Arc<Entry>>>,
    next: AtomicU64,
    /// The smallest bound that any reader ever had: transactions up to this size need not be remembered.
    behind_min: AtomicU64,
    /// Transactions that are larger than that, as long as a live reader has not taken them and the journal keeps them.
    large: Mutex<VecDeque<Large>>,
}

/// A transaction's entries: those after `before`, up to `last`.
#[derive(Clone, Copy, Debug)]
struct Large {
    before: Sequence,
    last: Sequence,
}

#[derive(Debug)]
struct Entry {
    options: ReaderOptions,
    since: Instant,
    /// Sequence and stage go together: who sees that a reader is slow, and waits for it, is told of the move that mends it.
    progress: Mutex<Progress>,
    /// It has been asked to leave.
    draining: AtomicBool,
    cut: AtomicBool,
    cut_notice: Notify,
    moved: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    sequence: Sequence,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    CatchingUp,
    Live,
    /// The source has been waiting for it since then.
    Slow(Instant),
}

/// A registered reader; dropping it takes it off the list.
#[derive(Debug)]
pub struct Reader {
    id: ReaderId,
    entry: Arc<Entry>,
    journal: super::Journal,
}

/// The writer should wait until the reader has come closer, or the time is up.
#[derive(Debug)]
pub struct Patience {
    entry: Arc<Entry>,
    until: Instant,
}

impl Patience {
    /// Waits until the reader has moved, at the longest until it is to be cut.
    pub async fn wait(self) {
        let _ = tokio::time::timeout_at(self.until, self.entry.moved.notified()).await;
    }
}

impl Default for Readers {
    fn default() -> Readers {
        Readers {
            list: Mutex::default(),
            next: AtomicU64::new(0),
            behind_min: AtomicU64::new(u64::MAX),
            large: Mutex::default(),
        }
    }
}

impl Readers {
    pub(super) fn list(&self) -> Vec<ReaderInfo> {
        let info = |(id, entry): (&ReaderId, &Arc<Entry>)| {
            let Progress { sequence, stage } = *entry.progress.lock();
            let state = match stage {
                _ if entry.draining.load(Ordering::Relaxed) => ReaderState::Draining,
                Stage::CatchingUp => ReaderState::CatchingUp,
                Stage::Live => ReaderState::Live,
                Stage::Slow(_) => ReaderState::Backpressured,
            };
            ReaderInfo { id: *id, client_id: entry.options.client_id.clone(), sequence, since: entry.since, state }
        };
        self.list.lock().iter().map(info).collect()
    }

    /// Returns the last entry that each reader has taken.
    pub(super) fn taken(&self) -> Vec<Sequence> {
        self.list.lock().values().map(|entry| entry.progress.lock().sequence).collect()
    }

    /// A transaction was committed, of the entries after `before` up to `last`.
    pub(super) fn committed(&self, before: Sequence, last: Sequence) {
        if last.entries_since(before) > self.behind_min.load(Ordering::Relaxed) {
            self.large.lock().push_back(Large { before, last });
        }
    }

    /// Cuts live readers that are too far behind `head`, and says whom to wait for. `pruned` is the newest entry that the
    /// journal does not keep any more.
    ///
    /// A transaction that is larger than a reader's bound does not count while the reader has not taken it: nobody could
    /// have taken it before it was there.
    pub(super) fn enforce(&self, head: Sequence, pruned: Sequence, gaps: &Gaps, now: Instant) -> Option<Patience> {
        let list = self.list.lock();
        let mut large = self.large.lock();
        forget(&mut large, pruned);
        let mut slowest = head;
        let mut patience: Option<Patience> = None;
        for entry in list.values().filter(|entry| !entry.cut.load(Ordering::Relaxed)) {
            let mut progress = entry.progress.lock();
            let since = match progress.stage {
                Stage::CatchingUp => continue,
                Stage::Live => now,
                Stage::Slow(since) => since,
            };
            slowest = slowest.min(progress.sequence);
            if behind(head, progress.sequence, &large, gaps, entry.options.behind_max) <= entry.options.behind_max {
                progress.stage = Stage::Live;
                continue;
            }
            let until = match entry.options.policy {
                BufferPolicy::DropDisconnect => now,
                BufferPolicy::SlowDown => since + SLOW_DOWN_MAX,
            };
            if until <= now {
                entry.cut.store(true, Ordering::Release);
                entry.cut_notice.notify_one();
                continue;
            }
            progress.stage = Stage::Slow(since);
            if patience.as_ref().is_none_or(|p| until < p.until) {
                patience = Some(Patience { entry: entry.clone(), until });
            }
        }
        forget(&mut large, slowest);
        patience
    }
}

/// Forgets the transactions that end up to here.
fn forget(large: &mut VecDeque<Large>, until: Sequence) {
    while large.front().is_some_and(|transaction| transaction.last <= until) {
        large.pop_front();
    }
}

/// Entries that a reader at `at` has not taken, without those of transactions larger than its bound.
fn behind(head: Sequence, at: Sequence, large: &VecDeque<Large>, gaps: &Gaps, behind_max: u64) -> u64 {
    let untaken = large.iter().rev().take_while(|transaction| transaction.last > at);
    let excused: u64 = untaken
        .filter(|transaction| transaction.last.entries_since(transaction.before) > behind_max)
        .map(|transaction| transaction.last.entries_since(transaction.before.max(at)))
        .sum();
    gaps.entries(at, head).saturating_sub(excused)
}

impl super::Journal {
    pub(super) fn add_reader(&self, options: ReaderOptions, at: Sequence) -> Reader {
        let readers = &self.shared.readers;
        let id = ReaderId(readers.next.fetch_add(1, Ordering::Relaxed));
        readers.behind_min.fetch_min(options.behind_max, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            options,
            since: Instant::now(),
            progress: Mutex::new(Progress { sequence: at, stage: Stage::CatchingUp }),
            draining: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            cut_notice: Notify::new(),
            moved: Notify::new(),
        });
        readers.list.lock().insert(id, entry.clone());
        Reader { id, entry, journal: self.clone() }
    }
}

impl Reader {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> ReaderId {
        self.id
    }

    /// It has taken everything up to here; `live` once it has been at the head.
    pub fn moved(&self, sequence: Sequence, live: bool) {
        let Entry { progress, options, moved, .. } = &*self.entry;
        let mut progress = progress.lock();
        progress.sequence = sequence;
        match progress.stage {
            Stage::CatchingUp if live => progress.stage = Stage::Live,
            Stage::Slow(_) => {
                if self.journal.entries_after(sequence) <= options.behind_max {
                    progress.stage = Stage::Live;
                }
                moved.notify_one();
            }
            _ => {}
        }
    }

    /// It has been asked to leave. Unless it `follows` on, it takes nothing more, and nobody waits for it.
    pub fn drain(&self, follows: bool) {
        self.entry.draining.store(true, Ordering::Relaxed);
        if !follows {
            self.entry.progress.lock().stage = Stage::CatchingUp;
            self.entry.moved.notify_one();
        }
    }

    /// Whether it was cut for being too far behind.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.entry.cut.load(Ordering::Acquire)
    }

    /// Waits until it is cut.
    pub async fn cut(&self) {
        while !self.is_cut() {
            self.entry.cut_notice.notified().await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.journal.shared.readers.list.lock().remove(&self.id);
        self.entry.moved.notify_one();
    }
}
