//! The selection of tables in a request for readiness.

use std::sync::Arc;

use axum::http::StatusCode;
use laredo_core::TableName;

use crate::access::Caller;
use crate::server_state::ServerState;
use crate::table::ServedTable;

/// The answer to a query that selects nothing: the code, and the reason if the caller may know it.
pub(super) type SelectionRefusal = (StatusCode, Option<String>);

/// Returns the tables that a query string selects: `table=SCHEMA.TABLE`, `source=NAME`, or both.
/// Without either it returns all tables.
///
/// # Errors
/// Returns 404 for a table or source that is not configured, and 400 for any other invalid query.
/// Returns 503 without a reason for a table or source that the caller may not know, even if it does
/// not exist.
pub(super) fn select(
    shared: &ServerState,
    caller: &Caller,
    query: &str,
) -> Result<Vec<Arc<ServedTable>>, SelectionRefusal> {
    let all = shared.tables();
    let mut tables = all.to_vec();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value).ok_or_else(|| bad(format!("{pair} is not percent-encoded UTF-8")))?;
        match key {
            "table" => {
                let name: TableName = value.parse().map_err(|error| bad(format!("table={value}: {error}")))?;
                if !caller.may_know(&name) {
                    return Err(UNKNOWN_TO_CALLER);
                }
                if !all.iter().any(|table| *table.name() == name) {
                    return Err((StatusCode::NOT_FOUND, Some(format!("table {name} is not configured"))));
                }
                tables.retain(|table| *table.name() == name);
            }
            "source" => {
                if !caller.is_observer() {
                    return Err(UNKNOWN_TO_CALLER);
                }
                if shared.source(&value).is_none() {
                    return Err((StatusCode::NOT_FOUND, Some(format!("source {value} is not configured"))));
                }
                tables.retain(|table| table.source_id() == value);
            }
            _ => return Err(bad(format!("parameter {key} is unknown; use table=SCHEMA.TABLE or source=NAME"))),
        }
    }
    Ok(tables)
}

const UNKNOWN_TO_CALLER: SelectionRefusal = (StatusCode::SERVICE_UNAVAILABLE, None);

fn bad(error: String) -> SelectionRefusal {
    (StatusCode::BAD_REQUEST, Some(error))
}

/// Decodes a value of a query string. Returns `None` if it is malformed.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let (digits, more) = rest.split_at_checked(2)?;
                rest = more;
                let digits = digits.iter().map(|digit| char::from(*digit).to_digit(16));
                u8::try_from(digits.collect::<Option<Vec<_>>>()?.iter().fold(0, |all, digit| all * 16 + digit)).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_what_is_malformed_is_refused() {
        for (value, expected) in [
            ("public.t", Some("public.t")),
            ("public.%22a%2Eb%22", Some("public.\"a.b\"")),
            ("a+b%20c", Some("a b c")),
            ("%C3%A9", Some("\u{e9}")),
            ("", Some("")),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%+1", None),
            ("%ff", None),
        ] {
            assert_eq!(decoded(value).as_deref(), expected, "{value}");
        }
    }
}
