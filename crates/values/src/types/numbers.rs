//! Numbers, given as numbers or as strings of their digits.

use super::super::ValueMismatch;
use super::super::numeric;
use crate::decimal::Decimal;
use crate::project::Value;

const WHOLE: ValueMismatch = ValueMismatch::Text("a whole number");
const NUMBER: ValueMismatch = ValueMismatch::Text("a number");

pub(super) fn integer<T: TryFrom<i128>>(value: &Value) -> Result<T, ValueMismatch> {
    let decimal = decimal(value)?;
    match decimal.to_integer() {
        Some(integer) => T::try_from(integer).map_err(|_| ValueMismatch::Range),
        None if decimal.is_whole() => Err(ValueMismatch::Range),
        None => Err(WHOLE),
    }
}

pub(super) fn double(value: &Value) -> Result<f64, ValueMismatch> {
    float(value, |text| text.parse().ok(), |double| double)
}

#[expect(clippy::cast_possible_truncation, reason = "PostgreSQL rounds a literal of this type, too")]
pub(super) fn single(value: &Value) -> Result<f32, ValueMismatch> {
    float(value, |text| text.parse().ok(), |double| double as f32)
}

/// Reads a float. A number that becomes infinite or zero only because the type cannot hold it is
/// out of range.
fn float<T: Into<f64> + Copy>(
    value: &Value,
    parse: impl Fn(&str) -> Option<T>,
    narrow: impl Fn(f64) -> T,
) -> Result<T, ValueMismatch> {
    let (read, decimal) = match value {
        Value::Number(number) => (Some(narrow(*number)), Decimal::of_double(*number)),
        Value::String(text) if is_nan(text) => return Ok(narrow(f64::NAN)),
        Value::String(text) => {
            let decimal = Decimal::parse(text.trim()).ok_or(NUMBER)?;
            (parse(text.trim()), Some(decimal))
        }
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_) => {
            return Err(ValueMismatch::Kind("a number"));
        }
    };
    let read = read.ok_or(NUMBER)?;
    let wide: f64 = read.into();
    match decimal {
        Some(Decimal::Finite { .. }) if wide.is_infinite() => Err(ValueMismatch::Range),
        Some(Decimal::Finite { digits, .. }) if wide == 0.0 && !digits.is_empty() => Err(ValueMismatch::Range),
        Some(_) | None => Ok(read),
    }
}

pub(super) fn numeric(value: &Value) -> Result<Vec<u8>, ValueMismatch> {
    let is_not_a_number = match value {
        Value::Number(number) => number.is_nan(),
        Value::String(text) => is_nan(text),
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_) => false,
    };
    match is_not_a_number {
        true => numeric::numeric("NaN"),
        false => numeric::numeric(&decimal(value)?.to_plain().ok_or(ValueMismatch::Range)?),
    }
}

/// Reads an amount of money in whole units, with any number of decimals.
pub(super) fn money(value: &Value, decimals: u8) -> Result<Vec<u8>, ValueMismatch> {
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
