//! Two copies of the table: readers are in the front one while the writer changes the back one; then they change places,
//! and every operation is applied a second time. Readers never wait, and see one state with all its indexes.
//!
//! Each copy is an `Arc`, so "has everybody left it?" is `Arc::get_mut`, and a view may live anywhere, on any thread and
//! across an await.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use laredo_core::{Change, CommitTime, Lsn, StateError, TableState, Transaction};

use crate::changes::RowChange;
use crate::holders::Holders;
use crate::layout::Layout;
use crate::row::Row;

/// After this long the writer says who holds it up.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the writer looks again before it sleeps: most views are held for less than that takes.
const SPINS: u32 = 200;
/// The writer sleeps no less than this between two looks, if nobody wakes it.
const PARK_MIN: Duration = Duration::from_millis(1);

/// One copy.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    /// `None` before the first snapshot.
    pub(crate) table: Option<TableState>,
    pub(crate) layout: Arc<Layout>,
    pub(crate) position: Lsn,
    /// When the newest transaction committed, where one was seen.
    pub(crate) committed_at: Option<CommitTime>,
}

/// What readers and the writer share.
#[derive(Debug)]
pub(crate) struct Front {
    side: ArcSwap<Side>,
    /// How often the copies changed places.
    generation: AtomicU64,
    holders: Holders,
    writer_waits: AtomicBool,
    /// The thread that waits, or that last did.
    writer: ArcSwapOption<Thread>,
    closing: AtomicBool,
}

/// A reader's hold of one state. Fields are dropped in their order: the side first, then the writer is told.
pub(crate) struct Held<'a> {
    side: Guard<Arc<Side>>,
    _leaving: Leaving<'a>,
}

struct Leaving<'a> {
    front: &'a Front,
    slot: Option<usize>,
}

impl Side {
    pub(crate) fn empty(layout: Arc<Layout>) -> Side {
        Side { table: None, layout, position: Lsn::ZERO, committed_at: None }
    }

    pub(crate) fn of(table: TableState, position: Lsn, committed_at: Option<CommitTime>) -> Side {
        let layout = Arc::new(Layout::new(table.schema().clone()));
        Side { table: Some(table), layout, position, committed_at }
    }

    /// Applies a transaction; `effects` collects the rows it changed.
    pub(crate) fn apply(
        &mut self,
        transaction: &Transaction,
        mut effects: Option<&mut Vec<RowChange>>,
    ) -> Result<(), StateError> {
        if let Some(table) = &mut self.table {
            for change in &transaction.changes {
                if let (Change::Truncate, Some(effects)) = (change, &mut effects) {
                    let gone = |row: &_| RowChange::gone(Row::new(Clone::clone(row), self.layout.clone()));
                    effects.extend(table.rows().map(gone));
                }
                let effect = table.apply_change(change)?;
                if let Change::Schema(schema) = change {
                    self.layout = Arc::new(Layout::new(schema.clone()));
                }
                if let Some(effects) = &mut effects {
                    effects.extend(RowChange::of(effect, &self.layout));
                }
            }
        }
        self.position = self.position.max(transaction.position);
        if !transaction.changes.is_empty() {
            self.committed_at = Some(transaction.committed_at);
        }
        Ok(())
    }
}

impl Front {
    pub(crate) fn new(side: Side) -> Arc<Front> {
        Arc::new(Front {
            side: ArcSwap::from_pointee(side),
            generation: AtomicU64::new(0),
            holders: Holders::new(),
            writer_waits: AtomicBool::new(false),
            writer: ArcSwapOption::empty(),
            closing: AtomicBool::new(false),
        })
    }

    pub(crate) fn hold(&self, place: &'static Location<'static>) -> Held<'_> {
        let slot = self.holders.enter(place, self.generation.load(Ordering::Relaxed));
        let leaving = Leaving { front: self, slot };
        let side = self.side.load();
        // Taking hold may have held the other copy for a moment, unseen.
        self.wake_writer();
        Held { side, _leaving: leaving }
    }

    /// Nothing more will be published.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.wake_writer();
    }

    /// Takes no lock. No wake-up is lost: of the two fences, here and in `wait_for`, one comes first. Is it ours, the writer sees
    /// that we left when it looks after its own. Is it the writer's, we see that it waits; that it has not parked yet does not
    /// matter, for its next park then returns at once.
    fn wake_writer(&self) {
        fence(Ordering::SeqCst);
        if self.writer_waits.load(Ordering::SeqCst)
            && let Some(writer) = &*self.writer.load()
        {
            writer.unpark();
        }
    }

    /// Waits until every reader has left a copy; false when closing.
    fn wait_for(&self, side: &mut Arc<Side>) -> bool {
        for _ in 0..SPINS {
            if Arc::get_mut(side).is_some() {
                return true;
            }
            std::hint::spin_loop();
        }
        // In this order: whoever sees that the writer waits sees who it is.
        self.writer.store(Some(Arc::new(thread::current())));
        self.writer_waits.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let (began, mut patience) = (Instant::now(), PATIENCE);
        let free = loop {
            if Arc::get_mut(side).is_some() {
                break true;
            }
            if self.closing.load(Ordering::SeqCst) {
                break false;
            }
            // Other readers wake it, too, so that it is time which tells, not how often it was woken.
            let waited = began.elapsed();
            if waited >= patience {
                self.tell_who_holds(waited);
                patience = patience.saturating_mul(2);
            }
            thread::park_timeout(patience.saturating_sub(waited).max(PARK_MIN));
        };
        self.writer_waits.store(false, Ordering::SeqCst);
        free
    }

    fn tell_who_holds(&self, waited: Duration) {
        let places = self.holders.older_than(self.generation.load(Ordering::Relaxed));
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        tracing::warn!(
            taken_at = ?places,
            waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            "a view is held so long that nothing newer can be shown; drop views soon, or keep rows instead"
        );
    }
}

impl Held<'_> {
    pub(crate) fn side(&self) -> &Side {
        &self.side
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.front.holders.leave(slot);
        }
        self.front.wake_writer();
    }
}

/// Why a transaction could not be applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// It does not fit the state.
    State(StateError),
    /// The replica is being stopped.
    Closing,
}

/// The one that changes the table.
#[derive(Debug)]
pub(crate) struct Writer {
    front: Arc<Front>,
    /// The copy to change; `None` where it must first be made from the front.
    back: Option<Arc<Side>>,
    /// What the front has and the back has not.
    behind: Vec<Transaction>,
    /// What the back has and the front has not.
    unpublished: Vec<Transaction>,
}

impl Writer {
    pub(crate) fn new(front: Arc<Front>) -> Writer {
        Writer { front, back: None, behind: Vec::new(), unpublished: Vec::new() }
    }

    /// The state that readers see.
    pub(crate) fn current(&self) -> Guard<Arc<Side>> {
        self.front.side.load()
    }

    /// Applies a transaction out of the readers' sight, waiting for those who are still in that copy.
    ///
    /// # Errors
    /// When it does not fit: then everything unpublished is gone.
    pub(crate) fn apply(
        &mut self,
        transaction: Transaction,
        effects: Option<&mut Vec<RowChange>>,
    ) -> Result<(), WriteError> {
        if let Some(back) = &mut self.back
            && !self.front.wait_for(back)
        {
            return Err(WriteError::Closing);
        }
        self.catch_up();
        if self.back.is_none() {
            self.catch_up();
        }
        let back = self.back.as_mut().and_then(Arc::get_mut).ok_or(WriteError::Closing)?;
        match back.apply(&transaction, effects) {
            Ok(()) => {
                self.unpublished.push(transaction);
                Ok(())
            }
            Err(error) => {
                self.back = None;
                self.unpublished.clear();
                Err(WriteError::State(error))
            }
        }
    }

    /// The state that [`Writer::publish`] would show.
    pub(crate) fn unpublished(&self) -> Option<&Side> {
        let back = self.back.as_deref();
        back.filter(|_| !self.unpublished.is_empty())
    }

    /// The state to which everything was applied, whether it is shown or not.
    pub(crate) fn newest(&self) -> Arc<Side> {
        match &self.back {
            Some(back) if !self.unpublished.is_empty() => back.clone(),
            _ => self.current().clone(),
        }
    }

    /// Shows what was applied. Never waits.
    pub(crate) fn publish(&mut self) {
        if !self.unpublished.is_empty()
            && let Some(back) = self.back.take()
        {
            self.swap(back);
            self.behind = std::mem::take(&mut self.unpublished);
        }
    }

    /// Shows another state altogether. Never waits.
    pub(crate) fn replace(&mut self, side: Side) {
        self.unpublished.clear();
        self.swap(Arc::new(side));
        self.back = None;
    }

    /// Brings the back copy to where the front is, if no reader is left in it: done while there is nothing else to do, so
    /// that the next transaction need not wait for it.
    pub(crate) fn catch_up(&mut self) {
        let back = self.back.get_or_insert_with(|| {
            self.behind.clear();
            Arc::new(Side::clone(&self.front.side.load()))
        });
        let Some(side) = Arc::get_mut(back) else { return };
        for transaction in self.behind.drain(..) {
            if let Err(error) = side.apply(&transaction, None) {
                // It fitted the other copy, so the copies have come apart: make this one anew.
                tracing::error!(%error, "the replica's two copies differ; one is made anew");
                self.back = None;
                return;
            }
        }
    }

    fn swap(&mut self, side: Arc<Side>) {
        self.front.generation.fetch_add(1, Ordering::Relaxed);
        self.back = Some(self.front.side.swap(side));
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
