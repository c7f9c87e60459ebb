//! Who reads a journal, and how far behind each may be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use laredo_core::Sequence;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

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

#[derive(Debug, Default)]
pub(super) struct Readers {
    list: Mutex<BTreeMap<ReaderId, Arc<Entry>>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    options: ReaderOptions,
    since: Instant,
    sequence: AtomicU64,
    state: AtomicU8,
    cut: AtomicBool,
    cut_notice: Notify,
    progress: Notify,
    slow_since: Mutex<Option<Instant>>,
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
        let _ = tokio::time::timeout_at(self.until, self.entry.progress.notified()).await;
    }
}

impl Readers {
    pub(super) fn list(&self) -> Vec<ReaderInfo> {
        let info = |(id, entry): (&ReaderId, &Arc<Entry>)| ReaderInfo {
            id: *id,
            client_id: entry.options.client_id.clone(),
            sequence: Sequence(entry.sequence.load(Ordering::Relaxed)),
            since: entry.since,
            state: entry.state(),
        };
        self.list.lock().iter().map(info).collect()
    }

    /// Cuts readers that are too far behind `head`, and says whom to wait for.
    pub(super) fn enforce(&self, head: Sequence, now: Instant) -> Option<Patience> {
        let mut patience: Option<Patience> = None;
        for entry in self.list.lock().values() {
            let behind = head.entries_since(Sequence(entry.sequence.load(Ordering::Relaxed)));
            let live = entry.state() != ReaderState::CatchingUp;
            if !live || behind <= entry.options.behind_max || entry.cut.load(Ordering::Relaxed) {
                continue;
            }
            let until = match entry.options.policy {
                BufferPolicy::DropDisconnect => now,
                BufferPolicy::SlowDown => *entry.slow_since.lock().get_or_insert(now) + SLOW_DOWN_MAX,
            };
            if until <= now {
                entry.cut.store(true, Ordering::Release);
                entry.cut_notice.notify_one();
            } else if patience.as_ref().is_none_or(|p| until < p.until) {
                entry.set_state(ReaderState::Backpressured);
                patience = Some(Patience { entry: entry.clone(), until });
            }
        }
        patience
    }
}

impl super::Journal {
    pub(super) fn add_reader(&self, options: ReaderOptions, at: Sequence) -> Reader {
        let readers = &self.shared.readers;
        let id = ReaderId(readers.next.fetch_add(1, Ordering::Relaxed));
        let entry = Arc::new(Entry {
            options,
            since: Instant::now(),
            sequence: AtomicU64::new(at.0),
            state: AtomicU8::new(0),
            cut: AtomicBool::new(false),
            cut_notice: Notify::new(),
            progress: Notify::new(),
            slow_since: Mutex::new(None),
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
        self.entry.sequence.store(sequence.0, Ordering::Relaxed);
        match self.entry.state() {
            ReaderState::CatchingUp if live => self.entry.set_state(ReaderState::Live),
            ReaderState::Backpressured => {
                let head = self.journal.head().sequence;
                if head.entries_since(sequence) <= self.entry.options.behind_max {
                    *self.entry.slow_since.lock() = None;
                    self.entry.set_state(ReaderState::Live);
                }
                self.entry.progress.notify_one();
            }
            _ => {}
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
        self.entry.progress.notify_one();
    }
}

impl Entry {
    fn state(&self) -> ReaderState {
        match self.state.load(Ordering::Relaxed) {
            0 => ReaderState::CatchingUp,
            1 => ReaderState::Live,
            2 => ReaderState::Backpressured,
            _ => ReaderState::Draining,
        }
    }

    fn set_state(&self, state: ReaderState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}
