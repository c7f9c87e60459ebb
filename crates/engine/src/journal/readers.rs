//! The readers of a journal, and the limit on how far each may fall behind.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use laredo_core::Sequence;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::gaps::SequenceGaps;

#[cfg(test)]
mod tests;

/// The maximum time for which a reader may slow the source down before it is cut.
const SLOW_DOWN_MAX: Duration = Duration::from_secs(30);
/// The part of the time for which the readers of a journal may slow the source down: one in so many
/// seconds. A reader that is cut may come back at once, so a bound for each reader is not enough.
const SLOW_DOWN_SHARE: u32 = 4;

/// The treatment of a live reader that falls too far behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferPolicy {
    /// The reader is cut at once. The client can reconnect and resume where it was.
    DropDisconnect,
    /// The source waits for the reader for at most 30 s. Then the reader is cut. All readers of a
    /// journal together may have the source wait for a quarter of the time, apart from the first 30
    /// s. Beyond that, a reader is cut at once.
    SlowDown,
}

/// The properties with which a reader registers.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// The name of the client, for operators.
    pub client_id: String,
    /// The name of the identity that the client belongs to; empty if it has none.
    pub owner: String,
    /// The maximum number of entries that the reader may be behind once it is live.
    pub behind_max: u64,
    /// The treatment of the reader beyond that number.
    pub policy: BufferPolicy,
}

/// The number of a registered reader. Unique within the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(u64);

/// The state of a reader. It is not kept across a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaderState {
    /// The reader receives a base, or the entries after it.
    CatchingUp,
    /// The reader has reached the head.
    Live,
    /// The reader is live, and so far behind that the source waits for it.
    Backpressured,
    /// The reader has been asked to leave.
    Draining,
}

/// A reader as shown in the status.
#[derive(Clone, Debug)]
pub struct ReaderInfo {
    /// The number of the reader.
    pub id: ReaderId,
    /// The name of the client.
    pub client_id: String,
    /// The name of the identity that the client belongs to; empty if it has none.
    pub owner: String,
    /// The last entry handed to the reader.
    pub sequence: Sequence,
    /// The time when the reader registered.
    pub since: Instant,
    /// The state of the reader.
    pub state: ReaderState,
}

#[derive(Debug)]
pub(super) struct ReaderRegistry {
    list: Mutex<BTreeMap<ReaderId, Arc<ReaderRegistration>>>,
    next: AtomicU64,
    /// The smallest `behind_max` of all readers so far. Transactions up to this size are not
    /// recorded.
    behind_min: AtomicU64,
    /// Larger transactions that a live reader has not taken yet and that the journal still keeps.
    large: Mutex<VecDeque<LargeTransaction>>,
    slow_down: Mutex<SlowDownBudget>,
}

/// The time for which the source may still wait for readers. It grows while the source does not
/// wait, up to [`SLOW_DOWN_MAX`].
#[derive(Debug)]
struct SlowDownBudget {
    available: Duration,
    /// The time at which `available` was right.
    at: Instant,
    /// True if the source has waited since then.
    is_waiting: bool,
    /// The time for which the source has waited in all.
    waited: Duration,
}

impl SlowDownBudget {
    fn new(now: Instant) -> SlowDownBudget {
        SlowDownBudget { available: SLOW_DOWN_MAX, at: now, is_waiting: false, waited: Duration::ZERO }
    }

    /// Returns the time that is left, after the time since the last call was counted.
    fn settle(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        if self.is_waiting {
            self.waited += passed;
            self.available = self.available.saturating_sub(passed);
        } else {
            self.available = (self.available + passed / SLOW_DOWN_SHARE).min(SLOW_DOWN_MAX);
        }
        self.available
    }
}

/// The entries of one transaction: those after `before`, up to `last`.
#[derive(Clone, Copy, Debug)]
struct LargeTransaction {
    before: Sequence,
    last: Sequence,
}

/// A reader in the list.
#[derive(Debug)]
pub(super) struct ReaderRegistration {
    options: ReaderOptions,
    since: Instant,
    /// The sequence and the stage, under one lock. If the writer sees a slow reader and waits for
    /// it, it is notified of the move that ends the slowness.
    progress: Mutex<ReaderProgress>,
    /// True once the reader has been asked to leave.
    draining: AtomicBool,
    cut: AtomicBool,
    moved: Notify,
}

#[derive(Clone, Copy, Debug)]
struct ReaderProgress {
    sequence: Sequence,
    stage: ReaderStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReaderStage {
    CatchingUp,
    Live,
    /// A stage in which the source has been waiting for the reader since this time.
    Slow(Instant),
}

/// A registered reader. Dropping it removes it from the list.
#[derive(Debug)]
pub struct JournalReader {
    id: ReaderId,
    entry: Arc<ReaderRegistration>,
    journal: super::Journal,
}

/// A wait of the writer until a reader has moved, or until the time is up.
#[derive(Debug)]
pub struct SlowReaderWait {
    entry: Arc<ReaderRegistration>,
    until: Instant,
}

impl SlowReaderWait {
    /// Waits until the reader has moved, but no longer than until it is due to be cut.
    pub async fn wait(self) {
        let _ = tokio::time::timeout_at(self.until, self.entry.moved.notified()).await;
    }
}

impl Default for ReaderRegistry {
    fn default() -> ReaderRegistry {
        ReaderRegistry {
            list: Mutex::default(),
            next: AtomicU64::new(0),
            behind_min: AtomicU64::new(u64::MAX),
            large: Mutex::default(),
            slow_down: Mutex::new(SlowDownBudget::new(Instant::now())),
        }
    }
}

impl ReaderRegistry {
    /// Adds a reader at sequence `at`.
    pub(super) fn add(&self, options: ReaderOptions, at: Sequence) -> (ReaderId, Arc<ReaderRegistration>) {
        let id = ReaderId(self.next.fetch_add(1, Ordering::Relaxed));
        self.behind_min.fetch_min(options.behind_max, Ordering::Relaxed);
        let entry = Arc::new(ReaderRegistration {
            options,
            since: Instant::now(),
            progress: Mutex::new(ReaderProgress { sequence: at, stage: ReaderStage::CatchingUp }),
            draining: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            moved: Notify::new(),
        });
        self.list.lock().insert(id, entry.clone());
        (id, entry)
    }

    /// Removes a reader.
    pub(super) fn remove(&self, id: ReaderId) {
        self.list.lock().remove(&id);
    }

    pub(super) fn list(&self) -> Vec<ReaderInfo> {
        let info = |(id, entry): (&ReaderId, &Arc<ReaderRegistration>)| {
            let ReaderProgress { sequence, stage } = *entry.progress.lock();
            let state = match stage {
                _ if entry.draining.load(Ordering::Relaxed) => ReaderState::Draining,
                ReaderStage::CatchingUp => ReaderState::CatchingUp,
                ReaderStage::Live => ReaderState::Live,
                ReaderStage::Slow(_) => ReaderState::Backpressured,
            };
            let ReaderOptions { client_id, owner, .. } = entry.options.clone();
            ReaderInfo { id: *id, client_id, owner, sequence, since: entry.since, state }
        };
        self.list.lock().iter().map(info).collect()
    }

    /// Returns the last entry that each reader has taken.
    pub(super) fn taken_sequences(&self) -> Vec<Sequence> {
        self.list.lock().values().map(|entry| entry.progress.lock().sequence).collect()
    }

    /// Notes a committed transaction that has the entries after `before`, up to `last`.
    pub(super) fn committed(&self, before: Sequence, last: Sequence) {
        if last.entries_since(before) > self.behind_min.load(Ordering::Relaxed) {
            self.large.lock().push_back(LargeTransaction { before, last });
        }
    }

    /// Returns the time for which the source has waited for readers so far.
    pub(super) fn slowed_down(&self) -> Duration {
        self.slow_down.lock().waited
    }

    /// Cuts live readers that are too far behind `head`. Returns the wait for a slow reader, if
    /// any. `pruned` is the newest entry that the journal no longer keeps.
    ///
    /// A transaction larger than a reader's bound does not count while the reader has not taken it.
    /// No reader could have taken it before it was published.
    pub(super) fn enforce(
        &self,
        head: Sequence,
        pruned: Sequence,
        gaps: &SequenceGaps,
        now: Instant,
    ) -> Option<SlowReaderWait> {
        let mut budget = self.slow_down.lock();
        let available = budget.settle(now);
        let list = self.list.lock();
        let mut large = self.large.lock();
        forget_transactions(&mut large, pruned);
        let mut slowest = head;
        let mut patience: Option<SlowReaderWait> = None;
        for entry in list.values().filter(|entry| !entry.cut.load(Ordering::Relaxed)) {
            let mut progress = entry.progress.lock();
            let since = match progress.stage {
                ReaderStage::CatchingUp => continue,
                ReaderStage::Live => now,
                ReaderStage::Slow(since) => since,
            };
            slowest = slowest.min(progress.sequence);
            if entries_behind(head, progress.sequence, &large, gaps, entry.options.behind_max)
                <= entry.options.behind_max
            {
                progress.stage = ReaderStage::Live;
                continue;
            }
            let until = match entry.options.policy {
                BufferPolicy::DropDisconnect => now,
                BufferPolicy::SlowDown => (since + SLOW_DOWN_MAX).min(now + available),
            };
            if until <= now {
                entry.cut.store(true, Ordering::Release);
                continue;
            }
            progress.stage = ReaderStage::Slow(since);
            if patience.as_ref().is_none_or(|p| until < p.until) {
                patience = Some(SlowReaderWait { entry: entry.clone(), until });
            }
        }
        forget_transactions(&mut large, slowest);
        budget.is_waiting = patience.is_some();
        patience
    }
}

/// Removes the transactions that end at or before `until`.
fn forget_transactions(large: &mut VecDeque<LargeTransaction>, until: Sequence) {
    while large.front().is_some_and(|transaction| transaction.last <= until) {
        large.pop_front();
    }
}

/// Returns the number of entries that a reader at `at` has not taken. Entries of transactions
/// larger than its bound do not count.
fn entries_behind(
    head: Sequence,
    at: Sequence,
    large: &VecDeque<LargeTransaction>,
    gaps: &SequenceGaps,
    behind_max: u64,
) -> u64 {
    let untaken = large.iter().rev().take_while(|transaction| transaction.last > at);
    let excused: u64 = untaken
        .filter(|transaction| transaction.last.entries_since(transaction.before) > behind_max)
        .map(|transaction| transaction.last.entries_since(transaction.before.max(at)))
        .sum();
    gaps.entries(at, head).saturating_sub(excused)
}

impl JournalReader {
    pub(super) fn new(id: ReaderId, entry: Arc<ReaderRegistration>, journal: super::Journal) -> JournalReader {
        JournalReader { id, entry, journal }
    }

    /// Returns the number of the reader.
    #[must_use]
    pub fn id(&self) -> ReaderId {
        self.id
    }

    /// Returns true if another journal has replaced the one that is read.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.journal.is_closed()
    }

    /// Notes that the reader has taken everything up to `sequence`. `live` is true once the reader
    /// has been at the head.
    pub fn note_progress(&self, sequence: Sequence, live: bool) {
        let ReaderRegistration { progress, options, moved, .. } = &*self.entry;
        let mut progress = progress.lock();
        progress.sequence = sequence;
        match progress.stage {
            ReaderStage::CatchingUp if live => progress.stage = ReaderStage::Live,
            ReaderStage::Slow(_) => {
                if self.journal.entries_after(sequence) <= options.behind_max {
                    progress.stage = ReaderStage::Live;
                }
                moved.notify_one();
            }
            _ => {}
        }
    }

    /// Notes that the reader has been asked to leave. Unless `follows` is true, it takes nothing
    /// more, and the writer no longer waits for it.
    pub fn drain(&self, follows: bool) {
        self.entry.draining.store(true, Ordering::Relaxed);
        if !follows {
            self.entry.progress.lock().stage = ReaderStage::CatchingUp;
            self.entry.moved.notify_one();
        }
    }

    /// Returns true if the reader was cut for being too far behind.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.entry.cut.load(Ordering::Acquire)
    }
}

impl Drop for JournalReader {
    fn drop(&mut self) {
        self.journal.remove_reader(self.id);
        self.entry.moved.notify_one();
    }
}
