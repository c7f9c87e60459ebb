//! How a session is doing, as far as both of its ends know: the network's, and whoever takes what it brings.

use std::time::Instant;

use laredo_core::{Lsn, TableName};
use laredo_proto::replication::{SyncHandshake, SyncMode};
use tokio::sync::watch;

use crate::status::{ReplicaError, Status};

/// Tells what time has passed; it never goes back.
pub(crate) type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

/// What is known of a session, for those who ask.
pub(crate) struct Health {
    /// The table, for the log.
    pub(crate) table: TableName,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) now: Clock,
}

impl Health {
    pub(crate) fn new(table: TableName, now: Clock) -> Health {
        Health { table, status: watch::Sender::default(), now }
    }

    /// A stream is open.
    pub(crate) fn opened(&self, handshake: &SyncHandshake) {
        self.status.send_modify(|status| {
            status.connected = true;
            status.connects += 1;
            status.full_snapshots += u64::from(handshake.mode() == SyncMode::FullSnapshot);
            status.mode = Some(handshake.mode());
            status.reason.clone_from(&handshake.reason);
            status.error = None;
        });
    }

    /// It is open no more.
    pub(crate) fn disconnected(&self) {
        self.status.send_modify(|status| status.connected = false);
    }

    /// It is open no more, or could not be opened.
    pub(crate) fn fail(&self, error: &ReplicaError) {
        self.status.send_modify(|status| {
            status.connected = false;
            status.error = Some(error.clone());
            status.last_error = Some(error.clone());
        });
    }

    /// The head that the server had is reached.
    pub(crate) fn ready(&self) {
        self.status.send_if_modified(|status| !std::mem::replace(&mut status.ready, true));
    }

    /// A full snapshot took the place of another state.
    pub(crate) fn resynced(&self) {
        self.status.send_modify(|status| status.resyncs += 1);
    }

    /// The rows at this position have the server's checksum.
    pub(crate) fn agrees(&self, position: Lsn) {
        self.status.send_if_modified(|status| {
            status.checksum_position = position;
            // This happens several times a second, so watchers are not woken for it.
            false
        });
    }

    /// The rows do not have the server's checksum.
    pub(crate) fn differs(&self) {
        self.status.send_modify(|status| status.checksum_mismatches += 1);
    }

    /// Nothing will come any more.
    pub(crate) fn stopped(&self) {
        self.status.send_modify(|status| {
            status.connected = false;
            status.stopped = true;
        });
    }
}
