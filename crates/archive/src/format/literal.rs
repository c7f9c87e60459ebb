//! The parsing of JSON values without losing digits.
//!
//! A JSON number may have more digits than a double can distinguish. Writers differ: laredo writes
//! a `numeric` as a string, others write it as a number. Numbers are therefore read as text, and
//! the column decides on their interpretation.

use std::collections::BTreeMap;

use laredo_core::Schema;
use laredo_values::Value;
use serde_json::value::RawValue;

use super::{EntryReadError, NamedValues};

/// The OIDs of `numeric` and `numeric[]`.
const NUMERIC: [u32; 2] = [1700, 1231];
const JSON: u32 = 114;
/// The maximum nesting of a value, which is deeper than that of any projection.
const DEPTH_MAX: usize = 128;
/// The maximum number of digits of a `numeric`, before and after the point.
const NUMERIC_DIGITS_MAX: usize = 131_072 + 0x3FFF;
/// The number of decimal digits that always survive the conversion to a double and back.
const DOUBLE_DIGITS: usize = 15;

/// The values of a row by name, not parsed yet.
pub(super) type RawFields<'a> = BTreeMap<String, &'a RawValue>;

/// The interpretation of a column's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NumberInterpretation {
    /// Doubles, or text if no double has these digits.
    Doubles,
    /// Doubles, or text if a double would lose digits or trailing zeros.
    Scaled,
    /// Text in all cases.
    Text,
}

/// The interpretation of the numbers of each column.
#[derive(Clone, Debug)]
pub(super) struct LiteralParser(BTreeMap<String, NumberInterpretation>);

impl LiteralParser {
    pub(super) fn of(schema: &Schema) -> LiteralParser {
        let numbers = |column: &laredo_core::Column| match column.type_oid {
            oid if NUMERIC.contains(&oid) => NumberInterpretation::Text,
            // The type is unknown and may be `numeric`.
            JSON if column.type_name != "json" => NumberInterpretation::Scaled,
            _ => NumberInterpretation::Doubles,
        };
        LiteralParser(schema.columns().iter().map(|column| (column.name.clone(), numbers(column))).collect())
    }

    /// Parses the values of a row.
    ///
    /// # Errors
    /// If a value is invalid or nested too deeply.
    pub(super) fn row(&self, fields: RawFields<'_>) -> Result<NamedValues, EntryReadError> {
        let value = |(name, raw): (String, &RawValue)| {
            let numbers = self.0.get(&name).copied().unwrap_or(NumberInterpretation::Scaled);
            let value = value(raw.get(), numbers, 0)?;
            Ok((name, value))
        };
        fields.into_iter().map(value).collect()
    }

    /// Returns the digits of a `numeric` that was written as a double, or `None` for other values.
    /// The digits are those of the double's text, if no other decimal with that many digits has the
    /// same double.
    ///
    /// # Errors
    /// If the number may have been rounded.
    pub(super) fn exact(&self, name: &str, value: &Value) -> Result<Option<Value>, String> {
        let Value::Number(double) = value else { return Ok(None) };
        if self.0.get(name) != Some(&NumberInterpretation::Text) {
            return Ok(None);
        }
        let text = format!("{double:e}");
        let digits = text.split('e').next().unwrap_or_default().bytes().filter(u8::is_ascii_digit).count();
        match digits <= DOUBLE_DIGITS {
            true => Ok(Some(Value::String(plain(&text)))),
            false => Err(format!(
                "`{name}` is a numeric that was written as a double, and may have been rounded to {double}; read a format that has \
                 its digits, such as jsonl"
            )),
        }
    }
}

fn value(text: &str, numbers: NumberInterpretation, depth: usize) -> Result<Value, EntryReadError> {
    if depth > DEPTH_MAX {
        return Err(EntryReadError::Entry(format!("a value is nested deeper than {DEPTH_MAX} levels")));
    }
    Ok(match text.as_bytes().first() {
        Some(b'n') => Value::Null,
        Some(b't') => Value::Bool(true),
        Some(b'f') => Value::Bool(false),
        Some(b'"') => Value::String(serde_json::from_str(text)?),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text)?;
            Value::List(items.into_iter().map(|item| value(item.get(), numbers, depth + 1)).collect::<Result<_, _>>()?)
        }
        Some(b'{') => {
            let fields: RawFields<'_> = serde_json::from_str(text)?;
            let field = |(name, raw): (String, &RawValue)| Ok((name, value(raw.get(), numbers, depth + 1)?));
            Value::Object(fields.into_iter().map(field).collect::<Result<_, EntryReadError>>()?)
        }
        _ => number(text, numbers),
    })
}

fn number(text: &str, numbers: NumberInterpretation) -> Value {
    match numbers {
        NumberInterpretation::Text => Value::String(plain(text)),
        NumberInterpretation::Scaled if text.contains('.') && text.ends_with('0') && !text.contains(['e', 'E']) => {
            Value::String(text.to_owned())
        }
        NumberInterpretation::Doubles | NumberInterpretation::Scaled => Value::from_number(text),
    }
}

/// Returns a number without an exponent, as PostgreSQL writes a `numeric`. Text outside the range
/// of a `numeric` is returned unchanged.
fn plain(text: &str) -> String {
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else { return text.to_owned() };
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (Ok(exponent), Ok(point)) = (exponent.parse::<i64>(), i64::try_from(whole.len())) else {
        return text.to_owned();
    };
    let digits = [whole, fraction].concat();
    // The place of the point among the digits, which are padded with zeros on that side.
    let point = point.saturating_add(exponent);
    let (zeros_before, zeros_after) = (usize::try_from(1_i64.saturating_sub(point)), usize::try_from(point));
    match (zeros_before, zeros_after) {
        (Ok(before @ 1..=NUMERIC_DIGITS_MAX), _) => format!("{sign}0.{}{digits}", "0".repeat(before - 1)),
        (_, Ok(whole @ 1..=NUMERIC_DIGITS_MAX)) if whole >= digits.len() => {
            format!("{sign}{digits}{}", "0".repeat(whole - digits.len()))
        }
        (_, Ok(whole @ 1..=NUMERIC_DIGITS_MAX)) => {
            let (whole, fraction) = digits.split_at(whole);
            format!("{sign}{whole}.{fraction}")
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_written_out() {
        for (text, expected) in [
            ("1.50", "1.50"),
            ("-7", "-7"),
            ("1e3", "1000"),
            ("1.5E+3", "1500"),
            ("-1.2345e2", "-123.45"),
            ("1.5e0", "1.5"),
            ("1.5e-1", "0.15"),
            ("12e-5", "0.00012"),
            ("-1e-3", "-0.001"),
            ("1e-1", "0.1"),
            ("1e999999999", "1e999999999"),
            ("1e-999999999", "1e-999999999"),
            ("1e99999999999999999999", "1e99999999999999999999"),
        ] {
            assert_eq!(plain(text), expected, "{text}");
        }
    }

    #[test]
    fn no_number_loses_a_digit() {
        let read = |text: &str, numbers| value(text, numbers, 0).ok().unwrap();
        let text = |text: &str| Value::String(text.to_owned());
        for (number, doubles, scaled) in [
            ("5", Value::Number(5.0), Value::Number(5.0)),
            ("0.1", Value::Number(0.1), Value::Number(0.1)),
            ("1e2", Value::Number(100.0), Value::Number(100.0)),
            ("1.50", Value::Number(1.5), text("1.50")),
            ("1.5e10", Value::Number(1.5e10), Value::Number(1.5e10)),
            ("9007199254740993", text("9007199254740993"), text("9007199254740993")),
            ("12345678901234567890.123", text("12345678901234567890.123"), text("12345678901234567890.123")),
            ("1e999", text("1e999"), text("1e999")),
        ] {
            assert_eq!(read(number, NumberInterpretation::Doubles), doubles, "{number}");
            assert_eq!(read(number, NumberInterpretation::Scaled), scaled, "{number}");
        }
        let nested = read(r#"{"b":[1.50,{"a":1e2}],"a":"1.50"}"#, NumberInterpretation::Text);
        let list = Value::List(vec![text("1.50"), Value::Object(vec![("a".to_owned(), text("100"))])]);
        assert_eq!(nested, Value::Object(vec![("a".to_owned(), text("1.50")), ("b".to_owned(), list)]));
        assert!(value(&"[".repeat(200), NumberInterpretation::Doubles, 0).is_err());
        assert!(value(&format!("{}{}", "[".repeat(200), "]".repeat(200)), NumberInterpretation::Doubles, 0).is_err());
    }
}
