//! Bases: immutable runs of all rows at a position. New clients receive a base first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use laredo_core::{Checksum, CommitTime, Lsn, Schema, Sequence, TupleRef};
use laredo_proto::batch::{BatchBuilder, BatchEntries, BatchError, BatchHeader, EntryAction};

use crate::descriptors::with_reserve;
use crate::head::{Head, InstanceId};
use crate::segment::frames;
use crate::spool::temporary_file;
use crate::store::{BaseFooter, JournalFolder, RowDefinition, StoreError};

mod merge;
mod stored_base;
#[cfg(test)]
mod tests;

pub(crate) use merge::merge;
pub(crate) use stored_base::{BaseLocation, FileChecksums};
use stored_base::{BaseTarget, read_footer};

/// The number of bytes read or written at once.
const CHUNK_BYTES: usize = 1024 * 1024;

/// All rows at a position, as frames in a file. Without a store, the file has no name and is
/// removed when its last reader closes it.
#[derive(Debug)]
pub struct Base {
    /// The head of the journal whose rows these are. Clients compare the rows with its checksum.
    head: Head,
    schema: Arc<Schema>,
    rows: u64,
    bytes: u64,
    /// `None` once the journal has let go of its rows.
    file: Option<File>,
    /// The path and checksums of the file, if it has a name.
    kept: Option<FileChecksums>,
}

/// An error of making a base.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// An I/O error of a temporary file.
    #[error("writing a base snapshot: {0}")]
    Io(#[from] io::Error),
    /// An invalid entry in the journal or in the older base.
    #[error("reading the inputs of a base snapshot: {0}")]
    Batch(#[from] BatchError),
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An invalid schema in the journal.
    #[error("reading the inputs of a base snapshot: {0}")]
    Schema(#[from] laredo_proto::schema::SchemaError),
    /// A journal that changes the key of a table with rows. Laredo never writes such a journal.
    #[error("the journal changes the key of a table that has rows; reload the table, and report this")]
    KeyChanged,
}

impl Base {
    /// Opens a base by its path, and returns it with its footer. The rows are verified when they
    /// are read.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub(crate) fn open(path: &Path) -> Result<(Base, BaseFooter), StoreError> {
        let file = with_reserve(|| File::open(path));
        let file = file.map_err(|error| StoreError::Io { what: "reading", path: path.to_owned(), error })?;
        let mut footer = read_footer(&file, path)?;
        let damaged = |what: String| StoreError::damaged(path, footer.bytes, what);
        let head = footer.head().map_err(|error| damaged(error.to_string()))?;
        let schema = laredo_proto::schema::from_wire(footer.schema.take().unwrap_or_default());
        let schema = Arc::new(schema.map_err(|error| damaged(error.to_string()))?);
        let kept = FileChecksums { path: path.to_owned(), checksums: std::mem::take(&mut footer.checksums) };
        let (rows, bytes) = (footer.rows, footer.bytes);
        Ok((Base { head, schema, rows, bytes, file: Some(file), kept: Some(kept) }, footer))
    }

    /// Returns the last journal entry that the base covers.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.head.sequence
    }

    /// Returns the position of the base: the end of the last commit in it.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.head.position
    }

    /// Returns the time of that commit.
    #[must_use]
    pub fn committed_at(&self) -> CommitTime {
        self.head.committed_at
    }

    /// Returns the checksum of the rows; `None` if it is unknown.
    #[must_use]
    pub fn checksum(&self) -> Option<Checksum> {
        self.head.checksum
    }

    /// Returns the state of the base as the head of a journal.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Returns the schema of the rows.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the number of bytes of the frames.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the name of the base as a snapshot of one journal.
    #[must_use]
    pub fn snapshot_id(&self, instance: &InstanceId) -> String {
        instance.snapshot_id(self.head.sequence)
    }

    /// Reads up to a megabyte of frames from `at` on. Returns no bytes at the end.
    ///
    /// The result need not begin or end with a frame. Consecutive results together are all frames.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, at: u64) -> io::Result<Bytes> {
        let length = usize::try_from((self.bytes.saturating_sub(at)).min(CHUNK_BYTES as u64)).unwrap_or(CHUNK_BYTES);
        self.read_range(at, length)
    }

    /// Reads bytes. Verifies their checksum if the file has checksums.
    fn read_range(&self, at: u64, length: usize) -> io::Result<Bytes> {
        if let Some(kept) = &self.kept {
            return kept.read(self.file()?, self.bytes, at, length);
        }
        let mut bytes = BytesMut::zeroed(length);
        self.file()?.read_exact_at(&mut bytes, at)?;
        Ok(bytes.freeze())
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the base's journal is closed"))
    }

    /// Returns a base at the same position whose rows cannot be read. It holds no file.
    #[must_use]
    pub fn without_rows(&self) -> Base {
        let Base { head, rows, bytes, .. } = *self;
        Base { head, schema: self.schema.clone(), rows, bytes, file: None, kept: None }
    }

    /// Reads one whole frame at `at`, without decoding its entries. Returns no bytes at the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_frame(&self, at: u64) -> io::Result<Bytes> {
        let mut prefix = [0; laredo_proto::frame::PREFIX_LENGTH];
        if at >= self.bytes {
            return Ok(Bytes::new());
        }
        self.file()?.read_exact_at(&mut prefix, at)?;
        let length = prefix.len() + laredo_proto::frame::length(&prefix).unwrap_or(0);
        let left = usize::try_from(self.bytes - at).unwrap_or(usize::MAX);
        self.read_range(at, length.min(left))
    }

    /// Calls `each` with every row.
    ///
    /// # Errors
    /// When the file cannot be read, or the first error of `each`.
    pub fn for_each_row<E: From<BaseError>>(
        &self,
        mut each: impl FnMut(TupleRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, mut read) = (0, BytesMut::new());
        loop {
            let length = laredo_proto::frame::length(&read).map(|length| length + laredo_proto::frame::PREFIX_LENGTH);
            let Some(length) = length.filter(|length| *length <= read.len()) else {
                let more = self.read(at).map_err(BaseError::Io)?;
                if more.is_empty() {
                    return Ok(());
                }
                at += more.len() as u64;
                read.extend_from_slice(&more);
                continue;
            };
            let Some(frame) = frames(read.split_to(length).freeze()).next() else {
                return Ok(());
            };
            for entry in BatchEntries::new(&frame.batch.entries, &self.schema) {
                each(entry.map_err(BaseError::Batch)?.row)?;
            }
        }
    }
}

/// A writer of a base, row by row.
#[derive(Debug)]
pub struct BaseWriter {
    batch: BatchBuilder,
    buffer: Vec<u8>,
    target: BaseTarget,
    rows: u64,
    bytes: u64,
}

impl BaseWriter {
    /// Begins a base in a temporary file in `folder`.
    ///
    /// # Errors
    /// When no file can be created there.
    pub fn new(folder: &Path) -> Result<BaseWriter, BaseError> {
        Ok(BaseWriter::to(BaseTarget::Unnamed(temporary_file(folder)?)))
    }

    fn to(target: BaseTarget) -> BaseWriter {
        BaseWriter { batch: BatchBuilder::default(), buffer: Vec::new(), target, rows: 0, bytes: 0 }
    }

    /// Begins a base in a store. Once it is complete and on disk, it gets its name and replaces all
    /// others.
    pub(crate) fn kept(
        store: Arc<JournalFolder>,
        instance: InstanceId,
        definition: RowDefinition,
    ) -> Result<BaseWriter, BaseError> {
        Ok(BaseWriter::to(BaseTarget::kept(store, instance, definition)?))
    }

    /// Sets the definition of the rows, if it is known only after they were copied.
    pub(crate) fn define(&mut self, definition: RowDefinition) {
        self.target.define(definition);
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, row: TupleRef<'_>) -> Result<(), BaseError> {
        self.batch.push(EntryAction::Insert, row);
        self.rows += 1;
        if self.batch.is_full() {
            self.batch.finish(&BatchHeader::default(), &mut self.buffer);
            if self.buffer.len() >= CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Completes the base, whose rows are the state at `head`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self, head: Head, schema: Arc<Schema>) -> Result<Base, BaseError> {
        if self.batch.count() > 0 {
            self.batch.finish(&BatchHeader::default(), &mut self.buffer);
        }
        self.flush()?;
        let BaseWriter { target, rows, bytes, .. } = self;
        let (file, kept) = target.finish(head, &schema, rows, bytes)?;
        Ok(Base { head, schema, rows, bytes, file: Some(file), kept })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.write(&self.buffer)?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
