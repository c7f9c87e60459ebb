//! A table's archive: base snapshots and diffs in files that anyone can read, and the manifest that says how they fit together.
//!
//! * [`Manifest`]: the index of the artifacts, and the rules that every published one keeps.
//! * [`Format`]: the forms of an artifact, and how rows and changes are written in them and read back.
//! * [`Net`]: what happened since the newest artifact, one change a key.
//! * [`Thresholds`]: when the next artifact is a diff, and when a new base.
//!
//! * [`Destination`]: a folder or an object store that holds an archive.
//! * [`Feed`]: where a writer's rows and changes come from.
//! * [`Sink`]: who is told when the head has moved, and [`Publisher`], which tells all of them.
//! * [`Writer`]: writes an archive, from a feed to destinations.
//! * [`Archive`]: reads one back: the table at a boundary, exactly, or what is wrong with which object.

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
