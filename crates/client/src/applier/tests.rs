use super::*;
use crate::fixtures::{greeting, snapshot, two_columns};
use crate::layout::RowLayout;
use laredo_core::{CanaryFault, Cell, KeyColumns, Schema, TableState, TupleBuf};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{Heartbeat, RowBatch, SyncMode, SyncResponse};
use prost_types::Timestamp;
use std::sync::Mutex;

/// An applier that receives its inputs from the test, on a clock that only the test moves.
struct ApplierRig {
    applier: ReplicaApplier,
    started: Instant,
    now: Arc<Mutex<Duration>>,
    position: u64,
    _inputs: mpsc::UnboundedSender<SessionInput>,
}

impl ApplierRig {
    /// Returns a rig at position 1, without rows.
    fn new() -> ApplierRig {
        let layout = Arc::new(RowLayout::new(Arc::new(Schema::new(vec![], KeyColumns::new([]), Default::default()))));
        let (started, now) = (Instant::now(), Arc::new(Mutex::new(Duration::ZERO)));
        let clock = now.clone();
        let clock = Box::new(move || started + *clock.lock().unwrap());
        let health = Arc::new(SessionHealth::new(laredo_core::TableName::new("public", "t"), clock));
        let shared =
            Arc::new(ReplicaState::new(ReplicaFront::new(ReplicaTable::empty(layout)), ChangeHub::new(1), health));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let applier = ReplicaApplier::new(shared, vec![], None, waiting, mpsc::unbounded_channel().0);
        let mut rig = ApplierRig { applier, started, now, position: 1, _inputs: inputs };
        rig.receive(0, Message::Handshake(greeting(SyncMode::FullSnapshot, 1)));
        snapshot(1, &[]).into_iter().for_each(|message| rig.receive(0, message));
        rig
    }

    fn receive(&mut self, second: u64, message: Message) {
        let share = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let received = self.started + Duration::from_secs(second);
        self.applier.process_input(SessionInput::Message(
            Box::new(SyncResponse { message: Some(message) }),
            received,
            share,
        ));
    }

    fn transaction(&mut self, second: u64) {
        self.position += 1;
        let batch = RowBatch { position: self.position, ends: true, ..RowBatch::default() };
        self.receive(second, Message::Batch(batch));
        self.applier.publish_applied();
        self.applier.receiver.note_ready();
    }

    fn heartbeat(&mut self, second: u64, sent: u64) {
        self.lagging_heartbeat(second, sent, 0);
    }

    fn lagging_heartbeat(&mut self, second: u64, sent: u64, source_lag_ms: u64) {
        let server_time = Some(Timestamp { seconds: sent.try_into().unwrap(), nanos: 0 });
        let source_position = Lsn(self.position).to_string();
        let heartbeat = Heartbeat { server_time, source_position, source_lag_ms, ..Heartbeat::default() };
        self.receive(second, Message::Heartbeat(heartbeat));
        self.applier.publish_applied();
    }

    /// Returns the age in seconds, at this second.
    fn age(&self, second: u64) -> f64 {
        *self.now.lock().unwrap() = Duration::from_secs(second);
        let shared = &self.applier.shared;
        shared.health.now().saturating_duration_since(shared.at_head().unwrap()).as_secs_f64().round()
    }
}

#[test]
fn transactions_say_nothing_of_the_age() {
    let mut rig = ApplierRig::new();
    assert!(rig.applier.shared.at_head().is_none());
    rig.heartbeat(0, 1000);
    for second in 1..10 {
        rig.transaction(second);
        assert_eq!(rig.age(second), second as f64);
    }
    assert!(rig.applier.shared.health.status().ready);
}

#[test]
fn a_client_at_the_head_stays_young_under_steady_traffic() {
    let mut rig = ApplierRig::new();
    for second in 0..10 {
        rig.transaction(second);
        rig.heartbeat(second, 1000 + second);
        assert_eq!(rig.age(second), 0.0);
    }
}

#[test]
fn a_client_on_a_line_that_is_too_slow_says_how_far_it_lags() {
    let mut rig = ApplierRig::new();
    for step in 0..10 {
        rig.transaction(2 * step);
        rig.heartbeat(2 * step, 1000 + step);
        assert_eq!(rig.age(2 * step), step as f64);
    }
}

#[test]
fn a_heartbeat_that_waits_to_be_applied_counts_from_when_it_came() {
    let mut rig = ApplierRig::new();
    rig.transaction(3);
    *rig.now.lock().unwrap() = Duration::from_secs(10);
    rig.heartbeat(3, 1000);
    assert_eq!(rig.age(10), 7.0);
}

#[test]
fn the_lag_of_the_server_adds_to_the_age() {
    let mut rig = ApplierRig::new();
    rig.lagging_heartbeat(100, 1100, 40_000);
    assert_eq!((rig.age(100), rig.age(103)), (40.0, 43.0));
    // The message was delayed, too.
    rig.lagging_heartbeat(108, 1105, 45_000);
    assert_eq!(rig.age(108), 48.0);
    rig.heartbeat(110, 1110);
    assert_eq!(rig.age(110), 0.0);
    // It was current at that time, whatever comes later.
    rig.lagging_heartbeat(120, 1120, 40_000);
    assert_eq!(rig.age(120), 10.0);
    // The database was away before the client started.
    let mut rig = ApplierRig::new();
    rig.lagging_heartbeat(1, 1001, 3_600_000);
    assert_eq!((rig.age(1), rig.age(2)), (3600.0, 3601.0));
    let mut rig = ApplierRig::new();
    rig.lagging_heartbeat(1, 1001, u64::MAX);
    assert!(rig.age(1) > 3_600_000.0);
}

#[test]
fn a_heartbeat_without_a_position_says_nothing_of_the_age() {
    let mut rig = ApplierRig::new();
    rig.heartbeat(0, 1000);
    rig.receive(5, Message::Heartbeat(Heartbeat::default()));
    rig.applier.publish_applied();
    assert_eq!(rig.age(5), 5.0);
}

/// Returns the checksum of the rows with these keys, and a snapshot of them with that checksum.
fn keyed(position: u64, keys: &[&str]) -> (Checksum, [Message; 3]) {
    let mut table = TableState::new(two_columns(), &[], 0).unwrap();
    for key in keys {
        let row: TupleBuf = [key.as_bytes(), b"b"].into_iter().map(Cell::Value).collect();
        table.put(row.as_ref().to_tuple());
    }
    let mut messages = snapshot(position, keys);
    if let Message::SnapshotEnd(end) = &mut messages[2] {
        end.checksum = table.checksum().to_bytes().to_vec();
    }
    (table.checksum(), messages)
}

impl ApplierRig {
    /// Loads a snapshot at the rig's position.
    fn load(&mut self, messages: [Message; 3]) {
        self.open();
        self.receive(0, Message::Handshake(greeting(SyncMode::FullSnapshot, self.position)));
        messages.into_iter().for_each(|message| self.receive(0, message));
        self.applier.publish_applied();
    }

    fn heartbeat_with(&mut self, position: u64, checksum: Checksum) {
        let (source_position, checksum) = (Lsn(position).to_string(), checksum.to_bytes().to_vec());
        self.receive(0, Message::Heartbeat(Heartbeat { source_position, checksum, ..Heartbeat::default() }));
        self.applier.publish_applied();
    }

    /// Opens a stream, and returns the state that it resumes from.
    fn open(&mut self) -> ResumeState {
        let (answer, mut resume) = tokio::sync::oneshot::channel();
        self.applier.process_input(SessionInput::Open(answer));
        resume.try_recv().unwrap()
    }

    fn status(&self) -> crate::status::ReplicaStatus {
        self.applier.shared.health.status()
    }

    fn checksum(&self) -> Checksum {
        self.applier.writer.current().table.as_ref().unwrap().checksum()
    }
}

const KEYS: [&str; 3] = ["k", "l", "m"];

/// The faults are a wrong cell, a missing row and an extra row.
#[test]
fn a_row_that_is_wrong_is_found_and_all_rows_are_loaded_again() {
    for canary in CanaryFault::ALL {
        let mut rig = ApplierRig::new();
        let (theirs, messages) = keyed(1, &KEYS);
        rig.load(messages.clone());
        rig.heartbeat_with(1, theirs);
        assert_eq!((rig.status().checksum_mismatches, rig.status().checksum_position), (0, Lsn(1)), "{canary:?}");
        assert!(rig.applier.plant(canary), "{canary:?}");
        assert_ne!(rig.checksum(), theirs, "{canary:?}");
        rig.heartbeat_with(1, theirs);
        assert_eq!(rig.status().checksum_mismatches, 1, "{canary:?}");
        assert_eq!(rig.open(), ResumeState { contents_differed: true, ..ResumeState::default() }, "{canary:?}");
        assert_ne!(rig.checksum(), theirs, "{canary:?}: what there was is shown until there is something better");
        rig.load(messages);
        rig.heartbeat_with(1, theirs);
        assert_eq!((rig.checksum(), rig.status().checksum_mismatches), (theirs, 1), "{canary:?}");
        assert!(!rig.open().contents_differed, "{canary:?}");
    }
}

#[test]
fn only_rows_at_the_same_position_are_compared() {
    let mut rig = ApplierRig::new();
    let (theirs, messages) = keyed(1, &KEYS);
    rig.load(messages);
    rig.position = 1;
    rig.transaction(0);
    let (other, _) = keyed(1, &["other"]);
    rig.heartbeat_with(1, other);
    assert_eq!((rig.status().checksum_mismatches, rig.status().checksum_position), (0, Lsn(1)), "an older position");
    rig.heartbeat_with(5, theirs);
    assert_eq!((rig.status().checksum_mismatches, rig.status().checksum_position), (0, Lsn(5)));
}

#[test]
fn what_was_applied_and_is_not_shown_yet_is_compared() {
    let mut rig = ApplierRig::new();
    let (_, messages) = keyed(1, &KEYS);
    rig.load(messages);
    let (theirs, _) = keyed(2, &["k", "l", "m", "n"]);
    rig.receive(0, Message::Batch(crate::fixtures::batch(2, &["n"])));
    rig.heartbeat_with(2, theirs);
    assert_eq!((rig.status().checksum_mismatches, rig.status().checksum_position), (0, Lsn(2)));
}

/// Rows that are wrong on arrival are not shown, unless the server always sends them with this
/// error.
#[test]
fn a_snapshot_without_its_checksum_is_refused_once() {
    let mut rig = ApplierRig::new();
    let (right, messages) = keyed(1, &KEYS);
    rig.load(messages);
    let (wrong, mut other) = keyed(1, &["k", "x"]);
    let Message::SnapshotEnd(end) = &mut other[2] else { panic!("the last message ends it") };
    end.checksum = right.to_bytes().to_vec();
    rig.load(other.clone());
    assert_eq!((rig.checksum(), rig.status().checksum_mismatches), (right, 1), "the old rows stay");
    assert!(rig.open().contents_differed);
    rig.load(other);
    assert_eq!((rig.checksum(), rig.status().checksum_mismatches), (wrong, 2), "better than none for ever");
    rig.heartbeat_with(1, right);
    assert_eq!(rig.status().checksum_mismatches, 2, "it was said");
    *rig.now.lock().unwrap() = Duration::from_secs(60);
    rig.heartbeat_with(1, right);
    assert_eq!(rig.status().checksum_mismatches, 3, "a minute later it is tried again");
    assert!(rig.open().contents_differed);
}

#[test]
fn a_checksum_of_another_length_breaks_the_protocol() {
    let mut rig = ApplierRig::new();
    let (source_position, checksum) = (Lsn(1).to_string(), vec![1, 2, 3]);
    rig.receive(0, Message::Heartbeat(Heartbeat { source_position, checksum, ..Heartbeat::default() }));
    assert_eq!(rig.open(), ResumeState::default());
}
