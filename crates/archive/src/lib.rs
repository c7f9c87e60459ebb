//! The archive of a table: snapshots and diffs in open file formats, and the manifest that names
//! them.
//!
//! * [`Manifest`]: the index of the artifacts, and the rules that every published manifest keeps.
//! * [`ArtifactFormat`]: the formats of an artifact, and the encoding of rows and changes in them.
//! * [`NetChangeSet`]: the net changes since the newest artifact, one for each key.
//! * [`RebaseThresholds`]: the rules for when the next artifact is a diff, and when a snapshot.
//!
//! * [`Destination`]: a folder or an object store that holds an archive.
//! * [`Feed`]: the source of a writer's rows and changes.
//! * [`EventSink`]: a receiver of events about new artifacts, and [`EventPublisher`], which sends
//!   them.
//! * [`ArchiveWriter`]: writes an archive, from a feed to destinations.
//! * [`Archive`]: rebuilds the table at a boundary from an archive, or reports damaged objects.

#[cfg(feature = "aws")]
mod aws;
mod backoff;
mod destination;
mod encode;
mod events;
mod feed;
mod format;
mod layout;
mod manifest;
mod net_changes;
mod reader;
mod rebase;
mod writer;

#[cfg(feature = "aws")]
pub use aws::{AssumeRole, AwsCredentials, AwsProfile, AwsProfileError, AwsProfileSet};
pub use destination::{
    ArtifactStager, Destination, DestinationError, FolderDestination, ListedObject, ManifestTag, StagedArtifact,
    VersionedManifest,
};
#[cfg(feature = "aws")]
pub use destination::{S3Destination, S3Encryption, S3Options};
pub use events::{ArtifactEvent, EventPublisher, EventSink, PublisherOptions, PublisherTask, SinkCounts, SinkError};
#[cfg(feature = "aws")]
pub use events::{AwsSinkOptions, KinesisSink, SnsSink, SqsSink};
pub use feed::{Feed, FeedUpdate};
pub use format::{ArchivedChange, ArtifactReader, ArtifactWriter, FormatError};
pub use layout::{ArtifactFormat, ArtifactKind, MANIFEST, UnknownFormat};
pub use manifest::{
    ArchivedHistory, Artifact, ArtifactObject, ColumnEntry, EpochHistory, MANIFEST_VERSION, Manifest, ManifestError,
    ManifestViolation, PositionMark, SealedLink, SourceId, TimelineSwitch, WriterId,
};
pub use net_changes::{NetChange, NetChangeError, NetChangeSet};
pub use reader::{
    Archive, ArchiveBoundary, ArchivePoint, ArchiveReadError, ArtifactDamage, ReadProgress, RebuiltTable,
};
pub use rebase::{ChainProgress, RebaseDecision, RebaseReason, RebaseThresholds};
pub use writer::{
    ArchiveWriter, DestinationStatus, FeedStart, GRACE, MANIFEST_EPOCHS, SnapshotRequestError, WriterError,
    WriterHandle, WriterOptions, WriterPhase, WriterResources, WriterStatus, WrittenArtifact,
};
