//! Booleans, integers, floats, `numeric` and `money`.

pub(crate) mod float;
mod numeric;

use std::borrow::Cow;

use laredo_core::{Oid, Schema};

use super::{CellContext, TypeFamily, ValueEquality, push_quoted, text_of};
use crate::decimal::Decimal;
use crate::problem::{CellProblem, ValueMismatch};
use crate::text_form::parse_number;
use crate::value::{EXACT_INTEGER_MAX, Value, push_json, string};
use crate::{digits, wire};

const WHOLE: ValueMismatch = ValueMismatch::Text("a whole number");
const NUMBER: ValueMismatch = ValueMismatch::Text("a number");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberType {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    /// The type `money`, with the number of decimals of its amounts.
    Money(u8),
}

impl TypeFamily for NumberType {
    const BUILTIN: &'static [(Oid, NumberType)] = &[
        (16, NumberType::Bool),
        (20, NumberType::Int8),
        (21, NumberType::Int2),
        (23, NumberType::Int4),
        (700, NumberType::Float4),
        (701, NumberType::Float8),
        (790, NumberType::Money(Schema::USUAL_MONEY_DECIMALS)),
        (1700, NumberType::Numeric),
    ];

    fn project(self, context: &mut CellContext, cell: &[u8]) -> Result<Value, CellProblem> {
        Ok(match self {
            NumberType::Bool => Value::Bool(boolean(cell)?),
            NumberType::Int2 => Value::Number(i16::from_be_bytes(wire::exactly(cell)?).into()),
            NumberType::Int4 => Value::Number(i32::from_be_bytes(wire::exactly(cell)?).into()),
            NumberType::Int8 => {
                let value = i64::from_be_bytes(wire::exactly(cell)?);
                #[expect(clippy::cast_precision_loss, reason = "up to 2^53 none is lost")]
                match value.unsigned_abs() {
                    0..=EXACT_INTEGER_MAX => Value::Number(value as f64),
                    _ => Value::String(value.to_string()),
                }
            }
            NumberType::Float4 => float::value(f32::from_be_bytes(wire::exactly(cell)?).into()),
            NumberType::Float8 => float::value(f64::from_be_bytes(wire::exactly(cell)?)),
            NumberType::Numeric | NumberType::Money(_) => Value::String(self.to_text(context, cell)?),
        })
    }

    fn to_text(self, context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        Ok(match self {
            NumberType::Bool => if boolean(cell)? { "t" } else { "f" }.to_owned(),
            NumberType::Int2 => i16::from_be_bytes(wire::exactly(cell)?).to_string(),
            NumberType::Int4 => i32::from_be_bytes(wire::exactly(cell)?).to_string(),
            NumberType::Int8 => i64::from_be_bytes(wire::exactly(cell)?).to_string(),
            NumberType::Float4 => float::single_text(f32::from_be_bytes(wire::exactly(cell)?)),
            NumberType::Float8 => float::double_text(f64::from_be_bytes(wire::exactly(cell)?)),
            NumberType::Numeric => text_of(|to| numeric::push(context, cell, to))?,
            NumberType::Money(decimals) => money_text(cell, decimals)?,
        })
    }

    fn push_json(self, context: &mut CellContext, cell: &[u8], to: &mut Vec<u8>) -> Result<bool, CellProblem> {
        match self {
            NumberType::Bool => to.extend_from_slice(if boolean(cell)? { b"true" } else { b"false" }),
            NumberType::Int2 => digits::push_signed(to, i16::from_be_bytes(wire::exactly(cell)?).into()),
            NumberType::Int4 => digits::push_signed(to, i32::from_be_bytes(wire::exactly(cell)?).into()),
            NumberType::Int8 => {
                let value = i64::from_be_bytes(wire::exactly(cell)?);
                let is_exact = value.unsigned_abs() <= EXACT_INTEGER_MAX;
                if is_exact {
                    digits::push_signed(to, value);
                }
                return Ok(is_exact);
            }
            NumberType::Float4 => push_json(&float::value(f32::from_be_bytes(wire::exactly(cell)?).into()), to),
            NumberType::Float8 => push_json(&float::value(f64::from_be_bytes(wire::exactly(cell)?)), to),
            NumberType::Numeric => return push_quoted(to, |to| numeric::push(context, cell, to)),
            NumberType::Money(_) => return Ok(false),
        }
        Ok(true)
    }

    fn unproject(self, _is_key: bool, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        Ok(match (self, value) {
            (NumberType::Bool, Value::Bool(value)) => vec![u8::from(*value)],
            (NumberType::Bool, _) => return Err(ValueMismatch::Kind("a boolean")),
            (NumberType::Int2, Value::Number(number)) => {
                i16::try_from(whole(*number)?).map_err(out_of_range)?.to_be_bytes().to_vec()
            }
            (NumberType::Int4, Value::Number(number)) => {
                i32::try_from(whole(*number)?).map_err(out_of_range)?.to_be_bytes().to_vec()
            }
            (NumberType::Int8, Value::Number(number)) => whole(*number)?.to_be_bytes().to_vec(),
            (NumberType::Int2 | NumberType::Int4, _) => return Err(ValueMismatch::Kind("a number")),
            #[expect(clippy::cast_possible_truncation, reason = "a float4 was projected as the double of its value")]
            (NumberType::Float4, Value::Number(number)) => match *number as f32 {
                narrow if f64::from(narrow) == *number => narrow.to_be_bytes().to_vec(),
                _ => return Err(ValueMismatch::Range),
            },
            (NumberType::Float8, Value::Number(number)) => number.to_be_bytes().to_vec(),
            (_, value) => self.parse_text(string(value)?)?,
        })
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        Ok(match self {
            NumberType::Bool => match text {
                "t" => vec![1],
                "f" => vec![0],
                _ => return Err(ValueMismatch::Text("a boolean")),
            },
            NumberType::Int2 => parse_number::<i16>(text)?.to_be_bytes().to_vec(),
            NumberType::Int4 => parse_number::<i32>(text)?.to_be_bytes().to_vec(),
            NumberType::Int8 => parse_number::<i64>(text)?.to_be_bytes().to_vec(),
            NumberType::Float4 => float::parse_single(text)?.to_be_bytes().to_vec(),
            NumberType::Float8 => float::parse_double(text)?.to_be_bytes().to_vec(),
            NumberType::Numeric => numeric::parse(text)?,
            NumberType::Money(decimals) => parse_money(text, decimals)?.to_be_bytes().to_vec(),
        })
    }

    fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            NumberType::Bool => boolean_literal(value).map(|value| vec![u8::from(value)]),
            NumberType::Int2 => integer::<i16>(value).map(|value| value.to_be_bytes().to_vec()),
            NumberType::Int4 => integer::<i32>(value).map(|value| value.to_be_bytes().to_vec()),
            NumberType::Int8 => integer::<i64>(value).map(|value| value.to_be_bytes().to_vec()),
            NumberType::Float4 => float::single_literal(value).map(|value| value.to_be_bytes().to_vec()),
            NumberType::Float8 => float::double_literal(value).map(|value| value.to_be_bytes().to_vec()),
            NumberType::Numeric => numeric::parse_literal(value),
            NumberType::Money(decimals) => money_literal(value, decimals),
        }
    }

    fn prints_as_postgresql(self) -> bool {
        // The currency and the separators of an amount depend on the session.
        !matches!(self, NumberType::Money(_))
    }

    fn equality(self) -> ValueEquality {
        match self {
            NumberType::Float4 | NumberType::Float8 | NumberType::Numeric => ValueEquality::OfCanonicalForms,
            NumberType::Bool | NumberType::Int2 | NumberType::Int4 | NumberType::Int8 | NumberType::Money(_) => {
                ValueEquality::OfCells
            }
        }
    }

    fn canonical(self, cell: &[u8]) -> Result<Cow<'_, [u8]>, CellProblem> {
        Ok(match self {
            NumberType::Float4 => float::canonical_double(f32::from_be_bytes(wire::exactly(cell)?).into()).into(),
            NumberType::Float8 => float::canonical_double(f64::from_be_bytes(wire::exactly(cell)?)).into(),
            NumberType::Numeric => numeric::unscaled(cell)?.into(),
            NumberType::Bool | NumberType::Int2 | NumberType::Int4 | NumberType::Int8 | NumberType::Money(_) => {
                cell.into()
            }
        })
    }

    fn is_always_text(self) -> bool {
        matches!(self, NumberType::Numeric | NumberType::Money(_))
    }

    fn is_exact(self) -> bool {
        match self {
            NumberType::Bool | NumberType::Int2 | NumberType::Int4 | NumberType::Int8 | NumberType::Numeric => true,
            NumberType::Float4 | NumberType::Float8 | NumberType::Money(_) => false,
        }
    }
}

fn boolean(bytes: &[u8]) -> Result<bool, CellProblem> {
    Ok(wire::exactly::<1>(bytes)? != [0])
}

/// Reads PostgreSQL's words for booleans, and their unique prefixes.
fn boolean_literal(value: &Value) -> Result<bool, ValueMismatch> {
    const WRONG: ValueMismatch = ValueMismatch::Text("a boolean (true or false)");
    let text = match value {
        Value::Bool(value) => return Ok(*value),
        value => string(value).map_err(|_| ValueMismatch::Kind("a boolean"))?.trim().to_ascii_lowercase(),
    };
    match text.as_str() {
        "" => Err(WRONG),
        "1" | "on" => Ok(true),
        "0" | "of" | "off" => Ok(false),
        word if "true".starts_with(word) || "yes".starts_with(word) => Ok(true),
        word if "false".starts_with(word) || "no".starts_with(word) => Ok(false),
        _ => Err(WRONG),
    }
}

fn out_of_range<E>(_: E) -> ValueMismatch {
    ValueMismatch::Range
}

fn whole(number: f64) -> Result<i64, ValueMismatch> {
    #[expect(clippy::cast_possible_truncation, reason = "it is whole, and far below 2^63")]
    match number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 {
        true => Ok(number as i64),
        false => Err(ValueMismatch::Range),
    }
}

/// Reads a literal of an integer type.
pub(super) fn integer<T: TryFrom<i128>>(value: &Value) -> Result<T, ValueMismatch> {
    let decimal = decimal(value)?;
    match decimal.to_integer() {
        Some(integer) => T::try_from(integer).map_err(|_| ValueMismatch::Range),
        None if decimal.is_whole() => Err(ValueMismatch::Range),
        None => Err(WHOLE),
    }
}

/// Writes a `money` amount with its decimals, without the decoration of the server's `lc_monetary`.
fn money_text(input: &[u8], decimals: u8) -> Result<String, CellProblem> {
    let amount = i64::from_be_bytes(wire::exactly(input)?);
    let (sign, decimals) = (if amount < 0 { "-" } else { "" }, usize::from(decimals));
    let digits = format!("{:0>width$}", amount.unsigned_abs(), width = decimals + 1);
    let (whole, rest) = digits.split_at(digits.len() - decimals);
    let point = if rest.is_empty() { "" } else { "." };
    Ok(format!("{sign}{whole}{point}{rest}"))
}

/// Reads a `money` amount. Decimals beyond those of the type must be zeros.
fn parse_money(input: &str, decimals: u8) -> Result<i64, ValueMismatch> {
    let decimals = usize::from(decimals);
    let (whole, rest) = input.split_once('.').unwrap_or((input, ""));
    let kept = rest.get(..decimals.min(rest.len())).unwrap_or(rest);
    if rest[kept.len()..].bytes().any(|digit| digit != b'0') {
        return Err(ValueMismatch::Text("an amount in the decimals of `lc_monetary`"));
    }
    parse_number(&format!("{whole}{kept:0<decimals$}"))
}

/// Reads an amount of money in whole units, with any number of decimals.
fn money_literal(value: &Value, decimals: u8) -> Result<Vec<u8>, ValueMismatch> {
    let amount = decimal(value)?.shifted(decimals);
    match amount.to_integer().map(i64::try_from) {
        Some(Ok(amount)) => Ok(amount.to_be_bytes().to_vec()),
        Some(Err(_)) => Err(ValueMismatch::Range),
        None if amount.is_whole() => Err(ValueMismatch::Range),
        None => {
            Err(ValueMismatch::Text("an amount (12.34, with no more decimals than the database's `lc_monetary` has)"))
        }
    }
}

fn decimal(value: &Value) -> Result<Decimal, ValueMismatch> {
    match value {
        Value::Number(number) => Decimal::of_double(*number).ok_or(NUMBER),
        Value::String(text) => Decimal::parse(text.trim()).ok_or(NUMBER),
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_) => Err(ValueMismatch::Kind("a number")),
    }
}

fn is_nan(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case("nan")
}
