//! JSON Lines: one JSON object on each line.

use std::io::{BufRead, Read as _};

use laredo_values::Value;
use serde::{Deserialize, Serialize, Serializer};

use super::limits::{CHANGE_BYTES_MAX, ROW_BYTES_MAX};
use super::literal::{LiteralParser, RawFields};
use super::{DiffEntry, EntryReadError, NamedValues};

pub(super) fn row(row: &[(String, Value)], to: &mut Vec<u8>) -> std::io::Result<()> {
    serde_json::to_writer(&mut *to, &OrderedFields(row))?;
    to.push(b'\n');
    Ok(())
}

pub(super) fn entry(entry: &DiffEntry, to: &mut Vec<u8>) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct DiffLine<'a> {
        action: &'a str,
        key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        old: Option<OrderedFields<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        new: Option<OrderedFields<'a>>,
    }
    let DiffEntry { action, key, old, new } = entry;
    let line = DiffLine { action, key, old: old.as_deref().map(OrderedFields), new: new.as_deref().map(OrderedFields) };
    serde_json::to_writer(&mut *to, &line)?;
    to.push(b'\n');
    Ok(())
}

/// A row, serialized in the order of its columns.
struct OrderedFields<'a>(&'a [(String, Value)]);

impl Serialize for OrderedFields<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

pub(super) fn read_row(
    input: &mut dyn BufRead,
    literals: &LiteralParser,
) -> Result<Option<NamedValues>, EntryReadError> {
    let Some(line) = line(input, ROW_BYTES_MAX)? else { return Ok(None) };
    literals.row(serde_json::from_slice(&line)?).map(Some)
}

pub(super) fn read_entry(
    input: &mut dyn BufRead,
    literals: &LiteralParser,
) -> Result<Option<DiffEntry>, EntryReadError> {
    #[derive(Deserialize)]
    struct Line<'a> {
        action: String,
        #[serde(default)]
        key: String,
        #[serde(borrow, default)]
        old: Option<RawFields<'a>>,
        #[serde(borrow, default)]
        new: Option<RawFields<'a>>,
    }
    let Some(line) = line(input, CHANGE_BYTES_MAX)? else { return Ok(None) };
    let Line { action, key, old, new } = serde_json::from_slice(&line)?;
    let row = |fields: Option<RawFields<'_>>| fields.map(|fields| literals.row(fields)).transpose();
    Ok(Some(DiffEntry { action, key, old: row(old)?, new: row(new)? }))
}

/// Reads a line of at most `bytes_max` bytes. Returns `None` at the end of the object.
fn line(input: &mut dyn BufRead, bytes_max: u64) -> Result<Option<Vec<u8>>, EntryReadError> {
    let mut line = Vec::new();
    let read = input.take(bytes_max.saturating_add(1)).read_until(b'\n', &mut line)?;
    match read {
        0 => Ok(None),
        read if read as u64 > bytes_max => {
            Err(EntryReadError::Entry(format!("the line has more than {bytes_max} bytes")))
        }
        _ if line.last() == Some(&b'\n') => Ok(Some(line)),
        // A cut inside a line is found here. A cut between two lines is found by the size in the
        // manifest.
        _ => Err(EntryReadError::Entry("the object ends inside of a line".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_maximum() {
        let mut input = &b"12345\n123456\n"[..];
        let mut next = |bytes_max| line(&mut input, bytes_max);
        assert_eq!(next(6).ok().unwrap().unwrap(), b"12345\n");
        assert!(matches!(next(6), Err(EntryReadError::Entry(problem)) if problem.contains("more than 6 bytes")));
        let mut endless = std::io::BufReader::new(std::io::repeat(b'1'));
        assert!(matches!(line(&mut endless, 1 << 20), Err(EntryReadError::Entry(_))));
    }
}
