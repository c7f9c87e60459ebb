//! The formats of an artifact: lines of JSON or length-delimited protobuf messages, optionally
//! compressed with zstd.

mod jsonl;
mod limits;
mod literal;
mod protobuf;
#[cfg(feature = "writer")]
mod render;
#[cfg(all(test, feature = "writer"))]
mod tests;
#[cfg(feature = "writer")]
mod write;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use laredo_core::{Column, Schema, Tuple};
use laredo_values::{ProjectError, UnprojectError, Value, unproject_row};

use crate::layout::{ArtifactFormat, ArtifactKind, COLUMNS_MAX, EntryEncoding};

use limits::UnpackedInput;
use literal::LiteralParser;
#[cfg(feature = "writer")]
pub use write::ArtifactWriter;

/// An error in writing or reading an artifact.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A row has a value that is invalid for its column.
    #[error(transparent)]
    Project(#[from] ProjectError),
    /// An entry is invalid.
    #[error("entry {number}: {problem}")]
    Entry {
        /// The number of the entry, from 1.
        number: u64,
        /// The error in the entry.
        problem: String,
    },
    /// A row or a change is too large for an artifact.
    #[error("a row or a change has {bytes} bytes in this format, and readers accept at most {bytes_max}")]
    TooLarge {
        /// The size in bytes.
        bytes: u64,
        /// The maximum size in bytes.
        bytes_max: u64,
    },
    /// A value is not of its column's type.
    #[error("entry {number}: {error}")]
    Value {
        /// The number of the entry, from 1.
        number: u64,
        /// The error in the value.
        error: UnprojectError,
    },
}

/// The values of a row with their names.
type NamedValues = Vec<(String, Value)>;

/// A change in a diff, whose rows are not converted yet.
#[derive(Clone, Debug, Default, PartialEq)]
struct DiffEntry {
    action: String,
    key: String,
    old: Option<NamedValues>,
    new: Option<NamedValues>,
}

/// The reader of one artifact.
pub struct ArtifactReader<R: Read> {
    encoding: EntryEncoding,
    schema: Arc<Schema>,
    literals: LiteralParser,
    input: ArtifactInput<R>,
    number: u64,
}

enum ArtifactInput<R: Read> {
    Plain(BufReader<R>),
    Packed(BufReader<UnpackedInput<R>>),
}

/// A change that was read from a diff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchivedChange {
    /// All rows are removed.
    Truncate,
    /// A row is added, or replaces the one with the same key.
    Put(Tuple),
    /// A row replaces one with another key. laredo writes a deletion and another change instead.
    Move {
        /// The removed row; only its key is used.
        from: Tuple,
        /// The new row.
        to: Tuple,
    },
    /// A row is removed; only its key is used.
    Delete(Tuple),
}

impl<R: Read> ArtifactReader<R> {
    /// Begins reading an artifact with rows of `schema`.
    ///
    /// # Errors
    /// If zstd cannot be initialized.
    pub fn new(format: ArtifactFormat, schema: Arc<Schema>, input: R) -> Result<ArtifactReader<R>, FormatError> {
        let input = match format.is_packed() {
            true => ArtifactInput::Packed(BufReader::new(UnpackedInput::new(input)?)),
            false => ArtifactInput::Plain(BufReader::new(input)),
        };
        let literals = LiteralParser::of(&schema);
        Ok(ArtifactReader { encoding: format.encoding(), schema, literals, input, number: 0 })
    }

    /// Sets the size of the contents in bytes, uncompressed, if it is known. Reading then fails at
    /// the first byte beyond it. Otherwise compressed contents may be at most 1,000 times as large
    /// as the object, beyond the first 16 MiB.
    #[must_use]
    pub fn with_unpacked_bytes(mut self, bytes: Option<u64>) -> ArtifactReader<R> {
        if let ArtifactInput::Packed(input) = &mut self.input {
            input.get_mut().state_bytes(bytes);
        }
        self
    }

    /// Returns the number of bytes that were decompressed so far; `None` if the format is not
    /// compressed.
    pub(crate) fn unpacked_bytes(&self) -> Option<u64> {
        match &self.input {
            ArtifactInput::Plain(_) => None,
            ArtifactInput::Packed(input) => Some(input.get_ref().unpacked_bytes()),
        }
    }

    /// Returns the next row of a snapshot, or `None` at its end.
    ///
    /// # Errors
    /// [`FormatError`] if the row is invalid or cannot be read.
    pub fn row(&mut self) -> Result<Option<Tuple>, FormatError> {
        let Some(row) = self.next_row()? else { return Ok(None) };
        self.tuple_of_row(&row).map(Some)
    }

    /// Returns the next change of a diff, or `None` at its end.
    ///
    /// # Errors
    /// [`FormatError`] if the change is invalid or cannot be read.
    pub fn change(&mut self) -> Result<Option<ArchivedChange>, FormatError> {
        let Some(DiffEntry { action, old, new, .. }) = self.next_entry()? else { return Ok(None) };
        Ok(Some(match (action.as_str(), old, new) {
            ("TRUNCATE", _, _) => ArchivedChange::Truncate,
            ("UPDATE", Some(old), Some(new)) if self.moves(&old, &new) => {
                ArchivedChange::Move { from: self.tuple_of_key(&old)?, to: self.tuple_of_row(&new)? }
            }
            ("INSERT" | "UPDATE", _, Some(new)) => ArchivedChange::Put(self.tuple_of_row(&new)?),
            ("DELETE", Some(old), _) => ArchivedChange::Delete(self.tuple_of_key(&old)?),
            _ => {
                let problem = format!("the action `{action}` does not match the entry's rows");
                return Err(FormatError::Entry { number: self.number, problem });
            }
        }))
    }

    /// Appends the next entry to `to` as a line of JSON, whatever its format. Returns false at the
    /// end.
    ///
    /// # Errors
    /// [`FormatError`] if the entry is invalid or cannot be read.
    pub fn push_json_line(&mut self, kind: ArtifactKind, to: &mut Vec<u8>) -> Result<bool, FormatError> {
        match kind {
            ArtifactKind::Snapshot => {
                let Some(row) = self.next_row()? else { return Ok(false) };
                let row = self.in_order(row);
                jsonl::row(&row, to)?;
            }
            ArtifactKind::Diff => {
                let Some(mut entry) = self.next_entry()? else { return Ok(false) };
                entry.old = entry.old.map(|row| self.in_order(row));
                entry.new = entry.new.map(|row| self.in_order(row));
                jsonl::entry(&entry, to)?;
            }
        }
        Ok(true)
    }

    /// Adds the names of the next entry's fields to `to`. Returns false at the end.
    ///
    /// # Errors
    /// [`FormatError`] if the entry is invalid or cannot be read.
    pub(crate) fn names(&mut self, kind: ArtifactKind, to: &mut BTreeSet<String>) -> Result<bool, FormatError> {
        let rows = match kind {
            ArtifactKind::Snapshot => [self.next_row()?, None],
            ArtifactKind::Diff => {
                self.next_entry()?.map_or([None, None], |entry| [entry.old.or(Some(Vec::new())), entry.new])
            }
        };
        let is_entry = rows[0].is_some();
        for (name, _) in rows.into_iter().flatten().flatten() {
            if !to.contains(&name) {
                to.insert(name);
            }
        }
        if to.len() > COLUMNS_MAX {
            let problem =
                format!("the rows have more than {COLUMNS_MAX} different fields, and a table has fewer columns");
            return Err(FormatError::Entry { number: self.number, problem });
        }
        Ok(is_entry)
    }

    fn next_row(&mut self) -> Result<Option<NamedValues>, FormatError> {
        match self.encoding {
            EntryEncoding::Jsonl => self.next(jsonl::read_row),
            EntryEncoding::Protobuf => self.next(|input, _| protobuf::read_row(input)),
        }
    }

    fn next_entry(&mut self) -> Result<Option<DiffEntry>, FormatError> {
        match self.encoding {
            EntryEncoding::Jsonl => self.next(jsonl::read_entry),
            EntryEncoding::Protobuf => self.next(|input, _| protobuf::read_entry(input)),
        }
    }

    /// Returns the values of a row in the order of the columns, which no format preserves.
    fn in_order(&self, mut row: NamedValues) -> NamedValues {
        row.sort_by_cached_key(|(name, _)| self.schema.position_of(name).unwrap_or(usize::MAX));
        row
    }

    fn next<T>(
        &mut self,
        read: impl FnOnce(&mut dyn BufRead, &LiteralParser) -> Result<T, EntryReadError>,
    ) -> Result<T, FormatError> {
        self.number += 1;
        let read = match &mut self.input {
            ArtifactInput::Plain(input) => read(input, &self.literals),
            ArtifactInput::Packed(input) => read(input, &self.literals),
        };
        read.map_err(|error| match error {
            EntryReadError::Io(error) => FormatError::Io(error),
            EntryReadError::Entry(problem) => FormatError::Entry { number: self.number, problem },
        })
    }

    /// Converts a row of the table. Only columns that accept NULL may be missing.
    fn tuple_of_row(&self, row: &[(String, Value)]) -> Result<Tuple, FormatError> {
        let is_key = |place: usize| self.schema.key().columns().contains(&place);
        let columns = self.schema.columns().iter().enumerate();
        self.unproject(
            row,
            columns.filter(|(place, column)| column.not_null || is_key(*place)).map(|(_, column)| column),
        )
    }

    /// Converts a row of which only the key is used. Other writers may write only the key.
    fn tuple_of_key(&self, row: &[(String, Value)]) -> Result<Tuple, FormatError> {
        let key = self.schema.key().columns().iter();
        self.unproject(row, key.filter_map(|place| self.schema.columns().get(*place)))
    }

    /// Returns true if the old and the new row of a change have different keys.
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

    fn unproject<'a>(
        &self,
        row: &[(String, Value)],
        mut required: impl Iterator<Item = &'a Column>,
    ) -> Result<Tuple, FormatError> {
        if let Some(lacking) = required.find(|column| !row.iter().any(|(name, _)| *name == column.name)) {
            let problem = format!("the row lacks the column `{}`, which is required", lacking.name);
            return Err(FormatError::Entry { number: self.number, problem });
        }
        let row = self.exact(row)?;
        let row =
            unproject_row(&self.schema, &row).map_err(|error| FormatError::Value { number: self.number, error })?;
        Ok(row.as_ref().to_tuple())
    }

    /// Returns a row in which each `numeric` is text.
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

enum EntryReadError {
    Io(io::Error),
    Entry(String),
}

impl From<io::Error> for EntryReadError {
    fn from(error: io::Error) -> EntryReadError {
        EntryReadError::Io(error)
    }
}

impl From<serde_json::Error> for EntryReadError {
    fn from(error: serde_json::Error) -> EntryReadError {
        EntryReadError::Entry(error.to_string())
    }
}
