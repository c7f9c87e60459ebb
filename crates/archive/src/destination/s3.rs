//! An archive in an S3 bucket.

mod address;
mod delete;
mod error_response;
mod multipart;
mod object_body;
mod probe;
mod service;

use std::fmt;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig, UpdateVersion,
};
use ring::digest::{Context, SHA256};

use self::error_response::{S3ErrorResponse, S3Operation};
use super::staging::hex;
use super::{Destination, DestinationError, ListedObject, ManifestTag, StagedArtifact, VersionedManifest};
use crate::aws::AwsCredentials;
use crate::layout::MANIFEST;

/// The maximum size in bytes of an object that is sent in one request. Larger objects are sent in
/// parts.
const SINGLE_BYTES_MAX: u64 = 16 << 20;

/// The location of an archive in S3 or in a compatible store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Options {
    /// The bucket's name.
    pub bucket: String,
    /// The beginning of every object's key, without any change: the destination's prefix and the
    /// table's.
    pub prefix: String,
    /// The bucket's region; that of the credentials if `None`.
    pub region: Option<String>,
    /// The URL (`https://…`) of a store other than Amazon's.
    pub endpoint: Option<String>,
    /// True if the bucket is named in the path instead of the host.
    pub force_path_style: bool,
    /// The encryption of objects; that of the bucket if `None`.
    pub encryption: Option<S3Encryption>,
}

/// The encryption of objects by a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum S3Encryption {
    /// Encryption with keys of the store (SSE-S3).
    Store,
    /// Encryption with a key of the key management service (SSE-KMS): the key's ID or ARN, or the
    /// account's default key if `None`.
    Kms(Option<String>),
    /// Encryption in two layers with such a key (DSSE-KMS).
    KmsTwice(Option<String>),
}

impl S3Encryption {
    /// The names that S3 uses for the kinds of encryption.
    pub const NAMES: [&str; 3] = ["AES256", "aws:kms", "aws:kms:dsse"];

    /// Returns the name that S3 uses for this kind.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let [store, kms, twice] = S3Encryption::NAMES;
        match self {
            S3Encryption::Store => store,
            S3Encryption::Kms(_) => kms,
            S3Encryption::KmsTwice(_) => twice,
        }
    }

    /// Returns the ID or ARN of the key, if one is given.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        match self {
            S3Encryption::Store => None,
            S3Encryption::Kms(key) | S3Encryption::KmsTwice(key) => key.as_deref(),
        }
    }

    fn applied(&self, builder: AmazonS3Builder) -> object_store::Result<AmazonS3Builder> {
        let builder = builder.with_config("aws_server_side_encryption".parse()?, self.name());
        match self.key_id() {
            Some(key) => Ok(builder.with_config("aws_sse_kms_key_id".parse()?, key)),
            None => Ok(builder),
        }
    }
}

/// An archive in a bucket.
///
/// The store must honor `If-None-Match: *` and `If-Match`, as Amazon's does, because they keep two
/// writers apart. Parts of an interrupted upload stay until the bucket's lifecycle rule for
/// incomplete uploads removes them.
#[derive(Clone)]
pub struct S3Destination {
    store: AmazonS3,
    /// A client of the same store that deletes objects one by one.
    single: AmazonS3,
    /// True once the store has refused the request that deletes many objects.
    deletes_singly: Arc<AtomicBool>,
    bucket: Arc<str>,
    prefix: Arc<str>,
    name: Arc<str>,
}

impl S3Destination {
    /// Creates a destination in this bucket. No request is sent yet.
    ///
    /// # Errors
    /// [`DestinationError::Refused`] if the options are invalid, for example if no region is known
    /// or the prefix begins with `/`.
    pub fn new(options: &S3Options, credentials: &AwsCredentials) -> Result<S3Destination, DestinationError> {
        let name = format!("s3://{}/{}", options.bucket, options.prefix);
        let refused = |reason: String| DestinationError::Refused { doing: "use", at: name.clone(), reason };
        let region = options.region.as_deref().or(credentials.region());
        let region = region.ok_or_else(|| refused("no region is known: set `region`".to_owned()))?;
        let key = Path::parse(format!("{}{MANIFEST}", options.prefix));
        if key.is_err() || options.prefix.starts_with('/') {
            let reason = "its prefix must not begin with `/`, nor have `//`, `.` or `..` in it".to_owned();
            return Err(refused(reason));
        }
        let address = address::of(options, region).map_err(&refused)?;
        let builder = AmazonS3Builder::new()
            .with_bucket_name(&options.bucket)
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
            Some(encryption) => encryption.applied(builder).map_err(|error| refused(error.to_string()))?,
            None => builder,
        };
        let single = builder.clone().with_disable_bulk_delete(true);
        let single = single.build().map_err(|error| refused(error.to_string()))?;
        let store = builder.build().map_err(|error| refused(error.to_string()))?;
        let (bucket, prefix) = (options.bucket.as_str().into(), options.prefix.as_str().into());
        Ok(S3Destination { store, single, deletes_singly: Arc::default(), bucket, prefix, name: name.into() })
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

    async fn create(&self, object: &str, staged: &StagedArtifact) -> Result<(), DestinationError> {
        let path = self.path(object)?;
        if staged.size_bytes > SINGLE_BYTES_MAX {
            return self.create_in_parts(object, &path, staged).await;
        }
        let unreadable = |error: std::io::Error| DestinationError::Unavailable {
            doing: "read",
            at: staged.path().display().to_string(),
            reason: error.to_string(),
        };
        let bytes = tokio::fs::read(staged.path()).await.map_err(unreadable)?;
        match self.store.put_opts(&path, PutPayload::from(bytes), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(error) if S3ErrorResponse::of(&error).is_some_and(S3ErrorResponse::is_unmet) => {
                self.compare(object, &path, staged).await
            }
            Err(error) => Err(self.failed(S3Operation::Write, object)(error)),
        }
    }

    /// Checks that the existing object has the bytes that were to be written.
    async fn compare(&self, object: &str, path: &Path, staged: &StagedArtifact) -> Result<(), DestinationError> {
        let failed = self.failed(S3Operation::Read, object);
        let found = self.store.get(path).await.map_err(&failed)?;
        let occupied = || DestinationError::Occupied { at: self.uri(object) };
        if found.meta.size != staged.size_bytes {
            return Err(occupied());
        }
        let (mut stream, mut sum) = (found.into_stream(), Context::new(&SHA256));
        while let Some(bytes) = stream.try_next().await.map_err(&failed)? {
            sum.update(&bytes);
        }
        if hex(sum.finish().as_ref()) == staged.sha256 { Ok(()) } else { Err(occupied()) }
    }

    async fn read_manifest(&self) -> Result<Option<VersionedManifest>, DestinationError> {
        let failed = self.failed(S3Operation::Read, MANIFEST);
        let found = match self.store.get(&self.path(MANIFEST)?).await.map_err(&failed) {
            Err(DestinationError::Missing { .. }) => return Ok(None),
            found => found?,
        };
        let tag = found.meta.e_tag.clone();
        let tag = tag.ok_or_else(|| self.no_tag())?;
        let bytes = found.bytes().await.map_err(failed)?.into();
        Ok(Some(VersionedManifest { bytes, tag: ManifestTag(tag) }))
    }

    async fn replace(&self, manifest: &[u8], over: Option<&ManifestTag>) -> Result<ManifestTag, DestinationError> {
        let mode = match over {
            None => PutMode::Create,
            Some(tag) => PutMode::Update(UpdateVersion { e_tag: Some(tag.0.clone()), version: None }),
        };
        let attributes = Attributes::from_iter([(Attribute::ContentType, "application/json")]);
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        match self.store.put_opts(&self.path(MANIFEST)?, PutPayload::from(manifest.to_vec()), options).await {
            Ok(put) => put.e_tag.map(ManifestTag).ok_or_else(|| self.no_tag()),
            // An earlier try may have taken effect although its response was lost. Then the
            // manifest is already this one.
            Err(error)
                if S3ErrorResponse::of(&error).is_some_and(|answer| answer.is_unmet() || answer.is_no_object()) =>
            {
                match self.read_manifest().await? {
                    Some(there) if there.bytes == manifest => Ok(there.tag),
                    _ => Err(DestinationError::Moved { at: self.uri(MANIFEST) }),
                }
            }
            Err(error) => Err(self.failed(S3Operation::Write, MANIFEST)(error)),
        }
    }

    fn no_tag(&self) -> DestinationError {
        let reason = "the store names no ETag, without which two writers cannot be kept apart".to_owned();
        DestinationError::Refused { doing: "use", at: self.uri(MANIFEST), reason }
    }

    async fn list_all(&self) -> Result<Vec<ListedObject>, DestinationError> {
        let (prefix, mut found, mut page) = (format!("{}epoch=", self.prefix), Vec::new(), None);
        loop {
            let options = PaginatedListOptions { page_token: page, ..PaginatedListOptions::default() };
            let listed = self.store.list_paginated(Some(&prefix), options).await;
            let listed = listed.map_err(self.failed(S3Operation::List, "epoch="))?;
            for object in listed.result.objects {
                let name = object.location.as_ref().strip_prefix(&*self.prefix).unwrap_or_default();
                // A name without `/` is a placeholder for a folder, made by another tool.
                if name.contains('/') {
                    let modified = SystemTime::from(object.last_modified);
                    found.push(ListedObject { object: name.to_owned(), size_bytes: object.size, modified });
                }
            }
            page = listed.page_token;
            if page.is_none() {
                return Ok(found);
            }
        }
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

impl Destination for S3Destination {
    fn name(&self) -> &str {
        &self.name
    }

    fn uri(&self, object: &str) -> String {
        format!("{}{object}", self.name)
    }

    fn put<'a>(&'a self, object: &'a str, staged: &'a StagedArtifact) -> BoxFuture<'a, Result<(), DestinationError>> {
        self.create(object, staged).boxed()
    }

    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>> {
        self.read_manifest().boxed()
    }

    fn publish<'a>(
        &'a self,
        manifest: &'a [u8],
        over: Option<&'a ManifestTag>,
    ) -> BoxFuture<'a, Result<ManifestTag, DestinationError>> {
        self.replace(manifest, over).boxed()
    }

    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>> {
        async move {
            let found = self.store.get_opts(&self.path(object)?, GetOptions::default()).await;
            let found = found.map_err(self.failed(S3Operation::Read, object))?;
            Ok(Box::new(object_body::ObjectBody::new(found)) as Box<dyn Read + Send>)
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedObject>, DestinationError>> {
        self.list_all().boxed()
    }

    fn delete<'a>(&'a self, objects: &'a [String]) -> BoxFuture<'a, Result<(), DestinationError>> {
        self.delete_all(objects).boxed()
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), DestinationError>> {
        self.probe_conditions().boxed()
    }
}
