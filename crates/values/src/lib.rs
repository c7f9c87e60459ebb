#![doc = include_str!("../README.md")]
//!
//! # Projections
//!
//! A projection is the value that people and other languages read in Struct rows, in filters and in
//! JSON.
//!
//! The value depends on the type:
//!
//! * `bool`, `int2`, `int4`, `float4`, `float8`: native. A `float4` becomes the double with exactly
//!   the same value. `NaN`, `Infinity` and `-Infinity` are strings.
//! * `int8`: native up to ±2^53. Larger numbers are strings of their digits.
//! * `numeric`: a string, with the display scale.
//! * `date`, `time`, `timetz`, `timestamp`, `timestamptz`: ISO 8601, with `timestamptz` in UTC
//!   (`+00:00`). Years before 1 end in ` BC`. Infinite values are `infinity` and `-infinity`.
//! * `interval`: an ISO 8601 duration, each part with its own sign: `P1Y2M-3DT4H5M6.7S`.
//! * `json`, `jsonb`: nested values. A number that no double prints exactly is the string of its
//!   digits. A value nested deeper than 30 levels is the string of its text.
//! * `bytea`: base64.
//! * array: nested lists. PostgreSQL's text form is used where subscripts do not begin at 1
//!   (`[5:5]={1}`). It is also used for several dimensions if the elements may be lists themselves.
//! * composite: an object.
//! * enum, `citext`, `ltree`: a string.
//! * domain: the same as the base type.
//! * `oid`, `xid`, `cid`, `xid8`, `regclass` and the other `reg` types: the number as a string,
//!   because names would require the catalog.
//! * `money`: the amount without currency and separators, with the number of decimals that the
//!   server's `lc_monetary` has.
//! * range, multirange, every other built-in type: PostgreSQL's text form, with times in UTC and
//!   intervals as above.
//! * a type that laredo does not know: the binary form in hex, `\x0a1b`.
//! * a column whose cells are text: that text.
//! * a cell whose bytes are invalid for its type: those bytes in hex, `\x0a1b`. Text and JSON are
//!   excepted ([`show_row`]).
//!
//! Every projection can be converted back if the column's type is known
//! ([`unproject_cell`]). The exception is a JSON document that is not part of the key. The
//! projection loses its spelling: white space, `1.10`, a duplicate name. It also does not say if a
//! string was originally a number or a deep value without a native form.
//!
//! # Keys
//!
//! Keys of different bytes are different values, in every row of a table. So the projection of a
//! key column keeps the complete information of three types:
//!
//! * `jsonb` is nested only if that restores the same bytes, and is the string of its text
//!   otherwise. A JSON string that is itself the text of a document is shown with its quotes, as in
//!   its text: `"5"`.
//! * `json` is always the string of its text.
//! * `tsquery` always has brackets. PostgreSQL's text form omits those that show that `a & (b & c)`
//!   nests to the right.
//!
//! # Families
//!
//! Each base type belongs to a family (`types`), one module that decodes and encodes its cells.
//! Types that contain other types are in `nested`.

mod archived_checksums;
mod column_text;
mod decimal;
mod decode;
mod digits;
mod encode;
mod equality;
mod filter;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod fuzz_tests;
mod json_rows;
mod lenient;
mod lookup;
mod nested;
mod problem;
mod shape;
mod text_form;
mod types;
mod value;
mod wire;

pub use archived_checksums::ArchivedChecksums;
pub use column_text::{ColumnText, UnprintableType};
pub use decode::{ProjectError, project_cell, project_row};
pub use encode::{UnprojectError, unproject_cell, unproject_row};
pub use filter::{Filter, FilterError, FilterKey, FilterProblem, MatchCondition, Pattern, Predicate, VisibleEffect};
pub use json_rows::JsonRows;
pub use lenient::{HexCells, show_row};
pub use lookup::{LookupColumnError, LookupColumns, LookupValueError};
pub use nested::NestedForm;
pub use problem::{CellProblem, ValueMismatch};
pub use text_form::hex;
pub use value::Value;
