//! The upload of objects that are too large for one request.

use std::io::{self, SeekFrom};
use std::path::Path as File;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::PutPayload;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::S3Destination;
use super::error_response::S3Operation;
use super::write::compare;
use crate::destination::{DestinationError, StagedArtifact};

/// The size of a part in bytes. Only objects of more than 78 GiB have larger parts.
const PART_BYTES: u64 = 8 << 20;
/// The maximum number of parts in S3.
const PARTS_MAX: u64 = 10_000;
/// The number of parts that are in memory and uploaded at a time.
const AT_ONCE: usize = 2;

/// Creates an object in parts.
pub(super) async fn create_in_parts(
    to: &S3Destination,
    object: &str,
    path: &Path,
    staged: &StagedArtifact,
) -> Result<(), DestinationError> {
    let failed = to.failed(S3Operation::Write, object);
    let id = to.store.create_multipart(path).await.map_err(&failed)?;
    let uploaded = match upload(to, object, path, &id, staged).await {
        Err(error) => Err(error),
        Ok(parts) => match to.store.complete_multipart(path, &id, parts).await.map_err(failed) {
            Ok(_) => return Ok(()),
            // The upload may be complete despite the error, and S3 reports an existing object
            // in several ways.
            Err(error) => match compare(to, object, path, staged).await {
                Err(DestinationError::Occupied { at }) => Err(DestinationError::Occupied { at }),
                Err(_) => Err(error),
                Ok(()) => Ok(()),
            },
        },
    };
    // The uploaded parts would otherwise cost money forever.
    if let Err(error) = to.store.abort_multipart(path, &id).await {
        tracing::debug!(
            event = "upload_parts_not_removed", at = object, %error,
            "the parts of a failed upload could not be removed"
        );
    }
    uploaded
}

async fn upload(
    to: &S3Destination,
    object: &str,
    path: &Path,
    id: &String,
    staged: &StagedArtifact,
) -> Result<Vec<PartId>, DestinationError> {
    let failed = to.failed(S3Operation::Write, object);
    let file = staged.path();
    let parts = cut(staged.size_bytes).map(|(index, from, length)| {
        let failed = &failed;
        async move {
            let unreadable = |error: io::Error| DestinationError::Unavailable {
                doing: "read",
                at: file.display().to_string(),
                reason: error.to_string(),
            };
            let part = read(file, from, length).await.map_err(unreadable)?;
            to.store.put_part(path, id, index, PutPayload::from(part)).await.map_err(failed)
        }
    });
    stream::iter(parts).buffered(AT_ONCE).try_collect().await
}

/// Returns the parts of an object of this size: the index, beginning and length of each.
fn cut(size_bytes: u64) -> impl Iterator<Item = (usize, u64, usize)> {
    let part = PART_BYTES.max(size_bytes.div_ceil(PARTS_MAX));
    (0..).zip((0..size_bytes).step_by(usize::try_from(part).unwrap_or(usize::MAX))).map(move |(index, from)| {
        let length = part.min(size_bytes - from);
        (index, from, usize::try_from(length).unwrap_or(usize::MAX))
    })
}

async fn read(file: &File, from: u64, length: usize) -> io::Result<Bytes> {
    let mut file = tokio::fs::File::open(file).await?;
    file.seek(SeekFrom::Start(from)).await?;
    let mut part = BytesMut::zeroed(length);
    file.read_exact(&mut part).await?;
    Ok(part.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_an_object_without_a_gap_and_are_not_too_many() {
        for size in [17 << 20, 40 << 20, (40 << 20) + 1, 5 << 40] {
            let mut end = 0;
            for (index, from, length) in cut(size) {
                assert_eq!(from, end);
                assert!(index < 10_000 && length > 0);
                end += length as u64;
            }
            assert_eq!(end, size);
        }
        assert_eq!(cut(40 << 20).count(), 5);
        assert!(cut(40 << 20).all(|(_, _, length)| length == 8 << 20));
    }
}
