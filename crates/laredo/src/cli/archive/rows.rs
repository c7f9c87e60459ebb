//! The output of rows as text.

use std::io::{self, Write};
use std::sync::Arc;

use laredo_archive::{ArtifactFormat, ArtifactWriter, FormatError};
use laredo_core::{Schema, Tuple};
use laredo_values::{HexCells, Value, show_row};

use super::args::RowFormat;

/// Writes rows in a format.
///
/// # Errors
/// An output that cannot be written, or a value that does not fit its column.
pub(super) fn write_rows<'a>(
    format: RowFormat,
    schema: &Arc<Schema>,
    rows: impl Iterator<Item = &'a Tuple>,
    out: impl Write,
) -> Result<(), FormatError> {
    match format {
        RowFormat::Jsonl => {
            let mut lines = ArtifactWriter::new(ArtifactFormat::JSONL, schema.clone(), out)?;
            for row in rows {
                lines.row(row.as_ref())?;
            }
            lines.finish()?;
        }
        RowFormat::Csv => csv(schema, rows, out)?,
    }
    Ok(())
}

fn csv<'a>(schema: &Schema, rows: impl Iterator<Item = &'a Tuple>, mut out: impl Write) -> Result<(), FormatError> {
    let names = schema.columns().iter().map(|column| text(&column.name));
    line(names.collect(), &mut out)?;
    for row in rows {
        let values = show_row(schema, row.as_ref(), &HexCells::default())?;
        line(values.iter().map(|(_, value)| shown(value)).collect(), &mut out)?;
    }
    Ok(out.flush()?)
}

fn line(fields: Vec<String>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", fields.join(","))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(value) => text(value),
        Value::Bool(_) | Value::Number(_) => value.to_json().to_string(),
        Value::List(_) | Value::Object(_) => text(&value.to_json().to_string()),
    }
}

/// Quotes a text where CSV needs it. An empty text is quoted, too, because an empty field is NULL.
/// So is a backslash, because PostgreSQL takes a line of `\.` for the end of the data.
fn text(value: &str) -> String {
    match value.is_empty() || value.contains([',', '"', '\n', '\r', '\\']) || value.trim() != value {
        true => format!("\"{}\"", value.replace('"', "\"\"")),
        false => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_differ_from_null() {
        let values = [
            Value::Null,
            Value::String(String::new()),
            Value::String("a,\"b\"\n".to_owned()),
            Value::String("\\.".to_owned()),
            Value::Number(1.5),
            Value::Bool(true),
            Value::List(vec![Value::Number(1.0), Value::Null]),
        ];
        assert_eq!(
            values.each_ref().map(shown),
            ["", "\"\"", "\"a,\"\"b\"\"\n\"", "\"\\.\"", "1.5", "true", "\"[1,null]\""]
        );
    }
}
