//! The deletion of objects.

use std::sync::atomic::Ordering;

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::S3Destination;
use super::error_response::{S3ErrorResponse, S3Operation};
use crate::destination::DestinationError;

/// The number of concurrent requests if each one deletes one object.
const AT_ONCE: usize = 16;

impl S3Destination {
    /// Deletes objects with one request for up to a thousand. If the store does not support this
    /// request, or if it fails, the objects are deleted one by one, so that each error names its
    /// object.
    pub(super) async fn delete_all(&self, objects: &[String]) -> Result<(), DestinationError> {
        let paths = objects.iter().map(|object| self.path(object)).collect::<Result<Vec<Path>, _>>()?;
        if paths.len() > 1 && !self.deletes_singly.load(Ordering::Relaxed) {
            let all = stream::iter(paths.clone().into_iter().map(Ok)).boxed();
            match self.store.delete_stream(all).try_collect::<Vec<Path>>().await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::debug!(at = %self.name, %error, "objects could not be deleted together");
                    if S3ErrorResponse::of(&error).is_some_and(S3ErrorResponse::is_no_such_request) {
                        self.deletes_singly.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
        let mut singles = Vec::with_capacity(paths.len());
        for (path, object) in paths.into_iter().zip(objects) {
            singles.push(self.delete_one(path, object).boxed());
        }
        stream::iter(singles).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn delete_one(&self, path: Path, object: &str) -> Result<(), DestinationError> {
        match self.single.delete(&path).await.map_err(self.failed(S3Operation::Delete, object)) {
            Err(DestinationError::Missing { .. }) => Ok(()),
            deleted => deleted,
        }
    }
}
