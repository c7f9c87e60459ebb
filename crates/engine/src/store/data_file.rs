//! The places of segments' data in files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use super::error::StoreError;

/// A file with the data of segments: a temporary file without a name, or a file of a store.
#[derive(Debug)]
pub(crate) struct DataFile {
    file: File,
    path: Option<PathBuf>,
    /// The number of bytes that can be read from the file.
    pub(crate) written: AtomicU64,
    /// The number of bytes that an fsync has completed for.
    pub(crate) synced: AtomicU64,
}

/// Frames and old rows in one file, in parts that are read one after another.
#[derive(Clone, Debug)]
pub(crate) struct StoredSegment {
    file: Arc<DataFile>,
    parts: Vec<StoredPart>,
}

/// Frames, directly followed by their old rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredPart {
    pub(crate) at: u64,
    pub(crate) frames: usize,
    pub(crate) olds: usize,
    /// The checksum of both together. Parts in temporary files have none: such a file does not
    /// outlive the process that wrote it.
    pub(crate) checksum: Option<u32>,
}

impl DataFile {
    /// Wraps a temporary file without a name.
    pub(crate) fn temporary(file: File) -> DataFile {
        DataFile { file, path: None, written: AtomicU64::new(u64::MAX), synced: AtomicU64::new(0) }
    }

    /// Wraps a file of a store, of which `written` bytes are on disk.
    pub(crate) fn of_store(file: File, path: PathBuf, written: u64) -> DataFile {
        DataFile { file, path: Some(path), written: AtomicU64::new(written), synced: AtomicU64::new(written) }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    fn read_at(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(length);
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes.freeze())
    }

    /// Reads a part and verifies its checksum.
    fn read_part(&self, part: &StoredPart, checksum: u32) -> io::Result<Bytes> {
        let bytes = self.read_at(part.at, part.frames + part.olds)?;
        if crc32fast::hash(&bytes) != checksum {
            let path = self.path.clone().unwrap_or_default();
            let damaged = StoreError::damaged(&path, part.at, "the checksum of what follows does not fit");
            return Err(io::Error::new(io::ErrorKind::InvalidData, damaged));
        }
        Ok(bytes)
    }
}

impl StoredSegment {
    pub(crate) fn new(file: Arc<DataFile>, part: StoredPart) -> StoredSegment {
        StoredSegment { file, parts: vec![part] }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.frames + part.olds).sum()
    }

    pub(crate) fn frames_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.frames).sum()
    }

    /// Returns true if the data can be read from the file already.
    pub(crate) fn is_written(&self) -> bool {
        let end = self.parts.last().map_or(0, |part| part.at + (part.frames + part.olds) as u64);
        end <= self.file.written.load(Ordering::Acquire)
    }

    pub(crate) fn is_followed_by(&self, next: &StoredSegment) -> bool {
        Arc::ptr_eq(&self.file, &next.file)
    }

    /// Adds the parts of `next`, which must be in the same file.
    pub(crate) fn extend(&mut self, next: &StoredSegment) {
        self.parts.extend_from_slice(&next.parts);
    }

    pub(crate) fn read_frames(&self) -> io::Result<Bytes> {
        match self.parts.as_slice() {
            [StoredPart { at, frames, checksum: None, .. }] => self.file.read_at(*at, *frames),
            _ => self.read(0, 0).map(|(frames, _)| frames),
        }
    }

    pub(crate) fn read(&self, frames_at: usize, olds_at: usize) -> io::Result<(Bytes, Bytes)> {
        if let [StoredPart { at, frames, olds, checksum: None }] = self.parts.as_slice() {
            let frames_bytes = self.file.read_at(at + frames_at as u64, frames - frames_at)?;
            let olds_bytes = self.file.read_at(at + (frames + olds_at) as u64, olds - olds_at)?;
            return Ok((frames_bytes, olds_bytes));
        }
        // A checksum covers a whole part, so whole parts are read.
        let mut frames = BytesMut::with_capacity(self.frames_bytes());
        let mut olds = BytesMut::with_capacity(self.bytes() - self.frames_bytes());
        for part in &self.parts {
            let mut bytes = self.file.read_part(part, part.checksum.unwrap_or_default())?;
            frames.put(bytes.split_to(part.frames));
            olds.put(bytes);
        }
        Ok((frames.freeze().slice(frames_at..), olds.freeze().slice(olds_at..)))
    }
}
