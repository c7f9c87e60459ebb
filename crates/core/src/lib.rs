//! The types that all parts of laredo share: positions, rows as bytes, changes, transactions and
//! the table state. Server, client, archive and test oracle all use the same table state.
//!
//! Nothing here performs I/O, waits, or reads a clock.

mod archived_checksums;
#[cfg(debug_assertions)]
mod canary;
mod change;
mod checksum;
mod decimal;
mod definition;
mod filter;
mod key;
mod name;
mod position;
mod project;
mod retry;
mod schema;
mod state;
mod tuple;
mod unproject;

pub use archived_checksums::ArchivedChecksums;
#[cfg(debug_assertions)]
pub use canary::CanaryFault;
pub use change::{Change, RowEffect, Transaction};
pub use checksum::{CHECKSUM_BUCKETS, Checksum, ChecksumBuckets, ChecksumError};
pub use definition::{DefinitionVersion, DefinitionVersionError};
pub use filter::{Filter, FilterError, FilterKey, FilterProblem, MatchCondition, Pattern, Predicate, VisibleEffect};
pub use key::{Key, KeyColumns};
pub use name::{TableName, TableNameError};
pub use position::{CommitMark, CommitTime, Lsn, LsnError, Sequence, Xid};
pub use project::{
    CellProblem, HexCells, JsonRows, NestedForm, ProjectError, Value, project_cell, project_row, show_row,
};
pub use retry::{RetryDelays, grown_delay};
pub use schema::{Column, Oid, RowCast, Schema, TypeDef, TypeKind};
pub use state::{Index, IndexSpec, StateError, TableState};
pub use tuple::{Cell, Tuple, TupleBuf, TupleError, TupleRef};
pub use unproject::{UnprojectError, ValueMismatch, unproject_cell, unproject_row};
