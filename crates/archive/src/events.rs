//! What others are told of when an archive's head has moved. Advisory: the manifest is the truth.

#[cfg(feature = "aws")]
mod aws;
mod publisher;

use std::collections::BTreeMap;
use std::fmt;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::manifest::Kind;

#[cfg(feature = "aws")]
pub use aws::{Kinesis, SinkOptions, Sns, Sqs};
pub use publisher::{Publisher, PublisherOptions, Publishing, SinkCounts};

/// A new artifact is there, and the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `schema.table`.
    pub table: String,
    /// What was written.
    pub kind: Kind,
    /// Its epoch.
    pub epoch: u64,
    /// Where a diff begins; nothing for a snapshot.
    pub from_position: Option<String>,
    /// The state that it leads to.
    pub to_position: String,
    /// The manifest's head.
    pub head_position: String,
    /// Where the manifest is, at the first destination.
    pub manifest_uri: String,
    /// Where the artifact is there, by the id of its format.
    pub formats: BTreeMap<String, String>,
    /// When it was written: RFC 3339, UTC.
    pub created_at: String,
}

/// Somewhere that events go.
pub trait Sink: fmt::Debug + Send + Sync {
    /// Names it for people and as a metric's label: `sns arn:aws:sns:…`.
    fn name(&self) -> &str;

    /// Sends one, once. That it arrived may be unknown when this fails: it is sent again then.
    fn send<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), SinkError>>;
}

/// An event that was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot send an event to {to}: {reason}")]
pub struct SinkError {
    /// The sink.
    pub to: String,
    /// Why not.
    pub reason: String,
}
