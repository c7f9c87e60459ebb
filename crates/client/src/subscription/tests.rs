use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::assembler::ProtocolError;
use crate::fixtures::{batch, greeting, snapshot, two_columns};
use crate::status::ReplicaError;
use futures_util::FutureExt as _;
use laredo_core::{KeyColumns, TupleBuf};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    CommitMark, Heartbeat, ReportChecksumRequest, RowBatch, SyncHandshake, SyncMode, SyncResponse,
};
use prost_types::Timestamp;
use tokio::sync::{Semaphore, oneshot};

/// A subscription whose session is played by the test.
struct SubscriptionRig {
    subscription: Subscription,
    inputs: mpsc::UnboundedSender<SessionInput>,
    feedback: mpsc::UnboundedReceiver<SessionFeedback>,
    started: Instant,
    /// The seconds since the start.
    now: Arc<AtomicU64>,
}

impl SubscriptionRig {
    fn new(resume: Option<ResumePoint>) -> SubscriptionRig {
        let (started, now) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let clock = now.clone();
        let clock = Box::new(move || started + Duration::from_secs(clock.load(Ordering::Relaxed)));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let (told, feedback) = mpsc::unbounded_channel();
        let (table, stop) = (TableName::new("public", "t"), CancellationToken::new());
        let health = Arc::new(SessionHealth::new(table.clone(), clock));
        let subscription = Subscription::new(table, health, waiting, told, resume, stop);
        SubscriptionRig { subscription, inputs, feedback, started, now }
    }

    /// Returns a subscription that has rows at a position.
    fn at(position: u64, keys: &[&str]) -> SubscriptionRig {
        let mut rig = SubscriptionRig::new(None);
        rig.open(greeting(SyncMode::FullSnapshot, position));
        rig.snapshot(position, keys);
        assert_eq!(rig.events().len(), 2);
        rig
    }

    /// Opens a stream, and returns the state that it resumes from.
    fn open(&mut self, greeting: SyncHandshake) -> ResumeState {
        let (answer, mut resume) = oneshot::channel();
        assert!(self.inputs.send(SessionInput::Open(answer)).is_ok());
        assert_eq!(self.events(), [""; 0]);
        self.receive(Message::Handshake(greeting));
        resume.try_recv().unwrap()
    }

    fn receive(&self, message: Message) {
        let share = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let received = self.started + Duration::from_secs(self.now.load(Ordering::Relaxed));
        let input = SessionInput::Message(Box::new(SyncResponse { message: Some(message) }), received, share);
        assert!(self.inputs.send(input).is_ok());
    }

    fn snapshot(&self, position: u64, keys: &[&str]) {
        snapshot(position, keys).into_iter().for_each(|message| self.receive(message));
    }

    fn batch(&self, batch: RowBatch) {
        self.receive(Message::Batch(batch));
    }

    fn heartbeat(&self, source_position: &str, sent: i64) {
        let server_time = Some(Timestamp { seconds: sent, nanos: 0 });
        let source_position = source_position.to_owned();
        self.receive(Message::Heartbeat(Heartbeat { server_time, source_position, ..Heartbeat::default() }));
    }

    /// Returns the events that have arrived, as text. The future that waits for the next event is
    /// dropped.
    fn events(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.subscription.next().now_or_never() {
            let is_last = matches!(event, SubscriptionEvent::Ended { .. });
            events.push(self.words(event));
            if is_last {
                break;
            }
        }
        events
    }

    fn words(&self, event: SubscriptionEvent) -> String {
        match event {
            SubscriptionEvent::Restart { reason, .. } => format!("restart, {reason}"),
            SubscriptionEvent::State { table, position, .. } => {
                let key = |row: &laredo_core::Tuple| {
                    let key = row.as_ref().cells().next().unwrap().value().unwrap().to_vec();
                    String::from_utf8(key).unwrap()
                };
                let mut keys: Vec<_> = table.rows().map(key).collect();
                keys.sort();
                format!("{keys:?} at {position}")
            }
            SubscriptionEvent::Resumed { position, .. } => format!("resumed at {position}"),
            SubscriptionEvent::Transaction(transaction) => {
                format!("{} more at {}", transaction.changes.len(), transaction.position)
            }
            SubscriptionEvent::Current { position, at, .. } => {
                format!("all at {position} as of {}", at.saturating_duration_since(self.started).as_secs())
            }
            SubscriptionEvent::Ended { .. } => "ended".to_owned(),
        }
    }

    fn fault(&mut self) -> ReplicaError {
        match self.feedback.try_recv().unwrap() {
            SessionFeedback::Fault(fault) => fault,
            SessionFeedback::Report(report) => panic!("{report:?}"),
        }
    }

    /// Returns the answer to a check.
    fn report(&mut self) -> ReportChecksumRequest {
        match self.feedback.try_recv().unwrap() {
            SessionFeedback::Report(report) => report,
            SessionFeedback::Fault(fault) => panic!("{fault}"),
        }
    }
}

const RESTART: &str = "restart, so says the test";

fn source(timeline: u32) -> Option<SourceIdentity> {
    Some(SourceIdentity { timeline, ..SourceIdentity::default() })
}

fn point(position: u64) -> ResumePoint {
    let definition = DefinitionVersion::UNKNOWN;
    ResumePoint { schema: two_columns(), position: Lsn(position), source: None, definition, mark: None }
}

fn positioned(position: u64) -> ResumeState {
    ResumeState { position: Lsn(position), ..ResumeState::default() }
}

#[test]
fn all_rows_come_first_and_then_each_transaction_once() {
    let mut rig = SubscriptionRig::new(None);
    let first = greeting(SyncMode::FullSnapshot, 3);
    let resume = rig.open(SyncHandshake { instance_id: "j".into(), server_current_sequence: 9, ..first });
    assert_eq!(resume, ResumeState::default());
    rig.snapshot(1, &["k", "l"]);
    rig.batch(batch(2, &["m"]));
    assert_eq!(rig.events(), [RESTART, "[\"k\", \"l\"] at 0/1", "1 more at 0/2"]);
    assert!(!rig.subscription.status().ready);
    rig.batch(RowBatch { last_sequence: 7, ..batch(3, &["n", "o"]) });
    assert_eq!(rig.events(), ["2 more at 0/3"]);
    let status = rig.subscription.status();
    assert_eq!((status.ready, status.position, status.full_snapshots, status.resyncs), (true, Lsn(3), 1, 0));
    let resume = rig.open(SyncHandshake { instance_id: "other".into(), ..greeting(SyncMode::Delta, 4) });
    assert_eq!(
        resume,
        ResumeState { instance_id: "j".into(), sequence: Some(laredo_core::Sequence(7)), ..positioned(3) }
    );
    rig.batch(batch(2, &["m"]));
    rig.batch(batch(3, &["n", "o"]));
    rig.batch(batch(4, &["p"]));
    assert_eq!(rig.events(), ["resumed at 0/3", "1 more at 0/4"]);
}

#[test]
fn half_a_transaction_is_void_when_the_stream_is_another() {
    let mut rig = SubscriptionRig::at(1, &[]);
    rig.batch(RowBatch { ends: false, ..batch(2, &["k", "l"]) });
    assert_eq!(
        rig.open(greeting(SyncMode::Delta, 2)),
        ResumeState { sequence: Some(laredo_core::Sequence(0)), ..positioned(1) }
    );
    rig.batch(RowBatch { ends: false, ..batch(2, &["k"]) });
    assert_eq!(rig.events(), ["resumed at 0/1"]);
    rig.batch(batch(2, &["l"]));
    assert_eq!(rig.events(), ["2 more at 0/2"]);
}

#[test]
fn a_snapshot_that_is_older_than_what_was_handed_out_waits_until_it_is_not() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.open(greeting(SyncMode::FullSnapshot, 9));
    rig.snapshot(2, &["l"]);
    rig.batch(batch(4, &["m"]));
    assert_eq!(rig.events(), [RESTART]);
    rig.heartbeat("0/3", 0);
    assert_eq!(rig.events(), [""; 0]);
    rig.batch(batch(6, &["n"]));
    rig.batch(batch(7, &["o"]));
    assert_eq!(rig.events(), ["[\"l\", \"m\", \"n\"] at 0/6", "1 more at 0/7"]);
    assert_eq!(rig.subscription.status().resyncs, 1);
    // A heartbeat without changes also raises the position.
    rig.open(greeting(SyncMode::FullSnapshot, 9));
    rig.snapshot(2, &["l"]);
    rig.heartbeat("0/8", 0);
    assert_eq!(rig.events(), [RESTART, "[\"l\"] at 0/8", "all at 0/8 as of 0"]);
}

#[test]
fn a_server_that_is_behind_does_not_take_the_consumer_back() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.open(greeting(SyncMode::FullSnapshot, 4));
    assert_eq!(rig.events(), [""; 0]);
    assert_eq!(rig.fault(), ReplicaError::Behind { ours: Lsn(5), theirs: Lsn(4) });
    rig.snapshot(4, &["l"]);
    assert_eq!(rig.events(), [""; 0]);
    // The consumer still has its rows, and may resume from them.
    assert_eq!(rig.open(greeting(SyncMode::Delta, 5)).position, Lsn(5));
    assert_eq!(rig.events(), ["resumed at 0/5"]);
}

#[test]
fn another_history_begins_again_where_it_is() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.open(SyncHandshake { source: source(2).map(Into::into), ..greeting(SyncMode::FullSnapshot, 4) });
    rig.snapshot(3, &["l"]);
    assert_eq!(rig.events(), [RESTART]);
    rig.batch(batch(4, &["m"]));
    assert_eq!(rig.events(), ["[\"l\", \"m\"] at 0/4"]);
    let resume = rig.open(SyncHandshake { source: source(2).map(Into::into), ..greeting(SyncMode::Delta, 4) });
    assert_eq!((resume.position, resume.source), (Lsn(4), source(2)));
}

/// A restart says up to which position the old and the new rows share one history.
#[test]
fn a_restart_says_how_much_of_the_history_is_shared() {
    let journal = |name: &str, shared_position| {
        let (instance_id, another_history) = (name.to_owned(), true);
        SyncHandshake { instance_id, another_history, shared_position, ..greeting(SyncMode::FullSnapshot, 9) }
    };
    let told = |rig: &mut SubscriptionRig| match rig.subscription.next().now_or_never() {
        Some(SubscriptionEvent::Restart { shared_until, .. }) => shared_until.0,
        other => panic!("{other:?}"),
    };
    let mut rig = SubscriptionRig::new(None);
    rig.open(journal("one", 0));
    assert_eq!(told(&mut rig), 0, "there was nothing before");
    rig.snapshot(5, &["k"]);
    assert_eq!(rig.events(), ["[\"k\"] at 0/5"]);
    rig.open(journal("one", 0));
    assert_eq!(told(&mut rig), u64::MAX, "a journal has one history");
    // The rows do not arrive. The next streams are of the same journal and of another one. The
    // client presents no position to them.
    rig.open(journal("one", 3));
    assert_eq!(told(&mut rig), u64::MAX);
    rig.open(journal("two", 3));
    assert_eq!(told(&mut rig), 0);
    rig.open(journal("two", 3));
    assert_eq!(told(&mut rig), 0, "nothing more is known");
    rig.snapshot(6, &["l"]);
    assert_eq!(rig.events(), ["[\"l\"] at 0/6"]);
    rig.open(journal("three", 4));
    assert_eq!(told(&mut rig), 4, "the server knows");
}

/// The database is the same, but the server says that the client's position is of another history.
#[test]
fn a_server_that_reports_another_history_sends_all_rows_again() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    let refused = SyncHandshake { another_history: false, ..greeting(SyncMode::FullSnapshot, 3) };
    rig.open(refused);
    assert_eq!(rig.events(), [""; 0]);
    assert_eq!(rig.fault(), ReplicaError::Behind { ours: Lsn(5), theirs: Lsn(3) });
    rig.open(SyncHandshake { another_history: true, ..greeting(SyncMode::FullSnapshot, 3) });
    rig.snapshot(3, &["l"]);
    assert_eq!(rig.events(), [RESTART, "[\"l\"] at 0/3"]);
}

#[test]
fn the_newest_commit_that_is_known_goes_with_the_position() {
    let mark = |end, scope| CommitMark { end, xid: 70 + end, committed_at_us: 9, scope };
    let told = |rig: &SubscriptionRig, position: &str, mark| {
        let source_position = position.to_owned();
        rig.receive(Message::Heartbeat(Heartbeat { source_position, mark, ..Heartbeat::default() }));
    };
    let mut rig = SubscriptionRig::at(5, &["k"]);
    let mut commit = batch(6, &["l"]);
    (commit.xid, commit.committed_at_us) = (76, 9);
    rig.batch(commit.clone());
    assert_eq!(rig.events().len(), 1);
    assert_eq!(rig.subscription.receiver.resume().mark.map(CommitMark::from), Some(mark(6, 0)), "the table's own");
    // The server's mark for the same commit adds nothing. A later commit of another table does.
    for (position, newest, expected) in [
        ("0/7", Some(mark(6, 5)), Some(mark(6, 0))),
        ("0/9", Some(mark(8, 5)), Some(mark(8, 5))),
        ("0/9", None, Some(mark(8, 5))),
        ("0/A", None, None),
        ("0/B", Some(mark(99, 5)), None),
    ] {
        told(&rig, position, newest);
        rig.events();
        assert_eq!(rig.subscription.receiver.resume().mark.map(CommitMark::from), expected, "{position}");
    }
    // A span has no commit of its own.
    rig.batch(RowBatch { xid: 83, committed_at_us: 9, ..batch(13, &["m"]) });
    rig.batch(RowBatch { span_from: 13, ..batch(14, &["n"]) });
    rig.events();
    assert_eq!(rig.subscription.receiver.resume().mark, None);
}

#[test]
fn rows_that_the_consumer_dropped_are_not_continued() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.open(greeting(SyncMode::FullSnapshot, 6));
    let [begin, rows, _] = snapshot(6, &["l"]);
    rig.receive(begin);
    rig.receive(rows);
    assert_eq!(rig.events(), [RESTART]);
    assert_eq!(rig.open(greeting(SyncMode::FullSnapshot, 4)), ResumeState::default());
    // The position that was shown is still remembered.
    assert_eq!(rig.events(), [""; 0]);
    assert_eq!(rig.fault(), ReplicaError::Behind { ours: Lsn(5), theirs: Lsn(4) });
    rig.open(greeting(SyncMode::FullSnapshot, 6));
    rig.snapshot(6, &["l"]);
    assert_eq!(rig.events(), [RESTART, "[\"l\"] at 0/6"]);
}

#[test]
fn the_definition_of_the_rows_goes_with_the_position() {
    let [one, two, three, four] = [1, 2, 3, 4].map(DefinitionVersion);
    let mut rig = SubscriptionRig::new(Some(ResumePoint { definition: one, ..point(5) }));
    let continues = |definition: DefinitionVersion, head| SyncHandshake {
        definition: definition.0,
        ..greeting(SyncMode::Delta, head)
    };
    let begins = |definition: DefinitionVersion, batch| RowBatch { definition: definition.0, ..batch };
    assert_eq!(rig.open(continues(one, 6)).definition, one);
    // An incomplete transaction does not begin a definition.
    rig.batch(RowBatch { ends: false, ..begins(two, batch(6, &["k"])) });
    assert_eq!(rig.events(), ["resumed at 0/5"]);
    assert_eq!(rig.open(continues(one, 6)).definition, one);
    rig.batch(RowBatch { ends: false, ..begins(two, batch(6, &["k"])) });
    rig.batch(batch(6, &["l"]));
    assert_eq!((rig.events().len(), rig.subscription.definition()), (2, two));
    rig.batch(batch(7, &["m"]));
    assert_eq!((rig.events().len(), rig.subscription.definition()), (1, two), "it stays");
    rig.batch(begins(three, batch(7, &[])));
    assert_eq!((rig.events().len(), rig.subscription.definition()), (0, three), "and may change without a transaction");
    // Among repeats, only the newest transaction determines the definition of the rows.
    assert_eq!(rig.open(continues(three, 7)).definition, three);
    rig.batch(begins(two, batch(6, &["k", "l"])));
    assert_eq!((rig.events().len(), rig.subscription.definition()), (1, three));
    rig.batch(begins(four, batch(7, &[])));
    assert_eq!((rig.events().len(), rig.subscription.definition()), (0, four));
}

#[test]
fn a_snapshot_has_a_definition_of_its_own() {
    let [two, three] = [2, 3].map(DefinitionVersion);
    let mut rig = SubscriptionRig::at(5, &["k"]);
    assert!(!rig.subscription.definition().is_known(), "a server that knows none");
    rig.open(SyncHandshake { definition: two.0, ..greeting(SyncMode::FullSnapshot, 9) });
    rig.snapshot(2, &["l"]);
    assert_eq!(rig.events(), [RESTART]);
    assert!(!rig.subscription.definition().is_known(), "it is not there yet");
    rig.batch(RowBatch { definition: three.0, ..batch(6, &["n"]) });
    assert_eq!((rig.events().len(), rig.subscription.definition()), (1, three));
    rig.open(SyncHandshake { definition: two.0, ..greeting(SyncMode::FullSnapshot, 9) });
    rig.snapshot(7, &["l"]);
    assert_eq!((rig.events().len(), rig.subscription.definition()), (2, two));
    // A server without definition versions does not report what it does with the rows.
    assert_eq!(rig.open(greeting(SyncMode::Delta, 9)).definition, two);
    assert_eq!((rig.events().len(), rig.subscription.definition()), (1, DefinitionVersion::UNKNOWN));
}

#[test]
fn it_begins_with_what_the_consumer_has() {
    let mut rig = SubscriptionRig::new(Some(ResumePoint { source: source(1), ..point(5) }));
    assert_eq!(rig.subscription.status().position, Lsn(5));
    let resume = rig.open(SyncHandshake { source: source(1).map(Into::into), ..greeting(SyncMode::Delta, 6) });
    assert_eq!(resume, ResumeState { source: source(1), ..positioned(5) });
    rig.batch(batch(5, &["k"]));
    rig.batch(batch(6, &["l"]));
    assert_eq!(rig.events(), ["resumed at 0/5", "1 more at 0/6"]);
    let status = rig.subscription.status();
    assert_eq!((status.ready, status.full_snapshots, status.resyncs), (true, 0, 0));
}

#[test]
fn the_handshake_says_of_which_database_the_stream_is() {
    let mut rig = SubscriptionRig::new(Some(point(5)));
    rig.open(SyncHandshake { source: source(3).map(Into::into), ..greeting(SyncMode::Delta, 6) });
    let event = rig.subscription.next().now_or_never().unwrap();
    assert!(matches!(event, SubscriptionEvent::Resumed { source: found, .. } if found == source(3)));
    rig.open(SyncHandshake { source: source(4).map(Into::into), ..greeting(SyncMode::FullSnapshot, 6) });
    rig.snapshot(6, &[]);
    assert!(matches!(rig.subscription.next().now_or_never(), Some(SubscriptionEvent::Restart { .. })));
    let event = rig.subscription.next().now_or_never().unwrap();
    assert!(matches!(event, SubscriptionEvent::State { source: found, .. } if found == source(4)));
}

#[test]
fn rows_of_another_definition_are_requested_again() {
    let columns = two_columns().columns().to_vec();
    let schema = Arc::new(Schema::new(columns, KeyColumns::new([1]), Default::default()));
    let mut rig = SubscriptionRig::new(Some(ResumePoint { schema, ..point(5) }));
    rig.open(greeting(SyncMode::Delta, 6));
    assert_eq!(rig.events(), [""; 0]);
    assert_eq!(rig.fault(), ReplicaError::Schema { position: Lsn(5) });
    assert_eq!(rig.open(greeting(SyncMode::FullSnapshot, 6)), ResumeState::default());
    assert_eq!(rig.events(), [RESTART]);
}

#[test]
fn a_schema_that_came_with_a_transaction_is_that_of_the_next_stream() {
    let columns = two_columns().columns().to_vec();
    let before = Arc::new(Schema::new(columns[..1].to_vec(), KeyColumns::new([0]), Default::default()));
    let mut rig = SubscriptionRig::new(Some(ResumePoint { schema: before.clone(), ..point(5) }));
    let mut first = greeting(SyncMode::Delta, 6);
    first.encoding.as_mut().unwrap().schema = Some(laredo_proto::schema::to_wire(&before));
    rig.open(first);
    let schema = Some(laredo_proto::schema::to_wire(&two_columns()));
    rig.batch(RowBatch { schema, ..batch(6, &["k"]) });
    assert_eq!(rig.events(), ["resumed at 0/5", "2 more at 0/6"]);
    rig.open(greeting(SyncMode::Delta, 6));
    assert_eq!(rig.events(), ["resumed at 0/6"]);
}

#[test]
fn a_new_copy_around_the_position_and_a_broken_stream_begin_again() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.batch(RowBatch { span_from: 4, ..batch(7, &["l"]) });
    assert_eq!(rig.events(), [""; 0]);
    let span = ProtocolError::Span { from: Lsn(4), to: Lsn(7), ours: Lsn(5) };
    assert_eq!(rig.fault(), ReplicaError::Protocol(span));
    assert_eq!(rig.open(greeting(SyncMode::FullSnapshot, 7)), ResumeState::default());
    rig.snapshot(7, &["l"]);
    assert_eq!(rig.events(), [RESTART, "[\"l\"] at 0/7"]);
    rig.batch(batch(9, &["m"]));
    rig.batch(batch(8, &["n"]));
    assert_eq!(rig.events(), ["1 more at 0/9"]);
    assert!(matches!(rig.fault(), ReplicaError::Protocol(ProtocolError::Backwards { .. })));
    assert_eq!(rig.open(greeting(SyncMode::FullSnapshot, 9)), ResumeState::default());
}

/// A server that was killed may know less of a quiet table than its heartbeats said.
#[test]
fn a_new_copy_since_the_newest_transaction_is_taken_after_a_heartbeat() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.batch(batch(6, &["l"]));
    rig.heartbeat("0/8", 0);
    assert_eq!(rig.events(), ["1 more at 0/6", "all at 0/8 as of 0"]);
    rig.open(greeting(SyncMode::Delta, 6));
    rig.batch(RowBatch { span_from: 6, ..batch(9, &["m"]) });
    assert_eq!(rig.events(), ["resumed at 0/8", "1 more at 0/9"]);
}

#[test]
fn a_consumer_that_does_not_fit_gets_all_rows_and_nothing_before_them() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.batch(batch(6, &["l"]));
    rig.batch(batch(7, &["m"]));
    assert!(matches!(rig.subscription.next().now_or_never(), Some(SubscriptionEvent::Transaction(_))));
    rig.subscription.start_over(StateError::KeyExists);
    rig.heartbeat("0/7", 0);
    assert_eq!(rig.events(), [""; 0]);
    assert_eq!(rig.fault(), ReplicaError::State(StateError::KeyExists));
    assert_eq!(rig.open(greeting(SyncMode::FullSnapshot, 7)), ResumeState::default());
    rig.snapshot(5, &["k"]);
    rig.batch(batch(6, &["l"]));
    assert_eq!(rig.events(), [RESTART, "[\"k\", \"l\"] at 0/6"]);
}

#[test]
fn nothing_is_said_of_a_state_that_the_consumer_could_not_take() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.open(greeting(SyncMode::FullSnapshot, 6));
    rig.snapshot(4, &["l"]);
    // The heartbeat delivers the snapshot, and the event that the table is current.
    rig.heartbeat("0/6", 0);
    assert!(matches!(rig.subscription.next().now_or_never(), Some(SubscriptionEvent::Restart { .. })));
    assert!(matches!(rig.subscription.next().now_or_never(), Some(SubscriptionEvent::State { .. })));
    rig.subscription.start_over(StateError::KeyMissing);
    assert_eq!(rig.events(), [""; 0]);
}

#[test]
fn a_heartbeat_with_a_position_says_since_when_nothing_is_missing() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.now.store(3, Ordering::Relaxed);
    rig.heartbeat("0/5", 1000);
    rig.now.store(8, Ordering::Relaxed);
    // This message took one second longer than the first.
    rig.heartbeat("0/9", 1004);
    rig.heartbeat("", 1005);
    assert_eq!(rig.events(), ["all at 0/5 as of 3", "all at 0/9 as of 7"]);
    assert_eq!(rig.open(greeting(SyncMode::Delta, 9)).position, Lsn(9));
}

#[test]
fn a_subscription_ends_without_a_reader() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    rig.batch(batch(6, &["l"]));
    rig.inputs = mpsc::unbounded_channel().0;
    assert_eq!(rig.events(), ["1 more at 0/6", "ended"]);
    assert_eq!(rig.events(), ["ended"]);
    assert!(rig.subscription.status().stopped);
}

#[test]
fn a_check_is_answered_with_what_the_consumer_compares_and_declined_otherwise() {
    let mut rig = SubscriptionRig::at(5, &["k"]);
    let (ours, theirs) = (Checksum::default(), Checksum::of_row(TupleBuf::new().as_ref()));
    let ask = |rig: &SubscriptionRig, check: u8, position: u64| {
        rig.receive(Message::Heartbeat(Heartbeat {
            source_position: Lsn(position).to_string(),
            checksum: theirs.to_bytes().to_vec(),
            check: vec![check; 16],
            ..Heartbeat::default()
        }));
    };
    let is_current = |event: Option<SubscriptionEvent>| matches!(event, Some(SubscriptionEvent::Current { .. }));
    ask(&rig, 1, 5);
    assert!(is_current(rig.subscription.next().now_or_never()));
    assert!(rig.subscription.compare(Lsn(5), ours, theirs), "they differ");
    let report = rig.report();
    assert_eq!((report.table.as_str(), report.check, report.source_position.as_str()), ("t", vec![1; 16], "0/5"));
    assert_eq!((report.checksum, report.row_count), (ours.to_bytes().to_vec(), None));
    // Only now is the stream given up.
    assert!(matches!(rig.fault(), ReplicaError::Contents { .. }));

    let mut rig = SubscriptionRig::at(5, &["k"]);
    ask(&rig, 2, 6);
    assert!(is_current(rig.subscription.next().now_or_never()));
    assert!(rig.feedback.try_recv().is_err(), "the consumer may still compare");
    assert!(rig.subscription.next().now_or_never().is_none());
    let report = rig.report();
    assert_eq!((report.check, report.source_position.as_str(), report.checksum), (vec![2; 16], "0/6", vec![]));
    // The consumer is past this position, so its rows are different ones.
    ask(&rig, 3, 4);
    assert_eq!(rig.events().len(), 1);
    let report = rig.report();
    assert_eq!((report.check, report.checksum), (vec![3; 16], vec![]));
    // A check during an unfinished snapshot is declined too.
    rig.open(greeting(SyncMode::FullSnapshot, 7));
    ask(&rig, 4, 7);
    assert_eq!(rig.events(), [RESTART]);
    assert_eq!((rig.report().check, rig.feedback.try_recv().is_err()), (vec![4; 16], true));
}
