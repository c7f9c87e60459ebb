#![doc = include_str!("../README.md")]
//!
//! # Subscriptions
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
mod cell;
mod changes;
mod comparison;
mod connect;
mod counting_channel;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod fuzz_tests;
mod health;
mod key;
mod layout;
mod local_snapshot;
mod local_snapshot_saver;
mod message_delay;
#[cfg(feature = "metrics")]
mod metric_reporter;
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

pub use assembler::{ProtocolError, StreamMode};
pub use cell::FromCell;
pub use changes::{CommittedTransaction, LagError, ListenerHandle, RowChange, Transactions};
pub use connect::StartError;
#[cfg(feature = "postgres-types")]
pub use key::Sql;
pub use key::{KeyError, KeyValue, KeyValues};
pub use laredo_core::{
    Cell, Change, Checksum, Column, CommitMark, CommitTime, DefinitionVersion, Lsn, Schema, ScopedMark, SourceIdentity,
    StateError, TableName, TableState, TimelineSwitch, Transaction, Xid,
};
#[cfg(feature = "postgres-types")]
pub use postgres_types;
pub use predicate::{ColumnPredicate, PredicateValue};
pub use replica::{Replica, ReplicaBuilder, Unique};
pub use row::{CellError, ColumnIndex, Row, RowRef};
pub use status::{GrpcCode, NotReady, ReplicaError, ReplicaStatus, StatusReceiver};
pub use subscription::{ResumePoint, Subscription, SubscriptionBuilder, SubscriptionEvent};
pub use view::{IndexRows, View};
