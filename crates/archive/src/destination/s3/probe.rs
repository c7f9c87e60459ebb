//! A probe of the conditional writes that keep two writers apart. Some stores ignore the
//! conditions.

use object_store::{ObjectStore, PutMode, PutPayload, UpdateVersion};

use super::S3Destination;
use super::error_response::{S3ErrorResponse, S3Operation};
use crate::destination::DestinationError;

/// The object that the probe writes. It is never deleted, because a writer may lack the permission
/// to delete.
const PROBE: &str = ".laredo-probe";
const TEXT: &[u8] = b"laredo-snapshotter writes this object to find out whether the store honors conditional writes.\n";
/// An ETag that no object has.
const NO_ETAG: &str = "\"00000000000000000000000000000000\"";

/// Checks that the store refuses to write an existing object if the conditions do not hold.
pub(super) async fn probe_conditions(of: &S3Destination) -> Result<(), DestinationError> {
    // The first call creates the object, unless an earlier run did.
    if writes_probe(of, PutMode::Create).await? && writes_probe(of, PutMode::Create).await? {
        return Err(ignores(of, "If-None-Match"));
    }
    let other = UpdateVersion { e_tag: Some(NO_ETAG.to_owned()), version: None };
    if writes_probe(of, PutMode::Update(other)).await? {
        return Err(ignores(of, "If-Match"));
    }
    Ok(())
}

async fn writes_probe(of: &S3Destination, mode: PutMode) -> Result<bool, DestinationError> {
    let path = of.path(PROBE)?;
    match of.store.put_opts(&path, PutPayload::from_static(TEXT), mode.into()).await {
        Ok(_) => Ok(true),
        Err(error) if S3ErrorResponse::of(&error).is_some_and(S3ErrorResponse::is_condition) => Ok(false),
        Err(error) => Err(of.failed(S3Operation::Write, PROBE)(error)),
    }
}

fn ignores(of: &S3Destination, header: &str) -> DestinationError {
    let reason = format!(
        "the store ignores {header}, so that two writers would overwrite each other unnoticed; \
         use a store, or a version of it, that honors conditional writes"
    );
    DestinationError::Unsuitable { at: of.name.to_string(), reason }
}
