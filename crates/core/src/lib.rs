//! The types that all parts of laredo share: positions, rows as bytes, changes, transactions and
//! the table state. Server, client, archive and test oracle all use the same table state.
//!
//! Nothing here performs I/O, waits, or reads a clock.

mod archived;
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
mod schema;
mod state;
mod tuple;
mod unproject;

pub use archived::ArchivedChecksums;
#[cfg(debug_assertions)]
pub use canary::Canary;
pub use change::{Change, Effect, Transaction};
pub use checksum::{CHECKSUM_BUCKETS, Checksum, ChecksumBuckets, ChecksumError};
pub use definition::{DefinitionVersion, DefinitionVersionError};
pub use filter::{Filter, FilterError, FilterKey, FilterProblem, Match, Pattern, Predicate, Seen};
pub use key::{Key, KeyColumns};
pub use name::{TableName, TableNameError};
pub use position::{CommitMark, CommitTime, Lsn, LsnError, Sequence, Xid};
pub use project::{HexCells, JsonRows, NestedForm, Problem, ProjectError, Value, project_cell, project_row, show_row};
pub use schema::{Column, Oid, RowCast, Schema, TypeDef, TypeKind};
pub use state::{Index, IndexSpec, StateError, TableState};
pub use tuple::{Cell, Tuple, TupleBuf, TupleError, TupleRef};
pub use unproject::{Mismatch, UnprojectError, unproject_cell, unproject_row};
