//! The older epochs of an archive, read from its sealed manifests.

use std::io::Read;

use ring::digest::{SHA256, digest};

use super::ArchiveReadError;
use crate::destination::{DestinationError, DestinationReader};
use crate::layout::{MANIFEST_BYTES_MAX, MANIFEST_NAME};
use crate::manifest::{Manifest, SealedLink, SealedManifest};
use laredo_values::hex;

/// Reads the sealed manifest of a link and checks its bytes.
///
/// # Errors
/// If the object is missing or is not what was sealed. Each error names the object.
pub(crate) async fn read_sealed(
    destination: &dyn DestinationReader,
    link: &SealedLink,
    table: &str,
) -> Result<SealedManifest, ArchiveReadError> {
    let outside = || ArchiveReadError::Outside { at: destination.uri(MANIFEST_NAME), uri: link.uri.clone() };
    let object = link.object().ok_or_else(outside)?;
    let at = destination.uri(&object);
    let input = destination.open(&object).await?;
    let (link, table, read_at) = (link.clone(), table.to_owned(), at.clone());
    let reading = tokio::task::spawn_blocking(move || checked(input, &link, &table, read_at));
    reading.await.map_err(|error| ArchiveReadError::BrokenOff { at, reason: error.to_string() })?
}

fn checked(
    input: Box<dyn Read + Send>,
    link: &SealedLink,
    table: &str,
    at: String,
) -> Result<SealedManifest, ArchiveReadError> {
    let mut bytes = Vec::new();
    let bytes_max = link.size_bytes.min(MANIFEST_BYTES_MAX);
    if let Err(error) = input.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes) {
        let error = DestinationError::Unavailable { doing: "read", at, reason: error.to_string() };
        return Err(error.into());
    }
    let found = bytes.len() as u64;
    if found != link.size_bytes {
        return Err(ArchiveReadError::Size { at, expected: link.size_bytes, found });
    }
    if hex(digest(&SHA256, &bytes).as_ref()) != link.sha256 {
        return Err(ArchiveReadError::Altered { at });
    }
    SealedManifest::parse(&bytes, link, table).map_err(|error| ArchiveReadError::Manifest { at, error })
}

/// Reads sealed manifests from the newest to the oldest, each with its link. Stops before the first
/// link for which `is_last` returns true, or when the archive keeps nothing older.
///
/// # Errors
/// The errors of [`read_sealed`].
pub(crate) async fn walk_sealed(
    destination: &dyn DestinationReader,
    manifest: &Manifest,
    mut is_last: impl FnMut(&SealedLink) -> bool,
) -> Result<Vec<(SealedLink, SealedManifest)>, ArchiveReadError> {
    let oldest = manifest.oldest_epoch.unwrap_or(0);
    let (mut next, mut read) = (manifest.sealed.clone(), Vec::new());
    while let Some(link) = next.filter(|link| link.last_epoch >= oldest) {
        if is_last(&link) {
            break;
        }
        let sealed = read_sealed(destination, &link, &manifest.table).await?;
        next = sealed.earlier.clone();
        read.push((link, sealed));
    }
    Ok(read)
}

/// Returns the manifest with the artifacts of all epochs that the archive keeps.
///
/// # Errors
/// The errors of [`read_sealed`], and an error if the parts do not fit together.
pub(super) async fn with_all_epochs(
    destination: &dyn DestinationReader,
    manifest: Manifest,
) -> Result<Manifest, ArchiveReadError> {
    if manifest.sealed.is_none() {
        return Ok(manifest);
    }
    let mut read = walk_sealed(destination, &manifest, |_| false).await?;
    read.reverse();
    let artifacts = read.into_iter().flat_map(|(_, sealed)| sealed.artifacts).collect();
    let whole = manifest.unsealed(artifacts).located(|object| destination.uri(object));
    let wrong = |error| ArchiveReadError::Manifest { at: destination.uri(MANIFEST_NAME), error };
    whole.check().map_err(|error| wrong(error.into()))?;
    Ok(whole)
}
