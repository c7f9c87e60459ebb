//! A table's stream for those who keep the state themselves.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use laredo_core::{Checksum, DefinitionVersion, Lsn, Schema, StateError, TableName, TableState, Transaction};
use laredo_proto::replication::{CommitMark, SourceIdentity};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Identity;

use crate::connect::{Connect, Line, StartError};
use crate::health::Health;
use crate::intake::{Feedback, Input, Intake, Resume, Taken};
use crate::status::Status;

/// One table's changes in whole transactions, each once and in the order of their commits, on whatever connection: what a
/// [`crate::Replica`] stands on. It keeps no rows but those of a snapshot that is still coming in.
///
/// It connects, and connects anew, by itself, and goes on from the last thing that it handed out. Nothing that it hands out is older than
/// what it handed out before, unless the server has come to follow another database or another line of its history. It ends when it
/// is dropped.
pub struct Subscription {
    /// Dropped first: the session shall be stopped before there is nobody to take what it brings.
    _stop_when_dropped: DropGuard,
    table: TableName,
    health: Arc<Health>,
    inputs: mpsc::UnboundedReceiver<Input>,
    intake: Intake,
    /// Whether the consumer has, or had, a state.
    has_begun: bool,
}

/// What a subscription shall be.
#[must_use = "a subscription runs once it is started"]
pub struct SubscriptionBuilder {
    connect: Connect,
    resume: Option<ResumePoint>,
}

/// A state that its consumer has already, and would go on from.
#[derive(Clone, Debug, PartialEq)]
pub struct ResumePoint {
    /// The schema of its rows. Where the server's is another one at this position, all rows come anew.
    pub schema: Arc<Schema>,
    /// Every commit up to here is in it.
    pub position: Lsn,
    /// Which database's WAL the position is of. Without it only the server's word stands for that it is its own.
    pub source: Option<SourceIdentity>,
    /// The definition that its rows are of, as [`Subscription::definition`] said; unknown where nobody has said so.
    pub definition: DefinitionVersion,
    /// The newest commit at or before the position, as [`Subscription::mark`] said. With it a server of the same database can tell
    /// whether the position is of another history.
    pub mark: Option<CommitMark>,
}

/// Something that a subscription brings.
#[derive(Debug)]
pub enum SubscriptionEvent {
    /// All rows are about to come, and no change of those from before will: whoever has them may make room.
    Restart {
        /// Why, in the server's words.
        reason: String,
        /// The newest position up to which the history of the rows before and that of the new ones are known to be the same. `u64::MAX`:
        /// it is one history. Zero: nothing is known of that.
        shared_until: Lsn,
    },
    /// All rows.
    State {
        /// The rows.
        table: Box<TableState>,
        /// Every commit up to here is in them.
        position: Lsn,
        /// Which database's WAL this position, and those that follow, are of.
        source: Option<SourceIdentity>,
    },
    /// The stream goes on from the state that the consumer has. It comes with every new connection for which this is so.
    Resumed {
        /// The state's position.
        position: Lsn,
        /// As of [`SubscriptionEvent::State`].
        source: Option<SourceIdentity>,
    },
    /// Changes that became visible together.
    Transaction(Transaction),
    /// Everything that was committed at the source up to a moment has come.
    Current {
        /// The consumer's state is the table at this position, from which it may go on later: no change of it was before.
        position: Lsn,
        /// The moment.
        at: Instant,
        /// The checksum of the server's rows at the position, where it sent one: compare it with that of the consumer's rows, and say by
        /// [`Subscription::compare`] what that is.
        checksum: Option<Checksum>,
    },
    /// Nothing will come any more, nor will ever again. It is not for want of a server.
    Ended {
        /// Why.
        reason: String,
    },
}

impl Subscription {
    /// A subscription to a table that this server (`http://HOST:PORT`, or `https://` for TLS) has.
    pub fn builder(server: impl Into<String>, table: TableName) -> SubscriptionBuilder {
        SubscriptionBuilder { connect: Connect::new(server.into(), table), resume: None }
    }

    /// The next event. It waits as long as nothing happens, through lost connections too ([`Subscription::status`] tells of them).
    ///
    /// It may be dropped while it waits without losing anything. What comes is decoded inside; while nobody calls it no more is read
    /// than [`SubscriptionBuilder::pending_bytes_max`], and the server may in the end part with a client so slow.
    pub async fn next(&mut self) -> SubscriptionEvent {
        loop {
            while let Some(taken) = self.intake.pop() {
                if let Some(event) = self.hand_out(taken) {
                    return event;
                }
            }
            self.intake.note_ready();
            let Some(input) = self.inputs.recv().await else {
                self.health.stopped();
                let reason = "the task that reads the server's streams has ended, as when its runtime is shut down";
                return SubscriptionEvent::Ended { reason: reason.to_owned() };
            };
            self.intake.take(input);
        }
    }

    /// What came does not fit the consumer's state: it is of no use any more, and all rows come anew.
    pub fn start_over(&mut self, error: StateError) {
        self.intake.start_over(error.into());
    }

    /// Compares the checksum of the consumer's rows at a position with the server's, as a [`SubscriptionEvent::Current`] brought it. Where they
    /// differ it is logged and counted. A server whose operator asked for the checksum is sent it. Returns true where the consumer's rows are to be dropped, for all come again; where that
    /// helped nothing lately, they are not asked for again so soon.
    pub fn compare(&mut self, position: Lsn, ours: Checksum, theirs: Checksum) -> bool {
        self.intake.compare(position, (ours, None), theirs)
    }

    /// How it is doing. [`Status::last_error`] says why nothing comes; [`Status::position`] is that of what was handed out.
    #[must_use]
    pub fn status(&self) -> Status {
        Status { position: self.intake.resume().position, ..self.health.status.borrow().clone() }
    }

    /// Returns the definition that the consumer's rows are of, with everything that was handed out so far. It belongs to the
    /// position, wherever that is kept: [`ResumePoint::definition`].
    #[must_use]
    pub fn definition(&self) -> DefinitionVersion {
        self.intake.resume().definition
    }

    /// Returns the newest commit at or before the position of everything that was handed out so far, where it is known. It belongs to
    /// the position, wherever that is kept: [`ResumePoint::mark`].
    #[must_use]
    pub fn mark(&self) -> Option<CommitMark> {
        self.intake.resume().mark
    }

    /// Tells whenever the connection's state changes, wherever the subscription itself is. The position is not kept current in it.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.health.status.subscribe()
    }

    /// From here on it counts as what the consumer has.
    fn hand_out(&mut self, taken: Taken) -> Option<SubscriptionEvent> {
        let event = match taken {
            Taken::GivenUp { .. } => return None,
            Taken::Promised { reason, shared_until } => {
                // The consumer need not keep what it had, so that no stream can go on from there.
                self.intake.forget();
                SubscriptionEvent::Restart { reason, shared_until }
            }
            Taken::State { table, position, .. } => {
                if std::mem::replace(&mut self.has_begun, true) {
                    self.health.resynced();
                }
                self.intake.shown_state();
                SubscriptionEvent::State { table, position, source: self.intake.resume().source.clone() }
            }
            Taken::Resumed => {
                let Resume { position, source, .. } = self.intake.resume().clone();
                SubscriptionEvent::Resumed { position, source }
            }
            Taken::Transaction { transaction, reached } => {
                self.intake.applied(reached);
                SubscriptionEvent::Transaction(transaction)
            }
            Taken::Current { position, at, mark, checksum } => {
                self.intake.moved(position, mark);
                SubscriptionEvent::Current { position, at, checksum }
            }
        };
        Some(event)
    }

    fn new(
        table: TableName,
        health: Arc<Health>,
        inputs: mpsc::UnboundedReceiver<Input>,
        feedback: mpsc::UnboundedSender<Feedback>,
        resume: Option<ResumePoint>,
        stop: CancellationToken,
    ) -> Subscription {
        let mut intake = Intake::new(health.clone(), feedback, Vec::new());
        let has_begun = resume.is_some();
        if let Some(ResumePoint { schema, position, source, definition, mark }) = resume {
            let resume = Resume { position, source, definition, mark, ..Resume::default() };
            intake.begin(schema, resume, position);
        }
        Subscription { _stop_when_dropped: stop.drop_guard(), table, health, inputs, intake, has_begun }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("table", &self.table).field("status", &self.status()).finish()
    }
}

impl SubscriptionBuilder {
    /// How the server's operator sees this client.
    pub fn client_id(mut self, client_id: impl Into<String>) -> SubscriptionBuilder {
        self.connect.client_id = client_id.into();
        self
    }

    /// As [`crate::ReplicaBuilder::ca_pem`].
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> SubscriptionBuilder {
        self.connect.ca_pem = Some(pem.into());
        self
    }

    /// As [`crate::ReplicaBuilder::identity_pem`].
    pub fn identity_pem(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> SubscriptionBuilder {
        self.connect.identity = Some(Identity::from_pem(certificate, key));
        self
    }

    /// As [`crate::ReplicaBuilder::token`].
    pub fn token(mut self, token: impl Into<String>) -> SubscriptionBuilder {
        self.connect.token = Some(token.into());
        self
    }

    /// As [`crate::ReplicaBuilder::message_bytes_max`].
    pub fn message_bytes_max(mut self, bytes: usize) -> SubscriptionBuilder {
        self.connect.message_bytes_max = bytes;
        self
    }

    /// How many bytes may wait to be taken (64 MiB unless set). At this bound the stream is not read. A transaction and a snapshot
    /// that are coming in do not count: they are held until they are whole.
    pub fn pending_bytes_max(mut self, bytes: u32) -> SubscriptionBuilder {
        self.connect.pending_bytes_max = bytes.max(1);
        self
    }

    /// The clock for [`SubscriptionEvent::Current`]; it must never go back.
    pub fn clock(mut self, now: impl Fn() -> Instant + Send + Sync + 'static) -> SubscriptionBuilder {
        self.connect.now = Box::new(now);
        self
    }

    /// Makes the waits between attempts to connect repeatable.
    pub fn seed(mut self, seed: u64) -> SubscriptionBuilder {
        self.connect.seed = Some(seed);
        self
    }

    /// Begins with a state that the consumer has. Without one, all rows come first.
    pub fn resume(mut self, from: ResumePoint) -> SubscriptionBuilder {
        self.resume = Some(from);
        self
    }

    /// Starts it. It connects, and connects anew, in the background.
    ///
    /// # Errors
    /// When the address is none, or there is no runtime for it.
    pub fn start(self) -> Result<Subscription, StartError> {
        let table = self.connect.table.clone();
        let Line { runtime, session, health, inputs, feedback, .. } = self.connect.line(Vec::new())?;
        let stop = CancellationToken::new();
        runtime.spawn(session.run(stop.clone()));
        Ok(Subscription::new(table, health, inputs, feedback, self.resume, stop))
    }
}

impl fmt::Debug for SubscriptionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connect { server, table, .. } = &self.connect;
        let mut builder = f.debug_struct("SubscriptionBuilder");
        builder.field("server", server).field("table", table).field("resume", &self.resume).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "subscription_tests.rs"]
mod tests;
