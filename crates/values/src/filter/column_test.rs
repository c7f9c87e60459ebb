//! A predicate bound to one column, with the cheapest comparison that its type allows.

use std::collections::HashSet;

use laredo_core::{Cell, Oid, Schema};

use super::{FilterProblem, MatchCondition, Pattern};
use crate::decode::project_cell;
use crate::encode::read_literal;
use crate::equality::{canonical, check_comparable, is_canonical};
use crate::problem::ValueMismatch;
use crate::shape::TypeShape;
use crate::types::BaseType;
use crate::types::numbers::NumberType;
use crate::types::text::{TextType, caseless};
use crate::value::Value;

/// A cell's bytes, or their canonical form.
type ComparableBytes = Box<[u8]>;

#[derive(Clone, Debug)]
pub(super) enum ColumnTest {
    /// The cell's bytes, for types whose cells are canonical.
    Bytes(HashSet<ComparableBytes>),
    Float {
        any: Vec<f64>,
        with_nan: bool,
    },
    Canonical {
        type_oid: Oid,
        any: HashSet<ComparableBytes>,
    },
    /// A prefix of the cell's bytes.
    Prefix(ComparableBytes),
    /// A prefix of the cell in lower case.
    CaselessPrefix(String),
    AsciiCaselessPrefix(ComparableBytes),
    /// A pattern for a cell that is text.
    TextPattern(Pattern),
    /// Patterns for a cell that is projected as text, which is done once for all of them.
    Patterns(Vec<Pattern>),
}

impl ColumnTest {
    pub(super) fn new(schema: &Schema, column: usize, test: &MatchCondition) -> Result<ColumnTest, FilterProblem> {
        let definition = &schema.columns()[column];
        let shape = match definition.is_text {
            true => TypeShape::Base(BaseType::Text(TextType::Plain)),
            false => TypeShape::of(schema, definition.type_oid).unwrap_or(TypeShape::UNKNOWN),
        };
        match test {
            MatchCondition::Prefix(prefix) => prefix_of(&shape, prefix),
            MatchCondition::Regex(pattern) => pattern_of(&shape, pattern),
            MatchCondition::Equals(value) => any_of(schema, column, &shape, std::slice::from_ref(value)),
            MatchCondition::In(values) => any_of(schema, column, &shape, values),
        }
    }

    /// Returns true if a cell passes.
    pub(super) fn holds(&self, schema: &Schema, column: usize, cell: &[u8]) -> bool {
        match self {
            ColumnTest::Bytes(any) => any.contains(cell),
            ColumnTest::Float { any, with_nan } => {
                float(cell).is_some_and(|value| any.contains(&value) || (*with_nan && value.is_nan()))
            }
            ColumnTest::Canonical { type_oid, any } => {
                canonical(schema, *type_oid, cell).is_ok_and(|form| any.contains(&*form))
            }
            ColumnTest::Prefix(prefix) => cell.starts_with(prefix),
            ColumnTest::CaselessPrefix(prefix) => {
                std::str::from_utf8(cell).is_ok_and(|text| caseless(text).starts_with(prefix))
            }
            ColumnTest::AsciiCaselessPrefix(prefix) => starts_with_ascii_caseless(cell, prefix),
            ColumnTest::TextPattern(pattern) => std::str::from_utf8(cell).is_ok_and(|text| pattern.is_found_in(text)),
            ColumnTest::Patterns(patterns) => match project_cell(schema, column, Cell::Value(cell)) {
                Ok(Value::String(text)) => patterns.iter().all(|pattern| pattern.is_found_in(&text)),
                Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_) | Value::Object(_)) | Err(_) => {
                    false
                }
            },
        }
    }
}

impl ColumnTest {
    /// Narrows this test to the cells that also pass `other`, a test of the same column. Returns
    /// `other` if the two cannot be one test.
    ///
    /// A column therefore has at most one test of each kind, and a row costs the same for any
    /// number of predicates: each cell is read, and brought into its canonical form, once.
    pub(super) fn narrow(&mut self, other: ColumnTest) -> Option<ColumnTest> {
        match (&mut *self, other) {
            (ColumnTest::Bytes(none), _) if none.is_empty() => {}
            (ColumnTest::Bytes(any), ColumnTest::Bytes(others)) => any.retain(|cell| others.contains(cell)),
            (ColumnTest::Canonical { any, .. }, ColumnTest::Canonical { any: others, .. }) => {
                any.retain(|form| others.contains(form));
            }
            (ColumnTest::Float { any, with_nan }, ColumnTest::Float { any: others, with_nan: other_nan }) => {
                any.retain(|value| others.contains(value));
                *with_nan &= other_nan;
            }
            (ColumnTest::Prefix(prefix), ColumnTest::Prefix(longer)) if longer.starts_with(prefix) => *prefix = longer,
            (ColumnTest::Prefix(prefix), ColumnTest::Prefix(shorter)) => {
                if !prefix.starts_with(&shorter) {
                    *self = ColumnTest::nothing();
                }
            }
            (ColumnTest::CaselessPrefix(prefix), ColumnTest::CaselessPrefix(longer))
                if longer.starts_with(prefix.as_str()) =>
            {
                *prefix = longer;
            }
            (ColumnTest::CaselessPrefix(prefix), ColumnTest::CaselessPrefix(shorter)) => {
                if !prefix.starts_with(&shorter) {
                    *self = ColumnTest::nothing();
                }
            }
            (ColumnTest::AsciiCaselessPrefix(prefix), ColumnTest::AsciiCaselessPrefix(longer))
                if starts_with_ascii_caseless(&longer, prefix) =>
            {
                *prefix = longer;
            }
            (ColumnTest::AsciiCaselessPrefix(prefix), ColumnTest::AsciiCaselessPrefix(shorter)) => {
                if !starts_with_ascii_caseless(prefix, &shorter) {
                    *self = ColumnTest::nothing();
                }
            }
            (ColumnTest::Patterns(patterns), ColumnTest::Patterns(others)) => patterns.extend(others),
            (_, other) => return Some(other),
        }
        None
    }

    /// Returns the test that no cell passes.
    fn nothing() -> ColumnTest {
        ColumnTest::Bytes(HashSet::new())
    }
}

fn starts_with_ascii_caseless(cell: &[u8], prefix: &[u8]) -> bool {
    cell.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
}

/// Returns the test of SQL's `LIKE 'prefix%'`, for types that are text.
fn prefix_of(shape: &TypeShape<'_>, prefix: &str) -> Result<ColumnTest, FilterProblem> {
    let TypeShape::Base(BaseType::Text(text)) = shape else { return Err(FilterProblem::NotText) };
    Ok(match text {
        TextType::Caseless => ColumnTest::CaselessPrefix(caseless(prefix)),
        TextType::AsciiCaseless => ColumnTest::AsciiCaselessPrefix(prefix.as_bytes().into()),
        TextType::Plain | TextType::Padded | TextType::Incomparable | TextType::Label => {
            ColumnTest::Prefix(prefix.as_bytes().into())
        }
        // The prefix follows the version byte.
        TextType::Ltree => ColumnTest::Prefix([&[1], prefix.as_bytes()].concat().into()),
    })
}

/// Returns the test of a pattern, for types whose projections are always text.
fn pattern_of(shape: &TypeShape<'_>, pattern: &Pattern) -> Result<ColumnTest, FilterProblem> {
    match shape {
        TypeShape::Base(BaseType::Text(TextType::Caseless | TextType::AsciiCaseless)) => {
            let caseless = Pattern::new(&format!("(?i){}", pattern.as_str()));
            caseless.map(ColumnTest::TextPattern).map_err(|_| FilterProblem::TooLarge)
        }
        TypeShape::Base(BaseType::Text(
            TextType::Plain | TextType::Padded | TextType::Incomparable | TextType::Label,
        )) => Ok(ColumnTest::TextPattern(pattern.clone())),
        TypeShape::Base(base) if base.is_always_text() => Ok(ColumnTest::Patterns(vec![pattern.clone()])),
        TypeShape::Range(_) | TypeShape::Multirange(_) => Ok(ColumnTest::Patterns(vec![pattern.clone()])),
        TypeShape::Base(_) | TypeShape::Array(_) | TypeShape::Composite(_) => Err(FilterProblem::NotText),
    }
}

/// Returns the test of SQL's `=` and `IN`. NULL is equal to nothing.
fn any_of(
    schema: &Schema,
    column: usize,
    shape: &TypeShape<'_>,
    values: &[Value],
) -> Result<ColumnTest, FilterProblem> {
    let definition = &schema.columns()[column];
    let type_oid = definition.type_oid;
    if !definition.is_text {
        check_comparable(schema, type_oid).map_err(FilterProblem::Incomparable)?;
    }
    let mut cells = Vec::with_capacity(values.len());
    for value in values.iter().filter(|value| **value != Value::Null) {
        let cell = match value {
            Value::String(text) if definition.is_text => Ok(text.as_bytes().to_vec()),
            _ if definition.is_text => Err(ValueMismatch::Kind("a string")),
            value => read_literal(schema, type_oid, value),
        };
        cells.push(cell.map_err(|mismatch| FilterProblem::value(value, mismatch))?);
    }
    if let TypeShape::Base(BaseType::Number(NumberType::Float4 | NumberType::Float8)) = shape {
        let any: Vec<f64> = cells.iter().filter_map(|cell| float(cell)).collect();
        return Ok(ColumnTest::Float { with_nan: any.iter().any(|value| value.is_nan()), any });
    }
    if definition.is_text || is_canonical(schema, type_oid) {
        return Ok(ColumnTest::Bytes(cells.into_iter().map(Into::into).collect()));
    }
    let forms = cells.iter().filter_map(|cell| canonical(schema, type_oid, cell).ok());
    Ok(ColumnTest::Canonical { type_oid, any: forms.map(|form| form.into_owned().into()).collect() })
}

/// Reads a cell of a float type of either width.
fn float(cell: &[u8]) -> Option<f64> {
    match cell.len() {
        4 => Some(f32::from_be_bytes(cell.try_into().ok()?).into()),
        8 => Some(f64::from_be_bytes(cell.try_into().ok()?)),
        _ => None,
    }
}
