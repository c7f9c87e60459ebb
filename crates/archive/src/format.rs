//! The forms of an artifact: lines of JSON or length-delimited protobuf messages, plain or packed with zstd.

mod jsonl;
mod literal;
mod protobuf;
mod render;
#[cfg(test)]
mod tests;
mod write;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::str::FromStr;
use std::sync::Arc;

use laredo_core::{Column, ProjectError, Schema, Tuple, UnprojectError, Value, unproject_row};

use crate::manifest::Kind;

use literal::Literals;
pub use write::LineWriter;

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

/// A row's values by name.
type Fields = Vec<(String, Value)>;

/// A change as a diff says it, its rows not read back yet.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    action: String,
    key: String,
    old: Option<Fields>,
    new: Option<Fields>,
}

/// Reads one artifact.
pub struct LineReader<R: Read> {
    line: Line,
    schema: Arc<Schema>,
    literals: Literals,
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
    /// A row comes in the place of one of another key. Ours are a deletion and a row that comes.
    Move {
        /// What goes; only its key counts.
        from: Tuple,
        /// What comes.
        to: Tuple,
    },
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
        let literals = Literals::of(&schema);
        Ok(LineReader { line: format.line, schema, literals, input, number: 0 })
    }

    /// The next row of a snapshot; `None` at its end.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn row(&mut self) -> Result<Option<Tuple>, FormatError> {
        let Some(row) = self.next_row()? else { return Ok(None) };
        self.whole(&row).map(Some)
    }

    /// The next change of a diff; `None` at its end.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn change(&mut self) -> Result<Option<ReadChange>, FormatError> {
        let Some(Entry { action, old, new, .. }) = self.next_entry()? else { return Ok(None) };
        Ok(Some(match (action.as_str(), old, new) {
            ("TRUNCATE", _, _) => ReadChange::Truncate,
            ("UPDATE", Some(old), Some(new)) if self.moves(&old, &new) => {
                ReadChange::Move { from: self.key(&old)?, to: self.whole(&new)? }
            }
            ("INSERT" | "UPDATE", _, Some(new)) => ReadChange::Put(self.whole(&new)?),
            ("DELETE", Some(old), _) => ReadChange::Delete(self.key(&old)?),
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
        match kind {
            Kind::Snapshot => {
                let Some(row) = self.next_row()? else { return Ok(false) };
                let row = self.in_order(row);
                jsonl::row(&row, to)?;
            }
            Kind::Diff => {
                let Some(mut entry) = self.next_entry()? else { return Ok(false) };
                entry.old = entry.old.map(|row| self.in_order(row));
                entry.new = entry.new.map(|row| self.in_order(row));
                jsonl::entry(&entry, to)?;
            }
        }
        Ok(true)
    }

    /// Adds the names of the next entry's fields to `to`; tells whether there was one.
    ///
    /// # Errors
    /// [`FormatError`].
    pub(crate) fn names(&mut self, kind: Kind, to: &mut BTreeSet<String>) -> Result<bool, FormatError> {
        let rows = match kind {
            Kind::Snapshot => [self.next_row()?, None],
            Kind::Diff => self.next_entry()?.map_or([None, None], |entry| [entry.old.or(Some(Vec::new())), entry.new]),
        };
        let is_entry = rows[0].is_some();
        for (name, _) in rows.into_iter().flatten().flatten() {
            if !to.contains(&name) {
                to.insert(name);
            }
        }
        Ok(is_entry)
    }

    fn next_row(&mut self) -> Result<Option<Fields>, FormatError> {
        match self.line {
            Line::Jsonl => self.next(jsonl::read_row),
            Line::Protobuf => self.next(|input, _| protobuf::read_row(input)),
        }
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, FormatError> {
        match self.line {
            Line::Jsonl => self.next(jsonl::read_entry),
            Line::Protobuf => self.next(|input, _| protobuf::read_entry(input)),
        }
    }

    /// A row's values in the order of the columns, which no form keeps.
    fn in_order(&self, mut row: Fields) -> Fields {
        row.sort_by_cached_key(|(name, _)| self.schema.position_of(name).unwrap_or(usize::MAX));
        row
    }

    fn next<T>(
        &mut self,
        read: impl FnOnce(&mut dyn BufRead, &Literals) -> Result<T, ReadError>,
    ) -> Result<T, FormatError> {
        self.number += 1;
        let read = match &mut self.input {
            In::Plain(input) => read(input, &self.literals),
            In::Packed(input) => read(input, &self.literals),
        };
        read.map_err(|error| match error {
            ReadError::Io(error) => FormatError::Io(error),
            ReadError::Entry(problem) => FormatError::Entry { number: self.number, problem },
        })
    }

    /// A row that a table can have. What is NULL may be left out, and nothing else.
    fn whole(&self, row: &[(String, Value)]) -> Result<Tuple, FormatError> {
        let is_key = |place: usize| self.schema.key().columns().contains(&place);
        let columns = self.schema.columns().iter().enumerate();
        self.back(row, columns.filter(|(place, column)| column.not_null || is_key(*place)).map(|(_, column)| column))
    }

    /// A row of which only the key counts: others may write no more of it.
    fn key(&self, row: &[(String, Value)]) -> Result<Tuple, FormatError> {
        let key = self.schema.key().columns().iter();
        self.back(row, key.filter_map(|place| self.schema.columns().get(*place)))
    }

    /// Whether a change says another key before than after.
    fn moves(&self, old: &[(String, Value)], new: &[(String, Value)]) -> bool {
        fn value<'a>(row: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
            row.iter().find(|(found, _)| found == name).map(|(_, value)| value)
        }
        let mut key = self.schema.key().columns().iter().filter_map(|place| self.schema.columns().get(*place));
        key.any(|column| match (value(old, &column.name), value(new, &column.name)) {
            (Some(old), Some(new)) => old != new,
            _ => false,
        })
    }

    fn back<'a>(
        &self,
        row: &[(String, Value)],
        mut required: impl Iterator<Item = &'a Column>,
    ) -> Result<Tuple, FormatError> {
        if let Some(lacking) = required.find(|column| !row.iter().any(|(name, _)| *name == column.name)) {
            let problem = format!("it has no `{}`, and a row must", lacking.name);
            return Err(FormatError::Entry { number: self.number, problem });
        }
        let row = self.exact(row)?;
        let row =
            unproject_row(&self.schema, &row).map_err(|error| FormatError::Value { number: self.number, error })?;
        Ok(row.as_ref().to_tuple())
    }

    /// A row in which each `numeric` is text.
    fn exact<'a>(&self, row: &'a [(String, Value)]) -> Result<Cow<'a, [(String, Value)]>, FormatError> {
        let mut exact = Cow::Borrowed(row);
        for (place, (name, value)) in row.iter().enumerate() {
            let text = self.literals.exact(name, value);
            if let Some(text) = text.map_err(|problem| FormatError::Entry { number: self.number, problem })? {
                exact.to_mut()[place].1 = text;
            }
        }
        Ok(exact)
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
