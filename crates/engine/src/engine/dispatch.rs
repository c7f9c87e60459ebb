//! The dispatch of the events of a stream to the tables.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use laredo_core::{CommitTime, Lsn, TableName};
use parking_lot::Mutex;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::history::SourceHistory;
use crate::source::{SourceCommit, SourceEvent, SourceServer, TableIndex};
use crate::spool::Spool;
use crate::table::{OwedCopy, QueuedTableEvent, Redefinition, StreamProgress, TableCommit, TableEvent};

/// The number of bytes that may wait for one table. Beyond it, the other tables wait for this one.
const QUEUE_BYTES: u32 = 16 * 1024 * 1024;
/// The number of bytes that an event counts, in addition to its changes.
const EVENT_BYTES: u32 = 512;
/// The number of bytes that a transaction in its own file counts. A few dozen may wait, because
/// open files are scarce, too.
const FILE_BYTES: u32 = 256 * 1024;
/// The number of events after which all tables receive the progress of the stream. They also
/// receive it whenever no other event waits.
const PROGRESS_EVENTS: u32 = 256;

/// The sending side of one table: a queue of the events that the table must not miss, and the
/// latest progress of the stream. The progress never waits for the queue.
pub(super) struct TableEventSender {
    name: TableName,
    queue: mpsc::UnboundedSender<QueuedTableEvent>,
    /// The number of bytes that may still enter the queue. Each event holds its own bytes until the
    /// table takes it.
    room: Arc<Semaphore>,
    /// The number of events put into the queue.
    sent: u64,
    progress: watch::Sender<StreamProgress>,
}

/// Creates the sending side of one table, and the receiving end of its queue.
pub(super) fn table_event_channel(name: TableName) -> (TableEventSender, mpsc::UnboundedReceiver<QueuedTableEvent>) {
    let (queue, events) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
    (TableEventSender { name, queue, room, sent: 0, progress: watch::Sender::default() }, events)
}

impl TableEventSender {
    /// Returns a receiver of the stream's progress.
    pub(super) fn progress(&self) -> watch::Receiver<StreamProgress> {
        self.progress.subscribe()
    }

    async fn send(&mut self, event: TableEvent, bytes: u32) {
        let room = match self.room.clone().try_acquire_many_owned(bytes) {
            Ok(room) => room,
            Err(_) => {
                let (table, queued_bytes) = (&self.name, QUEUE_BYTES as usize - self.room.available_permits());
                tracing::warn!(
                    event = "table_slow", %table, queued_bytes,
                    "the table is slower than its source: its neighbors wait for it"
                );
                let room = self.room.clone().acquire_many_owned(bytes).await;
                tracing::info!(
                    event = "table_caught_up", %table,
                    "the table has caught up some way: its neighbors continue"
                );
                room.expect("the semaphore is never closed")
            }
        };
        self.sent += 1;
        // A table whose task has ended has reported the reason in its status. The other tables
        // continue.
        let _ = self.queue.send(QueuedTableEvent { event, _room: room });
    }
}

/// A change of the tables that receive events. A table is added before its source sends an event of
/// it.
pub(super) enum OutletChange<'a> {
    /// A new table. It begins at the present state of the stream.
    Add(TableIndex, Box<dyn FnOnce(&StreamState) -> TableEventSender + Send + 'a>),
    /// A table that receives no more events.
    Remove(TableIndex),
}

/// The state of a stream that every table has to know.
#[derive(Clone, Debug)]
pub(super) struct StreamState {
    /// The server, with the present identity of the database.
    pub(super) server: SourceServer,
    /// The number of forks of the database's history so far.
    pub(super) forks: u64,
    /// The start of the server of the last connection, once there was one.
    connected: Option<String>,
}

impl StreamState {
    /// Notes a fork of the history, after which the stream comes from this server.
    fn fork(&mut self, server: &SourceServer) {
        self.forks += 1;
        (self.connected, self.server) = (Some(server.started.clone()), server.clone());
    }

    /// Returns true if the stream has come from another server than this one, or from a later
    /// timeline.
    pub(super) fn has_left(&self, server: &SourceServer) -> bool {
        let is_other_run = self.connected.as_ref().is_some_and(|started| *started != server.started);
        is_other_run || self.server.identity.timeline > server.identity.timeline
    }
}

/// The tables of a run and the queues to them, by the tables' index. `None` for removed tables.
pub(super) struct TableOutlets<'a> {
    outlets: Vec<Option<TableEventSender>>,
    changes: mpsc::UnboundedReceiver<OutletChange<'a>>,
    state: StreamState,
}

impl<'a> TableOutlets<'a> {
    pub(super) fn new(
        outlets: Vec<TableEventSender>,
        server: SourceServer,
        changes: mpsc::UnboundedReceiver<OutletChange<'a>>,
    ) -> TableOutlets<'a> {
        let state = StreamState { server, forks: 0, connected: None };
        TableOutlets { outlets: outlets.into_iter().map(Some).collect(), changes, state }
    }
}

/// Sends each event to the tables that it concerns, and the progress of the stream to all tables.
/// Updates `dispatched`, the position up to which everything is in the tables' queues.
///
/// Must be polled by the task that sends the events, after it has sent them.
pub(super) async fn dispatch_events(
    mut events: mpsc::Receiver<SourceEvent>,
    mut paused: watch::Receiver<bool>,
    tables: TableOutlets<'_>,
    history: &SourceHistory,
    dispatched: &Mutex<Lsn>,
) {
    let TableOutlets { outlets, mut changes, state } = tables;
    let mut dealer =
        EventDispatcher { tables: outlets, history, reached: Lsn::ZERO, current_at: None, untold: 0, state };
    loop {
        let event = tokio::select! {
            biased;
            Some(change) = changes.recv() => {
                dealer.change_tables(change).await;
                continue;
            }
            event = next_event(&mut events) => event,
        };
        let Some(event) = event else { return };
        // The next events wait in their queue. When it is full, nothing more is read from the
        // stream.
        let _ = paused.wait_for(|paused| !paused).await;
        dealer.dispatch_event(event).await;
        dealer.untold += 1;
        if events.is_empty() || dealer.untold >= PROGRESS_EVENTS {
            dealer.send_progress();
            *dispatched.lock() = dealer.reached;
        }
    }
}

/// Returns the next event, without registering a waker. The sender is this task, which polls again
/// after it has sent. If it woke itself, the runtime would wake a second thread to share the work,
/// in the middle of each transaction.
async fn next_event(events: &mut mpsc::Receiver<SourceEvent>) -> Option<SourceEvent> {
    poll_fn(|_| match events.try_recv() {
        Ok(event) => Poll::Ready(Some(event)),
        Err(TryRecvError::Disconnected) => Poll::Ready(None),
        Err(TryRecvError::Empty) => Poll::Pending,
    })
    .await
}

struct EventDispatcher<'a> {
    tables: Vec<Option<TableEventSender>>,
    history: &'a SourceHistory,
    /// The position up to which everything is in the tables' queues.
    reached: Lsn,
    current_at: Option<CommitTime>,
    /// The number of events since all tables received the progress of the stream.
    untold: u32,
    state: StreamState,
}

impl EventDispatcher<'_> {
    async fn change_tables(&mut self, change: OutletChange<'_>) {
        match change {
            OutletChange::Add(TableIndex(index), begin) => {
                self.state.server.written = self.state.server.written.max(self.reached);
                let outlet = begin(&self.state);
                if self.tables.len() <= index {
                    self.tables.resize_with(index + 1, || None);
                }
                self.tables[index] = Some(outlet);
                if let Some(server_started) = self.state.connected.clone() {
                    self.send_to_table(index, TableEvent::Connected(server_started), EVENT_BYTES).await;
                }
                self.send_progress();
            }
            OutletChange::Remove(TableIndex(index)) => {
                if let Some(outlet) = self.tables.get_mut(index) {
                    *outlet = None;
                }
            }
        }
    }

    async fn dispatch_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Connected { server_started } => {
                self.state.connected = Some(server_started.clone());
                self.send_to_all(|| TableEvent::Connected(server_started.clone())).await;
            }
            SourceEvent::Commit(commit) => {
                let mark = commit.mark();
                let SourceCommit { xid, end, committed_at, tables } = commit;
                for (index, spool) in tables {
                    let bytes = queued_bytes(&spool);
                    let event = TableEvent::Commit(TableCommit { xid, end, committed_at, spool });
                    self.send_to_table(index.0, event, bytes).await;
                }
                self.history.note_commit(mark);
                self.reached = self.reached.max(end);
                self.current_at = self.current_at.max(Some(committed_at));
            }
            SourceEvent::Progress(position) => {
                self.history.advance_to(position);
                self.reached = self.reached.max(position);
            }
            SourceEvent::Current { position, at } => {
                self.history.advance_to(position);
                self.reached = self.reached.max(position);
                self.current_at = self.current_at.max(Some(at));
            }
            SourceEvent::Moved { table, reason, definition } => {
                self.send_to_table(table.0, TableEvent::Moved(OwedCopy { reason, definition }), EVENT_BYTES).await;
            }
            SourceEvent::Broken { table, error } => {
                self.send_to_table(table.0, TableEvent::Broken(error), EVENT_BYTES).await
            }
            SourceEvent::Redefined { table, definition, from, values } => {
                let redefinition = Redefinition { from, definition, values };
                self.send_to_table(table.0, TableEvent::Redefined(redefinition), EVENT_BYTES).await;
            }
            SourceEvent::Restarted { reason, fork } => {
                self.history.forget_commits();
                self.send_to_all(|| TableEvent::Restarted(reason.clone(), fork.clone())).await;
            }
            SourceEvent::Forked { server, fork, reason, noted } => {
                tracing::error!(
                    event = "history_forked", %reason, common = %fork.common,
                    "the database's history has forked: every table is copied again"
                );
                self.history.forget_commits();
                self.history.forget_written().await;
                self.history.set_identity(server.identity.clone());
                // Positions may be lower from here on. A table must not mistake an old position for
                // progress after the fork.
                (self.reached, self.current_at) = (Lsn::ZERO, None);
                self.state.fork(&server);
                self.send_progress();
                let server = Box::new(server);
                self.send_to_all(|| TableEvent::Forked(server.clone(), fork.clone(), reason.clone(), noted.clone()))
                    .await;
            }
            SourceEvent::Promoted { server } => {
                tracing::warn!(
                    event = "timeline_changed",
                    timeline = server.identity.timeline,
                    "the database writes another timeline, which has all that was sent"
                );
                self.history.set_identity(server.identity.clone());
                self.state.server = server.clone();
                let server = Box::new(server);
                self.send_to_all(|| TableEvent::Promoted(server.clone())).await;
            }
        }
    }

    async fn send_to_all(&mut self, event: impl Fn() -> TableEvent) {
        for index in 0..self.tables.len() {
            self.send_to_table(index, event(), EVENT_BYTES).await;
        }
    }

    async fn send_to_table(&mut self, index: usize, event: TableEvent, bytes: u32) {
        let room = |table: &TableEventSender| table.room.available_permits();
        // An event of a table that was removed has no receiver.
        let Some(room) = self.tables.get(index).and_then(Option::as_ref).map(room) else { return };
        if room < bytes as usize {
            // The other tables receive the known progress now, and need not wait for this table.
            self.send_progress();
        }
        if let Some(Some(table)) = self.tables.get_mut(index) {
            table.send(event, bytes).await;
        }
    }

    fn send_progress(&mut self) {
        self.untold = 0;
        let (mark, forks) = (self.history.newest(), self.state.forks);
        for table in self.tables.iter().flatten() {
            let (position, current_at, after) = (self.reached, self.current_at, table.sent);
            table.progress.send_replace(StreamProgress { position, current_at, mark, after, forks });
        }
    }
}

/// Returns the number of bytes that a transaction counts while it waits: its memory, or a fixed
/// number for its file. A transaction that is larger than the queue counts as the whole queue.
fn queued_bytes(spool: &Spool) -> u32 {
    let changes = match spool.memory_bytes() {
        0 => FILE_BYTES,
        bytes => u32::try_from(bytes).unwrap_or(u32::MAX),
    };
    changes.saturating_add(EVENT_BYTES).min(QUEUE_BYTES)
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::Arc;

    use laredo_core::{Cell, SourceIdentity, TupleBuf, Xid};

    use super::*;
    use crate::source::{SourceClock, TableIndex};
    use crate::spool::{RawChange, SpoolOptions, SpoolWriter};

    fn commit(end: u64, table: usize, bytes: usize) -> SourceEvent {
        let options = SpoolOptions { memory_bytes_max: usize::MAX, folder: std::env::temp_dir() };
        let mut spool = SpoolWriter::new(Arc::new(options));
        let row: TupleBuf = [Cell::Value(&vec![b'x'; bytes])].into_iter().collect();
        spool.push(0, RawChange::Insert { new: row.as_ref() }).unwrap();
        let tables = vec![(TableIndex(table), spool.finish().unwrap())];
        SourceEvent::Commit(SourceCommit { xid: Xid(end), end: Lsn(end), committed_at: CommitTime(0), tables })
    }

    /// Dispatches events until one has to wait. Returns the number of events that were dispatched.
    async fn dispatch_until_blocked(
        dealer: &mut EventDispatcher<'_>,
        events: impl IntoIterator<Item = SourceEvent>,
    ) -> usize {
        let mut dispatched = 0;
        for event in events {
            tokio::select! {
                biased;
                () = dealer.dispatch_event(event) => dispatched += 1,
                () = ready(()) => break,
            }
        }
        dispatched
    }

    #[tokio::test]
    async fn a_table_that_takes_nothing_holds_up_its_neighbors_at_a_bound_of_bytes_and_not_before() {
        let (mut tables, mut queues) = (Vec::new(), Vec::new());
        for name in ["public.slow", "public.neighbor"] {
            let (outlet, queue) = table_event_channel(name.parse().unwrap());
            tables.push(Some(outlet));
            queues.push(queue);
        }
        let unasked = || Box::pin(std::future::pending()) as std::pin::Pin<Box<_>>;
        let history = SourceHistory::new(SourceIdentity::default(), &[], Arc::new(unasked), SourceClock::default());
        let (reached, current_at) = (Lsn::ZERO, None);
        let state = StreamState { server: SourceServer::default(), forks: 0, connected: None };
        let mut dealer = EventDispatcher { tables, history: &history, reached, current_at, untold: 0, state };
        // Far more small events than would fit into any queue that counts events.
        let small = (1..=10_000).map(|end| commit(end, 0, 10));
        assert_eq!(dispatch_until_blocked(&mut dealer, small).await, 10_000);
        assert_eq!(dispatch_until_blocked(&mut dealer, [commit(10_001, 1, 10)]).await, 1);
        assert!(queues[1].try_recv().is_ok(), "the neighbor goes on");
        let large = (0..1000).map(|end| commit(20_000 + end, 0, 100 * 1024));
        let dispatched = dispatch_until_blocked(&mut dealer, large).await;
        assert!((50..164).contains(&dispatched), "{dispatched} of 100 KiB wait beside the small ones");
        // A transaction larger than the whole queue waits only for an empty queue.
        while queues[0].try_recv().is_ok() {}
        assert_eq!(dispatch_until_blocked(&mut dealer, [commit(30_000, 0, 2 * QUEUE_BYTES as usize)]).await, 1);
    }
}
