//! An immutable run of all rows at a position: what newcomers get first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use laredo_core::{Checksum, CommitMark, CommitTime, Lsn, Schema, Sequence, TupleRef};
use laredo_proto::batch::{Action, BatchBuilder, BatchError, BatchHeader, Entries};

use crate::journal::{self, Head, InstanceId};
use crate::spool::temporary_file;

mod kept;
mod merge;
#[cfg(test)]
mod tests;

use kept::Target;
pub(crate) use kept::{Bases, KeptAs};
pub(crate) use merge::merge;

/// Bytes read or written in one go.
const CHUNK_BYTES: usize = 1024 * 1024;

/// All rows at a position, as frames in a file. Without a store the file has no name, and goes with the last reader.
#[derive(Debug)]
pub struct Base {
    sequence: Sequence,
    position: Lsn,
    committed_at: CommitTime,
    mark: CommitMark,
    /// The checksum of the state that the base was made from, so that clients can compare these rows with that state.
    checksum: Option<Checksum>,
    schema: Arc<Schema>,
    rows: u64,
    bytes: u64,
    file: File,
    /// With a store.
    kept: Option<KeptAs>,
}

/// Why a base could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The temporary file.
    #[error("writing a base snapshot: {0}")]
    Io(#[from] io::Error),
    /// The journal or the older base is not what was written.
    #[error("reading what a base snapshot is made of: {0}")]
    Batch(#[from] BatchError),
    /// The store.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// A schema in the journal is not one.
    #[error("reading what a base snapshot is made of: {0}")]
    Schema(#[from] laredo_proto::schema::SchemaError),
    /// The journal is none that we write.
    #[error("the journal changes the key of a table that has rows; reload the table, and report this")]
    KeyChanged,
}

impl Base {
    /// The last journal entry that it covers.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The commit that it shows.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// When that committed.
    #[must_use]
    pub fn committed_at(&self) -> CommitTime {
        self.committed_at
    }

    /// The checksum of its rows; `None` where the file that it was read from does not have it.
    #[must_use]
    pub fn checksum(&self) -> Option<Checksum> {
        self.checksum
    }

    /// The state that it shows, as a journal's head.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            sequence: self.sequence,
            position: self.position,
            committed_at: self.committed_at,
            mark: self.mark,
            checksum: self.checksum,
        }
    }

    /// The schema of its rows.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes of its frames.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its name in one journal.
    #[must_use]
    pub fn snapshot_id(&self, instance: &InstanceId) -> String {
        instance.snapshot_id(self.sequence)
    }

    /// Up to a megabyte of frames from `at` on, empty at the end. Slices need not begin or end with a frame; one after the
    /// other they are all frames.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self, at: u64) -> io::Result<Bytes> {
        let length = usize::try_from((self.bytes.saturating_sub(at)).min(CHUNK_BYTES as u64)).unwrap_or(CHUNK_BYTES);
        self.read_range(at, length)
    }

    /// Bytes that are what was written: with a store they are checked.
    fn read_range(&self, at: u64, length: usize) -> io::Result<Bytes> {
        if let Some(kept) = &self.kept {
            return kept.read(&self.file, self.bytes, at, length);
        }
        let mut bytes = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes.freeze())
    }

    /// One whole frame (without its entries decoded) from `at` on, empty at the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_frame(&self, at: u64) -> io::Result<Bytes> {
        let mut prefix = [0; laredo_proto::frame::PREFIX_LENGTH];
        if at >= self.bytes {
            return Ok(Bytes::new());
        }
        self.file.read_exact_at(&mut prefix, at)?;
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
            let Some(frame) = journal::frames(read.split_to(length).freeze()).next() else {
                return Ok(());
            };
            for entry in Entries::new(&frame.batch.entries, &self.schema) {
                each(entry.map_err(BaseError::Batch)?.row)?;
            }
        }
    }
}

/// Writes a base row by row.
#[derive(Debug)]
pub struct BaseWriter {
    batch: BatchBuilder,
    buffer: Vec<u8>,
    target: Target,
    rows: u64,
    bytes: u64,
}

impl BaseWriter {
    /// Begins one in `folder`.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn new(folder: &Path) -> Result<BaseWriter, BaseError> {
        Ok(BaseWriter::to(Target::Unnamed(temporary_file(folder)?)))
    }

    fn to(target: Target) -> BaseWriter {
        BaseWriter { batch: BatchBuilder::default(), buffer: Vec::new(), target, rows: 0, bytes: 0 }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, row: TupleRef<'_>) -> Result<(), BaseError> {
        self.batch.push(Action::Insert, row);
        self.rows += 1;
        if self.batch.is_full() {
            self.batch.finish(&BatchHeader::default(), &mut self.buffer);
            if self.buffer.len() >= CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// The base is complete; it shows this state.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self, head: Head, schema: Arc<Schema>) -> Result<Base, BaseError> {
        if self.batch.count() > 0 {
            self.batch.finish(&BatchHeader::default(), &mut self.buffer);
        }
        self.flush()?;
        let Head { sequence, position, committed_at, mark, checksum } = head;
        let BaseWriter { target, rows, bytes, .. } = self;
        let (file, kept) = target.finish(head, &schema, rows, bytes)?;
        Ok(Base { sequence, position, committed_at, mark, checksum, schema, rows, bytes, file, kept })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.write(&self.buffer)?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
