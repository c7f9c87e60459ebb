//! Length-delimited protobuf messages of `laredo.snapshotter.v1`.

#[cfg(feature = "writer")]
use std::collections::BTreeMap;
use std::io::{BufRead, Read as _};

use laredo_values::Value;
use prost::Message;
use prost_types::Struct;
use prost_types::value::Kind;

use super::limits::{CHANGE_BYTES_MAX, ROW_BYTES_MAX};
use super::{DiffEntry, EntryReadError};

/// A row of a snapshot.
#[derive(Clone, PartialEq, Message)]
struct SnapshotRow {
    #[prost(message, optional, tag = "1")]
    row: Option<Struct>,
}

/// A change of a diff.
#[derive(Clone, PartialEq, Message)]
struct DiffChange {
    #[prost(string, tag = "1")]
    action: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(message, optional, tag = "3")]
    old: Option<Struct>,
    #[prost(message, optional, tag = "4")]
    new: Option<Struct>,
}

#[cfg(feature = "writer")]
pub(super) fn row(row: Vec<(&str, Value)>, to: &mut Vec<u8>) {
    let row = row.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    to.extend(SnapshotRow { row: Some(to_struct(row)) }.encode_length_delimited_to_vec());
}

#[cfg(feature = "writer")]
pub(super) fn entry(entry: DiffEntry, to: &mut Vec<u8>) {
    let DiffEntry { action, key, old, new } = entry;
    let change = DiffChange { action, key, old: old.map(to_struct), new: new.map(to_struct) };
    to.extend(change.encode_length_delimited_to_vec());
}

pub(super) fn read_row(input: &mut dyn BufRead) -> Result<Option<Vec<(String, Value)>>, EntryReadError> {
    let Some(SnapshotRow { row }) = message(input, ROW_BYTES_MAX)? else { return Ok(None) };
    Ok(Some(fields(row.unwrap_or_default())?))
}

pub(super) fn read_entry(input: &mut dyn BufRead) -> Result<Option<DiffEntry>, EntryReadError> {
    let Some(DiffChange { action, key, old, new }) = message(input, CHANGE_BYTES_MAX)? else { return Ok(None) };
    let (old, new) = (old.map(fields).transpose()?, new.map(fields).transpose()?);
    Ok(Some(DiffEntry { action, key, old, new }))
}

fn message<M: Message + Default>(input: &mut dyn BufRead, bytes_max: u64) -> Result<Option<M>, EntryReadError> {
    let Some(length) = length(input)? else { return Ok(None) };
    if length > bytes_max {
        return Err(EntryReadError::Entry(format!("the message has {length} bytes, more than {bytes_max}")));
    }
    let mut bytes = Vec::new();
    // Memory is allocated for the bytes that exist, not for the stated length.
    input.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(EntryReadError::Entry("the object ends inside of a message".to_owned()));
    }
    M::decode(bytes.as_slice()).map(Some).map_err(|error| EntryReadError::Entry(error.to_string()))
}

/// Reads a length as a varint. Returns `None` at the end of the object.
fn length(input: &mut dyn BufRead) -> Result<Option<u64>, EntryReadError> {
    let mut length = 0_u64;
    for shift in (0..35).step_by(7) {
        let Some(byte) = input.fill_buf()?.first().copied() else {
            return if shift == 0 {
                Ok(None)
            } else {
                Err(EntryReadError::Entry("the object ends inside of a length".to_owned()))
            };
        };
        input.consume(1);
        length |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(Some(length));
        }
    }
    Err(EntryReadError::Entry("the length of a message is invalid".to_owned()))
}

#[cfg(feature = "writer")]
fn to_struct(fields: Vec<(String, Value)>) -> Struct {
    let fields: BTreeMap<String, prost_types::Value> =
        fields.into_iter().map(|(name, value)| (name, to_value(value))).collect();
    Struct { fields }
}

#[cfg(feature = "writer")]
fn to_value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(value) => Kind::NumberValue(value),
        Value::String(text) => Kind::StringValue(text),
        Value::List(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.into_iter().map(to_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn fields(of: Struct) -> Result<Vec<(String, Value)>, EntryReadError> {
    of.fields.into_iter().map(|(name, value)| Ok((name, from_value(value)?))).collect()
}

fn from_value(value: prost_types::Value) -> Result<Value, EntryReadError> {
    Ok(match value.kind.ok_or_else(|| EntryReadError::Entry("a value has no kind".to_owned()))? {
        Kind::NullValue(_) => Value::Null,
        Kind::BoolValue(value) => Value::Bool(value),
        Kind::NumberValue(value) => Value::Number(value),
        Kind::StringValue(text) => Value::String(text),
        Kind::ListValue(list) => Value::List(list.values.into_iter().map(from_value).collect::<Result<_, _>>()?),
        Kind::StructValue(object) => Value::Object(fields(object)?),
    })
}
