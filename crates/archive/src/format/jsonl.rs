//! JSON Lines: one JSON object on each line.

use std::io::BufRead;

use laredo_core::Value;
use serde::{Deserialize, Serialize, Serializer};

use super::literal::{Literals, RawFields};
use super::{Entry, Fields, ReadError};

pub(super) fn row(row: &[(String, Value)], to: &mut Vec<u8>) -> std::io::Result<()> {
    serde_json::to_writer(&mut *to, &InOrder(row))?;
    to.push(b'\n');
    Ok(())
}

pub(super) fn entry(entry: &Entry, to: &mut Vec<u8>) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        action: &'a str,
        key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        old: Option<InOrder<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        new: Option<InOrder<'a>>,
    }
    let Entry { action, key, old, new } = entry;
    let line = Line { action, key, old: old.as_deref().map(InOrder), new: new.as_deref().map(InOrder) };
    serde_json::to_writer(&mut *to, &line)?;
    to.push(b'\n');
    Ok(())
}

/// A row, serialized in the order of its columns.
struct InOrder<'a>(&'a [(String, Value)]);

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

pub(super) fn read_row(input: &mut dyn BufRead, literals: &Literals) -> Result<Option<Fields>, ReadError> {
    let Some(line) = line(input)? else { return Ok(None) };
    literals.row(serde_json::from_slice(&line)?).map(Some)
}

pub(super) fn read_entry(input: &mut dyn BufRead, literals: &Literals) -> Result<Option<Entry>, ReadError> {
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
    let Some(line) = line(input)? else { return Ok(None) };
    let Line { action, key, old, new } = serde_json::from_slice(&line)?;
    let row = |fields: Option<RawFields<'_>>| fields.map(|fields| literals.row(fields)).transpose();
    Ok(Some(Entry { action, key, old: row(old)?, new: row(new)? }))
}

fn line(input: &mut dyn BufRead) -> Result<Option<Vec<u8>>, ReadError> {
    let mut line = Vec::new();
    match input.read_until(b'\n', &mut line)? {
        0 => Ok(None),
        _ if line.last() == Some(&b'\n') => Ok(Some(line)),
        // A cut inside a line is found here. A cut between two lines is found by the size in the
        // manifest.
        _ => Err(ReadError::Entry("the object ends inside of a line".to_owned())),
    }
}
