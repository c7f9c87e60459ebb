//! The queue of events for the consumer, with the catalog checks that they wait for.

use std::collections::VecDeque;

use laredo_core::Xid;
use laredo_engine::source::SourceEvent;

/// An item that has to be handled before those behind it.
#[derive(Debug)]
pub(super) enum StreamQueueItem {
    /// An event for the consumer.
    Event(SourceEvent),
    /// A check of the definitions, once this transaction is visible. It has changed a definition.
    Check(Xid),
}

/// Appends the events that a message has completed. A transaction that has changed a definition,
/// and everything after it, waits for a check. Until then the table's rows may not match the known
/// definition.
pub(super) fn enqueue(queue: &mut VecDeque<StreamQueueItem>, fresh: &mut VecDeque<SourceEvent>, ddl: Option<Xid>) {
    let commit = match ddl {
        Some(_) => fresh.pop_back_if(|event| matches!(event, SourceEvent::Commit(_))),
        None => None,
    };
    queue.extend(fresh.drain(..).map(StreamQueueItem::Event));
    queue.extend(ddl.map(StreamQueueItem::Check));
    queue.extend(commit.map(StreamQueueItem::Event));
}
