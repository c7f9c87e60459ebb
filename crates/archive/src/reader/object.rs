//! A single object, read to its end and compared with the manifest's entry.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use laredo_core::Schema;
use ring::digest::{Context, SHA256};

use super::{Archive, ArchiveReadError};
use crate::format::{ArtifactReader, FormatError};
use crate::layout::{ArtifactFormat, ArtifactKind};
use crate::manifest::{Artifact, ArtifactObject};
use laredo_values::hex;

/// The number of bytes read so far. Clones share the counter.
#[derive(Clone, Debug, Default)]
pub struct ReadProgress(Arc<AtomicU64>);

impl ReadProgress {
    /// Returns the number of bytes read, as the objects are stored.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The entries of an object.
pub(super) type ObjectEntries<'a> = ArtifactReader<&'a mut HashedObjectInput>;

/// The input of an object, with its hash and its number of bytes.
pub(super) struct HashedObjectInput {
    input: Box<dyn Read + Send>,
    sum: Context,
    bytes: u64,
    /// The number of bytes after which the input is too long, and is not read further.
    bytes_max: u64,
    progress: ReadProgress,
}

impl Read for HashedObjectInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.bytes_max.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let read = self.input.read(buffer.get_mut(..length).unwrap_or_default())?;
        self.sum.update(buffer.get(..read).unwrap_or_default());
        self.bytes += read as u64;
        self.progress.0.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Reads an artifact in one of its formats, on a thread that may block. `take` consumes the
/// entries, and returns its result and their number.
///
/// # Errors
/// If the object is missing, has another size, was altered or cannot be parsed. Each error names
/// the object.
pub(super) async fn read_object<T: Send + 'static>(
    archive: &Archive,
    artifact: &Artifact,
    format: ArtifactFormat,
    schema: Arc<Schema>,
    progress: &ReadProgress,
    take: impl FnOnce(&mut ObjectEntries<'_>) -> Result<(T, u64), FormatError> + Send + 'static,
) -> Result<T, ArchiveReadError> {
    let no_name = || {
        let uri = artifact.formats.get(format.id()).map(|stored| stored.uri.clone()).unwrap_or_default();
        ArchiveReadError::Outside { at: archive.manifest_uri(), uri }
    };
    let object = artifact.object(format).ok_or_else(no_name)?;
    let at = archive.destination.uri(&object);
    let stored = artifact.formats.get(format.id()).cloned().unwrap_or(ArtifactObject {
        uri: at.clone(),
        size_bytes: 0,
        sha256: None,
        unpacked_bytes: None,
    });
    // A count of 0 may mean that another writer left it out, so it is not checked then.
    let expected = match artifact.kind {
        ArtifactKind::Snapshot => artifact.row_count,
        ArtifactKind::Diff => artifact.change_count,
    };
    let is_counted = stored.sha256.is_some() || expected > 0;
    let input = archive.destination.open(&object).await?;
    // One more byte shows that the object is too long.
    let bytes_max = stored.size_bytes.saturating_add(1);
    let sum = Context::new(&SHA256);
    let summed = HashedObjectInput { input, sum, bytes: 0, bytes_max, progress: progress.clone() };
    let broken_off =
        |error: tokio::task::JoinError| ArchiveReadError::BrokenOff { at: at.clone(), reason: error.to_string() };
    let ended = {
        let at = at.clone();
        tokio::task::spawn_blocking(move || checked(summed, format, schema, &at, &stored, take))
    };
    let (taken, found) = ended.await.map_err(broken_off)??;
    if is_counted && found != expected {
        return Err(ArchiveReadError::Count { at, expected, found });
    }
    Ok(taken)
}

fn checked<T>(
    mut summed: HashedObjectInput,
    format: ArtifactFormat,
    schema: Arc<Schema>,
    at: &str,
    stored: &ArtifactObject,
    take: impl FnOnce(&mut ObjectEntries<'_>) -> Result<(T, u64), FormatError>,
) -> Result<(T, u64), ArchiveReadError> {
    let read = || {
        let entries = ArtifactReader::new(format, schema, &mut summed)?;
        let mut entries = entries.with_unpacked_bytes(stored.unpacked_bytes);
        Ok((take(&mut entries)?, entries.unpacked_bytes()))
    };
    let read: Result<_, FormatError> = read();
    // The rest is read in any case: altered bytes explain every other error.
    io::copy(&mut summed, &mut io::sink())
        .map_err(|error| ArchiveReadError::BrokenOff { at: at.to_owned(), reason: error.to_string() })?;
    let HashedObjectInput { sum, bytes, .. } = summed;
    if bytes != stored.size_bytes {
        return Err(ArchiveReadError::Size { at: at.to_owned(), expected: stored.size_bytes, found: bytes });
    }
    if stored.sha256.as_ref().is_some_and(|expected| *expected != hex(sum.finish().as_ref())) {
        return Err(ArchiveReadError::Altered { at: at.to_owned() });
    }
    let (taken, unpacked) =
        read.map_err(|error| ArchiveReadError::Entry { at: at.to_owned(), error: Box::new(error) })?;
    let found = unpacked.unwrap_or(bytes);
    match stored.unpacked_bytes {
        Some(expected) if expected != found => Err(ArchiveReadError::Unpacked { at: at.to_owned(), expected, found }),
        Some(_) | None => Ok(taken),
    }
}
