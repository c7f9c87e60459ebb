//! The destinations of archives: the operations that a writer and a reader need from a disk or an
//! object store.

mod direct;
mod local;
#[cfg(feature = "aws")]
mod s3;
pub(crate) mod staging;

use std::fmt;
use std::io::Read;
use std::time::SystemTime;

use futures::FutureExt;
use futures::future::BoxFuture;

pub use local::FolderDestination;
#[cfg(feature = "aws")]
pub use s3::{S3Destination, S3Encryption, S3Options};
pub use staging::{ArtifactStager, StagedArtifact};

/// A place that holds one table's archive. All names are relative to its prefix.
///
/// An artifact is created once and never overwritten. The manifest is replaced by compare-and-swap.
/// A call that succeeds is durable. A call that fails may have taken effect nevertheless, and can
/// be repeated.
pub trait Destination: fmt::Debug + Send + Sync {
    /// Returns the name for people and for metrics: `/var/lib/laredo/users`, `s3://bucket/users/`.
    fn name(&self) -> &str;

    /// Returns the address of an object, as manifests have it.
    fn uri(&self, object: &str) -> String;

    /// Creates an artifact's object. Succeeds also if the object exists already with the same
    /// bytes.
    fn put<'a>(&'a self, object: &'a str, staged: &'a StagedArtifact) -> BoxFuture<'a, Result<(), DestinationError>>;

    /// Returns the manifest, if there is one.
    fn manifest(&self) -> BoxFuture<'_, Result<Option<VersionedManifest>, DestinationError>>;

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

    /// Opens an object for reading from its beginning, on a thread that may block.
    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>>;

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
    #[error("{at} is not there")]
    Missing {
        /// The object's address.
        at: String,
    },
    /// Another object with this name exists, and is not overwritten.
    #[error("{at} is there already, with other bytes; it is not overwritten")]
    Occupied {
        /// The object's address.
        at: String,
    },
    /// The manifest is not the one that was to be replaced.
    #[error("the manifest {at} was replaced by somebody else")]
    Moved {
        /// The manifest's address.
        at: String,
    },
}
