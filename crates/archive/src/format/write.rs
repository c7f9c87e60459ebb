//! The encoding of rows and changes to an artifact's bytes.

use std::io::Write;
use std::sync::Arc;

use laredo_core::{Schema, Tuple, TupleRef};
use laredo_values::{HexCells, JsonRows, ProjectError, Value, show_row};

use super::limits::{CHANGE_BYTES_MAX, ROW_BYTES_MAX};
use super::{DiffEntry, FormatError, jsonl, protobuf, render};
use crate::layout::{ArtifactFormat, EntryEncoding};
use crate::net_changes::NetChange;

/// The compression level, which is zstd's default.
const ZSTD_LEVEL: i32 = 3;

/// The writer of one artifact.
pub struct ArtifactWriter<W: Write> {
    encoder: RowEncoder,
    /// The schema of a change's old row.
    before: Arc<Schema>,
    out: ArtifactOutput<W>,
    entry: Vec<u8>,
    unpacked_bytes: u64,
}

/// An encoder of rows, which any thread can use.
#[derive(Clone, Debug)]
pub(crate) struct RowEncoder {
    encoding: EntryEncoding,
    json: JsonRows,
    hex: Arc<HexCells>,
}

impl RowEncoder {
    /// Appends a snapshot's row to `to`.
    pub(crate) fn row(&self, row: TupleRef<'_>, to: &mut Vec<u8>) -> Result<(), FormatError> {
        let before = to.len();
        match self.encoding {
            EntryEncoding::Jsonl => {
                self.json.push(row, to, &self.hex)?;
                to.push(b'\n');
            }
            EntryEncoding::Protobuf => protobuf::row(show_row(self.schema(), row, &self.hex)?, to),
        }
        check_size(to.len() - before, ROW_BYTES_MAX)
    }

    fn schema(&self) -> &Schema {
        self.json.schema()
    }

    fn named(&self, schema: &Schema, row: TupleRef<'_>) -> Result<Vec<(String, Value)>, ProjectError> {
        let values = show_row(schema, row, &self.hex)?.into_iter();
        Ok(values.map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

enum ArtifactOutput<W: Write> {
    Plain(W),
    Packed(zstd::Encoder<'static, W>),
}

impl<W: Write> ArtifactOutput<W> {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        match self {
            ArtifactOutput::Plain(out) => out.write_all(bytes)?,
            ArtifactOutput::Packed(out) => out.write_all(bytes)?,
        }
        Ok(())
    }
}

impl<W: Write> ArtifactWriter<W> {
    /// Begins an artifact with rows of `schema`.
    ///
    /// # Errors
    /// If zstd cannot be initialized.
    pub fn new(format: ArtifactFormat, schema: Arc<Schema>, out: W) -> Result<ArtifactWriter<W>, FormatError> {
        let out = if format.is_packed() {
            ArtifactOutput::Packed(zstd::Encoder::new(out, ZSTD_LEVEL)?)
        } else {
            ArtifactOutput::Plain(out)
        };
        Ok(ArtifactWriter {
            before: schema.clone(),
            encoder: RowEncoder { encoding: format.encoding(), json: JsonRows::new(schema), hex: Arc::default() },
            out,
            entry: Vec::new(),
            unpacked_bytes: 0,
        })
    }

    /// Sets the schema of the old rows in changes, if it differs from that of the new rows.
    #[must_use]
    pub fn with_old_schema(mut self, before: Arc<Schema>) -> ArtifactWriter<W> {
        self.before = before;
        self
    }

    pub(crate) fn encoder(&self) -> &RowEncoder {
        &self.encoder
    }

    /// Returns the cells that were written in hex so far.
    pub(crate) fn hex_cells(&self) -> &Arc<HexCells> {
        &self.encoder.hex
    }

    /// Returns the number of bytes written so far, before compression.
    #[must_use]
    pub fn unpacked_bytes(&self) -> u64 {
        self.unpacked_bytes
    }

    /// Writes a snapshot's row.
    ///
    /// # Errors
    /// [`FormatError::Project`] if a value is invalid, or [`FormatError::Io`] if the output cannot
    /// be written.
    pub fn row(&mut self, row: TupleRef<'_>) -> Result<(), FormatError> {
        self.encoder.row(row, &mut self.entry)?;
        self.flush_entry()
    }

    /// Writes entries that this writer's encoder has made.
    pub(crate) fn encoded(&mut self, entries: &[u8]) -> Result<(), FormatError> {
        self.unpacked_bytes += entries.len() as u64;
        self.out.write_all(entries)
    }

    /// Writes a diff's change.
    ///
    /// # Errors
    /// [`FormatError::Project`] if a value is invalid, or [`FormatError::Io`] if the output cannot
    /// be written.
    pub fn change(&mut self, change: &NetChange<'_>) -> Result<(), FormatError> {
        let (action, old, new) = match change {
            NetChange::Truncate => ("TRUNCATE", None, None),
            NetChange::Insert(new) => ("INSERT", None, Some(*new)),
            NetChange::Update { old, new } => ("UPDATE", Some(*old), Some(*new)),
            NetChange::Delete(old) => ("DELETE", Some(*old), None),
        };
        let (before, after) = (&*self.before, self.encoder.schema());
        let project =
            |schema: &Schema, row: Option<&Tuple>| row.map(|row| self.encoder.named(schema, row.as_ref())).transpose();
        let (old, new) = (project(before, old)?, project(after, new)?);
        let key = match (&old, &new) {
            (_, Some(new)) => render::key(after, new),
            (Some(old), None) => render::key(before, old),
            (None, None) => String::new(),
        };
        let entry = DiffEntry { action: action.to_owned(), key, old, new };
        match self.encoder.encoding {
            EntryEncoding::Jsonl => jsonl::entry(&entry, &mut self.entry)?,
            EntryEncoding::Protobuf => protobuf::entry(entry, &mut self.entry),
        }
        check_size(self.entry.len(), CHANGE_BYTES_MAX)?;
        self.flush_entry()
    }

    fn flush_entry(&mut self) -> Result<(), FormatError> {
        self.unpacked_bytes += self.entry.len() as u64;
        self.out.write_all(&self.entry)?;
        self.entry.clear();
        Ok(())
    }

    /// Finishes the artifact and returns the output.
    ///
    /// # Errors
    /// [`FormatError::Io`] if the output cannot be written.
    pub fn finish(self) -> Result<W, FormatError> {
        Ok(match self.out {
            ArtifactOutput::Plain(mut out) => {
                out.flush()?;
                out
            }
            ArtifactOutput::Packed(out) => out.finish()?,
        })
    }
}

/// Checks that readers accept an entry. A larger one would make the artifact unreadable.
fn check_size(bytes: usize, bytes_max: u64) -> Result<(), FormatError> {
    let bytes = bytes as u64;
    if bytes > bytes_max { Err(FormatError::TooLarge { bytes, bytes_max }) } else { Ok(()) }
}
