//! The problems of cells and values, and the limits that they name.

use bytes::TryGetError;

/// The maximum nesting depth of projected values. Each level of an object takes three protobuf
/// messages, and protobuf readers customarily accept 100 nested messages.
pub(crate) const NESTING_MAX: usize = 30;
/// The maximum nesting depth of types and values that are converted back. No projection nests more
/// deeply.
pub(crate) const ENCODED_NESTING_MAX: usize = 64;
/// The maximum number of characters of `numeric` text in one cell. Ten bytes can encode a number of
/// 140,000 digits, so the text of an array could exceed any memory.
pub(crate) const NUMERIC_TEXT_MAX: usize = 64 << 20;
/// The maximum size of a value in bytes: PostgreSQL allocates at most this much for one.
pub(crate) const VALUE_BYTES_MAX: usize = 0x3FFF_FFFF;

/// A problem with a cell's bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CellProblem {
    /// The bytes end before the value does.
    #[error("its bytes end too early")]
    Torn,
    /// The value ends before the bytes do.
    #[error("{0} bytes are left over")]
    LeftOver(usize),
    /// Text that is not UTF-8.
    #[error("its text is not UTF-8")]
    NotUtf8,
    /// A part with a value that PostgreSQL never uses.
    #[error("its {0} is invalid")]
    Impossible(&'static str),
    /// A document that is not JSON.
    #[error("it is not JSON: {0}")]
    Json(String),
    /// Types that nest too deeply.
    #[error("its types nest deeper than {NESTING_MAX} levels")]
    TooDeep,
    /// Numbers whose text is too large.
    #[error("its numbers have more than {NUMERIC_TEXT_MAX} digits")]
    TooLarge,
    /// A value that the source did not send.
    #[error("PostgreSQL did not send it")]
    Unsent,
    /// A column that the schema does not have.
    #[error("the table has no such column")]
    NoColumn,
}

impl From<TryGetError> for CellProblem {
    fn from(_: TryGetError) -> CellProblem {
        CellProblem::Torn
    }
}

/// A problem with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueMismatch {
    /// A kind of value that is not used for the type. The text names the kind that is.
    #[error("its values are written as {0}")]
    Kind(&'static str),
    /// A text that does not have the type's form.
    #[error("this is not how {0} is written")]
    Text(&'static str),
    /// A number outside the type's range.
    #[error("this is outside of its range")]
    Range,
    /// An array whose lists differ in length, or nest more deeply than PostgreSQL's six dimensions.
    #[error("its lists differ in length, or nest too deeply")]
    Uneven,
    /// A composite that lacks a field, or has one that its type does not have.
    #[error("its fields are not {0}")]
    Fields(String),
    /// Types or values that nest too deeply.
    #[error("it nests deeper than {ENCODED_NESTING_MAX} levels")]
    TooDeep,
    /// A value that is larger than any of PostgreSQL's.
    #[error("it has more than {VALUE_BYTES_MAX} bytes")]
    TooLarge,
    /// A column that the schema does not have.
    #[error("the table has no such column")]
    NoColumn,
}
