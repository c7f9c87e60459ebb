//! The key of a row as text, in the form by which existing readers match rows.

use laredo_core::Schema;
use laredo_values::Value;

/// Returns the text of a row's key. A single value stands by itself; those of a composite key are
/// in key order, like a list.
pub(super) fn key(schema: &Schema, row: &[(String, Value)]) -> String {
    let value = |place: &usize| row.get(*place).map_or_else(String::new, |(_, value)| shown(value));
    match schema.key().columns() {
        [only] => value(only),
        columns => bracketed(columns.iter().map(value)),
    }
}

/// Returns a value as Go's `%v` prints the parsed JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => general(*value),
        Value::String(text) => text.clone(),
        Value::List(items) => bracketed(items.iter().map(shown)),
        Value::Object(fields) => {
            let mut fields: Vec<&(String, Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| name);
            format!("map{}", bracketed(fields.into_iter().map(|(name, value)| format!("{name}:{}", shown(value)))))
        }
    }
}

fn bracketed(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<_>>().join(" "))
}

/// Returns a double as `%g` writes it, with the fewest digits that identify it. Values below 10^-4
/// and from 10^6 on have an exponent.
fn general(value: f64) -> String {
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    let scientific = shortest(value);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return fixed(mantissa, exponent);
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// Returns the shortest digits that read back as this double, as `d.ddde0`. Of two equally near
/// candidates Rust chooses the larger one, and Go the even one. The even one is the result of
/// rounding to that many digits.
fn shortest(value: f64) -> String {
    let shortest = format!("{value:e}");
    let mantissa = shortest.split('e').next().unwrap_or_default();
    let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let even = format!("{value:.decimals$e}");
    if even.parse() == Ok(value) { even } else { shortest }
}

/// Returns the same digits without the exponent, which must be from -4 to 5.
fn fixed(mantissa: &str, exponent: i32) -> String {
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    match usize::try_from(exponent) {
        Err(_) => {
            let zeros = usize::try_from(-1 - exponent).unwrap_or(0);
            format!("{sign}0.{}{digits}", "0".repeat(zeros))
        }
        Ok(exponent) if digits.len() <= exponent + 1 => {
            format!("{sign}{digits}{}", "0".repeat(exponent + 1 - digits.len()))
        }
        Ok(exponent) => {
            let (whole, decimals) = digits.split_at(exponent + 1);
            format!("{sign}{whole}.{decimals}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_shortest_general_form() {
        for (value, text) in [
            (42.0, "42"),
            (999_999.0, "999999"),
            (1_000_000.0, "1e+06"),
            (1_234_567.0, "1.234567e+06"),
            (-7.5, "-7.5"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (0.0, "0"),
            (-0.0, "-0"),
            (123_456.789, "123456.789"),
            (0.000_123_4, "0.0001234"),
            (-300.0, "-300"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ] {
            assert_eq!(general(value), text);
        }
    }

    #[test]
    fn of_two_nearest_spellings_the_even_one_is_taken() {
        for (value, text) in [
            (134.001_007_080_078_12, "134.00100708007812"),
            (-134.001_007_080_078_12, "-134.00100708007812"),
            (2_f64.powi(-44), "5.684341886080802e-14"),
            (9_007_199_254_740_992.0, "9.007199254740992e+15"),
        ] {
            assert_eq!(general(value), text);
            assert_eq!(text.parse(), Ok(value));
        }
    }

    #[test]
    fn a_shortest_spelling_reads_back() {
        let config = proptest::test_runner::Config { failure_persistence: None, ..Default::default() };
        proptest::proptest!(config, |(value in proptest::num::f64::NORMAL)| {
            let text = general(value);
            proptest::prop_assert_eq!(text.parse(), Ok(value));
            proptest::prop_assert_eq!(shortest(value).len(), format!("{value:e}").len());
        });
    }

    #[test]
    fn lists_and_documents_are_what_go_prints() {
        let text = |text: &str| Value::String(text.to_owned());
        let object = |fields: &[(&str, Value)]| {
            Value::Object(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
        };
        for (value, expected) in [
            (Value::List(vec![Value::Number(1.0), Value::Null, Value::Number(2.0)]), "[1 <nil> 2]"),
            (Value::List(Vec::new()), "[]"),
            (object(&[]), "map[]"),
            (object(&[("b", text("x")), ("a", Value::Number(1.0))]), "map[a:1 b:x]"),
            (
                Value::List(vec![
                    Value::List(vec![Value::Bool(true)]),
                    object(&[("é", Value::Number(1e6)), ("Z", Value::Null)]),
                ]),
                "[[true] map[Z:<nil> é:1e+06]]",
            ),
        ] {
            assert_eq!(shown(&value), expected);
        }
    }
}
