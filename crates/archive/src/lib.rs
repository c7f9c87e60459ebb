//! The archive of a table: snapshots and diffs in open file formats, and the manifest that names
//! them.
//!
//! * [`Manifest`]: the index of the artifacts, and the rules that every published manifest keeps.
//! * [`Format`]: the formats of an artifact, and the encoding of rows and changes in them.
//! * [`Net`]: the net changes since the newest artifact, one for each key.
//! * [`Thresholds`]: the rules for when the next artifact is a diff, and when a snapshot.
//!
//! * [`Destination`]: a folder or an object store that holds an archive.
//! * [`Feed`]: the source of a writer's rows and changes.
//! * [`Sink`]: a receiver of events about new artifacts, and [`Publisher`], which sends them.
//! * [`Writer`]: writes an archive, from a feed to destinations.
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
mod net;
mod reader;
mod rebase;
mod writer;

#[cfg(feature = "aws")]
pub use aws::{AssumeRole, Credentials, Profile, ProfileError, Profiles};
pub use destination::{Destination, DestinationError, Listed, Local, Staged, Stager, Tag, Versioned};
#[cfg(feature = "aws")]
pub use destination::{Encryption, S3, S3Options};
pub use events::{Event, Publisher, PublisherOptions, Publishing, Sink, SinkCounts, SinkError};
#[cfg(feature = "aws")]
pub use events::{Kinesis, SinkOptions, Sns, Sqs};
pub use feed::{Feed, Update};
pub use format::{Format, FormatError, LineReader, LineWriter, ReadChange, UnknownFormat};
pub use layout::{MANIFEST, artifact_name, file_position};
pub use manifest::{
    ArchivedHistory, Artifact, Broken, ColumnEntry, EpochHistory, Kind, MANIFEST_VERSION, Manifest, ManifestError,
    PositionMark, SealedLink, SourceId, Stored, TimelineSwitch, WriterId,
};
pub use net::{Net, NetChange, NotTaken};
pub use reader::{Archive, At, Boundary, Damage, ReadError, ReadProgress, Rebuilt};
pub use rebase::{Due, Progress, Reason, Thresholds};
pub use writer::{
    DestinationStatus, GRACE, Handle, MANIFEST_EPOCHS, NoSnapshot, Options, Phase, Start, Status, Surroundings, Writer,
    WriterError, Written,
};
