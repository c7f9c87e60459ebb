//! An archive in an S3 bucket.

mod address;
#[cfg(feature = "writer")]
mod delete;
#[cfg_attr(not(feature = "writer"), expect(dead_code, reason = "readers send no other requests"))]
mod error_response;
#[cfg(feature = "writer")]
mod multipart;
mod object_body;
#[cfg(feature = "writer")]
mod probe;
mod service;
#[cfg(feature = "writer")]
mod write;

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, RetryConfig};

use self::error_response::S3Operation;
use super::{
    DestinationError, DestinationReader, ManifestTag, S3Encryption, S3Options, VersionedManifest, check_key_prefix,
};
use crate::aws::AwsCredentials;
use crate::layout::{MANIFEST_BYTES_MAX, MANIFEST_NAME};

/// An archive in a bucket.
///
/// The store must honor `If-None-Match: *` and `If-Match`, as Amazon's does, because they keep two
/// writers apart. Parts of an interrupted upload stay until the bucket's lifecycle rule for
/// incomplete uploads removes them.
#[derive(Clone)]
pub struct S3Destination {
    store: AmazonS3,
    #[cfg(feature = "writer")]
    deleter: delete::ObjectDeleter,
    bucket: Arc<str>,
    prefix: Arc<str>,
    name: Arc<str>,
}

impl S3Destination {
    /// Creates a destination in this bucket. `prefix` is the beginning of every object's key,
    /// without any change. No request is sent yet.
    ///
    /// # Errors
    /// [`DestinationError::Refused`] if the options are invalid, for example if no region is known
    /// or the prefix begins with `/`.
    pub fn new(
        bucket: &str,
        prefix: &str,
        options: &S3Options,
        credentials: &AwsCredentials,
    ) -> Result<S3Destination, DestinationError> {
        let name = format!("s3://{bucket}/{prefix}");
        let refused = |reason: String| DestinationError::Refused { doing: "use", at: name.clone(), reason };
        let region = options.region.as_deref().or(credentials.region());
        let region = region.ok_or_else(|| refused("no region is known: set `region`".to_owned()))?;
        check_key_prefix(prefix).map_err(|error| refused(error.to_string()))?;
        Path::parse(format!("{prefix}{MANIFEST_NAME}")).map_err(|error| refused(error.to_string()))?;
        let address = address::of(bucket, options, region).map_err(&refused)?;
        let builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(region)
            .with_endpoint(address.url)
            .with_virtual_hosted_style_request(address.bucket_in_host)
            .with_credentials(credentials.for_object_store())
            // A bucket with Object Lock refuses objects without a checksum.
            .with_checksum_algorithm(Checksum::SHA256)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_http_connector(service::S3Connector)
            .with_retry(retries());
        let builder = match &options.encryption {
            Some(encryption) => with_encryption(builder, encryption).map_err(|error| refused(error.to_string()))?,
            None => builder,
        };
        Ok(S3Destination {
            #[cfg(feature = "writer")]
            deleter: delete::ObjectDeleter::new(builder.clone()).map_err(|error| refused(error.to_string()))?,
            store: builder.build().map_err(|error| refused(error.to_string()))?,
            bucket: bucket.into(),
            prefix: prefix.into(),
            name: name.into(),
        })
    }

    fn path(&self, object: &str) -> Result<Path, DestinationError> {
        Path::parse(format!("{}{object}", self.prefix)).map_err(|error| DestinationError::Refused {
            doing: "use",
            at: self.uri(object),
            reason: error.to_string(),
        })
    }

    fn failed(&self, doing: S3Operation, object: &str) -> impl Fn(object_store::Error) -> DestinationError {
        let (at, bucket, prefix) = (self.uri(object), self.bucket.clone(), self.prefix.clone());
        move |error| error_response::to_destination_error(&error, doing, &at, &bucket, &prefix)
    }

    async fn read_manifest(&self) -> Result<Option<VersionedManifest>, DestinationError> {
        let failed = self.failed(S3Operation::Read, MANIFEST_NAME);
        let found = match self.store.get(&self.path(MANIFEST_NAME)?).await.map_err(&failed) {
            Err(DestinationError::Missing { .. }) => return Ok(None),
            found => found?,
        };
        let tag = found.meta.e_tag.clone();
        let tag = tag.ok_or_else(|| self.no_tag())?;
        if found.meta.size > MANIFEST_BYTES_MAX {
            return Err(super::large_manifest(self.uri(MANIFEST_NAME)));
        }
        let bytes = found.bytes().await.map_err(failed)?.into();
        Ok(Some(VersionedManifest { bytes, tag: ManifestTag(tag) }))
    }

    fn no_tag(&self) -> DestinationError {
        let reason = "the store returns no ETag, without which two writers cannot be kept apart".to_owned();
        DestinationError::Refused { doing: "use", at: self.uri(MANIFEST_NAME), reason }
    }
}

/// Returns the builder of a store that encrypts each object.
fn with_encryption(builder: AmazonS3Builder, encryption: &S3Encryption) -> object_store::Result<AmazonS3Builder> {
    let builder = builder.with_config("aws_server_side_encryption".parse()?, encryption.name());
    match encryption.key_id() {
        Some(key) => Ok(builder.with_config("aws_sse_kms_key_id".parse()?, key)),
        None => Ok(builder),
    }
}

/// Returns a policy with few and quick retries. The writer retries by itself, and reports the error
/// meanwhile.
fn retries() -> RetryConfig {
    let (first, last) = (Duration::from_millis(200), Duration::from_secs(2));
    let backoff = BackoffConfig { init_backoff: first, max_backoff: last, base: 2.0 };
    RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(30) }
}

impl fmt::Debug for S3Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3").field(&self.name).finish()
    }
}

impl DestinationReader for S3Destination {
    fn name(&self) -> &str {
        &self.name
    }

    fn uri(&self, object: &str) -> String {
        format!("{}{object}", self.name)
    }

    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>> {
        self.read_manifest().boxed()
    }

    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>> {
        async move {
            let found = self.store.get_opts(&self.path(object)?, GetOptions::default()).await;
            let found = found.map_err(self.failed(S3Operation::Read, object))?;
            Ok(Box::new(object_body::ObjectBody::new(found)) as Box<dyn Read + Send>)
        }
        .boxed()
    }
}
