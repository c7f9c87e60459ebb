//! The rows of a table for queries: every row once more, by its key and by secondary indexes.
//!
//! A task follows the table's journal as any reader does, and publishes the rows at the end of a
//! transaction. The maps are persistent: a published state never changes, and shares most of its
//! nodes with the next one. So requests never wait for the task, see no half of a transaction, and
//! may keep a state for as long as a listing takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use laredo_core::Lsn;
use laredo_engine::journal::Journal;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::options::QueryOptions;

mod follower;
mod listings;
mod rows;
#[cfg(test)]
mod tests;

pub(crate) use follower::follow_table;
pub(crate) use listings::{ListingId, ListingOwner};
pub(crate) use rows::{KeyedRows, LookupProblem, QueryIndex, QueryRows};

use listings::{PinnedListing, RowListings};

/// The rows of a table at the end of a transaction. They never change.
#[derive(Clone, Debug)]
pub(crate) struct QueryState {
    pub(crate) rows: QueryRows,
    /// The position of the rows: every commit up to here is in them, and no later one.
    pub(crate) position: Lsn,
    /// The journal that the rows follow; `None` for rows without one.
    pub(crate) journal: Option<Journal>,
}

impl QueryState {
    /// Returns true if every commit up to a position of the database's present history is in the
    /// rows. Rows of an abandoned history have only position zero.
    pub(crate) fn has_reached(&self, position: Lsn) -> bool {
        let is_parted = || self.journal.as_ref().is_some_and(Journal::is_parted);
        position == Lsn::ZERO || (self.position >= position && !is_parted())
    }
}

/// A table that answers queries.
#[derive(Debug)]
pub(crate) struct QueryTable {
    options: QueryOptions,
    /// The newest rows; empty until they are complete for the first time.
    state: ArcSwapOption<QueryState>,
    /// The position of the newest rows, which is sent after they are there.
    position: watch::Sender<Option<Lsn>>,
    listings: Mutex<RowListings>,
    requests: [AtomicU64; QueryMethod::ALL.len()],
    fills: AtomicU64,
}

/// A method of the Query service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryMethod {
    Lookup,
    LookupAll,
    GetRow,
    ListRows,
    CountRows,
    Subscribe,
}

impl QueryMethod {
    const ALL: [QueryMethod; 6] = [
        QueryMethod::Lookup,
        QueryMethod::LookupAll,
        QueryMethod::GetRow,
        QueryMethod::ListRows,
        QueryMethod::CountRows,
        QueryMethod::Subscribe,
    ];

    /// Returns the method's name in metrics.
    fn name(self) -> &'static str {
        match self {
            QueryMethod::Lookup => "lookup",
            QueryMethod::LookupAll => "lookup_all",
            QueryMethod::GetRow => "get_row",
            QueryMethod::ListRows => "list_rows",
            QueryMethod::CountRows => "count_rows",
            QueryMethod::Subscribe => "subscribe",
        }
    }
}

impl QueryTable {
    pub(crate) fn new(options: QueryOptions) -> QueryTable {
        QueryTable {
            options,
            state: ArcSwapOption::empty(),
            position: watch::Sender::new(None),
            listings: Mutex::default(),
            requests: Default::default(),
            fills: AtomicU64::new(0),
        }
    }

    /// Returns the newest rows, or `None` before they are complete for the first time.
    pub(crate) fn newest(&self) -> Option<Arc<QueryState>> {
        self.state.load_full()
    }

    /// Waits until the rows have a position. Returns the newest rows after the time, and `None` if
    /// there are none.
    ///
    /// # Errors
    /// The rows that there are, if the time has passed.
    pub(crate) async fn reach(
        &self,
        position: Lsn,
        within: Duration,
    ) -> Result<Arc<QueryState>, Option<Arc<QueryState>>> {
        let mut reached = self.position.subscribe();
        let deadline = Instant::now() + within;
        loop {
            // A fork of the database's history may have moved the position back.
            if let Some(state) = self.newest().filter(|state| state.has_reached(position)) {
                return Ok(state);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !matches!(timeout(left, reached.changed()).await, Ok(Ok(()))) {
                return Err(self.newest());
            }
        }
    }

    /// Shows newer rows.
    fn publish(&self, state: QueryState) {
        let position = state.position;
        self.state.store(Some(Arc::new(state)));
        self.position.send_replace(Some(position));
    }

    /// Keeps a state for the next pages of a listing.
    pub(crate) fn begin_listing(&self, owner: ListingOwner, state: Arc<QueryState>, total: u64) -> ListingId {
        let now = Instant::now();
        self.listings.lock().begin(PinnedListing { owner, state, total, began_at: now, used_at: now })
    }

    /// Returns the state and the number of rows of a listing that its owner began.
    pub(crate) fn find_listing(&self, id: ListingId, owner: &ListingOwner) -> Option<(Arc<QueryState>, u64)> {
        self.listings.lock().find(id, owner, Instant::now())
    }

    /// Ends listings that were not continued in time.
    pub(crate) fn sweep(&self, now: Instant) {
        self.listings.lock().sweep(now);
    }

    /// Returns the number of states that are kept for listings.
    pub(crate) fn listings(&self) -> usize {
        self.listings.lock().len()
    }

    pub(crate) fn count_request(&self, method: QueryMethod) {
        self.requests[method as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of requests of each method.
    pub(crate) fn requests(&self) -> Vec<(&'static str, u64)> {
        let counters = QueryMethod::ALL.into_iter().zip(&self.requests);
        counters.map(|(method, counter)| (method.name(), counter.load(Ordering::Relaxed))).collect()
    }

    /// Returns the number of times that all rows were read from a base.
    pub(crate) fn fills(&self) -> u64 {
        self.fills.load(Ordering::Relaxed)
    }
}
