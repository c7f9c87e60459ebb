//! Two copies of the table. Readers see the front copy while the writer changes the back copy. Then
//! the copies change places, and the writer applies every transaction a second time. Readers never
//! wait, and see one state of the rows with all indexes.
//!
//! Each copy is in an `Arc`. `Arc::get_mut` succeeds once all readers have left the copy. A view
//! may live on any thread and across an await.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use laredo_core::{Change, CommitTime, Lsn, StateError, TableState, Transaction};

use crate::changes::RowChange;
use crate::layout::RowLayout;
use crate::row::Row;
use crate::view_holders::ViewHolders;

/// The time after which the writer logs which views make it wait.
const PATIENCE: Duration = Duration::from_secs(1);
/// The number of times that the writer checks a copy before it sleeps. Most views are held for less
/// time than these checks take.
const SPINS: u32 = 200;
/// The shortest sleep of the writer between two checks, unless a reader wakes it.
const PARK_MIN: Duration = Duration::from_millis(1);

/// A copy of the table.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaTable {
    /// The rows; `None` before the first snapshot.
    pub(crate) table: Option<TableState>,
    pub(crate) layout: Arc<RowLayout>,
    pub(crate) position: Lsn,
    /// The commit time of the newest transaction, or `None` if all rows came in a snapshot.
    pub(crate) committed_at: Option<CommitTime>,
}

/// The state that readers and the writer share.
#[derive(Debug)]
pub(crate) struct ReplicaFront {
    side: ArcSwap<ReplicaTable>,
    /// The number of times that the copies changed places.
    generation: AtomicU64,
    holders: ViewHolders,
    writer_waits: AtomicBool,
    /// The thread that waits, or the last one that did.
    writer: ArcSwapOption<Thread>,
    closing: AtomicBool,
}

/// A reader's hold on one state. The field order matters: the side is dropped first, then the
/// writer is woken.
pub(crate) struct ViewHold<'a> {
    side: Guard<Arc<ReplicaTable>>,
    _leaving: ViewHoldRelease<'a>,
}

struct ViewHoldRelease<'a> {
    front: &'a ReplicaFront,
    slot: Option<usize>,
}

impl ReplicaTable {
    pub(crate) fn empty(layout: Arc<RowLayout>) -> ReplicaTable {
        ReplicaTable { table: None, layout, position: Lsn::ZERO, committed_at: None }
    }

    pub(crate) fn of(table: TableState, position: Lsn, committed_at: Option<CommitTime>) -> ReplicaTable {
        let layout = Arc::new(RowLayout::new(table.schema().clone()));
        ReplicaTable { table: Some(table), layout, position, committed_at }
    }

    /// Applies a transaction. The changed rows are appended to `effects`.
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
                    self.layout = Arc::new(RowLayout::new(schema.clone()));
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

impl ReplicaFront {
    pub(crate) fn new(side: ReplicaTable) -> Arc<ReplicaFront> {
        Arc::new(ReplicaFront {
            side: ArcSwap::from_pointee(side),
            generation: AtomicU64::new(0),
            holders: ViewHolders::new(),
            writer_waits: AtomicBool::new(false),
            writer: ArcSwapOption::empty(),
            closing: AtomicBool::new(false),
        })
    }

    pub(crate) fn hold(&self, call_site: &'static Location<'static>) -> ViewHold<'_> {
        let slot = self.holders.enter(call_site, self.generation.load(Ordering::Relaxed));
        let leaving = ViewHoldRelease { front: self, slot };
        let side = self.side.load();
        // While it loaded the side, this reader may have briefly held the other copy without a
        // slot.
        self.wake_writer();
        ViewHold { side, _leaving: leaving }
    }

    /// Makes the writer stop waiting for readers. No newer state will be published.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.wake_writer();
    }

    /// Wakes the writer if it waits, without a lock.
    ///
    /// No wake-up is lost. There is a fence here and a fence in `wait_for`, and one comes first. If
    /// this one is first, the writer's check after its own fence sees that the reader has left. If
    /// the writer's is first, this reader sees that the writer waits. The writer may not have
    /// parked yet, but then its next park returns at once.
    fn wake_writer(&self) {
        fence(Ordering::SeqCst);
        if self.writer_waits.load(Ordering::SeqCst)
            && let Some(writer) = &*self.writer.load()
        {
            writer.unpark();
        }
    }

    /// Waits until every reader has left a copy. Returns false if the replica is being stopped.
    fn wait_for(&self, side: &mut Arc<ReplicaTable>) -> bool {
        for _ in 0..SPINS {
            if Arc::get_mut(side).is_some() {
                return true;
            }
            std::hint::spin_loop();
        }
        // The order matters: a reader that sees that the writer waits must also see its thread.
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
            // Readers of the other copy wake the writer too, so the elapsed time decides, not the
            // number of wake-ups.
            let waited = began.elapsed();
            if waited >= patience {
                self.log_view_holders(waited);
                patience = patience.saturating_mul(2);
            }
            thread::park_timeout(patience.saturating_sub(waited).max(PARK_MIN));
        };
        self.writer_waits.store(false, Ordering::SeqCst);
        free
    }

    fn log_view_holders(&self, waited: Duration) {
        let call_sites = self.holders.older_than(self.generation.load(Ordering::Relaxed));
        let call_sites: Vec<String> = call_sites.iter().map(ToString::to_string).collect();
        tracing::warn!(
            event = "view_held",
            taken_at = ?call_sites,
            waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            "a view was not dropped, so the replica cannot show newer rows; drop views soon, or keep rows instead"
        );
    }
}

impl ViewHold<'_> {
    pub(crate) fn side(&self) -> &ReplicaTable {
        &self.side
    }
}

impl Drop for ViewHoldRelease<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.front.holders.leave(slot);
        }
        self.front.wake_writer();
    }
}

/// The reason why a transaction could not be applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReplicaWriteError {
    /// The transaction does not fit the table.
    State(StateError),
    /// The replica is being stopped.
    Closing,
}

/// The writer of both copies.
#[derive(Debug)]
pub(crate) struct ReplicaWriter {
    front: Arc<ReplicaFront>,
    /// The copy to change. `None` if it must first be cloned from the front.
    back: Option<Arc<ReplicaTable>>,
    /// The transactions that the front has and the back does not.
    behind: Vec<Transaction>,
    /// The transactions that the back has and the front does not.
    unpublished: Vec<Transaction>,
}

impl ReplicaWriter {
    pub(crate) fn new(front: Arc<ReplicaFront>) -> ReplicaWriter {
        ReplicaWriter { front, back: None, behind: Vec::new(), unpublished: Vec::new() }
    }

    /// Returns the state that readers see.
    pub(crate) fn current(&self) -> Guard<Arc<ReplicaTable>> {
        self.front.side.load()
    }

    /// Applies a transaction to the back copy, after the last reader has left it.
    ///
    /// # Errors
    /// When the transaction does not fit; everything unpublished is then discarded. When the
    /// replica is being stopped.
    pub(crate) fn apply(
        &mut self,
        transaction: Transaction,
        effects: Option<&mut Vec<RowChange>>,
    ) -> Result<(), ReplicaWriteError> {
        if let Some(back) = &mut self.back
            && !self.front.wait_for(back)
        {
            return Err(ReplicaWriteError::Closing);
        }
        self.catch_up();
        if self.back.is_none() {
            self.catch_up();
        }
        let back = self.back.as_mut().and_then(Arc::get_mut).ok_or(ReplicaWriteError::Closing)?;
        match back.apply(&transaction, effects) {
            Ok(()) => {
                self.unpublished.push(transaction);
                Ok(())
            }
            Err(error) => {
                self.back = None;
                self.unpublished.clear();
                Err(ReplicaWriteError::State(error))
            }
        }
    }

    /// Returns the state that [`ReplicaWriter::publish`] would show, if it differs from the current
    /// one.
    pub(crate) fn unpublished(&self) -> Option<&ReplicaTable> {
        let back = self.back.as_deref();
        back.filter(|_| !self.unpublished.is_empty())
    }

    /// Returns the state with everything applied, published or not.
    pub(crate) fn newest(&self) -> Arc<ReplicaTable> {
        match &self.back {
            Some(back) if !self.unpublished.is_empty() => back.clone(),
            _ => self.current().clone(),
        }
    }

    /// Shows the applied transactions to readers. Never waits.
    pub(crate) fn publish(&mut self) {
        if !self.unpublished.is_empty()
            && let Some(back) = self.back.take()
        {
            self.swap(back);
            self.behind = std::mem::take(&mut self.unpublished);
        }
    }

    /// Shows an entirely different state. Never waits.
    pub(crate) fn replace(&mut self, side: ReplicaTable) {
        self.unpublished.clear();
        self.swap(Arc::new(side));
        self.back = None;
    }

    /// Brings the back copy up to date with the front, if no reader is left in it. The replica does
    /// this while it is idle, so that the next transaction need not wait.
    pub(crate) fn catch_up(&mut self) {
        let back = self.back.get_or_insert_with(|| {
            self.behind.clear();
            Arc::new(ReplicaTable::clone(&self.front.side.load()))
        });
        let Some(side) = Arc::get_mut(back) else { return };
        for transaction in self.behind.drain(..) {
            if let Err(error) = side.apply(&transaction, None) {
                // The transaction fitted the other copy, so the copies differ. This copy is made
                // again from the front.
                tracing::error!(
                    event = "replica_copies_differ", %error,
                    "the replica's two copies of the table differ; one is copied from the other again"
                );
                self.back = None;
                return;
            }
        }
    }

    fn swap(&mut self, side: Arc<ReplicaTable>) {
        self.front.generation.fetch_add(1, Ordering::Relaxed);
        self.back = Some(self.front.side.swap(side));
    }
}

#[cfg(test)]
mod tests;
