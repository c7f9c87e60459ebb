//! Conversion of PostgreSQL's values: from the cells of rows to the values of JSON and protobuf,
//! and back. Filters, which compare cells with such values, are here too.
//!
//! Nothing here performs I/O, waits, or reads a clock.

mod archived_checksums;
mod decimal;
mod filter;
#[path = "decode.rs"]
mod project;
#[path = "encode.rs"]
mod unproject;

pub use archived_checksums::ArchivedChecksums;
pub use filter::{Filter, FilterError, FilterKey, FilterProblem, MatchCondition, Pattern, Predicate, VisibleEffect};
pub use project::{
    CellProblem, HexCells, JsonRows, NestedForm, ProjectError, Value, project_cell, project_row, show_row,
};
pub use unproject::{UnprojectError, ValueMismatch, unproject_cell, unproject_row};
