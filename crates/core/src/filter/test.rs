//! One predicate made ready for one column: the cheapest comparison that its type allows.

use std::collections::HashSet;

use postgres_types::Type;

use super::{Match, Pattern};
use crate::decimal::Decimal;
use crate::project::{Shape, Value, is_object_number, project_cell};
use crate::schema::Schema;
use crate::tuple::Cell;

#[derive(Clone, Debug)]
pub(super) enum Test {
    /// The cell is its own text.
    Text(HashSet<Box<[u8]>>),
    TextPrefix(Box<[u8]>),
    TextPattern(Pattern),
    Integer {
        any: HashSet<i128>,
        is_signed: bool,
    },
    Float(Vec<f64>),
    Numeric(HashSet<Decimal>),
    /// Everything else is compared as it is projected.
    AnyOf(Vec<Value>),
    Prefix(String),
    Pattern(Pattern),
}

impl Test {
    pub(super) fn new(schema: &Schema, column: usize, test: &Match) -> Test {
        let shape = match &schema.columns()[column] {
            column if column.is_text => Shape::Text,
            column => Shape::of(schema, column.type_oid).unwrap_or(Shape::Unknown),
        };
        let is_text = shape == Shape::Text;
        match test {
            Match::Prefix(prefix) if is_text => Test::TextPrefix(prefix.as_bytes().into()),
            Match::Prefix(prefix) => Test::Prefix(prefix.clone()),
            Match::Regex(pattern) if is_text => Test::TextPattern(pattern.clone()),
            Match::Regex(pattern) => Test::Pattern(pattern.clone()),
            Match::Equals(value) => Test::any_of(shape, std::slice::from_ref(value)),
            Match::In(values) => Test::any_of(shape, values),
        }
    }

    fn any_of(shape: Shape<'_>, values: &[Value]) -> Test {
        let integers = |is_signed| Test::Integer {
            any: values.iter().filter_map(|v| decimal(v)?.to_integer()).collect(),
            is_signed,
        };
        match shape {
            Shape::Text => Test::Text(values.iter().filter_map(text).map(Into::into).collect()),
            Shape::Builtin(Type::INT2 | Type::INT4 | Type::INT8) => integers(true),
            Shape::Builtin(Type::XID8) => integers(false),
            Shape::Builtin(builtin) if is_object_number(&builtin) => integers(false),
            Shape::Builtin(Type::FLOAT4 | Type::FLOAT8) => Test::Float(values.iter().filter_map(double).collect()),
            Shape::Builtin(Type::NUMERIC) => Test::Numeric(values.iter().filter_map(decimal).collect()),
            _ => Test::AnyOf(values.to_vec()),
        }
    }

    /// Whether a cell passes.
    pub(super) fn holds(&self, schema: &Schema, column: usize, cell: &[u8]) -> bool {
        let value = || project_cell(schema, column, Cell::Value(cell)).ok();
        match self {
            Test::Text(any) => any.contains(cell),
            Test::TextPrefix(prefix) => cell.starts_with(prefix),
            Test::TextPattern(pattern) => std::str::from_utf8(cell).is_ok_and(|text| pattern.is_found_in(text)),
            Test::Integer { any, is_signed } => integer(cell, *is_signed).is_some_and(|value| any.contains(&value)),
            Test::Float(any) => float(cell).is_some_and(|value| any.contains(&value)),
            Test::Numeric(any) => value().and_then(|value| decimal(&value)).is_some_and(|value| any.contains(&value)),
            Test::AnyOf(any) => value().is_some_and(|value| any.iter().any(|other| same(&value, other))),
            Test::Prefix(prefix) => value().is_some_and(|v| text_of(&v).is_some_and(|t| t.starts_with(prefix))),
            Test::Pattern(pattern) => value().is_some_and(|v| text_of(&v).is_some_and(|t| pattern.is_found_in(t))),
        }
    }
}

/// Equal whatever the order of an object's fields; NULLs are equal only inside a list or an object.
fn same(one: &Value, other: &Value) -> bool {
    !matches!(one, Value::Null) && same_inside(one, other)
}

fn same_inside(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::List(one), Value::List(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same_inside(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let find = |name: &str| other.iter().find(|(other, _)| other == name);
            let found =
                |(name, value): &(String, Value)| find(name).is_some_and(|(_, other)| same_inside(value, other));
            one.len() == other.len() && one.iter().all(found)
        }
        _ => one == other,
    }
}

fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&[u8]> {
    text_of(value).map(str::as_bytes)
}

fn decimal(value: &Value) -> Option<Decimal> {
    match value {
        Value::Number(number) => Decimal::of_double(*number),
        Value::String(text) => Decimal::parse(text),
        _ => None,
    }
}

fn double(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => Some(*number),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// A cell of an integer type, whatever its width.
fn integer(cell: &[u8], is_signed: bool) -> Option<i128> {
    Some(match (cell.len(), is_signed) {
        (2, true) => i16::from_be_bytes(cell.try_into().ok()?).into(),
        (4, true) => i32::from_be_bytes(cell.try_into().ok()?).into(),
        (8, true) => i64::from_be_bytes(cell.try_into().ok()?).into(),
        (4, false) => u32::from_be_bytes(cell.try_into().ok()?).into(),
        (8, false) => u64::from_be_bytes(cell.try_into().ok()?).into(),
        _ => return None,
    })
}

/// A cell of a float type, whatever its width.
fn float(cell: &[u8]) -> Option<f64> {
    match cell.len() {
        4 => Some(f32::from_be_bytes(cell.try_into().ok()?).into()),
        8 => Some(f64::from_be_bytes(cell.try_into().ok()?)),
        _ => None,
    }
}
