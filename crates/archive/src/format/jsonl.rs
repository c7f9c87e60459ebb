//! One JSON object a line.

use std::io::BufRead;

use laredo_core::Value;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value as Json};

use super::{Entry, ReadError};

pub(super) fn row(row: &[(String, Value)], to: &mut Vec<u8>) -> std::io::Result<()> {
    serde_json::to_writer(&mut *to, &Fields(row))?;
    to.push(b'\n');
    Ok(())
}

pub(super) fn entry(entry: &Entry, to: &mut Vec<u8>) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        action: &'a str,
        key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        old: Option<Fields<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        new: Option<Fields<'a>>,
    }
    let Entry { action, key, old, new } = entry;
    let line = Line { action, key, old: old.as_deref().map(Fields), new: new.as_deref().map(Fields) };
    serde_json::to_writer(&mut *to, &line)?;
    to.push(b'\n');
    Ok(())
}

/// A row in the order of its columns.
struct Fields<'a>(&'a [(String, Value)]);

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

pub(super) fn read_row(input: &mut dyn BufRead) -> Result<Option<Vec<(String, Value)>>, ReadError> {
    let Some(line) = line(input)? else { return Ok(None) };
    Ok(Some(fields(serde_json::from_slice(&line)?)))
}

pub(super) fn read_entry(input: &mut dyn BufRead) -> Result<Option<Entry>, ReadError> {
    #[derive(Deserialize)]
    struct Line {
        action: String,
        #[serde(default)]
        key: String,
        #[serde(default)]
        old: Option<Map<String, Json>>,
        #[serde(default)]
        new: Option<Map<String, Json>>,
    }
    let Some(line) = line(input)? else { return Ok(None) };
    let Line { action, key, old, new } = serde_json::from_slice(&line)?;
    Ok(Some(Entry { action, key, old: old.map(fields), new: new.map(fields) }))
}

fn line(input: &mut dyn BufRead) -> Result<Option<Vec<u8>>, ReadError> {
    let mut line = Vec::new();
    match input.read_until(b'\n', &mut line)? {
        0 => Ok(None),
        _ if line.last() == Some(&b'\n') => Ok(Some(line)),
        // Who reads it has the size from the manifest; here it is a line like the others, if it is whole.
        _ => Err(ReadError::Entry("the object ends inside of a line".to_owned())),
    }
}

fn fields(object: Map<String, Json>) -> Vec<(String, Value)> {
    object.into_iter().map(|(name, value)| (name, Value::from_json(value))).collect()
}
