//! Committed transactions for those who follow them: streams and listeners.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures::Stream;
use laredo_core::{CommitTime, Effect, Lsn, TableState};

use crate::layout::Layout;
use crate::row::Row;

/// What one transaction did to the table. After a re-sync: everything that differs from what the replica showed before.
#[derive(Clone, Debug)]
pub struct CommittedTransaction {
    /// Every commit up to here is in a view taken now.
    pub position: Lsn,
    /// When it committed, by the database's clock; `None` for a re-sync, and where only the position moved because nothing
    /// happened to the rows of this replica.
    pub committed_at: Option<CommitTime>,
    /// In the order in which they were made. Rows of a truncated table are deleted one by one.
    pub changes: Vec<RowChange>,
}

/// A row that came, changed, or went.
#[derive(Clone, Debug, PartialEq)]
pub struct RowChange {
    /// The row before; `None` when it is new.
    pub old: Option<Row>,
    /// The row after; `None` when it is gone.
    pub new: Option<Row>,
}

/// The consumer was too slow, and transactions were left out. Look at the table anew; what comes next follows on the newest
/// transaction that was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{transactions} transactions were left out because their consumer was too slow; take a new view and go on from there"
)]
pub struct Lagged {
    /// How many.
    pub transactions: u64,
}

/// Committed transactions as they become visible, from when it was made on. It ends when the replica stops.
///
/// Bounded: when more than [`crate::ReplicaBuilder::pending_changes_max`] row changes wait to be read, they are left out and one
/// [`Lagged`] says so.
#[derive(Debug)]
pub struct Transactions {
    queue: Arc<Mutex<Queue>>,
}

/// A listener's registration; dropping it ends it.
#[must_use = "dropping it ends the listener"]
pub struct ListenerHandle {
    hub: Weak<Hub>,
    id: u64,
}

/// A listener's function: the old row and the new one.
type Listener = Arc<Mutex<dyn FnMut(Option<&Row>, Option<&Row>) + Send>>;

/// Everybody who follows.
pub(crate) struct Hub {
    pending_changes_max: usize,
    next_id: AtomicU64,
    followers: Mutex<Followers>,
}

#[derive(Default)]
struct Followers {
    queues: Vec<Weak<Mutex<Queue>>>,
    listeners: Vec<(u64, Listener)>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<CommittedTransaction>>,
    changes: usize,
    left_out: u64,
    closed: bool,
    waker: Option<Waker>,
}

impl RowChange {
    pub(crate) fn gone(row: Row) -> RowChange {
        RowChange { old: Some(row), new: None }
    }

    pub(crate) fn of(effect: Effect, layout: &Arc<Layout>) -> Option<RowChange> {
        let row = |tuple| Row::new(tuple, layout.clone());
        let (old, new) = (effect.old.map(row), effect.new.map(row));
        (old.is_some() || new.is_some()).then_some(RowChange { old, new })
    }
}

/// What turns one state into another.
pub(crate) fn difference(old: Option<(&TableState, &Arc<Layout>)>, new: (&TableState, &Arc<Layout>)) -> Vec<RowChange> {
    let (new_table, new_layout) = new;
    let added = |tuple: &_| RowChange { old: None, new: Some(Row::new(Clone::clone(tuple), new_layout.clone())) };
    let Some((old_table, old_layout)) = old else {
        return new_table.rows().map(added).collect();
    };
    let mut cast = None;
    if old_table.schema() != new_table.schema() {
        let mut table = old_table.clone();
        if table.cast_to(new_table.schema().clone()).is_err() {
            // The old rows are no rows of the new table, so there is nothing to compare.
            let gone = old_table.rows().map(|t| RowChange::gone(Row::new(t.clone(), old_layout.clone())));
            return gone.chain(new_table.rows().map(added)).collect();
        }
        cast = Some(table);
    }
    let old_table = cast.as_ref().unwrap_or(old_table);
    let row = |tuple: &laredo_core::Tuple| Row::new(tuple.clone(), new_layout.clone());
    let gone = old_table.rows().filter(|t| new_table.get_like(t.as_ref()).is_none());
    let there = new_table.rows().filter_map(|tuple| {
        let before = old_table.get_like(tuple.as_ref());
        (before != Some(tuple)).then(|| RowChange { old: before.map(row), new: Some(row(tuple)) })
    });
    gone.map(|tuple| RowChange::gone(row(tuple))).chain(there).collect()
}

impl Hub {
    pub(crate) fn new(pending_changes_max: usize) -> Arc<Hub> {
        Arc::new(Hub { pending_changes_max, next_id: AtomicU64::new(0), followers: Mutex::default() })
    }

    pub(crate) fn follow(&self) -> Transactions {
        let queue = Arc::new(Mutex::new(Queue::default()));
        let mut followers = locked(&self.followers);
        locked(&queue).closed = followers.closed;
        followers.queues.push(Arc::downgrade(&queue));
        Transactions { queue }
    }

    pub(crate) fn listen(
        self: &Arc<Self>,
        listener: impl FnMut(Option<&Row>, Option<&Row>) + Send + 'static,
    ) -> ListenerHandle {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        locked(&self.followers).listeners.push((id, Arc::new(Mutex::new(listener))));
        ListenerHandle { hub: Arc::downgrade(self), id }
    }

    /// Whether anybody follows, so that old rows must be kept for them.
    pub(crate) fn is_followed(&self) -> bool {
        locked(&self.followers).are_there()
    }

    /// Runs `show`, which makes transactions visible and returns them, and passes them on. It is told whether anybody follows,
    /// and nobody can begin to while it runs: a view taken after beginning to follow has all that is not passed on.
    pub(crate) fn publish(&self, show: impl FnOnce(bool) -> Vec<CommittedTransaction>) {
        let (transactions, listeners) = {
            let mut followers = locked(&self.followers);
            let followed = followers.are_there();
            let transactions: Vec<_> = show(followed).into_iter().map(Arc::new).collect();
            for queue in followers.queues.iter().filter_map(Weak::upgrade) {
                let mut queue = locked(&queue);
                transactions.iter().for_each(|t| queue.push(t, self.pending_changes_max));
            }
            (transactions, followers.listeners.clone())
        };
        // Listeners are called without the lock, so that they may add and end listeners.
        for transaction in &transactions {
            for (id, listener) in &listeners {
                self.call(*id, listener, transaction);
            }
        }
    }

    fn call(&self, id: u64, listener: &Listener, transaction: &CommittedTransaction) {
        let mut listener = locked(listener);
        let told = catch_unwind(AssertUnwindSafe(|| {
            for change in &transaction.changes {
                listener(change.old.as_ref(), change.new.as_ref());
            }
        }));
        if told.is_err() {
            tracing::error!("a listener panicked, and is not called again");
            self.end(id);
        }
    }

    pub(crate) fn close(&self) {
        let mut followers = locked(&self.followers);
        followers.closed = true;
        for queue in followers.queues.iter().filter_map(Weak::upgrade) {
            let mut queue = locked(&queue);
            queue.closed = true;
            queue.wake();
        }
    }

    fn end(&self, id: u64) {
        let ended = {
            let mut followers = locked(&self.followers);
            let place = followers.listeners.iter().position(|(other, _)| *other == id);
            place.map(|place| followers.listeners.swap_remove(place))
        };
        // Its function may own anything, even another handle: it is dropped without the lock.
        drop(ended);
    }
}

impl Followers {
    fn are_there(&mut self) -> bool {
        self.queues.retain(|queue| queue.strong_count() > 0);
        !self.queues.is_empty() || !self.listeners.is_empty()
    }
}

impl Queue {
    fn push(&mut self, transaction: &Arc<CommittedTransaction>, changes_max: usize) {
        // An empty transaction only moves the position; it still weighs something.
        let weight = transaction.changes.len().max(1);
        if !self.waiting.is_empty() && self.changes + weight > changes_max {
            self.left_out += self.waiting.len() as u64;
            self.waiting.clear();
            self.changes = 0;
        }
        if self.left_out > 0 {
            // Until the consumer knows, it would take what follows for what it has.
            self.left_out += 1;
        } else {
            self.waiting.push_back(transaction.clone());
            self.changes += weight;
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Stream for Transactions {
    type Item = Result<Arc<CommittedTransaction>, Lagged>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = locked(&self.queue);
        if queue.left_out > 0 {
            let transactions = std::mem::take(&mut queue.left_out);
            return Poll::Ready(Some(Err(Lagged { transactions })));
        }
        match queue.waiting.pop_front() {
            Some(transaction) => {
                queue.changes -= transaction.changes.len().max(1);
                Poll::Ready(Some(Ok(transaction)))
            }
            None if queue.closed => Poll::Ready(None),
            None => {
                queue.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for ListenerHandle {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.end(self.id);
        }
    }
}

impl fmt::Debug for ListenerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ListenerHandle").field(&self.id).finish()
    }
}

/// What these locks guard is whole between any two statements under them, so a panic under one broke nothing.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
