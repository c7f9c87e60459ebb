#![doc = include_str!("../README.md")]

#[cfg(debug_assertions)]
mod canary;
mod change;
mod checksum;
mod definition;
mod duration_histogram;
mod identity;
mod key;
mod name;
mod position;
mod retry;
mod schema;
mod state;
mod tuple;

#[cfg(debug_assertions)]
pub use canary::CanaryFault;
pub use change::{Change, RowEffect, Transaction};
pub use checksum::{CHECKSUM_BUCKETS, Checksum, ChecksumBuckets, ChecksumError};
pub use definition::{DefinitionVersion, DefinitionVersionError};
pub use duration_histogram::DurationHistogram;
pub use identity::{SourceIdentity, TimelineSwitch};
pub use key::{Key, KeyColumns};
pub use name::{TableName, TableNameError};
pub use position::{CommitMark, CommitTime, Lsn, LsnError, ScopedMark, Sequence, Xid};
pub use retry::{RetryDelays, grown_delay};
pub use schema::{Column, Oid, RowCast, Schema, TypeDef, TypeKind};
pub use state::{Index, IndexSpec, StateError, TableState};
pub use tuple::{Cell, Tuple, TupleBuf, TupleError, TupleRef};
