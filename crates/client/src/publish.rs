//! Two copies of the table: readers are in the front one while the writer changes the back one; then they change places,
//! and every operation is applied a second time. Readers never wait, and see one state with all its indexes.
//!
//! Each copy is an `Arc`, so "has everybody left it?" is `Arc::get_mut`, and a view may live anywhere, on any thread and
//! across an await.

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use laredo_core::{Change, CommitTime, Lsn, StateError, TableState, Transaction};

use crate::changes::RowChange;
use crate::holders::Holders;
use crate::layout::Layout;
use crate::row::Row;

/// After this long the writer says who holds it up.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the writer looks again before it sleeps: most views are held for less than that takes.
const SPINS: u32 = 200;

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
    closing: AtomicBool,
    lock: Mutex<()>,
    left: Condvar,
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
            closing: AtomicBool::new(false),
            lock: Mutex::new(()),
            left: Condvar::new(),
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
        let _lock = self.locked();
        self.left.notify_all();
    }

    fn wake_writer(&self) {
        // Pairs with the fence in `wait_for`: either this sees that the writer waits, or the writer sees that we left.
        fence(Ordering::SeqCst);
        if self.writer_waits.load(Ordering::SeqCst) {
            let _lock = self.locked();
            self.left.notify_all();
        }
    }

    fn locked(&self) -> MutexGuard<'_, ()> {
        // The lock guards no data, so a panic under it broke none.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every reader has left a copy; false when closing.
    fn wait_for(&self, side: &mut Arc<Side>) -> bool {
        for _ in 0..SPINS {
            if Arc::get_mut(side).is_some() {
                return true;
            }
            std::hint::spin_loop();
        }
        let mut lock = self.locked();
        self.writer_waits.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let mut patience = PATIENCE;
        let free = loop {
            if Arc::get_mut(side).is_some() {
                break true;
            }
            if self.closing.load(Ordering::SeqCst) {
                break false;
            }
            let (locked, waited) = self.left.wait_timeout(lock, patience).unwrap_or_else(PoisonError::into_inner);
            lock = locked;
            if waited.timed_out() {
                self.tell_who_holds(patience);
                patience = patience.saturating_mul(2);
            }
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
