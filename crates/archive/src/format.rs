//! The forms of an artifact: lines of JSON or length-delimited protobuf messages, plain or packed with zstd.

mod jsonl;
mod protobuf;
mod render;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::str::FromStr;
use std::sync::Arc;

use laredo_core::{ProjectError, Schema, Tuple, TupleRef, UnprojectError, Value, project_row, unproject_row};

use crate::manifest::Kind;
use crate::net::NetChange;

/// zstd's own default level.
const ZSTD_LEVEL: i32 = 3;

/// A form of an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Format {
    line: Line,
    is_packed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Line {
    Jsonl,
    Protobuf,
}

/// There is no such format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no format `{0}`; use jsonl, jsonl.zst, protobuf or protobuf.zst")]
pub struct UnknownFormat(pub String);

impl Format {
    /// All that there are.
    pub const ALL: [Format; 4] = [
        Format { line: Line::Jsonl, is_packed: false },
        Format { line: Line::Jsonl, is_packed: true },
        Format { line: Line::Protobuf, is_packed: false },
        Format { line: Line::Protobuf, is_packed: true },
    ];

    /// Lines of JSON.
    pub const JSONL: Format = Format { line: Line::Jsonl, is_packed: false };

    /// What a manifest and a configuration call it.
    #[must_use]
    pub fn id(self) -> &'static str {
        match (self.line, self.is_packed) {
            (Line::Jsonl, false) => "jsonl",
            (Line::Jsonl, true) => "jsonl.zst",
            (Line::Protobuf, false) => "protobuf",
            (Line::Protobuf, true) => "protobuf.zst",
        }
    }

    /// How its objects' names end, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match (self.line, self.is_packed) {
            (Line::Jsonl, false) => "jsonl",
            (Line::Jsonl, true) => "jsonl.zst",
            (Line::Protobuf, false) => "pb",
            (Line::Protobuf, true) => "pb.zst",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(id: &str) -> Result<Format, UnknownFormat> {
        Format::ALL.into_iter().find(|format| format.id() == id).ok_or_else(|| UnknownFormat(id.to_owned()))
    }
}

/// Why an artifact cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A row has what is no value of its column.
    #[error(transparent)]
    Project(#[from] ProjectError),
    /// An entry is not one.
    #[error("entry {number}: {problem}")]
    Entry {
        /// Which one, from 1.
        number: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A value is none of its column's type.
    #[error("entry {number}: {error}")]
    Value {
        /// Which one, from 1.
        number: u64,
        /// What is wrong with it.
        error: UnprojectError,
    },
}

/// A change as a diff says it, its rows not read back yet.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    action: String,
    key: String,
    old: Option<Vec<(String, Value)>>,
    new: Option<Vec<(String, Value)>>,
}

/// Writes one artifact.
pub struct LineWriter<W: Write> {
    line: Line,
    schema: Arc<Schema>,
    out: Out<W>,
    entry: Vec<u8>,
}

enum Out<W: Write> {
    Plain(W),
    Packed(zstd::Encoder<'static, W>),
}

impl<W: Write> LineWriter<W> {
    /// Begins an artifact of rows of `schema`.
    ///
    /// # Errors
    /// When zstd cannot begin.
    pub fn new(format: Format, schema: Arc<Schema>, out: W) -> Result<LineWriter<W>, FormatError> {
        let out = if format.is_packed { Out::Packed(zstd::Encoder::new(out, ZSTD_LEVEL)?) } else { Out::Plain(out) };
        Ok(LineWriter { line: format.line, schema, out, entry: Vec::new() })
    }

    /// Adds a snapshot's row.
    ///
    /// # Errors
    /// [`FormatError::Project`], [`FormatError::Io`].
    pub fn row(&mut self, row: TupleRef<'_>) -> Result<(), FormatError> {
        let row = project_row(&self.schema, row)?;
        match self.line {
            Line::Jsonl => jsonl::row(row, &mut self.entry)?,
            Line::Protobuf => protobuf::row(row, &mut self.entry),
        }
        self.flush_entry()
    }

    /// Adds a diff's change.
    ///
    /// # Errors
    /// [`FormatError::Project`], [`FormatError::Io`].
    pub fn change(&mut self, change: &NetChange<'_>) -> Result<(), FormatError> {
        let (action, old, new) = match change {
            NetChange::Truncate => ("TRUNCATE", None, None),
            NetChange::Insert(new) => ("INSERT", None, Some(*new)),
            NetChange::Update { old, new } => ("UPDATE", Some(*old), Some(*new)),
            NetChange::Delete(old) => ("DELETE", Some(*old), None),
        };
        let project = |row: Option<&Tuple>| row.map(|row| named(&self.schema, row.as_ref())).transpose();
        let (old, new) = (project(old)?, project(new)?);
        let key = new.as_ref().or(old.as_ref()).map_or_else(String::new, |row| render::key(&self.schema, row));
        let entry = Entry { action: action.to_owned(), key, old, new };
        match self.line {
            Line::Jsonl => jsonl::entry(&entry, &mut self.entry)?,
            Line::Protobuf => protobuf::entry(entry, &mut self.entry),
        }
        self.flush_entry()
    }

    fn flush_entry(&mut self) -> Result<(), FormatError> {
        match &mut self.out {
            Out::Plain(out) => out.write_all(&self.entry)?,
            Out::Packed(out) => out.write_all(&self.entry)?,
        }
        self.entry.clear();
        Ok(())
    }

    /// Ends the artifact.
    ///
    /// # Errors
    /// [`FormatError::Io`].
    pub fn finish(self) -> Result<W, FormatError> {
        Ok(match self.out {
            Out::Plain(mut out) => {
                out.flush()?;
                out
            }
            Out::Packed(out) => out.finish()?,
        })
    }
}

fn named(schema: &Schema, row: TupleRef<'_>) -> Result<Vec<(String, Value)>, ProjectError> {
    Ok(project_row(schema, row)?.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Reads one artifact.
pub struct LineReader<R: Read> {
    line: Line,
    schema: Arc<Schema>,
    input: In<R>,
    number: u64,
}

enum In<R: Read> {
    Plain(BufReader<R>),
    Packed(BufReader<zstd::Decoder<'static, BufReader<R>>>),
}

/// A change of a diff, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadChange {
    /// All rows go.
    Truncate,
    /// A row comes, or takes the place of that of its key.
    Put(Tuple),
    /// A row goes; only its key counts.
    Delete(Tuple),
}

impl<R: Read> LineReader<R> {
    /// Begins to read an artifact of rows of `schema`.
    ///
    /// # Errors
    /// When zstd cannot begin.
    pub fn new(format: Format, schema: Arc<Schema>, input: R) -> Result<LineReader<R>, FormatError> {
        let input = match format.is_packed {
            true => In::Packed(BufReader::new(zstd::Decoder::new(input)?)),
            false => In::Plain(BufReader::new(input)),
        };
        Ok(LineReader { line: format.line, schema, input, number: 0 })
    }

    /// The next row of a snapshot; `None` at its end.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn row(&mut self) -> Result<Option<Tuple>, FormatError> {
        self.number += 1;
        let line = self.line;
        let read = match line {
            Line::Jsonl => self.with_input(jsonl::read_row),
            Line::Protobuf => self.with_input(protobuf::read_row),
        };
        let Some(row) = self.numbered(read)? else { return Ok(None) };
        self.back(&row).map(Some)
    }

    /// The next change of a diff; `None` at its end.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn change(&mut self) -> Result<Option<ReadChange>, FormatError> {
        self.number += 1;
        let line = self.line;
        let read = match line {
            Line::Jsonl => self.with_input(jsonl::read_entry),
            Line::Protobuf => self.with_input(protobuf::read_entry),
        };
        let Some(Entry { action, old, new, .. }) = self.numbered(read)? else { return Ok(None) };
        Ok(Some(match (action.as_str(), old, new) {
            ("TRUNCATE", _, _) => ReadChange::Truncate,
            ("INSERT" | "UPDATE", _, Some(new)) => ReadChange::Put(self.back(&new)?),
            ("DELETE", Some(old), _) => ReadChange::Delete(self.back(&old)?),
            _ => {
                let problem = format!("the action `{action}` does not go with the rows that it has");
                return Err(FormatError::Entry { number: self.number, problem });
            }
        }))
    }

    /// Adds the next entry to `to` as a line of JSON, whatever its form here; tells whether there was one.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn line(&mut self, kind: Kind, to: &mut Vec<u8>) -> Result<bool, FormatError> {
        self.number += 1;
        match kind {
            Kind::Snapshot => {
                let row = match self.line {
                    Line::Jsonl => self.with_input(jsonl::read_row),
                    Line::Protobuf => self.with_input(protobuf::read_row),
                };
                let Some(row) = self.numbered(row)? else { return Ok(false) };
                jsonl::row(row.iter().map(|(name, value)| (name.as_str(), value.clone())), to)?;
            }
            Kind::Diff => {
                let entry = match self.line {
                    Line::Jsonl => self.with_input(jsonl::read_entry),
                    Line::Protobuf => self.with_input(protobuf::read_entry),
                };
                let Some(entry) = self.numbered(entry)? else { return Ok(false) };
                jsonl::entry(&entry, to)?;
            }
        }
        Ok(true)
    }

    fn with_input<T>(&mut self, read: impl FnOnce(&mut dyn BufRead) -> Result<T, ReadError>) -> Result<T, ReadError> {
        match &mut self.input {
            In::Plain(input) => read(input),
            In::Packed(input) => read(input),
        }
    }

    fn numbered<T>(&self, read: Result<T, ReadError>) -> Result<T, FormatError> {
        read.map_err(|error| match error {
            ReadError::Io(error) => FormatError::Io(error),
            ReadError::Entry(problem) => FormatError::Entry { number: self.number, problem },
        })
    }

    fn back(&self, row: &[(String, Value)]) -> Result<Tuple, FormatError> {
        let row =
            unproject_row(&self.schema, row).map_err(|error| FormatError::Value { number: self.number, error })?;
        Ok(row.as_ref().to_tuple())
    }
}

enum ReadError {
    Io(io::Error),
    Entry(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

impl From<serde_json::Error> for ReadError {
    fn from(error: serde_json::Error) -> ReadError {
        ReadError::Entry(error.to_string())
    }
}
