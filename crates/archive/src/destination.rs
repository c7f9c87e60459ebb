//! The destinations of archives: the operations that a reader and a writer need from a disk or an
//! object store.

#[cfg(feature = "writer")]
mod direct;
mod key_prefix;
mod local;
#[cfg(feature = "writer")]
mod private_folder;
#[cfg(feature = "s3")]
mod s3;
mod s3_options;
#[cfg(feature = "writer")]
mod staging;
mod uri;

use std::fmt;
use std::io::Read;
#[cfg(feature = "writer")]
use std::time::SystemTime;

#[cfg(feature = "writer")]
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::layout::MANIFEST_BYTES_MAX;

pub use key_prefix::{InvalidKeyPrefix, check_key_prefix};
pub use local::FolderDestination;
#[cfg(feature = "s3")]
pub use s3::S3Destination;
pub use s3_options::{S3Encryption, S3Options};
#[cfg(feature = "writer")]
pub(crate) use staging::StageWriter;
#[cfg(feature = "writer")]
pub use staging::{ArtifactStager, StagedArtifact};
pub use uri::{DestinationOptions, DestinationUri, InvalidDestinationUri};

/// A place that holds one table's archive, for readers. All names are relative to its prefix.
pub trait DestinationReader: fmt::Debug + Send + Sync {
    /// Returns the name for people and for metrics: `/var/lib/laredo/users`, `s3://bucket/users/`.
    fn name(&self) -> &str;

    /// Returns the address of an object, as manifests have it.
    fn uri(&self, object: &str) -> String;

    /// Returns the manifest, if there is one.
    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>>;

    /// Opens an object for reading from its beginning, on a thread that may block.
    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>>;
}

/// A place that holds one table's archive, for its writer.
///
/// An artifact is created once and never overwritten. The manifest is replaced by compare-and-swap.
/// A call that succeeds is durable. A call that fails may have taken effect nevertheless, and can
/// be repeated.
#[cfg(feature = "writer")]
pub trait Destination: DestinationReader {
    /// Creates an artifact's object. Succeeds also if the object exists already with the same
    /// bytes.
    fn put<'a>(&'a self, object: &'a str, staged: &'a StagedArtifact) -> BoxFuture<'a, Result<(), DestinationError>>;

    /// Replaces the manifest that has the tag `over`, or creates it if `over` is `None`. Succeeds
    /// also if the manifest already has these bytes: an earlier call may have failed after it took
    /// effect.
    ///
    /// # Errors
    /// [`DestinationError::Moved`] if the current manifest is a different one.
    fn publish<'a>(
        &'a self,
        manifest: &'a [u8],
        over: Option<&'a ManifestTag>,
    ) -> BoxFuture<'a, Result<ManifestTag, DestinationError>>;

    /// Lists all objects of artifacts, including those that no manifest names, but not the
    /// manifest.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ListedObject>, DestinationError>>;

    /// Deletes objects with as few calls as possible. Missing objects are not an error.
    fn delete<'a>(&'a self, objects: &'a [String]) -> BoxFuture<'a, Result<(), DestinationError>>;

    /// Checks that the destination keeps two writers apart.
    ///
    /// # Errors
    /// [`DestinationError::Unsuitable`] if it does not.
    fn probe(&self) -> BoxFuture<'_, Result<(), DestinationError>> {
        async { Ok(()) }.boxed()
    }

    /// Returns the stager from which artifacts need not be copied. `None` if the destination is not
    /// on this machine.
    fn stager(&self) -> Option<ArtifactStager> {
        None
    }
}

/// The version of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestTag(pub String);

/// A manifest as it was read, with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionedManifest {
    /// The manifest's text.
    pub bytes: Vec<u8>,
    /// The manifest's version.
    pub tag: ManifestTag,
}

/// An object in a listing.
#[cfg(feature = "writer")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// The object's name, relative to the prefix.
    pub object: String,
    /// The object's size in bytes.
    pub size_bytes: u64,
    /// The time when the object was written, by the destination's clock.
    pub modified: SystemTime,
}

/// An error of a destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// The failure may be temporary: a network that is down, a full disk, an overloaded store.
    #[error("cannot {doing} {at}: {reason}")]
    Unavailable {
        /// The operation that failed.
        doing: &'static str,
        /// The address of its target.
        at: String,
        /// The reason for the failure.
        reason: String,
    },
    /// The failure stays until the operator changes something: a permission, a missing bucket, a
    /// file in place of a folder.
    #[error("cannot {doing} {at}: {reason}")]
    Refused {
        /// The operation that failed.
        doing: &'static str,
        /// The address of its target.
        at: String,
        /// The reason for the failure, and the remedy.
        reason: String,
    },
    /// The destination cannot hold an archive, whatever the permissions.
    #[error("{at} cannot hold an archive: {reason}")]
    Unsuitable {
        /// The destination's name.
        at: String,
        /// The missing feature, and the remedy.
        reason: String,
    },
    /// The object does not exist.
    #[error("{at} does not exist")]
    Missing {
        /// The object's address.
        at: String,
    },
    /// Another object with this name exists, and is not overwritten.
    #[error("{at} exists already with other bytes, and is not overwritten")]
    Occupied {
        /// The object's address.
        at: String,
    },
    /// The manifest is not the one that was to be replaced.
    #[error("another program replaced the manifest {at}")]
    Moved {
        /// The manifest's address.
        at: String,
    },
}

/// Returns the error for a manifest that is larger than any that a writer makes.
fn large_manifest(at: String) -> DestinationError {
    let reason = format!("it has more than {MANIFEST_BYTES_MAX} bytes; let its writer drop old epochs");
    DestinationError::Unsuitable { at, reason }
}
