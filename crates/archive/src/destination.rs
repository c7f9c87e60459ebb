//! Where archives are: what a writer and a reader need of a disk or an object store.

mod direct;
mod local;
#[cfg(feature = "aws")]
mod s3;
pub(crate) mod staged;

use std::fmt;
use std::io::Read;
use std::time::SystemTime;

use futures::FutureExt;
use futures::future::BoxFuture;

pub use local::Local;
#[cfg(feature = "aws")]
pub use s3::{Encryption, S3, S3Options};
pub use staged::{Staged, Stager};

/// A place that holds one table's archive: everything is named relative to its prefix.
///
/// An artifact is created and never overwritten; the manifest is replaced by compare-and-swap. What a call has said is done is
/// durable. A call that failed may have been done all the same: it can be made again.
pub trait Destination: fmt::Debug + Send + Sync {
    /// Names it for people and as a metric's label: `/var/lib/laredo/users`, `s3://bucket/users/`.
    fn name(&self) -> &str;

    /// The address of an object, as a manifest has it.
    fn uri(&self, object: &str) -> String;

    /// Creates an artifact's object. One that is there already with the same bytes is as good.
    fn put<'a>(&'a self, object: &'a str, staged: &'a Staged) -> BoxFuture<'a, Result<(), DestinationError>>;

    /// The manifest, if there is one.
    fn manifest(&self) -> BoxFuture<'_, Result<Option<Versioned>, DestinationError>>;

    /// Puts a manifest in the place of that of this tag, or of none. Where the same bytes are there already, that is as good: the
    /// call was made before, and failed after it was done.
    ///
    /// # Errors
    /// [`DestinationError::Moved`] where the manifest is another one by now.
    fn publish<'a>(&'a self, manifest: &'a [u8], over: Option<&'a Tag>)
    -> BoxFuture<'a, Result<Tag, DestinationError>>;

    /// Opens an object to be read from its beginning, on a thread that may block.
    fn open<'a>(&'a self, object: &'a str) -> BoxFuture<'a, Result<Box<dyn Read + Send>, DestinationError>>;

    /// All objects of artifacts, those that no manifest names too; not the manifest.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Listed>, DestinationError>>;

    /// Deletes objects, in as few calls as the place has for it. That one is missing is as good.
    fn delete<'a>(&'a self, objects: &'a [String]) -> BoxFuture<'a, Result<(), DestinationError>>;

    /// Checks that the place keeps two writers apart.
    ///
    /// # Errors
    /// [`DestinationError::Unsuitable`] where it does not.
    fn probe(&self) -> BoxFuture<'_, Result<(), DestinationError>> {
        async { Ok(()) }.boxed()
    }
}

/// Tells versions of a manifest apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(pub String);

/// A manifest as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Its text.
    pub bytes: Vec<u8>,
    /// Its version.
    pub tag: Tag,
}

/// An object that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the prefix.
    pub object: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was written, by the destination's clock.
    pub modified: SystemTime,
}

/// What a destination cannot do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// It may pass: a network that is down, a full disk, a store that is overloaded.
    #[error("cannot {doing} {at}: {reason}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// To what.
        at: String,
        /// Why not.
        reason: String,
    },
    /// It stays so until somebody changes something: a permission, a bucket that is not there, a folder that is a file.
    #[error("cannot {doing} {at}: {reason}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// To what.
        at: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The place cannot hold an archive, whatever permissions there are.
    #[error("{at} cannot hold an archive: {reason}")]
    Unsuitable {
        /// The place.
        at: String,
        /// The missing feature, and what to do.
        reason: String,
    },
    /// There is no such object.
    #[error("{at} is not there")]
    Missing {
        /// The object's address.
        at: String,
    },
    /// There is another object of this name, which stays.
    #[error("{at} is there already, with other bytes; it is not overwritten")]
    Occupied {
        /// The object's address.
        at: String,
    },
    /// The manifest is another one than the one that was to be replaced.
    #[error("the manifest {at} was replaced by somebody else")]
    Moved {
        /// Its address.
        at: String,
    },
}
