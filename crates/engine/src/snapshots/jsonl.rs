//! The JSON format: a line that describes the file, a line for each row, and a line with checksums.
//!
//! Each row is written twice: as readable JSON, and as its bytes. The JSON alone does not restore
//! every row exactly: for example, the spelling of a `json` document or the lower bounds of an
//! array. A restart must not change the contents of a table.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use laredo_core::{ChecksumError, Column, CommitMark, CommitTime, Lsn, Schema, Sequence, TupleRef, Xid};
use laredo_proto::replication::TypedSchema;
use laredo_values::{HexCells, JsonRows};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::description::{self, SnapshotDescription};
use super::error::SnapshotError;
use super::open::OpenSnapshot;
use crate::base::{Base, BaseWriter, FileChecksums};
use crate::head::Head;
use crate::store::{MegabyteChecksums, RowDefinition, SUMMED_BYTES, StoreError, read_error};

/// The first line.
#[derive(Serialize, Deserialize)]
pub(super) struct JsonlHeader {
    #[serde(flatten)]
    pub(super) about: SnapshotDescription,
    sequence: u64,
    position: String,
    /// The time of the last commit, in microseconds since 2000-01-01.
    committed_at: i64,
    /// The newest commit of any of the source's tables up to the position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newest_commit: Option<JsonlCommitMark>,
    pub(super) rows: u64,
    is_whole: bool,
    definition: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pipeline: String,
    /// The checksum of the rows in hexadecimal digits; missing in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    /// The columns, for human readers.
    #[serde(skip_deserializing)]
    columns: Vec<JsonlColumn>,
    /// The columns with everything needed to decode the cells: a `TypedSchema` in base64.
    typed_schema: String,
}

/// The mark of a commit.
#[derive(Serialize, Deserialize)]
struct JsonlCommitMark {
    end: String,
    xid: u64,
    /// The time of the commit, in microseconds since 2000-01-01.
    committed_at: i64,
}

impl JsonlCommitMark {
    fn of(mark: CommitMark) -> Option<JsonlCommitMark> {
        let CommitMark { end, xid, committed_at } = mark.known()?;
        Some(JsonlCommitMark { end: end.to_string(), xid: xid.0, committed_at: committed_at.0 })
    }

    fn mark(&self) -> Option<CommitMark> {
        let (end, xid) = (self.end.parse().ok()?, Xid(self.xid));
        CommitMark { end, xid, committed_at: CommitTime(self.committed_at) }.known()
    }
}

#[derive(Serialize)]
struct JsonlColumn {
    name: String,
    r#type: String,
    not_null: bool,
    key: bool,
}

/// The part of a row's line that is read back: the row's cells in base64.
#[derive(Deserialize)]
struct JsonlCellsLine<'a> {
    #[serde(borrow)]
    cells: Cow<'a, str>,
}

/// The last line.
#[derive(Serialize, Deserialize)]
struct JsonlTrailer {
    /// The number of bytes of the lines before it.
    bytes: u64,
    /// The CRC-32 of each megabyte of those lines.
    checksums: Vec<u32>,
}

/// Writes the rows of a base as the state at `head`.
///
/// # Errors
/// When the base cannot be read, a row cannot be written as JSON, or the file cannot be written.
pub(super) fn write(
    base: &Base,
    head: Head,
    about: &SnapshotDescription,
    definition: &RowDefinition,
    out: &mut impl Write,
) -> Result<(), SnapshotError> {
    let schema = base.schema();
    let key = schema.key().columns();
    let column = |(number, column): (usize, &Column)| JsonlColumn {
        name: column.name.clone(),
        r#type: column.type_name.clone(),
        not_null: column.not_null,
        key: key.contains(&number),
    };
    let header = JsonlHeader {
        about: about.clone(),
        sequence: head.sequence.0,
        position: head.position.to_string(),
        committed_at: head.committed_at.0,
        newest_commit: JsonlCommitMark::of(head.mark),
        rows: base.rows(),
        is_whole: definition.is_whole,
        definition: definition.source.clone(),
        pipeline: definition.pipeline.clone(),
        checksum: head.checksum.map(|checksum| checksum.to_string()),
        columns: schema.columns().iter().enumerate().map(column).collect(),
        typed_schema: BASE64_STANDARD.encode(laredo_proto::schema::to_wire(schema).encode_to_vec()),
    };
    let mut lines = JsonlWriter { out, sums: MegabyteChecksums::default(), bytes: 0 };
    lines.put(&line(&header)?)?;
    // The cells follow each row, so a program that reads the file back does not need the values.
    let hex = HexCells::default();
    let (rows, mut line_of_row) = (JsonRows::new(schema.clone()), Vec::new());
    base.for_each_row::<SnapshotError>(|row| {
        line_of_row.clear();
        line_of_row.extend_from_slice(b"{\"row\":");
        rows.push(row, &mut line_of_row, &hex)?;
        let cells = BASE64_STANDARD.encode(row.bytes());
        line_of_row.extend_from_slice(format!(",\"cells\":\"{cells}\"}}\n").as_bytes());
        Ok(lines.put(&line_of_row)?)
    })?;
    let JsonlWriter { out, sums, bytes } = lines;
    out.write_all(&line(&JsonlTrailer { bytes, checksums: sums.finish() })?)?;
    Ok(())
}

struct JsonlWriter<'a, W> {
    out: &'a mut W,
    sums: MegabyteChecksums,
    bytes: u64,
}

impl<W: Write> JsonlWriter<'_, W> {
    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        self.sums.update(line);
        self.bytes += line.len() as u64;
        self.out.write_all(line)
    }
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, SnapshotError> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::from)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads the last and the first line of a file.
///
/// # Errors
/// When the file cannot be read, or is damaged.
pub(super) fn open(path: &Path) -> Result<OpenSnapshot, StoreError> {
    let io = read_error(path);
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), last_line(&file)?, file)));
    let (length, end, file) = opened.map_err(io)?;
    let damaged = |what: &str| StoreError::damaged(path, length, what);
    let (bytes, end) = end.ok_or_else(|| damaged("it does not end as a snapshot does"))?;
    let end: JsonlTrailer = serde_json::from_slice(&end).map_err(|_| damaged("it does not end as a snapshot does"))?;
    if end.bytes != bytes || end.checksums.len() as u64 != bytes.div_ceil(SUMMED_BYTES as u64) {
        return Err(damaged("its length is not the one that it states"));
    }
    let kept = FileChecksums { path: path.to_owned(), checksums: end.checksums };
    let mut lines = JsonlLineReader { file, kept, bytes, at: 0, read: BytesMut::new(), searched: 0 };
    let first = lines.next()?.unwrap_or_default();
    let header: JsonlHeader = description::parse(&first, path)?;
    let typed = BASE64_STANDARD.decode(&header.typed_schema).ok();
    let typed = typed.and_then(|bytes| TypedSchema::decode(bytes.as_slice()).ok());
    let schema = typed.and_then(|typed| laredo_proto::schema::from_wire(typed).ok());
    let schema = schema.ok_or_else(|| StoreError::damaged(path, 0, "its columns are invalid"))?;
    let position = header.position.parse::<Lsn>().map_err(|error| StoreError::damaged(path, 0, error.to_string()))?;
    let (sequence, committed_at) = (Sequence(header.sequence), CommitTime(header.committed_at));
    let mark = header.newest_commit.as_ref().and_then(JsonlCommitMark::mark).unwrap_or_default();
    let checksum = header.checksum.as_deref().map(str::parse).transpose();
    let checksum = checksum.map_err(|error: ChecksumError| StoreError::damaged(path, 0, error.to_string()))?;
    let head = Head { sequence, position, committed_at, mark, checksum };
    Ok(OpenSnapshot::jsonl(header, head, JsonlRowReader { lines, schema: Arc::new(schema) }))
}

impl JsonlHeader {
    pub(super) fn definition(&self) -> RowDefinition {
        RowDefinition { is_whole: self.is_whole, source: self.definition.clone(), pipeline: self.pipeline.clone() }
    }
}

/// The rows of a file whose first line has been read.
pub(super) struct JsonlRowReader {
    lines: JsonlLineReader,
    schema: Arc<Schema>,
}

impl JsonlRowReader {
    /// Writes the rows as frames to a temporary file.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged, or when the temporary file cannot be written.
    pub(super) fn into_base(mut self, head: Head, folder: &Path) -> Result<Base, SnapshotError> {
        let mut writer = BaseWriter::new(folder)?;
        while let Some(line) = self.lines.next()? {
            let cells = serde_json::from_slice::<JsonlCellsLine<'_>>(&line).ok();
            let cells = cells.and_then(|line| BASE64_STANDARD.decode(line.cells.as_bytes()).ok());
            let row = cells.as_ref().map(|cells| TupleRef::parse(cells, self.schema.columns().len()));
            let Some(Ok(row)) = row else {
                return Err(StoreError::damaged(&self.lines.kept.path, self.lines.at, "a line is not a row").into());
            };
            writer.push(row)?;
        }
        Ok(writer.finish(head, self.schema)?)
    }
}

/// The lines before the last one, verified.
struct JsonlLineReader {
    file: File,
    kept: FileChecksums,
    /// The number of bytes of all of them.
    bytes: u64,
    at: u64,
    read: BytesMut,
    /// The number of bytes of `read` that contain no end of a line.
    searched: usize,
}

impl JsonlLineReader {
    fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            if let Some(end) = self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(line.freeze()));
            }
            self.searched = self.read.len();
            let length = (self.bytes - self.at).min(SUMMED_BYTES as u64);
            if length == 0 {
                return match self.read.is_empty() {
                    true => Ok(None),
                    false => Err(StoreError::damaged(&self.kept.path, self.at, "its last row is not complete")),
                };
            }
            let read = self.kept.read(&self.file, self.bytes, self.at, usize::try_from(length).unwrap_or(SUMMED_BYTES));
            self.read.extend_from_slice(&read.map_err(read_error(&self.kept.path))?);
            self.at += length;
        }
    }
}

/// The number of bytes at the end in which the last line is first searched, and the maximum. The
/// maximum suffices for the checksums of a petabyte.
const TAIL_BYTES: u64 = 64 << 10;
const TAIL_BYTES_MAX: u64 = 64 << 20;

/// Returns the offset and the contents of the last line. Returns `None` if there is no such line.
fn last_line(file: &File) -> io::Result<Option<(u64, Vec<u8>)>> {
    let length = file.metadata()?.len();
    let mut taken = TAIL_BYTES;
    loop {
        let from = length.saturating_sub(taken);
        let mut tail = vec![0; usize::try_from(length - from).map_err(io::Error::other)?];
        file.read_exact_at(&mut tail, from)?;
        if tail.pop() != Some(b'\n') {
            return Ok(None);
        }
        if let Some(before) = tail.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some((from + before as u64 + 1, tail.split_off(before + 1))));
        }
        if from == 0 || taken >= TAIL_BYTES_MAX {
            return Ok(None);
        }
        taken *= 16;
    }
}
