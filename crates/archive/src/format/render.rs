//! A key as existing readers render it, for they match rows by it.

use laredo_core::{Schema, Value};

/// One value as it is; those of a composite key in key order, space-separated inside `[` `]`.
pub(super) fn key(schema: &Schema, row: &[(String, Value)]) -> String {
    let value = |place: &usize| row.get(*place).map_or_else(String::new, |(_, value)| shown(value));
    match schema.key().columns() {
        [only] => value(only),
        columns => format!("[{}]", columns.iter().map(value).collect::<Vec<_>>().join(" ")),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => general(*value),
        Value::String(text) => text.clone(),
        Value::List(_) | Value::Object(_) => value.to_json().to_string(),
    }
}

/// A double as `%g` writes it with the shortest digits that tell it from others: with an exponent below 10^-4 and from 10^6 on.
fn general(value: f64) -> String {
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) {
        return value.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
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
        ] {
            assert_eq!(general(value), text);
        }
    }
}
