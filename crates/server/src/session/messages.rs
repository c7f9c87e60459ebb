//! The messages of a stream that are not rows.

use std::time::Duration;

use laredo_core::{Checksum, CommitTime, Lsn};
use laredo_engine::base::Base;
use laredo_engine::journal::{Head, Journal};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    Encoding, GoAway, Heartbeat, RowEncoding, SnapshotBegin, SnapshotEnd, SyncHandshake, SyncMode, SyncResponse,
};
use laredo_proto::{frame, schema};

use super::{Ask, Start};
use crate::request::identity_to_wire;
use crate::table::Served;
use crate::view::{Marker, marker, timestamp};

/// What the messages of one stream are made of.
pub(super) struct Greeting<'a> {
    pub(super) table: &'a Served,
    pub(super) journal: &'a Journal,
    pub(super) ask: &'a Ask,
    pub(super) start: &'a Start,
    pub(super) is_filtered: bool,
}

impl Greeting<'_> {
    pub(super) fn is_binary(&self) -> bool {
        self.ask.encoding == RowEncoding::PostgresBinary
    }

    pub(super) fn handshake(&self, base: Option<&Base>, out: &mut Vec<u8>) {
        let (start, ask) = (self.start, self.ask);
        let info = self.journal.info();
        let (mode, snapshot_id) = match base {
            Some(base) => (SyncMode::FullSnapshot, base.snapshot_id(self.journal.instance())),
            None => (SyncMode::Delta, self.snapshot_id()),
        };
        let mut handshake = SyncHandshake {
            mode: mode.into(),
            server_current_sequence: info.head.sequence.to_wire(),
            journal_oldest_sequence: info.oldest_sequence.to_wire(),
            resume_from_sequence: start.after.to_wire(),
            columns: schema::column_definitions(&start.schema),
            snapshot_id,
            ..SyncHandshake::default()
        };
        if ask.is_ours {
            handshake.encoding = self
                .is_binary()
                .then(|| Encoding { format: ask.encoding.into(), schema: Some(schema::to_wire(&start.schema)) });
            handshake.instance_id.clone_from(&self.journal.instance().0);
            handshake.source = Some(identity_to_wire(&self.table.options.source));
            handshake.reason = start.reason.to_owned();
            handshake.server_current_position = info.head.position.0;
        }
        put(Message::Handshake(handshake), out);
    }

    /// What names this journal in the client's next request, where it goes on without a snapshot: its own id if that does, or else
    /// one for where it goes on. With another journal's id it could some day be given that journal's changes after a sequence of
    /// this one.
    fn snapshot_id(&self) -> String {
        let (instance, own) = (self.journal.instance(), &self.ask.resume.snapshot_id);
        let is_ours = own.strip_prefix(&instance.0).is_some_and(|rest| rest.starts_with('-'));
        if is_ours { own.clone() } else { instance.snapshot_id(self.start.after) }
    }

    /// Its row count is 0, for unknown, where a filter is yet to count.
    pub(super) fn snapshot_begin(&self, base: &Base, out: &mut Vec<u8>) {
        let rows = if self.is_filtered { 0 } else { base.rows() };
        let begin = SnapshotBegin {
            snapshot_id: base.snapshot_id(self.journal.instance()),
            sequence: base.sequence().to_wire(),
            row_count: count(rows),
            source_position: self.position(Some(base.position())),
        };
        put(Message::SnapshotBegin(begin), out);
    }

    pub(super) fn snapshot_end(&self, base: &Base, rows: u64, out: &mut Vec<u8>) {
        let end = SnapshotEnd {
            sequence: base.sequence().to_wire(),
            rows_sent: count(rows),
            source_position: self.position(Some(base.position())),
            checksum: self.checksum(base.checksum()),
            ..SnapshotEnd::default()
        };
        put(Message::SnapshotEnd(end), out);
    }

    /// For readers of Structs: an entry that says no more than where they are.
    pub(super) fn marker(&self, out: &mut Vec<u8>) {
        if !self.is_binary() {
            let Start { after: sequence, position, committed_at, .. } = *self.start;
            marker(Marker { sequence, position, committed_at }, out);
        }
    }

    /// `sent` where every commit up to there was sent, and nothing beyond.
    pub(super) fn heartbeat(&self, now: CommitTime, sent: Option<Head>) -> Vec<u8> {
        let Head { sequence, .. } = self.journal.head();
        let heartbeat = Heartbeat {
            current_sequence: sequence.to_wire(),
            server_time: Some(timestamp(now)),
            source_position: self.position(sent.map(|head| head.position)),
            checksum: self.checksum(sent.and_then(|head| head.checksum)),
            ..Heartbeat::default()
        };
        let mut out = Vec::new();
        put(Message::Heartbeat(heartbeat), &mut out);
        out
    }

    /// Asks the client to leave; it has `left` to do so, or any time.
    pub(super) fn go_away(&self, now: CommitTime, left: Option<Duration>) -> Vec<u8> {
        let deadline = left.map(|left| now.unix_us() / 1000 + i64::try_from(left.as_millis()).unwrap_or(i64::MAX / 2));
        let go_away = GoAway { reason: "draining".to_owned(), drain_deadline_unix_ms: deadline.unwrap_or_default() };
        let mut out = Vec::new();
        put(Message::GoAway(go_away), &mut out);
        out
    }

    /// Only for clients that know the extensions.
    fn position(&self, position: Option<Lsn>) -> String {
        position.filter(|_| self.ask.is_ours).map_or_else(String::new, |position| position.to_string())
    }

    /// Returns the checksum for clients that asked for it; empty where it is unknown.
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
