//! The log lines about verification passes.

use laredo_core::{Cell, Schema, TableName};
use laredo_values::{Value, project_cell};

use crate::verify::{RowDifference, VerifyReport};

/// The number of differences that are logged one by one.
const LOGGED_MAX: usize = 20;

/// Logs the result of a pass over a table.
pub(super) fn log_report(table: &TableName, report: &VerifyReport) {
    let VerifyReport { rows, bytes, differing, unverified, is_cut, heals, position, .. } = *report;
    if differing == 0 {
        tracing::info!(
            event = "table_verified", %table, rows, bytes, unverified, %position,
            "verified: the table equals the database's"
        );
        return;
    }
    for difference in report.differences.iter().take(LOGGED_MAX) {
        let (kind, columns) = (difference.kind(), difference.columns.join(", "));
        let key = key_text(&report.schema, difference);
        tracing::error!(
            event = "row_differs", %table, kind, key, columns,
            "verification found a row that differs from the database's"
        );
    }
    tracing::error!(
        event = "rows_differ",
        %table, differing, is_cut, rows, bytes, unverified, %position, heals,
        "verification found rows that differ from the database's; report this"
    );
}

/// Returns a difference's key as text for people: `id=7, lang=en`.
fn key_text(schema: &Schema, difference: &RowDifference) -> String {
    let cell = |(at, cell): (&usize, Cell<'_>)| {
        let name = schema.columns().get(*at).map_or("", |column| column.name.as_str());
        let value = project_cell(schema, *at, cell).map_or_else(
            |error| error.to_string(),
            |value| match value {
                Value::String(text) => text,
                other => other.to_json().to_string(),
            },
        );
        format!("{name}={value}")
    };
    let cells = difference.key.as_ref().cells();
    schema.key().columns().iter().zip(cells).map(cell).collect::<Vec<_>>().join(", ")
}
