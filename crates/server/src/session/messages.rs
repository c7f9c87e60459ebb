//! The messages of a stream, except those with rows.

use std::time::Duration;

use laredo_core::{Checksum, CommitMark, CommitTime, Lsn, Schema, ScopedMark, SourceIdentity};
use laredo_engine::base::Base;
use laredo_engine::journal::{Head, Journal};
use laredo_proto::replication as wire;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    Encoding, GoAway, Heartbeat, RowEncoding, SchemaChangeNotification, SnapshotBegin, SnapshotEnd, SyncHandshake,
    SyncResponse,
};
use laredo_proto::{frame, schema};
use tokio::time::Instant;
use tonic::Status;

use super::outlet::SessionOutlet;
use super::{SessionRequest, SessionStart};
use crate::refusal;
use crate::roster::{CheckId, RosterMembership};
use crate::table::ServedTable;
use crate::view::{PositionMarker, StreamFormat, ViewError, marker, timestamp};

/// The state that the messages of one stream are made from.
#[derive(Clone, Copy)]
pub(super) struct MessageContext<'a> {
    pub(super) table: &'a ServedTable,
    pub(super) journal: &'a Journal,
    pub(super) ask: &'a SessionRequest,
    pub(super) membership: &'a RosterMembership,
    pub(super) start: &'a SessionStart,
    /// The columns that the client receives at the start.
    pub(super) columns: &'a Schema,
    pub(super) is_filtered: bool,
}

impl MessageContext<'_> {
    pub(super) fn is_binary(&self) -> bool {
        self.ask.format == StreamFormat::Batches
    }

    /// Returns true for a client that knows the protocol without extensions.
    pub(super) fn is_structs(&self) -> bool {
        self.ask.format == StreamFormat::Structs
    }

    /// Returns true for a subscriber, which is sent rows and changes, and no other message.
    pub(super) fn is_subscription(&self) -> bool {
        self.ask.format == StreamFormat::Events
    }

    pub(super) fn handshake(&self, out: &mut Vec<u8>) {
        if self.is_subscription() {
            return;
        }
        let (start, ask) = (self.start, self.ask);
        let info = self.journal.info();
        let mut handshake = SyncHandshake {
            mode: start.mode.into(),
            server_current_sequence: info.head.sequence.to_wire(),
            journal_oldest_sequence: info.oldest_sequence.to_wire(),
            resume_from_sequence: start.after.to_wire(),
            columns: schema::column_definitions(self.columns),
            snapshot_id: start.snapshot_id.clone(),
            ..SyncHandshake::default()
        };
        if ask.is_ours {
            handshake.encoding = self.is_binary().then(|| Encoding {
                format: RowEncoding::PostgresBinary.into(),
                schema: Some(schema::to_wire(self.columns)),
            });
            handshake.instance_id = ask.scope.name_instance(self.journal.instance()).0;
            handshake.source = Some(SourceIdentity::clone(&self.table.handle().history().identity()).into());
            handshake.another_history = start.is_another_history;
            handshake.shared_position = start.shared_position.0;
            handshake.reason = start.reason.to_owned();
            handshake.server_current_position = info.head.position.0;
            handshake.definition = start.definition.0;
        }
        put(Message::Handshake(handshake), out);
    }

    /// Returns the final status for rows that cannot be projected.
    pub(super) fn view_error(&self, error: &ViewError) -> Status {
        refusal::view(error, &self.ask.origins)
    }

    /// Writes a notice that the rows of the snapshot have other columns than the handshake said.
    pub(super) fn schema_change(&self, base: &Base, columns: &Schema, out: &mut Vec<u8>) {
        if self.is_subscription() {
            return;
        }
        let notice = SchemaChangeNotification {
            sequence: base.sequence().to_wire(),
            old_columns: schema::column_definitions(self.columns),
            new_columns: schema::column_definitions(columns),
        };
        put(Message::SchemaChange(notice), out);
    }

    /// Writes the beginning of a snapshot. The row count is 0 (unknown) if the client has a filter.
    pub(super) fn snapshot_begin(&self, base: &Base, out: &mut Vec<u8>) {
        if self.is_subscription() {
            return;
        }
        let rows = if self.is_filtered { 0 } else { base.rows() };
        let begin = SnapshotBegin {
            snapshot_id: self.start.snapshot_id.clone(),
            sequence: base.sequence().to_wire(),
            row_count: count(rows),
            source_position: self.position(Some(base.position())),
        };
        put(Message::SnapshotBegin(begin), out);
    }

    /// Writes the end of a snapshot. `rows` is the number of the snapshot's rows, without the
    /// entries that may follow them. `mark` is the newest commit at or before the end, and
    /// `checksum` is that of the rows there, if they are known.
    pub(super) fn snapshot_end(
        &self,
        at: PositionMarker,
        mark: CommitMark,
        checksum: Option<Checksum>,
        rows: u64,
        out: &mut Vec<u8>,
    ) {
        if self.is_subscription() {
            return;
        }
        let end = SnapshotEnd {
            sequence: at.sequence.to_wire(),
            rows_sent: count(rows),
            source_position: self.position(Some(at.position)),
            checksum: self.checksum(checksum),
            mark: self.mark(mark),
            definition: if self.ask.is_ours { self.start.definition.0 } else { 0 },
        };
        put(Message::SnapshotEnd(end), out);
    }

    /// Writes an entry that only carries the position, for readers of Structs.
    pub(super) fn marker(&self, at: PositionMarker, out: &mut Vec<u8>) {
        if self.is_structs() {
            marker(at, out);
        }
    }

    /// Returns the time of the next heartbeat, if nothing else is sent before.
    pub(super) fn heartbeat_at(&self, outlet: &SessionOutlet) -> Instant {
        outlet.sent_at() + self.table.heartbeat_interval()
    }

    /// Writes a heartbeat, which is empty for a subscriber. `sent` is the head if everything up to
    /// it was sent, and nothing beyond.
    pub(super) fn heartbeat(&self, now: CommitTime, sent: Option<Head>) -> Vec<u8> {
        self.asking_heartbeat(now, sent.map(|head| (head, self.current_at())), None)
    }

    /// Returns the time at which the table was last known to equal the database's.
    pub(super) fn current_at(&self) -> CommitTime {
        self.table.handle().current_at()
    }

    /// Writes a heartbeat that asks the client for the checksum of its rows, if there is a check.
    /// The head has the time at which the table was known to equal the database's when it was seen.
    pub(super) fn asking_heartbeat(
        &self,
        now: CommitTime,
        sent: Option<(Head, CommitTime)>,
        check: Option<CheckId>,
    ) -> Vec<u8> {
        if self.is_subscription() {
            return Vec::new();
        }
        let Head { sequence, .. } = self.journal.head();
        let lag_ms = |(head, current_at)| self.source_lag_ms(now, head, current_at);
        let source_lag_ms = sent.filter(|_| self.ask.is_ours).map_or(0, lag_ms);
        let sent = sent.map(|(head, _)| head);
        let heartbeat = Heartbeat {
            current_sequence: sequence.to_wire(),
            server_time: Some(timestamp(now)),
            source_position: sent.map_or_else(String::new, |sent| sent.position.to_string()),
            earlier_source_position: self.position(sent.map(|sent| sent.position)),
            checksum: self.checksum(sent.and_then(|sent| sent.checksum)),
            mark: sent.and_then(|sent| self.mark(sent.mark)),
            check: check.map_or_else(Vec::new, |check| check.to_bytes().to_vec()),
            source_lag_ms,
        };
        let mut out = Vec::new();
        put(Message::Heartbeat(heartbeat), &mut out);
        out
    }

    /// Returns the time, in ms, since the rows at a head were last known to be all that the
    /// database had.
    fn source_lag_ms(&self, now: CommitTime, head: Head, current_at: CommitTime) -> u64 {
        // The status is updated after the head.
        let current_at = current_at.max(head.committed_at);
        let now = self.table.handle().source_time(now);
        u64::try_from(now.0.saturating_sub(current_at.0) / 1000).unwrap_or(0)
    }

    /// Writes a message that asks the client to leave within `left`, or at any time.
    pub(super) fn go_away(&self, now: CommitTime, left: Option<Duration>) -> Vec<u8> {
        let deadline = left.map(|left| now.unix_us() / 1000 + i64::try_from(left.as_millis()).unwrap_or(i64::MAX / 2));
        let go_away = GoAway { reason: "draining".to_owned(), drain_deadline_unix_ms: deadline.unwrap_or_default() };
        let mut out = Vec::new();
        put(Message::GoAway(go_away), &mut out);
        out
    }

    /// Returns the newest commit at or before a position if it is known, for clients that know the
    /// extensions.
    fn mark(&self, mark: CommitMark) -> Option<wire::CommitMark> {
        let scope = self.table.handle().history().scope();
        mark.known().filter(|_| self.ask.is_ours).map(|commit| ScopedMark { commit, scope }.into())
    }

    /// Returns the text of a position for clients that know the extensions. It is empty for others.
    fn position(&self, position: Option<Lsn>) -> String {
        position.filter(|_| self.ask.is_ours).map_or_else(String::new, |position| position.to_string())
    }

    /// Returns the checksum for clients that asked for it. It is empty if it is unknown.
    fn checksum(&self, checksum: Option<Checksum>) -> Vec<u8> {
        let checksum = checksum.filter(|_| self.ask.wants_checksums);
        checksum.map_or_else(Vec::new, |checksum| checksum.to_bytes().to_vec())
    }
}

fn put(message: Message, out: &mut Vec<u8>) {
    let message = Some(message);
    frame::encode(&SyncResponse { message }, out);
}

fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
