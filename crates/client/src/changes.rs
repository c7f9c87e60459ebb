//! Streams of committed transactions, and listeners that are called for each change.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use laredo_core::{CommitTime, Lsn, RowEffect, TableState};

use crate::layout::RowLayout;
use crate::row::Row;

/// The changes of one transaction to the table. After a full snapshot replaced the table: all
/// differences from the rows that the replica showed before.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommittedTransaction {
    /// The position of the transaction. A view taken now includes every commit up to here.
    pub position: Lsn,
    /// The commit time by the database's clock. `None` after a full snapshot, and if only the
    /// position moved because no row of this replica changed.
    pub committed_at: Option<CommitTime>,
    /// The changed rows, in the order of the changes. Rows of a truncated table are deleted one by
    /// one.
    pub changes: Vec<RowChange>,
}

/// An inserted, updated or deleted row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RowChange {
    /// The row before the change; `None` if it is new.
    pub old: Option<Row>,
    /// The row after the change; `None` if it was deleted.
    pub new: Option<Row>,
}

/// An error for a consumer that was too slow, so that transactions were left out. Take a new view
/// of the table. The next item of the stream follows the newest transaction that was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{transactions} transactions were left out because their consumer was too slow; take a new view and continue from it"
)]
#[non_exhaustive]
pub struct LagError {
    /// The number of transactions that were left out.
    pub transactions: u64,
}

/// A stream of committed transactions as they become visible, from its creation on. It ends when
/// the replica stops.
///
/// The stream is bounded. When more than [`crate::ReplicaBuilder::pending_changes_max`] row changes
/// wait to be read, the waiting transactions are left out. The stream then returns one
/// [`LagError`].
#[derive(Debug)]
pub struct Transactions {
    queue: Arc<Mutex<TransactionQueue>>,
}

/// The registration of a listener, which ends when this handle is dropped.
#[must_use = "dropping it ends the listener"]
pub struct ListenerHandle {
    hub: Weak<ChangeHub>,
    id: u64,
}

/// A listener's function, called with the old and the new row.
type ChangeListener = Arc<Mutex<dyn FnMut(Option<&Row>, Option<&Row>) + Send>>;

/// The streams and listeners of a replica.
pub(crate) struct ChangeHub {
    pending_changes_max: usize,
    next_id: AtomicU64,
    followers: Mutex<ChangeFollowers>,
}

#[derive(Default)]
struct ChangeFollowers {
    queues: Vec<Weak<Mutex<TransactionQueue>>>,
    listeners: Vec<(u64, ChangeListener)>,
    closed: bool,
}

#[derive(Debug, Default)]
struct TransactionQueue {
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

    pub(crate) fn of(effect: RowEffect, layout: &Arc<RowLayout>) -> Option<RowChange> {
        let row = |tuple| Row::new(tuple, layout.clone());
        let (old, new) = (effect.old.map(row), effect.new.map(row));
        (old.is_some() || new.is_some()).then_some(RowChange { old, new })
    }
}

/// Returns the changes that turn one state into another.
pub(crate) fn difference(
    old: Option<(&TableState, &Arc<RowLayout>)>,
    new: (&TableState, &Arc<RowLayout>),
) -> Vec<RowChange> {
    let (new_table, new_layout) = new;
    let added = |tuple: &_| RowChange { old: None, new: Some(Row::new(Clone::clone(tuple), new_layout.clone())) };
    let Some((old_table, old_layout)) = old else {
        return new_table.rows().map(added).collect();
    };
    let mut cast = None;
    if old_table.schema() != new_table.schema() {
        let mut table = old_table.clone();
        if table.cast_to(new_table.schema().clone()).is_err() {
            // The old rows cannot be converted to the new schema, so there is nothing to compare.
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

impl ChangeHub {
    pub(crate) fn new(pending_changes_max: usize) -> Arc<ChangeHub> {
        Arc::new(ChangeHub { pending_changes_max, next_id: AtomicU64::new(0), followers: Mutex::default() })
    }

    pub(crate) fn follow(&self) -> Transactions {
        let queue = Arc::new(Mutex::new(TransactionQueue::default()));
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

    /// Returns true if there is a stream or a listener, so that old rows must be kept for it.
    pub(crate) fn is_followed(&self) -> bool {
        locked(&self.followers).are_there()
    }

    /// Runs `show`, which makes transactions visible and returns them, and passes them to the
    /// followers. `show` receives true if there are followers.
    ///
    /// No stream can be created while `show` runs. So a view that is taken after creating a stream
    /// includes every transaction that is not passed to the stream.
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
                self.call_listener(*id, listener, transaction);
            }
        }
    }

    fn call_listener(&self, id: u64, listener: &ChangeListener, transaction: &CommittedTransaction) {
        let mut listener = locked(listener);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for change in &transaction.changes {
                listener(change.old.as_ref(), change.new.as_ref());
            }
        }));
        if outcome.is_err() {
            tracing::error!(event = "listener_panicked", "a listener panicked; the replica does not call it again");
            self.remove_listener(id);
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

    fn remove_listener(&self, id: u64) {
        let ended = {
            let mut followers = locked(&self.followers);
            let place = followers.listeners.iter().position(|(other, _)| *other == id);
            place.map(|place| followers.listeners.swap_remove(place))
        };
        // The listener's function may own anything, even another handle, so it is dropped without
        // the lock.
        drop(ended);
    }
}

impl ChangeFollowers {
    fn are_there(&mut self) -> bool {
        self.queues.retain(|queue| queue.strong_count() > 0);
        !self.queues.is_empty() || !self.listeners.is_empty()
    }
}

impl TransactionQueue {
    fn push(&mut self, transaction: &Arc<CommittedTransaction>, changes_max: usize) {
        // An empty transaction only moves the position. It counts as one change, so that the queue
        // stays bounded.
        let weight = transaction.changes.len().max(1);
        if !self.waiting.is_empty() && self.changes + weight > changes_max {
            self.left_out += self.waiting.len() as u64;
            self.waiting.clear();
            self.changes = 0;
        }
        if self.left_out > 0 {
            // Until the consumer has received the error, it would apply what follows to an outdated
            // table.
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

impl Transactions {
    /// Waits for the next transaction. Returns `None` when the replica has stopped and all
    /// transactions were returned.
    ///
    /// The future may be dropped while it waits, without losing a transaction.
    ///
    /// # Errors
    /// When transactions were left out, because this consumer was too slow.
    pub async fn next(&mut self) -> Option<Result<Arc<CommittedTransaction>, LagError>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for Transactions {
    type Item = Result<Arc<CommittedTransaction>, LagError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = locked(&self.queue);
        if queue.left_out > 0 {
            let transactions = std::mem::take(&mut queue.left_out);
            return Poll::Ready(Some(Err(LagError { transactions })));
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
            hub.remove_listener(self.id);
        }
    }
}

impl fmt::Debug for ListenerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ListenerHandle").field(&self.id).finish()
    }
}

/// Locks a mutex, even after a panic. The guarded data is consistent after each statement, so a
/// panic leaves nothing broken.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
