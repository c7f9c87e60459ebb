//! Events that wait for the consumer, and looks at the catalogue that they wait for.

use std::collections::VecDeque;

use laredo_core::Xid;
use laredo_engine::source::SourceEvent;

/// Something that comes before all that follows it.
#[derive(Debug)]
pub(super) enum Pending {
    /// Goes to the consumer.
    Event(SourceEvent),
    /// The definitions have to be looked at once this transaction is visible: it has changed one.
    Look(Xid),
}

/// Puts what a message has completed behind what waits. A transaction that has changed a definition, and all that follows, waits for a
/// look: until then the table's rows may be others than those that are known.
pub(super) fn enqueue(queue: &mut VecDeque<Pending>, fresh: &mut VecDeque<SourceEvent>, ddl: Option<Xid>) {
    let commit = match ddl {
        Some(_) => fresh.pop_back_if(|event| matches!(event, SourceEvent::Commit(_))),
        None => None,
    };
    queue.extend(fresh.drain(..).map(Pending::Event));
    queue.extend(ddl.map(Pending::Look));
    queue.extend(commit.map(Pending::Event));
}
