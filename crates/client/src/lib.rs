//! A live copy of a PostgreSQL table in the memory of your process. Rows are typed, lookups use
//! indexes, and readers see only whole transactions.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use futures_util::StreamExt;
//! use laredo_client::{ColumnPredicate, Replica, Row, TableName, Unique};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let table = TableName::new("public", "config_document");
//! let replica = Replica::builder("http://laredo-server:4002", table)
//!     .client_id("myapp-instance-abc123")
//!     .local_snapshot_path("/var/lib/myapp/laredo-cache")
//!     .lookup(["instance_id", "key"])
//!     .index("by_instance", ["instance_id"], Unique::No)
//!     .filter(ColumnPredicate::prefix("key", "rulesets/"))
//!     .start()?;
//! replica.ready(Duration::from_secs(30)).await?;
//!
//! // One row, by the lookup columns or by primary key. It stays unchanged when the table changes.
//! let row: Option<Row> = replica.lookup(("inst_abc", "rulesets/default"));
//! let row = row.or_else(|| replica.get(42));
//! if let Some(row) = row {
//!     let id: i64 = row.get("id")?;
//!     let note: Option<&str> = row.get("note")?;
//!     println!("{id}: {note:?}");
//! }
//!
//! // A view shows the rows and indexes of one commit, however many lookups you make in it.
//! let view = replica.view();
//! let documents = view.index("by_instance", "inst_abc").count();
//! let (rows, position, age) = (view.len(), view.position(), view.age());
//! println!("{documents} of {rows} rows, as of {position}, {age:?} old");
//! drop(view);
//!
//! // A listener receives every change, with the old row and the new row.
//! let listener = replica.listen(|old: Option<&Row>, new: Option<&Row>| {
//!     println!("{old:?} -> {new:?}");
//! });
//! drop(listener);
//!
//! // A stream has every transaction. A consumer that is too slow receives an error.
//! let mut transactions = replica.transactions();
//! while let Some(transaction) = transactions.next().await {
//!     match transaction {
//!         Ok(t) => println!("{}: {} changes", t.position, t.changes.len()),
//!         Err(lagged) => println!("{lagged}"),
//!     }
//! }
//!
//! // Saves the local snapshot, from which the next start resumes.
//! replica.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! The replica reconnects by itself and resumes from the last commit that it has, on whichever
//! server answers. While it is disconnected or loads a full snapshot, it continues to serve its old
//! rows. The new rows then replace them in one step.
//!
//! A [`Subscription`] is the stream that a replica is built on, without the table in memory. Use it
//! to keep the rows in a form of your own. Its events are whole transactions.
//!
//! ```no_run
//! use laredo_client::{Subscription, SubscriptionEvent, TableName};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let table = TableName::new("public", "config_document");
//! let mut subscription =
//!     Subscription::builder("http://laredo-server:4002", table).client_id("archive").start()?;
//! let mut state = None;
//! loop {
//!     match subscription.next().await {
//!         SubscriptionEvent::Restart { .. } => state = None,
//!         SubscriptionEvent::State { table, .. } => state = Some(table),
//!         SubscriptionEvent::Transaction(transaction) => {
//!             if let Some(Err(error)) = state.as_mut().map(|table| table.apply(&transaction)) {
//!                 subscription.start_over(error);
//!             }
//!         }
//!         SubscriptionEvent::Resumed { position, .. } => println!("resumed from {position}"),
//!         SubscriptionEvent::Current { position, at, checksum } => {
//!             println!("up to date at {position}, {:?} ago", at.elapsed());
//!             if let (Some(table), Some(theirs)) = (&state, checksum)
//!                 && subscription.compare(position, table.checksum(), theirs)
//!             {
//!                 state = None;
//!             }
//!         }
//!         SubscriptionEvent::Ended { reason } => return Err(reason.into()),
//!     }
//! }
//! # }
//! ```

mod applier;
mod assembler;
mod changes;
mod comparison;
mod connect;
mod counting_channel;
#[cfg(test)]
mod fixtures;
mod health;
mod key;
mod layout;
mod local_snapshot;
mod local_snapshot_saver;
mod message_delay;
mod pending_snapshot;
mod predicate;
mod publish;
mod replica;
mod row;
mod session;
mod status;
mod subscription;
mod sync_receiver;
#[cfg(feature = "tls")]
mod tls;
mod view;
mod view_holders;

pub use assembler::ProtocolError;
pub use changes::{CommittedTransaction, LagError, ListenerHandle, RowChange, Transactions};
pub use connect::StartError;
pub use key::{KeyError, KeyValue, KeyValues, Sql};
pub use laredo_core::{
    Cell, Change, Checksum, Column, CommitTime, Lsn, Schema, StateError, TableName, TableState, Transaction,
};
pub use laredo_proto::replication::{SourceIdentity, SyncMode, TimelineSwitch};
pub use postgres_types;
pub use predicate::{ColumnPredicate, PredicateValue};
pub use replica::{Replica, ReplicaBuilder, Unique};
pub use row::{CellError, ColumnIndex, Row, RowRef};
pub use status::{NotReady, ReplicaError, ReplicaStatus};
pub use subscription::{ResumePoint, Subscription, SubscriptionBuilder, SubscriptionEvent};
pub use view::{IndexRows, View};
