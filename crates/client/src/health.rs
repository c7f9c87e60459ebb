//! The state of a session, as its network side and its consumer know it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use laredo_core::{Lsn, TableName};
use laredo_proto::replication::SyncHandshake;
use tokio::sync::watch;

use crate::assembler::StreamMode;
#[cfg(feature = "metrics")]
use crate::metric_reporter::ClientSample;
use crate::status::{ReplicaError, ReplicaStatus, StatusReceiver};

/// A clock that never goes back.
pub(crate) type MonotonicClock = Box<dyn Fn() -> Instant + Send + Sync>;

/// The status of a session, and the clock for it.
pub(crate) struct SessionHealth {
    /// The table's name, for the log.
    table: TableName,
    status: watch::Sender<ReplicaStatus>,
    progress: SessionProgress,
    now: MonotonicClock,
}

/// The numbers of a session that change too often to wake watchers of its status.
#[derive(Default)]
struct SessionProgress {
    transactions: AtomicU64,
    changes: AtomicU64,
    server_position: AtomicU64,
    /// The position of the last event that a subscription has returned.
    delivered_position: AtomicU64,
    /// The time before which a subscription has returned everything that was committed.
    delivered_until: watch::Sender<Option<Instant>>,
}

impl SessionHealth {
    pub(crate) fn new(table: TableName, now: MonotonicClock) -> SessionHealth {
        SessionHealth { table, status: watch::Sender::default(), progress: SessionProgress::default(), now }
    }

    pub(crate) fn table(&self) -> &TableName {
        &self.table
    }

    pub(crate) fn now(&self) -> Instant {
        (self.now)()
    }

    pub(crate) fn clock(&self) -> &(dyn Fn() -> Instant + Send + Sync) {
        &*self.now
    }

    /// Returns the status, without the position and the number of rows.
    pub(crate) fn status(&self) -> ReplicaStatus {
        let SessionProgress { transactions, changes, server_position, .. } = &self.progress;
        ReplicaStatus {
            transactions: transactions.load(Ordering::Relaxed),
            changes: changes.load(Ordering::Relaxed),
            server_position: Lsn(server_position.load(Ordering::Relaxed)),
            ..self.status.borrow().clone()
        }
    }

    /// Notes that a transaction with this many changes was applied.
    pub(crate) fn applied(&self, changes: usize) {
        self.progress.transactions.fetch_add(1, Ordering::Relaxed);
        self.progress.changes.fetch_add(changes as u64, Ordering::Relaxed);
    }

    /// Notes that the server has everything up to this position.
    pub(crate) fn server_reached(&self, position: Lsn) {
        self.progress.server_position.store(position.0, Ordering::Relaxed);
    }

    pub(crate) fn watch_status(&self) -> StatusReceiver {
        StatusReceiver::new(self.status.subscribe())
    }

    /// Notes that a subscription has returned everything up to this position. The time is that
    /// before which nothing is missing, if it is known.
    pub(crate) fn delivered(&self, position: Lsn, until: Option<Instant>) {
        self.progress.delivered_position.store(position.0, Ordering::Relaxed);
        if until.is_some() {
            self.progress.delivered_until.send_replace(until);
        }
    }

    /// Returns the numbers of a subscription.
    #[cfg(feature = "metrics")]
    pub(crate) fn subscription_sample(&self) -> ClientSample {
        let mut status = self.status();
        status.position = Lsn(self.progress.delivered_position.load(Ordering::Relaxed));
        let until = *self.progress.delivered_until.borrow();
        ClientSample { status, rows: None, age: until.map(|until| self.now().saturating_duration_since(until)) }
    }

    /// Notes that a stream is open.
    pub(crate) fn opened(&self, handshake: &SyncHandshake) {
        let mode = StreamMode::from_wire(handshake.mode());
        self.status.send_modify(|status| {
            status.connected = true;
            status.connects += 1;
            status.full_snapshots += u64::from(mode == Some(StreamMode::FullSnapshot));
            status.mode = mode;
            status.reason.clone_from(&handshake.reason);
            status.error = None;
        });
    }

    /// Notes that the stream is closed.
    pub(crate) fn disconnected(&self) {
        self.status.send_modify(|status| status.connected = false);
    }

    /// Notes that the stream is closed or could not be opened.
    pub(crate) fn fail(&self, error: &ReplicaError) {
        self.status.send_modify(|status| {
            status.connected = false;
            status.error = Some(error.clone());
            status.last_error = Some(error.clone());
        });
    }

    /// Notes that the server's head was reached.
    pub(crate) fn ready(&self) {
        self.status.send_if_modified(|status| !std::mem::replace(&mut status.ready, true));
    }

    /// Notes that a full snapshot replaced existing rows.
    pub(crate) fn resynced(&self) {
        self.status.send_modify(|status| status.resyncs += 1);
    }

    /// Notes that the rows at this position have the server's checksum.
    pub(crate) fn agrees(&self, position: Lsn) {
        self.status.send_if_modified(|status| {
            status.checksum_position = position;
            // This happens several times a second, so it does not wake watchers.
            false
        });
    }

    /// Notes that the rows do not have the server's checksum.
    pub(crate) fn differs(&self) {
        self.status.send_modify(|status| status.checksum_mismatches += 1);
    }

    /// Notes that the session has ended permanently.
    pub(crate) fn stopped(&self) {
        self.status.send_modify(|status| {
            status.connected = false;
            status.stopped = true;
        });
    }
}
