//! Events about new artifacts. They are advisory: the manifest is authoritative.

#[cfg(feature = "aws")]
mod aws;
mod publisher;

use std::collections::BTreeMap;
use std::fmt;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::layout::ArtifactKind;

#[cfg(feature = "aws")]
pub use aws::{AwsSinkOptions, KinesisSink, SnsSink, SqsSink};
pub use publisher::{EventPublisher, PublisherOptions, PublisherTask, SinkCounts};

/// The notification of a new artifact, sent after the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactEvent {
    /// `schema.table`.
    pub table: String,
    /// The kind of the artifact.
    pub kind: ArtifactKind,
    /// The artifact's epoch.
    pub epoch: u64,
    /// The position where a diff begins; `None` for a snapshot.
    pub from_position: Option<String>,
    /// The position of the state that the artifact leads to.
    pub to_position: String,
    /// The position of the manifest's head.
    pub head_position: String,
    /// The manifest's address at the first destination.
    pub manifest_uri: String,
    /// The artifact's addresses at the first destination, by the ID of their format.
    pub formats: BTreeMap<String, String>,
    /// The time when the artifact was written: RFC 3339, UTC.
    pub created_at: String,
}

/// A receiver of events, such as a queue or a topic.
pub trait EventSink: fmt::Debug + Send + Sync {
    /// Returns the name for people and for metrics: `sns arn:aws:sns:…`.
    fn name(&self) -> &str;

    /// Tries once to send an event. After an error the event may have arrived nevertheless; the
    /// publisher then sends it again.
    fn send<'a>(&'a self, event: &'a ArtifactEvent) -> BoxFuture<'a, Result<(), SinkError>>;
}

/// An error in sending an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot send an event to {to}: {reason}")]
pub struct SinkError {
    /// The sink's name.
    pub to: String,
    /// The reason for the failure.
    pub reason: String,
}
