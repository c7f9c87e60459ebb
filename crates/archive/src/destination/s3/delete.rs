//! The deletion of objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::S3Destination;
use super::error_response::{S3ErrorResponse, S3Operation};
use crate::destination::DestinationError;

/// The number of concurrent requests if each one deletes one object.
const AT_ONCE: usize = 16;

/// The deletion of a store's objects, together or one by one.
#[derive(Clone)]
pub(super) struct ObjectDeleter {
    /// A client of the same store that deletes objects one by one.
    single: AmazonS3,
    /// True once the store has refused the request that deletes many objects.
    deletes_singly: Arc<AtomicBool>,
}

impl ObjectDeleter {
    /// Creates a deleter for the store of a builder.
    pub(super) fn new(builder: AmazonS3Builder) -> object_store::Result<ObjectDeleter> {
        let single = builder.with_disable_bulk_delete(true).build()?;
        Ok(ObjectDeleter { single, deletes_singly: Arc::default() })
    }

    /// Deletes objects with one request for up to a thousand. If the store does not support this
    /// request, or if it fails, the objects are deleted one by one, so that each error names its
    /// object.
    pub(super) async fn delete_all(&self, at: &S3Destination, objects: &[String]) -> Result<(), DestinationError> {
        let paths = objects.iter().map(|object| at.path(object)).collect::<Result<Vec<Path>, _>>()?;
        if paths.len() > 1 && !self.deletes_singly.load(Ordering::Relaxed) {
            let all = stream::iter(paths.clone().into_iter().map(Ok)).boxed();
            match at.store.delete_stream(all).try_collect::<Vec<Path>>().await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::debug!(
                        event = "objects_not_deleted_together", at = %at.name, %error,
                        "objects could not be deleted together"
                    );
                    if S3ErrorResponse::of(&error).is_some_and(S3ErrorResponse::is_no_such_request) {
                        self.deletes_singly.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
        let mut singles = Vec::with_capacity(paths.len());
        for (path, object) in paths.into_iter().zip(objects) {
            singles.push(self.delete_one(at, path, object).boxed());
        }
        stream::iter(singles).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn delete_one(&self, at: &S3Destination, path: Path, object: &str) -> Result<(), DestinationError> {
        match self.single.delete(&path).await.map_err(at.failed(S3Operation::Delete, object)) {
            Err(DestinationError::Missing { .. }) => Ok(()),
            deleted => deleted,
        }
    }
}
