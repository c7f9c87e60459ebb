#![doc = include_str!("../README.md")]

#[cfg(feature = "s3")]
mod aws;
mod destination;
#[cfg(feature = "writer")]
mod encode;
#[cfg(feature = "writer")]
mod events;
#[cfg(feature = "writer")]
mod feed;
mod format;
#[cfg(all(test, feature = "writer"))]
mod fuzz_tests;
mod layout;
mod manifest;
#[cfg(feature = "writer")]
mod net_changes;
mod reader;
#[cfg(feature = "writer")]
mod rebase;
#[cfg(feature = "writer")]
mod writer;

#[cfg(feature = "s3")]
pub use aws::{AssumeRole, AwsCredentials, AwsProfile, AwsProfileError, AwsProfileSet};
#[cfg(feature = "s3")]
pub use destination::S3Destination;
#[cfg(feature = "writer")]
pub use destination::{ArtifactStager, Destination, ListedObject, StagedArtifact};
pub use destination::{
    DestinationError, DestinationOptions, DestinationReader, DestinationUri, FolderDestination, InvalidDestinationUri,
    InvalidKeyPrefix, ManifestTag, S3Encryption, S3Options, VersionedManifest, check_key_prefix,
};
#[cfg(feature = "writer")]
pub use events::{ArtifactEvent, EventPublisher, EventSink, PublisherOptions, PublisherTask, SinkCounts, SinkError};
#[cfg(feature = "aws")]
pub use events::{AwsSinkOptions, KinesisSink, SnsSink, SqsSink};
#[cfg(feature = "writer")]
pub use feed::{Feed, FeedUpdate};
#[cfg(feature = "writer")]
pub use format::ArtifactWriter;
pub use format::{ArchivedChange, ArtifactReader, FormatError};
pub use layout::{ArtifactFormat, ArtifactKind, MANIFEST_NAME, UnknownFormat};
pub use manifest::{
    ArchivedHistory, Artifact, ArtifactObject, ColumnEntry, EpochHistory, MANIFEST_NUMBER_MAX, MANIFEST_VERSION,
    Manifest, ManifestError, ManifestViolation, SealedLink, WriterId,
};
#[cfg(feature = "writer")]
pub use net_changes::{NetChange, NetChangeError, NetChangeSet};
pub use reader::{
    Archive, ArchiveBoundary, ArchivePoint, ArchiveReadError, ArtifactDamage, ReadProgress, RebuiltTable,
};
#[cfg(feature = "writer")]
pub use rebase::{ChainProgress, RebaseDecision, RebaseReason, RebaseThresholds};
#[cfg(feature = "writer")]
pub use writer::{
    ArchiveWriter, DestinationStatus, FeedStart, GRACE_PERIOD, MANIFEST_EPOCHS, SharedWriterStatus,
    SnapshotRequestError, WriterError, WriterHandle, WriterOptions, WriterPhase, WriterResources, WriterStatus,
    WrittenArtifact,
};
