//! The writing of an archive in an S3 bucket.

use std::time::SystemTime;

use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use laredo_values::hex;
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion,
};
use ring::digest::{Context, SHA256};

use super::error_response::{S3ErrorResponse, S3Operation};
use super::multipart::create_in_parts;
use super::{S3Destination, probe};
use crate::destination::{Destination, DestinationError, DestinationReader, ListedObject, ManifestTag, StagedArtifact};
use crate::layout::MANIFEST_NAME;

/// The maximum size in bytes of an object that is sent in one request. Larger objects are sent in
/// parts.
const SINGLE_BYTES_MAX: u64 = 16 << 20;

impl Destination for S3Destination {
    fn put<'a>(&'a self, object: &'a str, staged: &'a StagedArtifact) -> BoxFuture<'a, Result<(), DestinationError>> {
        create(self, object, staged).boxed()
    }

    fn publish<'a>(
        &'a self,
        manifest: &'a [u8],
        over: Option<&'a ManifestTag>,
    ) -> BoxFuture<'a, Result<ManifestTag, DestinationError>> {
        replace(self, manifest, over).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedObject>, DestinationError>> {
        list_all(self).boxed()
    }

    fn delete<'a>(&'a self, objects: &'a [String]) -> BoxFuture<'a, Result<(), DestinationError>> {
        self.deleter.delete_all(self, objects).boxed()
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), DestinationError>> {
        probe::probe_conditions(self).boxed()
    }
}

async fn create(to: &S3Destination, object: &str, staged: &StagedArtifact) -> Result<(), DestinationError> {
    let path = to.path(object)?;
    if staged.size_bytes > SINGLE_BYTES_MAX {
        return create_in_parts(to, object, &path, staged).await;
    }
    let unreadable = |error: std::io::Error| DestinationError::Unavailable {
        doing: "read",
        at: staged.path().display().to_string(),
        reason: error.to_string(),
    };
    let bytes = tokio::fs::read(staged.path()).await.map_err(unreadable)?;
    match to.store.put_opts(&path, PutPayload::from(bytes), PutMode::Create.into()).await {
        Ok(_) => Ok(()),
        Err(error) if S3ErrorResponse::of(&error).is_some_and(S3ErrorResponse::is_unmet) => {
            compare(to, object, &path, staged).await
        }
        Err(error) => Err(to.failed(S3Operation::Write, object)(error)),
    }
}

/// Checks that the existing object has the bytes that were to be written.
pub(super) async fn compare(
    to: &S3Destination,
    object: &str,
    path: &Path,
    staged: &StagedArtifact,
) -> Result<(), DestinationError> {
    let failed = to.failed(S3Operation::Read, object);
    let found = to.store.get(path).await.map_err(&failed)?;
    let occupied = || DestinationError::Occupied { at: to.uri(object) };
    if found.meta.size != staged.size_bytes {
        return Err(occupied());
    }
    let (mut stream, mut sum) = (found.into_stream(), Context::new(&SHA256));
    while let Some(bytes) = stream.try_next().await.map_err(&failed)? {
        sum.update(&bytes);
    }
    if hex(sum.finish().as_ref()) == staged.sha256 { Ok(()) } else { Err(occupied()) }
}

async fn replace(
    to: &S3Destination,
    manifest: &[u8],
    over: Option<&ManifestTag>,
) -> Result<ManifestTag, DestinationError> {
    let mode = match over {
        None => PutMode::Create,
        Some(tag) => PutMode::Update(UpdateVersion { e_tag: Some(tag.0.clone()), version: None }),
    };
    let attributes = Attributes::from_iter([(Attribute::ContentType, "application/json")]);
    let options = PutOptions { mode, attributes, ..PutOptions::default() };
    match to.store.put_opts(&to.path(MANIFEST_NAME)?, PutPayload::from(manifest.to_vec()), options).await {
        Ok(put) => put.e_tag.map(ManifestTag).ok_or_else(|| to.no_tag()),
        // An earlier try may have taken effect although its response was lost. Then the
        // manifest is already this one.
        Err(error) if S3ErrorResponse::of(&error).is_some_and(|answer| answer.is_unmet() || answer.is_no_object()) => {
            match to.read_manifest().await? {
                Some(there) if there.bytes == manifest => Ok(there.tag),
                _ => Err(DestinationError::Moved { at: to.uri(MANIFEST_NAME) }),
            }
        }
        Err(error) => Err(to.failed(S3Operation::Write, MANIFEST_NAME)(error)),
    }
}

async fn list_all(to: &S3Destination) -> Result<Vec<ListedObject>, DestinationError> {
    let (prefix, mut found, mut page) = (format!("{}epoch=", to.prefix), Vec::new(), None);
    loop {
        let options = PaginatedListOptions { page_token: page, ..PaginatedListOptions::default() };
        let listed = to.store.list_paginated(Some(&prefix), options).await;
        let listed = listed.map_err(to.failed(S3Operation::List, "epoch="))?;
        for object in listed.result.objects {
            let name = object.location.as_ref().strip_prefix(&*to.prefix).unwrap_or_default();
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
