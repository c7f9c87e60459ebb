//! A live copy of a PostgreSQL table in your own process: typed rows, indexes, and whole transactions only.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use futures::StreamExt;
//! use laredo_client::{Predicate, Replica, Row, TableName, Unique};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let replica = Replica::builder("http://laredo-server:4002", TableName::new("public", "config_document"))
//!     .client_id("myapp-instance-abc123")
//!     .local_snapshot_path("/var/lib/myapp/laredo-cache")
//!     .lookup(["instance_id", "key"])
//!     .index("by_instance", ["instance_id"], Unique::No)
//!     .filter(Predicate::prefix("key", "rulesets/"))
//!     .start()?;
//! replica.ready(Duration::from_secs(30)).await?;
//!
//! // One row, by the look-up fields or by primary key. It stays as it was; the table moves on.
//! let row: Option<Row> = replica.lookup(("inst_abc", "rulesets/default"));
//! let row = row.or_else(|| replica.get(42));
//! if let Some(row) = row {
//!     let id: i64 = row.get("id")?;
//!     let note: Option<&str> = row.get("note")?;
//!     println!("{id}: {note:?}");
//! }
//!
//! // One state: rows and indexes of one commit, however many look-ups it takes.
//! let view = replica.view();
//! let documents = view.index("by_instance", "inst_abc").count();
//! println!("{documents} of {} rows, as of {}, {:?} old", view.len(), view.position(), view.age());
//! drop(view);
//!
//! // Every change, with the old row and the new one …
//! let listener = replica.listen(|old: Option<&Row>, new: Option<&Row>| println!("{old:?} -> {new:?}"));
//! drop(listener);
//!
//! // … or every transaction. A consumer that is too slow is told so.
//! let mut transactions = replica.transactions();
//! while let Some(transaction) = transactions.next().await {
//!     match transaction {
//!         Ok(transaction) => println!("{}: {} changes", transaction.position, transaction.changes.len()),
//!         Err(lagged) => println!("{lagged}"),
//!     }
//! }
//!
//! // Saves the local snapshot, from which the next start goes on.
//! replica.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! The replica connects anew by itself and goes on from the last commit it has, on whichever server answers. Until then, and while
//! it takes a full snapshot, it serves what it had; the new state takes its place in one step.
//!
//! A [`Subscription`] is what a replica stands on, for those who keep the state themselves and need no more memory than for one copy
//! of the table: the same stream, in whole transactions.
//!
//! ```no_run
//! use laredo_client::{Subscription, SubscriptionEvent, TableName};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let table = TableName::new("public", "config_document");
//! let mut subscription = Subscription::builder("http://laredo-server:4002", table).client_id("archive").start()?;
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
//!         SubscriptionEvent::Resumed { position, .. } => println!("goes on from {position}"),
//!         SubscriptionEvent::Current { position, at, checksum } => {
//!             println!("{:?} ago {position} was all there was", at.elapsed());
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

mod activity;
mod applier;
mod assembler;
mod changes;
mod comparison;
mod connect;
#[cfg(test)]
mod fixtures;
mod health;
mod holders;
mod incoming;
mod intake;
mod keeper;
mod key;
mod layout;
mod local_snapshot;
mod predicate;
mod publish;
mod replica;
mod row;
mod session;
mod status;
mod subscription;
mod transit;
mod view;

pub use assembler::ProtocolError;
pub use changes::{CommittedTransaction, Lagged, ListenerHandle, RowChange, Transactions};
pub use connect::StartError;
pub use key::{KeyError, KeyValue, KeyValues, Sql};
pub use laredo_core::{
    Cell, Change, Checksum, Column, CommitTime, Lsn, Schema, StateError, TableName, TableState, Transaction,
};
pub use laredo_proto::replication::{SourceIdentity, SyncMode, TimelineSwitch};
pub use postgres_types;
pub use predicate::{Predicate, PredicateValue};
pub use replica::{Replica, ReplicaBuilder, Unique};
pub use row::{CellError, ColumnIndex, Row, RowRef};
pub use status::{NotReady, ReplicaError, Status};
pub use subscription::{ResumePoint, Subscription, SubscriptionBuilder, SubscriptionEvent};
pub use view::{IndexRows, View};
