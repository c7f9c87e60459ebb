//! One JSON object a line.

use std::io::BufRead;

use laredo_core::Value;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::{Entry, ReadError};

pub(super) fn row(row: Vec<(&str, Value)>, to: &mut Vec<u8>) -> std::io::Result<()> {
    let object: Map<String, Json> = row.into_iter().map(|(name, value)| (name.to_owned(), value.to_json())).collect();
    serde_json::to_writer(&mut *to, &object)?;
    to.push(b'\n');
    Ok(())
}

pub(super) fn entry(entry: &Entry, to: &mut Vec<u8>) -> std::io::Result<()> {
    let mut object = Map::new();
    object.insert("action".to_owned(), entry.action.clone().into());
    object.insert("key".to_owned(), entry.key.clone().into());
    for (name, row) in [("old", &entry.old), ("new", &entry.new)] {
        if let Some(row) = row {
            let row: Map<String, Json> = row.iter().map(|(name, value)| (name.clone(), value.to_json())).collect();
            object.insert(name.to_owned(), row.into());
        }
    }
    serde_json::to_writer(&mut *to, &object)?;
    to.push(b'\n');
    Ok(())
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
