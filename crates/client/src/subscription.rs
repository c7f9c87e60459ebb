//! A table's stream of whole transactions, for consumers that keep the rows themselves.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use laredo_core::{
    Checksum, DefinitionVersion, Lsn, Schema, ScopedMark, SourceIdentity, StateError, TableName, TableState,
    Transaction,
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connect::{ConnectSettings, PreparedSession, StartError, connect_setters};
use crate::health::SessionHealth;
use crate::status::{ReplicaStatus, StatusReceiver};
use crate::sync_receiver::{ReceiverEvent, ResumeState, SessionFeedback, SessionInput, SyncReceiver};

/// A stream of one table's transactions: whole, each delivered exactly once, in commit order,
/// across reconnections.
///
/// A [`crate::Replica`] is built on the same stream. The subscription itself keeps no rows, except
/// those of a snapshot that is still arriving.
///
/// It connects and reconnects by itself, and resumes from the last event that it returned. No event
/// is older than an earlier one, unless the server now follows another database or another history.
/// The subscription ends when it is dropped.
pub struct Subscription {
    /// Stops the session when dropped. It is the first field, so the session stops before the
    /// receiver of its messages is dropped.
    _stop_when_dropped: DropGuard,
    table: TableName,
    health: Arc<SessionHealth>,
    inputs: mpsc::UnboundedReceiver<SessionInput>,
    receiver: SyncReceiver,
    /// True if the consumer has or had the rows of the table.
    has_begun: bool,
}

/// The settings of a [`Subscription`] that is not started yet.
#[must_use = "a subscription runs once it is started"]
pub struct SubscriptionBuilder {
    connect: ConnectSettings,
    resume: Option<ResumePoint>,
}

/// Rows that the consumer already has, and from which a subscription can resume.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ResumePoint {
    /// The schema of the rows. If the server's schema at this position differs, it sends all rows
    /// again.
    pub schema: Arc<Schema>,
    /// Every commit up to this position is in the rows.
    pub position: Lsn,
    /// The database whose WAL the position belongs to. Without it the server cannot check that the
    /// position belongs to its own database.
    pub source: Option<SourceIdentity>,
    /// The definition version of the rows, from [`Subscription::definition`].
    /// [`DefinitionVersion::UNKNOWN`] if none was reported.
    pub definition: DefinitionVersion,
    /// The newest commit at or before the position, from [`Subscription::mark`]. A server of the
    /// same database uses it to detect a position of another history.
    pub mark: Option<ScopedMark>,
}

impl ResumePoint {
    /// Returns a resume point without a source, a definition and a mark. Set these fields to what
    /// was stored with the rows.
    #[must_use]
    pub fn new(schema: Arc<Schema>, position: Lsn) -> ResumePoint {
        ResumePoint { schema, position, source: None, definition: DefinitionVersion::UNKNOWN, mark: None }
    }
}

/// An event of a [`Subscription`]. Every consumer must handle every event, so this enum lists them
/// all: a new one is a new version of this library.
#[derive(Debug)]
pub enum SubscriptionEvent {
    /// All rows will be sent again, and no more changes to the previous rows will follow. The
    /// consumer may free the previous rows.
    Restart {
        /// The server's reason.
        reason: String,
        /// The newest position up to which the previous rows and the new ones are known to share
        /// one history. `u64::MAX` means that both are of one history. Zero means that nothing is
        /// known.
        shared_until: Lsn,
    },
    /// All rows of the table.
    State {
        /// The rows.
        table: Box<TableState>,
        /// Every commit up to this position is in the rows.
        position: Lsn,
        /// The database whose WAL this position and the following ones belong to.
        source: Option<SourceIdentity>,
    },
    /// The stream continues from the rows that the consumer has. This event follows each new
    /// connection that can resume.
    Resumed {
        /// The position of the consumer's rows.
        position: Lsn,
        /// The database, as in [`SubscriptionEvent::State`].
        source: Option<SourceIdentity>,
    },
    /// Changes that became visible together.
    Transaction(Transaction),
    /// Everything that was committed in the database before `at` has been delivered.
    Current {
        /// The consumer's rows are the table at this position, and a later subscription may resume
        /// from it. No change to the table is missing before it.
        position: Lsn,
        /// The moment, by the subscription's clock.
        at: Instant,
        /// The server's checksum of the rows at the position, if the server sent one. Compare it
        /// with the checksum of your rows, using [`Subscription::compare`].
        checksum: Option<Checksum>,
    },
    /// The subscription has ended permanently; reconnecting will not help.
    Ended {
        /// The reason.
        reason: String,
    },
}

impl Subscription {
    /// Returns a builder for a subscription to a table of this server: `http://HOST:PORT`, or
    /// `https://HOST:PORT` for TLS.
    pub fn builder(server: impl Into<String>, table: TableName) -> SubscriptionBuilder {
        SubscriptionBuilder { connect: ConnectSettings::new(server.into(), table), resume: None }
    }

    /// Waits for the next event and returns it. The wait continues while the connection is lost;
    /// [`Subscription::status`] reports the cause.
    ///
    /// The future may be dropped while it waits, without losing an event. Messages are decoded in
    /// this call. Between calls, at most [`SubscriptionBuilder::pending_bytes_max`] bytes are read
    /// ahead. A server may end the stream of a client that stays behind for long.
    pub async fn next(&mut self) -> SubscriptionEvent {
        loop {
            while let Some(received) = self.receiver.pop_event() {
                if let Some(event) = self.hand_out(received) {
                    return event;
                }
            }
            self.receiver.note_ready();
            let Some(input) = self.inputs.recv().await else {
                self.health.stopped();
                let reason = "the task that reads the server's streams has ended; its runtime was probably shut down";
                return SubscriptionEvent::Ended { reason: reason.to_owned() };
            };
            self.receiver.accept_input(input);
        }
    }

    /// Discards the rows of the consumer, because an event did not fit them. The server then sends
    /// all rows again.
    pub fn start_over(&mut self, error: StateError) {
        self.receiver.start_over(error.into());
    }

    /// Compares the checksum of the consumer's rows at a position with the server's, from
    /// [`SubscriptionEvent::Current`]. A difference is logged and counted. If the server asked for
    /// the client's checksum, this call also answers it, if it is made before the next call of
    /// [`Subscription::next`].
    ///
    /// Returns true if the consumer must drop its rows, because all of them are loaded again. If a
    /// recent load did not fix a difference, the rows are not loaded again until a pause has
    /// passed.
    pub fn compare(&mut self, position: Lsn, ours: Checksum, theirs: Checksum) -> bool {
        self.receiver.compare(position, ours, None, theirs)
    }

    /// Returns the current status. [`ReplicaStatus::last_error`] says why no events arrive.
    /// [`ReplicaStatus::position`] is the position of the last returned event.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        let (position, status) = (self.receiver.resume().position, self.health.status());
        ReplicaStatus { position, server_position: status.server_position.max(position), ..status }
    }

    /// Returns the definition version of the consumer's rows after the last returned event. Store
    /// it together with the position, for [`ResumePoint::definition`].
    #[must_use]
    pub fn definition(&self) -> DefinitionVersion {
        self.receiver.resume().definition
    }

    /// Returns the newest known commit at or before the position of the last returned event. Store
    /// it together with the position, for [`ResumePoint::mark`].
    #[must_use]
    pub fn mark(&self) -> Option<ScopedMark> {
        self.receiver.resume().mark
    }

    /// Returns a receiver that is notified when the state of the connection changes.
    #[must_use]
    pub fn watch_status(&self) -> StatusReceiver {
        self.health.watch_status()
    }

    /// Converts an event of the receiver. From here on, the consumer counts as having it.
    fn hand_out(&mut self, received: ReceiverEvent) -> Option<SubscriptionEvent> {
        let event = match received {
            ReceiverEvent::GivenUp { .. } => return None,
            ReceiverEvent::Promised { reason, shared_until } => {
                // The consumer may discard its rows now, so no stream can resume from them.
                self.receiver.forget();
                SubscriptionEvent::Restart { reason, shared_until }
            }
            ReceiverEvent::State { table, position, .. } => {
                if std::mem::replace(&mut self.has_begun, true) {
                    self.health.resynced();
                }
                self.receiver.shown_state();
                SubscriptionEvent::State { table, position, source: self.receiver.resume().source.clone() }
            }
            ReceiverEvent::Resumed => {
                let ResumeState { position, source, .. } = self.receiver.resume().clone();
                SubscriptionEvent::Resumed { position, source }
            }
            ReceiverEvent::Transaction { transaction, reached } => {
                self.receiver.applied(reached);
                self.health.applied(transaction.changes.len());
                SubscriptionEvent::Transaction(transaction)
            }
            ReceiverEvent::Current { position, at, mark, checksum } => {
                self.receiver.advance_position(position, mark);
                SubscriptionEvent::Current { position, at, checksum }
            }
        };
        let until = match &event {
            SubscriptionEvent::Current { at, .. } => Some(*at),
            SubscriptionEvent::Restart { .. }
            | SubscriptionEvent::State { .. }
            | SubscriptionEvent::Resumed { .. }
            | SubscriptionEvent::Transaction(_)
            | SubscriptionEvent::Ended { .. } => None,
        };
        self.health.delivered(self.receiver.resume().position, until);
        Some(event)
    }

    fn new(
        table: TableName,
        health: Arc<SessionHealth>,
        inputs: mpsc::UnboundedReceiver<SessionInput>,
        feedback: mpsc::UnboundedSender<SessionFeedback>,
        resume: Option<ResumePoint>,
        stop: CancellationToken,
    ) -> Subscription {
        let mut receiver = SyncReceiver::new(health.clone(), feedback, Vec::new());
        let has_begun = resume.is_some();
        if let Some(ResumePoint { schema, position, source, definition, mark }) = resume {
            let resume = ResumeState { position, source, definition, mark, ..ResumeState::default() };
            receiver.begin(schema, resume, position);
        }
        Subscription { _stop_when_dropped: stop.drop_guard(), table, health, inputs, receiver, has_begun }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("table", &self.table).field("status", &self.status()).finish()
    }
}

connect_setters!(SubscriptionBuilder);

impl SubscriptionBuilder {
    /// Resumes from rows that the consumer already has. Without a resume point, the subscription
    /// begins with all rows.
    pub fn resume(mut self, from: ResumePoint) -> SubscriptionBuilder {
        self.resume = Some(from);
        self
    }

    /// Starts the subscription. It connects, and reconnects after failures, in the background.
    ///
    /// # Errors
    /// When the server address or the token is invalid, or when the caller is not inside a tokio
    /// runtime.
    pub fn start(self) -> Result<Subscription, StartError> {
        let table = self.connect.table.clone();
        #[cfg(feature = "metrics")]
        let client_id = self.connect.client_id.clone();
        let PreparedSession { runtime, session, health, inputs, feedback, .. } =
            self.connect.prepare_session(Vec::new())?;
        let stop = CancellationToken::new();
        let run = session.run(stop.clone());
        #[cfg(feature = "metrics")]
        let run = {
            let (names, sampled) = ((table.to_string(), client_id), health.clone());
            crate::metric_reporter::report_while(run, names, move || sampled.subscription_sample())
        };
        runtime.spawn(run);
        Ok(Subscription::new(table, health, inputs, feedback, self.resume, stop))
    }
}

impl fmt::Debug for SubscriptionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConnectSettings { server, table, .. } = &self.connect;
        let mut builder = f.debug_struct("SubscriptionBuilder");
        builder.field("server", server).field("table", table).field("resume", &self.resume).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
